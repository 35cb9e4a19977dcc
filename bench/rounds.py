"""The rounds: each work by each executor in turn, so that what disturbs the machine disturbs all alike."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.forked import Failed, forked
from bench.jobs import reconstructable_job
from bench.progress import say
from bench.runs import timed_run
from bench.works import VARIANT_TITLES, WARM_UP, WORKS

#: Seconds after which a work is not given to a slow executor once more.
PATIENCE_SECS = 40
#: Seconds that one run may take. dagster-celery's executor needs 7 minutes for 1,000 steps.
LIMIT_SECS = 1200


@dataclass
class Rounds:
    """What was measured, and `notes` on what was not."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)

    def give(self, work: str, variant: str, turn: str) -> bool:
        """Execute a work once; whether that made a sample."""
        title = f"{WORKS[work].title} · {VARIANT_TITLES[variant]} · {turn}"
        job = reconstructable_job(work, variant)
        if job is None:
            self._note(work, variant, "there is no such job among those of workspace.yaml", failed=False)
            return False
        try:
            times = forked(timed_run, job, variant, limit=LIMIT_SECS)
        except Failed as failure:
            say(f"{title}: {failure}")
            self._note(work, variant, str(failure), failed=True)
            return False
        say(f"{title}: {times.seconds:.2f} s")
        self.samples.append({"work": work, "variant": variant, **asdict(times)})
        return True

    def _note(self, work: str, variant: str, note: str, failed: bool) -> None:
        self.notes.append({"work": work, "variant": variant, "note": note, "failed": failed})


def measure(work: str, number: int) -> dict[str, Any]:
    """A work with each of its variants in turn, in as many rounds."""
    rounds = Rounds()
    spent = dict.fromkeys(WORKS[work].variants, 0.0)
    for turn in range(1, number + 1):
        for variant in [each for each, seconds in spent.items() if seconds < PATIENCE_SECS]:
            started = time.monotonic()
            if rounds.give(work, variant, f"{turn} of {number}"):
                spent[variant] += time.monotonic() - started
            else:
                del spent[variant]
    return asdict(rounds)


def warm_up() -> None:
    """Let the processes of all workers load what they have not yet."""
    for variant in ("stack", "stock"):
        say(f"warming up · {VARIANT_TITLES[variant]}")
        job = reconstructable_job(WARM_UP, variant)
        assert job
        forked(timed_run, job, variant)
