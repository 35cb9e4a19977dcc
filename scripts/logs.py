"""`make logs`: all logs as they come, or what concerns one run, from all services in the order of time.

Variables: RUN=<a run's id, or its beginning>, SERVICE=worker, SINCE=10m, FOLLOW=no.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from scripts import compose
from scripts.console import ROOT, Failure, main, say
from scripts.hosts import logs as hosts
from scripts.hosts.host import Host

#: Lines of each container that `make logs` begins with.
TAIL = "100"
#: The first characters of a run's id that tell which one is meant, at least.
SHORTEST = 8
#: All of them.
LONGEST = 36
#: Stands in a text line where there was a new line (dagster_stack/logs/lines.py).
NEW_LINE = " ⏎ "
#: A line of `docker compose logs --timestamps`: container, time, what it printed. Compose 2.26 begins it with a
#: control sequence or some, whoever reads it.
PRINTED = re.compile(r"(?:\x1b\[2K)*(\S+)\s+\| (\S+Z) ?(.*)")
#: Where a line names its run, in both forms.
RUN = re.compile(r'(?: run=|"run": ?")([0-9a-fA-F-]{36})\b')
#: The fields of an event in JSON that are shown, and in this order.
SHOWN = ("time", "level", "service", "run", "step", "task", "action")


@dataclass(frozen=True)
class Line:
    """What a container printed; `at` is the engine's time, which sorts as text."""

    container: str
    at: str
    text: str

    @staticmethod
    def of(printed: str) -> "Line | None":
        found = PRINTED.fullmatch(printed.rstrip("\n"))
        return Line(*found.groups()) if found else None

    @property
    def run(self) -> str | None:
        """The run that it names as its own, if it does."""
        found = RUN.search(self.text)
        return found[1] if found else None


@dataclass
class RunLog:
    """The lines that concern one run, of which only the beginning of its id may be known at first."""

    wanted: str
    run_id: str = ""
    #: The newest line that was seen, by container: those that are followed begin a little earlier.
    seen: dict[str, str] = field(default_factory=dict)

    def read(self, printed: Iterable[str]) -> list[Line]:
        """What was printed so far about the run, in the order of time; raises Failure when it is not to be found."""
        kept = [line for line in map(self._new, printed) if line and self.wanted in line.text]
        # A whole id is unmistakable, so any line with it counts.
        whole = {self.wanted} if kept and len(self.wanted) == LONGEST else set()
        found = whole or {run for line in kept if (run := line.run) and run.startswith(self.wanted)}
        if not found:
            raise Failure(
                f"No log names the run {self.wanted}. Dagit lists all runs; the logs of containers that were removed or"
                " replaced (make down, make deploy, make up after a change) are gone, and so are lines beyond 60 MB a container."
            )
        if len(found) > 1:
            raise Failure(f"Which one? These begin with {self.wanted}: {', '.join(sorted(found))}")
        (self.run_id,) = found
        return sorted((line for line in kept if self.run_id in line.text), key=lambda line: line.at)

    def follow(self, printed: Iterable[str]) -> Iterator[Line]:
        """What is new about the run, as it comes."""
        before = dict(self.seen)
        for line in map(self._new, printed):
            if line and self.run_id in line.text and line.at > before.get(line.container, ""):
                yield line

    def _new(self, printed: str) -> Line | None:
        line = Line.of(printed)
        if line:
            self.seen[line.container] = line.at
        return line


def logs() -> int:
    """Show what the variables ask for; on a terminal until it is interrupted."""
    compose.require_env_file()
    options = ["--since", os.environ["SINCE"]] if os.environ.get("SINCE") else []
    services = os.environ.get("SERVICE", "").replace(",", " ").split()
    if not os.environ.get("RUN"):
        follow = ["--follow"] if os.environ.get("FOLLOW") != "no" else []
        options = [*follow, *(options or ["--tail", TAIL]), *services]
        if not (further := hosts.reachable()):
            compose.become("logs", *options)
        return show(further, options)
    wanted = os.environ["RUN"].strip().lower()
    if not re.fullmatch(rf"[0-9a-f-]{{{SHORTEST},{LONGEST}}}", wanted):
        raise Failure(
            f"Which run? make logs RUN=<its id, or its first {SHORTEST} characters or more>; found {wanted}"
        )
    log, started = RunLog(wanted), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    lines = log.read(printed_lines([*options, *services]))
    for line in lines:
        say(readable(line))
    if os.environ.get("FOLLOW") != "no" and sys.stdout.isatty():
        try:
            # From before the first read, by the clock that is behind; lines that were shown are not shown again.
            since = min(started, max(log.seen.values()))
            for line in log.follow(printed_lines(["--follow", "--since", since, *services])):
                say(readable(line))
        except KeyboardInterrupt:
            # How one ends it; nothing else was running.
            say("")
    return 0


def show(further: Sequence[Host], options: Sequence[str]) -> int:
    """The lines of all hosts, as they come."""
    try:
        for line in hosts.printed_lines(further, options):
            say(line.rstrip())
    except KeyboardInterrupt:
        say("")
    return 0


def printed_lines(options: Sequence[str]) -> Iterator[str]:
    """What `docker compose logs` prints, line by line, of all hosts; raises Failure with its own words."""
    if further := hosts.reachable():
        yield from hosts.printed_lines(further, ["--timestamps", *options])
        return
    command = [*compose.compose(), "--progress", "quiet", "logs", "--no-color", "--timestamps", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    with process:
        assert process.stdout
        assert process.stderr
        try:
            yield from process.stdout
        except BaseException:
            process.terminate()
            raise
        error = process.stderr.read().strip()
    if process.returncode:
        raise Failure(f"`docker compose logs` failed:\n{error}")


def readable(line: Line) -> str:
    """A line for people: JSON as text, and on a terminal the line ends of tracebacks restored."""
    text = of_json(line.text) if line.text.startswith("{") else line.text
    if sys.stdout.isatty():
        text = text.replace(NEW_LINE, "\n    ")
    return f"{line.container:<15} | {text}"


def of_json(text: str) -> str:
    """An event in JSON as a text line; whatever is not one of ours as it is."""
    try:
        event = json.loads(text)
    except ValueError:
        return text
    if not isinstance(event, dict) or not {"time", "level", "service", "message"} <= event.keys():
        return text
    words = [
        str(event[name]) if name in SHOWN[:3] else f"{name}={event[name]}" for name in SHOWN if name in event
    ]
    told = "\n".join(str(event[name]) for name in ("message", "exception") if event.get(name))
    return " ".join([*words, told.replace("\n", NEW_LINE)])


if __name__ == "__main__":
    main(logs)
