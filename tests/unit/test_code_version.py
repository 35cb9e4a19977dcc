"""The hash by which code is told from other code: of every name and every byte, and of nothing else."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dagster_stack import code_version as module
from dagster_stack.code_version import ASIDE, LENGTH, PARTS, code_version, content_hash
from scripts.console import ROOT
from tests.unit.test_imports import arrows, modules

#: A small project.
FILES = {
    "pipelines/__init__.py": "",
    "pipelines/flights/job.py": "a = 1",
    "pipelines/flights/data.csv": "1,2",
    "dagster_stack/app.py": "b = 2",
    "requirements/stack.lock": "dagster==1.13.9",
    "requirements/flights.lock": "flights==1",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        write(tmp_path, name, text)
    return tmp_path


@pytest.fixture(autouse=True)
def _not_kept() -> Iterator[None]:
    code_version.cache_clear()
    yield
    code_version.cache_clear()


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def rename(root: Path, name: str, other: str) -> None:
    (root / name).rename(root / other)


def move_a_byte(root: Path) -> None:
    write(root, "pipelines/flights/data.csv", "1,")
    write(root, "pipelines/flights/job.py", "2a = 1")


CHANGES: dict[str, Callable[[Path], None]] = {
    "a byte of the pipelines": lambda root: write(root, "pipelines/flights/job.py", "a = 2"),
    "a byte of the platform": lambda root: write(root, "dagster_stack/app.py", "b = 3"),
    "a package's version": lambda root: write(root, "requirements/stack.lock", "dagster==1.13.10"),
    "the data": lambda root: write(root, "requirements/flights.lock", "flights==2"),
    "what is no Python": lambda root: write(root, "pipelines/flights/data.csv", "1,3"),
    "a new file": lambda root: write(root, "pipelines/new.py", ""),
    "a file less": lambda root: (root / "pipelines/__init__.py").unlink(),
    "a name": lambda root: rename(root, "pipelines/flights/job.py", "pipelines/flights/work.py"),
    "a folder's name": lambda root: rename(root, "pipelines/flights", "pipelines/flies"),
    "a byte that moves to the next file": move_a_byte,
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_changes_with(root: Path, change: str) -> None:
    before = content_hash(root, root / "pipelines")

    CHANGES[change](root)

    assert content_hash(root, root / "pipelines") != before


@pytest.mark.parametrize(
    "name",
    [
        "pipelines/__pycache__/job.cpython-313.pyc",
        "pipelines/flights/__pycache__/x",
        "README.md",
        "tests/a.py",
        "dagster_stack/monitoring/page/style.py",
    ],
)
def test_the_hash_does_not_change_with(root: Path, name: str) -> None:
    before = content_hash(root, root / "pipelines")

    write(root, name, "anything")

    assert content_hash(root, root / "pipelines") == before


def test_the_same_content_has_the_same_hash_wherever_it_lies(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The order in which a file system lists files is its own."""
    other = tmp_path_factory.mktemp("elsewhere")
    for name in reversed(FILES):
        write(other, name, FILES[name])

    assert content_hash(other, other / "pipelines") == content_hash(root, root / "pipelines")


def test_what_is_not_there_does_not_count(tmp_path: Path) -> None:
    assert len(content_hash(tmp_path, tmp_path / "pipelines")) == LENGTH


def test_all_parts_of_this_project_are_there() -> None:
    made_by_the_build = ["requirements/project.lock"]

    assert [part for part in PARTS if not (ROOT / part).exists()] == made_by_the_build


def test_what_counts_aside_executes_no_run() -> None:
    """Nothing that runners and workers import, by way of others too, is missing in the hash."""
    known, reached = arrows(modules()), {"dagster_stack.app", "dagster_stack.pool.own_process_program"}
    while new := {each for name in reached for each in known[name]} - reached:
        reached |= new

    assert "dagster_stack.run.run_execution" in reached
    assert not [each for each in reached if each.replace(".", "/").startswith(ASIDE)]


def test_what_the_image_keeps_wins(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baked = root / "code"
    baked.write_text("0123456789ab\n")
    monkeypatch.setenv(module.BAKED, str(baked))

    assert code_version() == "0123456789ab"
    # And it is read once: the file of a running process does not change
    baked.unlink()
    assert code_version() == "0123456789ab"


def test_outside_the_image_code_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it changes under a running process: nothing can be said of what that has loaded."""
    monkeypatch.delenv(module.BAKED, raising=False)

    assert code_version() == ""
