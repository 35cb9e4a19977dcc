"""What services print: one line an event, whoever it comes from, with the run, step and task that it belongs to."""

import ast
import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from celery.app import trace
from dagster import DagsterInstance
from uvicorn.config import LOGGING_CONFIG

from dagster_stack.errors import SettingsError
from dagster_stack.logs import lines
from dagster_stack.logs.context import bound, current, in_context
from dagster_stack.logs.service import configure
from dagster_stack.objects.capture import captured
from dagster_stack.patches.servers import without_handlers
from dagster_stack.services import code_server
from scripts.console import ROOT
from tests.unit import step_jobs
from tests.unit.runs_by_hand import execute, message, started_run
from tests.unit.service_logs import Written, service_log

RUN = "449f82d5-e549-46b9-b1f1-908c9294a4a8"
logger = logging.getLogger("some.module")


@pytest.fixture
def text(tmp_path: Path) -> Iterator[Written]:
    with service_log(tmp_path, "text") as written:
        yield written


@pytest.fixture
def as_json(tmp_path: Path) -> Iterator[Written]:
    with service_log(tmp_path, "json") as written:
        yield written


# --- the forms ------------------------------------------------------------------------------------------------------


def test_a_line_of_text_has_time_level_service_ids_action_and_message(text: Written) -> None:
    with bound(run=RUN, step="clean", task="t-1"):
        logger.warning("step %s is skipped", "clean", extra={"action": "step.skipped"})

    (line,) = text.lines
    time, rest = line.split(" ", 1)
    assert rest == f"WARNING worker run={RUN} step=clean task=t-1 action=step.skipped step clean is skipped"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()) < 60


def test_in_text_the_logger_stands_in_for_an_action_that_is_missing(text: Written) -> None:
    logger.info("hello")

    assert text.lines[0].split(" ", 1)[1] == "INFO worker logger=some.module hello"


def test_an_object_of_json_has_the_same_under_keys_and_none_without_value(as_json: Written) -> None:
    with bound(run=RUN, task="t-1"):
        logger.info('it says "ünïcode ✓"\nand more', extra={"action": "run.told"})

    (event,) = as_json.events
    assert list(event) == ["time", "level", "service", "logger", "run", "task", "action", "message"]
    assert event["message"] == 'it says "ünïcode ✓"\nand more'
    assert (event["run"], event["logger"]) == (RUN, "some.module")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_stays_in_its_event(tmp_path: Path, form: str) -> None:
    with service_log(tmp_path, form) as written:
        try:
            raise ValueError("two\nlines")
        except ValueError:
            logger.exception("it failed")

        (line,) = written.lines
    if form == "text":
        assert "it failed ⏎ Traceback (most recent call last): ⏎   File " in line
        assert line.endswith(" ⏎ ValueError: two ⏎ lines")
    else:
        assert json.loads(line)["message"] == "it failed"
        assert json.loads(line)["exception"].endswith("\nValueError: two\nlines")


def test_nothing_that_is_logged_makes_a_second_line_or_colours_a_terminal(text: Written) -> None:
    logger.info("a\r\nb\rc\x1b[31md\x85e\u2028f\tg")

    (line,) = text.lines
    assert line.endswith(" a ⏎ b\\x0dc\\x1b[31md\\x85e\\u2028f\tg")


def test_ids_of_others_hold_no_blank(text: Written) -> None:
    with bound(task="not ours\n", run=RUN):
        logger.info("hello")

    assert f" run={RUN} task=not%20ours%0A logger=" in text.lines[0]


def test_text_that_is_no_unicode_is_written_all_the_same(text: Written) -> None:
    logger.info("a file \udce4.csv")

    assert text.lines[0].endswith("a file \\udce4.csv")


@pytest.mark.parametrize("value", ["xml", "JSON"])
def test_another_form_is_refused_with_the_cure(value: str) -> None:
    with pytest.raises(
        SettingsError, match=f"LOG_FORMAT must be one of text, json, it is '{value}'. Change it in .env"
    ):
        configure("worker", environment={"LOG_FORMAT": value})


def test_the_environment_names_the_service(tmp_path: Path, as_json: Written) -> None:
    with (tmp_path / "log").open("w") as stream:
        environment = {"LOG_FORMAT": "json", "DAGSTER_STACK_SERVICE": "worker-heavy"}
        configure("worker", stream=stream, environment=environment)
        logger.info("hello")

    assert json.loads((tmp_path / "log").read_text())["service"] == "worker-heavy"


# --- what belongs together ------------------------------------------------------------------------------------------


def test_what_is_bound_is_bound_for_a_while(as_json: Written) -> None:
    with bound(run=RUN), bound(step="clean"):
        logger.info("inside")
    logger.info("outside")

    inside, outside = as_json.events
    assert (inside["run"], inside["step"]) == (RUN, "clean")
    assert {"run", "step", "task"}.isdisjoint(outside)


def test_a_thread_has_what_is_bound_when_it_is_given_it() -> None:
    seen = []
    with bound(run=RUN):
        for act in (lambda: seen.append(dict(current())), in_context(lambda: seen.append(dict(current())))):
            thread = threading.Thread(target=act)
            thread.start()
            thread.join()

    assert seen == [{}, {"run": RUN}]


# --- libraries ------------------------------------------------------------------------------------------------------


def test_celerys_lines_on_tasks_have_their_run(as_json: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the main process, which executes nothing: from what Celery shows of the message."""
    monkeypatch.setitem(lines.KNOWN_ACTIONS, trace.LOG_SUCCESS, "task.succeeded")
    data = {"id": "t-1", "name": "mine: clean", "args": RUN, "runtime": 0.1, "return_value": "None"}
    logging.getLogger("celery.app.trace").info(trace.LOG_SUCCESS, data, extra={"data": data})
    foreign = {**data, "args": "('a', 1)"}
    logging.getLogger("celery.app.trace").info(trace.LOG_SUCCESS, foreign, extra={"data": foreign})

    ours, theirs = as_json.events
    assert (ours["run"], ours["task"], ours["action"]) == (RUN, "t-1", "task.succeeded")
    assert "run" not in theirs
    assert theirs["task"] == "t-1"


def test_dagsters_events_are_lines_of_the_same_form_and_come_once(
    instance: DagsterInstance, as_json: Written
) -> None:
    # Given a step that runs on a worker
    run = started_run(instance, step_jobs.alone)

    # When it is executed
    execute(message(instance, run, "one"))

    # Then what Dagster says of it is in the service's log, as what it is, each event once
    events = [event for event in as_json.events if event["logger"] == "dagster"]
    actions = [event["action"] for event in events if "action" in event]
    assert actions.count("step.started") == actions.count("step.succeeded") == 1
    assert {event["run"] for event in events} == {run.run_id}
    assert {event.get("step") for event in events if event.get("action") == "step.succeeded"} == {"one"}
    # And its text is not what Dagster puts before it for people
    assert not [event for event in events if run.run_id in event["message"].split(" - ")]


def test_a_failed_step_has_its_traceback_in_its_event(instance: DagsterInstance, as_json: Written) -> None:
    run = started_run(instance, step_jobs.with_a_failure)

    execute(message(instance, run, "fail"))

    (failed,) = [event for event in as_json.events if event.get("action") == "step.failed"]
    assert "Stack Trace" in failed["exception"]
    assert "Stack Trace" not in failed["message"]


def test_warnings_are_events(as_json: Written) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("look out", UserWarning, stacklevel=1)

    assert [event["logger"] for event in as_json.events] == ["py.warnings"]
    assert "UserWarning: look out" in as_json.events[0]["message"]


def test_what_ends_a_thread_is_an_event(as_json: Written) -> None:
    def fail() -> None:
        raise ValueError("no way on")

    thread = threading.Thread(target=fail, name="helper")
    thread.start()
    thread.join()

    (event,) = as_json.events
    assert (event["action"], event["message"]) == ("thread.failed", "thread helper ends")
    assert event["exception"].endswith("ValueError: no way on")


def test_what_ends_a_process_is_an_event() -> None:
    code = (
        "from dagster_stack.logs.service import configure; configure('dagit'); raise ValueError('no way on')"
    )

    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "LOG_FORMAT": "json"},
    )  # fmt: skip

    event = json.loads(ended.stdout)
    assert ended.returncode == 1
    assert ended.stderr == ""
    assert (event["service"], event["action"], event["level"]) == ("dagit", "process.failed", "CRITICAL")


def test_uvicorn_sets_up_no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("handlers", "loggers"):
        monkeypatch.setitem(LOGGING_CONFIG, key, LOGGING_CONFIG[key])

    without_handlers()

    assert LOGGING_CONFIG["handlers"] == {}
    assert not any("handlers" in each for each in LOGGING_CONFIG["loggers"].values())


def test_code_servers_are_started_with_the_log_of_their_service(
    monkeypatch: pytest.MonkeyPatch, as_json: Written
) -> None:
    from dagster._grpc import server

    name = "get_python_environment_entry_point"
    monkeypatch.setattr(server, name, getattr(server, name))
    monkeypatch.setenv("DAGSTER_STACK_SERVICE", "")

    code_server.use_in_code_servers()

    assert getattr(server, name)(sys.executable) == [
        sys.executable,
        "-m",
        "dagster_stack.services.code_server",
    ]
    assert os.environ["DAGSTER_STACK_SERVICE"] == "worker"
    # And another Python, which may not have this package, is left alone
    assert getattr(server, name)("/other/python") == ["/other/python", "-m", "dagster"]


# --- what steps print -----------------------------------------------------------------------------------------------


@contextmanager
def own_streams(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """The process's streams as files. pytest has replaced the real ones, and sets them anew before each test."""
    files = (folder / "own.out", folder / "own.err")
    with files[0].open("w") as out, files[1].open("w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        yield files
        monkeypatch.undo()


def test_what_a_step_prints_is_an_event_a_line(
    as_json: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = tmp_path / "step.out", tmp_path / "step.err"
    with (
        own_streams(tmp_path, monkeypatch) as own,
        bound(run=RUN, step="talk"),
        captured(out, err) as (stdout, _),
    ):
        print('{"a": 1}\n\nthird', flush=True)
        print("10 %\r20 %", end="", flush=True)
        stdout.forward()
        # What has no end yet waits for it
        assert [event["message"] for event in as_json.events] == ['{"a": 1}', "", "third"]
        print(" and on", flush=True)
        print("no end", end="", file=sys.stderr)

    printed = [(event["action"], event["message"]) for event in as_json.events[3:]]
    assert sorted(printed) == [("step.stderr", "no end"), ("step.stdout", "20 % and on")]
    assert {(event["run"], event["step"]) for event in as_json.events} == {(RUN, "talk")}
    # And its own log has it as it was
    assert out.read_bytes() == b'{"a": 1}\n\nthird\n10 %\r20 % and on\n'
    # And nothing of it is there a second time
    assert [file.read_text() for file in own] == ["", ""]


def test_events_while_a_step_runs_are_in_its_log_as_text_and_once_in_the_services(
    as_json: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = tmp_path / "step.out", tmp_path / "step.err"
    with own_streams(tmp_path, monkeypatch):
        with captured(out, err):
            print("half a line ", end="", file=sys.stderr, flush=True)
            logger.warning("of a library")
        logger.info("afterwards")

    assert [event["message"] for event in as_json.events] == ["of a library", "half a line ", "afterwards"]
    assert "half a line " in err.read_text()
    assert "WARNING worker logger=some.module of a library\n" in err.read_text()
    assert "afterwards" not in err.read_text()
    assert out.read_text() == ""


def test_a_capture_within_a_capture_prints_once(
    as_json: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that executes a job in its own process."""
    with own_streams(tmp_path, monkeypatch), captured(tmp_path / "a.out", tmp_path / "a.err"):
        with captured(tmp_path / "b.out", tmp_path / "b.err"):
            print("inside")
            logger.info("an event inside")
        print("outside")

    messages = [event["message"] for event in as_json.events]
    assert sorted(messages) == ["an event inside", "inside", "outside"]
    assert (tmp_path / "b.out").read_text() == "inside\n"
    assert (tmp_path / "a.out").read_text() == "inside\noutside\n"


# --- all calls ------------------------------------------------------------------------------------------------------


def calls_to_log() -> list[tuple[str, ast.Call]]:
    found = []
    for file in sorted((ROOT / "dagster_stack").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"), attr=level)) if (
                    level != "setLevel"
                ):
                    found.append((f"{file.relative_to(ROOT)}:{node.lineno}", node))
    return found


def test_every_event_of_this_package_has_an_action() -> None:
    """A key for programs: what is logged in words may change."""
    actions = {}
    for place, call in calls_to_log():
        extra = next((word.value for word in call.keywords if word.arg == "extra"), None)
        actions[place] = ast.literal_eval(extra).get("action", "") if extra else ""

    assert len(actions) > 40
    assert [place for place, action in actions.items() if not re.fullmatch(r"[a-z]+\.[a-z_]+", action)] == []
