"""A second stack on the same database, prefix or vhost is refused with both names; the same one never is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import amqp
import pytest

from dagster_stack.errors import ProvisionError
from dagster_stack.objects.client import s3_client
from dagster_stack.services import ownership
from dagster_stack.services.ownership import Claimant, Owner, own_places, own_vhost
from dagster_stack.services.provision import provision
from dagster_stack.settings import Settings
from tests.unit import conftest
from tests.unit.holders import Database
from tests.unit.seaweed import BUCKET

BEAT = "INSERT INTO daemon_heartbeats (daemon_type, daemon_id, timestamp) VALUES ('SENSOR', 'x', now() AT TIME ZONE 'utc' - make_interval(secs => :age))"


class Broker:
    """RabbitMQ: who declares an exchange with another alternate is told the one that it has, in 255 bytes."""

    def __init__(self) -> None:
        self.mark: str | None = None
        self.virtual_host = "shared"
        self.default_channel = self
        self.userid = "me"
        self.refuses = False
        #: How it answers to who declares the stack's queue, if it does not take it; and what was declared.
        self.complaint = ""
        self.declared: list[tuple[str, dict[str, int]]] = []

    def __call__(self, url: str, **_: Any) -> "Broker":
        return self

    def __enter__(self) -> "Broker":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def connect(self) -> None:
        if self.refuses:
            raise amqp.exceptions.AccessRefused("ACCESS_REFUSED - Login was refused", (0, 0))

    def channel(self) -> "Broker":
        return self

    def queue_declare(
        self, queue: str, *, durable: bool, auto_delete: bool, arguments: dict[str, int]
    ) -> None:
        """RabbitMQ 4.0's; one that is deleted with its last consumer it makes classic, whatever it is told."""
        assert durable
        assert not auto_delete
        self.declared.append((queue, arguments))
        if self.complaint:
            raise amqp.exceptions.PreconditionFailed(self.complaint)

    def exchange_declare(self, *_: Any, arguments: dict[str, str], **__: Any) -> None:
        mark = arguments["alternate-exchange"]
        if self.mark not in (None, mark):
            raise amqp.exceptions.PreconditionFailed(
                (
                    "PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange 'dagster.stack' in vhost"
                    f" 'shared': received '{mark}' but current is '{self.mark}'"
                )[:255]
            )
        self.mark = mark

    def exchange_delete(self, *_: Any) -> None:
        self.mark = None


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(ownership, "Connection", broker)
    return broker


Start = Callable[..., None]


@pytest.fixture
def start(s3_url: str, database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Start:
    """`init` of a stack, on outside stores."""
    client = s3_client(s3_url)
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    forget(database_url)

    def start(
        project: str,
        id: str = "host-1",
        *,
        url: str = database_url,
        prefix: str = "",
        take_over: bool = False,
        outside: bool = True,
    ) -> None:
        values = {
            "DAGSTER_STACK_PROJECT": project, "DAGSTER_STACK_ID": id, "DAGSTER_STACK_TAKE_OVER": "1" if take_over else "",
            "DAGSTER_STACK_OUTSIDE_S3": s3_url if outside else "", "CELERY_BROKER_URL": "amqp://x" if outside else "",
        }  # fmt: skip
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        storage = Database(url).process().event_log_storage
        settings = Settings.from_environment(
            {
                "DAGSTER_STACK_S3_BUCKET": BUCKET,
                "AWS_ENDPOINT_URL_S3": s3_url,
                "DAGSTER_STACK_S3_PREFIX": prefix,
            }
        )
        own_places(settings, storage.facts, storage.engine)

    return start


def forget(url: str) -> None:
    """A database that was made anew, as after `make clean`."""
    database = Database(url)
    database.execute("DELETE FROM dagster_stack_facts")
    database.execute("DELETE FROM daemon_heartbeats")


def test_the_same_stack_starts_again_and_again(start: Start, database_url: str) -> None:
    for _ in range(2):
        start("one")
    # After `make clean`: its database is another, and its `.env` the same
    forget(database_url)
    start("one")
    # With an `.env` of before STACK_ID
    start("one", id="")
    start("one")


def test_a_stack_that_is_renamed_or_restored_elsewhere_is_known_by_its_database(start: Start) -> None:
    start("one")

    start("renamed", id="another-host-2")


def test_another_stack_on_the_database_is_refused_while_it_runs(start: Start, database_url: str) -> None:
    start("one")
    Database(database_url).execute(BEAT, age=5)

    with pytest.raises(
        ProvisionError, match=r"The database belongs to the stack one \(host-1\), and this is two \(host-2\)"
    ):
        start("two", id="host-2")
    start("one")
    start("two", id="host-2", take_over=True)


@pytest.mark.parametrize(
    ("project", "id"), [("two", "host-1"), ("one", "host-2")], ids=["a copied .env", "another machine"]
)
def test_another_stack_on_the_prefix_is_refused_with_both_names_and_the_cure(
    start: Start, database_url: str, broker: Broker, project: str, id: str
) -> None:
    start("one")
    forget(database_url)
    broker.mark = None

    with pytest.raises(ProvisionError) as refusal:
        start(project, id=id)
    for word in ("s3://dagster/", "one (host-1)", f"{project} ({id})", "S3_PREFIX", "TAKE_OVER=1 make up"):
        assert word in str(refusal.value)
    assert broker.mark is None

    # With a prefix of its own it starts, and the first one as before
    start(project, id=id, prefix="two")
    start(project, id=id, take_over=True)
    forget(database_url)
    broker.mark = None
    with pytest.raises(ProvisionError, match="belongs to the stack"):
        start("one")


def test_another_stack_on_the_vhost_is_refused_with_both_names_and_the_cure(
    start: Start, database_url: str, broker: Broker
) -> None:
    start("one")
    forget(database_url)

    with pytest.raises(ProvisionError) as refusal:
        start("two", id="host-2", prefix="two")
    for word in ("The vhost shared", "one (host-1)", "two (host-2)", "RABBITMQ_VHOST", "TAKE_OVER=1 make up"):
        assert word in str(refusal.value)

    start("two", id="host-2", prefix="two", take_over=True)
    assert broker.mark
    assert broker.mark.startswith("two|host-2|")


def test_in_its_own_minio_a_stack_is_at_home(start: Start, database_url: str) -> None:
    """Its objects were copied from another one, and its database is new."""
    start("one", outside=False)
    forget(database_url)

    start("copy", id="host-2", outside=False)


@pytest.fixture
def whole(
    s3_url: str, database_url: str, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """The whole of `init`."""
    (tmp_path / "dagster.yaml").write_text(
        conftest.DAGSTER_YAML + conftest.ON_POSTGRES.format(url=database_url)
    )
    forget(database_url)
    values = {
        "DAGSTER_HOME": str(tmp_path), "DAGSTER_STACK_S3_BUCKET": "whole", "AWS_ENDPOINT_URL_S3": s3_url,
        "DAGSTER_STACK_S3_PREFIX": "team", "DAGSTER_STACK_OUTSIDE_S3": s3_url, "CELERY_BROKER_URL": "amqp://x",
        "DAGSTER_STACK_PROJECT": "one", "DAGSTER_STACK_ID": "host-1",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return provision


def test_init_prepares_outside_stores_as_often_as_it_is_started(
    whole: Callable[[], None], s3_url: str, database_url: str, broker: Broker
) -> None:
    for _ in range(2):
        whole()

    client = s3_client(s3_url)
    listed = [entry["Key"] for entry in client.list_objects_v2(Bucket="whole")["Contents"]]
    assert listed == ["team/storage/@stack/owner.json"]
    ((kept,),) = Database(database_url).execute(
        "SELECT value -> 'kept' FROM dagster_stack_facts WHERE name = 's3.conditions'"
    )
    assert set(kept) == {"put", "multipart"}
    assert broker.mark
    (rule,) = client.get_bucket_lifecycle_configuration(Bucket="whole")["Rules"]
    assert rule.get("Filter", {}).get("Prefix", rule.get("Prefix")) == "team/logs/"


@pytest.mark.parametrize("kind", ["quorum", "stream"])
def test_a_vhost_that_makes_other_queues_than_classic_ones_is_refused_with_the_type_that_is_needed(
    broker: Broker, kind: str
) -> None:
    broker.complaint = (
        "PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'dagster' in vhost 'shared' of queue type"
        f" rabbit_{kind}_queue"
    )

    with pytest.raises(ProvisionError) as refusal:
        own_vhost(Claimant(Owner("a", "b"), takes_over=False), "amqp://x")

    for word in (
        f"makes {kind} queues",
        "needs classic queues",
        "update_vhost_metadata shared --default-queue-type classic",
    ):
        assert word in str(refusal.value)
    assert broker.declared == [("dagster", {"x-max-priority": 10})]
    # Nothing was marked
    assert broker.mark is None


def test_a_queue_of_that_name_with_other_arguments_is_told(broker: Broker) -> None:
    broker.complaint = (
        "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'dagster' in vhost 'shared'"
    )

    with pytest.raises(ProvisionError, match=r"already a queue dagster.*inequivalent arg.*RABBITMQ_VHOST"):
        own_vhost(Claimant(Owner("a", "b"), takes_over=False), "amqp://x")


def test_a_broker_that_refuses_the_login_says_how_its_password_stands_in_env(broker: Broker) -> None:
    broker.refuses = True

    with pytest.raises(
        ProvisionError, match=r"refuses the login me: .*RABBITMQ_PASSWORD.* not percent-encoded"
    ):
        own_vhost(Claimant(Owner("a", "b"), takes_over=False), "amqp://x")
