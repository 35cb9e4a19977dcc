"""Which workers are alive, with which code, and how busy: asked of them, again and again, beside the scrapes.

A scrape must not wait for the last worker's answer, so it gets what the last roll call said.
"""

import logging
import os
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from dagster_stack.code_version import code_version
from dagster_stack.messaging.connection import connected
from dagster_stack.messaging.workers import UNKNOWN, Worker, ask

logger = logging.getLogger(__name__)

#: Names the further hosts that have joined, parted by commas.
HOSTS_VARIABLE = "DAGSTER_STACK_HOSTS"
#: Seconds between two roll calls.
INTERVAL_SECS = 4
#: Seconds without a roll call after which its figures are none. Above a few failed ones.
STALE_SECS = 30
#: Seconds that the very first figures wait for a roll call: who looks once wants to see workers.
FIRST_SECS = 3


class Workers:
    """The last roll call as figures. A worker that is gone is in none of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._present: Sequence[Worker] | None = None
        self._asked = threading.Event()
        self._asked_at = clock()
        #: A queue whose last worker went has 0 processes; nobody would see a figure that just ends.
        self._queues: set[str] = set()
        #: Likewise each further host.
        self._hosts = {name for name in os.environ.get(HOSTS_VARIABLE, "").split(",") if name}

    def update(self, present: Sequence[Worker]) -> None:
        """Keep the answers to a roll call."""
        self._present, self._asked_at = present, self._clock()
        self._queues.update(queue for worker in present for queue in worker.queues)
        self._hosts.update(worker.host for worker in present if worker.host)
        self._asked.set()

    def figures(self) -> Iterator[Metric]:
        """Waits for the first roll call, for a while; raises TimeoutError when the last one is too long ago."""
        self._asked.wait(FIRST_SECS)
        silence = self._clock() - self._asked_at
        if silence > STALE_SECS:
            raise TimeoutError(f"no roll call of the workers for {silence:.0f} s")
        code = GaugeMetricFamily("dagster_code", "1: the code of this deployment.", labels=["code"])
        code.add_metric([code_version() or UNKNOWN], 1)
        yield code
        if self._present is not None:
            yield from self._of(self._present)

    def _of(self, present: Sequence[Worker]) -> Iterator[Metric]:
        alive = Tally((queue, worker.code) for worker in present for queue in worker.queues)
        busy: Tally[str] = Tally()
        processes: Tally[str] = Tally()
        for worker in present:
            for queue in worker.queues:
                # Celery takes a task for a moment before a process has it.
                busy[queue] += min(worker.busy, worker.processes or 0)
                processes[queue] += worker.processes or 0
        workers = GaugeMetricFamily("dagster_workers", "Workers that answer.", labels=["queue", "code"])
        for labels, number in sorted(alive.items()):
            workers.add_metric(labels, number)
        pool = GaugeMetricFamily(
            "dagster_worker_processes",
            "Processes of workers, by whether they work.",
            labels=["queue", "state"],
        )
        utilisation = GaugeMetricFamily(
            "dagster_queue_utilisation", "Share of a queue's processes that work, 0 to 1.", labels=["queue"]
        )
        for queue in sorted(self._queues):
            pool.add_metric([queue, "busy"], busy[queue])
            pool.add_metric([queue, "idle"], processes[queue] - busy[queue])
            utilisation.add_metric([queue], busy[queue] / processes[queue] if processes[queue] else 0)
        yield from (workers, pool, utilisation)
        if self._hosts:
            answering = Tally(worker.host for worker in present)
            of_hosts = GaugeMetricFamily(
                "dagster_host_workers", "Workers and runners of a further host that answer.", labels=["host"]
            )
            for host in sorted(self._hosts):
                of_hosts.add_metric([host], answering[host])
            yield of_hosts


class RollCall(threading.Thread):
    """Asks the workers on a broker again and again. A broker that is away is asked again too."""

    def __init__(self, broker: str, workers: Workers) -> None:
        super().__init__(name="roll-call", daemon=True)
        self._broker, self._workers = broker, workers

    def run(self) -> None:
        failed = False
        while True:
            try:
                for present in roll_calls(self._broker):
                    self._workers.update(present)
                    failed = False
                    time.sleep(INTERVAL_SECS)
            except Exception as error:
                if not failed:
                    logger.warning(
                        "the workers can't be asked, trying again every %d s: %s",
                        INTERVAL_SECS,
                        error,
                        extra={"action": "workers.unasked"},
                    )
                failed = True
                time.sleep(INTERVAL_SECS)


def roll_calls(broker: str) -> Iterator[list[Worker]]:
    """What one roll call after the other says, on one connection as long as somebody answers: on a dead one nobody
    does. Raises BrokerUnreachable."""
    with connected(broker) as (app, connection):
        known = ask(app, connection)
        yield known
        while known := ask(app, connection, (each.name for each in known)):
            yield known
