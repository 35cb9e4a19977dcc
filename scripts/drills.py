"""`make drills` and `make soak`: every fault on a copy of the stack of its own, and the table of what each cost."""

import json
import os
import platform
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from scripts import engine, preflight, venv
from scripts.console import BUILD_FOLDER, ROOT, Failure, done, main, say
from scripts.markdown import table

FOLDER = "tests/faults"
#: A line for each drill, as it ends; and the table, for docs/reliability.md.
LEDGER = BUILD_FOLDER / "drills.jsonl"
PAGE = BUILD_FOLDER / "drills.md"
#: The mark of what `make test` leaves out, though its subject is no fault.
LONG = "long"
#: How long `make soak` goes on, unless MINUTES says otherwise.
MINUTES = 10

HEAD = ("fault", "when", "runs", "steps", "lost", "run twice", "seconds to recover")
LEGEND = """\
A drill has passed when every run ended as it must, each step's success stands in the event log exactly once, the
objects in S3 are those of a run without faults, queues and slots are free again, and every worker took work again.

*Run twice*: steps that were begun more than once. *Seconds to recover*: from the end of the fault (a crash is over at
once) until a step was sent, a step succeeded, and every step that was executing when the fault came had succeeded.
*Fails*: the run must end with the reason in its log, and does; what it had done is kept for the run after it."""


@dataclass(frozen=True)
class Row:
    """What one drill cost: a line of the table."""

    fault: str
    when: str
    runs: int
    steps: int
    lost: int
    run_twice: int
    #: None: it did not.
    recovered_after: float | None
    passed: bool
    #: What each run must end with.
    end: str = "SUCCESS"

    @property
    def cells(self) -> tuple[str, ...]:
        if self.end != "SUCCESS":
            recovered = "fails"
        else:
            recovered = "never" if self.recovered_after is None else f"{self.recovered_after:.1f}"
        return (
            self.fault if self.passed else f"{self.fault} (FAILED)",
            self.when,
            *map(str, (self.runs, self.steps, self.lost, self.run_twice)),
            recovered,
        )


def drills() -> int:
    """Every drill, one after the other; fails when one did."""
    say(
        "Drills: a copy of the stack gets work, one thing is broken while it is under way, and everything that was\n"
        "promised is counted afterwards. Each line below is a promise; all of them take about 40 minutes.\n"
    )
    code = hold("-m", "not soak")
    say("\nTests of the stack that take minutes each, which `make test` leaves out")
    codes = [code, pytest("tests/stack", "-m", LONG)]
    say("\nSeveral hosts: engines in network namespaces of this machine, for which it needs root")
    codes.append(pytest("tests/hosts"))
    say("\nKubernetes: the manifests before a real API server, which is compiled once")
    codes.append(pytest("tests/kubernetes"))
    return max(map(abs, codes))


def pytest(*arguments: str, **environment: str) -> int:
    command = [str(venv.ensure("dev")), "-m", "pytest", *arguments, "-v", "--no-header"]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False).returncode


def soak() -> int:
    """Two faults at once, chosen at random, again and again."""
    minutes = os.environ.get("MINUTES") or str(MINUTES)
    seed = os.environ.get("SEED") or str(random.randrange(10_000))
    for name, text in (("MINUTES", minutes), ("SEED", seed)):
        if not (text.isascii() and text.isdecimal()):
            raise Failure(f"{name}={text} is no whole number: make soak MINUTES=10 SEED=7")
    say(
        f"Soak: for {minutes} minutes two things at once are broken under load, chosen by SEED={seed}.\n"
        f"The same choice again: make soak MINUTES={minutes} SEED={seed}\n"
    )
    return hold("-m", "soak", "-s", MINUTES=minutes, SEED=seed)


def hold(*arguments: str, **environment: str) -> int:
    """Hold the drills that pytest selects; print and write the table, also when some failed."""
    engine.ensure()
    LEDGER.unlink(missing_ok=True)
    code = pytest(FOLDER, *arguments, **environment)
    rows = read()
    if rows:
        say(f"\n{drill_table(rows)}\n")
        PAGE.write_text(page(rows), encoding="utf-8")
        done(f"{PAGE.relative_to(ROOT)} written")
    return code


def read() -> list[Row]:
    """The drills that were held so far."""
    if not LEDGER.exists():
        return []
    return [Row(**json.loads(line)) for line in LEDGER.read_text(encoding="utf-8").splitlines()]


def drill_table(rows: Sequence[Row]) -> str:
    return table(HEAD, [row.cells for row in rows], numbers=5)


def page(rows: Sequence[Row]) -> str:
    """The table with the day and the machine on which it was made."""
    machine = f"{os.cpu_count()} cores, {preflight.total_memory_gb():.0f} GB, Linux {platform.release()}"
    return f"{datetime.now(UTC):%Y-%m-%d}, {machine}.\n\n{drill_table(rows)}\n\n{LEGEND}\n"


if __name__ == "__main__":
    main({"soak": soak}.get(sys.argv[1], drills) if sys.argv[1:] else drills)
