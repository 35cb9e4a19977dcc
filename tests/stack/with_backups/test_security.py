"""The security baseline, looked at on running containers and their stores, not in the files that ask for it."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException

from scripts.images import CERTIFICATES_FILE
from tests.conftest import free_ports
from tests.stack.monitoring import SERVICES as MONITORING
from tests.stack.stack import Stack

STORES = ("postgres", "rabbitmq", "minio")
DAGSTER = ("dagit", "daemon", "runner", "worker", "worker-heavy")
SERVICES = STORES + DAGSTER + MONITORING + ("backup", "door")
#: Who executes the user's code, with the processes and threads that this may have: WORKER_PIDS, as it comes.
EXECUTES, WORKER_PIDS = ("runner", "worker", "worker-heavy"), 4096

#: What each service shows on 127.0.0.1; the others show nothing.
PUBLISHED = {
    "dagit": {"3000/tcp": "DAGIT_PORT"},
    "rabbitmq": {"15672/tcp": "RABBITMQ_PORT"},
    "minio": {"9000/tcp": "MINIO_PORT", "9001/tcp": "MINIO_CONSOLE_PORT"},
    "metrics": {"9808/tcp": "METRICS_PORT"},
    "flower": {"5555/tcp": "FLOWER_PORT"},
    "prometheus": {"9090/tcp": "PROMETHEUS_PORT"},
    "door": {"8443/tcp": "DAGIT_PORT", "9443/tcp": "MINIO_PORT"},
}
#: Who knows which secret.
KNOWS = {
    "POSTGRES_SUPERUSER_PASSWORD": {"postgres"},
    "POSTGRES_PASSWORD": {"postgres", "init", "metrics", *DAGSTER},
    "POSTGRES_MONITOR_PASSWORD": {"postgres", "postgres-exporter"},
    "RABBITMQ_PASSWORD": {"rabbitmq", "daemon", "runner", "worker", "worker-heavy", "metrics", "flower"},
    "RABBITMQ_ADMIN_PASSWORD": {"rabbitmq", "backup"},
    "RABBITMQ_MONITOR_PASSWORD": {"rabbitmq", "metrics", "flower"},
    "MINIO_ROOT_PASSWORD": {"minio", "init"},
    "MINIO_MONITOR_PASSWORD": {"init", "prometheus"},
    "S3_SECRET_KEY": {"init", "metrics", "backup", *DAGSTER},
    "BACKUP_KEY": {"postgres", "backup"},
    "FLOWER_PASSWORD": {"flower", "door"},
    "DOOR_SECRET": {"door"},
    "DOOR_ADMIN_PASSWORD": {"door"},
}
#: Which store's port each service can open; `outside` stands for an address beyond this host's networks.
PORTS = {"postgres": 5432, "rabbitmq": 5672, "minio": 9000}
REACHES = {
    "postgres": {"postgres"},
    "rabbitmq": {"rabbitmq"},
    "minio": {"minio"},
    "dagit": {"postgres", "minio"},
    "daemon": {"postgres", "rabbitmq", "minio"},
    "runner": {"postgres", "rabbitmq", "minio"},
    "worker": {"postgres", "rabbitmq", "minio"},
    "metrics": {"postgres", "rabbitmq", "minio"},
    "flower": {"rabbitmq"},
    "prometheus": {"rabbitmq", "minio"},
    "postgres-exporter": {"postgres"},
    # Postgres is met at its socket.
    "backup": {"rabbitmq", "minio"},
    "door": {"minio"},
}
#: A route that leaves this host, by which nothing answers (RFC 5737).
OUTSIDE = "198.51.100.1"


@pytest.fixture(scope="module")
def stack(stack: Stack) -> Iterator[Stack]:
    """The session's stack with all services: those of monitoring too, and the door of LOGIN=on, at other ports beside a Dagit
    that has its own."""
    print(stack.make("monitoring", timeout=1800).stdout)
    pages, links = free_ports(2)
    found = replace(stack, shell={**stack.shell, "LOGIN": "on", "DAGIT_PORT": pages, "MINIO_PORT": links})
    try:
        found.compose("up", "--detach", "--build", "--no-deps", "--wait", "door", timeout=900)
        yield found
    finally:
        found.compose("rm", "--stop", "--force", "--volumes", "door")
        found.docker("volume", "rm", f"{stack.project}_door")
        found.docker("network", "rm", f"{stack.project}_door")


def port_of(stack: Stack, service: str, variable: str) -> str:
    """What is published under a variable."""
    return str((stack.settings | (dict(stack.shell) if service == "door" else {}))[variable])


@pytest.fixture(scope="module")
def containers(stack: Stack) -> dict[str, dict[str, Any]]:
    """`docker inspect` of one container of each service, `init` too."""
    names = {entry.service: entry.name for entry in stack.containers()}
    found = json.loads(stack.docker("inspect", *names.values()).stdout)
    return dict(zip(names, found, strict=True))


def addresses(container: dict[str, Any]) -> list[str]:
    return [network["IPAddress"] for network in container["NetworkSettings"]["Networks"].values()]


# --- processes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_no_process_of_a_service_is_root_or_has_a_privilege(stack: Stack, service: str) -> None:
    # When every process of the container is asked, its first one included
    text = stack.exec(service, "sh", "-c", "cat /proc/[0-9]*/status 2>/dev/null || true").stdout
    # Then none is root, none has or can get a capability, and none gains rights by a set-uid program
    assert "0" not in {
        user for line in re.findall(r"^Uid:\t(.*)$", text, re.MULTILINE) for user in line.split()
    }
    for field in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
        assert {int(mask, 16) for mask in re.findall(rf"^{field}:\t(\w+)$", text, re.MULTILINE)} == {0}, field
    assert set(re.findall(r"^NoNewPrivs:\t(\d)$", text, re.MULTILINE)) == {"1"}


@pytest.mark.parametrize("service", [*SERVICES, "init"])
def test_no_container_has_more_of_this_host_than_it_is_given(
    containers: dict[str, dict[str, Any]], service: str
) -> None:
    container = containers[service]
    host = container["HostConfig"]
    # Then it has no rights, devices or name spaces of the host
    assert not host["Privileged"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Devices"]
    assert "host" not in {
        host["PidMode"],
        host["IpcMode"],
        host["UTSMode"],
        host["NetworkMode"],
        host["UsernsMode"],
    }
    assert not [option for option in host["SecurityOpt"] if "unconfined" in option]
    # And no folder or file of the host, the engine's socket least of all: named volumes alone
    assert {mount["Type"] for mount in container["Mounts"]} <= {"volume"}
    # And its memory, processes, open files and logs are limited
    assert 0 < host["Memory"] <= 4 * 1024**3
    assert 0 < host["PidsLimit"] <= (WORKER_PIDS if service in EXECUTES else 1024)
    assert [limit["Hard"] for limit in host["Ulimits"] if limit["Name"] == "nofile"] == [16384]
    assert host["LogConfig"]["Config"] == {"max-size": "20m", "max-file": "3"}


@pytest.mark.parametrize("service", [*SERVICES, "init"])
def test_scratch_space_is_limited_below_the_containers_memory(
    containers: dict[str, dict[str, Any]], service: str
) -> None:
    # Given that scratch space counts as memory: a full one must not get the container killed
    host = containers[service]["HostConfig"]
    sizes = {folder: re.search(r"size=(\d+)([mg])", options) for folder, options in host["Tmpfs"].items()}
    assert all(sizes.values()), host["Tmpfs"]
    scratch = sum(int(size[1]) * {"m": 1024**2, "g": 1024**3}[size[2]] for size in sizes.values() if size)
    assert 0 < scratch <= host["Memory"]


@pytest.mark.parametrize("service", SERVICES)
def test_root_file_system_is_read_only_even_for_root(stack: Stack, service: str) -> None:
    # When root itself (which no process of the container is) writes to where programs and settings lie
    script = "for folder in / /etc /opt /usr/bin /usr/local /var/lib; do touch $folder/written; done"
    answer = stack.docker("exec", "--user", "0", stack.container(service), "sh", "-c", script, check=False)
    # Then each attempt is refused for that very reason
    assert answer.stderr.count("Read-only file system") == 6, answer.stderr


@pytest.mark.parametrize("service", [*SERVICES, "init"])
def test_files_of_user_code_are_there_where_it_runs_and_nowhere_else(
    containers: dict[str, dict[str, Any]], service: str
) -> None:
    mounts = {mount["Destination"] for mount in containers[service]["Mounts"]}
    assert ("/opt/data" in mounts) is (service in {*DAGSTER, "init"})


# --- networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", [*SERVICES, "init"])
def test_ports_are_published_on_the_loopback_address_alone(
    stack: Stack, containers: dict[str, dict[str, Any]], service: str
) -> None:
    # Given what the engine published
    ports = containers[service]["NetworkSettings"]["Ports"]
    published = {port: bindings for port, bindings in ports.items() if bindings}
    # Then it is what people look at, under the ports of .env, and nothing else
    assert published == {
        port: [{"HostIp": "127.0.0.1", "HostPort": port_of(stack, service, variable)}]
        for port, variable in PUBLISHED.get(service, {}).items()
    }


def test_this_host_listens_for_the_stack_on_the_loopback_address_alone(stack: Stack) -> None:
    # Given the host's own table of listening sockets
    wanted = {
        int(port_of(stack, service, variable))
        for service, ports in PUBLISHED.items()
        for variable in ports.values()
    }
    listening = [(address, port) for address, port in listeners() if port in wanted]
    # Then each port is there, and on no other address
    assert {port for _, port in listening} == wanted
    assert {address for address, _ in listening} == {"0100007F"}


def listeners() -> Iterator[tuple[str, int]]:
    """Address, as /proc writes it, and port of each listening TCP socket."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "0A":
                address, port = local.split(":")
                yield address, int(port, 16)


@pytest.mark.parametrize("service", REACHES)
def test_a_service_reaches_the_stores_that_it_needs_and_no_other(
    stack: Stack, containers: dict[str, dict[str, Any]], service: str
) -> None:
    # Given every address of every store, since a name that is not known hides nothing
    doors = [
        (store, address, port) for store, port in PORTS.items() for address in addresses(containers[store])
    ]
    # When the service tries all of them at once
    attempts = " ".join(
        f"(timeout 2 bash -c '</dev/tcp/{address}/{port}' && echo {store}) &"
        for store, address, port in doors
    )
    found = stack.exec(service, "bash", "-c", f"exec 2>/dev/null; {attempts} wait").stdout.split()
    # Then it gets through to its own stores alone
    assert set(found) == REACHES[service]


@pytest.mark.parametrize("service", STORES)
def test_a_store_has_no_way_out_of_this_host(
    stack: Stack, containers: dict[str, dict[str, Any]], service: str
) -> None:
    # Given the networks of the store
    names = containers[service]["NetworkSettings"]["Networks"]
    for network in json.loads(stack.docker("network", "inspect", *names).stdout):
        # Then each is internal, or one whose packets leave under a private address that nobody can answer
        masquerade = network["Options"].get("com.docker.network.bridge.enable_ip_masquerade")
        assert network["Internal"] or masquerade == "false", network["Name"]


# --- secrets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", KNOWS)
def test_a_secret_is_known_to_those_who_need_it_and_to_nobody_else(
    stack: Stack, containers: dict[str, dict[str, Any]], secret: str
) -> None:
    # When all that the engine tells of the containers is searched for the secret
    value = stack.settings[secret]
    found = {service for service, container in containers.items() if value in json.dumps(container)}
    # Then it is where it is needed, in the environment, and nowhere else
    assert found == KNOWS[secret]
    for service in found:
        config = containers[service]["Config"]
        assert any(value in line for line in config["Env"])
        assert value not in json.dumps([config["Cmd"], config["Entrypoint"], config["Labels"]])


def test_only_the_owner_reads_the_file_of_secrets(stack: Stack) -> None:
    assert stack.env.stat().st_mode & 0o777 == 0o600


def test_logs_hold_no_secret(stack: Stack) -> None:
    # Given all that every service has said since it started
    log = stack.compose("logs", "--no-color").stdout
    assert "ready to accept connections" in log
    # Then no secret is among it
    assert [name for name in KNOWS if stack.settings[name] in log] == []


@pytest.mark.parametrize("service", [*STORES, *MONITORING[2:], "backup", "worker", "door"])
def test_an_image_holds_no_secret_and_no_certificate_of_the_building_network(
    stack: Stack, containers: dict[str, dict[str, Any]], service: str
) -> None:
    image = containers[service]["Image"]
    # Given how the image was made, and what it sets
    made = stack.docker("history", "--no-trunc", "--format", "json", image).stdout
    described = stack.docker("image", "inspect", image).stdout
    # Then no secret is in there
    assert [name for name in KNOWS if stack.settings[name] in made + described] == []
    # And no file that holds some came along, nor what the build was lent
    script = "ls -d /opt/*/.env* /opt/*/.build /tmp/ca.pem /run/secrets /usr/local/share/ca-certificates/* 2>/dev/null"
    assert stack.exec(service, "sh", "-c", script, check=False).stdout == ""
    # And the certificates that it trusts are Debian's
    trusted = stack.exec(
        service, "sh", "-c", "cat /etc/ssl/certs/ca-certificates.crt 2>/dev/null || true"
    ).stdout
    bodies = re.findall(
        r"BEGIN CERTIFICATE-----\s*(.*?)\s*-----END", CERTIFICATES_FILE.read_text(), re.DOTALL
    )
    assert not [body for body in bodies if body in trusted]


# --- images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", [*STORES, *MONITORING[2:], "backup", "worker", "door"])
def test_an_image_runs_as_a_numeric_user_and_brings_no_tool_to_build_with(
    stack: Stack, containers: dict[str, dict[str, Any]], service: str
) -> None:
    # Given the image's own user, which a stack that sets none gets
    image = json.loads(stack.docker("image", "inspect", containers[service]["Image"]).stdout)[0]
    user = re.fullmatch(r"(\d+):(\d+)", image["Config"]["User"])
    assert user
    assert int(user[1]) >= 10000
    # Then no compiler or installer is on board
    script = "command -v gcc cc g++ c++ make go pip pip3 git; python3 -m pip --version; true"
    assert stack.exec(service, "sh", "-c", script, check=False).stdout == ""


def test_the_promised_versions_are_inside(stack: Stack) -> None:
    versions = {
        "postgres": stack.sql("SHOW server_version")[0][0],
        "rabbitmq": stack.broker("overview")["rabbitmq_version"],
        "dagster": stack.graphql("{ version }")["version"],
        "python": stack.exec("worker", "python", "--version").stdout.removeprefix("Python "),
    }
    wanted = {"postgres": "17.", "rabbitmq": "4.", "dagster": "1.13.", "python": "3.13."}
    assert {name: versions[name][: len(start)] for name, start in wanted.items()} == wanted


def test_dagster_sends_no_telemetry(stack: Stack) -> None:
    # Given what Dagit tells the browser, and what the instance is set to
    page = requests.get(stack.dagit_url, timeout=30).text
    # Then both say no
    assert re.search(r'"telemetryEnabled":\s*false', page)
    info = stack.graphql("{ instance { info } }")["instance"]["info"]
    assert re.search(r"telemetry:\s+enabled: false", info)


# --- what the stores refuse: S3 ------------------------------------------------------------------------


def refused(call: Any, **arguments: Any) -> None:
    """Insist that S3 refuses a call for lack of a right."""
    with pytest.raises(ClientError) as error:
        call(**arguments)
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403, error.value


@pytest.fixture
def foreign_bucket(stack: Stack) -> Iterator[str]:
    """A bucket that is not the stack's, with an object in it."""
    name = "someone-elses"
    stack.s3_root.create_bucket(Bucket=name)
    stack.s3_root.put_object(Bucket=name, Key="secret", Body=b"x")
    yield name
    stack.s3_root.delete_object(Bucket=name, Key="secret")
    stack.s3_root.delete_bucket(Bucket=name)


def test_s3_user_has_its_bucket_and_nothing_of_others(stack: Stack, foreign_bucket: str) -> None:
    # Given that the user can do what steps do
    stack.s3.put_object(Bucket=stack.bucket, Key="security/probe", Body=b"x")
    assert stack.keys("security/") == ["security/probe"]
    stack.s3.delete_object(Bucket=stack.bucket, Key="security/probe")
    # Then another bucket is closed to it, and it can make none
    refused(stack.s3.list_objects_v2, Bucket=foreign_bucket)
    refused(stack.s3.get_object, Bucket=foreign_bucket, Key="secret")
    refused(stack.s3.put_object, Bucket=foreign_bucket, Key="mine", Body=b"x")
    refused(stack.s3.delete_object, Bucket=foreign_bucket, Key="secret")
    refused(stack.s3.delete_bucket, Bucket=foreign_bucket)
    refused(stack.s3.create_bucket, Bucket="one-more")
    # And it does not even see that there is another
    assert [entry["Name"] for entry in stack.s3.list_buckets()["Buckets"]] == [stack.bucket]


def test_s3_user_can_not_change_the_rules_of_its_bucket(stack: Stack) -> None:
    bucket = {"Bucket": stack.bucket}
    everybody = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{stack.bucket}/*",
            }
        ],
    }
    refused(stack.s3.put_bucket_policy, **bucket, Policy=json.dumps(everybody))
    refused(stack.s3.delete_bucket_lifecycle, **bucket)
    refused(stack.s3.put_bucket_versioning, **bucket, VersioningConfiguration={"Status": "Enabled"})
    refused(stack.s3.delete_bucket, **bucket)


def test_s3_user_is_no_administrator(stack: Stack) -> None:
    admin = MinioAdmin(
        endpoint=f"127.0.0.1:{stack.settings['MINIO_PORT']}",
        credentials=StaticProvider(stack.settings["S3_ACCESS_KEY"], stack.settings["S3_SECRET_KEY"]),
        secure=False,
    )
    for call in (admin.user_list, admin.policy_list, admin.info, lambda: admin.user_add("eve", "password12")):
        with pytest.raises(MinioAdminException, match=r"AccessDenied|Access Denied"):
            call()


def test_s3_refuses_strangers(stack: Stack) -> None:
    # Given an object
    stack.s3.put_object(Bucket=stack.bucket, Key="security/private", Body=b"x")
    address = f"http://127.0.0.1:{stack.settings['MINIO_PORT']}/{stack.bucket}"
    try:
        # Then without a key nobody reads, lists or writes
        assert requests.get(f"{address}/security/private", timeout=20).status_code == 403
        assert requests.get(f"{address}?list-type=2", timeout=20).status_code == 403
        assert requests.put(f"{address}/security/theirs", b"x", timeout=20).status_code == 403
        # And a wrong key is no key
        refused(
            stack.s3_client(stack.settings["S3_ACCESS_KEY"], "wrong" * 8).list_objects_v2, Bucket=stack.bucket
        )
    finally:
        stack.s3.delete_object(Bucket=stack.bucket, Key="security/private")


# --- what the stores refuse: RabbitMQ ------------------------------------------------------------------


def test_the_stacks_broker_user_has_no_management_and_no_other_vhost(stack: Stack) -> None:
    # Given that its password is right: it works from where workers are
    connect = (
        "import kombu, dagster_stack.messaging.address as broker;"
        " kombu.Connection(broker.address().rpartition('/')[0] + '/{}').connect()"
    )
    assert stack.exec("worker", "python", "-c", connect.format("dagster")).returncode == 0
    # Then the management API is closed to it
    assert stack.broker_response("overview", "dagster").status_code == 401
    # And so is the default vhost
    answer = stack.exec("worker", "python", "-c", connect.format("%2F"), check=False)
    assert answer.returncode != 0
    assert re.search(r"NOT_ALLOWED|NotAllowed|not found", answer.stderr)


def test_the_broker_has_three_users_and_none_is_guest(stack: Stack) -> None:
    users = {user["name"]: user["tags"] for user in stack.broker("users")}
    assert users == {"dagster": [], "admin": ["administrator"], "monitor": ["monitoring"]}
    assert stack.broker_response("overview", "guest", "guest").status_code == 401
    assert [vhost["name"] for vhost in stack.broker("vhosts")] == [stack.settings["RABBITMQ_VHOST"]]


def test_the_monitor_user_sees_figures_and_changes_nothing(stack: Stack) -> None:
    vhost = stack.settings["RABBITMQ_VHOST"]
    # Given that it sees how many messages wait
    assert "messages" in stack.broker(f"queues/{vhost}/dagster", "monitor")
    # When it publishes, purges, declares, deletes, adds a user
    api = f"http://127.0.0.1:{stack.settings['RABBITMQ_PORT']}/api"
    login = ("monitor", stack.settings["RABBITMQ_MONITOR_PASSWORD"])
    message = {"properties": {}, "routing_key": "dagster", "payload": "x", "payload_encoding": "string"}
    attempts = [
        requests.post(f"{api}/exchanges/{vhost}/dagster/publish", json=message, auth=login, timeout=20),
        requests.post(
            f"{api}/queues/{vhost}/dagster/get",
            json={"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}, auth=login, timeout=20,
        ),
        requests.delete(f"{api}/queues/{vhost}/dagster/contents", auth=login, timeout=20),
        requests.put(f"{api}/queues/{vhost}/mine", json={"durable": True}, auth=login, timeout=20),
        requests.delete(f"{api}/queues/{vhost}/dagster", auth=login, timeout=20),
        requests.put(f"{api}/users/eve", json={"password": "x", "tags": "administrator"}, auth=login, timeout=20),
    ]  # fmt: skip
    # Then each is refused, and the broker is as it was
    assert [answer for answer in attempts if answer.status_code not in (400, 401, 403)] == []
    assert [answer.text for answer in attempts if not re.search("refused|authorised", answer.text)] == []
    assert "mine" not in {queue["name"] for queue in stack.broker("queues")}


# --- what the stores refuse: Postgres ------------------------------------------------------------------


def test_dagsters_database_user_has_no_special_right(stack: Stack) -> None:
    name = stack.settings["POSTGRES_USER"]
    rights = stack.sql(
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles"
        f" WHERE rolname = '{name}'"
    )
    assert rights == [["f"] * 5]
    # And the databases of the superuser are closed to it
    answer = psql_from_a_worker(stack, stack.settings["POSTGRES_PASSWORD"], database="postgres")
    assert "permission denied for database" in answer


def test_the_monitoring_user_sees_figures_and_no_table(stack: Stack) -> None:
    # Given the role of postgres-exporter
    password = stack.settings["POSTGRES_MONITOR_PASSWORD"]
    reading = "SET ROLE monitor; SELECT count(*) FROM {}"
    # Then it comes in, to the server's figures
    assert psql_from_a_worker(stack, password, user="monitor") == "connected"
    assert superuser_sql(stack, reading.format("pg_stat_activity"), stack.settings["POSTGRES_DB"])
    # And to none of Dagster's tables
    with pytest.raises(AssertionError, match="permission denied for table runs"):
        superuser_sql(stack, reading.format("runs"), stack.settings["POSTGRES_DB"])


def test_passwords_are_kept_and_asked_for_as_scram_sha_256(stack: Stack) -> None:
    # Given the tables that only the superuser sees, over the socket inside the container
    hashes = superuser_sql(stack, "SELECT rolname, left(rolpassword, 14) FROM pg_authid WHERE rolcanlogin")
    rules = superuser_sql(stack, "SELECT type, auth_method FROM pg_hba_file_rules")
    # Then no password is kept in a weaker form, and nobody comes in over the network without one
    assert sorted(hashes) == [[role, "SCRAM-SHA-256$"] for role in ("dagster", "monitor", "postgres")]
    assert {tuple(rule) for rule in rules} == {("local", "peer"), ("host", "scram-sha-256")}


def test_postgres_refuses_a_wrong_password(stack: Stack) -> None:
    # Given that the right one is taken
    assert psql_from_a_worker(stack, stack.settings["POSTGRES_PASSWORD"]) == "connected"
    # Then a wrong one and none are not
    assert "password authentication failed" in psql_from_a_worker(stack, "wrong")
    assert "no password supplied" in psql_from_a_worker(stack, "")


def psql_from_a_worker(stack: Stack, password: str, database: str = "dagster", user: str = "dagster") -> str:
    """`connected`, or what Postgres says, to somebody who comes over the network."""
    script = (
        "import psycopg2, sys\n"
        "try:\n"
        f"    psycopg2.connect(host='postgres', user='{user}', password='{password}', dbname='{database}')\n"
        "    print('connected')\n"
        "except psycopg2.OperationalError as error:\n"
        "    print(error)\n"
    )
    return stack.exec("worker", "python", "-c", script).stdout.strip()


def superuser_sql(stack: Stack, statement: str, database: str = "postgres") -> list[list[str]]:
    command = [
        "psql",
        "-X",
        "-A",
        "-t",
        "-F",
        "|",
        "-h",
        "/run/postgresql",
        "-U",
        "postgres",
        "-d",
        database,
        "-c",
        statement,
    ]
    return [line.split("|") for line in stack.exec("postgres", *command).stdout.splitlines()]
