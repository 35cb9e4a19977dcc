"""Files that several workers see, and a project's own variables: on the running stack."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import env_file
from tests.stack import runs
from tests.stack.ad_hoc import AdHoc
from tests.stack.stack import Stack

#: Who executes user code.
CODE = ("dagit", "daemon", "runner", "worker", "worker-heavy")
OTHERS = ("postgres", "rabbitmq", "minio")
TOKEN = "sesame-of-a-test-0123456789"
CHANGED = "changed-of-a-test-0123456789"


@pytest.fixture(scope="module")
def secrets(stack: Stack, own_code_afterwards: None) -> Iterator[Path]:
    """A file of variables for user code, in all services."""
    file = stack.env.with_name("secrets.env")
    file.write_text(f"export FILES_TOKEN={TOKEN} # a comment\nFILES_HARD='a$b \"c\" #d'\n")
    env_file.set_value("SECRETS_FILE", str(file), stack.env)
    print(stack.make("up").stdout)
    yield file
    env_file.set_value("SECRETS_FILE", "", stack.env)


@pytest.fixture(scope="module")
def jobs(stack: Stack, secrets: Path) -> AdHoc:
    jobs = AdHoc(stack, "files_jobs")
    jobs.install()
    return jobs


def ids(stack: Stack) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in stack.containers():
        found.setdefault(entry.service, []).append(entry.id)
    return found


# --- files ---------------------------------------------------------------------------------------------


def test_what_one_worker_writes_under_data_another_one_reads(stack: Stack, jobs: AdHoc) -> None:
    run_id = jobs.run("files")

    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    assert len({each.worker for each in runs.executions(stack, run_id)}) == 2


@pytest.mark.parametrize("service", CODE)
def test_every_service_with_user_code_may_write_there_and_nowhere_else_in_the_project(
    stack: Stack, service: str
) -> None:
    touch = "touch data/.test && rm data/.test"
    assert stack.exec(service, "sh", "-c", touch).returncode == 0
    for elsewhere in ("x", "pipelines/x", "/opt/dagster/x"):
        answer = stack.exec(service, "touch", elsewhere, check=False)
        assert "Read-only file system" in answer.stderr


def test_a_write_elsewhere_fails_at_once_and_says_where_to_write(stack: Stack, jobs: AdHoc) -> None:
    began = time.monotonic()
    run_id = jobs.run("elsewhere")

    assert time.monotonic() - began < 60
    texts = stack.failure_texts(run_id)
    for step in ("write_elsewhere", "open_duckdb_elsewhere"):
        (text,) = (text for text in texts if text.startswith(f"{step}: "))
        assert "Read-only file system" in text
        assert "Write below data/" in text


def test_a_duckdb_file_has_one_writer_across_containers(stack: Stack, jobs: AdHoc) -> None:
    run_id = jobs.run("one_writer")

    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)


# --- variables -----------------------------------------------------------------------------------------


def test_a_step_has_the_projects_variables_and_not_the_brokers_password(stack: Stack, jobs: AdHoc) -> None:
    run_id = jobs.run("variables")

    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    seen = stack.metadata(run_id, "see")
    assert seen["token"] == str(len(TOKEN))
    assert seen["hard"] == "True"
    assert seen["broker"] == "False"


@pytest.mark.parametrize("service", CODE)
@pytest.mark.usefixtures("secrets")
def test_all_processes_that_load_code_have_them(stack: Stack, service: str) -> None:
    # Given the environments of all that runs there, but for the first process, which only starts the others
    look = "for p in /proc/[0-9]*; do [ $p = /proc/1 ] || tr '\\0' '\\n' < $p/environ 2>/dev/null; done"
    environments = stack.exec(service, "sh", "-c", look).stdout
    assert f"FILES_TOKEN={TOKEN}\n" in environments


@pytest.mark.usefixtures("secrets")
def test_the_command_line_has_them_and_other_services_do_not(stack: Stack) -> None:
    command = ["run", "--rm", "--no-deps", "-T", "cli", "printenv", "FILES_TOKEN"]
    assert stack.compose(*command).stdout.strip() == TOKEN
    for service in OTHERS:
        inspected = json.dumps(stack.inspect(stack.container(service)))
        assert "DAGSTER_STACK_VARIABLES" not in inspected


@pytest.mark.usefixtures("jobs")
def test_no_image_and_no_log_holds_a_value(stack: Stack) -> None:
    image = stack.inspect(stack.container("worker"))["Image"]
    made = (
        stack.docker("image", "inspect", image).stdout + stack.docker("history", "--no-trunc", image).stdout
    )
    assert TOKEN not in made
    assert "VARIABLES=" not in made
    assert TOKEN not in stack.compose("logs", "--no-color").stdout


def test_a_change_makes_exactly_the_services_anew_that_use_them(stack: Stack, secrets: Path) -> None:
    before = ids(stack)
    secrets.write_text(f"FILES_TOKEN={CHANGED}\n")

    stack.make("up")

    after = ids(stack)
    replaced = {service for service, found in after.items() if not set(found) & set(before.get(service, []))}
    assert replaced == set(CODE)
    command = ["run", "--rm", "--no-deps", "-T", "cli", "printenv", "FILES_TOKEN"]
    assert stack.compose(*command).stdout.strip() == CHANGED


def test_a_name_of_the_stacks_stops_make_up_before_anything_is_changed(stack: Stack, secrets: Path) -> None:
    before, text = ids(stack), secrets.read_text()
    secrets.write_text(f"{text}CELERY_BROKER_URL=amqp://elsewhere\n")
    try:
        result = stack.make("up", check=False)
    finally:
        secrets.write_text(text)

    assert result.returncode
    assert "CELERY_BROKER_URL: " in result.stderr
    assert "amqp://elsewhere" not in result.stdout + result.stderr
    assert ids(stack) == before


# --- a folder of this host, last of all as the stack keeps it ---------------------------------------------


@pytest.fixture
def host_folder(stack: Stack, jobs: AdHoc, tmp_path: Path) -> Iterator[Path]:
    """A folder of this host in the volume's place, which is not there yet: from the next `make up` on the volume again."""
    folder = tmp_path / "data of a project"
    env_file.set_value("DATA_DIR", str(folder), stack.env)
    try:
        stack.make("up")
        jobs.install()
        yield folder
    finally:
        env_file.set_value("DATA_DIR", "", stack.env)


def test_data_may_be_a_folder_of_the_host_which_both_sides_see(
    stack: Stack, jobs: AdHoc, host_folder: Path
) -> None:
    # Given a file that somebody lays there on the host
    (host_folder / "given").write_text("given")

    # When steps on two workers use it, and one leaves a file
    run_id = jobs.run("files")
    stack.exec("worker", "touch", "data/made")

    # Then each side has what the other one made, and the folder is the user's of the containers
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    assert stack.exec("worker-heavy", "cat", "data/given").stdout == "given"
    assert {each.stat().st_uid for each in (host_folder, host_folder / "made")} == {10000}
