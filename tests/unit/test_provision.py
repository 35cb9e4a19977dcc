"""The logic of `init`: what is made, what is left alone, what is tried again. The real stores: tests/stack."""

import logging
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.test_utils import create_run_for_test
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import OperationalError

from dagster_stack import tags
from dagster_stack.errors import ProvisionError
from dagster_stack.services import provision
from dagster_stack.services.provision import MinioRoot
from dagster_stack.settings import LOG_EXPIRY_DAYS, S3Settings, Settings
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
    """A store that comes up after so many attempts."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.attempts = failures, error, 0

    def __call__(self) -> None:
        self.attempts += 1
        if self.attempts <= self.failures:
            raise self.error


def test_a_store_that_is_still_coming_up_is_waited_for() -> None:
    store = Store(3, ConnectionRefusedError("not yet"))

    provision.patiently("MinIO", store, attempts=5, pause_secs=0)

    assert store.attempts == 4


def test_a_store_that_never_comes_up_is_named_with_its_last_answer_and_the_cure() -> None:
    store = Store(99, ConnectionRefusedError("connection refused"))

    with pytest.raises(
        ProvisionError, match=r"MinIO could not be prepared: connection refused.*keys in \.env"
    ):
        provision.patiently("MinIO", store, attempts=3, pause_secs=0)

    assert store.attempts == 3


def test_of_postgres_its_own_answer_is_told_and_not_that_dagster_has_tried() -> None:
    error = DagsterPostgresException("too many retries for DB connection")
    error.__cause__ = OperationalError("SELECT 1", {}, Exception('could not translate host name "postgres"'))

    with pytest.raises(ProvisionError, match='prepared: could not translate host name "postgres"\\. Check'):
        provision.patiently("Postgres", Store(99, error), attempts=2, pause_secs=0)


def test_clocks_that_differ_are_named() -> None:
    error = ClientError({"Error": {"Code": "RequestTimeTooSkewed", "Message": "too large"}}, "HeadBucket")

    with pytest.raises(ProvisionError, match="differ by more than 15 minutes"):
        provision.patiently("the S3 store", Store(99, error), attempts=2, pause_secs=0)


def test_a_defect_is_not_tried_again() -> None:
    store = Store(99, TypeError("a defect"))

    with pytest.raises(TypeError, match="a defect"):
        provision.patiently("MinIO", store, attempts=3, pause_secs=0)

    assert store.attempts == 1


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
    monkeypatch.setattr(boto3, "client", lambda *_: client)
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

    def attach_policy(self, policies: list[str], user: str) -> None:
        assert self.policy not in policies, "already applied"
        self.policy = policies[0]


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


def test_a_policy_that_is_attached_is_not_attached_again() -> None:
    provision.attach_policy(Admin("dagster-stack"), "dagster", "dagster-stack")  # type: ignore[arg-type]


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
    postgres_instance: DagsterInstance, status: DagsterRunStatus
) -> None:
    """The new workers would refuse its steps."""
    run = coded_run(postgres_instance, status, "old")

    for _ in range(2):
        provision.give_runs_this_code(postgres_instance)

    assert code_of(postgres_instance, run) == "new"
    assert said(postgres_instance, run.run_id) == ["Goes on with code new; so far it was old."]


@pytest.mark.usefixtures("new_code")
@pytest.mark.parametrize(
    "status", [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
)
def test_a_run_that_has_ended_keeps_the_code_that_it_ran_with(
    postgres_instance: DagsterInstance, status: DagsterRunStatus
) -> None:
    run = coded_run(postgres_instance, status, "old")

    provision.give_runs_this_code(postgres_instance)

    assert code_of(postgres_instance, run) == "old"


@pytest.mark.usefixtures("new_code")
@pytest.mark.parametrize("code", ["new", None])
def test_a_run_of_the_same_or_of_no_code_stays_as_it_is(
    postgres_instance: DagsterInstance, code: str | None
) -> None:
    run = coded_run(postgres_instance, DagsterRunStatus.STARTED, code)

    provision.give_runs_this_code(postgres_instance)

    assert code_of(postgres_instance, run) == code
    assert said(postgres_instance, run.run_id) == []


def test_without_a_version_of_its_own_a_deployment_changes_no_run(postgres_instance: DagsterInstance) -> None:
    run = coded_run(postgres_instance, DagsterRunStatus.STARTED, "old")

    provision.give_runs_this_code(postgres_instance)

    assert code_of(postgres_instance, run) == "old"
