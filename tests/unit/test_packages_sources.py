"""Which files of a project name its Python packages, and what is taken along with them."""

import json
from pathlib import Path

import pytest

from dagster_stack.packages import poetry, sources, wanted
from dagster_stack.packages.errors import Refused
from dagster_stack.packages.sources import Source

PYPROJECT = '[project]\nname = "my-project"\nversion = "1.2"\ndependencies = ["dagster==1.13.27", "polars"]\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "my_project"
    folder.mkdir()
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({"pyproject.toml": PYPROJECT}, Source("pyproject.toml")),
        ({"pyproject.toml": PYPROJECT, "uv.lock": ""}, Source("pyproject.toml", "uv.lock")),
        ({"pyproject.toml": PYPROJECT, "requirements.txt": "x"}, Source("pyproject.toml")),
        ({"pyproject.toml": "[tool.ruff]\n", "requirements.txt": "x"}, Source("requirements.txt")),
        (
            {"requirements.txt": "polars\n", "setup.py": "setup(install_requires=['x'])"},
            Source("requirements.txt"),
        ),
        (
            {
                "pyproject.toml": '[project]\nname = "x"\ndynamic = ["dependencies"]\n'
                '[tool.setuptools.dynamic]\ndependencies = {file = ["needs.txt"]}\n',
                "needs.txt": "polars\n",
                "requirements.txt": "other\n",
            },
            Source("needs.txt"),
        ),
        ({"packages.txt": "ffmpeg\n"}, None),
        ({"setup.py": "from setuptools import setup\nsetup(name='x')\n"}, None),
    ],
)
def test_the_first_file_that_names_packages_counts(
    project: Path, out: Path, files: dict[str, str], source: Source | None
) -> None:
    write(project, files)

    assert sources.collect(project, out) == ([source] if source else [])


@pytest.mark.parametrize(
    "files",
    [
        {
            "setup.py": "from setuptools import setup\nsetup(name='x', install_requires=['polars', 'frame<2'])\n"
        },
        {"setup.cfg": "[options]\ninstall_requires =\n  polars\n  frame<2\n", "setup.py": "setup()"},
    ],
    ids=["setup.py", "setup.cfg"],
)
def test_an_older_projects_setup_is_read_without_running_it(
    project: Path, out: Path, files: dict[str, str]
) -> None:
    write(project, files)

    (found,) = sources.collect(project, out)

    assert (found.file, found.name) == ("requirements.txt", next(iter(files)))
    assert (out / "requirements.txt").read_text().split() == ["polars", "frame<2"]


POETRY = """\
[tool.poetry.dependencies]
python = "^3.11"
dagster = "1.12.4"
polars = "*"
frame = "^1.2.3"
early = "^0.2.3"
tilde = "~1.2"
some = ">=1,<2"
star = "1.*"
extra = {version = "^2", extras = ["fast"], markers = "sys_platform == 'linux'"}
older = {version = "1.0", python = "<3.9"}
never = {version = "1.0", optional = true}
mine = {path = "libs/mine", develop = true}
theirs = {git = "https://example.com/theirs.git", tag = "v1"}

[tool.poetry.group.dev.dependencies]
pytest = "^8"
"""


def test_poetrys_own_table_is_read_with_its_lock(project: Path, out: Path) -> None:
    write(project, {"pyproject.toml": POETRY, "poetry.lock": "", "libs/mine/setup.py": "setup()"})

    assert sources.collect(project, out) == [Source("requirements.txt", "poetry.lock", "pyproject.toml")]

    assert (out / "requirements.txt").read_text().splitlines() == [
        "dagster==1.12.4",
        "polars",
        "frame>=1.2.3,<2",
        "early>=0.2.3,<0.3",
        "tilde>=1.2,<1.3",
        "some>=1,<2",
        "star==1.*",
        "extra[fast]>=2,<3 ; (sys_platform == 'linux')",
        "older==1.0 ; python_full_version < '3.9'",
        "./libs/mine",
        "theirs @ git+https://example.com/theirs.git@v1",
    ]
    assert (out / "libs/mine/setup.py").exists()


@pytest.mark.parametrize(
    ("text", "below"),
    [
        ("^1.2", "2"),
        ("^0", "1"),
        ("^0.0", "0.1"),
        ("^0.0.3", "0.0.4"),
        ("^1.0b2", "2"),
        ("~1", "2"),
        ("~1.2.3", "1.3"),
    ],
)
def test_poetrys_signs_have_an_upper_bound(text: str, below: str) -> None:
    assert poetry.bounds(text)[1] == ("<", below)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"setup.py": "setup(install_requires=open('x').read().split())"},
            "setup.py computes its install_requires",
        ),
        ({"pyproject.toml": "[tool.poetry.dependencies]\npolars = '^1 || ^2'\n"}, "poetry export"),
        ({"pyproject.toml": "[project\n"}, "pyproject.toml of the project can't be read"),
        ({"requirements.txt": "-r ../base.txt\n"}, "base.txt is not in the project's folder"),
        ({"requirements.txt": "./mylib\n"}, "mylib is not in the project's folder"),
        (
            {"pyproject.toml": f'{PYPROJECT}[tool.uv.sources]\nmylib = {{ path = "../mylib" }}\n'},
            "mylib is not in the project's folder",
        ),
        (
            {
                "pyproject.toml": '[project]\nname = "x"\ndependencies = ["dagster-celery-stack"]\n'
                '[tool.uv.sources]\ndagster-celery-stack = { path = "../stack" }\n'
            },
            "the image has it anyway",
        ),
    ],
)
def test_what_can_not_be_read_is_refused_with_the_cure(
    project: Path, out: Path, files: dict[str, str], said: str
) -> None:
    write(project, files)

    with pytest.raises(Refused, match=said):
        sources.collect(project, out)


def test_included_files_and_local_packages_come_along_and_the_project_itself_does_not(
    project: Path, out: Path
) -> None:
    # Given requirements that include others, name a folder, and the project as Binder wants it
    write(
        project,
        {
            "requirements.txt": "-r more/base.txt\n-c limits.txt\n-e .\n./libs/mylib[extra]\npolars\n",
            "more/base.txt": "frame\n",
            "limits.txt": "frame<2\n",
            "libs/mylib/pyproject.toml": "[project]\n",
            "libs/mylib/mylib.py": "",
            "libs/mylib/.venv/x": "",
            "my_project/definitions.py": "",
        },
    )

    sources.collect(project, out)

    # Then all of them are there, at their places, and no code of the project's
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "libs/mylib/mylib.py",
        "libs/mylib/pyproject.toml",
        "limits.txt",
        "more/base.txt",
        "requirements.txt",
    ]
    assert "-e ." not in (out / "requirements.txt").read_text().splitlines()


def test_members_of_a_uv_workspace_come_along(project: Path, out: Path) -> None:
    write(
        project,
        {
            "pyproject.toml": '[tool.uv.workspace]\nmembers = ["libs/*", "apps/*"]\n[tool.dg]\ndirectory_type = "workspace"\n'
            '[[tool.dg.workspace.projects]]\npath = "apps/one"\n',
            "uv.lock": "",
            "libs/mylib/pyproject.toml": '[project]\nname = "mylib"\n',
            "apps/one/pyproject.toml": f"{PYPROJECT}[tool.uv.sources]\nmylib = {{ workspace = true }}\n",
        },
    )

    assert sources.collect(project, out) == [Source("apps/one/pyproject.toml", "uv.lock")]
    assert (out / "libs/mylib/pyproject.toml").exists()


def test_each_project_of_a_dg_workspace_counts(project: Path, out: Path) -> None:
    write(
        project,
        {
            "dg.toml": 'directory_type = "workspace"\n[[workspace.projects]]\npath = "a"\n[[workspace.projects]]\npath = "b"\n',
            "a/pyproject.toml": PYPROJECT,
            "b/requirements.txt": "polars\n",
        },
    )

    assert sources.collect(project, out) == [Source("a/pyproject.toml"), Source("b/requirements.txt")]


def test_each_location_of_a_workspace_file_has_packages_of_its_own(project: Path, out: Path) -> None:
    # Given a folder of several projects, as `dagster dev -w workspace.yaml` serves them
    write(
        project,
        {
            "workspace.yaml": """\
load_from:
  - python_module:
      module_name: one.definitions
      working_directory: "one/src"  # src
  - python_file: {relative_path: two/code/repo.py}
  - python_file:
      relative_path: three.py  # has none
  - python_module: four
""",
            "pyproject.toml": PYPROJECT,
            "one/pyproject.toml": PYPROJECT,
            "one/src/one/definitions.py": "",
            "two/requirements.txt": "polars\n",
            "two/code/repo.py": "",
            "three.py": "",
        },
    )

    assert [each.file for each in sources.collect(project, out)] == [
        "pyproject.toml",
        "one/pyproject.toml",
        "two/requirements.txt",
    ]


# --- what is written for the build ---------------------------------------------------------------------


def test_git_is_there_for_what_comes_from_a_repository(project: Path, out: Path) -> None:
    write(
        project,
        {
            "requirements.txt": "mylib @ git+https://git.example/mylib\n",
            "packages.txt": "ffmpeg\nlibpq-dev\n",
        },
    )

    wanted.write(project, out)

    assert (out / "python/tools.txt").read_text().split() == ["libpq-dev", "python3-dev", "git"]
    assert (out / "debian.txt").read_text().split() == ["ffmpeg", "libpq-dev"]
    assert json.loads((out / "python/sources.json").read_text()) == [
        {"file": "requirements.txt", "lock": None, "by": ""}
    ]


def test_git_of_uvs_sources_is_seen(project: Path, out: Path) -> None:
    write(
        project,
        {
            "pyproject.toml": f'{PYPROJECT}[tool.uv.sources]\nmylib = {{ git = "https://git.example/mylib" }}\n'
        },
    )

    wanted.write(project, out)

    assert (out / "python/tools.txt").read_text().split() == ["git"]


@pytest.mark.parametrize(
    "line",
    [
        "mylib @ git+ssh://git@git.example/mylib",
        "mylib @ ssh://git@git.example/mylib",
        "-e git@git.example:mylib",
    ],
)
def test_a_repository_by_ssh_is_refused_with_the_cure(project: Path, out: Path, line: str) -> None:
    write(project, {"requirements.txt": f"polars\n{line}\n"})

    with pytest.raises(Refused, match=r"no key for ssh.*git\+https.*NETRC"):
        wanted.write(project, out)


def test_an_edit_of_the_code_changes_nothing_of_what_the_packages_depend_on(
    project: Path, tmp_path: Path
) -> None:
    write(
        project,
        {"pyproject.toml": PYPROJECT, "my_project/definitions.py": "a = 1\n", "packages.txt": "ffmpeg\n"},
    )
    wanted.write(project, tmp_path / "before")

    write(project, {"my_project/definitions.py": "a = 2\n"})
    wanted.write(project, tmp_path / "after")

    assert contents(tmp_path / "before") == contents(tmp_path / "after")


def test_a_new_debian_package_changes_nothing_of_what_python_packages_depend_on(
    project: Path, tmp_path: Path
) -> None:
    write(project, {"pyproject.toml": PYPROJECT, "packages.txt": "ffmpeg\n"})
    wanted.write(project, tmp_path / "before")

    write(project, {"packages.txt": "ffmpeg\nlibgomp1\n"})
    wanted.write(project, tmp_path / "after")

    assert contents(tmp_path / "before/python") == contents(tmp_path / "after/python")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_projects_name_and_entry_points_are_known_without_installing_it(
    project: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    write(
        project,
        {
            "pyproject.toml": f'{PYPROJECT}[project.entry-points]\n"dagster_dg_cli.registry_modules" = {{ my_project = "my_project.components" }}\n'
        },
    )

    wanted.write(project, out)
    monkeypatch.syspath_prepend(str(out / "metadata" / wanted.SITE))

    assert metadata.version("my-project") == "1.2"
    assert "my_project.components" in {
        entry.value for entry in metadata.entry_points(group="dagster_dg_cli.registry_modules")
    }
