"""How long a worker's stop takes at most, in a real process."""

import subprocess
import sys
import time

from scripts.console import ROOT

STOPPING = """
import logging, signal, sys, threading
logging.basicConfig()
from celery import signals
from dagster_stack.worker import shutdown
shutdown.DRAIN_SECS = float(sys.argv[1])
shutdown.install()
# As Celery's worker sends it on SIGTERM.
signals.worker_shutting_down.send(sender="dagster@host", sig="SIGTERM", how="Warm", exitcode=0)
# A step that runs for so long.
threading.Event().wait(float(sys.argv[2]))
print("the step ended by itself")
"""


def stop(drain: float, step: float) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STOPPING, str(drain), str(step)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result, time.monotonic() - started


def test_a_step_that_runs_too_long_does_not_hold_up_the_stop() -> None:
    # Given a step that would run for longer than a minute, when the worker stops
    result, seconds = stop(drain=0.2, step=120)

    # Then the process ends by itself, cleanly, and says what becomes of the step
    assert result.returncode == 0
    assert "the step ended" not in result.stdout
    assert "steps still running after 0.2 s go back to their queue" in result.stderr
    assert seconds < 30


def test_a_step_that_ends_in_time_is_waited_for_and_the_timer_does_not_hold_up_the_end() -> None:
    result, seconds = stop(drain=120, step=0.2)

    assert result.returncode == 0
    assert result.stdout == "the step ended by itself\n"
    assert seconds < 30
