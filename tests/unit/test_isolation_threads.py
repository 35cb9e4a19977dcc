"""Threads that a step leaves: named, and their process replaced, when they still run."""

import threading
import time

import pytest

from dagster_stack.pool.isolation import threads
from dagster_stack.pool.isolation import undisturbed as undisturbed_module
from dagster_stack.pool.isolation.undisturbed import undisturbed


@pytest.fixture(autouse=True)
def _not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undisturbed_module, "replace_process", lambda: None)


@pytest.mark.parametrize("is_daemon", [True, False])
def test_a_thread_that_still_runs_is_named_and_its_process_replaced(
    monkeypatch: pytest.MonkeyPatch, is_daemon: bool
) -> None:
    told: list[str] = []
    replaced: list[bool] = []
    monkeypatch.setattr(undisturbed_module, "replace_process", lambda: replaced.append(True))
    end = threading.Event()

    def poll_for_ever() -> None:
        end.wait()

    with undisturbed(told.append):
        thread = threading.Thread(target=poll_for_ever, name="poller", daemon=is_daemon)
        thread.start()

    end.set()
    thread.join()
    (reason,) = told
    assert 'left threads that still run ("poller" of tests.unit.test_isolation_threads.' in reason
    assert "poll_for_ever" in reason
    assert replaced == [True]


def test_threads_that_end_with_their_step_are_nobodys_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    # However busy this machine is
    monkeypatch.setattr(threads, "GRACE_SECS", 10)
    from concurrent.futures import ThreadPoolExecutor

    told: list[str] = []

    with undisturbed(told.append):
        executor = ThreadPoolExecutor(4)
        list(executor.map(abs, range(100)))
        executor.shutdown(wait=False)
        threading.Thread(target=time.sleep, args=(0.01,)).start()

    assert told == []


def test_threads_of_before_and_of_the_platform_are_nobodys_matter() -> None:
    told: list[str] = []
    end = threading.Event()
    before = threading.Thread(target=end.wait)
    before.start()

    with undisturbed(told.append):
        timer = threading.Timer(10, end.set)
        timer.name = "interruption"
        timer.start()

    end.set()
    timer.cancel()
    before.join()
    assert told == []
