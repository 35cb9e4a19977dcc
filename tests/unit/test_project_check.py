"""The preflight: what of a project would surprise on the stack, in a sentence with the place and the cure."""

import os
from pathlib import Path

import pytest

from dagster_stack import project as module
from dagster_stack.project import check as check_module
from dagster_stack.project import inspection
from dagster_stack.project.check import Checked, asked_in, check, is_shared
from dagster_stack.project.discovery import Project, discover
from scripts.console import ROOT
from tests.unit.test_project_discovery import DG_DEFS, DG_PROJECT, project

#: A project with one of each.
FAULTS = """\
import os
import socket

import dagster as dg

TOKEN = os.environ.get("HAS_A_DEFAULT", "x")
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except OSError:
    pass


class Duck(dg.ConfigurableResource):
    database: str


@dg.asset
def one() -> int:
    return int(os.environ["ASKED_IN_AN_ASSET"])


@dg.op
def work() -> None:
    import helpers

    helpers.help()


@dg.job(executor_def=dg.multiprocess_executor)
def forks() -> None:
    work()


@dg.schedule(cron_schedule="0 3 * * *", job=forks)
def nightly():
    return {}


defs = dg.Definitions(
    assets=[one],
    jobs=[forks],
    schedules=[nightly],
    resources={
        "io_manager": dg.FilesystemIOManager(base_dir="/tmp/mine"),
        "duck": Duck(database="my.duckdb"),
        "shared": Duck(database="data/my.duckdb"),
        "memory": Duck(database=":memory:"),
        "secret": Duck(database=dg.EnvVar("ASKED_BY_A_RESOURCE")),
    },
)
"""


def checked(folder: Path, monkeypatch: pytest.MonkeyPatch, *path: Path) -> Checked:
    """As in the image: the platform on the path, the project's folder in the environment."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, *path))))
    monkeypatch.setenv(module.VARIABLE, str(folder))
    return check(discover(folder))


def test_what_gave_way_to_the_platforms_versions_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given what the image's build has written
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/replaced.txt").write_text("pyproject.toml asks for dagster==1.12.4: …\n")
    monkeypatch.setattr(check_module, "PLATFORM", tmp_path)

    assert check_module.replaced() == ["pyproject.toml asks for dagster==1.12.4: …"]


def test_each_fault_of_a_project_is_told_with_its_place_and_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(
        tmp_path / "mine",
        {
            "etl/__init__.py": FAULTS,
            "helpers.py": "",
            "etl/defs.yaml": 'attributes:\n  token: "{{ env.ASKED_IN_YAML }}"\n',
        },
    )

    found = checked(folder, monkeypatch)

    (report,) = found.reports
    assert report.error == ""
    assert (report.jobs, report.assets, report.schedules) == (["forks"], ["one"], ["nightly"])
    assert report.executors["multiprocess"] == ["forks"]
    assert report.io_managers == {"io_manager": "FilesystemIOManager"}
    said = "\n".join(found.warnings)
    assert "etl: forks has the executor multiprocess, whose steps do not go to the workers" in said
    assert (
        "io_manager (FilesystemIOManager) keeps its data in /tmp/mine, on the disk of one container" in said
    )
    assert "the resource duck (Duck) keeps its data in my.duckdb" in said
    assert "shared" not in said.replace("all services share", "")
    assert "memory (" not in said
    assert "etl/__init__.py:8 asks 127.0.0.1:9 while the code is loaded" in said
    assert found.missing == ["ASKED_BY_A_RESOURCE", "ASKED_IN_AN_ASSET", "ASKED_IN_YAML"]
    assert (
        "ASKED_IN_AN_ASSET is not set, and etl/__init__.py:19 asks for it: put it into the project's .env"
        in said
    )
    assert found.errors == {}


def test_locations_are_loaded_apart_and_one_that_is_broken_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"dg.toml": 'directory_type = "workspace"\n'}
    codes = {
        "one": "import helpers\n",
        "two": "import gone_from_here\n",
        "three": "import sys\n\nsys.exit(3)\n",
    }
    for name, code in codes.items():
        files["dg.toml"] += f'[[workspace.projects]]\npath = "{name}"\n'
        files[f"{name}/pyproject.toml"] = DG_PROJECT.format(name=f"p_{name}")
        files[f"{name}/src/p_{name}/definitions.py"] = (
            f"{code}import dagster as dg\n\ndefs = dg.Definitions()\n"
        )
        files[f"{name}/src/p_{name}/__init__.py"] = ""
        files[f"{name}/tests/helpers.py"] = ""
        if name != "three":
            files[f"{name}/src/helpers.py"] = f"WHO = '{name}'\n"

    found = checked(project(tmp_path / "space", files), monkeypatch)

    assert found.errors.keys() == {"two", "three"}
    assert found.errors["two"].startswith("ModuleNotFoundError: No module named 'gone_from_here'")
    assert "two/src/p_two/definitions.py:1  import gone_from_here" in found.errors["two"]
    assert "name its package in pyproject.toml or requirements.txt" in found.errors["two"]
    assert "sys.exit(3)" in found.errors["three"]
    assert [each for each in found.warnings if "have a module" in each] == [
        "several locations have a module helpers: one/src/helpers.py (one) and two/src/helpers.py (two). Each imports"
        " its own, since no process here has two locations. A script or a test that has both on its path takes the first"
        " one: give each a name of its own, or put it into the location's package."
    ]


def test_a_missing_library_and_a_module_off_the_path_are_told_with_their_cures(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/shared.py").touch()
    library = ImportError("libgomp.so.1: cannot open shared object file: No such file or directory")

    assert "packages.txt" in inspection.told(library, str(tmp_path))
    off = inspection.told(ModuleNotFoundError("No module named 'shared'", name="shared"), str(tmp_path))
    assert "lib/shared.py" in off
    assert "requirements.txt" not in off


@pytest.fixture
def mine(tmp_path: Path) -> Project:
    return Project(str(tmp_path), (), "")


@pytest.mark.parametrize(
    ("place", "shared"),
    [
        ("data/x.duckdb", True),
        ("./data", True),
        ("/opt/data/x", True),
        ("x.duckdb", False),
        ("/tmp/x", False),
    ],
)
def test_only_what_lies_on_the_volume_is_shared(mine: Project, place: str, shared: bool) -> None:
    assert is_shared(place, mine) is shared


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("a.py", 'from dagster import EnvVar\nx = EnvVar("A")\ny = EnvVar.int("B")\n', ["A", "B"]),
        ("a.py", 'import os\nos.environ["A"] = "1"\nos.environ.get("B")\nos.getenv("C")\n', []),
        ("a.py", 'from os import environ\nx = environ["A"]\n', ["A"]),
        ("a.py", "EnvVar(", []),
        ("a.yaml", "a: '{{ env.A }}'\nb: \"{{ env('B') }}\"\n", ["A", "B"]),
    ],
)
def test_a_variable_is_asked_for_where_code_can_not_do_without_it(
    tmp_path: Path, name: str, text: str, asked: list[str]
) -> None:
    file = tmp_path / name
    file.write_text(text)

    assert [variable for variable, _ in asked_in(file)] == asked


def test_a_python_of_its_own_is_what_no_location_has(tmp_path: Path) -> None:
    workspace = """
    load_from:
      - python_module: a
      - python_module: {module_name: b, executable_path: envs/b/bin/python}
    """
    folder = project(tmp_path / "mine", {"workspace.yaml": workspace, "a.py": "", "b.py": ""})

    (said,) = check_module.other_pythons(discover(folder))

    assert said.startswith("b: mine/workspace.yaml names the Python envs/b/bin/python for it.")


#: A component that asks somebody which tables there are; here its own attributes.
TABLES = """\
import json
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
from dagster.components import DefsStateConfig, DefsStateConfigArgs, ResolvedDefsStateConfig


@dataclass
class Tables(dg.StateBackedComponent, dg.Resolvable):
    names: list[str]
    defs_state: ResolvedDefsStateConfig = field(default_factory=DefsStateConfigArgs.local_filesystem)

    @property
    def defs_state_config(self):
        return DefsStateConfig.from_args(self.defs_state, default_key=f"Tables[{self.names[0]}]")

    def write_state_to_path(self, state_path):
        state_path.write_text(json.dumps(self.names))

    def build_defs_from_state(self, context, state_path):
        names = json.loads(state_path.read_text()) if state_path else []
        return dg.Definitions(assets=[dg.asset(name=name)(lambda: None) for name in names])
"""
#: Root, whom tests may be, can write everywhere.
READ_ONLY = """\
import errno, os

def mkdir(path, *arguments, made=os.mkdir, **options):
    if ".local_defs_state" in str(path):
        raise OSError(errno.EROFS, "Read-only file system", path)
    made(path, *arguments, **options)

os.mkdir = mkdir
"""
KINDS = {
    "fetched": "LEGACY_CODE_SERVER_SNAPSHOTS",
    "local": "LOCAL_FILESYSTEM",
    "brought": "LOCAL_FILESYSTEM",
    "stored": "VERSIONED_STATE_STORAGE",
}


def with_components(folder: Path) -> Path:
    files = {
        "pyproject.toml": DG_PROJECT.format(name="mine"),
        "src/mine/__init__.py": "",
        "src/mine/definitions.py": DG_DEFS,
        "src/mine/components.py": TABLES,
        "src/mine/defs/__init__.py": "",
        "src/mine/defs/.local_defs_state/Tables__brought__/state": '["brought"]',
    }
    for name, kind in KINDS.items():
        files[f"src/mine/defs/{name}/defs.yaml"] = (
            f"type: mine.components.Tables\nattributes:\n  names: [{name}]\n  defs_state: {{management_type: {kind}}}\n"
        )
    return project(folder / "mine", files)


def test_components_without_their_state_are_named_with_what_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dg dev` fetches it at each load."""
    # Given the code as the image has it: it can only be read
    folder = with_components(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(READ_ONLY)

    found = checked(folder, monkeypatch, tmp_path)

    assert found.errors == {}
    (report,) = found.reports
    assert report.assets == ["brought", "fetched"]
    assert report.stateless == {
        "Tables[local]": "LOCAL_FILESYSTEM",
        "Tables[stored]": "VERSIONED_STATE_STORAGE",
    }
    said = "\n".join(found.warnings)
    assert (
        "mine: the component Tables[local] makes no definitions without its state: `dg utils refresh-defs-state`"
        in said
    )
    assert "the component Tables[stored]" in said
