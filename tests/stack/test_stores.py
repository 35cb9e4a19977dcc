"""The settings of the three stores that runs rely on, as the running stores have them."""

import pytest

from tests.stack.stack import Stack
from tests.waiting import wait_until

MIB = 1024**2


def memory_limit(stack: Stack, service: str) -> int:
    limit: int = stack.inspect(stack.container(service))["HostConfig"]["Memory"]
    return limit


def test_a_step_may_run_for_years_before_it_is_acknowledged(stack: Stack) -> None:
    # Given RabbitMQ's limit for late acknowledgements, which is half an hour when nobody lifts it
    queues = {queue["name"]: queue for queue in stack.broker(f"queues/{stack.vhost}")}
    # Then a policy makes it years for every queue of the stack
    for name in ("runs", "dagster", "heavy"):
        limit_ms = queues[name]["effective_policy_definition"]["consumer-timeout"]
        assert limit_ms / 1000 > 5 * 365 * 24 * 3600, name


def test_the_broker_holds_publishers_back_before_its_container_is_full(stack: Stack) -> None:
    node = stack.broker("nodes")[0]
    # Then its memory alarm is well below what the kernel would kill it for, and not so low that it is always on
    assert memory_limit(stack, "rabbitmq") * 0.4 < node["mem_limit"] < memory_limit(stack, "rabbitmq") * 0.75
    # And it stops before the disk is full
    assert 256 * MIB < node["disk_free_limit"] < 1024 * MIB
    # And none of the two is on
    assert not node["mem_alarm"]
    assert not node["disk_free_alarm"]


def test_the_queues_of_steps_are_durable_and_know_ten_priorities(stack: Stack) -> None:
    queues = {queue["name"]: queue for queue in stack.broker(f"queues/{stack.settings['RABBITMQ_VHOST']}")}
    for name in ("dagster", "heavy"):
        assert queues[name]["type"] == "classic"
        assert queues[name]["durable"]
        assert not queues[name]["auto_delete"]
        assert queues[name]["arguments"]["x-max-priority"] == 10


def test_there_is_one_bucket_without_versions_whose_step_logs_expire(stack: Stack) -> None:
    root = stack.s3_root
    assert [entry["Name"] for entry in root.list_buckets()["Buckets"]] == [stack.bucket]
    # Then a deleted object is gone and no old version takes room
    assert "Status" not in root.get_bucket_versioning(Bucket=stack.bucket)
    # And only step logs go by themselves
    rules = root.get_bucket_lifecycle_configuration(Bucket=stack.bucket)["Rules"]
    assert [(rule["Status"], rule["Filter"], rule["Expiration"]) for rule in rules] == [
        ("Enabled", {"Prefix": "logs/"}, {"Days": 30})
    ]


def test_minio_does_all_that_the_stack_uses(stack: Stack) -> None:
    # When a user asks
    said = stack.make("check-s3").stdout
    # Then it does, also with 50 writers at once, and nothing of that stays behind
    assert "It does all that the stack uses." in said
    assert said.count("one of 50 writers won, 6 times") == 2
    assert stack.keys("storage/@check") == []


def test_a_store_that_does_not_answer_is_said_with_an_exit_code(stack: Stack) -> None:
    answer = stack.make(
        "check-s3", "S3_ENDPOINT_URL=http://127.0.0.1:9", "S3_ACCESS_KEY=k", "S3_SECRET_KEY=s", check=False
    )
    assert answer.returncode != 0
    assert "no answer, is it up?" in answer.stdout


def test_postgres_has_the_settings_that_the_stack_is_sized_for(stack: Stack) -> None:
    wanted = {
        "data_checksums": "on",
        "max_connections": "200",
        "password_encryption": "scram-sha-256",
        # The event log is the truth: a commit is on disk before it is acknowledged.
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "shared_buffers": "256MB",
        "TimeZone": "UTC",
    }
    names = ", ".join(f"'{name}'" for name in wanted)
    rows = stack.sql(f"SELECT name, current_setting(name) FROM pg_settings WHERE name IN ({names})")
    assert dict(rows) == wanted


def test_a_parallel_query_finds_room_to_share_memory(stack: Stack) -> None:
    # Given that the engine gives a container 64 MB of shared memory when nobody asks for more
    size = stack.exec("postgres", "df", "--block-size=1M", "--output=size", "/dev/shm").stdout.split()[-1]
    # Then there is more, and Postgres uses it
    assert int(size) >= 128
    assert stack.sql("SHOW dynamic_shared_memory_type") == [["posix"]]


def test_postgres_starts_again_though_its_configuration_is_read_only(
    stack: Stack, request: pytest.FixtureRequest
) -> None:
    # Given a server of its own that an operator has made read-only
    name, passwords = f"{stack.project}-read-only", ("SUPERUSER_PASSWORD", "PASSWORD")
    settings = [f"POSTGRES_{each}=test" for each in (*passwords, "USER", "DB")]
    request.addfinalizer(lambda: stack.docker("rm", "-f", "-v", name, check=False))
    variables = [argument for setting in settings for argument in ("-e", setting)]
    stack.docker("run", "-d", "--network=none", f"--name={name}", *variables, stack.inspect(
        stack.container("postgres"))["Config"]["Image"])  # fmt: skip
    asked = ("exec", name, "psql", "-X", "-q", "-U", "postgres", "-t", "-c")

    def answer_of_the_server() -> str:
        # The short start before it listens on the socket alone.
        listens = (
            stack.docker("exec", name, "pg_isready", "-q", "-h", "127.0.0.1", check=False).returncode == 0
        )
        return stack.docker(*asked, "SHOW default_transaction_read_only").stdout.strip() if listens else ""

    wait_until(answer_of_the_server, 30, "Postgres takes writes", until=lambda answer: answer == "off")
    stack.docker(*asked, "ALTER SYSTEM SET default_transaction_read_only = on")

    # When its container starts again
    stack.docker("restart", name)

    # Then it serves, and the operator can end that
    wait_until(answer_of_the_server, 30, "Postgres is read-only", until=lambda answer: answer == "on")
