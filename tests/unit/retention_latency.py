"""How long a step's event write takes while retention works, and while it does not: `python -m tests.unit.retention_latency`.

One process writes as a step does, fenced, 100 times a second; another removes the old runs. On Postgres with its data on
disk, in turns, since a machine has better and worse minutes.
"""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

from dagster import DagsterEventType

from dagster_stack.retention.session import Pace
from tests.unit import old_runs, postgres_server
from tests.unit.holders import Database, any_work, entry
from tests.unit.postgres_server import forget

ROUNDS, QUIET_SECS, PAUSE_SECS = 2, 30, 0.01


def writes(database: Database, goes_on: Callable[[], bool]) -> list[float]:
    """Seconds of each write of a step's event."""
    work, storage = any_work(), database.process().event_log_storage
    taken = []
    with storage.holding(database.taken(work, "measured")):
        while goes_on():
            event = entry(work.run_id, DagsterEventType.STEP_OUTPUT, text="x" * 500)
            began = time.perf_counter()
            storage.store_event(event)
            taken.append(time.perf_counter() - began)
            time.sleep(PAUSE_SECS)
    return taken


def remove(url: str) -> None:
    made = old_runs.retention(Database(url), old_runs.bucket_of_old_runs())
    made.pace = Pace()
    print(f"    {made.run()}", flush=True)


def for_seconds(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end


def told(name: str, taken: list[float]) -> None:
    ordered = sorted(taken)
    at = {share: ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.95, 0.99)}
    print(f"  {name:<16} {len(taken):>5} writes, ms: " + ", ".join(f"p{s * 100:.0f} {v:.2f}" for s, v in at.items()), flush=True)  # fmt: skip


def main() -> None:
    postgres_server.OPTIONS[:] = ["listen_addresses=", "max_connections=100", "shared_buffers=256MB", "max_wal_size=1GB"]  # fmt: skip
    quiet, busy = list[float](), list[float]()
    with postgres_server.postgres_server() as server, server.database() as template:
        old_runs.store(Database(template))
        forget(template)
        for number in range(1, ROUNDS + 1):
            print(f"round {number}", flush=True)
            with server.copy(Path(template.partition("?")[0]).name) as url:
                database = Database(url)
                database.execute("CHECKPOINT")
                quiet += writes(database, for_seconds(QUIET_SECS))
                process = multiprocessing.get_context("spawn").Process(target=remove, args=(url,))
                process.start()
                busy += writes(database, process.is_alive)
                process.join()
                quiet += writes(database, for_seconds(QUIET_SECS))
            told("so far quiet", quiet)
            told("so far retention", busy)


if __name__ == "__main__":
    main()
