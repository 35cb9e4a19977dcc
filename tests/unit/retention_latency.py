"""How long a step's event write takes while retention works, and while it does not: `python -m tests.unit.retention_latency`.

One process writes as a step does, fenced, 100 times a second; another removes old runs. On Postgres with its data on disk.
The other one is stopped every few seconds, since a machine has better and worse minutes.
"""

import multiprocessing
import os
import signal
import time

from dagster import DagsterEventType

from dagster_stack.retention.session import Pace
from tests.unit import old_runs, postgres_server
from tests.unit.holders import Database, any_work, entry

RUNS, TURN_SECS, PAUSE_SECS = 5000, 4, 0.01


def writes(database: Database, seconds: float) -> list[float]:
    """Seconds of each write of a step's event, for so long."""
    end = time.monotonic() + seconds
    work, storage = any_work(), database.process().event_log_storage
    taken = []
    with storage.holding(database.taken(work, "measured")):
        while time.monotonic() < end:
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


def told(name: str, taken: list[float]) -> None:
    ordered = sorted(taken)
    at = {share: ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.95, 0.99)}
    print(f"  {name:<16} {len(taken):>5} writes, ms: " + ", ".join(f"p{s * 100:.0f} {v:.2f}" for s, v in at.items()), flush=True)  # fmt: skip


def main() -> None:
    postgres_server.OPTIONS[:] = ["listen_addresses=", "max_connections=100", "shared_buffers=256MB", "max_wal_size=1GB"]  # fmt: skip
    quiet, busy = list[float](), list[float]()
    with postgres_server.postgres_server() as server, server.database() as url:
        database = Database(url)
        old_runs.store(database, RUNS)
        database.execute("CHECKPOINT")
        writes(database, TURN_SECS)
        process = multiprocessing.get_context("spawn").Process(target=remove, args=(url,))
        process.start()
        while process.is_alive():
            busy += writes(database, TURN_SECS)
            os.kill(process.pid or 0, signal.SIGSTOP)
            quiet += writes(database, TURN_SECS)
            os.kill(process.pid or 0, signal.SIGCONT)
        process.join()
    told("without", quiet)
    told("with", busy)


if __name__ == "__main__":
    main()
