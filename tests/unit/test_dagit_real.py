"""The command line against a real Dagit (SQLite, no other service), some 15 s for all."""

import os
import re

import pytest

from dagster_stack.cli import main
from dagster_stack.errors import ExitCode


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
