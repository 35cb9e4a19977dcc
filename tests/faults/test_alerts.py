"""Each alert's event, made to happen: its expression is false before it and true in it, with the labels that its texts
name. `tests/prometheus` makes its series up; a figure that is misspelled, or that nobody gives, is seen here alone."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.alert_rules import EVENTS, RULES, shortened
from tests.conftest import PROJECT
from tests.faults import faults
from tests.faults.conftest import disk, small_disks
from tests.faults.faults import Fault
from tests.faults.grounds import LOCATION, SMALL, Grounds
from tests.stack.faults import worker_with_other_code
from tests.stack.monitoring import Monitoring
from tests.stack.stack import Stack
from tests.waiting import wait_until

NAME = f"{PROJECT}-alerts"
#: Seconds until all is quiet at first, and until figures have what happened: the slowest step fails after a minute.
QUIET_SECS, SEEN_SECS = 120, 100

START_SENSOR = """
mutation Start($sensor: SensorSelector!) {
  startSensor(sensorSelector: $sensor) { __typename ... on PythonError { message } }
}
"""

#: What Prometheus has for an expression.
Samples = list[Mapping[str, Any]]
ALERTS = {rule["alert"]: rule for rule in RULES if rule["alert"] in EVENTS}


@dataclass
class Watch:
    """The alerts' expressions in Prometheus. What is not as it must be within the time, the tests name."""

    monitoring: Monitoring
    before: dict[str, Samples] = field(default_factory=dict)
    then: dict[str, Samples] = field(default_factory=dict)

    def wait_until_quiet(self) -> None:
        """Until no expression is true."""

        def look() -> bool:
            self.before = {alert: self._query(alert) for alert in ALERTS}
            return not any(self.before.values())

        self._wait(look, QUIET_SECS)

    def wait_for(self, *alerts: str) -> None:
        """Until each of these expressions was true once."""

        def look() -> bool:
            for alert in set(alerts) - self.then.keys():
                if found := self._query(alert):
                    self.then[alert] = found
            return self.then.keys() >= set(alerts)

        self._wait(look, SEEN_SECS)

    def _query(self, alert: str) -> Samples:
        return self.monitoring.query(shortened(ALERTS[alert]))

    def _wait(self, look: Callable[[], bool], timeout: float) -> None:
        with suppress(AssertionError):
            wait_until(look, timeout, "the alerts' expressions")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with small_disks(NAME, COMPOSE_PROFILES="monitoring", BACKUP="daily") as stack:
        yield stack


@pytest.fixture(scope="module")
def watch(stack: Stack) -> Watch:
    """All events have happened: those at the same time that bear each other, and the harshest last."""
    watch = Watch(Monitoring(stack))
    watch.monitoring.wait_for_targets()
    old = stack.succeed("parallel_pipeline")
    watch.wait_until_quiet()
    with ExitStack() as events:

        def begin(fault: Fault) -> None:
            events.enter_context(fault.inject(stack))

        # Retention that fails
        stack.sql(f"UPDATE runs SET end_time = end_time - 2 * 365 * 86400 WHERE run_id = '{old}'")
        begin(faults.runs_undeletable(SEEN_SECS))
        stack.make("retention", check=False)
        # A service that is down, steps that fail and wait, a sensor that fails
        begin(faults.stopped("flower"))
        begin(faults.stopped("worker-heavy"))
        events.enter_context(worker_with_other_code(stack, "heavy"))
        stack.launch("queues")
        Grounds(stack).launch(SMALL, {"leaf[n0]": {"how": "exit", "times": 10}})
        start_sensor(stack, "broken")
        watch.wait_for(
            "RetentionFails", "NoFigures", "CodeMismatch", "StepWaitsTooLong", "TicksFail", "DeliveryLimitHit"
        )
        # Then a run without a runner, and one without the daemon
        begin(faults.stopped("runner"))
        run_id = stack.launch("parallel_pipeline")
        wait_until(lambda: stack.run(run_id)["status"], 60, "a run sent", until=lambda at: at == "STARTING")
        begin(faults.stopped("daemon"))
        stack.launch("parallel_pipeline")
        watch.wait_for(
            "RunsStuck", "NoWorkerOnQueue", "NoWorkerWithTheCode", "RunQueueStandsStill", "DaemonSilent"
        )
        # Then stores that are full
        begin(faults.connections_held(0.9))
        begin(faults.disk_full("minio", disk(NAME, "minio"), SEEN_SECS))
        begin(faults.repository_closed(SEEN_SECS))
        begin(faults.disk_alarm(SEEN_SECS))
        begin(faults.memory_alarm())
        watch.wait_for(
            "DatabaseConnectionsNearLimit", "BucketNearlyFull", "BrokerDiskAlarm", "BrokerMemoryAlarm",
            "BackupPointTooOld",
        )  # fmt: skip
    return watch


def start_sensor(stack: Stack, name: str) -> None:
    selector = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "sensorName": name}
    answer = stack.graphql(START_SENSOR, sensor=selector)["startSensor"]
    assert answer["__typename"] == "Sensor", answer


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_silent_before_its_event_and_true_in_it(watch: Watch, alert: str) -> None:
    expression = shortened(ALERTS[alert])
    assert not watch.before[alert], f"{expression} is true while all is well"
    assert watch.then.get(alert), f"{EVENTS[alert]}, and Prometheus has nothing for {expression}"


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_the_labels_that_its_texts_name(watch: Watch, alert: str) -> None:
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(ALERTS[alert]["annotations"].values())))
    for sample in watch.then.get(alert, []):
        assert named <= sample["metric"].keys(), sample
