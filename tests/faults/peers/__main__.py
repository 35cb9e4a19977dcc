"""`python -m tests.faults.peers [FAULT …]`: each peer under each fault on a copy of the stack; prints a table.

A run of 40 steps of 2 s; the fault comes once some steps have ended and others run. All peers at once, each with
what it needs for itself. What was killed is started again at once, as a restart policy does.
"""

import argparse
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from scripts.console import say
from scripts.markdown import table
from tests.conftest import PROJECT, copy_of_stack
from tests.faults.peers.jobs import STEPS
from tests.faults.peers.peer import Peer, Seen
from tests.stack import faults
from tests.stack.stack import Stack
from tests.waiting import wait_until

#: The stack's own workers have nothing to do here.
SETTINGS = {"WORKERS": "0", "HEAVY_WORKERS": "0", "RUNNERS": "1", "RUNNER_CONCURRENCY": "1"}
#: Seconds after the fault within which a run must have ended.
PATIENCE_SECS = 300
#: Steps that have ended before the fault.
ENDED_BEFORE = 4
PEERS = (
    Peer("peer_default", "celery executor, default launcher", "on_workers", celery_launcher=False, step_workers=2),
    Peer("peer_celery", "celery executor, CeleryRunLauncher", "on_workers", celery_launcher=True, step_workers=2),
    Peer("peer_single", "in-process executor, CeleryRunLauncher", "in_one_process", celery_launcher=True,
         step_workers=0),
)  # fmt: skip
NONE, WORKER, DRIVER, BROKER = "none", "a worker killed", "what drives the run killed", "RabbitMQ killed"
#: The faults as the command line names them.
NAMES = {"none": NONE, "worker": WORKER, "driver": DRIVER, "broker": BROKER}


@dataclass(frozen=True)
class Outcome:
    """How a run was when it ended, or when patience did."""

    seen: Seen
    seconds: float | None
    reasons: list[str]

    @property
    def row(self) -> list[str]:
        lost = STEPS - len(self.seen.ended)
        twice = sum(count > 1 for count in self.seen.started.values())
        after = f"{self.seconds:.0f} s" if self.seconds is not None else f"not within {PATIENCE_SECS} s"
        return [self.seen.status, after, str(lost), str(twice)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.peers", description=__doc__)
    parser.add_argument(
        "faults", nargs="*", metavar="FAULT", help=f"one of {', '.join(NAMES)}; all without one"
    )
    names = parser.parse_args().faults or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    rows = []
    with copy_of_stack(f"{PROJECT}-peers", SETTINGS) as stack:
        for fault in map(NAMES.__getitem__, names):
            for peer, outcome in suffered(stack, fault).items():
                say(f"{fault} · {peer.title}: {outcome.row} {outcome.reasons}")
                rows.append([fault, peer.title, *outcome.row])
    say(f"\nMeasured on {datetime.now(UTC):%Y-%m-%d}.\n")
    say(
        table(
            ["fault", "peer", "run", "ended after", "steps without an end", "steps begun twice"],
            rows,
            numbers=3,
        )
    )


def suffered(stack: Stack, fault: str) -> dict[Peer, Outcome]:
    """The outcome of a fault for each peer that can suffer it."""
    peers = [peer for peer in PEERS if fault != WORKER or peer.step_workers]
    try:
        for peer in peers:
            peer.start(stack)
        for peer in peers:
            peer.launch(stack)
        for peer in peers:
            wait_until_under_way(stack, peer)
        inject(stack, peers, fault)
        return outcomes(stack, peers)
    finally:
        for peer in PEERS:
            peer.stop(stack)
        stack.wait_until_healthy()


def wait_until_under_way(stack: Stack, peer: Peer) -> None:
    wait_until(
        lambda: peer.seen(stack), 180, f"{ENDED_BEFORE} steps of {peer.title} ended",
        until=lambda seen: seen.is_over or len(seen.ended) >= ENDED_BEFORE,
    )  # fmt: skip


def inject(stack: Stack, peers: list[Peer], fault: str) -> None:
    if fault == BROKER:
        faults.crash(stack.pid(stack.container("rabbitmq")))
    for peer in peers:
        if fault == WORKER:
            peer.kill(stack, "worker0")
        if fault == DRIVER:
            peer.kill(stack, "runner" if peer.celery_launcher else "daemon")


def outcomes(stack: Stack, peers: list[Peer]) -> dict[Peer, Outcome]:
    began = time.monotonic()
    found: dict[Peer, Outcome] = {}
    while len(found) < len(peers):
        elapsed = time.monotonic() - began
        for peer in peers:
            if peer not in found and ((seen := peer.seen(stack)).is_over or elapsed > PATIENCE_SECS):
                found[peer] = Outcome(seen, elapsed if seen.is_over else None, peer.reasons(stack))
        time.sleep(1)
    return found


if __name__ == "__main__":
    main()
