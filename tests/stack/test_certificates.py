"""Outside stores with a company's own certificates, as the image's processes reach them: Postgres, RabbitMQ, MinIO themselves."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dagster_stack.authorities import BUNDLE_VARIABLE, VARIABLE
from scripts.certificates import BUNDLE
from tests.conftest import PROJECT
from tests.stack.stack import Stack
from tests.unit.tls import Authority
from tests.waiting import wait_until

#: Under which each of the stores answers; the certificate has the first name alone.
NAME, OTHER_NAME = "{}.test", "{}.other.test"
STORES = ("postgres", "rabbitmq", "minio")
PASSWORD = "test-password"
#: What services do: with the platform's own connections, and as user code.
CONNECT = r"""
import json, os, sys
import boto3, kombu, psycopg2
from dagster_stack.authorities import broker_tls
from dagster_stack.messaging.management import BrokerApi
from dagster_stack.objects.client import s3_client
name, password = sys.argv[1:]
keys = {"aws_access_key_id": "root", "aws_secret_access_key": password, "region_name": "us-east-1"}
s3, broker = "https://" + name.format("minio") + ":9000", f"amqps://dagster:{password}@{name.format('rabbitmq')}:5671/dagster"
tries = {
    "postgres": lambda: psycopg2.connect(
        host=name.format("postgres"), user="dagster", password=password, dbname="dagster", sslmode="verify-full"),
    "rabbitmq": lambda: kombu.Connection(broker, ssl=broker_tls(broker)).connect(),
    "management": lambda: BrokerApi(f"https://{name.format('rabbitmq')}:15671", "monitor", password, "dagster").read(),
    "s3": lambda: s3_client(s3, impatient=True).list_buckets(),
    "s3 of user code": lambda: boto3.client("s3", endpoint_url=s3, **keys).list_buckets(),
}
found = {}
for store, connect in tries.items():
    try:
        connect()
        found[store] = "connected"
    except Exception as error:
        found[store] = repr(error)
print(json.dumps(found))
"""
RABBITMQ = """\
listeners.ssl.default = 5671
ssl_options.certfile = /tls/server.pem
ssl_options.keyfile = /tls/server.key
management.tcp.port = 15672
management.ssl.port = 15671
management.ssl.certfile = /tls/server.pem
management.ssl.keyfile = /tls/server.key
"""
#: A key that all may read is none to Postgres.
POSTGRES = """\
cp /tls/server.pem /tls/server.key /tmp && chmod 600 /tmp/server.key
psql -X -q -h /run/postgresql -U postgres <<'SQL'
ALTER SYSTEM SET ssl_cert_file = '/tmp/server.pem';
ALTER SYSTEM SET ssl_key_file = '/tmp/server.key';
ALTER SYSTEM SET ssl = on;
SELECT pg_reload_conf();
SQL
"""


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("tls") / "company"
    authority = Authority.make(folder, [f"DNS:{NAME.format(store)}" for store in STORES])
    (folder / "rabbitmq.conf").write_text(RABBITMQ)
    for name, own in {"public.crt": "server.pem", "private.key": "server.key"}.items():
        (folder / name).write_bytes((folder / own).read_bytes())
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
    return authority


@pytest.fixture(scope="module")
def network(stack: Stack, company: Authority) -> Iterator[str]:
    """A network with the three stores, encrypted."""
    network = f"{PROJECT}-tls"
    settings = {
        "postgres": {"SUPERUSER_PASSWORD": PASSWORD, "USER": "dagster", "PASSWORD": PASSWORD, "DB": "dagster"},
        "rabbitmq": {
            "VHOST": "dagster", "USER": "dagster", "PASSWORD": PASSWORD, "ADMIN_USER": "admin", "ADMIN_PASSWORD": PASSWORD,
            "MONITOR_USER": "monitor", "MONITOR_PASSWORD": PASSWORD,
        },
        "minio": {"ROOT_USER": "root", "ROOT_PASSWORD": PASSWORD},
    }  # fmt: skip
    options = {
        "postgres": ["--tmpfs", "/run/postgresql:uid=10002,gid=10002"],
        "rabbitmq": ["-v", f"{company.folder}/rabbitmq.conf:/etc/rabbitmq/conf.d/90-tls.conf:ro,z"],
        "minio": [],
    }
    command = {"postgres": [], "rabbitmq": [], "minio": ["/data", "--certs-dir", "/tls"]}
    with ExitStack() as cleanup:
        stack.docker("network", "create", "--internal", network)
        cleanup.callback(stack.docker, "network", "rm", network)
        for store in STORES:
            name = f"{network}-{store}"
            variables = [
                part
                for key, value in settings[store].items()
                for part in ("-e", f"{store.upper()}_{key}={value}")
            ]
            aliases = ["--network-alias", NAME.format(store), "--network-alias", OTHER_NAME.format(store)]
            stack.docker(
                "run", "-d", "--name", name, "--network", network, *aliases, "-v", f"{company.folder}:/tls:ro,z",
                *options[store], *variables, f"{stack.project}/{store}", *command[store],
            )  # fmt: skip
            cleanup.callback(stack.docker, "rm", "-f", "-v", name)
        listens = ["exec", f"{network}-postgres", "pg_isready", "-q", "-h", "127.0.0.1"]
        wait_until(lambda: stack.docker(*listens, check=False).returncode == 0, 60, "Postgres listens")
        stack.docker("exec", f"{network}-postgres", "sh", "-euc", POSTGRES)
        wait_until_it_listens(stack, f"{network}-rabbitmq", 5671)
        wait_until_it_listens(stack, f"{network}-rabbitmq", 15671)
        wait_until_it_listens(stack, f"{network}-minio", 9000)
        yield network


def wait_until_it_listens(stack: Stack, container: str, port: int) -> None:
    opens = ["exec", container, "bash", "-c", f"</dev/tcp/127.0.0.1/{port}"]
    wait_until(
        lambda: stack.docker(*opens, check=False).returncode == 0, 90, f"{container} listens on {port}"
    )


@pytest.fixture(scope="module")
def connect(stack: Stack, network: str) -> Callable[[Authority, str], dict[str, str]]:
    """What a container whose .env names an authority's file comes to, at the stores under these names."""

    def connect(authority: Authority, name: str) -> dict[str, str]:
        variables = {
            VARIABLE: base64.b64encode(authority.file.read_bytes()).decode(),
            **dict.fromkeys((BUNDLE_VARIABLE, "SSL_CERT_FILE", "AWS_CA_BUNDLE", "PGSSLROOTCERT"), BUNDLE),
            "DAGSTER_STACK_S3_ACCESS_KEY": "root", "DAGSTER_STACK_S3_SECRET_KEY": PASSWORD,
            "DAGSTER_STACK_S3_REGION": "us-east-1",
        }  # fmt: skip
        options = [part for item in variables.items() for part in ("-e", "=".join(item))]
        image = stack.inspect(stack.container("worker"))["Config"]["Image"]
        answer = stack.docker(
            "run", "--rm", "--network", network, *options, image, "python", "-c", CONNECT, name, PASSWORD
        )
        found: dict[str, str] = json.loads(answer.stdout)
        return found

    return connect


def test_a_companys_certificates_are_trusted(
    company: Authority, connect: Callable[[Authority, str], dict[str, str]]
) -> None:
    assert set(connect(company, NAME).values()) == {"connected"}


def test_those_of_another_are_not(
    connect: Callable[[Authority, str], dict[str, str]], tmp_path: Path
) -> None:
    for store, found in connect(Authority.make(tmp_path / "stranger"), NAME).items():
        assert "certificate verify failed" in found.lower(), (store, found)


def test_nor_is_one_of_another_host(
    company: Authority, connect: Callable[[Authority, str], dict[str, str]]
) -> None:
    for store, found in connect(company, OTHER_NAME).items():
        assert any(
            words in found.lower() for words in ("does not match host", "mismatch", "doesn't match")
        ), (store, found)
