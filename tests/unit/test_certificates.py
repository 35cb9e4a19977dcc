"""TLS_CA_FILE: outside stores whose certificates are a company's own are verified, and all others are refused."""

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from botocore.exceptions import SSLError
from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from dagster_stack import authorities, environment
from dagster_stack.errors import BrokerUnreachable
from dagster_stack.messaging.app_factory import make_app
from dagster_stack.messaging.connection import connected
from dagster_stack.messaging.management import BrokerApi
from dagster_stack.objects.client import s3_client
from dagster_stack.settings import CeleryConfig, Settings
from scripts import certificates, env_file
from scripts.console import Failure
from tests.unit.tls import NAME, OTHER_NAME, Authority, server

#: What Postgres answers once a connection is encrypted: 28000, in its own protocol.
REFUSAL = b"SFATAL\0C28000\0Mencrypted and verified\0\0"
HEADER = b"AMQP\x00\x00\x09\x01"


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "company")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "stranger")


@pytest.fixture
def trusting(env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Authority], None]:
    """Have the environment of a container whose .env names the authority's file, as its first command has it."""

    def trust(authority: Authority) -> None:
        env.write_text(f"TLS_CA_FILE={authority.file}\nPOSTGRES_SSLMODE=verify-full\n")
        monkeypatch.setattr(certificates, "BUNDLE", str(tmp_path / "tls" / "bundle.pem"))
        for name, value in certificates.variables().items():
            monkeypatch.setenv(name, value)
        environment.complete()
        s3_client.cache_clear()

    for name in (
        authorities.VARIABLE,
        authorities.BUNDLE_VARIABLE,
        "SSL_CERT_FILE",
        "AWS_CA_BUNDLE",
        "PGSSLROOTCERT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return trust


# --- servers -------------------------------------------------------------------------------------------


def postgres(authority: Authority) -> Iterator[int]:
    def plain(connection: socket.socket) -> None:
        assert connection.recv(8)[4:] == b"\x04\xd2\x16\x2f"
        connection.sendall(b"S")

    def serve(connection: ssl.SSLSocket) -> None:
        connection.recv(1000)
        connection.sendall(b"E" + (4 + len(REFUSAL)).to_bytes(4, "big") + REFUSAL)

    with server(authority, serve, plain) as port:
        yield port


def http(authority: Authority, body: bytes) -> Iterator[int]:
    def serve(connection: ssl.SSLSocket) -> None:
        connection.recv(10_000)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + body)

    with server(authority, serve, lambda _: None) as port:
        yield port


@pytest.fixture
def headers() -> list[bytes]:
    """What the broker was told once a connection was encrypted."""
    return []


@pytest.fixture
def broker(company: Authority, headers: list[bytes]) -> Iterator[int]:
    def serve(connection: ssl.SSLSocket) -> None:
        headers.append(connection.recv(8))

    with server(company, serve, lambda _: None) as port:
        yield port


# --- what is trusted -----------------------------------------------------------------------------------

SQL = contextmanager(postgres)
PAGE = contextmanager(http)


def connect_to_postgres(host: str, port: int) -> str:
    engine = create_engine(f"postgresql://u@{host}:{port}/d?sslmode=verify-full&connect_timeout=5")
    with pytest.raises(OperationalError) as raised:
        engine.connect()
    return str(raised.value)


def test_postgres_is_verified(
    company: Authority, stranger: Authority, trusting: Callable[[Authority], None]
) -> None:
    with SQL(company) as port:
        trusting(company)
        assert "encrypted and verified" in connect_to_postgres(NAME, port)
        assert "does not match host name" in connect_to_postgres(OTHER_NAME, port)

        trusting(stranger)
        assert "certificate verify failed" in connect_to_postgres(NAME, port)


def test_the_s3_store_is_verified(
    company: Authority, stranger: Authority, trusting: Callable[[Authority], None]
) -> None:
    answer = (
        b"<ListAllMyBucketsResult><Buckets><Bucket><Name>b</Name></Bucket></Buckets></ListAllMyBucketsResult>"
    )
    with PAGE(company, answer) as port:
        trusting(company)
        listed = s3_client(f"https://{NAME}:{port}", impatient=True).list_buckets()
        assert [bucket["Name"] for bucket in listed["Buckets"]] == ["b"]
        with pytest.raises(SSLError, match="doesn't match"):
            s3_client(f"https://{OTHER_NAME}:{port}", impatient=True).list_buckets()

        trusting(stranger)
        with pytest.raises(SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            s3_client(f"https://{NAME}:{port}", impatient=True).list_buckets()


def test_the_management_of_rabbitmq_is_verified(
    company: Authority, stranger: Authority, trusting: Callable[[Authority], None]
) -> None:
    with PAGE(company, b"[]") as port:
        trusting(company)
        assert BrokerApi(f"https://{NAME}:{port}", "u", "p").read() == ()
        with pytest.raises(requests.exceptions.SSLError):
            BrokerApi(f"https://{OTHER_NAME}:{port}", "u", "p").read()

        trusting(stranger)
        with pytest.raises(requests.exceptions.SSLError):
            BrokerApi(f"https://{NAME}:{port}", "u", "p").read()


def app_of_worker(url: str) -> Celery:
    return make_app(CeleryConfig(broker=url), Settings.from_environment({"DAGSTER_STACK_S3_BUCKET": "b"}))


def failure_of(app: Celery) -> str:
    """Why no connection came about; it never does, since this broker says nothing."""
    with pytest.raises(Exception) as raised, app.connection_for_write() as connection:  # noqa: PT011
        connection.connect()
    return str(raised.value)


def test_the_broker_is_verified(
    company: Authority,
    stranger: Authority,
    trusting: Callable[[Authority], None],
    broker: int,
    headers: list[bytes],
) -> None:
    trusting(company)
    failure_of(app_of_worker(f"amqps://u:p@{NAME}:{broker}/v"))
    # Then the broker was spoken to, encrypted
    assert set(headers) == {HEADER}
    headers.clear()
    assert "mismatch" in failure_of(app_of_worker(f"amqps://u:p@{OTHER_NAME}:{broker}/v"))

    trusting(stranger)
    assert "CERTIFICATE_VERIFY_FAILED" in failure_of(app_of_worker(f"amqps://u:p@{NAME}:{broker}/v"))
    with (
        pytest.raises(BrokerUnreachable, match="CERTIFICATE_VERIFY_FAILED"),
        connected(f"amqps://u:p@{NAME}:{broker}/v"),
    ):
        pass
    assert headers == []


def test_a_job_may_say_itself_how_its_broker_is_verified() -> None:
    own = {"broker_use_ssl": {"ca_certs": "/mine"}}
    config = CeleryConfig(broker="amqps://x", config_source=own)

    app = make_app(config, Settings.from_environment({"DAGSTER_STACK_S3_BUCKET": "b"}))

    assert app.conf.broker_use_ssl == {"ca_certs": "/mine"}


def test_a_broker_without_tls_is_left_alone() -> None:
    assert not app_of_worker("amqp://u:p@broker/v").connection_for_write().ssl


def test_public_authorities_are_trusted_too(
    company: Authority, trusting: Callable[[Authority], None]
) -> None:
    trusting(company)

    def number(*files: str | Path) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for file in files:
            context.load_verify_locations(file)
        return context.cert_store_stats()["x509"]

    assert number(os.environ["AWS_CA_BUNDLE"]) == number(authorities.PUBLIC, company.file) > 50


# --- what `make up` says -------------------------------------------------------------------------------


def test_without_the_setting_nothing_is_handed_on(env: Path) -> None:
    env.write_text("TLS_CA_FILE=\nPOSTGRES_SSLMODE=require\n")

    assert certificates.variables() == {}


def test_postgres_of_a_public_authority_is_verified_without_a_file(env: Path) -> None:
    env.write_text("POSTGRES_SSLMODE=verify-full\n")

    assert certificates.variables() == {"PGSSLROOTCERT": str(authorities.PUBLIC)}


def test_the_stack_s_own_stores_are_verified_by_its_own_authority(env: Path) -> None:
    env.write_text("INTERNAL_TLS=on\n")

    assert set(certificates.variables()) == {
        authorities.BUNDLE_VARIABLE, "SSL_CERT_FILE", "AWS_CA_BUNDLE", "PGSSLROOTCERT",
    }  # fmt: skip


def test_an_outside_postgres_is_verified_when_it_says_so_alone(env: Path) -> None:
    env.write_text("INTERNAL_TLS=on\nPOSTGRES_HOST=db.example\nPOSTGRES_SSLMODE=require\n")

    assert "PGSSLROOTCERT" not in certificates.variables()


def test_the_stack_s_own_authority_is_trusted_beside_the_others(
    company: Authority, trusting: Callable[[Authority], None], tmp_path: Path
) -> None:
    trusting(company)
    (stack := tmp_path / "ca.pem").write_text("the stack's own\n")

    authorities.write(stack=stack)

    assert Path(os.environ[authorities.BUNDLE_VARIABLE]).read_text().endswith("the stack's own\n")


@pytest.mark.parametrize(("mode", "is_right"), [("on", True), ("off", True), ("", True), ("yes", False)])
def test_internal_tls_is_on_or_off(env: Path, mode: str, is_right: bool) -> None:
    env.write_text(f"INTERNAL_TLS={mode}\n")

    (finding,) = certificates.findings()

    assert (finding.cure == "") == is_right


def test_a_postgres_that_is_not_to_be_verified_is_not(env: Path, company: Authority) -> None:
    """For `require` libpq would verify as well once it had a file."""
    env.write_text(f"TLS_CA_FILE={company.file}\nPOSTGRES_SSLMODE=require\n")

    assert "PGSSLROOTCERT" not in certificates.variables()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file"),
        ("", "no certificates that can be read"),
        ("no PEM", "no certificates that can be read"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "no certificates that can be read",
        ),
        ("-----BEGIN PRIVATE KEY-----", "has a private key"),
        (100_000 * "#", "containers take 90,000"),
    ],
)
def test_a_file_that_is_none_is_refused_with_the_cure(
    env: Path, tmp_path: Path, company: Authority, text: str | None, reason: str
) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        is_more = text.startswith(("-----BEGIN PRIVATE", "#"))
        file.write_text((company.file.read_text() if is_more else "") + text)
    env.write_text(f"TLS_CA_FILE={file}\n")

    with pytest.raises(Failure, match=rf"(?s)TLS_CA_FILE={file} in \.env .*{reason}"):
        certificates.variables()


def test_the_file_for_compose_is_there_as_long_as_the_setting(
    env: Path, tmp_path: Path, company: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "BUILD_FOLDER", tmp_path / "build")
    env.write_text(f"TLS_CA_FILE={company.file}\nCOMPOSE_PROJECT_NAME=mine\n")
    certificates.record()
    handed_on = tmp_path / "build" / "tls" / "mine.env"
    assert env_file.read(handed_on).keys() == {
        authorities.VARIABLE, authorities.BUNDLE_VARIABLE, "SSL_CERT_FILE", "AWS_CA_BUNDLE",
    }  # fmt: skip

    env.write_text("COMPOSE_PROJECT_NAME=mine\n")
    certificates.record()

    assert not handed_on.exists()
