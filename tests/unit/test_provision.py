"""The logic of `init`: what is made, what is left alone, what is tried again. The real stores: tests/stack."""

import inspect
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from botocore.stub import Stubber
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test
from dagster_postgres.utils import DagsterPostgresException
from minio import MinioAdmin
from minio.error import MinioAdminException
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from dagster_stack import tags
from dagster_stack.errors import ProvisionError
from dagster_stack.services import provision
from dagster_stack.services.provision import MinioRoot
from dagster_stack.settings import LOG_EXPIRY_DAYS, S3Settings, Settings
from dagster_stack.store import connections as database_module
from dagster_stack.store import schema
from dagster_stack.timing import PATIENCE_SECS
from tests.unit import conftest
from tests.unit.clock import Clock
from tests.unit.failover import Server
from tests.unit.holders import Database
from tests.unit.postgres_server import PostgresServer
from tests.unit.runs_by_hand import said

RULE = {
    "Bucket": "dagster",
    "LifecycleConfiguration": {
        "Rules": [
            {
                "ID": "expire-step-logs",
                "Status": "Enabled",
                "Filter": {"Prefix": "logs/"},
                "Expiration": {"Days": LOG_EXPIRY_DAYS},
            }
        ]
    },
}

NO_RULES = ("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration")


@pytest.fixture
def s3() -> Any:
    client = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9",
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    with Stubber(client) as stubber:
        yield client, stubber
        stubber.assert_no_pending_responses()
    client.close()


# --- patience -------------------------------------------------------------------------------------------------


class Store:
    """A store that comes up after so many seconds."""

    def __init__(self, clock: Clock, seconds: float, error: Exception) -> None:
        self._clock, self._up_at, self._error = clock, clock.now + seconds, error

    def __call__(self) -> None:
        if self._clock.now < self._up_at:
            raise self._error


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(provision, "time", clock)
    monkeypatch.setattr(database_module, "time", clock)
    return clock


def connection_failure(text: str) -> OperationalError:
    return OperationalError(
        "", {}, Exception(f'connection to server at "postgres", port 5432 failed: {text}')
    )


def http_error(code: str, status: int) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "HeadBucket")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("not yet"),
        EndpointConnectionError(endpoint_url="http://minio:9000"),
        http_error("XMinioServerNotInitialized", 503),
        connection_failure("Connection refused"),
        connection_failure("FATAL:  the database system is starting up"),
    ],
    ids=str,
)
def test_a_store_that_is_still_coming_up_has_a_minute(clock: Clock, error: Exception) -> None:
    provision.until_up("a store", Store(clock, 55, error))
    start = clock.now
    with pytest.raises(ProvisionError, match=r"a store could not be prepared: .*keys in \.env"):
        provision.until_up("a store", Store(clock, 999, error))

    assert 60 <= clock.now - start <= 65


@pytest.mark.parametrize(
    "error",
    [
        http_error("InvalidAccessKeyId", 403),
        MinioAdminException("403", "no"),
        connection_failure('FATAL:  password authentication failed for user "dagster"'),
    ],
    ids=str,
)
def test_a_store_that_answers_with_an_error_has_half_of_it(clock: Clock, error: Exception) -> None:
    start = clock.now
    with pytest.raises(ProvisionError, match=r"a store could not be prepared: .*keys in \.env"):
        provision.until_up("a store", Store(clock, 999, error))

    assert 30 <= clock.now - start <= 35


def test_of_postgres_its_own_answer_is_told_and_not_that_dagster_has_tried(clock: Clock) -> None:
    error = DagsterPostgresException("too many retries for DB connection")
    error.__cause__ = OperationalError("SELECT 1", {}, Exception('could not translate host name "postgres"'))

    with pytest.raises(ProvisionError, match='prepared: could not translate host name "postgres"\\. Check'):
        provision.until_up("Postgres", Store(clock, 999, error))


def test_clocks_that_differ_are_named(clock: Clock) -> None:
    error = http_error("RequestTimeTooSkewed", 403)

    with pytest.raises(ProvisionError, match="differ by more than 15 minutes"):
        provision.until_up("the S3 store", Store(clock, 999, error))


def test_a_defect_is_not_tried_again(clock: Clock) -> None:
    start = clock.now

    with pytest.raises(TypeError, match="a defect"):
        provision.until_up("MinIO", Store(clock, 999, TypeError("a defect")))

    assert clock.now == start


# --- the schema -------------------------------------------------------------------------------------------------


@pytest.fixture
def home(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A deployment on Postgres, and nowhere else."""
    (tmp_path / "dagster.yaml").write_text(
        conftest.DAGSTER_YAML + conftest.ON_POSTGRES.format(url=database_url)
    )
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return Database(database_url)


def test_a_postgres_that_takes_no_writes_ends_it_soon_with_the_cure(
    home: Database, postgres: PostgresServer, clock: Clock
) -> None:
    start = clock.now
    with (
        Server(postgres, home).read_only(clock, 999),
        pytest.raises(
            ProvisionError,
            match=r"in a read-only transaction.*ALTER SYSTEM RESET default_transaction_read_only",
        ),
    ):
        provision.make_schema(INSIDE, {})

    assert clock.now - start <= 35
    # And afterwards this process waits as long as ever
    assert database_module.default_patience == database_module.write_patience == PATIENCE_SECS


def test_a_postgres_that_takes_writes_again_meanwhile_is_prepared(
    home: Database, postgres: PostgresServer, clock: Clock
) -> None:
    with Server(postgres, home).read_only(clock, 20):
        provision.make_schema(INSIDE, {})


def test_a_schema_of_newer_code_ends_it_with_a_sentence(home: Database) -> None:
    (revision,) = home.execute("SELECT version_num FROM alembic_version")[0]
    home.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    try:
        with pytest.raises(ProvisionError, match=r"fedcba987654\) is newer than this code knows.*rollback"):
            provision.make_schema(INSIDE, {})
    finally:
        home.execute("UPDATE alembic_version SET version_num = :revision", revision=revision)

    provision.make_schema(INSIDE, {})


def test_a_schema_of_older_code_is_migrated_only_where_that_is_said(home: Database) -> None:
    # Given a database of the revision before
    (head,) = home.execute("SELECT version_num FROM alembic_version")[0]
    before = schema.revisions().get_revision(head).down_revision
    home.execute("UPDATE alembic_version SET version_num = :revision", revision=before)
    try:
        # When a start finds it
        with pytest.raises(
            ProvisionError, match=rf"\({before}\) is older than this code's \({head}\).*make deploy"
        ):
            provision.make_schema(INSIDE, {})
        assert home.execute("SELECT version_num FROM alembic_version")[0][0] == before

        # Then only a command that is told so migrates it
        provision.make_schema(INSIDE, {}, migrates=True)
        assert home.execute("SELECT version_num FROM alembic_version")[0][0] == head
    finally:
        home.execute("UPDATE alembic_version SET version_num = :revision", revision=head)


def test_the_schema_is_told_to_whoever_runs_the_file_of_another_image(
    home: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As `make rollback` does with images that lack it: on standard input, nothing of the stack beside it."""
    url = make_url(database_url)
    parts = {
        "USER": url.username,
        "PASSWORD": url.password or "",
        "HOST": url.query["host"],
        "PORT": url.port or 5432,
        "DB": url.database,
    }
    environment = {f"DAGSTER_POSTGRES_{name}": str(value) for name, value in parts.items()}
    said = subprocess.run(
        [sys.executable, "-P", "-"], input=Path(schema.__file__).read_text(), env=environment, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    found = json.loads(said)
    assert found["found"] == found["wanted"]
    assert found["is_known"]


# --- the bucket -------------------------------------------------------------------------------------------------


def test_a_missing_bucket_is_made_with_its_expiry_rule(s3: Any) -> None:
    client, stubber = s3
    stubber.add_response("list_buckets", {"Buckets": [{"Name": "another"}]})
    stubber.add_response("create_bucket", {}, {"Bucket": "dagster"})
    stubber.add_client_error(*NO_RULES)
    stubber.add_response("put_bucket_lifecycle_configuration", {}, RULE)

    provision.make_bucket(client, INSIDE)


def test_a_bucket_that_is_there_stays_and_its_rule_is_kept_up_to_date(s3: Any) -> None:
    client, stubber = s3
    stubber.add_response("list_buckets", {"Buckets": [{"Name": "dagster"}]})
    stubber.add_client_error(*NO_RULES)
    stubber.add_response("put_bucket_lifecycle_configuration", {}, RULE)

    provision.make_bucket(client, INSIDE)


@pytest.fixture
def outside(s3: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Stubber, Settings]:
    client, stubber = s3
    monkeypatch.setattr(provision, "new_client", lambda *_: client)
    settings = Settings.from_environment({"DAGSTER_STACK_S3_BUCKET": "dagster"})
    return stubber, settings


def test_an_outside_bucket_is_used_as_it_is(outside: tuple[Stubber, Settings]) -> None:
    stubber, settings = outside
    stubber.add_response("head_bucket", {}, {"Bucket": "dagster"})
    stubber.add_response("list_objects_v2", {})
    stubber.add_response("list_objects_v2", {})
    stubber.add_client_error(*NO_RULES)
    stubber.add_response("put_bucket_lifecycle_configuration", {}, RULE)

    provision.make_outside_bucket(settings)


def test_an_outside_bucket_that_is_missing_is_made(outside: tuple[Stubber, Settings]) -> None:
    stubber, settings = outside
    stubber.add_client_error("head_bucket", "404", http_status_code=404)
    stubber.add_response("create_bucket", {}, {"Bucket": "dagster"})
    stubber.add_client_error(*NO_RULES)
    stubber.add_response("put_bucket_lifecycle_configuration", {}, RULE)

    provision.make_outside_bucket(settings)


@pytest.mark.parametrize(
    "refused", ["get_bucket_lifecycle_configuration", "put_bucket_lifecycle_configuration"]
)
def test_an_outside_store_without_expiry_rules_is_used_all_the_same_and_that_is_said(
    outside: tuple[Stubber, Settings], caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    """One whose rules can't be read keeps them: to write ours would take them away."""
    stubber, settings = outside
    stubber.add_response("head_bucket", {}, {"Bucket": "dagster"})
    for _ in range(2):
        stubber.add_response("list_objects_v2", {})
    if refused.startswith("put"):
        stubber.add_client_error(*NO_RULES)
    stubber.add_client_error(refused, "AccessDenied")
    caplog.set_level(logging.WARNING)

    provision.make_outside_bucket(settings)

    assert "old step logs stay until you delete them" in caplog.text


def test_an_outside_store_that_refuses_the_keys_is_an_error(outside: tuple[Stubber, Settings]) -> None:
    stubber, settings = outside
    stubber.add_client_error("head_bucket", "403", http_status_code=403)

    with pytest.raises(ClientError, match="403"):
        provision.make_outside_bucket(settings)


# --- the user -----------------------------------------------------------------------------------------------------


INSIDE = Settings(
    s3=S3Settings("dagster", "http://minio:9000", None),
    store_folder=Path(),
    broker_folder=Path(),
    celery_yaml=Path(),
)


class Admin:
    """MinIO's admin API: `user_info` answers JSON with the attached policy's name, and attaching one that
    is attached already is an error (`XMinioAdminPolicyChangeAlreadyApplied`)."""

    def __init__(self, policy: str = "") -> None:
        self.policy = policy
        self.calls: list[tuple[Any, ...]] = []

    def policy_add(self, name: str, policy: dict[str, Any]) -> None:
        self.calls.append(("policy", name, policy))

    def user_add(self, access_key: str, secret_key: str) -> None:
        self.calls.append(("user", access_key, secret_key))

    def user_info(self, access_key: str) -> str:
        return (
            f'{{"status": "enabled", "policyName": "{self.policy}"}}'
            if self.policy
            else '{"status": "enabled"}'
        )

    def user_list(self) -> str:
        return "{}"

    def attach_policy(self, policies: list[str], user: str) -> None:
        assert not set(policies) & set(self.policy.split(",")), "already applied"
        self.policy = policies[0]


@pytest.mark.parametrize("call", [name for name in vars(Admin) if not name.startswith("_")])
def test_the_stand_in_is_called_as_minio_s_own(call: str) -> None:
    # Releases before 7.2.17 took a policy from a file alone, and `init` failed
    accepted = inspect.signature(getattr(MinioAdmin, call)).parameters

    assert set(inspect.signature(getattr(Admin, call)).parameters) - {"name"} <= set(accepted)


def test_the_user_may_use_its_bucket_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given MinIO's admin API
    admin = Admin()
    monkeypatch.setattr(provision, "MinioAdmin", lambda **_: admin)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "dagster")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    # When the user is made, twice, as at every start
    for _ in range(2):
        provision.make_user(MinioRoot("root", "root-secret"), INSIDE)

    # Then it has one policy, of allowances for its bucket and the bucket's objects alone
    assert admin.policy == "dagster-stack"
    assert ("user", "dagster", "secret") in admin.calls
    policy = next(call[2] for call in admin.calls if call[0] == "policy")
    resources = [resource for statement in policy["Statement"] for resource in statement["Resource"]]
    actions = [action for statement in policy["Statement"] for action in statement["Action"]]
    assert resources == ["arn:aws:s3:::dagster", "arn:aws:s3:::dagster/*"]
    assert not any("*" in action or action.startswith("admin:") for action in actions)
    assert not any(
        word in action for action in actions for word in ("DeleteBucket", "Policy", "Lifecycle", "Versioning")
    )


@pytest.mark.parametrize("attached", ["dagster-stack", "dagster-stack,dagster-stack-until-20261207"])
def test_a_policy_that_is_attached_is_not_attached_again(attached: str) -> None:
    """Nor beside another one: that of a former key, which an .env from a backup names again."""
    admin = Admin(attached)

    provision.attach_policy(admin, "dagster", "dagster-stack")  # type: ignore[arg-type]

    assert admin.policy == attached


def test_prometheus_asks_as_a_user_that_sees_figures_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admin = Admin()
    monkeypatch.setattr(provision, "MinioAdmin", lambda **_: admin)
    monkeypatch.setenv("MINIO_MONITOR_USER", "monitor")
    monkeypatch.setenv("MINIO_MONITOR_PASSWORD", "secret")

    provision.make_monitor(MinioRoot("root", "secret"), INSIDE)

    assert admin.policy == "dagster-stack-monitor"
    assert ("user", "monitor", "secret") in admin.calls
    policy = next(call[2] for call in admin.calls if call[0] == "policy")
    assert [statement["Action"] for statement in policy["Statement"]] == [["admin:Prometheus"]]


def test_without_a_password_there_is_no_such_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "MinioAdmin", lambda **_: pytest.fail("asked MinIO"))
    monkeypatch.delenv("MINIO_MONITOR_PASSWORD", raising=False)

    provision.make_monitor(MinioRoot("root", "secret"), INSIDE)


# --- which store ------------------------------------------------------------------------------------------------


def test_an_outside_store_has_no_root_though_its_keys_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIO_ROOT_USER", "root")
    monkeypatch.setenv("MINIO_ROOT_PASSWORD", "secret")
    assert provision.minio_root() == MinioRoot("root", "secret")

    monkeypatch.setenv("DAGSTER_STACK_OUTSIDE_S3", "https://s3.example")
    assert provision.minio_root() is None


def test_without_a_bucket_there_is_nothing_to_make_and_that_is_said() -> None:
    with pytest.raises(ProvisionError, match="DAGSTER_STACK_S3_BUCKET is not set"):
        provision.provision()


# --- runs that are on their way -----------------------------------------------------------------------------------


@pytest.fixture
def new_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "code_version", lambda: "new")


def coded_run(instance: DagsterInstance, status: DagsterRunStatus, code: str | None) -> DagsterRun:
    code_tag = {tags.CODE: code} if code else {}
    run: DagsterRun = create_run_for_test(instance, status=status, tags=code_tag)
    return run


def code_of(instance: DagsterInstance, run: DagsterRun) -> str | None:
    found = instance.get_run_by_id(run.run_id)
    assert found
    return found.tags.get(tags.CODE)


@pytest.mark.usefixtures("new_code")
@pytest.mark.parametrize(
    "status", [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
)
def test_a_run_that_is_on_its_way_goes_on_with_the_code_of_this_deployment(
    instance: DagsterInstance, status: DagsterRunStatus
) -> None:
    """The new workers would refuse its steps."""
    run = coded_run(instance, status, "old")

    for _ in range(2):
        provision.give_runs_this_code(instance)

    assert code_of(instance, run) == "new"
    assert said(instance, run.run_id) == ["Goes on with code new; so far it was old."]


@pytest.mark.usefixtures("new_code")
@pytest.mark.parametrize(
    "status", [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
)
def test_a_run_that_has_ended_keeps_the_code_that_it_ran_with(
    instance: DagsterInstance, status: DagsterRunStatus
) -> None:
    run = coded_run(instance, status, "old")

    provision.give_runs_this_code(instance)

    assert code_of(instance, run) == "old"


@pytest.mark.usefixtures("new_code")
@pytest.mark.parametrize("code", ["new", None])
def test_a_run_of_the_same_or_of_no_code_stays_as_it_is(instance: DagsterInstance, code: str | None) -> None:
    run = coded_run(instance, DagsterRunStatus.STARTED, code)

    provision.give_runs_this_code(instance)

    assert code_of(instance, run) == code
    assert said(instance, run.run_id) == []


def test_without_a_version_of_its_own_a_deployment_changes_no_run(instance: DagsterInstance) -> None:
    run = coded_run(instance, DagsterRunStatus.STARTED, "old")

    provision.give_runs_this_code(instance)

    assert code_of(instance, run) == "old"
