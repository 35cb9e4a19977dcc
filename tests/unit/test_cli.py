"""The command line as a user meets it: exit codes, messages, Ctrl-C. Dagit is the stub, signals are real."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagster_stack.cli import cli, main, parse_tags, read_config
from dagster_stack.client import dagit, watch
from dagster_stack.errors import ExitCode, UsageError
from tests.unit.dagit_stub import RUN_ID, DagitStub, event

ROOT = Path(__file__).resolve().parents[2]
#: Seconds until a command under test must have said what is waited for: two busy cores, a cold import.
PATIENCE_SECS = 60.0


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[DagitStub]:
    for name in [name for name in os.environ if name.startswith(("DAGSTER_STACK_", "CELERY_", "RUN_CONFIG"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(watch, "POLL_INTERVAL_SECS", 0.02)
    with DagitStub() as stub:
        monkeypatch.setenv("DAGSTER_STACK_DAGIT_URL", stub.url)
        monkeypatch.setenv("DAGSTER_STACK_DAGIT_PUBLIC_URL", "http://public:3000")
        yield stub


def succeed(stub: DagitStub) -> None:
    stub.status = "SUCCESS"
    stub.events = [event("STEP_SUCCESS", key) for key in stub.plan]


# Arguments.


@pytest.mark.parametrize("command", [[], ["run"], ["demo"], ["workers"], ["status"]])
def test_help_explains_every_command_without_importing_its_libraries(command: list[str]) -> None:
    code = (
        "import sys, types\n"
        # The package's public names import Dagster; the command line alone must not.
        "package = types.ModuleType('dagster_stack'); package.__path__ = ['dagster_stack']\n"
        "sys.modules['dagster_stack'] = package\n"
        "from dagster_stack.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'dagster', 'celery', 'rich', 'requests', 'boto3'} & set(sys.modules)\n"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "Usage: dagster-stack" in done.stdout


def test_a_wrong_command_line_exits_as_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == ExitCode.USAGE
    assert main(["no-such-command"]) == ExitCode.USAGE
    assert "Missing argument 'JOB'" in capsys.readouterr().err


def test_every_exit_code_is_told_by_the_help() -> None:
    text = cli.get_help(cli.make_context("dagster-stack", [], resilient_parsing=True))

    assert set(re.findall(r"\b\d+\b", text)) >= {str(code.value) for code in ExitCode}


@pytest.mark.parametrize(
    ("options", "tags"),
    [
        ([], {}),
        (["a=1"], {"a": "1"}),
        (["a=1,b=2", "c=3"], {"a": "1", "b": "2", "c": "3"}),
        (["url=http://x/?q=1, b = 2 ,"], {"url": "http://x/?q=1", "b": "2"}),
        (["a="], {"a": ""}),
    ],
)
def test_tags_are_split_at_commas_and_the_first_equals_sign(options: list[str], tags: dict[str, str]) -> None:
    assert parse_tags(options) == tags


@pytest.mark.parametrize("option", ["a", "a=1,b", "=1"])
def test_a_tag_without_key_or_value_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match="key=value"):
        parse_tags([option])


def test_run_config_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("ops: {größe: 1}")

    assert read_config(str(file), False, {"RUN_CONFIG": "ops: {}"}) == "ops: {größe: 1}"
    assert read_config(None, True, {"RUN_CONFIG": "ops: {a: 1}"}) == "ops: {a: 1}"
    assert read_config(None, True, {}) == ""
    assert read_config(None, False, {"RUN_CONFIG": "ops: {}"}) == ""


def test_unusable_run_config_is_refused_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    with pytest.raises(UsageError, match="can't be read"):
        read_config(str(file), False, {})
    for content, words in (("a: [", "not YAML"), ("- a", "it is a list"), ("text", "it is a str")):
        file.write_text(content)
        with pytest.raises(UsageError, match=rf"{re.escape(str(file))}.*{words}"):
            read_config(str(file), False, {})
    with pytest.raises(UsageError, match="one of them"):
        read_config(str(file), True, {})


# Runs, without a terminal.


def test_a_successful_run_exits_0_with_its_summary_and_public_address(
    stub: DagitStub, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(stub)

    assert main(["run", "slow", "--tags", "a=1"]) == ExitCode.SUCCESS

    out = capsys.readouterr().out
    assert "SUCCESS in 12.3 s: 2 of 2 steps done" in out
    assert out.splitlines()[-1] == f"Run page: http://public:3000/runs/{RUN_ID}"
    assert "\x1b" not in out
    assert "\r" not in out
    assert stub.launched[0]["executionMetadata"]["tags"] == [{"key": "a", "value": "1"}]


def test_a_failed_run_exits_1_with_the_steps_error(
    stub: DagitStub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.status = "FAILURE"
    error = {"className": "ValueError", "message": "ValueError: \x1b[2Jbad", "stack": [], "errorChain": []}
    stub.events = [event("STEP_FAILURE", "a", error=error)]

    assert main(["run", "slow"]) == ExitCode.FAILED

    assert "Step a failed:\n  ValueError: bad\n" in capsys.readouterr().out


def test_a_run_canceled_elsewhere_exits_4(stub: DagitStub) -> None:
    stub.status = "CANCELED"

    assert main(["run", "slow"]) == ExitCode.CANCELED


def test_an_unknown_job_exits_2_and_launches_nothing(
    stub: DagitStub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "slwo"]) == ExitCode.USAGE

    assert "Did you mean 'slow'?" in capsys.readouterr().err
    assert stub.launched == []


@pytest.mark.usefixtures("stub")
def test_no_dagit_exits_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DAGSTER_STACK_DAGIT_URL", "http://127.0.0.1:1")

    assert main(["demo"]) == ExitCode.UNREACHABLE
    assert "http://127.0.0.1:1" in capsys.readouterr().err


def test_dagit_may_go_away_for_a_while_during_a_run(
    stub: DagitStub, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = 0

    def go_away_twice() -> None:
        nonlocal asked
        asked += 1
        # The status is that of this very answer: 1 is good, 2 and 3 are not, then the run has ended.
        stub.http_status = 503 if asked in (2, 3) else 200
        if asked == 4:
            succeed(stub)

    stub.on_run = go_away_twice

    assert main(["run", "slow"]) == ExitCode.SUCCESS
    assert asked >= 4


def test_dagit_gone_for_good_exits_3_and_tells_that_the_run_goes_on(
    stub: DagitStub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "OUTAGE_LIMIT_SECS", 0.2)

    def go_away() -> None:
        stub.http_status = 503

    stub.on_run = go_away

    assert main(["run", "slow"]) == ExitCode.UNREACHABLE
    captured = capsys.readouterr()
    assert "Dagit does not answer: the run goes on" in captured.out
    assert f"The run {RUN_ID} was launched and goes on" in captured.err


def test_an_event_that_became_visible_late_is_counted_in_the_summary(
    stub: DagitStub, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given Postgres showed b's end before a's, so that the cursor has passed a's.
    stub.events = [event("STEP_SUCCESS", "b")]
    asked = 0

    def show_late_event() -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            stub.events = [event("STEP_SUCCESS", "a"), event("STEP_SUCCESS", "b")]
            stub.status = "SUCCESS"

    stub.on_run = show_late_event

    main(["run", "slow"])

    assert "2 of 2 steps done" in capsys.readouterr().out


def test_a_run_with_more_events_than_dagit_gives_at_once_is_counted_in_full(
    stub: DagitStub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dagit, "EVENTS_PER_ANSWER", 3)
    stub.plan = [f"s{number}" for number in range(20)]
    succeed(stub)

    main(["run", "slow"])

    assert "20 of 20 steps done" in capsys.readouterr().out


def test_a_broker_api_that_does_not_answer_stops_nothing(
    stub: DagitStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_STACK_BROKER_API_URL", "http://127.0.0.1:1")
    asked = 0

    def end_later() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            succeed(stub)

    stub.on_run = end_later

    assert main(["run", "slow"]) == ExitCode.SUCCESS


def test_demo_prints_the_totals_with_thousands_separators_and_both_addresses(
    stub: DagitStub, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(stub)
    numbers = {"rows": 336776, "used": 327346, "cancelled": 8255, "rejected": 1175}
    entries = [
        {"__typename": "IntMetadataEntry", "label": label, "intRepr": str(number)}
        for label, number in numbers.items()
    ]
    entries.append({"__typename": "UrlMetadataEntry", "label": "report", "url": "http://s3/report.html"})
    stub.events.append(event("STEP_OUTPUT", "report", metadataEntries=entries))
    # The stub gives whole events; the real one gives other steps' outputs without metadata.
    for other in stub.events[:-1]:
        other["metadataEntries"] = []

    assert main(["demo"]) == ExitCode.SUCCESS

    out = capsys.readouterr().out
    assert stub.launched[0]["selector"]["jobName"] == "flights"
    for words in ("336,776", "327,346", "8,255", "1,175", "http://s3/report.html", f"/runs/{RUN_ID}"):
        assert words in out


def test_demo_of_a_failed_run_prints_no_totals(stub: DagitStub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.status = "FAILURE"

    assert main(["demo"]) == ExitCode.FAILED
    assert "rows read" not in capsys.readouterr().out


# Ctrl-C and SIGTERM, on a real process.


class Command:
    """`dagster-stack run slow` in a process of its own, on a pseudo terminal or on a pipe."""

    def __init__(self, terminal: bool) -> None:
        environment = {**os.environ, "TERM": "xterm", "CI": "" if terminal else "true", "COLUMNS": "100"}
        self._fd, stream = pty.openpty() if terminal else os.pipe()
        # A session of its own: ^C on its terminal must reach it, and nobody else.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dagster_stack", "run", "slow"],
            cwd=ROOT,
            env=environment,
            stdin=stream if terminal else subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        os.close(stream)
        self.output = ""

    def wait_for(self, words: str) -> None:
        """Read until `words` have been printed; fails with what was printed instead."""
        deadline = time.monotonic() + PATIENCE_SECS
        while words not in self.output:
            if time.monotonic() > deadline or not self._read():
                raise AssertionError(f"{words!r} was not printed, but:\n{self.output}")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def exit_code(self) -> int:
        deadline = time.monotonic() + PATIENCE_SECS
        while self._read() and time.monotonic() < deadline:
            pass
        return self._process.wait(PATIENCE_SECS)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def _read(self) -> bool:
        """Whether the command may print more."""
        if select.select([self._fd], [], [], 1.0)[0]:
            try:
                piece = os.read(self._fd, 65536)
            except OSError:  # A pseudo terminal's way to say that the other end was closed.
                return False
            self.output += piece.decode(errors="replace")
            return bool(piece)
        return True


@pytest.fixture
def on_terminal(stub: DagitStub) -> Iterator[Command]:
    command = Command(terminal=True)
    yield command
    command.close()


@pytest.fixture
def on_pipe(stub: DagitStub) -> Iterator[Command]:
    command = Command(terminal=False)
    yield command
    command.close()


def test_ctrl_c_and_yes_terminates_the_run_and_exits_4(stub: DagitStub, on_terminal: Command) -> None:
    on_terminal.wait_for("0/2 steps")

    on_terminal.send(signal.SIGINT)
    on_terminal.wait_for("Terminate the run? [y/N]")
    assert not stub.terminated.is_set(), "nothing is terminated before the answer"
    on_terminal.type("y\n")

    assert on_terminal.exit_code() == ExitCode.CANCELED
    assert stub.terminated.is_set()
    assert "CANCELED in 12.3 s" in on_terminal.output


def test_ctrl_c_and_no_leaves_the_run_going_and_exits_130(stub: DagitStub, on_terminal: Command) -> None:
    on_terminal.wait_for("0/2 steps")

    on_terminal.send(signal.SIGINT)
    on_terminal.wait_for("Terminate the run? [y/N]")
    on_terminal.type("\n")

    assert on_terminal.exit_code() == ExitCode.INTERRUPTED
    assert f"Left the run going: http://public:3000/runs/{RUN_ID}" in on_terminal.output
    assert not stub.terminated.is_set()


def test_a_second_ctrl_c_leaves_at_once_with_the_run_going(stub: DagitStub, on_terminal: Command) -> None:
    on_terminal.wait_for("0/2 steps")

    on_terminal.send(signal.SIGINT)
    on_terminal.wait_for("Terminate the run? [y/N]")
    on_terminal.send(signal.SIGINT)

    assert on_terminal.exit_code() == ExitCode.INTERRUPTED
    assert "Left the run going" in on_terminal.output
    assert not stub.terminated.is_set()


def test_sigterm_on_a_terminal_asks_nothing_and_leaves_the_run_going(
    stub: DagitStub, on_terminal: Command
) -> None:
    on_terminal.wait_for("0/2 steps")

    on_terminal.send(signal.SIGTERM)

    assert on_terminal.exit_code() == ExitCode.INTERRUPTED
    assert "Terminate the run?" not in on_terminal.output
    assert "Left the run going" in on_terminal.output
    assert not stub.terminated.is_set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_a_terminal_a_signal_leaves_the_run_going(
    stub: DagitStub, on_pipe: Command, number: signal.Signals
) -> None:
    on_pipe.wait_for("0/2 steps")

    on_pipe.send(number)

    assert on_pipe.exit_code() == ExitCode.INTERRUPTED
    assert on_pipe.output.splitlines()[-1].startswith("Left the run going")
    assert "\x1b" not in on_pipe.output
    assert not stub.terminated.is_set()


def test_a_signal_while_the_launch_is_under_way_is_not_lost(
    stub: DagitStub, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given the signal comes before the first look at the run, in the middle of a request.
    sent = threading.Event()

    def send_once() -> None:
        if not sent.is_set():
            sent.set()
            os.kill(os.getpid(), signal.SIGTERM)

    stub.on_run = send_once

    assert main(["run", "slow"]) == ExitCode.INTERRUPTED
    assert "Left the run going" in capsys.readouterr().out


def test_the_signal_handlers_are_put_back_after_a_run(stub: DagitStub) -> None:
    succeed(stub)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    main(["run", "slow"])

    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
