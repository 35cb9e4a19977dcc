"""All figures of the stack in one registry: what Prometheus is given, and what `make status` shows."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.engine import Engine

from dagster_stack.messaging.management import BrokerApi
from dagster_stack.messaging.task_names import RUN_QUEUE
from dagster_stack.monitoring import gauges, queues
from dagster_stack.monitoring.bucket import Bucket, Listing
from dagster_stack.monitoring.counters import History
from dagster_stack.monitoring.database import database
from dagster_stack.monitoring.workers import RollCall, Workers
from dagster_stack.objects.client import s3_client
from dagster_stack.settings import Settings, broker_address

#: Seconds that one who asks waits for those before: about as long as one of them may wait for a store. Else requests
#: would pile up while a store hangs.
TURN_SECS = 8

Source = Callable[[], Iterable[Metric]]


class Figures(Collector):
    """A source that fails makes them all fail: half of them would look like all."""

    def __init__(
        self, engine: Engine, broker: BrokerApi | None = None, sources: Iterable[Source] = ()
    ) -> None:
        self._engine, self._broker, self._sources = engine, broker, tuple(sources)
        # Prometheus has no use for the times at which counters began.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._history = History(self._registry)
        #: Two scrapes at once, Prometheus's and a person's, must not both read the log on.
        self._lock = threading.Lock()

    def collect(self) -> list[Metric]:
        """As of now. Raises what a store raises; the next call begins on fresh connections. Raises TimeoutError when
        others, who asked before, still wait for a store."""
        if not self._lock.acquire(timeout=TURN_SECS):
            raise TimeoutError(f"others wait for a store since more than {TURN_SECS} s")
        try:
            return [*self._now(), *self._registry.collect()]
        except Exception:
            self._engine.dispose()
            raise
        finally:
            self._lock.release()

    def _now(self) -> Iterator[Metric]:
        if self._broker:
            depths = self._broker.read_all()
            # Their counters begin at 0 before anything happens on them.
            self._history.know(depth.name for depth in depths if depth.name != RUN_QUEUE)
            yield from queues.figures(depths)
            yield from queues.alarms(self._broker.read_alarms())
        began = time.perf_counter()
        with self._engine.connect() as connection:
            self._history.look(connection, time.time())
            yield from gauges.figures(connection)
        yield GaugeMetricFamily(
            "dagster_metrics_database_seconds",
            "What the database took to answer for this scrape.",
            value=time.perf_counter() - began,
        )
        for source in self._sources:
            yield from source()


def figures_of_stack(environment: Mapping[str, str] = os.environ) -> Figures:
    """Of the stores and the broker that the environment names; what is slow to ask is asked in threads from now on."""
    sources: list[Source] = []
    if broker := broker_address(environment):
        workers = Workers()
        RollCall(broker, workers).start()
        sources.append(workers.figures)
    settings = Settings.from_environment(environment)
    if settings.s3:
        bucket = Bucket()
        client, within = s3_client(settings.s3.endpoint_url), settings.s3.key_prefix
        prefixes = (Settings.data_prefix, Settings.log_prefix)
        Listing(client, settings.s3.bucket, prefixes, bucket, within).start()
        sources.append(bucket.figures)
    return Figures(database(environment), BrokerApi.from_environment(environment), sources)
