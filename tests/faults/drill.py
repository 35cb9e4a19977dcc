"""A drill: load, a fault after evidence that the load is under way, and a verdict when all has ended."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field

from scripts.drills import LEDGER, Row
from tests.faults import marks
from tests.faults.faults import Fault, running
from tests.faults.grounds import LARGE, NAP_SECS, SMALL, Grounds, Troubles
from tests.faults.marks import Mark
from tests.faults.verdict import Blow, Evidence, Verdict, judge
from tests.stack import runs
from tests.stack.stack import Stack
from tests.waiting import wait_until

#: Steps that have ended when the fault comes: the load is under way, and far from its end.
EVIDENCE = 10
#: A step that takes so long that a fault meets it.
SLOW_STEP, SLOW = "leaf[n30]", {"leaf[n30]": {"how": "sleep", "seconds": 6}}
#: What each run ends with.
LAST_STEP = "report"
#: Complaints that a failed drill prints.
TOLD = 20
#: Seconds within which the queues are empty after the last run's end, and every container is healthy.
EMPTY_SECS, HEALTHY_SECS = 60, 180
#: The promises: seconds until each worker takes work again, and until the slots of a pool are free.
CANARY_SECS, SLOTS_SECS = 60, 30


class NothingTried(AssertionError):
    """Raised when a fault takes so long to come that its load has ended by then."""


@dataclass(frozen=True)
class Canaries:
    """A run that ends when each of so many workers executes a step of it, and since when they may."""

    run_id: str
    workers: int
    since: float


@dataclass
class Drill:
    """One drill on these grounds: what is given, when the fault comes, then the verdict."""

    grounds: Grounds
    when: str = ""
    keys: int = 0
    run_ids: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    blow: Blow = field(default_factory=lambda: Blow(0, 0))
    complaints: list[str] = field(default_factory=list)
    canaries: Canaries | None = None

    @property
    def stack(self) -> Stack:
        return self.grounds.stack

    # --- given -------------------------------------------------------------------------------------------

    def steps_in_flight(
        self, troubles: Troubles | None = None, nap: float = NAP_SECS, tags: dict[str, str] | None = None
    ) -> None:
        """One run of many steps, under way. `nap`: how long each takes."""
        self._load(f"{LARGE} steps in flight", LARGE, [troubles or {}], nap, tags)
        self.wait_for_evidence()

    def runs_in_flight(self, runs: int = 20) -> None:
        """Many runs of some steps, the first of them under way."""
        self._load(f"{runs} runs in flight", SMALL, [{}] * runs)
        self.wait_for_evidence()

    def runs_just_launched(self, runs: int = 20) -> None:
        """Many runs that were submitted this very moment."""
        self._load(f"{runs} runs just launched", SMALL, [{}] * runs)

    def backfill_begun(self, runs: int = 20) -> str:
        """A backfill that has made some of its runs; returns its id."""
        self.when, self.keys = f"a backfill of {runs} begun", SMALL
        backfill = self.grounds.launch_backfill([f"p{number}" for number in range(runs)])
        wait_until(lambda: self.grounds.with_tag("dagster/backfill", backfill), 60, "runs of the backfill")
        return backfill

    def _load(
        self,
        when: str,
        keys: int,
        troubles: Sequence[Troubles],
        nap: float = NAP_SECS,
        tags: dict[str, str] | None = None,
    ) -> None:
        self.when, self.keys = when, keys
        self.run_ids = [self.grounds.launch(keys, each, tags, nap) for each in troubles]

    def wait_for_evidence(self, ended: int = EVIDENCE) -> None:
        """Until so many steps have ended, and others are being executed."""
        wait_until(
            self.marks, 180, f"{ended} steps ended and others under way", pause=0.05,
            until=lambda seen: sum(mark.what == "end" for mark in seen) >= ended and marks.under_way(seen),
        )  # fmt: skip

    def wait_until_begun(self, step: str) -> None:
        wait_until(
            self.marks, 180, f"{step} begun", pause=0.05,
            until=lambda seen: any(mark.step == step for mark in seen),
        )  # fmt: skip

    def wait_for_messages(self, queue: str, number: int) -> None:
        wait_until(
            self.grounds.waiting_messages, 60, f"{number} messages in {queue}",
            until=lambda waiting: waiting.get(queue, 0) >= number,
        )  # fmt: skip

    def container_executing(self, step: str) -> str:
        """The container in which a step has begun."""
        self.wait_until_begun(step)
        host = next(mark.host for mark in self.marks() if mark.step == step)
        containers = running(self.stack, "worker")
        return next(name for name in containers if self.stack.inspect(name)["Config"]["Hostname"] == host)

    def executions(self, step: str) -> int:
        """How often a step was begun."""
        return sum(mark.step == step and mark.what == "begin" for mark in self.marks())

    def _all_has_ended(self) -> bool:
        """Whether each run's last step has ended."""
        ended = {mark.run_id for mark in self.marks() if (mark.what, mark.step) == ("end", LAST_STEP)}
        return bool(self.run_ids) and ended == set(self.run_ids)

    def marks(self) -> list[Mark]:
        return marks.read(self.grounds.marks, self.run_ids)

    # --- when --------------------------------------------------------------------------------------------

    def strike(self, *faults: Fault) -> None:
        """Let faults come at the same time, last, and be over, whatever is broken then."""
        with self.during(*faults):
            # The length of the fault itself, no guess of when something is ready.
            time.sleep(max(fault.lasts or 0 for fault in faults))

    @contextmanager
    def during(self, *faults: Fault) -> Iterator[None]:
        """The body is executed while the faults are there."""
        self.faults = [fault.name for fault in faults]
        came = time.time()
        with ExitStack() as at_once:
            for fault in faults:
                at_once.enter_context(fault.inject(self.stack))
            seen = time.time()
            if self._all_has_ended():
                raise NothingTried("the load had ended before the fault was there")
            yield
        crashes = all(fault.lasts is None for fault in faults)
        self.blow = Blow(seen, seen) if crashes else Blow(came, time.time())
        if all(fault.of_broker for fault in faults):
            self._release_canaries()

    def harm_of_its_own(self, name: str, step: str) -> None:
        """The load does the harm itself, as it was told: when this step begins."""
        self.faults = [name]
        self.wait_until_begun(step)
        self.blow = Blow(time.time(), time.time())

    def _release_canaries(self) -> None:
        workers = len(running(self.stack, "worker"))
        since = time.time()
        self.canaries = Canaries(self.grounds.launch_canaries(workers), workers, since)

    # --- then --------------------------------------------------------------------------------------------

    def nothing_is_lost(self, end: str = "SUCCESS") -> Verdict:
        """Wait for the end of all; record what it cost; fail with everything that is not as it must be."""
        ends = self.grounds.wait_for(self.run_ids)
        for check in (
            self._slots_are_free,
            self._all_is_healthy,
            self._every_worker_works,
            self._queues_are_empty,
        ):
            self._check(check)
        objects = {run_id: self.grounds.objects(run_id) for run_id in self.run_ids}
        evidence = Evidence(ends, self.grounds.events(self.run_ids), self.marks(), objects)
        verdict = judge(evidence, self.grounds.references[self.keys], self.blow, end)
        self.complaints += verdict.complaints
        self._record(verdict, end)
        told = "\n".join(self.complaints[:TOLD])
        assert not self.complaints, f"{len(self.complaints)} complaints, the first of them:\n{told}"
        return verdict

    def fails_and_goes_on(self, reason: str) -> None:
        """The run has failed with this reason in its log; once that is cured, a re-execution does what was left."""
        (run_id,) = self.run_ids
        self.nothing_is_lost(end="FAILURE")
        assert any(reason in text for text in self.stack.failure_texts(run_id))
        again = runs.reexecute(self.stack, run_id)
        assert self.grounds.wait_for([again]) == {again: "SUCCESS"}
        objects = self.grounds.objects(run_id) | self.grounds.objects(again)
        assert objects == self.grounds.references[self.keys].objects

    def _check(self, check: Callable[[], None]) -> None:
        """What one check finds does not keep the others from being made."""
        try:
            check()
        except AssertionError as error:
            self.complaints.append(str(error))

    def _slots_are_free(self) -> None:
        wait_until(self.grounds.slots_taken, SLOTS_SECS, "all slots free", until=lambda taken: not taken)

    def _all_is_healthy(self) -> None:
        self.stack.wait_until_healthy(timeout=HEALTHY_SECS)

    def _every_worker_works(self) -> None:
        if not self.canaries:
            self._release_canaries()
        assert self.canaries
        run_id, workers, since = self.canaries.run_id, self.canaries.workers, self.canaries.since
        ends = self.grounds.wait_for([run_id], 2 * CANARY_SECS)
        done = [mark for mark in marks.read(self.grounds.marks, [run_id]) if mark.what == "end"]
        after = {mark.host: round(mark.at - since, 1) for mark in done if mark.step != "heavy_canary"}
        assert ends == {run_id: "SUCCESS"}, f"of {workers} workers only {after} work again: {ends}"
        assert max(after.values()) < CANARY_SECS, f"workers work again after {after} s"

    def _queues_are_empty(self) -> None:
        wait_until(
            self.grounds.waiting_messages, EMPTY_SECS, "all queues empty", until=lambda waiting: not waiting
        )

    def _record(self, verdict: Verdict, end: str) -> None:
        row = Row(
            fault=" and ".join(self.faults),
            when=self.when,
            runs=verdict.runs,
            steps=verdict.steps,
            lost=verdict.lost,
            run_twice=verdict.run_twice,
            recovered_after=verdict.recovered_after,
            passed=not self.complaints,
            end=end,
        )
        print(row)
        LEDGER.parent.mkdir(parents=True, exist_ok=True)
        with LEDGER.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
