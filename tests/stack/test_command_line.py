"""`make run`, `make demo` and `make workers`, where there is no terminal."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.console import ROOT
from tests.stack import runs
from tests.stack.conftest import Command
from tests.stack.stack import Stack
from tests.waiting import wait_until


def write(folder: Path, config: object) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def test_make_run_shows_progress_and_ends_with_0(stack: Stack, parallel_run: Command) -> None:
    # Given a job that succeeds
    # When it was run by make, without a terminal
    # Then its lines tell of the launch, the progress and the end, without control characters
    assert parallel_run.returncode == 0, parallel_run.stderr
    assert f"{stack.dagit_url}/runs/{parallel_run.run_id}" in parallel_run.stdout
    assert "50/50" in parallel_run.stdout
    assert "\x1b" not in parallel_run.stdout
    assert "\r" not in parallel_run.stdout


def test_make_run_hands_on_the_tags(stack: Stack, parallel_run: Command) -> None:
    # Given tags on the command line
    # When the run is looked at in Dagit
    tags = {tag["key"]: tag["value"] for tag in stack.run(parallel_run.run_id)["tags"]}

    # Then it has them
    assert (tags["team"], tags["ticket"]) == ("data", "42")


def test_make_run_prints_the_error_of_a_failed_step(stack: Stack, tmp_path: Path) -> None:
    # Given a config with which a step fails
    take = {"key": "test-make/absent.csv", "etag": "0" * 32}
    config = write(tmp_path, {"ops": {"take_file": {"config": take}}})

    # When the job is run with it
    result = stack.make("run", "JOB=inbox_flights", f"CONFIG={config}", check=False)

    # Then it ends with 1, and the step and its error are printed
    assert result.returncode != 0
    assert "Error 1" in result.stderr
    assert "take_file" in result.stdout
    assert "test-make/absent.csv: the object is gone" in result.stdout
    assert stack.run(runs.run_id_in(result.stdout))["status"] == "FAILURE"


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        (["JOB=paralel_pipeline"], None, "Did you mean 'parallel_pipeline'?"),
        (["JOB=queues"], {"ops": {"no_such_step": {}}}, "no_such_step"),
        (["JOB=queues"], ["a", "list"], "must be a mapping"),
    ],
)
def test_make_run_ends_with_2_when_nothing_can_be_launched(
    stack: Stack, tmp_path: Path, arguments: list[str], content: object, message: str
) -> None:
    # Given a job's name that is wrong, or a config that does not fit
    if content is not None:
        arguments = [*arguments, f"CONFIG={write(tmp_path, content)}"]

    # When it is run
    result = stack.make("run", *arguments, check=False)

    # Then no run is launched, and the message says what is wrong
    assert result.returncode != 0
    assert "Error 2" in result.stderr
    assert message in result.stdout + result.stderr
    assert "/runs/" not in result.stdout


def test_make_run_says_what_is_missing_without_a_job_or_its_file(stack: Stack) -> None:
    # Given a command line without a job, and one with a file that is not there
    # When they are run
    no_job = stack.make("run", check=False)
    no_file = stack.make("run", "JOB=queues", "CONFIG=/nowhere/config.yaml", check=False)

    # Then each says what to do
    assert no_job.returncode != 0
    assert "make run JOB=" in no_job.stdout + no_job.stderr
    assert no_file.returncode != 0
    assert "/nowhere/config.yaml" in no_file.stdout + no_file.stderr


def test_make_demo_prints_totals_and_the_reports_address(stack: Stack, flights_run: Command) -> None:
    # Given the demo, which was run without a terminal
    # When its output is read
    # Then it ended well and names the totals, the report and the run's page
    assert flights_run.returncode == 0, flights_run.stdout + flights_run.stderr
    for number in ("336,776", *(f"{count:,}" for count in totals(stack, flights_run))):
        assert number in flights_run.stdout
    assert stack.metadata(flights_run.run_id, "report")["report"] in flights_run.stdout
    assert f"{stack.dagit_url}/runs/{flights_run.run_id}" in flights_run.stdout


def totals(stack: Stack, command: Command) -> list[int]:
    metadata = stack.metadata(command.run_id, "report")
    return [metadata[name] for name in ("used", "cancelled", "rejected")]


def test_make_workers_shows_each_worker_with_its_queue(stack: Stack) -> None:
    # Given two workers and one for heavy steps
    # When they are listed
    lines = stack.make("workers").stdout.splitlines()

    # Then each is there by name, beside its queue
    for service, name, queue in (("worker", "dagster", "dagster"), ("worker-heavy", "heavy", "heavy")):
        for entry in stack.containers(service):
            host = stack.inspect(entry.name)["Config"]["Hostname"]
            (line,) = [line for line in lines if f"{name}@{host}" in line]
            assert queue in line.split()[1]
            assert "idle" in line


def test_an_interrupt_leaves_the_run_going_and_says_so(stack: Stack, tmp_path: Path) -> None:
    # Given `make run` with a run that takes a while
    naps = {f"heavy_{number}": {"config": {"seconds": 5 if number == 1 else 0}} for number in range(1, 5)}
    config = write(tmp_path, {"ops": naps})
    log = tmp_path / "output"
    with log.open("w") as output:
        command = subprocess.Popen(
            ["make", "run", "JOB=queues", f"CONFIG={config}"], cwd=ROOT, env=stack.environment,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(log.read_text, 120, "the run's page named", until=lambda text: "/runs/" in text)
        run_id = runs.run_id_in(log.read_text())
        runs.wait_for_event(stack, run_id, "RUN_START")

        # When it is interrupted as by Ctrl-C
        os.killpg(command.pid, signal.SIGINT)
        command.wait(timeout=60)
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)

    # Then the command ends and says that the run goes on, and the run succeeds
    assert command.returncode != 0
    assert "Left the run going" in log.read_text()
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
