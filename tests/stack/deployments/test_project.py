"""Projects of Dagster's own tools: made here from nothing, found and served as they are."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from scripts.console import ROOT
from tests.stack.stack import Stack

#: Seconds that packages may take to come, and a tool to answer.
INSTALL_SECS, TOOL_SECS = 300, 180
MATERIALIZE_ALL = "__ASSET_JOB"


ASSETS = """
import json
from pathlib import Path

import dagster as dg


@dg.asset
def one() -> int:
    return 1


@dg.asset
def two(one: int) -> int:
    return one + 1


def made(name, value):
    @dg.asset(name=name)
    def asset() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"value": value})

    return asset


tables = Path("/opt/data/tables.json")
assets = [made(*each) for each in (json.loads(tables.read_text()) if tables.exists() else {}).items()]
"""
RELOAD = """
mutation Reload($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) { __typename }
}
"""


class Tools:
    """`create-dagster` and `dg` of this Dagster's version, in an environment of their own."""

    def __init__(self, folder: Path) -> None:
        self._programs, self._home = folder / "bin", folder.with_name("home")
        self._home.mkdir()
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        wanted = [f"{name}=={version('dagster')}" for name in ("create-dagster", "dagster-dg-cli")]
        install = [uv, "pip", "install", "--quiet", "--python", str(self._programs / "python"), *wanted]
        subprocess.run(install, check=True, timeout=INSTALL_SECS)

    def __call__(self, place: Path, *command: str) -> str:
        # What a project imports, the platform too, is this environment's.
        packages = os.pathsep.join([str(ROOT), sysconfig.get_paths()["purelib"]])
        environment = {
            **os.environ,
            "PATH": f"{self._programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": packages,
            "COLUMNS": "200",
            # The dagster.yaml beside the example is the stack's.
            "DAGSTER_HOME": str(self._home),
        }
        environment.pop("VIRTUAL_ENV", None)
        result = subprocess.run(
            command,
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TOOL_SECS,
            check=False,
        )
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
        return result.stdout


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    return Tools(tmp_path_factory.mktemp("tools") / "venv")


@pytest.fixture(scope="module")
def scaffolded(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `create-dagster project` and `dg scaffold defs` make, in a folder whose name has a space."""
    place = tmp_path_factory.mktemp("a folder")
    tools(place, "create-dagster", "project", "my-project", "--no-uv-sync")
    tools(place / "my-project", "dg", "scaffold", "defs", "dagster.asset", "assets.py")
    (place / "my-project" / "src" / "my_project" / "defs" / "assets.py").write_text(ASSETS)
    return place / "my-project"


def test_the_example_is_a_project_of_dagsters_own_tools(tools: Tools) -> None:
    tools(ROOT, "dg", "check", "defs")
    listed = json.loads(tools(ROOT, "dg", "list", "defs", "--json"))

    assert {each["name"] for each in listed["jobs"]} >= {"parallel_pipeline", "flights", "queues"}


#: Both locations have this job, and modules of these names; the second is imported when a step runs.
COMPARED = """
import os
import sys
import dagster as dg
import helpers

ALL = {"my_project", "other"}


@dg.op
def compare():
    import later

    package = __name__.partition(".")[0]
    assert package == helpers.NAME == later.NAME, (package, helpers.NAME, later.NAME)
    assert ALL & sys.modules.keys() == {package}
    assert os.environ["WHOSE"] == package


@dg.job
def compared():
    compare.alias("one")()
    compare.alias("two")()
"""


@pytest.fixture(scope="module")
def workspace(scaffolded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `dg` workspace of the scaffolded project and a second one, which share names of modules."""
    folder = tmp_path_factory.mktemp("several") / "workspace"
    shutil.copytree(scaffolded, folder / "my-project")
    (folder / "dg.toml").write_text(
        'directory_type = "workspace"\n[[workspace.projects]]\npath = "my-project"\n[[workspace.projects]]\npath = "other"\n'
    )
    other = folder / "other"
    (other / "src/other").mkdir(parents=True)
    (other / "src/other/__init__.py").touch()
    (other / "pyproject.toml").write_text(
        '[project]\nname = "other"\nversion = "1"\n[tool.dg]\ndirectory_type = "project"\n'
        '[tool.dg.project]\nroot_module = "other"\ncode_location_target_module = "other.definitions"\n'
    )
    (other / "src/other/definitions.py").write_text(COMPARED + "\ndefs = dg.Definitions(jobs=[compared])\n")
    (folder / "my-project/src/my_project/defs/compared.py").write_text(COMPARED)
    for name, source in (("my_project", folder / "my-project/src"), ("other", other / "src")):
        for module in ("helpers", "later"):
            (source / f"{module}.py").write_text(f"NAME = {name!r}\n")
        (source.parent / ".env").write_text(f"WHOSE={name}\n")
    return folder


@pytest.fixture(scope="module")
def served(stack: Stack, workspace: Path, own_code_afterwards: None) -> subprocess.CompletedProcess[str]:
    """The stack with that workspace in the place of the example."""
    return stack.make("deploy", f"PROJECT={workspace}", "DEPLOY=hand-over")


def test_what_was_found_is_printed(stack: Stack, scaffolded: Path) -> None:
    printed = stack.make("project", f"PROJECT={scaffolded}").stdout

    assert "Found by my-project/pyproject.toml" in printed
    assert "my_project.definitions, imported from src and ." in printed
    assert "2: one, two" in printed


def test_code_that_does_not_load_leaves_the_stack_as_it_is(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "etl.py").write_text(
        "import gone_from_here\nimport dagster as dg\n\ndefs = dg.Definitions()\n"
    )

    result = stack.make("up", f"PROJECT={tmp_path}", check=False)

    assert result.returncode != 0
    assert "etl.py:1  import gone_from_here" in result.stderr
    assert "Nothing was started or changed" in result.stderr
    assert "Next:" not in result.stdout
    assert stack.exec("worker", "python", "-c", "import pipelines").returncode == 0


def test_no_two_code_locations_ever_meet_in_one_process(
    stack: Stack, served: subprocess.CompletedProcess[str]
) -> None:
    """Eight runs at once, on workers and runners that have both locations' steps and runs to execute."""
    assert "several locations have a module helpers" in served.stdout
    runs = [stack.launch("compared", location=name) for name in ("my-project", "other") * 4]

    for run_id in runs:
        assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)


def test_a_scaffolded_project_is_served_as_it_is(
    stack: Stack, served: subprocess.CompletedProcess[str]
) -> None:
    # Given its two assets, of which one needs the other's output
    # When they are materialized
    run_id = stack.launch(MATERIALIZE_ALL, location="my-project")

    # Then both steps were executed by workers
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    assert "the code loads (2 code locations)" in served.stdout


def values_of_runs(stack: Stack, asset: str) -> list[object]:
    """What an asset says in several runs at once, so that every worker has some."""
    run_ids = [stack.launch(MATERIALIZE_ALL, location="my-project") for _ in range(4)]
    for run_id in run_ids:
        assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    return [stack.metadata(run_id, asset).get("value") for run_id in run_ids]


@pytest.mark.usefixtures("served")
def test_after_a_reload_all_workers_have_the_definitions_that_are_made_at_import(stack: Stack) -> None:
    # Given assets that the code makes of a file, which is there by now
    def write(**tables: int) -> None:
        command = ("sh", "-c", 'printf %s "$1" > /opt/data/tables.json', "sh", json.dumps(tables))
        stack.exec("worker", *command)

    write(three=3)
    # When a user says so, by make
    said = stack.make("reload").stdout
    # Then the asset is there, in every run
    assert "Loaded anew: my-project, other" in said
    assert values_of_runs(stack, "three") == [3] * 4
    # And after a change, and Dagit's button, no worker has the one of before
    write(three=33)
    answer = stack.graphql(RELOAD, name="my-project")["reloadRepositoryLocation"]
    assert answer["__typename"] == "WorkspaceLocationEntry"
    assert values_of_runs(stack, "three") == [33] * 4
