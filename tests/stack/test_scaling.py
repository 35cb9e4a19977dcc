"""More workers and fewer, while work goes on."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from scripts import env_file
from tests.stack import runs
from tests.stack.stack import Stack
from tests.stack.test_executor_processes import address
from tests.waiting import wait_until

#: Eight workers that start on two busy cores.
SCALE_SECS = 300
#: Steps that had begun before the workers were taken away.
BEGUN = 12


@dataclass(frozen=True)
class Scaled:
    """A run that began on eight workers and ended on one."""

    run_id: str
    eight: list[str]
    #: Steps that had not begun when seven workers were told to stop.
    left: int


#: The addresses from which the database is used.
CONNECTED = "SELECT DISTINCT host(client_addr) FROM pg_stat_activity WHERE client_addr IS NOT NULL"


@pytest.fixture(scope="module")
def scaled(stack: Stack) -> Iterator[Scaled]:
    try:
        stack.compose("scale", "worker=8", timeout=SCALE_SECS)
        runs.wait_for_workers(stack, 8, timeout=SCALE_SECS)
        names = [
            f"dagster@{stack.inspect(entry.name)['Config']['Hostname']}"
            for entry in stack.containers("worker")
        ]
        # A process that has loaded the code has a connection; before, faster ones take all the work.
        addresses = {address(stack, entry.name) for entry in stack.containers("worker")}
        wait_until(
            lambda: {host for (host,) in stack.sql(CONNECTED)}, SCALE_SECS, "eight workers with the code loaded",
            until=lambda hosts: addresses <= hosts,
        )  # fmt: skip
        run_id = stack.launch("parallel_pipeline")
        wait_until(
            lambda: len(runs.count_events(stack, run_id, "STEP_START")),
            120, f"{BEGUN} steps begun", until=lambda begun: begun >= BEGUN, pause=0.1,
        )  # fmt: skip
        left = 50 - len(runs.count_events(stack, run_id, "STEP_START"))
        stack.compose("scale", "worker=1", timeout=SCALE_SECS)
        stack.wait_for_run(run_id)
        yield Scaled(run_id, names, left)
    finally:
        stack.compose("scale", "worker=2")
        runs.wait_for_workers(stack, 2)


def test_scale_8_gives_eight_workers_that_all_take_work(stack: Stack, scaled: Scaled) -> None:
    # Given eight healthy workers and a run of fifty steps
    # When its steps name who executed them
    executed = Counter(name for names in runs.workers(stack, scaled.run_id).values() for name in names)

    # Then every one of the eight had some
    assert len(set(scaled.eight)) == 8
    assert set(executed) == set(scaled.eight), executed


def test_scaling_down_to_one_while_a_run_goes_on_loses_nothing(stack: Stack, scaled: Scaled) -> None:
    # Given a run whose steps had not all begun when seven of its eight workers were stopped
    assert scaled.left > 0

    # When it has ended
    run = stack.run(scaled.run_id)

    # Then it is a success, each step having succeeded exactly once
    assert run["status"] == "SUCCESS", stack.failure_texts(scaled.run_id)
    assert runs.count_events(stack, scaled.run_id, "STEP_SUCCESS") == Counter(
        {f"not_much_{number}": 1 for number in range(50)}
    )


def test_make_scale_sets_the_number_for_good(stack: Stack) -> None:
    # Given a stack of two workers
    before = env_file.read(stack.env)["WORKERS"]
    try:
        # When it is scaled by make
        stack.make("scale", "N=3")

        # Then three workers are healthy, and a plain `up` leaves these very ones as they are
        assert runs.healthy(stack, "worker") == 3
        three = {entry.id for entry in stack.containers("worker")}
        stack.compose("up", "--detach")
        runs.wait_for_workers(stack, 3)
        assert {entry.id for entry in stack.containers("worker")} == three
    finally:
        stack.make("scale", f"N={before}")
    assert runs.healthy(stack, "worker") == int(before)


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        ("800", "Set POSTGRES_MAX_CONNECTIONS=1678 or more"),
        ("20000", "make scale N=8"),
        ("many", "make scale N=8"),
    ],
)
def test_make_scale_refuses_what_can_not_be(stack: Stack, number: str, cure: str) -> None:
    # Given a stack of two workers
    before = env_file.read(stack.env)["WORKERS"]

    # When more workers are asked for than Postgres has connections for, or than make sense, or no number
    result = stack.make("scale", f"N={number}", check=False)

    # Then nothing happens, and the message says what to do
    assert result.returncode != 0
    assert cure in result.stdout + result.stderr
    assert env_file.read(stack.env)["WORKERS"] == before
