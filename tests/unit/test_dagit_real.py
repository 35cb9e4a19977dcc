"""The command line against a real dagster-webserver (SQLite, no other service), some 15 s for all."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from dagster_stack.cli import main
from dagster_stack.errors import ExitCode

#: Seconds until the webserver answers: it loads Dagster twice, on busy cores.
START_LIMIT_SECS = 90.0

CODE = """
from dagster import *

@op(out=DynamicOut())
def fan():
    for key in "xyz":
        yield DynamicOutput(key, mapping_key=key)

@op(config_schema={"times": int})
def work(context, text):
    return text * context.op_config["times"]

@op
def report(texts):
    return Output("".join(texts), metadata={
        "rows": 336776, "used": 336000, "cancelled": 700, "rejected": 76,
        "report": MetadataValue.url("http://s3/report.html"),
    })

@job(config={"ops": {"work": {"config": {"times": 2}}}})
def flights():
    report(fan().map(work).collect())

@job
def configured():
    report(fan().map(work).collect())

@op
def read():
    try:
        {}["month"]
    except KeyError as error:
        raise ValueError("a row without month") from error

@op
def use(text): ...

@job
def failing():
    use(read())

defs = Definitions(jobs=[flights, configured, failing], executor=in_process_executor)
"""


@pytest.fixture(scope="module")
def dagit_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a webserver with the code above, which launches runs at once."""
    home = tmp_path_factory.mktemp("dagster-home")
    (home / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\n"
        "run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}\n"
    )
    (home / "jobs.py").write_text(CODE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (home / "webserver.log").open("w+")
    server = subprocess.Popen(
        [sys.executable, "-m", "dagster_webserver", "-f", "jobs.py", "-h", "127.0.0.1", "-p", str(port)],
        cwd=home,
        env={**os.environ, "DAGSTER_HOME": str(home)},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        wait_for_server(f"http://127.0.0.1:{port}", server, home / "webserver.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        # Its code server first gets the time to end by itself.
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        log.close()


def wait_for_server(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_SECS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if requests.get(f"{url}/server_info", timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)  # Nobody tells when a port is opened.
    raise AssertionError(f"The webserver did not start:\n{log.read_text()}")


@pytest.fixture(autouse=True)
def environment(dagit_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("DAGSTER_STACK_", "CELERY_", "RUN_CONFIG"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DAGSTER_STACK_DAGIT_URL", dagit_url)
    monkeypatch.setenv("CI", "true")


def test_demo_runs_flights_with_its_mapped_steps_and_prints_the_totals(
    capsys: pytest.CaptureFixture[str], dagit_url: str
) -> None:
    assert main(["demo"]) == ExitCode.SUCCESS

    out = capsys.readouterr().out
    assert "5 of 5 steps done" in out, "fan, three of work, report"
    assert "rows read: 336,776" in out
    assert "Report: http://s3/report.html" in out
    assert re.search(rf"Run page: {re.escape(dagit_url)}/runs/[0-9a-f-]{{36}}\n", out)


def test_a_failing_step_is_printed_with_its_cause_and_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "failing", "--tags", "team=data"]) == ExitCode.FAILED

    out = capsys.readouterr().out
    assert "Step read failed:\n  ValueError: a row without month\n" in out
    assert 'raise ValueError("a row without month") from error' in out
    assert "caused by KeyError: 'month'" in out
    assert "0 of 2 steps done, 1 failed, 1 not finished" in out


def test_config_that_does_not_fit_is_answered_with_its_path(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_CONFIG", "ops: {work: {config: {times: many}}}")

    assert main(["run", "configured", "--env-config"]) == ExitCode.USAGE

    error = capsys.readouterr().err
    assert "Invalid scalar at path root:ops:work:config:times." in error


def test_an_unknown_job_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "fligths"]) == ExitCode.USAGE

    assert "Did you mean 'flights'?\nJobs: configured, failing, flights." in capsys.readouterr().err
