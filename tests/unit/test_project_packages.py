"""The project's packages in the embedded mode: an environment beside the platform's, made when something else is asked for.

Real uv, with packages made here and no network.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dagster_stack.packages import debian, errors, locks, network, wanted
from scripts import dev, dev_worker, project, project_packages, venv
from scripts.console import Failure
from tests.unit.wheels import no_network, wheel

#: Of a program that comes with a package, as dbt does.
PROGRAM = {
    "greet-1.0.dist-info/entry_points.txt": "[console_scripts]\ngreet = greet:hello\n",
    "greet.py": "import click, sys\ndef hello(): print('hello', click.__name__, sys.executable)\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder; environments and the index are the test's."""
    made = tmp_path / "shop"
    made.mkdir()
    monkeypatch.setattr(project_packages, "FOLDER", tmp_path / "packages")
    wheel(tmp_path / "index", "greet", "1.0", "click", files=PROGRAM)
    for name, version in (("greet", "0.9"), ("dagster", "0.1")):
        wheel(tmp_path / "index", name, version)
    # Of the platform's, which packages ask for.
    click = locks.versions(project_packages.LOCK.read_text(encoding="utf-8"))["click"]
    wheel(tmp_path / "index", "click", click)
    for name, value in no_network(tmp_path, tmp_path / "index").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PROJECT", str(made))
    return made


def printed(python: Path, code: str) -> str:
    return subprocess.run(
        [python, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_projects_packages_and_programs_are_there_with_the_platforms_and_the_platforms_own_environment_is_left_alone(
    folder: Path,
) -> None:
    (folder / "requirements.txt").write_text("greet\n")

    project_packages.ensure(folder)

    # Then one process has both, and programs see both
    python = project_packages.python(folder)
    assert printed(python, "import dagster, greet; print(dagster.__file__)").startswith(str(venv.FOLDER))
    program = subprocess.run([python.with_name("greet")], capture_output=True, text=True, check=True)
    assert program.stdout.split() == ["hello", "click", str(python)]
    # And of the platform's own packages none came again, into this or that
    assert printed(python, "import click; print(click.__file__)").startswith(str(venv.FOLDER))
    assert subprocess.run([venv.PYTHON, "-c", "import greet"], capture_output=True, check=False).returncode


def test_a_pin_that_gives_way_to_the_platforms_version_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "requirements.txt").write_text("greet\ndagster==1.12.4\n")
    dagster = locks.versions(project_packages.LOCK.read_text(encoding="utf-8"))["dagster"]
    wheel(folder.parent / "index", "dagster", dagster)

    project_packages.ensure(folder)

    told = " ".join(capsys.readouterr().out.split())
    assert (
        f"requirements.txt asks for dagster==1.12.4: the platform's dagster {dagster} takes its place" in told
    )


def test_every_process_of_the_embedded_mode_has_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "HOME", tmp_path / ".dagster")
    (folder / "requirements.txt").write_text("greet\n")
    project_packages.ensure(folder)
    python = str(project_packages.python(project.folder()))

    # Dagit with what it starts, and the worker, are of that Python; commands that code calls are found there first
    assert python in dev.dagster_dev("3000")
    assert python in dev_worker.command()
    assert str(venv.PYTHON) not in [*dev.dagster_dev("3000"), *dev_worker.command()]
    path = dev.environment()["PATH"].split(os.pathsep)
    assert path[:2] == [str(Path(python).parent), str(venv.FOLDER / "bin")]


def test_they_are_made_anew_only_when_something_else_is_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given packages that are there, and code that was edited
    (folder / "requirements.txt").write_text("greet==1.0\n")
    project_packages.ensure(folder)
    (folder / "defs.py").write_text("x = 1\n")
    capsys.readouterr()

    # When the mode starts again, then nothing is installed
    project_packages.ensure(folder)
    assert "packages of shop are those that its files ask for" in capsys.readouterr().out

    # But another version is
    (folder / "requirements.txt").write_text("greet==0.9\n")
    project_packages.ensure(folder)
    assert printed(project_packages.python(folder), "import greet; print(greet.VERSION)") == "0.9"


def test_a_project_that_asks_for_none_any_more_has_the_platforms_python(folder: Path) -> None:
    (folder / "requirements.txt").write_text("greet\n")
    project_packages.ensure(folder)
    (folder / "requirements.txt").unlink()

    project_packages.ensure(folder)

    assert project_packages.python(folder) == venv.PYTHON


def test_an_environment_whose_python_is_gone_is_made_again(folder: Path) -> None:
    # Given an environment that was made of a Python which was since replaced
    (folder / "requirements.txt").write_text("greet\n")
    project_packages.ensure(folder)
    project_packages.python(folder).unlink()

    project_packages.ensure(folder)

    assert printed(project_packages.python(folder), "import greet; print(greet.__name__)") == "greet"


def test_uv_trusts_whom_this_machine_trusts_unless_the_shell_says_otherwise(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given certificates of this machine, and a uv that writes down which ones it gets
    certificates, seen = tmp_path / "ca.crt", tmp_path / "seen"
    certificates.touch()
    uv = tmp_path / "uv"
    uv.write_text(f'#!/bin/sh\necho "$SSL_CERT_FILE" >> {seen}; exit 1\n')
    uv.chmod(0o755)
    monkeypatch.setattr(network, "SYSTEM_CERTIFICATES", certificates)
    monkeypatch.setattr(project_packages, "UV", uv)
    (folder / "requirements.txt").write_text("greet\n")
    wanted.write(folder, tmp_path / "wanted")

    for value in (None, "/mine.crt"):
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        if value:
            monkeypatch.setenv("SSL_CERT_FILE", value)
        with pytest.raises(errors.Refused):
            project_packages.install(tmp_path / "wanted" / "python", tmp_path / "environment")

    assert seen.read_text().split() == [str(certificates), "/mine.crt"]


def test_a_projects_own_entry_points_are_found(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "shop"\n[project.entry-points."dagster_dg_cli.registry_modules"]\nshop = "shop.components"\n'
    )

    project_packages.ensure(folder)

    code = "import importlib.metadata as m; print(m.entry_points(group='dagster_dg_cli.registry_modules')['shop'].value)"
    assert printed(project_packages.python(folder), code) == "shop.components"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            "dagster<1",
            r"asks for other versions than the platform has.*\n.*dagster<1: the platform has dagster",
        ),
        ("nowhere-to-be-had", "No package index has nowhere-to-be-had, for which requirements.txt asks"),
        ("-e ../elsewhere", "elsewhere is not in the project's folder"),
    ],
)
def test_what_cannot_be_had_is_refused_in_the_builds_words_and_tried_again(
    folder: Path, asked: str, words: str
) -> None:
    (folder / "requirements.txt").write_text(f"{asked}\n")

    for _ in range(2):
        with pytest.raises(Failure, match=words):
            project_packages.ensure(folder)

    assert project_packages.python(folder) == venv.PYTHON


def test_logins_of_indexes_reach_uv_and_are_not_shown(
    folder: Path, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an index that does not answer, in the stack's .env
    Path(os.environ["UV_CONFIG_FILE"]).unlink()
    monkeypatch.delenv("UV_CONFIG_FILE")
    env.write_text("PIP_INDEX_URL=http://me:hush-hush@127.0.0.1:9/simple\n")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    (folder / "requirements.txt").write_text("greet\n")

    with pytest.raises(Failure, match=r"127\.0\.0\.1:9") as failure:
        project_packages.ensure(folder)

    assert "hush" not in str(failure.value)


def test_debian_packages_that_this_machine_lacks_are_named_and_not_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a machine of Debian with one of three packages, another one removed but for its configuration
    query = tmp_path / "bin" / "dpkg-query"
    query.parent.mkdir()
    query.write_text("#!/bin/sh\nprintf 'libgomp1 installed\\nffmpeg config-files\\n'\n")
    query.chmod(0o755)
    monkeypatch.setenv("PATH", f"{query.parent}{os.pathsep}{os.environ['PATH']}")
    (folder / debian.FILE).write_text("libgomp1\nffmpeg=7.1\nlibgl1\n")

    project_packages.ensure(folder)

    said = capsys.readouterr().out
    assert "packages.txt names what this machine lacks: sudo apt-get install ffmpeg=7.1 libgl1\n" in said


def test_it_is_said_where_files_are_when_the_stack_has_them_elsewhere(
    folder: Path, env: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev, "folder", lambda: folder)
    for same in ("", f"{folder}/data"):
        env.write_text(f"DATA_DIR={same}\n")
        dev.name_other_data()
        assert not capsys.readouterr().out

    env.write_text("DATA_DIR=/srv/my-data\n")
    dev.name_other_data()

    assert (
        f"DATA_DIR=/srv/my-data is the stack's: here files under data/ are in {folder}/data"
        in capsys.readouterr().out
    )


def test_variables_that_are_not_set_are_named_before_the_code_is_loaded(folder: Path) -> None:
    # Given code that can't be loaded without a variable
    (folder / "defs.py").write_text(
        "import os, dagster as dg\nTOKEN = os.environ['NOT_SET_HERE']\ndefs = dg.Definitions()\n"
    )

    result = subprocess.run(
        [sys.executable, "-m", "dagster_stack.project.check", "unset"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "NOT_SET_HERE is not set, and defs.py:2 asks for it" in result.stdout, result.stderr
