"""The run queue of dagster.yaml: as many runs as runners drive, and how often it looks."""

from types import SimpleNamespace
from typing import Any

import pytest
from dagster._config import Field, process_config

from dagster_stack.errors import SettingsError
from dagster_stack.launch import run_queue
from dagster_stack.launch.run_queue import REST_SECS, RunQueue
from scripts import preflight
from scripts.console import Failure


def queue(**config: Any) -> RunQueue:
    """The queue of an instance with two runners of four runs each."""
    values = {"runners": 2, "runner_concurrency": 4, **config}
    found = process_config(Field(RunQueue.config_type()).config_type, values)
    assert found.success, found.errors
    assert found.value
    return RunQueue.from_config_value(None, found.value)


@pytest.mark.parametrize(("wanted", "places"), [(0, 8), (8, 8), (3, 3)])
def test_as_many_runs_at_once_as_there_are_places_or_fewer(wanted: int, places: int) -> None:
    assert queue(max_concurrent_runs=wanted).get_run_queue_config().max_concurrent_runs == places


def test_the_places_follow_the_runners() -> None:
    assert queue(runners=5, runner_concurrency=1).get_run_queue_config().max_concurrent_runs == 5


@pytest.mark.parametrize("wanted", [9, -1])
def test_more_runs_at_once_than_places_are_refused_with_the_cure(wanted: int) -> None:
    """They would wait in STARTING, where nobody sees why. Dagster's -1 is all of them."""
    with pytest.raises(SettingsError) as refusal:
        queue(max_concurrent_runs=wanted)

    assert str(refusal.value) == (
        f"MAX_CONCURRENT_RUNS={wanted}, but 2 runners with 4 runs each (RUNNERS and RUNNER_CONCURRENCY in .env) drive"
        " 8 at once: raise those, or leave MAX_CONCURRENT_RUNS empty."
    )


def test_what_dagsters_own_queue_understands_is_handed_on() -> None:
    limits = [{"key": "dagster/backfill", "limit": 6}]

    config = queue(tag_concurrency_limits=limits, max_user_code_failure_retries=8).get_run_queue_config()

    assert [dict(limit) for limit in config.tag_concurrency_limits] == limits
    assert config.max_user_code_failure_retries == 8


@pytest.mark.parametrize(("given", "seconds"), [(0.5, 0.5), (1, 1), (0, 0.5), (0.1, 0.5)])
def test_it_may_look_twice_a_second_and_never_without_a_pause(given: float, seconds: float) -> None:
    assert queue(dequeue_interval_seconds=given).dequeue_interval_seconds == seconds
    assert queue().dequeue_interval_seconds == 0.5


def test_it_rests_when_it_is_told_to_and_goes_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make deploy` may be killed while it waits."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("dagster_stack.launch.run_queue.time.monotonic", lambda: clock.now)
    monkeypatch.setattr(run_queue._Rest, "until", 0.0)

    run_queue.rest()
    clock.now += REST_SECS / 2
    run_queue.rest()
    clock.now += REST_SECS - 1
    assert queue().get_run_queue_config().max_concurrent_runs == 0

    clock.now += 1
    assert queue().get_run_queue_config().max_concurrent_runs == 8

    run_queue.rest()
    run_queue.go_on()
    assert queue().get_run_queue_config().max_concurrent_runs == 8


@pytest.mark.usefixtures("env")
def test_make_up_refuses_it_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a limit above what the runners drive
    monkeypatch.setenv("RUNNERS", "1")
    monkeypatch.setenv("MAX_CONCURRENT_RUNS", "5")

    # When `make up` looks at it
    (finding,) = preflight.runs_at_once()

    # Then it stops there, and says what to change
    with pytest.raises(Failure, match=r"lower it in \.env, or leave it empty; or raise RUNNERS \(1\)"):
        preflight.report([finding])


@pytest.mark.usefixtures("env")
@pytest.mark.parametrize("wanted", ["", "0", "8"])
def test_make_up_takes_a_limit_that_runners_can_reach(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("MAX_CONCURRENT_RUNS", wanted)

    preflight.report(preflight.runs_at_once())
