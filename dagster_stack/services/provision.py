"""The `init` service: makes database schema, bucket, expiry rule and restricted S3 user. Safe to repeat."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
from alembic.util import CommandError
from botocore.exceptions import BotoCoreError, ClientError
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from dagster_postgres.utils import DagsterPostgresException
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from urllib3.exceptions import HTTPError

from dagster_stack import tags
from dagster_stack.code_version import code_version
from dagster_stack.definitions import DIFFERS, DIFFERS_DAYS
from dagster_stack.errors import ProvisionError
from dagster_stack.objects.client import CLOCKS, new_client, s3_client
from dagster_stack.objects.comparison import Place
from dagster_stack.objects.conditions import TOLD, TOLD_DAYS, UNFENCED, Write, note, place_of, probe
from dagster_stack.project import data
from dagster_stack.services import former_key
from dagster_stack.services.lifecycle import expire_logs_of_outside_bucket, set_log_expiry
from dagster_stack.services.ownership import own_places, own_target
from dagster_stack.settings import Settings
from dagster_stack.store import schema
from dagster_stack.store.connections import impatience, patient_connection
from dagster_stack.store.facts import Facts
from dagster_stack.store.instance_storage import make_tables
from dagster_stack.store.ledger import stack_storage
from dagster_stack.store.sqlstate import code_of, sentence

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

#: The MinIO policy of the stack's user.
POLICY_NAME = "dagster-stack"
#: The MinIO policy of the user that Prometheus asks as: figures of the server, and no object.
MONITOR_POLICY_NAME = "dagster-stack-monitor"
#: What the stack's user may do, and only in its bucket. Bucket settings stay with root.
OBJECT_ACTIONS = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload",
                  "s3:ListMultipartUploadParts"]  # fmt: skip
BUCKET_ACTIONS = ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"]


#: Seconds that a store has which does not answer, or says that it is coming up; and one that answers with an error.
COMING_UP_SECS, ANSWER_SECS = 60, 30
PAUSE_SECS = 2
#: What to do about an answer that has these words in it.
CURES = {
    "RequestTimeTooSkewed": f"That is, {CLOCKS}",
    "read-only transaction": (
        "Postgres takes no writes. If POSTGRES_HOST in .env is a standby, name the primary. If somebody has made it"
        " read-only: docker compose exec postgres psql -U postgres -c 'ALTER SYSTEM RESET default_transaction_read_only'"
        " -c 'SELECT pg_reload_conf()'"
    ),
}
#: What a store answers that is still coming up, or that nobody can reach; anything else is a defect.
TRANSIENT = (
    BotoCoreError,
    ClientError,
    SQLAlchemyError,
    DagsterPostgresException,
    OSError,
    HTTPError,
    MinioAdminException,
)


@dataclass(frozen=True)
class MinioRoot:
    """The keys of MinIO's root. None of this exists for an outside S3 store."""

    access_key: str
    secret_key: str


def provision(migrates: bool = False) -> None:
    """Make all that the other services need; raises ProvisionError with the store and the cure.

    A schema that is behind is migrated only where that is said: `make up` and `make deploy` stop the others first.
    """
    settings = Settings.from_environment()
    if settings.s3 is None:
        raise ProvisionError("There is no bucket to make: DAGSTER_STACK_S3_BUCKET is not set.")
    make_store(settings)
    kept = until_up("the S3 store", lambda: probed(settings))
    make_schema(settings, kept, migrates)


def make_store(settings: Settings) -> None:
    """Bucket, users and expiry rule."""
    root = minio_root()
    if root:
        until_up("MinIO", lambda: make_bucket(boto3_client(root), settings))
        until_up("MinIO", lambda: make_user(root, settings))
        until_up("MinIO", lambda: make_monitor(root, settings))
    else:
        logger.info(
            "S3 is an outside store: its keys are used as they are", extra={"action": "store.outside"}
        )
        until_up("the S3 store", lambda: make_outside_bucket(settings))


def prepare_store() -> None:
    """Make the bucket that a move goes to, and mark it; raises ProvisionError where it holds what is not this stack's."""
    settings = Settings.from_environment()
    if settings.s3 is None:
        raise ProvisionError("There is no bucket to move to: DAGSTER_STACK_S3_BUCKET is not set.")
    make_store(settings)
    with impatience(), DagsterInstance.get() as instance:
        if storage := stack_storage(instance):
            until_up("a store", lambda: own_target(settings, storage.facts, storage.engine))
    skew = until_up("the S3 store", lambda: Place.source().clock_skew())
    logger.info("clocks differ by %d s", math.ceil(skew), extra={"action": "store.clock"})


def provision_files(environment: Mapping[str, str] = os.environ) -> None:
    """Lay on the volume of user code what the project brings there; raises ProvisionError where that can't be written."""
    if volume := environment.get(data.VARIABLE):
        try:
            data.lay(environment.get(data.SETTING, ""), Path(volume))
        except OSError as error:
            raise ProvisionError(
                f"The files of the project could not be laid on the volume for user code: {error}. Where DATA_DIR in .env"
                " names a folder, all in it must belong to user 10000: sudo chown -R 10000:10000 that folder."
            ) from error


def until_up(store: str, make: Callable[[], Made]) -> Made:
    """Try again while a store is still coming up; raises ProvisionError with its last answer."""
    begin = time.monotonic()
    while True:
        try:
            return make()
        except TRANSIENT as error:
            # Dagster's own says no more than that it has tried.
            said = error.__cause__ or error if isinstance(error, DagsterPostgresException) else error
            answer = sentence(said)
            if time.monotonic() - begin >= (COMING_UP_SECS if is_coming_up(said) else ANSWER_SECS):
                cures = (cure for words, cure in CURES.items() if words in answer)
                cure = next(cures, "Check its address and keys in .env.")
                raise ProvisionError(f"{store} could not be prepared: {answer}. {cure}") from error
            logger.info("waiting for %s (%s)", store, answer, extra={"action": "store.awaited"})
            time.sleep(PAUSE_SECS)


def is_coming_up(error: BaseException) -> bool:
    """Whether a store may only need more time: it does not answer, or says so."""
    if isinstance(error, SQLAlchemyError):
        # For a connection that is refused the driver tells no SQLSTATE.
        return not code_of(error) and ("FATAL:" not in str(error) or "the database system is" in str(error))
    if isinstance(error, ClientError):
        return bool(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500)
    return not isinstance(error, MinioAdminException)


def minio_root() -> MinioRoot | None:
    """Root's keys; None when the store is an outside one."""
    if os.environ.get("DAGSTER_STACK_OUTSIDE_S3"):
        return None
    access_key = os.environ.get("MINIO_ROOT_USER")
    secret_key = os.environ.get("MINIO_ROOT_PASSWORD")
    return MinioRoot(access_key, secret_key) if access_key and secret_key else None


def boto3_client(root: MinioRoot) -> Any:
    return boto3.client("s3", aws_access_key_id=root.access_key, aws_secret_access_key=root.secret_key)


def make_bucket(client: Any, settings: Settings) -> None:
    """The bucket, unversioned, with an expiry rule for step logs."""
    assert settings.s3 is not None
    bucket = settings.s3.bucket
    existing = {entry["Name"] for entry in client.list_buckets()["Buckets"]}
    if bucket in existing:
        logger.info("bucket %s is there", bucket, extra={"action": "bucket.found"})
    else:
        client.create_bucket(Bucket=bucket)
        logger.info("bucket %s made", bucket, extra={"action": "bucket.made"})
    set_log_expiry(client, bucket, settings.log_prefix, settings.s3.key_prefix)


def make_outside_bucket(settings: Settings) -> None:
    """Use the bucket of an outside store; make it and its expiry rule where the keys allow that."""
    assert settings.s3 is not None
    client = new_client(settings.s3.endpoint_url)
    bucket = settings.s3.bucket
    was_made = False
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
        client.create_bucket(Bucket=bucket)
        was_made = True
        logger.info("bucket %s made", bucket, extra={"action": "bucket.made"})
    expire_logs_of_outside_bucket(client, bucket, settings.log_prefix, settings.s3.key_prefix, was_made)


def probed(settings: Settings) -> dict[Write, bool]:
    """Whether the store keeps conditions on writes, as the stack's own user sees it."""
    assert settings.s3 is not None
    kept = probe(s3_client(settings.s3.endpoint_url), settings.s3.bucket, settings.data_prefix)
    if all(kept.values()):
        logger.info("the store keeps conditions on writes", extra={"action": "store.fences"})
    else:
        logger.warning("%s", UNFENCED, extra={"action": "store.does_not_fence"})
    return kept


def make_user(root: MinioRoot, settings: Settings) -> None:
    """The stack's own S3 user, restricted to its bucket."""
    assert settings.s3 is not None
    assert settings.s3.endpoint_url
    admin = administration(root, settings.s3.endpoint_url)
    arn = f"arn:aws:s3:::{settings.s3.bucket}"
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": BUCKET_ACTIONS, "Resource": [arn]},
            {"Effect": "Allow", "Action": OBJECT_ACTIONS, "Resource": [f"{arn}/{settings.s3.key_prefix}*"]},
        ],
    }
    user = os.environ["AWS_ACCESS_KEY_ID"]
    admin.policy_add(POLICY_NAME, policy=policy)
    admin.user_add(user, os.environ["AWS_SECRET_ACCESS_KEY"])
    attach_policy(admin, user, POLICY_NAME)
    for former in former_key.remove_ended(admin, datetime.now(UTC)):
        logger.info("S3 user %s, a former one, is removed", former, extra={"action": "user.removed"})
    logger.info(
        "S3 user %s may use bucket %s and nothing else",
        user,
        settings.s3.bucket,
        extra={"action": "user.made"},
    )


def close_former_key(key: str) -> None:
    """Let it read until the links that it has signed end; raises ProvisionError."""
    settings, root = Settings.from_environment(), minio_root()
    if not (root and settings.s3 and settings.s3.endpoint_url):
        raise ProvisionError("There is no S3 store of the stack's own.")
    admin, place = administration(root, settings.s3.endpoint_url), settings.s3
    until = until_up("MinIO", lambda: former_key.close(admin, place, key, datetime.now(UTC)))
    logger.info(
        "S3 user %s %s",
        key,
        f"may read until {until:%Y-%m-%d %H:%M} UTC" if until else "is gone",
        extra={"action": "user.closed"},
    )


def make_monitor(root: MinioRoot, settings: Settings) -> None:
    """The user that Prometheus asks as, where there is a password for it."""
    assert settings.s3 is not None
    assert settings.s3.endpoint_url
    user, password = os.environ.get("MINIO_MONITOR_USER"), os.environ.get("MINIO_MONITOR_PASSWORD")
    if not (user and password):
        return
    admin = administration(root, settings.s3.endpoint_url)
    statement = {"Effect": "Allow", "Action": ["admin:Prometheus"], "Resource": ["arn:aws:s3:::*"]}
    admin.policy_add(MONITOR_POLICY_NAME, policy={"Version": "2012-10-17", "Statement": [statement]})
    admin.user_add(user, password)
    attach_policy(admin, user, MONITOR_POLICY_NAME)
    logger.info("S3 user %s sees the server's figures and nothing else", user, extra={"action": "user.made"})


def administration(root: MinioRoot, endpoint_url: str) -> MinioAdmin:
    endpoint = urlsplit(endpoint_url)
    return MinioAdmin(
        endpoint=endpoint.netloc,
        credentials=StaticProvider(root.access_key, root.secret_key),
        secure=endpoint.scheme == "https",
    )


def own_administration() -> MinioAdmin:
    """Of the stack's own store; raises ProvisionError where that is an outside one."""
    settings, root = Settings.from_environment(), minio_root()
    if not (root and settings.s3 and settings.s3.endpoint_url):
        raise ProvisionError("There is no S3 store of the stack's own.")
    return administration(root, settings.s3.endpoint_url)


def attach_policy(admin: MinioAdmin, user: str, policy: str) -> None:
    if policy in str(json.loads(admin.user_info(user)).get("policyName", "")).split(","):
        return
    admin.attach_policy([policy], user=user)


def make_schema(settings: Settings, kept: dict[Write, bool], migrates: bool = False) -> None:
    """Dagster's tables: made when missing; of another version refused, or migrated where that is said."""
    with impatience(), DagsterInstance.get() as instance:
        if storage := stack_storage(instance):
            until_up("Postgres", lambda: require_schema(storage.engine, migrates))
            until_up("Postgres", lambda: make_tables(storage.postgres_url))
            until_up(
                "a store (Postgres, S3 or RabbitMQ)",
                lambda: own_places(settings, storage.facts, storage.engine),
            )
            until_up("Postgres", lambda: note_facts(storage.facts, settings, kept))
        until_up("Postgres", lambda: migrate(instance))
        until_up("Postgres", lambda: give_runs_this_code(instance))
    logger.info("the database schema is up to date", extra={"action": "schema.ready"})


def note_facts(facts: Facts, settings: Settings, kept: dict[Write, bool]) -> None:
    assert settings.s3 is not None
    note(facts, place_of(settings.s3.bucket, settings.s3.endpoint_url), kept)
    facts.forget(TOLD, TOLD_DAYS)
    facts.forget(DIFFERS, DIFFERS_DAYS)


def require_schema(engine: Engine, migrates: bool) -> None:
    """Raises ProvisionError where the database's schema is newer than this code's, or older and not to be migrated."""
    with patient_connection(engine) as connection:
        found = schema.of_database(connection)
    if found.is_ahead:
        raise ProvisionError(
            f"The database's schema ({found.found}) is newer than this code knows ({found.wanted}): newer code has"
            " migrated it. Deploy that again (`make versions`, `make rollback TO=…`), or restore a backup of before."
        )
    if found.is_behind and not migrates:
        raise ProvisionError(
            f"The database's schema ({found.found}) is older than this code's ({found.wanted}). `make deploy` or `make up`"
            " migrates it, with a way back and while nothing else runs."
        )


def migrate(instance: DagsterInstance) -> None:
    try:
        instance.upgrade(print_fn=lambda line: logger.debug("%s", line, extra={"action": "schema.migrated"}))
    except CommandError as error:
        raise ProvisionError(
            f"The database's schema can't be migrated: {error}. If newer code was here before, deploy that"
            " again, or restore a backup of before."
        ) from error


def give_runs_this_code(instance: DagsterInstance) -> None:
    """Let runs that are on their way go on with the code of this deployment: its workers would refuse them else."""
    code = code_version()
    for run in instance.get_runs(
        RunsFilter(statuses=[*IN_PROGRESS_RUN_STATUSES, DagsterRunStatus.CANCELING])
    ):
        if code and run.tags.get(tags.CODE, code) != code:
            instance.report_engine_event(
                f"Goes on with code {code}; so far it was {run.tags[tags.CODE]}.", run
            )
            instance.add_run_tags(run.run_id, {tags.CODE: code})
