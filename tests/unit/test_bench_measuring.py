"""What measures: the way of a step, timers inside of timers, processes of their own, and the measured jobs."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, multiprocess_executor
from dagster._core.events import EngineEventData

from bench import __main__ as main
from bench import jobs, rounds
from bench.forked import Failed, forked
from bench.profiling import statement_kind
from bench.runs import STOCK_MARKER, Times, milestone, times
from bench.stopwatch import Kind, Stopwatch
from bench.walk import Mark, mean_walk, walk
from bench.works import VARIANT_TITLES, WARM_UP, WORKS
from dagster_stack.run.executor import celery_executor

# --- the way of a step -------------------------------------------------------------------------------


def marks(step: str, **at: float) -> list[Mark]:
    return [Mark(moment, step, milestone) for milestone, moment in at.items()]


def test_the_parts_of_the_way_add_up_to_what_is_between_two_successes() -> None:
    # Given a chain of three steps
    chain = [
        *marks("a", announced=0, started=1, succeeded=2),
        *marks("b", announced=3, taken=5, started=6, loaded=6.5, computed=7, stored=8, succeeded=9),
        *marks("c", announced=10, taken=11, started=12, loaded=12.5, computed=13, stored=14, succeeded=17),
    ]

    found = walk(chain)

    # Then the first step is where the way begins, and the means of the parts make the whole
    assert found == {
        "announced": 1, "taken": 1.5, "started": 1, "loaded": 0.5, "computed": 0.5, "stored": 1, "succeeded": 2,
    }  # fmt: skip
    assert sum(found.values()) == (17 - 2) / 2


def test_what_an_executor_does_not_tell_is_in_the_next_part() -> None:
    chain = [*marks("a", started=0, succeeded=1), *marks("b", started=3, succeeded=4)]

    assert walk(chain) == {"started": 2, "succeeded": 1}


def test_a_step_that_is_executed_twice_counts_from_its_first_report() -> None:
    chain = [
        *marks("a", succeeded=1),
        *marks("b", started=2, succeeded=3),
        *marks("b", started=5, succeeded=6),
    ]

    assert walk(chain) == {"started": 1, "succeeded": 1}


def test_a_step_without_success_has_no_way() -> None:
    assert walk([*marks("a", succeeded=1), *marks("b", started=2)]) == {}


def test_the_mean_of_several_ways_keeps_the_order_of_the_parts() -> None:
    found = mean_walk([{"succeeded": 1.0, "started": 2.0}, {"started": 4.0, "succeeded": 3.0}])

    assert list(found.items()) == [("started", 3.0), ("succeeded", 2.0)]


def test_a_runs_times_are_those_of_its_event_log() -> None:
    # Given a chain that was executed
    with DagsterInstance.ephemeral() as instance:
        run = jobs.chain("chain", 3, jobs.follow).execute_in_process(instance=instance)

        # When its times are read
        found = times(instance, run.run_id, cpu=0.5)

    # Then its steps fit into it
    assert set(found.steps) == {"start", "step_1", "step_2"}
    assert 0 <= found.first_step < found.seconds
    assert found.first_step + sum(found.steps.values()) <= found.seconds
    assert list(found.walk) == ["started", "loaded", "computed", "stored", "succeeded"]
    assert 2 * sum(found.walk.values()) < found.seconds


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (EngineEventData(marker_start=STOCK_MARKER), "announced"),
        (EngineEventData(marker_end=STOCK_MARKER), "taken"),
        (EngineEventData(), None),
    ],
)
def test_what_dagster_celery_marks_is_a_milestone_too(event: EngineEventData, expected: str | None) -> None:
    engine_event = DagsterEvent(
        DagsterEventType.ENGINE_EVENT.value, "a_job", step_key="a", event_specific_data=event
    )

    assert milestone(engine_event) == expected


# --- timers ------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Goes on when it is told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> Stopwatch:
    return Stopwatch(clock)


def test_what_is_done_inside_counts_for_the_inner_kind_alone(watch: Stopwatch, clock: Clock) -> None:
    with watch.measure("outer"):
        clock.now += 1
        with watch.measure("inner"):
            clock.now += 10
        clock.now += 2

    assert watch.kinds == {"outer": Kind(1, 3), "inner": Kind(1, 10)}


def test_a_kind_inside_of_itself_is_one(watch: Stopwatch, clock: Clock) -> None:
    with watch.measure("upload"), watch.measure("upload"):
        clock.now += 5

    assert watch.kinds == {"upload": Kind(1, 5)}


def test_another_threads_work_is_not_counted(watch: Stopwatch, clock: Clock) -> None:
    def work() -> None:
        with watch.measure("there"):
            clock.now += 1

    thread = threading.Thread(target=work)
    with watch.measure("here"):
        thread.start()
        thread.join()

    assert list(watch.kinds) == ["here"]


def test_a_function_is_measured_where_it_is_looked_up(watch: Stopwatch, clock: Clock) -> None:
    # Given something that takes a second a letter
    def spell(word: str) -> str:
        clock.now += len(word)
        return word.upper()

    place = SimpleNamespace(spell=spell)
    watch.wrap(place, "spell", lambda word: f"words like {word}")

    assert place.spell("abc") == "ABC"
    assert watch.kinds == {"words like abc": Kind(1, 3)}


def test_of_a_context_only_begin_and_end_are_measured(watch: Stopwatch, clock: Clock) -> None:
    @contextmanager
    def capture() -> Iterator[str]:
        clock.now += 1
        try:
            yield "value"
        finally:
            clock.now += 2

    place = SimpleNamespace(capture=capture)
    watch.wrap_context(place, "capture", "capture")

    with place.capture() as value:
        clock.now += 100
    assert value == "value"
    assert watch.kinds == {"capture": Kind(1, 3)}

    # And an error inside reaches both the context and whoever waits outside
    with pytest.raises(ZeroDivisionError), place.capture():
        raise ZeroDivisionError
    assert watch.kinds == {"capture": Kind(2, 6)}


def test_of_a_generator_only_its_own_work_is_measured(watch: Stopwatch, clock: Clock) -> None:
    def numbers() -> Iterator[int]:
        for number in range(3):
            clock.now += 1
            yield number

    place = SimpleNamespace(numbers=numbers)
    watch.wrap_generator(place, "numbers", "numbers")

    for _ in place.numbers():
        clock.now += 100

    assert watch.kinds == {"numbers": Kind(1, 3)}


@pytest.mark.parametrize(
    ("statement", "kind"),
    [("\n  SELECT 1", "database reads"), ("INSERT INTO x", "event writes"), ("NOTIFY run_events", "event writes")],
)  # fmt: skip
def test_statements_are_reads_or_writes(statement: str, kind: str) -> None:
    assert statement_kind(statement) == kind


# --- processes of their own --------------------------------------------------------------------------

#: Python 3.12 and later warn of a fork beside the threads that other tests leave.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@forks
def test_a_forked_function_returns_its_result_and_leaves_this_process_as_it_is() -> None:
    def change(value: str) -> int:
        os.environ["BENCH_TEST"] = value
        print("nobody sees this")
        return os.getpid()

    assert forked(change, "there") != os.getpid()
    assert "BENCH_TEST" not in os.environ


@forks
def test_a_forked_function_that_raises_fails_with_what_it_said() -> None:
    def fail() -> None:
        os.write(2, b"the last words\n")
        raise ZeroDivisionError("no")

    with pytest.raises(Failed, match=r"(?s)ZeroDivisionError: no.*the last words"):
        forked(fail)


@forks
def test_a_forked_process_that_dies_fails() -> None:
    with pytest.raises(Failed, match="ended without a word"):
        forked(os._exit, 3)


@forks
def test_a_forked_function_that_takes_too_long_is_ended() -> None:
    started = time.monotonic()

    with pytest.raises(Failed, match="took longer than 0 s"):
        forked(time.sleep, 600, limit=0.2)

    assert time.monotonic() - started < 60


# --- rounds ------------------------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The executors in the order in which they got their work; dagster-celery's takes a minute, in-process fails."""
    order: list[str] = []
    clock = Clock()

    def execute(_: object, variant: str, limit: float = 0) -> Times:
        order.append(variant)
        clock.now += 61 if variant == "stock" else 1
        if variant == "in_process":
            raise Failed("run 1 failed")
        return Times(seconds=1, first_step=0, cpu=0, steps={}, walk={})

    monkeypatch.setattr(rounds, "forked", lambda _, *arguments, **options: execute(*arguments, **options))
    monkeypatch.setattr(rounds, "reconstructable_job", lambda work, _: None if work == "flights" else work)
    monkeypatch.setattr("bench.rounds.time", SimpleNamespace(monotonic=clock))
    return order


def test_executors_take_turns_and_a_slow_or_failing_one_is_not_asked_again(given: list[str]) -> None:
    found = rounds.measure("chain_40_10ms", 2)

    assert given == ["stack", "stock", "in_process", "in_process_here", "stack", "in_process_here"]
    assert [sample["variant"] for sample in found["samples"]] == [
        "stack", "stock", "in_process_here", "stack", "in_process_here",
    ]  # fmt: skip
    assert found["notes"] == [
        {"work": "chain_40_10ms", "variant": "in_process", "note": "run 1 failed", "failed": True}
    ]


def test_a_job_that_the_users_code_does_not_have_is_noted_once(given: list[str]) -> None:
    found = rounds.measure("flights", 2)

    assert given == []
    assert [(note["variant"], note["failed"]) for note in found["notes"]] == [
        (variant, False) for variant in WORKS["flights"].variants
    ]


# --- beside the user's project -----------------------------------------------------------------------


@pytest.mark.parametrize("module", ["bench.py", "bench/__init__.py", "bench/rounds.py"])
def test_a_project_with_a_module_of_the_same_name_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str
) -> None:
    (tmp_path / module).parent.mkdir(exist_ok=True)
    (tmp_path / module).touch()
    monkeypatch.setattr(main, "found", lambda: SimpleNamespace(path=[str(tmp_path)]))

    with pytest.raises(SystemExit, match=rf"has a module `bench` \({tmp_path}/bench.*: rename it, or"):
        main.require_own_name()


def test_any_other_project_is_measured_beside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "benchmarks.py").touch()
    monkeypatch.setattr(main, "found", lambda: SimpleNamespace(path=[str(tmp_path)]))

    main.require_own_name()


# --- jobs --------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DAGSTER_STACK_S3_BUCKET", "bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    jobs.job.cache_clear()
    yield
    jobs.job.cache_clear()


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("work", [name for name in WORKS if name != "parallel_1000"])
def test_every_work_is_a_job_for_each_of_its_variants(work: str) -> None:
    for variant in WORKS[work].variants:
        job = getattr(jobs, f"{work}_{variant}")

        assert job.name == f"{work}_{variant}"
        assert len(job.graph.nodes) == WORKS[work].steps
        assert job.executor_def is jobs.VARIANTS[variant].executor


@pytest.mark.usefixtures("bucket")
def test_only_this_stacks_variants_have_this_stacks_io_manager() -> None:
    kinds = {
        variant: type(jobs.resources(chosen.on_own_storage)["io_manager"]).__name__
        for variant, chosen in jobs.VARIANTS.items()
    }

    assert kinds == {
        "stack": "S3IOManager",
        "stock": "S3PickleIOManager",
        "multiprocess": "S3PickleIOManager",
        "in_process": "S3PickleIOManager",
        "in_process_here": "S3IOManager",
    }
    assert jobs.VARIANTS["stack"].executor is celery_executor
    assert jobs.VARIANTS["multiprocess"].executor is multiprocess_executor


@pytest.mark.usefixtures("bucket")
def test_what_is_no_work_is_no_attribute() -> None:
    assert not hasattr(jobs, "chain_22_stack")
    assert not hasattr(jobs, "chain_21_quickly")


def test_report_and_jobs_know_the_same_variants_and_works() -> None:
    assert set(jobs.VARIANTS) == set(VARIANT_TITLES)
    assert set(jobs.GRAPHS) == {*WORKS, WARM_UP}
