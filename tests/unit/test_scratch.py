"""A worker's scratch space: leftovers stay while there is room, the next step finds some, and errors say who has it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from dagster import DagsterInstance
from dagster._utils.error import serializable_error_info_from_exc_info

from dagster_stack.pool import scratch as scratch_module
from dagster_stack.pool.scratch import Scratch
from dagster_stack.step import shared_memory, step_execution, step_folder
from dagster_stack.store import error_chains
from tests.unit import step_jobs
from tests.unit.deliveries import Delivery, dead_letters, delayed
from tests.unit.runs_by_hand import kinds, message, said, started_run

#: Bytes of the scratch space of a test.
SIZE = 100_000_000


class Space:
    """A folder that is full when its files take SIZE bytes. Files are sparse nowhere, and no disk is that small."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[Path] = []
        self.scratch = Scratch(folder, self.usage, lambda: self.running)

    def usage(self, folder: Path) -> Any:
        used = sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))
        free = (SIZE - used) // 4096
        return SimpleNamespace(f_bavail=free, f_blocks=SIZE // 4096, f_frsize=4096, f_favail=0, f_files=0)

    def leave(self, name: str, megabytes: float, hours_ago: float = 0) -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * int(megabytes * 1e6))
        changed = time.time() - hours_ago * 3600
        os.utime(file, (changed, changed))
        return file

    @property
    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Space:
    folder = tmp_path / "scratch"
    folder.mkdir()
    # The kernel's own time of a change can't be set.
    monkeypatch.setattr(scratch_module.Entry, "of", of_modification)
    monkeypatch.setattr(step_folder, "parent", lambda: folder / "dagster-steps-1")
    return Space(folder)


def of_modification(path: Path) -> scratch_module.Entry:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    changed = max(file.lstat().st_mtime for file in files if not file.is_dir())
    return scratch_module.Entry(path, sum(file.lstat().st_blocks * 512 for file in files), changed)


def test_while_half_is_free_what_steps_leave_stays(space: Space) -> None:
    space.leave("cache/model.bin", 40)

    assert space.scratch.has_room
    assert space.names == {"cache"}


def test_the_oldest_leftovers_go_until_half_is_free(space: Space) -> None:
    space.leave("old.csv", 30, hours_ago=3)
    space.leave("older/part.bin", 30, hours_ago=4)
    space.leave("new.csv", 30)
    space.leave("small.py", 0.001, hours_ago=9)

    assert space.scratch.has_room
    assert space.names == {"new.csv", "small.py"}


def test_many_small_leftovers_go_as_well(space: Space) -> None:
    for number in range(120):
        space.leave(f"{number}.csv", 0.5, hours_ago=number)

    assert space.scratch.has_room
    assert space.scratch.free >= 0.5
    assert "0.csv" in space.names


def test_what_is_the_platforms_or_open_stays(space: Space) -> None:
    space.leave("heartbeat", 0.001, hours_ago=9)
    space.leave("dagster/storage", 1, hours_ago=9)
    space.leave("compute-logs/of-a-killed-process.out", 20, hours_ago=1)
    space.leave("dagster-steps-1/1-1-1/running.bin", 20)
    opened = space.leave("opened/index.db", 30, hours_ago=9)
    program = subprocess.Popen(["sleep", "60"], cwd=space.folder / "opened")
    try:
        with opened.open():
            assert space.scratch.has_room
        assert space.names == {"heartbeat", "dagster", "compute-logs", "dagster-steps-1", "opened"}
        assert not list((space.folder / "compute-logs").iterdir())
    finally:
        program.kill()
        program.wait()


def test_leftovers_go_however_deep_they_are(tmp_path: Path) -> None:
    """An error here would keep each later step of the worker from running."""
    top = tmp_path / "top"
    for depth in range(sys.getrecursionlimit()):
        os.mkdir(f"{top}{'/d' * depth}")

    assert scratch_module.removed(top)
    assert not top.exists()


def test_what_another_running_step_may_have_made_stays(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    space.running = [Path("4000000-1-1")]
    monkeypatch.setattr(scratch_module, "born_at", lambda _: time.time() - 3600)
    space.leave("before.csv", 30, hours_ago=2)
    space.leave("since.csv", 65, hours_ago=0.5)

    assert space.scratch.has_room
    assert space.names == {"since.csv"}


def test_without_room_it_says_who_has_it(space: Space) -> None:
    space.leave("dagster-steps-1/4000000-1-1/large.bin", 60)
    space.leave(f"dagster-steps-1/{os.getpid()}-1-1/mine.bin", 30)
    space.leave("small.csv", 2)

    text = space.scratch.describe()

    assert re.search(r"has 100 MB \(WORKER_TMP in \.env; .*\), of which [78] MB are free", text)
    assert "4000000-1-1 60 MB, this step's folder 30 MB," in text
    assert "small.csv, which a step made, 2 MB" in text
    assert not space.scratch.has_room


def test_a_folder_has_a_time_of_birth_where_the_system_says_so(tmp_path: Path) -> None:
    assert 0 <= scratch_module.born_at(tmp_path) <= time.time()
    assert scratch_module.born_at(tmp_path / "none") == 0


def test_what_can_not_be_removed_is_not_looked_at_before_each_step(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    clear = Scratch._clear

    def look(self: Scratch) -> None:
        looks.append(self.free)
        clear(self)

    monkeypatch.setattr(Scratch, "_clear", look)
    with space.leave("cache.bin", 60).open():
        for _ in range(5):
            assert space.scratch.has_room
        assert len(looks) == 1
        # But what steps add is
        space.leave("new.csv", 10)
        assert space.scratch.has_room
        assert len(looks) == 2
    assert space.names == {"cache.bin"}


# --- what a step and its run see of it --------------------------------------------------------------------------------


@pytest.fixture
def in_use(space: Space, monkeypatch: pytest.MonkeyPatch) -> Space:
    monkeypatch.setattr(scratch_module, "scratch", lambda: space.scratch)
    return space


def test_a_step_without_room_is_delayed_and_its_run_told_once(
    instance: DagsterInstance, app: Celery, in_use: Space
) -> None:
    # Given a worker on which another step holds nearly all of the space
    in_use.leave("dagster-steps-1/4000000-1-1/large.bin", 95)
    run = started_run(instance, step_jobs.alone)
    content = message(instance, run, "one").to_json()

    # When the message comes, twice
    for _ in range(2):
        step_execution.execute_step(Delivery(app), content)

    # Then it comes again, and the log says once what it waits for
    assert len(delayed()) == 2
    assert not dead_letters()
    assert [kind for kind in kinds(instance, run.run_id, "one") if kind.startswith("STEP_")] == []
    (told,) = [line for line in said(instance, run.run_id) if "is delayed" in line]
    assert "has no room for it" in told
    assert "large.bin" not in told
    assert "4000000-1-1 95 MB" in told


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (RuntimeError("could not write block: No space left on device"), False),
        (ValueError("28"), False),
    ],
)
def test_an_error_for_want_of_space_says_what_is_full_and_whose_it_is(
    in_use: Space, monkeypatch: pytest.MonkeyPatch, error: Exception, is_told: bool
) -> None:
    """What a library says may be of another disk: it counts when this one is full."""
    monkeypatch.setattr(error_chains, "explanations", [scratch_module.explain])
    error_chains.use_in_dagster()
    in_use.leave("left.csv", 20)

    assert ("left.csv, which a step made, 20 MB" in shown(error)) is is_told
    in_use.leave("more.csv", 75)
    assert ("more.csv, which a step made, 75 MB" in shown(error)) is (not isinstance(error, ValueError))


@pytest.mark.parametrize("is_full", [True, False])
def test_shared_memory_that_is_full_is_named_in_its_place(
    in_use: Space, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """Not every error has the path."""
    monkeypatch.setattr(shared_memory, "is_full", lambda: is_full)
    in_use.leave("left.csv", 20)
    error = OSError(28, "No space left on device", *([] if is_full else ["/dev/shm/psm_1"]))

    told = scratch_module.explain(str(error))

    assert told
    assert "WORKER_SHM" in told
    assert "left.csv" not in told


def shown(error: Exception) -> str:
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("the step") from cause
    except RuntimeError:
        return serializable_error_info_from_exc_info(sys.exc_info()).to_string()


def test_outside_of_a_container_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(scratch_module.VARIABLE, raising=False)
    scratch_module.scratch.cache_clear()

    assert scratch_module.scratch() is None
    assert scratch_module.explain("[Errno 28]") is None
