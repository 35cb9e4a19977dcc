"""What is printed: plain lines for logs, and the terminal's picture as text."""

import io
from typing import Any

import pytest
from rich.console import Console
from rich.spinner import Spinner

from dagster_stack.client.display import (
    PLAIN_INTERVAL_SECS,
    Frame,
    PlainView,
    TerminalView,
    choose_view,
    picture,
    printable,
)
from dagster_stack.client.progress import PlanStep, Progress, StepState
from dagster_stack.messaging.management import QueueDepth


def running(done: int, total: int = 50, status: str = "STARTED", **more: Any) -> Progress:
    return Progress(
        status=status,
        plan=tuple(PlanStep(f"s{number}") for number in range(total)),
        steps={f"s{number}": StepState.DONE for number in range(done)},
        **more,
    )


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def view(out: io.StringIO, clock: Clock) -> PlainView:
    return PlainView(out, clock)


def test_plain_line_holds_status_steps_rate_queues_and_what_is_waited_for(
    view: PlainView, out: io.StringIO
) -> None:
    backlog = [QueueDepth("dagster", ready=12, unacked=4, consumers=2), QueueDepth("heavy", 0, 0, 1)]

    view.show(Frame(running(34), 12.34, rate=4.2, backlog=backlog, note="Waiting."))

    assert out.getvalue() == (
        "[12.3 s] STARTED | 34/50 steps done, 0 running, 0 failed | 4.2 steps/s"
        " | dagster: 12 waiting, 4 in work, 2 workers | heavy: 0 waiting, 0 in work, 1 worker | Waiting.\n"
    )


def test_plain_view_says_nothing_while_nothing_changes(
    view: PlainView, out: io.StringIO, clock: Clock
) -> None:
    for _ in range(10):
        view.show(Frame(running(1), clock.now))
        clock.now += PLAIN_INTERVAL_SECS

    assert out.getvalue().count("\n") == 1


def test_plain_view_prints_changes_no_more_often_than_its_interval(
    view: PlainView, out: io.StringIO, clock: Clock
) -> None:
    # Given a change in each of 100 pictures over 10 s, then one line in each 2 s is printed.
    for done in range(100):
        view.show(Frame(running(done, total=200), clock.now))
        clock.now += 0.1

    assert out.getvalue().count("\n") == 10 / PLAIN_INTERVAL_SECS


def test_plain_view_prints_a_new_status_and_the_end_at_once(view: PlainView, out: io.StringIO) -> None:
    view.show(Frame(running(0, status="QUEUED"), 0))
    view.show(Frame(running(0, status="STARTED"), 0))
    view.show(Frame(running(49, status="STARTED"), 0))
    view.show(Frame(running(50, status="SUCCESS"), 0))

    lines = out.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["QUEUED", "STARTED", "SUCCESS"]


def test_plain_view_writes_no_control_characters_whatever_a_step_says(
    view: PlainView, out: io.StringIO
) -> None:
    view.say("\x1b[31mred\x1b[0m \x1b]0;title\x07bell\x07 back\x08 \x9b2J\rstart\ttab\nline")

    assert out.getvalue() == "red bell back 2Jstart\ttab\nline\n"


@pytest.mark.parametrize("text", ["plain", "größer ✓", "a\tb\nc"])
def test_printable_keeps_ordinary_text(text: str) -> None:
    assert printable(text) == text


def test_plain_view_asks_nobody(view: PlainView) -> None:
    assert view.interactive is False
    assert view.ask("Terminate?", lambda stream: None) is False


def drawn(frame: Frame, width: int = 110) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(picture(frame, frame.elapsed, Spinner("dots")))
    return out.getvalue()


def test_picture_shows_bar_counts_queues_running_steps_and_note() -> None:
    steps = {"a": StepState.DONE, "b": StepState.RUNNING, "c": StepState.FAILED, "d": StepState.RETRYING}
    progress = Progress("STARTED", tuple(PlanStep(key) for key in "abcde"), steps)

    text = drawn(Frame(progress, 12.3, 0.5, [QueueDepth("heavy", 3, 1, 1)], "No worker."))

    assert "━" in text
    for words in (
        "1/5 steps",
        "1 running",
        "1 failed",
        "1 retrying",
        "0.5 steps/s",
        "12.3 s",
        "queue heavy: 3 waiting, 1 in work, 1 worker",
        "running b",
        "No worker.",
    ):
        assert words in text


def test_picture_keeps_one_line_a_row_on_a_narrow_terminal() -> None:
    steps = {f"step_with_a_long_name_{number}": StepState.RUNNING for number in range(9)}
    progress = Progress("STARTED", tuple(PlanStep(key) for key in steps), steps)

    lines = drawn(Frame(progress, 12.3, 0.5, [QueueDepth("heavy", 3, 1, 1)]), width=60).splitlines()

    assert len(lines) == 3
    assert all(len(line) <= 60 for line in lines)


def test_picture_says_that_more_steps_may_come_while_dynamic_outputs_are_open() -> None:
    progress = Progress("STARTED", (PlanStep("fan"), PlanStep("work[?]", source="fan")))

    assert "0/2+ steps" in drawn(Frame(progress, 0))


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("environment", [{"TERM": "xterm", "CI": "true"}, {"TERM": "dumb"}, {}])
def test_a_ci_and_a_dumb_terminal_get_plain_lines(environment: dict[str, str]) -> None:
    assert isinstance(choose_view(Terminal(), Terminal(), environment), PlainView)


def test_a_pipe_gets_plain_lines() -> None:
    assert isinstance(choose_view(io.StringIO(), Terminal(), {"TERM": "xterm"}), PlainView)


def test_a_terminal_gets_the_live_view_and_is_asked_only_when_it_can_answer() -> None:
    environment = {"TERM": "xterm", "CI": "false"}

    assert choose_view(Terminal(), Terminal(), environment).interactive is True
    piped = choose_view(Terminal(), io.StringIO(), environment)
    assert isinstance(piped, TerminalView)
    assert piped.interactive is False


def test_addresses_stay_outside_the_panel_in_one_piece() -> None:
    out = io.StringIO()
    address = f"http://127.0.0.1:9000/{'x' * 200}?signature=1"

    TerminalView(Console(file=out, width=60), interactive=False).totals(
        "Flights", {"rows read": "336,776", "Report": address}
    )

    assert f"Report: {address}\n" in out.getvalue()
    assert "336,776" in out.getvalue()
