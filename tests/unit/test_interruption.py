"""A step that must not go on, in a real process: it is interrupted, and when that does not help, its process ends."""

import subprocess
import sys

import pytest

from dagster_stack.worker.lost_processes import ENDED_ITSELF
from scripts.console import ROOT

EXECUTING = """
import signal, sys, time
from dagster_stack.store.leases import Work
from dagster_stack.step import interruption
interruption.GRACE_SECS = float(sys.argv[1])
interrupts = []
signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
def work(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)
with interruption.Interruption(Work("run", "step", 1)) as step:
    for _ in range(2):
        step.begin("its run is CANCELED")
    work(float(sys.argv[2]))
# The process's next step.
work(float(sys.argv[3]))
print("interrupts:", len(interrupts))
"""


def execute(grace: float, step: float, following: float = 0) -> subprocess.CompletedProcess[str]:
    command = ["-W", "ignore", "-c", EXECUTING, *map(str, (grace, step, following))]
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_goes_on_ends_with_its_process() -> None:
    result = execute(grace=0.2, step=50)

    assert result.returncode == ENDED_ITSELF
    assert "step step of run run is interrupted: its run is CANCELED" in result.stderr
    assert "did not end within 0.2 s after it was interrupted: its process ends" in result.stderr


@pytest.mark.parametrize("following", [0, 0.6])
def test_what_ends_in_time_was_interrupted_once_and_its_process_goes_on(following: float) -> None:
    result = execute(grace=0.4, step=0.1, following=following)

    assert (result.returncode, result.stdout) == (0, "interrupts: 1\n")
