"""`make check-s3`, from a real store and from one with the weaknesses of some."""

import io
import os
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from dagster_stack.client.store_check import check_store
from dagster_stack.errors import ExitCode, SettingsError, UsageError
from dagster_stack.objects import contract
from dagster_stack.objects.contract import CHECKS, Trial, race, tried
from tests.unit.s3_stub import Weaknesses, s3_stub
from tests.unit.seaweed import ACCESS_KEY, BUCKET, SECRET_KEY


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY", ACCESS_KEY), ("SECRET_KEY", SECRET_KEY), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"DAGSTER_STACK_S3_{name}", value)
    # As many as a busy machine has in seconds.
    monkeypatch.setattr(contract, "ROUNDS", 1)


def settings(url: str) -> dict[str, str]:
    return {"DAGSTER_STACK_S3_BUCKET": BUCKET, "DAGSTER_STACK_S3_ENDPOINT_URL": url}


@pytest.fixture
def store() -> Weaknesses:
    return Weaknesses()


@pytest.fixture
def weak(store: Weaknesses) -> Iterator[Trial]:
    with s3_stub(store) as url:
        yield Trial(url, BUCKET, "storage")


def test_a_real_store_that_suffices_is_told_so_with_what_it_lacks_and_nothing_stays_behind(
    s3_url: str,
) -> None:
    out = io.StringIO()

    code = check_store(out, settings(s3_url))

    said = out.getvalue()
    assert code is ExitCode.SUCCESS, said
    assert "It does all that the stack needs" in said
    assert all(check.title in said for check in CHECKS)
    # SeaweedFS lists folder by folder, and takes a backslash for a slash
    marked = {line.split("  ")[1].strip() for line in said.splitlines() if line.startswith("!")}
    # And of several that complete an upload at once it lets more than one win, on a busy machine
    assert marked - {"multipart at once"} == {"order of a list", "odd names"}
    trial = Trial(s3_url, BUCKET, "storage")
    assert not next(iter(trial.pages(trial.all))).get("Contents")
    assert not trial.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


@pytest.mark.parametrize(
    ("kind", "attempt"), [("put", contract.conditional_puts), ("multipart", contract.parts_at_once)]
)
@pytest.mark.parametrize("behaviour", ["ignored", "unknown"])
def test_a_store_that_lets_all_writers_win_or_none_is_found_out(
    store: Weaknesses, weak: Trial, kind: str, attempt: Any, behaviour: str
) -> None:
    setattr(store, kind, behaviour)
    found = {
        "ignored": "50 of 50 writers at once won",
        "unknown": "0 of 50 writers at once won, 50 got NotImpl",
    }

    with pytest.raises(contract.Lacking, match=found[behaviour]):
        attempt(weak)


@pytest.mark.parametrize("behaviour", ["ignored", "unknown"])
def test_a_store_that_does_not_refuse_late_parts_is_found_out(
    store: Weaknesses, weak: Trial, behaviour: str
) -> None:
    assert contract.conditional_parts(weak) == "a late writer is refused"
    weak.client.delete_object(**weak.where("late"))
    store.multipart = behaviour

    with pytest.raises(contract.Lacking, match="a late writer is not refused"):
        contract.conditional_parts(weak)


def test_a_store_that_looks_and_then_writes_lets_two_win(weak: Trial) -> None:
    """One by one it keeps conditions: `init`, which tries it so, can't find it out."""
    answers = iter([None, None])

    def prepared(body: bytes) -> Any:
        return lambda: next(answers)

    with pytest.raises(contract.Lacking, match="2 of 2 writers"):
        race(weak, "name", prepared, [b"a", b"b"])


def test_what_cant_be_reached_or_opened_is_one_line_with_the_cure(
    store: Weaknesses, weak: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.first = {"PUT": [(403, "SignatureDoesNotMatch")]}

    (finding,) = tried(weak)

    assert finding.found == "PutObject: SignatureDoesNotMatch, correct S3_SECRET_KEY"
    out = io.StringIO()
    assert check_store(out, settings("http://127.0.0.1:9")) is ExitCode.FAILED
    assert "no answer, is it up? From a container this host is host.docker.internal." in out.getvalue()
    # Its address, without the name of an object that nobody knows
    assert 'endpoint URL: "http://127.0.0.1:9"' in out.getvalue()
    assert "The stack can't use it: write and read." in out.getvalue()


def test_a_bucket_that_is_not_there_is_not_made_by_looking(s3_url: str) -> None:
    """SeaweedFS makes one for whoever writes into it."""
    trial = Trial(s3_url, "mistyped", "storage")

    (finding,) = tried(trial)

    assert finding.found == "ListObjectsV2: NoSuchBucket, make the bucket, or correct S3_BUCKET"
    assert "mistyped" not in [entry["Name"] for entry in trial.client.list_buckets()["Buckets"]]


@pytest.mark.parametrize("address", ["s3.example.com:9000", "http://", "ftp://s3.example.com"])
def test_an_address_that_is_none_is_said(address: str) -> None:
    with pytest.raises(SettingsError, match="begins with http:// or https://"):
        check_store(io.StringIO(), settings(address))


def test_a_store_without_types_is_found_out(weak: Trial) -> None:
    with pytest.raises(contract.Lacking, match="its type came back as nothing"):
        contract.written_and_read(weak)


def test_a_store_without_tls_at_an_address_with_it_is_said(weak: Trial) -> None:
    trial = Trial(weak.client.meta.endpoint_url.replace("http:", "https:"), BUCKET, "storage")

    (finding,) = tried(trial)

    assert finding.found.startswith("no answer, it has no TLS there: write http://.")


def test_what_was_tried_goes_when_a_check_breaks_or_is_interrupted(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(trial: Trial) -> str:
        trial.put("left", b"x")
        trial.parts("uploading", [b"x"])
        raise KeyboardInterrupt

    monkeypatch.setattr(contract, "CHECKS", (contract.Check("first", "", breaks),))
    trial = Trial(s3_url, BUCKET, "storage")

    with pytest.raises(KeyboardInterrupt):
        list(tried(trial))

    later = Trial(s3_url, BUCKET, "storage")
    assert not next(iter(later.pages(later.all))).get("Contents")
    assert not later.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_what_keys_that_may_not_delete_leave_behind_is_said(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials: list[Trial] = []

    def denied(trial: Trial) -> None:
        trials.append(trial)
        raise ClientError({"Error": {"Code": "AccessDenied"}}, "DeleteObject")

    monkeypatch.setattr(contract, "CHECKS", contract.CHECKS[:1])
    working = Trial.close
    monkeypatch.setattr(Trial, "close", denied)
    out = io.StringIO()

    check_store(out, settings(s3_url))

    assert f"What was tried is still there: delete all below {trials[0].folder} yourself." in out.getvalue()
    working(trials[0])


def test_without_a_store_there_is_nothing_to_check() -> None:
    assert "DAGSTER_STACK_S3_BUCKET" not in os.environ
    with pytest.raises(UsageError, match="There is no store to check"):
        check_store(io.StringIO(), {})
