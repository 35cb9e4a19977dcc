"""The temporary folder of a step: its own, and gone when it ends, however it does."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dagster_stack.step import step_folder as module
from dagster_stack.step.step_folder import parent, remove, remove_dead, step_folder
from scripts.console import ROOT
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def _own_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in module.VARIABLES:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    parent.cache_clear()
    yield
    parent.cache_clear()


def test_temporary_files_of_a_step_are_in_a_folder_that_nobody_else_may_read() -> None:
    with step_folder() as folder:
        assert Path(tempfile.mkdtemp()).parent == folder
        assert subprocess.check_output(["mktemp"], text=True).startswith(f"{folder}/")
        assert os.environ["TMPDIR"] == os.environ["TEMP"] == os.environ["TMP"] == str(folder)
        assert folder.stat().st_mode & 0o077 == 0

    assert list(parent().iterdir()) == []


def test_the_variables_that_name_it_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMP")
    before = dict(os.environ)

    with step_folder():
        os.environ.pop("TEMP")

    assert dict(os.environ) == before


def test_what_dbt_makes_is_in_it_unless_the_project_names_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBT_TARGET_PATH", module.DBT_FOLDER)
    monkeypatch.setenv("DBT_LOG_PATH", "data/logs")

    with step_folder() as folder:
        assert os.environ["DBT_TARGET_PATH"] == f"{folder}/dbt"
        assert os.environ["DBT_LOG_PATH"] == "data/logs"

    assert os.environ["DBT_TARGET_PATH"] == module.DBT_FOLDER


def test_the_image_lets_dbt_write_where_steps_look_for_it() -> None:
    dockerfile = (ROOT / "docker/dagster/Dockerfile").read_text()

    assert all(f"{name}={module.DBT_FOLDER} " in dockerfile for name in module.DBT_VARIABLES)


def test_each_step_has_a_folder_of_its_own() -> None:
    with step_folder() as first:
        pass
    with step_folder() as second:
        assert list(second.iterdir()) == []

    assert first != second


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_it_is_gone_when_the_step_fails_or_is_interrupted(error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        (folder / "file").touch()
        raise error

    with pytest.raises(error), step_folder() as folder:
        fail(folder)

    assert not folder.exists()


def a_read_only_tree(folder: Path) -> None:
    inner = folder / "read" / "only"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    (inner / "file").chmod(0)
    inner.chmod(0o500)
    inner.parent.chmod(0)


def a_closed_folder(folder: Path) -> None:
    (folder / "file").touch()
    folder.chmod(0)


def many_files(folder: Path) -> None:
    for number in range(3000):
        (folder / str(number)).touch()


def a_deep_tree(folder: Path) -> None:
    before = Path.cwd()
    try:
        os.chdir(folder)
        for _ in range(1500):
            os.mkdir("deeper")
            os.chdir("deeper")
        Path("file").touch()
    finally:
        os.chdir(before)


def strange_names(folder: Path) -> None:
    for name in (b"\xff", b"a\nb", b"-rf", b" "):
        os.mkdir(os.path.join(os.fsencode(folder), name))


def no_plain_files(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to("/nowhere")


@pytest.mark.parametrize(
    "fill",
    [a_read_only_tree, a_closed_folder, many_files, a_deep_tree, strange_names, no_plain_files],
    ids=lambda function: function.__name__,
)
def test_it_is_gone_whatever_is_in_it(fill: Callable[[Path], None]) -> None:
    with step_folder() as folder:
        fill(folder)

    assert not folder.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes somebody else")
def test_somebody_without_root_can_remove_what_it_made_read_only(tmp_path: Path) -> None:
    """As the user of the image, whom permissions bind."""
    folder = tmp_path / "step"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    for above in (tmp_path, *tmp_path.parents[:3]):
        above.chmod(above.stat().st_mode | 0o055)
    child = os.fork()
    if child == 0:
        try:
            os.setgid(12345)
            os.setuid(12345)
            a_read_only_tree(folder)
            remove_full = module._empty
            folder.chmod(0o700)
            top = os.open(folder, os.O_RDONLY)
            remove_full(top)
            os._exit(len(os.listdir(folder)))
        except BaseException:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(0o500)
    (tmp_path / "file").write_text("kept")

    with step_folder() as folder:
        (folder / "folder").symlink_to(outside)
        (folder / "file").symlink_to(tmp_path / "file")

    assert (tmp_path / "file").read_text() == "kept"
    assert stat.S_IMODE(outside.stat().st_mode) == 0o500


def test_the_folder_of_a_process_that_was_killed_is_removed_before_the_next_step() -> None:
    # Given a process that is killed within its step, beside one that goes on
    program = (
        "import time\nfrom dagster_stack.step.step_folder import step_folder\n"
        "with step_folder() as folder:\n    print(folder, flush=True)\n    time.sleep(600)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        folders = [Path(process.stdout.readline().strip()) for process in processes if process.stdout]
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        assert all(folder.exists() for folder in folders)

        # When another process begins a step
        with step_folder():
            left = [folder.exists() for folder in folders]

        # Then the folder of the dead one is gone, and that of the living one is not
        assert left == [False, True]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()
    wait_until(lambda: not module.started_at(processes[1].pid), 5, "the end of the other")
    remove_dead()
    assert list(parent().iterdir()) == []


def test_another_process_with_the_same_id_is_no_reason_to_keep_it() -> None:
    with step_folder():
        pass
    old = parent() / f"{os.getpid()}-1-1"
    old.mkdir()

    remove_dead()

    assert not old.exists()


def test_a_step_that_removes_it_or_all_of_the_systems_folder_harms_nobody(tmp_path: Path) -> None:
    with step_folder() as folder:
        folder.rmdir()
        parent().rmdir()

    with step_folder() as folder:
        assert folder.exists()


def test_the_parent_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    parent().symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match=r"exists|belongs"), step_folder():
        pass


def test_what_can_not_be_removed_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "file"
    file.touch()

    remove(file)

    assert "can't be removed" in caplog.text


def test_a_folder_costs_less_than_half_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured: 25 µs, in memory as in the containers."""
    memory = Path("/dev/shm/test-step-folder")
    monkeypatch.setattr(module, "parent", lambda: memory)

    def use() -> None:
        with step_folder():
            pass

    try:
        assert min(timeit.repeat(use, number=20, repeat=5)) / 20 < 0.0005
    finally:
        remove(memory)
