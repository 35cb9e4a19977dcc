"""`pip install ./<this repository>`: what a project's editor and its own tests know of the platform."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.console import ROOT

UV = ROOT / ".venv/bin/uv"
#: A project's own test, in short.
TEST = """\
import dagster as dg
import dagster_stack
from dagster_stack import ObjectStore, celery_executor, stack_resources


@dg.op
def one(store: ObjectStore) -> int:
    store.put("one.txt", b"1")
    return 1


@dg.op
def two(one: int, store: ObjectStore) -> int:
    return one + int(store.get("one.txt"))


@dg.job(executor_def=celery_executor, resource_defs=stack_resources())
def etl() -> None:
    two(one())


assert etl.execute_in_process().output_for_node("two") == 2
print(dagster_stack.__file__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel of a copy of this checkout holds; without network."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("dagster_stack", "pipelines", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [str(UV), "build", "--offline", "--wheel", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*command, "--out-dir", str(folder / "out"), str(folder)], check=True, capture_output=True)
    with zipfile.ZipFile(next((folder / "out").glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_it_holds_the_platform_with_its_types_and_nothing_else(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }

    assert files(installed / "dagster_stack") == files(ROOT / "dagster_stack")
    assert (installed / "dagster_stack/py.typed").exists()
    assert [path.name for path in installed.iterdir() if path.suffix != ".dist-info"] == ["dagster_stack"]


def test_a_projects_own_test_executes_a_job_with_the_stacks_resources(
    installed: Path, tmp_path: Path
) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DAGSTER")}

    result = subprocess.run(
        [sys.executable, "-P", "-c", TEST],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().startswith(str(installed))
