"""A process of the pool that asked for its replacement, on a real worker."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit import replaced_worker
from tests.waiting import wait_until


@pytest.mark.parametrize(
    "transport", ["", "tests.unit.looping_worker:Transport"], ids=["embedded", "with an event loop"]
)
def test_a_process_that_is_to_be_replaced_takes_no_further_task_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    # Given a worker of one process, and tasks that wait for it, of which one leaves a thread
    monkeypatch.setenv("REPLACED_WORKER_FOLDER", str(tmp_path))
    monkeypatch.setenv("REPLACED_WORKER_TRANSPORT", transport)
    file = tmp_path / "executed"
    names = [f"task-{number}" for number in range(5)]
    program = (
        "from tests.unit.replaced_worker import note\n"
        f"for number, name in enumerate({names!r}):\n    note.delay(name, number == 1)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "tests.unit.replaced_worker",
        "worker",
        "-c",
        "1",
        "-l",
        "WARNING",
    ]
    worker = subprocess.Popen(command, start_new_session=True)
    try:
        # When it executes them
        wait_until(lambda: file.exists() and len(file.read_text().splitlines()) == 5, 300, "all tasks")
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()

    # Then each is executed once, and none after that one in its process
    executed = [line.split() for line in file.read_text().splitlines()]
    assert sorted(name for name, _ in executed) == names
    place = [name for name, _ in executed].index("task-1")
    assert len({pid for _, pid in executed[: place + 1]}) == 1
    assert executed[place][1] not in {pid for _, pid in executed[place + 1 :]}


def test_the_workers_of_the_stack_have_that_pool() -> None:
    assert replaced_worker.app.conf.worker_pool == "dagster_stack.pool.replacement:Pool"
