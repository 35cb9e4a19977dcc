"""A project's packages beside the platform's: what comes in, what wins, what is refused in which words.

Real uv, with packages made here and no network.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dagster_stack.packages import install, locks, pins, wanted
from dagster_stack.packages.errors import Refused
from dagster_stack.packages.sources import Source
from scripts.console import ROOT
from tests.unit.wheels import LOCAL_BACKEND, no_network, source, wheel

UV = ROOT / ".venv/bin/uv"
HASHES = " \\\n    --hash=sha256:" + "a" * 64 + "\n"
#: A build backend that a compiler's absence stops.
NEEDS_A_COMPILER = """\
import sys
def build_wheel(*_):
    print("error: command 'gcc' failed: No such file or directory", file=sys.stderr)
    sys.exit(1)
"""


class Project:
    """A folder with package files, the platform's lock, and an index of wheels."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index, self.prefix = folder / "project", folder / "index", folder / "added"
        self._out, self._lock = folder / "wanted", folder / "stack.lock"
        self.folder.mkdir()
        self.locks("dagster==1.13.27", "frame==1.5", "colours==1.0 ; sys_platform == 'win32'")
        for name, version in (
            ("dagster", "1.13.27"),
            ("dagster", "1.13.30"),
            ("frame", "1.5"),
            ("frame", "2.0"),
        ):
            wheel(self.index, name, version)

    def has(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name.replace("__", ".")).write_text(text)

    def asks(self, *requirements: str, more: str = "") -> None:
        self.has(
            pyproject__toml=f'[project]\nname = "x"\nversion = "0"\ndependencies = {[*requirements]}\n{more}'
        )

    def install(self) -> list[str]:
        """Install as the build does; returns what came in."""
        wanted.write(self.folder, self._out)
        install.install(self._out / "python", self._lock, self.prefix, self._uv)
        return re.findall(r"^[\w.-]+==\S+", (self._out / "python" / install.LOCK).read_text(), re.MULTILINE)

    def locks(self, *entries: str) -> None:
        self._lock.write_text("".join(f"{each}{HASHES}" for each in entries))

    def removed(self) -> list[str]:
        return (self._out / "python" / install.REMOVED).read_text().splitlines()

    def told(self) -> str:
        """What gave way, in words."""
        return (self._out / "python" / wanted.REPLACED).read_text()

    def refused(self) -> str:
        with pytest.raises(Refused) as refused:
            self.install()
        return " ".join(str(refused.value).split())

    def _uv(self, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [UV, *arguments, *install.COMMON, "--python", sys.executable],
            cwd=folder,
            env={**os.environ, **no_network(self.folder.parent, self.index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(install, "KEPT", {"dagster", "frame"})
    return Project(tmp_path)


def test_without_package_files_nothing_is_installed(project: Project) -> None:
    assert project.install() == []


def test_what_the_platform_lacks_comes_in_and_the_platforms_own_does_not(project: Project) -> None:
    # Given the pin that a scaffold writes, and a package that needs one of the platform's
    wheel(project.index, "plot", "3.1", "frame")
    project.asks("dagster==1.13.27", "plot")

    assert project.install() == ["plot==3.1"]

    installed = {path.name for path in project.prefix.rglob("*.py")}
    assert installed == {"plot.py"}
    assert list(project.prefix.rglob("plot*.pyc")), "bytecode is made now: the image is read-only later"


def test_what_the_platform_has_on_other_systems_alone_comes_in(project: Project) -> None:
    # Given a package that the lock has for Windows, and that one of the project's needs everywhere
    wheel(project.index, "colours", "1.1")
    wheel(project.index, "plot", "3.1", "colours")
    project.asks("plot")

    assert project.install() == ["colours==1.1", "plot==3.1"]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        # What `uv add --dev ../dagster-celery-stack` writes
        ("dagster-celery-stack", '{ path = "../dagster-celery-stack" }\n'),
        # The root of a monorepo, whose tools are members too
        ("lint", '{ workspace = true }\n[tool.uv.workspace]\nmembers = ["tools/*"]\n'),
    ],
)
def test_what_is_for_development_alone_may_lie_anywhere(project: Project, name: str, source: str) -> None:
    (project.folder / "tools/lint").mkdir(parents=True)
    (project.folder / "tools/lint/pyproject.toml").write_text('[project]\nname = "lint"\nversion = "1.0"\n')
    wheel(project.index, "plot", "3.1")
    project.asks("plot", more=f'[dependency-groups]\ndev = ["{name}"]\n[tool.uv.sources]\n{name} = {source}')

    assert project.install() == ["plot==3.1"]


def test_the_platforms_version_wins_where_a_newer_one_is_there(project: Project) -> None:
    wheel(project.index, "plot", "3.1", "frame<2")
    wheel(project.index, "plot", "4.0", "frame>=2")
    project.asks("dagster", "frame", "plot")

    assert project.install() == ["plot==3.1"]


def test_another_major_version_of_the_platforms_is_refused_with_both_and_the_cure(project: Project) -> None:
    project.has(requirements__txt="dagster<1  # as it was\nframe>=2\nnone-of-it\n")

    said = project.refused()

    assert "requirements.txt asks for other versions than the platform has" in said
    assert "dagster<1: the platform has dagster 1.13.27" in said
    assert "frame>=2: the platform has frame 1.5" in said
    assert "allow its versions (dagster>=1.13,<2)" in said
    assert "none-of-it" not in said


@pytest.mark.parametrize(
    "pin",
    ["==1.12.4", "== 1.12.*", "~=1.12.0", "<1.13", ">=1.10,<=1.12.4", "<2,==1.12.4", "==1.13.30"],
)
@pytest.mark.parametrize("by", ["pyproject.toml", "requirements.txt", "an included file", "setup.py"])
def test_a_pin_of_the_same_major_version_gives_way_to_the_platforms(
    project: Project, pin: str, by: str
) -> None:
    # Given a pin as templates and `uv add` write it, beside a package that needs the platform's version
    wheel(project.index, "plot", "3.1", "dagster==1.13.27")
    lines = [f"dagster{pin}", "plot"]
    match by:
        case "pyproject.toml":
            project.asks(*lines)
        case "requirements.txt":
            project.has(requirements__txt="\n".join(lines))
        case "an included file":
            project.has(requirements__txt="-r base.txt\n", base__txt="\n".join(lines))
        case "setup.py":
            project.has(setup__py=f"setup(install_requires={lines})")

    assert project.install() == ["plot==3.1"]

    # Then it is told
    assert f"asks for dagster{pin}: the platform's dagster 1.13.27 takes its place" in project.told()


def test_pins_with_hashes_extras_and_markers_give_way_without_them(project: Project) -> None:
    wheel(project.index, "plot", "3.1")
    project.has(
        requirements__txt=f"dagster[x]==1.12.4 ; python_version > '3.0'{HASHES}frame==1.4{HASHES}plot==3.1\n"
    )

    assert project.install() == ["plot==3.1"]
    assert "the platform's dagster 1.13.27, frame 1.5 take their place" in project.told()


def test_what_asks_for_a_newer_version_than_the_platforms_is_refused(project: Project) -> None:
    project.asks("dagster>=1.14")

    assert "dagster>=1.14: the platform has dagster 1.13.27" in project.refused()


@pytest.mark.parametrize(
    ("ours", "pin", "gives_way"),
    [
        ("2.4", "<2", False),
        ("2.4", "<2.1", True),
        ("2.4", "==1.26.4", False),
        ("0.54.0", "==0.34.1", True),
        ("2026.6", "==2025.2", True),
        ("1.5", "!=1.5", False),
        ("1.5", "===1.5-odd", False),
    ],
)
def test_a_pin_gives_way_within_a_major_version(ours: str, pin: str, gives_way: bool) -> None:
    assert pins.gives_way(Requirement(f"x{pin}"), ours) is gives_way


@pytest.mark.parametrize(
    ("pin", "gives_way"), [("==0.28.0", True), ("<1", True), (">=2", False), ("", False)]
)
def test_what_belongs_to_the_platforms_services_gives_way_in_any_version(pin: str, gives_way: bool) -> None:
    # Given what `pip freeze` has because of Dagster's webserver
    assert pins.gives_way(Requirement(f"starlette{pin}"), "1.10.0") is gives_way


def test_dagsters_webserver_under_its_former_name_is_the_platforms(project: Project) -> None:
    # Given `pip freeze` of an older project
    wheel(project.index, "dagster-webserver", "1.13.27")
    wheel(project.index, "dagit", "1.5.9", "dagster-webserver==1.5.9")
    project.locks("dagster==1.13.27", "dagster-webserver==1.13.27")
    project.asks("dagster==1.5.9", "dagit==1.5.9")

    assert project.install() == []
    assert "the platform's dagster 1.13.27, dagster-webserver 1.13.27 take their place" in project.told()


def test_what_moves_has_a_floor(loose: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "FLOORS", {"trust": "2025"})
    wheel(loose.index, "fs", "1.0", "trust<2025")
    loose.asks("fs")

    assert "trust>=2025" in loose.refused()


def test_a_line_for_another_python_or_system_is_no_conflict(project: Project) -> None:
    project.asks("frame>=2; python_version < '3.9'", "frame; sys_platform == 'linux'")

    assert project.install() == []


def test_the_platforms_package_from_elsewhere_is_refused(project: Project) -> None:
    project.asks("dagster @ https://example.com/dagster-1.13.27-py3-none-any.whl")

    assert "the platform has dagster 1.13.27" in project.refused()


def test_a_conflict_further_down_names_both_sides(project: Project) -> None:
    wheel(project.index, "plot", "3.1", "frame>=2")
    project.asks("plot")

    said = project.refused()

    assert "The packages of pyproject.toml can't be had together with the platform's" in said
    assert "plot" in said
    assert "frame>=2" in said
    assert "frame==1.5" in said


# --- what moves ----------------------------------------------------------------------------------------


@pytest.fixture
def loose(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The same, with a package of the platform's that its own code does not import: Dagster needs it."""
    shutil.rmtree(project.index)
    wheel(project.index, "dagster", "1.13.27", "trust>=2024,<2027")
    for version in ("2023.1", "2024.1", "2025.1", "2026.1", "2027.1"):
        wheel(project.index, "trust", version)
    project.locks("dagster==1.13.27", "trust==2026.1")
    # Its environment
    installed = tmp_path / "venv" / wanted.SITE
    with zipfile.ZipFile(project.index / "trust-2026.1-py3-none-any.whl") as archive:
        archive.extractall(installed)
    monkeypatch.setattr(install, "PYTHON", str(tmp_path / "venv/bin/python"))
    return project


@pytest.mark.parametrize("asks", ["trust==2025.1", "snow"])
def test_a_package_that_only_others_need_moves_where_a_project_cant_have_it(
    loose: Project, tmp_path: Path, asks: str
) -> None:
    # Given a pin, or a package with an upper bound, as dbt-snowflake has one for certifi
    wheel(loose.index, "snow", "1.0", "trust<2026")
    loose.asks(asks)

    assert "trust==2025.1" in loose.install()

    # Then that is told, and the platform's goes
    assert "can't have the platform's trust 2026.1: trust 2025.1 came in place" in loose.told()
    site = tmp_path / "venv" / wanted.SITE
    removed = {Path(each) for each in loose.removed()}
    assert {site / "trust.py", site / "trust-2026.1.dist-info"} <= removed


def test_it_moves_no_further_than_those_that_need_it_allow(loose: Project) -> None:
    loose.asks("trust>=2027")

    said = loose.refused()

    assert "trust>=2027" in said
    assert "dagster depend on trust>=2024" in said


def test_a_pin_gives_way_where_those_that_need_the_package_dont_allow_it(loose: Project) -> None:
    # Given `pip freeze` of another day, beside what the project can have
    loose.has(requirements__txt="dagster==1.12.4\ntrust==2023.1\nsnow==1.0\n")
    wheel(loose.index, "snow", "1.0", "trust")

    assert loose.install() == ["snow==1.0"]

    assert "asks for trust==2023.1: the platform's trust 2026.1 takes its place" in loose.told()
    assert loose.removed() == []


def test_it_stays_where_the_project_can_have_it(loose: Project) -> None:
    wheel(loose.index, "snow", "1.0", "trust")
    loose.asks("snow", "trust>=2024")

    assert loose.install() == ["snow==1.0"]
    assert loose.told() == ""
    assert loose.removed() == []


def test_what_the_platforms_own_code_imports_never_moves() -> None:
    # Given those that it uses by their public interface alone
    public = {
        "boto3",
        "botocore",
        "s3transfer",
        "click",
        "jinja2",
        "matplotlib",
        "packaging",
        "python-dotenv",
        "pyyaml",
        "requests",
        "rich",
        "urllib3",
    }
    homes = importlib.metadata.packages_distributions()
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "dagster_stack").rglob("*.py"))
    modules = {
        name for text in texts for name in re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE)
    }

    imported = {locks.canonical(home) for module in modules for home in homes.get(module, [])}

    assert imported - public - {"dagster-celery-stack"} <= install.KEPT


def test_a_package_that_no_index_has_is_named(project: Project) -> None:
    project.asks("pandsa")

    assert "No package index has pandsa, for which pyproject.toml asks" in project.refused()


@pytest.mark.parametrize(
    "output",
    [
        "error: No solution found when resolving dependencies\n  cause: Because plot was not found in the package registry and"
        " you require plot\n\nhint: An index URL (http://x) could not be queried due to a lack of valid authentication"
        " credentials (401 Unauthorized).\n",
        "error: Git operation failed\n  fatal: could not read Username for 'https://git.example': terminal prompts disabled\n",
    ],
)
def test_a_login_that_was_refused_names_the_settings(output: str) -> None:
    said = install.conflict([Source("requirements.txt")], output)

    assert "PIP_EXTRA_INDEX_URL, UV_INDEX_… or NETRC in .env" in said


def test_the_versions_of_uv_lock_are_kept_where_the_platform_has_none(project: Project) -> None:
    # Given a uv.lock with an older version than the newest, and another one of a platform's package
    old = wheel(project.index, "plot", "3.1", "frame")
    wheel(project.index, "plot", "4.0", "frame")
    project.asks("plot")
    project.has(
        uv__lock="".join(
            f'[[package]]\nname = "{name}"\nversion = "{version}"\nsource = {{ registry = "https://index.example/simple" }}\n'
            f'wheels = [{{ url = "https://index.example/x.whl", hash = "sha256:{digest(old)}" }}]\n'
            for name, version in (("plot", "3.1"), ("frame", "2.0"))
        )
    )

    assert project.install() == ["plot==3.1"]


def digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_versions_of_poetrys_lock_are_kept(project: Project) -> None:
    old = wheel(project.index, "plot", "3.1", "frame")
    wheel(project.index, "plot", "3.2", "frame")
    project.has(
        pyproject__toml='[tool.poetry.dependencies]\npython = ">=3.11"\ndagster = "^1.12"\nplot = "^3"\n',
        poetry__lock='[[package]]\nname = "plot"\nversion = "3.1"\n'
        f'files = [{{ file = "plot-3.1-py3-none-any.whl", hash = "sha256:{digest(old)}" }}]\n',
    )

    assert project.install() == ["plot==3.1"]


def test_a_package_that_is_not_what_uv_lock_says_is_not_installed(project: Project) -> None:
    wheel(project.index, "plot", "3.1")
    project.asks("plot")
    project.has(
        uv__lock='[[package]]\nname = "plot"\nversion = "3.1"\nsource = { registry = "https://index.example/simple" }\n'
        f'wheels = [{{ url = "https://index.example/x.whl", hash = "sha256:{"b" * 64}" }}]\n'
    )

    assert "Hash mismatch" in project.refused()


def test_a_package_that_must_be_compiled_says_so_with_the_cure(project: Project) -> None:
    source(project.index, "native", "1.0", NEEDS_A_COMPILER)
    project.asks("native")

    said = project.refused()

    assert "native==1.0 has no wheel for this Python" in said
    assert "gcc is missing" in said
    assert "packages.txt" in said
    assert "build-essential" in said


def test_a_repository_that_cant_be_reached_is_no_matter_of_compilers() -> None:
    output = (
        "error: Failed to download and build `x @ git+https://git.example/x`\n  cause: Git operation failed\n"
        "  fatal: unable to access 'https://git.example/x/': Could not resolve host: git.example\n"
    )

    assert install.not_built(output) == ""
    assert "Could not resolve host: git.example" in install.conflict([Source("requirements.txt")], output)


def test_a_local_package_that_another_one_needs_is_found_from_there(project: Project) -> None:
    # Given a package in the project's folder that names a second one by a path of its own
    for name, needs, more in (
        (
            "apps/mine",
            '["mylib"]',
            '[tool.uv.sources]\nmylib = { path = "../../libs/mylib", editable = true }\n',
        ),
        ("libs/mylib", "[]", ""),
    ):
        folder = project.folder / name
        folder.mkdir(parents=True)
        backend = LOCAL_BACKEND.replace("mylib", folder.name)
        if folder.name == "mine":
            backend = backend.replace("Version: 1.0", "Version: 1.0\\nRequires-Dist: mylib")
        (folder / "backend.py").write_text(backend)
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            f'[project]\nname = "{folder.name}"\nversion = "1.0"\ndependencies = {needs}\n{more}'
        )
    project.asks("mine", more='[tool.uv.sources]\nmine = { path = "apps/mine", editable = true }\n')

    project.install()

    assert list(project.prefix.rglob("mine.py"))
    assert list(project.prefix.rglob("mylib.py"))


@pytest.mark.parametrize("named", ["editable", "a path", "requirements.txt"])
def test_a_local_package_of_the_project_is_installed_and_not_linked(project: Project, named: str) -> None:
    # Given a package in the project's folder
    (project.folder / "mylib").mkdir()
    (project.folder / "mylib/backend.py").write_text(LOCAL_BACKEND)
    (project.folder / "mylib/pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "mylib"\nversion = "1.0"\n'
    )
    if named == "requirements.txt":
        project.has(requirements__txt="-e ./mylib\n")
    else:
        editable = str(named == "editable").lower()
        project.asks(
            "mylib", more=f'[tool.uv.sources]\nmylib = {{ path = "mylib", editable = {editable} }}\n'
        )

    project.install()

    assert list(project.prefix.rglob("mylib.py"))


# --- libraries of Dagster's ----------------------------------------------------------------------------


def test_a_library_of_dagsters_comes_in_the_version_that_belongs(project: Project) -> None:
    wheel(project.index, "dagster-frames", "0.29.27", "dagster==1.13.27")
    wheel(project.index, "dagster-frames", "0.29.30", "dagster==1.13.30")
    project.asks("dagster-frames")

    assert project.install() == ["dagster-frames==0.29.27"]


@pytest.mark.parametrize("pin", ["==0.28.4", "==0.29.20", "~=0.28.0", "<0.29"])
def test_a_library_that_is_pinned_to_another_dagster_comes_in_the_version_that_belongs(
    project: Project, pin: str
) -> None:
    for library, dagster in (("0.28.4", "1.12.4"), ("0.29.20", "1.13.20"), ("0.29.27", "1.13.27")):
        wheel(project.index, "dagster-frames", library, f"dagster=={dagster}")
    project.asks("dagster==1.12.4", f"dagster-frames{pin}")

    assert project.install() == ["dagster-frames==0.29.27"]
    assert "dagster 1.13.27, dagster-frames 0.29.27 take their place" in project.told()


def test_a_library_that_a_lock_has_in_another_series_comes_in_the_version_that_belongs(
    project: Project,
) -> None:
    # Given an early release, which names no Dagster
    early = wheel(project.index, "dagster-frames", "0.1.7", "dagster")
    wheel(project.index, "dagster-frames", "0.29.27", "dagster==1.13.27")
    project.asks("dagster-frames")
    project.has(
        uv__lock='[[package]]\nname = "dagster-frames"\nversion = "0.1.7"\nsource = { registry = "https://index.example/simple" }\n'
        f'wheels = [{{ url = "https://index.example/x.whl", hash = "sha256:{digest(early)}" }}]\n'
    )

    assert project.install() == ["dagster-frames==0.29.27"]


def test_a_tool_that_is_numbered_as_dagster_comes_in_the_version_that_belongs(project: Project) -> None:
    for version in ("1.12.4", "1.13.27"):
        wheel(project.index, "dagster-tool", version, f"dagster=={version}")
    project.asks("dagster-tool==1.12.4")

    assert project.install() == ["dagster-tool==1.13.27"]


def test_a_pin_of_others_that_is_named_like_a_library_holds(project: Project) -> None:
    wheel(project.index, "dagster-evidence", "0.3.1")
    wheel(project.index, "dagster-evidence", "0.4.0")
    project.asks("dagster-evidence==0.3.1")

    assert project.install() == ["dagster-evidence==0.3.1"]
    assert project.told() == ""


def test_a_library_of_another_dagster_is_refused_with_what_stands_against_the_right_one(
    project: Project,
) -> None:
    wheel(project.index, "dagster-frames", "0.11.14")
    wheel(project.index, "dagster-frames", "0.29.27", "dagster==1.13.27", "frame>=2")
    project.asks("dagster-frames")

    said = project.refused()

    assert "dagster-frames 0.11.14 does not belong to Dagster 1.13.27" in said
    assert "frame>=2" in said


def test_a_package_of_others_may_be_named_like_a_library(project: Project) -> None:
    wheel(project.index, "dagster-evidence", "0.3.1", "dagster>=1.9")
    project.asks("dagster-evidence")

    assert project.install() == ["dagster-evidence==0.3.1"]
