"""What the scripts print, with and without a terminal, and how they end."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import console
from scripts.console import ROOT, Failure, Progress, run_logged
from tests.waiting import wait_until

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )


def on_a_terminal(code: str, typed: str = "", **environment: str) -> tuple[int, str]:
    """Run Python on a terminal of its own; exit code and all that was shown."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", **environment},
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
    )
    os.close(side)
    os.write(main, typed.encode())
    shown = b""
    while True:
        try:
            piece = os.read(main, 4096)
        except OSError:  # The terminal's other side is closed.
            break
        if not piece:
            break
        shown += piece
    os.close(main)
    return process.wait(30), shown.decode()


# --- how a script ends --------------------------------------------------------------------------------------


def test_a_failure_is_one_readable_message_and_exit_code_1() -> None:
    result = python("from scripts.console import *\ndef f(): raise Failure('No beer. Buy some.')\nmain(f)")

    assert result.returncode == 1
    assert result.stderr == "\n  ✗ No beer. Buy some.\n"


@pytest.mark.parametrize(("returned", "code"), [("None", 0), ("0", 0), ("4", 4)])
def test_the_exit_code_is_what_the_script_returns(returned: str, code: int) -> None:
    assert python(f"from scripts.console import main\nmain(lambda: {returned})").returncode == code


def test_ctrl_c_ends_a_script_with_130_and_says_what_goes_on() -> None:
    # Given a script in the middle of a long part
    code = (
        "from scripts.console import *\n"
        "main(lambda: run_logged('Test: sleeping', ['sh', '-c', 'echo started; exec sleep 60'],"
        " detail=lambda line: print(line, flush=True)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    assert process.stdout
    while "started" not in process.stdout.readline():
        assert process.poll() is None

    # When somebody presses Ctrl-C, which every process of the terminal gets
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)

    # Then it ends with one line and no traceback, and leaves nothing running
    assert process.returncode == 130
    assert stderr.strip() == "interrupted; what is running goes on, `make down` ends it"
    wait_until(lambda: group_is_empty(process.pid), 5, "the group is empty", pause=0.05)


def group_is_empty(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -c 'from scripts.console import *\nmain(lambda: [say(str(i)) for i in range(100000)])' | head -1"

    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.stdout == "0\n"
    assert result.stderr == ""


def test_a_file_that_sudo_left_behind_is_named_with_the_cure() -> None:
    result = python(
        "from scripts.console import *\n"
        "def f(): raise PermissionError(13, 'Permission denied', '/x/.build/logs')\nmain(f)"
    )

    assert result.returncode == 1
    assert "/x/.build/logs: this user may not do that." in result.stderr
    assert "sudo chown -R" in result.stderr


def test_a_checkout_that_can_only_be_read_is_said() -> None:
    result = python(
        "from scripts.console import *\n"
        "def f(): raise OSError(30, 'Read-only file system', '/x/.build/logs')\nmain(f)"
    )

    assert result.returncode == 1
    assert "/x/.build/logs: this folder can only be read" in result.stderr


def test_a_terminal_without_unicode_is_no_traceback() -> None:
    result = python("from scripts.console import *\nmain(lambda: done('well'))", PYTHONIOENCODING="ascii")

    assert result.returncode == 0
    assert result.stdout == "  ? well\n"


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 8, 0)])
def test_a_python_that_is_too_old_is_told_which_one_is_needed(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...]
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sys, "version", ".".join(map(str, version)) + " (main)")

    with pytest.raises(SystemExit, match=r"Python 3.11 or later is needed, found 3\.\d+\.\d+.*make PYTHON="):
        exec((ROOT / "scripts/__init__.py").read_text(), {})


# --- progress -----------------------------------------------------------------------------------------------

SLOW = (
    "from scripts import console\nconsole.QUIET_INTERVAL_SECS = 0.1\nimport threading\n"
    "with console.Progress('Building') as progress:\n"
    "    progress.at('step   1\\tof 2')\n    threading.Event().wait(0.9)\nconsole.done('built')"
)


def test_without_a_terminal_progress_is_plain_lines_that_show_time_and_part() -> None:
    result = python(SLOW)

    lines = result.stdout.splitlines()
    assert lines[0] == "  … Building"
    assert "  … Building  0:00  step 1 of 2" in lines
    assert lines[-1] == "  ✓ built"
    assert not CONTROL.search(result.stdout)


def test_on_a_terminal_progress_is_one_line_that_goes_when_it_is_over() -> None:
    code, shown = on_a_terminal(SLOW)

    assert code == 0
    assert "\r\x1b[K  … Building  0:00  step 1 of 2" in shown
    # What stays is the last line alone.
    assert shown.rpartition("\r\x1b[K")[2] == "  ✓ built\r\n"
    assert "\n" not in shown.rpartition("\r\x1b[K")[0]


def test_a_terminal_that_can_t_rewrite_lines_gets_plain_ones() -> None:
    _, shown = on_a_terminal(SLOW, TERM="dumb")

    assert "\x1b" not in shown
    assert "  … Building  0:00  step 1 of 2" in shown


def test_a_long_detail_is_cut() -> None:
    progress = Progress("x")

    progress.at("y" * 1000)

    assert len(progress._detail) == console.DETAIL_WIDTH


# --- long commands ----------------------------------------------------------------------------------------


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(console, "LOG_FOLDER", tmp_path / "logs")
    return tmp_path / "logs"


def test_a_command_that_fails_shows_the_end_of_its_log_and_where_all_of_it_is(logs: Path) -> None:
    # Given a command with more output than is shown, on both streams
    command = ["bash", "-c", "for i in {1..100}; do echo line $i; done; echo the reason >&2; exit 3"]

    # When it runs
    with pytest.raises(Failure) as failure:
        run_logged("Building: all of it", command)

    # Then the message has the end with the reason, and the whole log is kept
    message = str(failure.value)
    assert message.startswith("Building: all of it failed after 0:00. The end of ")
    assert message.endswith("line 100\nthe reason")
    assert "line 71\n" not in message
    log = logs / "building-all-of-it.log"
    assert str(log) in message
    assert len(log.read_text().splitlines()) == 101


def test_a_command_that_ends_well_is_one_line(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_logged(
        "Asking",
        ["bash", "-c", "printf 'caf\\xe9\\n'; [ \"$EXTRA\" = 1 ] && ! read line"],
        environment={"EXTRA": "1"},
    )

    assert capsys.readouterr().out == "  … Asking\n  ✓ Asking (0:00)\n"
    assert (logs / "asking.log").read_text() == "caf\ufffd\n"


def test_a_program_that_is_not_there_is_named(logs: Path) -> None:
    assert not logs.exists()

    with pytest.raises(
        Failure, match="Tidying needs the program no-such-broom, which is not on this machine"
    ):
        run_logged("Tidying", ["no-such-broom"])


# --- questions ----------------------------------------------------------------------------------------------

ASK = "from scripts.console import *\nprint('ANSWER', confirm('Really?'))"


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("y\n", True),
        ("yes\n", True),
        ("Y\n", True),
        ("n\n", False),
        ("\n", False),
        ("maybe\n", False),
        ("\x04", False),
    ],
)
def test_only_a_yes_is_a_yes(typed: str, answer: bool) -> None:
    _, shown = on_a_terminal(ASK, typed)

    assert "Really? [y/N]" in shown
    assert f"ANSWER {answer}" in shown


def test_without_a_terminal_nobody_is_asked_and_the_answer_is_no() -> None:
    assert python(ASK).stdout == "ANSWER False\n"


def test_in_ci_nobody_is_asked_and_the_answer_is_no() -> None:
    _, shown = on_a_terminal(ASK, CI="true")

    assert shown == "ANSWER False\r\n"
