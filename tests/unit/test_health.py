"""The sign of life: given while all is well, withheld when not, and an exit for what can't work."""

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dagster_stack import timing
from dagster_stack.services.health import (
    EXIT_CODE,
    Heartbeat,
    Watchdog,
    pool_complaint,
    process_state,
)
from tests.waiting import wait_until

#: Seconds between two looks of the tests' heartbeats.
TICK = 0.01


class Patient:
    """Something whose health the test decides; counts how often it was looked at."""

    def __init__(self) -> None:
        self.complaint: str | None = None
        self.error: Exception | None = None
        self.looks = 0

    def __call__(self) -> str | None:
        self.looks += 1
        if self.error:
            raise self.error
        return self.complaint


@pytest.fixture
def patient() -> Patient:
    return Patient()


@pytest.fixture
def exits() -> list[int]:
    return []


Start = Callable[..., Heartbeat]


@pytest.fixture
def start(patient: Patient, tmp_path: Path, exits: list[int]) -> Iterator[Start]:
    """Starts heartbeats over the patient; they are stopped when the test is over."""
    started: list[Heartbeat] = []

    def start(exit_after: float | None = None, file: Path = tmp_path / "heartbeat") -> Heartbeat:
        heartbeat = Heartbeat(patient, file, TICK, exit_after, exits.append)
        heartbeat.start()
        started.append(heartbeat)
        return heartbeat

    yield start
    for heartbeat in started:
        heartbeat.stop()
        heartbeat.join(5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "heartbeat"


def looked_at(patient: Patient, times: int = 3) -> None:
    """Wait until it was looked at so often from now on."""
    before = patient.looks
    wait_until(lambda: patient.looks, 5, "looks", until=lambda seen: seen >= before + times, pause=TICK)


def test_what_is_well_gives_a_sign_of_life_again_and_again(start: Start, file: Path) -> None:
    start()
    wait_until(file.exists, 5, "the first sign of life", pause=TICK)
    first = file.stat().st_mtime_ns

    wait_until(lambda: file.stat().st_mtime_ns, 5, "another one", until=lambda seen: seen > first, pause=TICK)


def test_what_is_not_well_gives_none_and_says_why_once(
    start: Start, patient: Patient, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patient.complaint = "the pool has no process"
    caplog.set_level(logging.WARNING)

    start()
    looked_at(patient, 5)

    assert not file.exists()
    assert [record.message for record in caplog.records] == ["unhealthy: the pool has no process"]


def test_what_gets_well_again_gives_signs_again(
    start: Start, patient: Patient, file: Path, exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    # Given a complaint that lasts less than the limit
    patient.complaint = "no broker"
    start(exit_after=30)
    looked_at(patient)
    assert not file.exists()

    # When it is gone
    patient.complaint = None

    # Then signs come, and the process goes on
    wait_until(file.exists, 5, "a sign of life", pause=TICK)
    wait_until(lambda: [r.message for r in caplog.records], 5, "a word", lambda m: "healthy again" in m, TICK)
    assert exits == []
    assert "unhealthy: no broker; exits for a restart if that lasts 30 s" in caplog.messages


def test_what_stays_unwell_exits_for_a_restart(
    start: Start, patient: Patient, exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    patient.complaint = "no broker"

    heartbeat = start(exit_after=0.05)
    heartbeat.join(5)

    assert exits == [EXIT_CODE]
    assert "giving up after" in caplog.messages[-1]
    assert caplog.messages[-1].endswith(": no broker")


def test_the_limit_counts_from_the_last_time_all_was_well(
    start: Start, patient: Patient, exits: list[int]
) -> None:
    # Given a process that was well for longer than the limit
    start(exit_after=0.5)
    looked_at(patient)
    well = time.monotonic()
    wait_until(lambda: time.monotonic() - well, 5, "longer than the limit", lambda seen: seen > 0.6, 0.05)

    # When it becomes unwell, then it does not exit at once, but after the limit
    patient.complaint = "no broker"
    looked_at(patient)
    assert exits == []
    unwell = time.monotonic()
    wait_until(lambda: exits, 5, "the exit", pause=TICK)
    assert time.monotonic() - unwell > 0.2


def test_without_a_limit_it_never_exits(start: Start, patient: Patient, exits: list[int]) -> None:
    patient.complaint = "Postgres is away"

    start(exit_after=None)
    looked_at(patient, 10)

    assert exits == []


def test_a_look_that_fails_is_a_complaint_and_not_the_end_of_looking(
    start: Start, patient: Patient, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patient.error = OSError("no database")
    start()
    looked_at(patient)
    assert not file.exists()
    assert "unhealthy: the look itself failed: OSError('no database')" in caplog.messages

    patient.error = None

    wait_until(file.exists, 5, "a sign of life", pause=TICK)


def test_a_watchman_that_dies_takes_the_process_with_it(
    start: Start, tmp_path: Path, exits: list[int]
) -> None:
    """Else the process would count as unhealthy for ever, and nothing would restart it."""
    heartbeat = start(file=tmp_path / "no-such-folder" / "heartbeat")
    heartbeat.join(5)

    assert exits == [EXIT_CODE]


# --- real processes -------------------------------------------------------------------------------------------


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def in_state(process: subprocess.Popen[bytes], state: str) -> None:
    wait_until(lambda: process_state(process.pid), 5, f"state {state}", lambda seen: seen == state, TICK)


def test_a_living_pool_is_no_complaint(child: subprocess.Popen[bytes]) -> None:
    in_state(child, "S")

    assert pool_complaint([child.pid]) is None


def test_a_pool_process_that_was_stopped_is_a_complaint_until_it_goes_on(
    child: subprocess.Popen[bytes],
) -> None:
    child.send_signal(signal.SIGSTOP)
    in_state(child, "T")
    assert pool_complaint([child.pid]) == f"pool process {child.pid} does not run (state T)"

    child.send_signal(signal.SIGCONT)
    in_state(child, "S")
    assert pool_complaint([child.pid]) is None


def test_a_pool_process_that_is_a_zombie_is_a_complaint(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    in_state(child, "Z")

    assert pool_complaint([child.pid]) == f"pool process {child.pid} does not run (state Z)"


def test_a_pool_process_that_is_gone_is_a_complaint(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()

    assert pool_complaint([child.pid]) == f"pool process {child.pid} does not run (state X)"


def test_a_process_with_a_strange_name_is_understood(tmp_path: Path) -> None:
    program = tmp_path / "a) Z (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        in_state(process, "S")
        process.kill()


def test_a_pool_without_processes_is_a_complaint() -> None:
    assert pool_complaint([]) == "the pool has no process"


# --- the watchdog of a worker ---------------------------------------------------------------------------------


def worker_with(pids: list[int | None]) -> SimpleNamespace:
    """A worker as far as the watchdog looks: billiard's pool keeps its processes at `pool._pool._pool`."""
    processes = [SimpleNamespace(pid=pid) for pid in pids]
    return SimpleNamespace(pool=SimpleNamespace(_pool=SimpleNamespace(_pool=processes)))


def test_processes_that_have_not_started_yet_are_left_out() -> None:
    assert Watchdog(worker_with([None])).probe(worker_with([None])) == "the pool has no process"


def test_a_loop_that_turns_and_a_living_pool_are_well(child: subprocess.Popen[bytes]) -> None:
    worker = worker_with([child.pid])

    assert Watchdog(worker).probe(worker) is None


def test_a_loop_that_stands_still_is_a_complaint_until_it_turns(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a watchdog whose loop turned last before the limit
    worker = worker_with([child.pid])
    watchdog = Watchdog(worker)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + timing.LOOP_SILENCE_SECS + 1)
    assert watchdog.probe(worker) == "no connection to the broker, or the event loop hangs, for 16 s"

    # When it turns, then it is well
    watchdog._turn()
    assert watchdog.probe(worker) is None


def test_a_loop_that_turns_over_a_dead_pool_is_a_complaint(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGSTOP)
    in_state(child, "T")
    worker = worker_with([child.pid])

    assert "does not run" in str(Watchdog(worker).probe(worker))


def test_a_consumer_that_gets_nothing_is_a_complaint(child: subprocess.Popen[bytes]) -> None:
    worker = worker_with([child.pid])
    worker.consumer = SimpleNamespace(complaint="messages wait and none comes")

    assert Watchdog(worker).probe(worker) == "messages wait and none comes"
