"""What becomes of fenced writes where the store does not keep conditions; what a busy one costs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dagster import DagsterInstance
from dagster._core.test_utils import create_run_for_test

from dagster_stack.errors import Fenced
from dagster_stack.objects import io_manager
from dagster_stack.objects.client import s3_client
from dagster_stack.objects.conditions import Conditions, Write, note, place_of, probe
from dagster_stack.objects.io_manager import FencedObject, S3Writer
from dagster_stack.run.run_execution import say_unfenced
from dagster_stack.store.event_log import PooledEventLogStorage
from dagster_stack.store.facts import Facts
from tests.unit.holders import Database
from tests.unit.runs_by_hand import said
from tests.unit.s3_stub import Weaknesses, s3_stub
from tests.unit.seaweed import ACCESS_KEY, BUCKET, SECRET_KEY

KEPT = {Write.PUT: True, Write.MULTIPART: True}
PLACE = "a store"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries are not waited for."""
    import botocore.retryhandler  # noqa: F401
    from botocore.retries import standard

    monkeypatch.setattr(standard.ExponentialBackoff, "delay_amount", lambda *_: 0.01)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(io_manager, "PART_SIZE", 100)


@pytest.fixture
def store() -> Weaknesses:
    return Weaknesses()


@pytest.fixture
def client(store: Weaknesses) -> Iterator[Any]:
    with s3_stub(store) as url:
        client = s3_client.__wrapped__(url)
        yield client
        client.close()


# --- what init finds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["kept", "ignored", "unknown"])
@pytest.mark.parametrize("kind", list(Write))
def test_a_store_that_ignores_or_does_not_know_conditions_is_found_out(
    store: Weaknesses, client: Any, kind: Write, behaviour: str
) -> None:
    setattr(store, kind.value, behaviour)

    assert probe(client, BUCKET, "storage") == {**KEPT, kind: behaviour == "kept"}
    assert not store.objects
    assert not store.uploads


def test_a_real_store_is_tried_and_nothing_stays_behind(s3_url: str) -> None:
    client = s3_client(s3_url)

    assert set(probe(client, BUCKET, "storage")) == set(Write)
    assert not client.list_objects_v2(Bucket=BUCKET, Prefix="storage/@probe").get("Contents")
    assert not client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_a_store_that_is_busy_is_asked_again_and_not_taken_for_a_weak_one(
    store: Weaknesses, client: Any
) -> None:
    store.first = {"PUT": [(503, "SlowDown"), (500, "InternalError"), (503, "ServiceUnavailable")]}

    assert probe(client, BUCKET, "storage") == KEPT


def test_keys_that_may_not_write_are_no_weakness_of_the_store(store: Weaknesses, client: Any) -> None:
    store.first = {"PUT": [(403, "AccessDenied")]}

    with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
        probe(client, BUCKET, "storage")


# --- what workers do ----------------------------------------------------------------------------------------------------------


def written(
    client: Any, data: bytes, known: Conditions, told: list[str], check: Callable[[], None] = lambda: None
) -> None:
    target = FencedObject(client, BUCKET, "a", check, conditions=known, tell=told.append)
    with S3Writer(client, BUCKET, "a", target) as file:
        file.write(data)


@pytest.mark.parametrize("size", [10, 250], ids=["put", "multipart"])
def test_without_conditions_an_output_is_written_all_the_same_and_that_is_said(
    store: Weaknesses, client: Any, size: int
) -> None:
    """Though `init` had found them: the store was replaced since."""
    store.put = store.multipart = "unknown"
    told: list[str] = []
    known = Conditions(PLACE)

    for number in range(2):
        written(client, bytes([number]) * size, known, told)

    assert store.objects[f"/{BUCKET}/a"][0] == bytes([1]) * size
    assert len(told) == 1
    assert "may overwrite" in told[0]
    assert "NotImplemented" in told[0]


@pytest.mark.parametrize("size", [10, 250], ids=["put", "multipart"])
def test_where_conditions_are_known_not_to_be_kept_none_is_sent_and_the_lease_is_asked_for(
    store: Weaknesses, client: Any, database: Database, size: int
) -> None:
    store.put = store.multipart = "unknown"
    facts = database.process().event_log_storage.facts
    note(facts, PLACE, {Write.PUT: False, Write.MULTIPART: False})
    asked: list[bool] = []

    written(client, b"x" * size, Conditions(PLACE, facts), [], lambda: asked.append(True))

    assert not [request for request in store.seen if "If-" in request]
    assert asked


def test_an_execution_that_lost_its_step_writes_nothing_there_either(store: Weaknesses, client: Any) -> None:
    store.put = "ignored"
    known = Conditions(PLACE)
    known._kept = dict.fromkeys(Write, False)

    def gone() -> None:
        raise Fenced("it is another's")

    with pytest.raises(Fenced):
        written(client, b"late", known, [], gone)

    assert store.objects == {}


def test_who_completes_an_upload_in_parts_is_asked_whether_the_step_is_still_its_own(
    store: Weaknesses, client: Any
) -> None:
    """Some stores that refuse a late one let several win that complete theirs at the same moment."""

    def gone() -> None:
        raise Fenced("it is another's")

    with pytest.raises(Fenced):
        written(client, b"x" * 250, Conditions(PLACE), [], gone)

    assert store.objects == {}
    assert store.uploads == {}


@pytest.mark.parametrize("code", ["SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout"])
@pytest.mark.parametrize("size", [10, 250], ids=["put", "multipart"])
def test_a_busy_store_is_asked_again(store: Weaknesses, client: Any, code: str, size: int) -> None:
    status = {"InternalError": 500, "RequestTimeout": 400}.get(code, 503)
    store.first = {method: [(status, code)] * 2 for method in ("PUT", "GET", "HEAD", "POST")}

    written(client, b"x" * size, Conditions(PLACE), [])

    assert client.get_object(Bucket=BUCKET, Key="a")["Body"].read() == b"x" * size


def test_an_upload_that_was_done_though_its_answer_says_503_counts(store: Weaknesses, client: Any) -> None:
    """The client tries it again, and the store knows the upload no more."""
    store.first = {"POST": [(503, "lost")]}

    written(client, b"x" * 250, Conditions(PLACE), [])

    assert store.objects[f"/{BUCKET}/a"][0] == b"x" * 250


def test_what_is_deleted_while_it_is_replaced_is_written(store: Weaknesses, client: Any) -> None:
    store.objects[f"/{BUCKET}/a"] = (b"old", "1" * 32)
    target = FencedObject(client, BUCKET, "a", lambda: None, conditions=Conditions(PLACE))
    target.expect_what_is_there()
    del store.objects[f"/{BUCKET}/a"]
    store.first = {"PUT": [(404, "NoSuchKey")]}

    with S3Writer(client, BUCKET, "a", target) as file:
        file.write(b"new")

    assert store.objects[f"/{BUCKET}/a"][0] == b"new"


# --- who is told --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def facts(instance: DagsterInstance) -> Facts:
    storage = instance.event_log_storage
    assert isinstance(storage, PooledEventLogStorage)
    return storage.facts


def test_a_run_says_it_once_however_often_it_is_driven(
    instance: DagsterInstance, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_STACK_S3_BUCKET", BUCKET)
    run = create_run_for_test(instance)
    for kept, texts in ((True, 0), (False, 1), (False, 1)):
        note(facts, place_of(BUCKET, None), {Write.PUT: kept, Write.MULTIPART: True})
        say_unfenced(instance, run)
        assert len(said(instance, run.run_id)) == texts

    # Nor does a step of it, which finds out by itself
    assert not Conditions(place_of(BUCKET, None), facts).to_be_told(run.run_id)
    assert "may overwrite that one's output" in said(instance, run.run_id)[0]


def test_what_was_found_of_another_store_does_not_count(facts: Facts) -> None:
    note(facts, place_of(BUCKET, None), dict.fromkeys(Write, False))

    assert Conditions(place_of(BUCKET, "http://another"), facts).keeps(Write.PUT)
    assert not Conditions(place_of(BUCKET, None), facts).keeps(Write.PUT)


def test_what_a_step_finds_out_is_known_to_all_of_the_stacks_store_alone(facts: Facts) -> None:
    note(facts, PLACE, KEPT)

    Conditions("the user's own", facts).lose(Write.PUT)
    assert Conditions(PLACE, facts).keeps(Write.PUT)

    Conditions(PLACE, facts).lose(Write.PUT)
    assert not Conditions(PLACE, facts).keeps(Write.PUT)
