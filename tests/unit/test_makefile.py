"""The Makefile: its help, and what each target says when it can't do its work. Real `make`, no engine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.console import ROOT
from tests.unit.machines import FakeDocker, Machine, calls

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")

#: The public interface (design.md), as far as it is built.
TARGETS = {
    "up",
    "down",
    "demo",
    "run",
    "scale",
    "status",
    "workers",
    "ps",
    "logs",
    "shell",
    "dev",
    "test",
    "clean",
}


@pytest.fixture
def project(machine: Machine) -> Machine:
    """A copy of the project with what its Makefile needs, and a docker that is not there yet."""
    machine.has("make", "bash", "awk", "env")
    (machine.programs / "python3").symlink_to(os.path.realpath(sys.executable))
    # Debian's own docker must not be found either.
    (machine.root / "sitecustomize.py").write_text("from scripts import engine\nengine.SYSTEM_FOLDERS = []\n")
    return machine


def make(project: Machine, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(project.programs / "make"), *arguments],
        cwd=project.root,
        env={
            "PATH": str(project.programs),
            "PYTHONPATH": str(project.root),
            "INSTALL_DOCKER": "no",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("help",)])
def test_make_alone_is_a_list_of_every_target_with_its_purpose(
    project: Machine, arguments: tuple[str, ...]
) -> None:
    result = make(project, *arguments)

    listed = dict(re.findall(r"^  make (\S+) +(.+)$", result.stdout, re.MULTILINE))
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert result.returncode == 0
    assert set(listed) >= TARGETS
    # Nothing is a target that the list does not explain, and nothing a file name could shadow
    assert set(listed) == set(phony)


@pytest.mark.parametrize(
    "target", ["ps", "down", "status", "workers", "clean", "run JOB=flights", "scale N=4"]
)
def test_before_the_first_up_a_target_says_so(project: Machine, target: str) -> None:
    # Given a machine with an engine, and a fresh clone
    FakeDocker().install(project.programs)

    # When somebody starts with something else than `make up`
    result = make(project, *target.split())

    # Then that is said, with what to do, and nothing was written
    assert result.returncode != 0
    assert "There is no .env yet, so no stack was started from here. `make up` writes it" in result.stderr
    assert "Traceback" not in result.stderr
    assert not project.env.exists()


@pytest.mark.parametrize("target", ["ps", "clean", "run JOB=flights", "scale N=4", "up"])
def test_without_docker_a_target_says_so(project: Machine, target: str) -> None:
    project.env.write_text("WORKERS=2\nBASE_IMAGE=x\n")

    result = make(project, *target.split())

    assert result.returncode != 0
    assert "There is no Docker engine on this machine." in result.stderr
    assert "make dev" in result.stderr
    assert "Traceback" not in result.stderr
    assert "WORKERS=2" in project.env.read_text()


def test_run_without_a_job_asks_for_one(project: Machine) -> None:
    result = make(project, "run")

    assert result.returncode != 0
    assert "Which job? For example: make run JOB=parallel_pipeline" in result.stderr


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("missing.yaml", "No such file or directory"),
        ("scripts", "Is a directory"),
        ("binary", "no text in UTF-8"),
    ],
)
def test_run_with_a_config_that_cant_be_read_says_why(project: Machine, config: str, reason: str) -> None:
    FakeDocker().install(project.programs)
    project.env.touch()
    (project.root / "binary").write_bytes(b"\xff\xfe\x00")

    result = make(project, "run", "JOB=flights", f"CONFIG={config}")

    assert result.returncode != 0
    assert f"CONFIG={config}" in result.stderr
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


def test_run_hands_job_tags_and_config_to_the_command_line_in_the_container(project: Machine) -> None:
    # Given a run config on the host, which the container can't see
    FakeDocker().install(project.programs)
    project.env.touch()
    (project.root / "run.yaml").write_text("ops: {}\n")

    # When a job is run with it
    result = make(project, "run", "JOB=flights", "TAGS=a=1,b=2", "CONFIG=run.yaml")

    # Then Compose gets all of it, the config by its content's variable
    assert result.returncode == 0
    call = calls(project.programs)[-1]
    assert "run --rm --no-deps --no-TTY --name dagster-celery-stack-cli-" in call
    assert call.endswith(
        "--env RUN_CONFIG cli python -m dagster_stack run flights --tags a=1,b=2 --env-config"
    )


@pytest.mark.parametrize(("arguments", "end"), [([], "status"), (["JSON=1"], "status --json")])
def test_status_is_for_people_unless_json_is_asked_for(
    project: Machine, arguments: list[str], end: str
) -> None:
    FakeDocker().install(project.programs)
    project.env.touch()

    assert make(project, "status", *arguments).returncode == 0

    assert calls(project.programs)[-1].endswith(f"cli python -m dagster_stack {end}")


@pytest.mark.parametrize("number", ["abc", "-1", "1.5", ""])
def test_scale_refuses_what_is_no_number_of_workers(project: Machine, number: str) -> None:
    FakeDocker().install(project.programs)
    project.env.write_text("WORKERS=2\n")

    result = make(project, "scale", f"N={number}")

    assert result.returncode != 0
    assert f"How many workers? make scale N=8 (a whole number; found {number or 'nothing'})" in result.stderr
    assert project.env.read_text() == "WORKERS=2\n"


def test_scale_while_the_stack_is_down_is_remembered_for_the_next_up(project: Machine) -> None:
    FakeDocker().install(project.programs)
    project.env.write_text("WORKERS=2\nBASE_IMAGE=x\n")

    result = make(project, "scale", "N=8")

    assert result.returncode == 0
    assert "the stack is down: `make up` will start 8 workers" in result.stdout
    assert "WORKERS=8" in project.env.read_text()
    assert not any(" up " in call for call in calls(project.programs))


def test_what_env_says_is_not_overridden_by_variables_that_nobody_set(project: Machine) -> None:
    """make hands empty variables on when a Makefile exports what is not defined; Compose lets them win over .env."""
    project.env.write_text("DAGIT_PORT=3100\n")
    docker = FakeDocker().install(project.programs)
    docker.write_text(
        docker.read_text().replace("#!/bin/bash\n", f"#!/bin/bash\nexport -p > {project.root}/seen\n")
    )

    assert make(project, "ps").returncode == 0

    seen = (project.root / "seen").read_text()
    assert not re.search(
        r'="?"?$', "\n".join(line for line in seen.splitlines() if "_PORT" in line or " JOB" in line)
    )
    assert "DAGIT_PORT" not in seen


def test_a_variable_on_the_command_line_wins_over_env(project: Machine) -> None:
    project.env.write_text("DAGIT_PORT=3100\n")
    docker = FakeDocker().install(project.programs)
    docker.write_text(
        docker.read_text().replace("#!/bin/bash\n", f"#!/bin/bash\nexport -p > {project.root}/seen\n")
    )

    make(project, "ps", "DAGIT_PORT=3200")

    assert 'DAGIT_PORT="3200"' in (project.root / "seen").read_text()


def test_what_another_project_left_in_the_shell_changes_nothing(project: Machine) -> None:
    project.env.write_text("COMPOSE_PROJECT_NAME=mine\n")
    docker = FakeDocker().install(project.programs)
    docker.write_text(
        docker.read_text().replace("#!/bin/bash\n", f"#!/bin/bash\nexport -p > {project.root}/seen\n")
    )
    left = {"PYTHONSAFEPATH": "1", "DOCKER_BUILDKIT": "0", "COMPOSE_IGNORE_ORPHANS": "true",
            "COMPOSE_ENV_FILES": "/elsewhere/.env", "COMPOSE_DISABLE_ENV_FILE": "1"}  # fmt: skip

    result = make(project, "ps", **left)

    assert result.returncode == 0, result.stderr
    seen = (project.root / "seen").read_text()
    assert not [name for name in left if name in seen]


def test_a_python_that_is_not_there_is_an_error_of_make(project: Machine, tmp_path: Path) -> None:
    result = make(project, "ps", f"PYTHON={tmp_path}/python9")

    assert result.returncode != 0
    assert "python9" in result.stderr


def test_clean_without_a_terminal_removes_this_project_with_its_volumes(project: Machine) -> None:
    # Given a stack whose `make up` ended before it had a base image
    FakeDocker().install(project.programs)
    project.env.write_text("COMPOSE_PROJECT_NAME=second\nBASE_IMAGE=\n")

    result = make(project, "clean")

    assert result.returncode == 0
    down = "--profile * down --volumes --remove-orphans"
    assert any(call.endswith(down) for call in calls(project.programs))
    assert "Removing second" in result.stdout
    assert project.env.exists()
