"""How a run's progress looks: a live bar on a terminal, plain lines anywhere else."""

import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from dagster_stack.client.progress import Progress, StepState
from dagster_stack.messaging.management import QueueDepth
from dagster_stack.monitoring.formatting import seconds

#: Seconds between two plain lines, at least: a log that somebody reads later must not be flooded.
PLAIN_INTERVAL_SECS = 2.0
#: Frames a second of the live display: the elapsed time and the spinner move, at hardly any cost.
FRAMES_PER_SECOND = 4
#: Names of running steps in the live display.
SHOWN_RUNNING = 4

STYLES = {"error": "bold red", "dim": "dim", "plain": "", "good": "bold green", "note": "yellow"}

#: Escape sequences first, then any other control character but newline and tab.
CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


@dataclass(frozen=True)
class Frame:
    """All that one picture shows. `note` says what is waited for, `elapsed` is in seconds."""

    progress: Progress
    elapsed: float
    rate: float = 0.0
    backlog: Sequence[QueueDepth] = ()
    note: str = ""


class View(ABC):
    """Where a run's progress is shown. What comes from outside is stripped of control characters."""

    #: Whether somebody is there to answer a question.
    interactive: bool = False

    @abstractmethod
    def show(self, frame: Frame) -> None:
        """Replace what is shown of the run."""

    @abstractmethod
    def say(self, text: str, style: str = "plain") -> None:
        """Print a line that stays."""

    @abstractmethod
    def totals(self, title: str, entries: Mapping[str, str]) -> None:
        """Print names and values that belong together."""

    @contextmanager
    def live(self) -> Iterator[None]:
        """While entered, `show` may draw over what it drew before."""
        yield

    def ask(self, question: str, await_answer: Callable[[TextIO], None]) -> bool:
        """A yes-or-no question; no without somebody to answer it.

        `await_answer` returns once the terminal has an answer, or raises KeyboardInterrupt.
        """
        return False


class PlainView(View):
    """Lines without control characters: one when something changed, not more often than one may read."""

    def __init__(self, out: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._now = now
        self._shown: tuple[object, ...] | None = None
        self._shown_at = float("-inf")

    def show(self, frame: Frame) -> None:
        progress = frame.progress
        content = (progress.status, progress.steps, progress.total, frame.note)
        news = self._shown is None or progress.finished or progress.status != self._shown[0]
        due = self._now() - self._shown_at >= PLAIN_INTERVAL_SECS
        if content == self._shown or not (news or due):
            return
        self._shown, self._shown_at = content, self._now()
        self.say(plain_line(frame))

    def say(self, text: str, style: str = "plain") -> None:
        print(printable(text), file=self._out, flush=True)

    def totals(self, title: str, entries: Mapping[str, str]) -> None:
        self.say(title)
        for name, value in entries.items():
            self.say(f"  {name}: {value}")


class TerminalView(View):
    """A live bar with counts, rate, queues and what is waited for."""

    def __init__(self, console: Console, interactive: bool) -> None:
        self._console = console
        self._live: Live | None = None
        self._frame: Frame | None = None
        self._shown_at = 0.0
        self._spinner = Spinner("dots")
        self.interactive = interactive

    @contextmanager
    def live(self) -> Iterator[None]:
        live = Live(console=self._console, get_renderable=self._render, refresh_per_second=FRAMES_PER_SECOND)
        self._live = live
        try:
            with live:
                yield
        finally:
            self._live = None

    def show(self, frame: Frame) -> None:
        self._frame, self._shown_at = frame, time.monotonic()

    def say(self, text: str, style: str = "plain") -> None:
        # soft_wrap: the terminal breaks long lines itself, so an address stays one piece when copied.
        self._console.print(Text(printable(text), style=STYLES[style]), soft_wrap=True)

    def totals(self, title: str, entries: Mapping[str, str]) -> None:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold")
        grid.add_column(justify="right")
        links = {name: value for name, value in entries.items() if "://" in value}
        for name, value in entries.items():
            if name not in links:
                grid.add_row(printable(name), printable(value))
        self._console.print(Panel(grid, title=title, title_align="left", expand=False, border_style="green"))
        # Outside the panel: an address is copied or clicked, so no frame may break it.
        for name, value in links.items():
            self.say(f"{name}: {value}")

    def ask(self, question: str, await_answer: Callable[[TextIO], None]) -> bool:
        if not self.interactive:
            return False
        if self._live:
            # Taken away while the question stands there, and drawn again below it.
            self._live.transient = True
            self._live.stop()
            self._live.transient = False
        self._console.print(Text(f"{question} [y/N] ", style="bold"), end="")
        try:
            await_answer(sys.stdin)
        except KeyboardInterrupt:
            self._console.print()
            raise
        answer = sys.stdin.readline()
        if self._live:
            self._live.start(refresh=True)
        return answer.strip().lower() in ("y", "yes")

    def _render(self) -> RenderableType:
        frame = self._frame
        if frame is None:
            return Text("")
        running = not frame.progress.finished
        elapsed = frame.elapsed + (time.monotonic() - self._shown_at if running else 0.0)
        return picture(frame, elapsed, self._spinner)


def choose_view(out: TextIO, stdin: TextIO, environment: Mapping[str, str] = os.environ) -> View:
    """The terminal's view where a person watches, plain lines in a pipe, a dumb terminal or a CI."""
    continuous = environment.get("CI", "").lower() not in ("", "0", "false")
    if not out.isatty() or continuous or environment.get("TERM", "dumb") in ("dumb", "unknown"):
        return PlainView(out)
    return TerminalView(Console(file=out, highlight=False), interactive=stdin.isatty())


def printable(text: str) -> str:
    """A text from a user's step or config without what would steer a terminal."""
    return CONTROL.sub("", text.replace("\r\n", "\n"))


def counts(progress: Progress) -> list[tuple[str, str]]:
    """What the steps are doing, as (style, words)."""
    running, failed = progress.count(StepState.RUNNING), progress.count(StepState.FAILED)
    parts = [("cyan" if running else "", f"{running} running"), ("red" if failed else "", f"{failed} failed")]
    if retrying := progress.count(StepState.RETRYING):
        parts.append(("yellow", f"{retrying} retrying"))
    return parts


def steps_of(progress: Progress) -> str:
    """`34/50 steps`; `34/50+` while dynamic outputs may still add some."""
    if not progress.plan:
        return "? steps"
    return f"{progress.done}/{progress.total}{'' if progress.known else '+'} steps"


def queue_line(depth: QueueDepth) -> str:
    workers = f"{depth.consumers} worker{'' if depth.consumers == 1 else 's'}"
    return f"{depth.name}: {depth.ready} waiting, {depth.unacked} in work, {workers}"


def plain_line(frame: Frame) -> str:
    """One frame as a line of a log."""
    progress = frame.progress
    parts = [f"[{seconds(frame.elapsed, exact=True)}] {progress.status}"]
    if progress.plan:
        parts.append(f"{steps_of(progress)} done, " + ", ".join(words for _, words in counts(progress)))
        if frame.rate:
            parts.append(f"{frame.rate:.1f} steps/s")
    if not progress.finished:
        parts += [queue_line(depth) for depth in frame.backlog]
        if frame.note:
            parts.append(frame.note)
    return " | ".join(parts)


def picture(frame: Frame, elapsed: float, spinner: Spinner) -> RenderableType:
    """One frame for a terminal: the bar, the queues, the running steps, and what is waited for."""
    progress = frame.progress
    failed = progress.count(StepState.FAILED)
    colour = "red" if failed or progress.status in ("FAILURE", "CANCELED") else "green"
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(
            total=max(progress.total, 1),
            completed=min(progress.done + failed, max(progress.total, 1)),
            width=30,
            complete_style=colour,
            finished_style=colour,
        ),
        Text(steps_of(progress), style="bold", no_wrap=True),
        one_line("  ", "").join(Text(words, style=style) for style, words in counts(progress)),
        Text(f"{frame.rate:.1f} steps/s", no_wrap=True),
        Text(seconds(elapsed, exact=True), style="dim", no_wrap=True),
    )
    lines: list[RenderableType] = [bar]
    if not progress.finished:
        for depth in frame.backlog:
            lines.append(one_line(f"  queue {queue_line(depth)}", "dim"))
        if running := progress.in_state(StepState.RUNNING):
            more = f" and {len(running) - SHOWN_RUNNING} more" if len(running) > SHOWN_RUNNING else ""
            lines.append(one_line(f"  running {', '.join(running[:SHOWN_RUNNING])}{more}", "dim"))
        if frame.note:
            spinner.update(text=Text(printable(frame.note), style=STYLES["note"]))
            lines.append(spinner)
    return Group(*lines)


def one_line(text: str, style: str) -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")
