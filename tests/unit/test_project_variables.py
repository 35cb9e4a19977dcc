"""The project's own variables: read as `dg dev` reads them, refused where they would change the stack."""

import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dagster_stack.project import variables as project_variables
from dagster_stack.project.discovery import Project
from dagster_stack.project.variables import OF_STORE, VARIABLE, names, objection, packed, unpacked
from scripts import dev, env_file, project, variables
from scripts.console import ROOT, Failure
from tests import compose_files

HARD = (
    "\ufeffBOM=first\r\n"
    "# a comment\r\n"
    "export EXPORTED=1\r\n"
    "DOLLAR=pa$$word$HOME\r\n"
    "SINGLE='a $DOLLAR ${DOLLAR} # no comment'\r\n"
    'DOUBLE="line 1\nline 2 \\"quoted\\" ${EXPORTED}"\r\n'
    "SPACED = a b  # a comment\r\n"
    "HASH=a#b\r\n"
    "EMPTY=\r\n"
    "NOTHING\r\n"
    "ABSENT=${NOBODY_SETS_IT:-default}/x\r\n"
    "'quoted key'=1\r\n"
    "UNICODE=grün\r\n"
    "a line that sets nothing\r\n"
    "KEY='-----BEGIN-----\nabc+/=\n-----END-----'\r\n"
    "LAST=1"
)


def in_a_process(texts: list[str], **environment: str) -> dict[str, str]:
    """What a command that the program became finds in its environment."""
    command = [sys.executable, "-P", "-m", "dagster_stack.project.variables", "env", "-0"]
    result = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), VARIABLE: packed(texts), **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    entries = (line.partition("=")[::2] for line in result.stdout.split("\0") if line)
    return {name: value for name, value in entries if name not in ("PATH", "PYTHONPATH", "LC_CTYPE")}


# --- as `dg dev` ---------------------------------------------------------------------------------------


def test_hard_values_mean_what_they_mean_with_dg_dev(tmp_path: Path) -> None:
    # Given a file with all that parsers differ in, as Dagster reads it
    file = tmp_path / ".env"
    file.write_text(HARD, newline="")
    as_dg_dev = {name: value for name, value in dotenv_values(file).items() if value is not None}

    # When it travels to a container
    found = in_a_process([HARD])

    # Then a command there has the same
    assert found == as_dg_dev
    assert found["DOLLAR"] == "pa$$word$HOME"
    assert found["BOM"] == "first"
    assert found["DOUBLE"] == 'line 1\nline 2 "quoted" 1'


def test_the_last_file_wins_and_may_name_what_stands_in_the_first() -> None:
    found = in_a_process(["A=1\nB=1\n", "B=${A}2\n"])

    assert found == {"A": "1", "B": "12"}


def test_their_text_is_not_handed_on_to_commands() -> None:
    assert VARIABLE not in in_a_process(["A=1"])


def test_a_command_without_them_is_started_all_the_same() -> None:
    assert in_a_process([], **{VARIABLE: ""}) == {}


def test_what_nobody_has_packed_is_said() -> None:
    with pytest.raises(ValueError, match=r"."):
        unpacked("no base64")


# --- names ---------------------------------------------------------------------------------------------


def by_dotenv(text: str) -> list[str]:
    return [
        binding.key
        for binding in parse_stream(StringIO(text))
        if binding.key is not None and not binding.error
    ]


def test_names_are_found_without_the_values_parser() -> None:
    found, broken = names(HARD)

    assert found == by_dotenv(HARD)
    assert broken == [15]


@settings(max_examples=2000, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["A", "B1", "export ", "=", "'", '"', "\\", "#", " ", "\t", "\n", "\r\n", "$", "x y", "ü"]
        )
    )
)
@example(["A", "=", " ", "'"])
def test_the_host_sees_the_names_that_python_dotenv_sees(parts: list[str]) -> None:
    text = "".join(parts)

    assert names(text)[0] == by_dotenv(text)


@pytest.mark.parametrize(
    "name",
    ["DAGSTER_HOME", "PYTHONPATH", "CELERY_BROKER_URL", "DAGSTER_POSTGRES_PASSWORD", "DAGSTER_STACK_S3_BUCKET", "AWS_PROFILE", "RUNNERS", "NO_PROXY"],
)  # fmt: skip
def test_a_name_that_would_change_the_stack_has_an_objection_with_a_cure(name: str) -> None:
    assert objection(name)


@pytest.mark.parametrize(
    "name", ["MY_TOKEN", "AWS_ACCESS_KEY_ID", "DATABASE_URL", "POSTGRES_PASSWORD", "DAGSTER_CLOUD_TOKEN"]
)
def test_any_other_is_the_projects(name: str) -> None:
    assert objection(name) is None


def test_whatever_compose_sets_for_user_code_is_either_refused_or_meant_to_be_replaced() -> None:
    set_by_compose = {
        *compose_files.shape("worker")["environment"], *compose_files.services()["cli"]["environment"]
    }  # fmt: skip

    replaceable = {*OF_STORE, "AWS_EC2_METADATA_DISABLED"}
    assert {name for name in set_by_compose if not objection(name)} == replaceable


# --- a project's own bucket ----------------------------------------------------------------------------

STACKS = {
    "AWS_ENDPOINT_URL_S3": "http://minio:9000",
    "AWS_ACCESS_KEY_ID": "stack",
    "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_DEFAULT_REGION": "r",
}


def test_a_project_with_keys_of_its_own_gets_none_of_the_stacks_address_or_keys() -> None:
    found = in_a_process(["AWS_ACCESS_KEY_ID=mine\nAWS_SECRET_ACCESS_KEY=m\n"], **STACKS)

    assert found == {"AWS_ACCESS_KEY_ID": "mine", "AWS_SECRET_ACCESS_KEY": "m"}


def test_one_that_sets_a_region_alone_keeps_them() -> None:
    found = in_a_process(["AWS_DEFAULT_REGION=eu\n"], **STACKS)

    assert found == {**STACKS, "AWS_DEFAULT_REGION": "eu"}


# --- on the host ---------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, env: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a project beside the stack's own file of passwords."""
    root = tmp_path / "checkout"
    (root / "pipelines").mkdir(parents=True)
    for module in (variables, dev, project):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(variables, "BUILD_FOLDER", root / ".build")
    env.write_text("COMPOSE_PROJECT_NAME=second\n")
    return root


def test_the_projects_file_and_then_the_one_of_secrets_are_handed_on(checkout: Path, env: Path) -> None:
    (checkout / "pipelines/.env").write_text("A=$x\n")
    (checkout / "mine.env").write_text("B='2'\n")
    env.write_text("COMPOSE_PROJECT_NAME=second\nSECRETS_FILE=mine.env\n")

    variables.record()

    # Then Compose finds them in a file that nobody else reads
    file = checkout / ".build/variables/second.env"
    assert file.stat().st_mode & 0o777 == 0o600
    value = env_file.read(file)[VARIABLE]
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", value)
    assert unpacked(value) == (["A=$x\n", "B='2'\n"], {})


def test_each_project_of_a_workspace_has_its_own_file_as_with_dg_dev(
    checkout: Path, env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a workspace of two projects, each with a file, and one for all
    workspace = checkout / "workspace"
    for name in ("one", "two"):
        package = workspace / name / f"p_{name}"
        package.mkdir(parents=True)
        (package / "definitions.py").touch()
        (workspace / name / "pyproject.toml").write_text(f'[tool.dg.project]\nroot_module = "p_{name}"\n')
        (workspace / name / ".env").write_text(f"WHOSE={name}\n")
    (workspace / "dg.toml").write_text(
        '[[workspace.projects]]\npath = "one"\n[[workspace.projects]]\npath = "two"\n'
    )
    (workspace / ".env").write_text("SHARED=1\n")
    env.write_text("COMPOSE_PROJECT_NAME=second\nPROJECT=workspace\n")

    # When they travel to a container
    variables.record()
    monkeypatch.setattr(project_variables, "FOLDER", tmp_path / "there")
    monkeypatch.setenv(VARIABLE, env_file.read(checkout / ".build/variables/second.env")[VARIABLE])
    monkeypatch.setenv(project_variables.OF_LOCATIONS, "{}")
    monkeypatch.setenv("SHARED", "0")
    project_variables.apply()

    # Then all have the shared ones, and Dagster's loader gives each location its own
    assert os.environ["SHARED"] == "1"
    assert "WHOSE" not in os.environ
    assert [project_variables.of_location(name) for name in ("one", "two", "none")] == [
        {"WHOSE": "one"},
        {"WHOSE": "two"},
        {},
    ]
    assert (tmp_path / "there/0/.env").stat().st_mode & 0o777 == 0o600


def test_without_any_there_is_nothing_to_hand_on_and_what_was_is_gone(checkout: Path) -> None:
    (checkout / "pipelines/.env").write_text("A=1\n")
    variables.record()
    (checkout / "pipelines/.env").unlink()

    variables.record()

    assert list((checkout / ".build/variables").iterdir()) == []


def test_a_value_is_never_printed(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "pipelines/.env").write_text("A=sesame\nno variable\n")

    variables.record()

    printed = capsys.readouterr().out
    assert "1 variables for user code, from pipelines/.env" in printed
    assert "line 2 sets no variable" in printed
    assert "sesame" not in printed


def test_a_name_of_the_stacks_is_refused_with_its_cure_and_without_its_value(checkout: Path) -> None:
    (checkout / "pipelines/.env").write_text("A=1\nexport PYTHONPATH=sesame\nCELERY_BROKER_URL=sesame\n")

    with pytest.raises(
        Failure, match=r"(?s)PYTHONPATH: say in pyproject.toml.*CELERY_BROKER_URL: "
    ) as failure:
        variables.record()

    assert "sesame" not in str(failure.value)


@pytest.mark.parametrize("text", ["SECRETS_FILE=.env", "PROJECT=.\nSECRETS_FILE=./.env"])
def test_the_stacks_own_passwords_are_no_secrets_of_a_project(checkout: Path, env: Path, text: str) -> None:
    (checkout / ".env").write_text("POSTGRES_PASSWORD=sesame\n")
    env.write_text(f"COMPOSE_PROJECT_NAME=second\n{text}\n")

    with pytest.raises(Failure, match="has the stack's own passwords"):
        variables.record()


def test_a_project_at_the_checkouts_root_gets_nothing_of_the_stacks_file(checkout: Path, env: Path) -> None:
    (checkout / ".env").write_text("POSTGRES_PASSWORD=sesame\n")
    env.write_text("COMPOSE_PROJECT_NAME=second\nPROJECT=.\n")

    assert variables.sources() == []


def test_a_file_that_is_not_there_is_named(checkout: Path, env: Path) -> None:
    env.write_text("SECRETS_FILE=none.env\n")

    with pytest.raises(Failure, match=r"SECRETS_FILE=none.env in \.env is no file"):
        variables.record()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"A=\xff", "can't be read"), (b"A=\0", "NUL"), (b"A=" + b"x" * 100_000, "keep large values in files")],
)
def test_what_no_container_could_take_is_said(checkout: Path, content: bytes, message: str) -> None:
    (checkout / "pipelines/.env").write_bytes(content)

    with pytest.raises(Failure, match=message):
        variables.record()


# --- the embedded mode ---------------------------------------------------------------------------------


def test_the_embedded_mode_gets_them_and_not_the_stacks(
    checkout: Path, env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "HOME", tmp_path / ".dagster")
    monkeypatch.setattr(dev, "found", lambda: Project(str(checkout), (), ""))
    (checkout / ".env").write_text("POSTGRES_PASSWORD=sesame\n")
    (checkout / "pipelines/.env").write_text("A=1\n")
    (checkout / "mine.env").write_text("A=2\n")
    env.write_text("SECRETS_FILE=mine.env\n")

    # Then its processes run where Dagster finds the project's file and not the stack's
    assert dev.folder() == checkout / "pipelines"
    # And the project's own wins, as Dagster reads that once more
    assert unpacked(dev.environment()[VARIABLE]) == (["A=2\n", "A=1\n"], {})


def test_the_longest_variable_is_one_that_linux_takes() -> None:
    assert len(f"{VARIABLE}=") + project_variables.MOST_BYTES < 128 * 1024
