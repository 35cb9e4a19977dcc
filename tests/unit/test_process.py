"""What a worker's process keeps between steps, and what it does not let a step keep."""

import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance

from dagster_stack.worker import process
from dagster_stack.worker.process import undisturbed

# --- what is kept -----------------------------------------------------------------------------------------------


def test_a_forked_process_opens_an_instance_of_its_own(instance: DagsterInstance) -> None:
    """Its parent's connections are not its own."""
    assert process.warm_instance.cache_info().currsize == 1

    with warnings.catch_warnings():
        # Python 3.12 and later warn when the parent has threads; this child only looks and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(process.warm_instance.cache_info().currsize)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert process.warm_instance() is instance


# --- what a step does to its process --------------------------------------------------------------------------


def handler(*_: Any) -> None: ...


def leave_another_folder(tmp_path: Path) -> None:
    os.chdir(tmp_path)


def leave_a_deleted_folder(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


def change_variables(_: Path) -> None:
    os.environ["LEFT_BY_A_STEP"] = "1"
    os.environ["KEPT"] = "changed"
    del os.environ["REMOVED"]


def clear_variables(_: Path) -> None:
    os.environ.clear()


def change_signals(_: Path) -> None:
    for number in process.KEPT_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def replace_streams(_: Path) -> None:
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), io.StringIO(), io.StringIO()


def close_a_stream_of_its_own(_: Path) -> None:
    sys.stdout = io.StringIO()
    sys.stdout.close()


def change_arguments(_: Path) -> None:
    sys.argv[:] = ["other"]


def replace_arguments(_: Path) -> None:
    sys.argv = ["other"]


def change_path(_: Path) -> None:
    sys.path.insert(0, "/nowhere")


def replace_path(_: Path) -> None:
    sys.path = ["/nowhere"]


def change_umask(_: Path) -> None:
    os.umask(0o777)


DISTURBANCES: list[Callable[[Path], None]] = [
    leave_another_folder, leave_a_deleted_folder, change_variables, clear_variables, change_signals,
    replace_streams, close_a_stream_of_its_own, change_arguments, replace_arguments, change_path, replace_path, change_umask,
]  # fmt: skip


def state_of_the_process() -> dict[str, Any]:
    umask = os.umask(0)
    os.umask(umask)
    return {
        "folder": os.getcwd(),
        "variables": dict(os.environ),
        "handlers": [signal.getsignal(number) for number in process.KEPT_SIGNALS],
        "streams": [sys.stdin, sys.stdout, sys.stderr],
        "arguments": list(sys.argv),
        "path": list(sys.path),
        "umask": umask,
    }


@pytest.mark.parametrize("fails", [False, True], ids=["", "and fails"])
@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda function: function.__name__)
def test_what_a_step_does_to_its_process_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturb: Callable[[Path], None], fails: bool
) -> None:
    # Given a process, with its parts under pytest's eyes so that a failure here harms no other test
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("REMOVED", "1")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    streams = sys.stdin, sys.stdout, sys.stderr
    handlers = {number: signal.getsignal(number) for number in process.KEPT_SIGNALS}
    path, arguments = sys.path, sys.argv
    before = state_of_the_process()
    try:
        # When a step leaves it in a mess
        with pytest.raises(RuntimeError) if fails else undisturbed():
            if fails:
                with undisturbed():
                    disturb(tmp_path)
                    raise RuntimeError
            disturb(tmp_path)
        # Then the next one finds it as it was
        assert state_of_the_process() == before
    finally:
        sys.stdin, sys.stdout, sys.stderr, sys.path, sys.argv = *streams, path, arguments
        for number, kept in handlers.items():
            signal.signal(number, kept)
        os.umask(before["umask"])


def test_a_handler_that_python_did_not_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`signal.getsignal` says None for a handler that C code installed: it can't be put back."""
    installed: list[Any] = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *call: installed.append(call))

    with undisturbed():
        pass

    assert installed == []


def test_a_folder_that_is_gone_when_the_step_ends_is_no_failure_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process's own folder removed under it: the step did its work, and there is nothing to go back to."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "removed"
    folder.mkdir()
    os.chdir(folder)

    with undisturbed():
        os.chdir(tmp_path)
        folder.rmdir()


def test_a_process_whose_folder_is_gone_executes_steps_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "removed"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    executed = []

    with undisturbed():
        executed.append("a step")

    assert executed == ["a step"]
