"""The copy of a project that goes into the image: its files, and no secret, environment or cache."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import project
from scripts.console import Failure

DEFS = "import dagster as dg\n\ndefs = dg.Definitions()\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project's folder, that PROJECT names, and a build folder."""
    source = tmp_path / "work" / "mine"
    source.mkdir(parents=True)
    monkeypatch.setenv("PROJECT", str(source))
    monkeypatch.setenv("STACK_ENV_FILE", str(tmp_path / "none.env"))
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "a-stack")
    monkeypatch.setattr(project, "BUILD_FOLDER", tmp_path / "build")
    write(source, {"etl/__init__.py": DEFS})
    yield source
    project.is_made.cache_clear()


def write(source: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)


def git(place: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    subprocess.run(["git", *identity, *arguments], cwd=place, check=True, capture_output=True)


def staged() -> set[str]:
    """The names of what is in the copy, links among them."""
    target = project.stage()
    return {
        str(each.relative_to(target)) for each in target.rglob("*") if each.is_symlink() or not each.is_dir()
    }


IGNORED = {".gitignore": "big/\n*.duckdb\n", "big/raw.csv": "1", "my.duckdb": "1"}


@pytest.mark.parametrize("where", ["repository", "no repository"])
def test_what_components_have_fetched_is_taken_along_though_dagster_lets_git_ignore_it(
    folder: Path, where: str
) -> None:
    # Given what `dg dev` leaves: the state of two components, and of one that is a copy of a dbt project beside it
    state = "etl/defs/.local_defs_state"
    write(folder, {
        f"{state}/.gitignore": "*\n*/\n.*\n",
        f"{state}/Tables__a__/state": "[]",
        f"{state}/DbtProjectComponent__shop__/state": "",
        f"{state}/DbtProjectComponent__shop__/project/dbt_project.yml": "name: shop\n",
    })  # fmt: skip
    if where == "repository":
        git(folder, "init")

    assert {name for name in staged() if name.startswith(state)} == {
        f"{state}/.gitignore",
        f"{state}/Tables__a__/state",
    }


@pytest.mark.parametrize("where", ["repository", "no repository", "no git", "ignored by the one around it"])
def test_what_git_ignores_stays_out_wherever_git_can_be_asked(
    folder: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, IGNORED)
    if where == "repository":
        git(folder, "init")
    elif where == "no git":
        monkeypatch.setattr(shutil, "which", lambda _: None)
    elif where != "no repository":
        git(folder.parent, "init")
        write(folder.parent, {".gitignore": "mine/\n"})

    expected = {".gitignore", "etl/__init__.py"} | (
        {"big/raw.csv", "my.duckdb"} if where == "no git" else set()
    )
    assert staged() == expected


def test_what_is_committed_is_code_although_it_is_ignored_and_what_was_deleted_is_not(folder: Path) -> None:
    git(folder, "init")
    write(folder, {"kept.csv": "1", "gone.py": "1", ".gitignore": "*.csv\n"})
    git(folder, "add", "--force", ".")
    (folder / "gone.py").unlink()
    write(folder, {"new.py": "", "other.csv": "1"})

    assert staged() == {".gitignore", "etl/__init__.py", "kept.csv", "new.py"}


def test_a_hooks_repository_is_not_the_projects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(folder.parent / "elsewhere"))

    assert staged() == {"etl/__init__.py"}


def test_the_files_of_submodules_and_of_other_repositories_below_are_among_them(
    folder: Path, tmp_path: Path
) -> None:
    library = tmp_path / "library"
    write(library, {"lib.py": "", ".gitignore": "made/\n", "made/x": ""})
    git(library, "init")
    git(library, "add", ".")
    git(library, "commit", "-m", "a")
    git(folder, "init")
    git(folder, "submodule", "add", str(library), "vendored")
    shutil.copytree(library, folder / "cloned")

    names = {name for name in staged() if not name.startswith(".git")}
    assert names == {
        "etl/__init__.py", "vendored/lib.py", "vendored/.gitignore", "cloned/lib.py", "cloned/.gitignore"
    }  # fmt: skip


def test_secrets_environments_and_caches_stay_out_without_any_gitignore(folder: Path) -> None:
    write(
        folder,
        {
            ".env": "TOKEN=1",
            "etl/.env.local": "TOKEN=1",
            ".venv/bin/python": "",
            "python3/pyvenv.cfg": "",
            "python3/lib/x.py": "",
            "etl/__pycache__/a.pyc": "",
            "dbt/dbt_project.yml": "",
            "dbt/target/manifest.json": "",
            "dbt/target/run/a.sql": "",
            "etl/target/code.py": "",
            "mine.egg-info/PKG-INFO": "",
        },
    )

    # But for what of dbt's output Dagster reads.
    assert staged() == {
        "etl/__init__.py", "dbt/dbt_project.yml", "dbt/target/manifest.json", "etl/target/code.py"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("data\n", {"etl/a.md", "etl/b/c.md", "etl/data/y"}),
        ("**/data\r\n# etl\r\n\r\n", {"etl/a.md", "etl/b/c.md"}),
        ("**/*.md\n!etl/b/*.md\n", {"etl/b/c.md", "data/x", "etl/data/y"}),
        ("*\n!etl\n", {"etl/a.md", "etl/b/c.md", "etl/data/y"}),
        ("/etl/?.md\netl/[ab]/\n", {"data/x", "etl/data/y"}),
    ],
)
def test_a_projects_dockerignore_counts_as_docker_reads_it(folder: Path, text: str, kept: set[str]) -> None:
    write(folder, {"data/x": "", "etl/a.md": "", "etl/b/c.md": "", "etl/data/y": ""})
    (folder / ".dockerignore").write_bytes(text.encode())

    assert {name for name in staged() if name.endswith((".md", "x", "y")) and "init" not in name} == kept


def test_links_lead_to_the_same_files_and_those_that_leave_the_folder_become_what_they_name(
    folder: Path, tmp_path: Path
) -> None:
    write(folder, {"etl/util.py": "A = 1\n"})
    write(tmp_path, {"shared/lib/util.py": "U = 1\n", "shared/.env": "TOKEN=1", "one.py": "O = 1\n"})
    links = {
        "common": "../../shared",
        "one.py": str(tmp_path / "one.py"),
        "etl/again.py": "util.py",
        "absolute.py": str(folder / "etl" / "util.py"),
        "nowhere": "/opt/data/x",
        "loop": "..",
    }
    for name, leads_to in links.items():
        (folder / name).symlink_to(leads_to)

    names = staged()

    target = project.context() / "mine"
    assert names == {"etl/__init__.py", "etl/util.py", "common/lib/util.py", *links} - {"common", "loop"}
    assert not (target / "common").is_symlink()
    assert (target / "one.py").read_text() == "O = 1\n"
    assert not (target / "one.py").is_symlink()
    assert os.readlink(target / "absolute.py") == "etl/util.py"
    assert os.readlink(target / "nowhere") == "/opt/data/x"
    assert (target / "etl" / "again.py").read_text() == "A = 1\n"


def test_a_link_that_leads_to_itself_is_a_link_there_too(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    (folder / "nowhere").symlink_to("gone")

    assert {"loop", "nowhere"} <= staged()


def test_a_second_time_only_what_changed_is_touched(folder: Path) -> None:
    write(folder, {"a.py": "1", "b/c.py": "1", "gone/d.py": "1", "kind": "file"})
    staged()
    target = project.context() / "mine"
    before = (target / "a.py").stat()
    write(project.context(), {"former/x.py": ""})
    shutil.rmtree(folder / "gone")
    # The same size and the same time, as from an archive.
    times = (folder / "b" / "c.py").stat()
    write(folder, {"b/c.py": "2"})
    os.utime(folder / "b" / "c.py", ns=(times.st_atime_ns, times.st_mtime_ns))
    (folder / "kind").unlink()
    write(folder, {"kind/of.py": ""})

    assert staged() == {"etl/__init__.py", "a.py", "b/c.py", "kind/of.py"}
    assert (target / "b" / "c.py").read_text() == "2"
    assert (target / "a.py").stat() == before
    assert [each.name for each in project.context().iterdir()] == ["mine"]
    assert not (target / "gone").exists()


def test_a_folder_of_another_user_is_read(folder: Path) -> None:
    write(folder, IGNORED)
    git(folder, "init")
    if os.getuid():
        pytest.skip("only root can give a folder away")
    for each in (folder, *folder.rglob("*")):
        os.chown(each, 12345, 12345)

    assert staged() == {".gitignore", "etl/__init__.py"}


def test_a_repositorys_own_commands_are_not_run(folder: Path) -> None:
    git(folder, "init")
    mark = folder.parent / "mark"
    git(folder, "config", "core.fsmonitor", f"touch {mark}; false")

    staged()

    assert not mark.exists()


@pytest.mark.parametrize("name", ["my project", "v1.2-größe"])
def test_a_folders_name_is_kept(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = folder.rename(folder.with_name(name))
    monkeypatch.setenv("PROJECT", str(other))

    assert project.stage() == project.context() / name


def test_a_link_as_the_folder_has_its_own_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = folder.with_name("pipelines")
    link.symlink_to("mine")
    monkeypatch.setenv("PROJECT", str(link))

    assert project.stage() == project.context() / "pipelines"
    assert (project.context() / "pipelines" / "etl" / "__init__.py").read_text() == DEFS


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("gone", "is not there. Name the folder that `dg dev` is called in"),
        ("README.md", "is a file. Name the folder"),
        ("/", "that is the whole disk"),
    ],
)
def test_what_is_no_project_is_told_in_words(monkeypatch: pytest.MonkeyPatch, named: str, said: str) -> None:
    monkeypatch.setenv("PROJECT", named)

    with pytest.raises(Failure, match=said):
        project.stage()


def test_without_code_nothing_is_built(folder: Path) -> None:
    shutil.rmtree(folder / "etl")

    with pytest.raises(Failure, match="No Dagster code was found in mine"):
        project.stage()


@pytest.mark.parametrize("setting", ["", "output", "DATA_DIR"])
def test_data_that_git_ignores_is_told_with_the_setting_that_gives_it_to_the_stack(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    # Given the usual: the data is there, and in .gitignore
    write(
        folder, {".gitignore": "*.csv\n", "data/a/raw.csv": "1", "output/x.csv": "1", "data/kept.json": "1"}
    )
    monkeypatch.setenv("DATA_PATHS", "output" if setting == "output" else "")
    monkeypatch.setenv("DATA_DIR", "/srv/data" if setting == "DATA_DIR" else "")

    project.stage()

    told = " ".join(capsys.readouterr().out.split())
    assert (f"DATA_DIR={folder}/data in .env gives the stack this very folder" in told) is (
        setting != "DATA_DIR"
    )
    assert ("data/a/raw.csv and what else git ignores in data/ is not on the volume" in told) is (
        setting != "DATA_DIR"
    )
    assert ("output/x.csv and what else git ignores in output/" in told) is (setting == "output")
    assert "kept.json" not in told


def test_a_large_project_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(project, "LARGE", 1 << 20)
    (folder / "raw.csv").write_bytes(bytes(2 << 20))

    project.stage()

    assert "2 MB of" in capsys.readouterr().out
