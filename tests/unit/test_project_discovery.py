"""Finding a project's code locations: as Dagster's tools find them, and in words where there is nothing to find."""

from pathlib import Path

import pytest

from dagster_stack.errors import ProjectError
from dagster_stack.project.discovery import Location, Project, discover

DEFS = "import dagster as dg\n\ndefs = dg.Definitions()\n"
#: What `create-dagster` writes.
DG_DEFS = """\
from pathlib import Path

from dagster import definitions, load_from_defs_folder


@definitions
def defs():
    return load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
DG_PROJECT = """\
[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "{name}"
"""


def project(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    folder.mkdir(exist_ok=True)
    return folder


def location(found: Project) -> Location:
    assert len(found.locations) == 1, found
    return found.locations[0]


# --- dg ----------------------------------------------------------------------------------------------


def test_a_scaffolded_project_is_served_from_src_under_its_folders_name(tmp_path: Path) -> None:
    folder = project(
        tmp_path / "my-project",
        {
            "pyproject.toml": DG_PROJECT.format(name="my_project"),
            "src/my_project/__init__.py": "",
            "src/my_project/definitions.py": DG_DEFS,
            "src/my_project/defs/__init__.py": "",
        },
    )

    found = discover(folder)

    path = (str(folder / "src"), str(folder))
    assert location(found) == Location("my-project", "python_module", "my_project.definitions", path)
    assert found.root == str(folder)


@pytest.mark.parametrize("base", ["", "src/", "python/"])
def test_a_dg_project_says_its_module_and_its_name(tmp_path: Path, base: str) -> None:
    hatch = '[tool.hatch.build.targets.wheel]\npackages = ["python/pkg"]\n'
    settings = 'code_location_target_module = "pkg.served"\ncode_location_name = "sales"\n'
    folder = project(
        tmp_path / "x",
        {"pyproject.toml": DG_PROJECT.format(name="pkg") + settings + hatch, f"{base}pkg/served.py": DEFS},
    )

    found = location(discover(folder))

    assert (found.name, found.target, found.path[0]) == ("sales", "pkg.served", str(folder / base))


def test_dg_toml_goes_before_pyproject(tmp_path: Path) -> None:
    folder = project(
        tmp_path / "x",
        {
            "dg.toml": 'directory_type = "project"\n[project]\nroot_module = "new"\n',
            "pyproject.toml": DG_PROJECT.format(name="old"),
            "new/definitions.py": DEFS,
            "old/definitions.py": DEFS,
        },
    )

    assert location(discover(folder)).target == "new.definitions"


def test_a_project_of_an_older_dg_loads_its_defs_folder(tmp_path: Path) -> None:
    folder = project(
        tmp_path / "x",
        {"pyproject.toml": DG_PROJECT.format(name="pkg") + "autoload_defs = true\n", "src/pkg/defs/a.py": ""},
    )

    found = location(discover(folder))

    assert (found.kind, found.target) == ("autoload_defs_module", "pkg.defs")


def workspace(tmp_path: Path, *paths: str) -> Path:
    projects = "".join(f'[[workspace.projects]]\npath = "{path}"\n' for path in paths)
    files = {"dg.toml": f'directory_type = "workspace"\n{projects}'}
    for name in ("one", "two"):
        files |= {
            f"projects/{name}/pyproject.toml": DG_PROJECT.format(name=name),
            f"projects/{name}/src/{name}/definitions.py": DG_DEFS,
        }
    return project(tmp_path / "space", files)


def test_each_project_of_a_workspace_is_a_location_with_imports_of_its_own(tmp_path: Path) -> None:
    folder = workspace(tmp_path, "projects/one", "projects/two")

    found = discover(folder)

    assert found.root == str(folder)
    assert [(each.name, each.target, each.path) for each in found.locations] == [
        (
            name,
            f"{name}.definitions",
            (str(folder / "projects" / name / "src"), str(folder / "projects" / name)),
        )
        for name in ("one", "two")
    ]
    assert Project.from_dict(found.as_dict()) == found
    assert found.workspace()["load_from"][1] == {
        "python_module": {
            "module_name": "two.definitions",
            "working_directory": str(folder / "projects/two/src"),
            "location_name": "two",
        }
    }


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ((), r"space/dg\.toml has no project: add \[\[workspace\.projects\]\]"),
        (
            ("projects/three",),
            r"names the project projects/three, and there is no such folder: correct its path",
        ),
        (("../other",), r"\.\./other, outside of space: let PROJECT name a folder that holds both"),
        (
            ("projects",),
            r"names projects, which is no dg project: it needs \[tool\.dg\.project\] with root_module",
        ),
        (("projects/one", "projects/one"), r"the name 'one' to two code locations: .*code_location_name"),
    ],
)
def test_a_workspace_that_is_wrong_is_told_in_words(
    tmp_path: Path, paths: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ProjectError, match=said):
        discover(workspace(tmp_path, *paths))


# --- [tool.dagster] and workspace.yaml -------------------------------------------------------------------


@pytest.mark.parametrize("base", ["", "src/"])
def test_tool_dagster_names_the_module(tmp_path: Path, base: str) -> None:
    text = '[tool.dagster]\nmodule_name = "quick.definitions"\ncode_location_name = "quickstart"\n'
    folder = project(tmp_path / "x", {"pyproject.toml": text, f"{base}quick/definitions.py": DEFS})

    found = location(discover(folder))

    assert (found.name, found.target) == ("quickstart", "quick.definitions")
    assert found.path[0] == str(folder / base)


def test_tool_dagster_may_name_several(tmp_path: Path) -> None:
    modules = 'modules = [{type = "module", name = "a"}, {type = "module", name = "b"}]\n'
    folder = project(
        tmp_path / "x", {"pyproject.toml": f"[tool.dagster]\n{modules}", "a.py": DEFS, "b.py": DEFS}
    )

    assert [each.name for each in discover(folder).locations] == ["a", "b"]


def test_a_workspace_file_is_read_as_dagster_reads_it(tmp_path: Path) -> None:
    text = """\
load_from:
  - python_file: {relative_path: hello.py, working_directory: lib}
  - python_module: pkg
  - python_package: {package_name: pkg, attribute: defs, location_name: again}
  - python_file: etl/run.py
  - autoload_defs_module: {module_name: pkg.defs, working_directory: etl}
"""
    files = {
        "workspace.yaml": text,
        "hello.py": DEFS,
        "etl/run.py": DEFS,
        "src/pkg/__init__.py": DEFS,
        "lib/u.py": "",
    }
    folder = project(tmp_path / "x", files)

    found = discover(folder).locations

    assert [(each.name, each.kind, each.path[0]) for each in found] == [
        ("hello.py", "python_file", str(folder / "lib")),
        ("pkg", "python_module", str(folder / "src")),
        ("again", "python_package", str(folder / "src")),
        ("run.py", "python_file", str(folder)),
        ("pkg.defs", "autoload_defs_module", str(folder / "etl")),
    ]
    assert found[3].target == str(folder / "etl/run.py")
    assert found[2].entry()["python_package"]["attribute"] == "defs"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("load_from: [", "not valid YAML"),
        ("load_from: []", "names no code location: it needs `load_from:`"),
        ("- a", "names no code location"),
        (
            "load_from: [{grpc_server: {host: a, port: 1}}]",
            "grpc_server: workers can't load .* Name the code itself",
        ),
        ("load_from: [{python_modul: a}]", "each is one of python_file"),
        ("load_from: [{python_file: none.py}]", r"names the file none\.py, which is not there"),
        ("load_from: [{python_file: /home/me/a.py}]", "outside of x: use a path relative to that file"),
        (
            "load_from: [{python_module: {module_name: {env: A}}}]",
            "module_name of python_module must be a text",
        ),
        ("load_from: [{python_module: {attribute: a}}]", "python_module needs module_name"),
    ],
)
def test_a_workspace_file_that_is_wrong_is_told_in_words(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ProjectError, match=said):
        discover(project(tmp_path / "x", {"workspace.yaml": text}))


# --- without configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "module"),
    [
        # As they are today, with what they may be in place of a Definitions.
        ({"__init__.py": "from pipelines.all import *\n", "all.py": DEFS}, "pipelines"),
        ({"__init__.py": DEFS, "definitions.py": DEFS, "jobs.py": DEFS}, "pipelines"),
        ({"__init__.py": "", "definitions.py": DEFS}, "pipelines.definitions"),
    ],
)
def test_a_folder_that_is_a_package_is_imported_by_its_name(
    tmp_path: Path, files: dict[str, str], module: str
) -> None:
    folder = project(tmp_path / "pipelines", files)

    found = discover(folder)

    assert found.root == str(tmp_path)
    assert location(found) == Location("pipelines", "python_module", module, (str(tmp_path),))


@pytest.mark.parametrize(
    ("files", "module", "base"),
    [
        ({"etl/__init__.py": DEFS, "tests/test_a.py": DEFS}, "etl", ""),
        ({"src/etl/__init__.py": "", "src/etl/definitions.py": DG_DEFS}, "etl.definitions", "src"),
        ({"hello.py": DEFS, "helpers.py": ""}, "hello", ""),
        ({"etl/__init__.py": "from .all import defs\n", "etl/all.py": DEFS}, "etl", ""),
        ({"etl/a/b.py": DEFS}, "etl.a.b", ""),
        ({"etl/definitions.py": DEFS, "etl/other.py": DEFS}, "etl.definitions", ""),
        ({"repository.py": "@dagster.repository\ndef mine():\n    return []\n"}, "repository", ""),
        ({"src/__init__.py": "", "src/main.py": "from a import b\n\ndefs: b.D = b.make()\n"}, "src.main", ""),
        ({"env/pyvenv.cfg": "", "env/lib/other.py": DEFS, ".venv/b.py": DEFS, "mine.py": DEFS}, "mine", ""),
        ({"mine.py": DEFS, "broken.py": "def ("}, "mine", ""),
    ],
)
def test_without_configuration_the_one_module_with_definitions_is_served(
    tmp_path: Path, files: dict[str, str], module: str, base: str
) -> None:
    folder = project(tmp_path / "x", files)

    found = location(discover(folder))

    assert (found.target, found.path[0]) == (module, str(folder / base))
    assert found.name == module.split(".", maxsplit=1)[0]


def test_several_candidates_are_named_with_how_to_choose(tmp_path: Path) -> None:
    folder = project(tmp_path / "x", {"a/definitions.py": DEFS, "b.py": DEFS})

    with pytest.raises(
        ProjectError, match=r"several modules .*: a\.definitions, b\. Say which .*\n\n\[tool\.dagster\]"
    ):
        discover(folder)


BARE = "from dagster import asset\n\n\n@asset(group_name='a')\ndef one():\n    return 1\n"


@pytest.mark.parametrize(
    "files",
    [
        {"hello-dagster.py": DEFS},
        {"hello.py": BARE},
        {"hello.py": "import dagster as dg\n\n\n@dg.job\ndef etl():\n    pass\n"},
        # The one with a Definitions is served before others
        {"hello-dagster.py": DEFS, "assets.py": BARE},
        {"hello.py": BARE, "test_hello.py": BARE, "tool.py": "def asset():\n    pass\n"},
    ],
)
def test_the_one_file_that_dagster_dev_takes_is_served(tmp_path: Path, files: dict[str, str]) -> None:
    folder = project(tmp_path / "x", files)

    name = next(iter(files))
    assert location(discover(folder)) == Location(name, "python_file", str(folder / name), (str(folder),))


def test_a_project_further_below_is_named(tmp_path: Path) -> None:
    # Given a repository with dbt's project beside Dagster's
    files = {
        "dbt_project/dbt_project.yml": "",
        "orchestration/setup.py": "",
        "orchestration/etl/definitions.py": DEFS,
    }

    with pytest.raises(ProjectError, match=r"let PROJECT in \.env name that, the folder x/orchestration\."):
        discover(project(tmp_path / "x", files))


def test_several_such_files_are_named_with_how_to_choose(tmp_path: Path) -> None:
    folder = project(tmp_path / "x", {"a-1.py": DEFS, "b-2.py": DEFS})

    with pytest.raises(ProjectError, match="several files") as refused:
        discover(folder)

    assert str(refused.value).endswith("load_from:\n- python_file: a-1.py\n- python_file: b-2.py")


def test_nothing_found_names_what_was_looked_for_and_the_projects_below(tmp_path: Path) -> None:
    files = {
        "README.md": "",
        "one/pyproject.toml": DG_PROJECT.format(name="one"),
        "one/one/definitions.py": "",
    }

    with pytest.raises(ProjectError, match=r"no \[tool\.dg\].*PROJECT in \.env .*did you mean x/one\?"):
        discover(project(tmp_path / "x", files))


# --- what real folders hold ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my project", "v1.2", "größe", "a:b"])
def test_a_folders_name_may_be_any(tmp_path: Path, name: str) -> None:
    folder = project(tmp_path / name, {"etl/__init__.py": DEFS})

    assert discover(folder).root == str(folder)


def test_a_package_must_have_a_name_that_python_can_import(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"my-code is a package .* rename the folder"):
        discover(project(tmp_path / "my-code", {"__init__.py": DEFS}))


@pytest.mark.parametrize(
    "text", ["\r\n".join(DG_PROJECT.format(name="p").splitlines()), "\ufeff" + DG_PROJECT.format(name="p")]
)
def test_line_ends_and_marks_of_windows_are_no_matter(tmp_path: Path, text: str) -> None:
    folder = project(tmp_path / "x", {"p/definitions.py": DEFS})
    (folder / "pyproject.toml").write_bytes(text.encode())

    assert location(discover(folder)).target == "p.definitions"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool.dg\na = 1", r"x/pyproject\.toml is not valid TOML: .*line 1"),
        ("[tool]\ndg = 3", "dg must be a table"),
        ('[tool.dg]\ndirectory_type = "projekt"', "says directory_type = 'projekt': it may be \"project\""),
        ('[tool.dg]\ndirectory_type = "project"', r"needs root_module"),
        ("[tool.dg.project]\nroot_module = 3", "root_module must be a text"),
        (DG_PROJECT.format(name="my-pkg"), "names the module 'my-pkg.definitions', which is no name"),
        (DG_PROJECT.format(name="gone"), r"module gone\.definitions, and there is no x/gone/definitions\.py"),
        ('[tool.dagster]\nmodule_name = "gone"', r"module gone, and there is no x/gone\.py"),
    ],
)
def test_a_configuration_that_is_wrong_is_told_in_words(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ProjectError, match=said):
        discover(project(tmp_path / "x", {"pyproject.toml": text}))


def test_a_pyproject_that_is_about_other_tools_is_passed_over(tmp_path: Path) -> None:
    text = "[tool.ruff]\nline-length = 100\n[tool.dg.cli]\nverbose = true\n"
    folder = project(tmp_path / "x", {"pyproject.toml": text, "etl.py": DEFS})

    assert location(discover(folder)).target == "etl"


def test_what_is_no_folder_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"PROJECT names .*/gone, which is no folder"):
        discover(tmp_path / "gone")
