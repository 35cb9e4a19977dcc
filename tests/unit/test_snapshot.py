"""What a scrape's figures say of the stack: all is well, something is not, or nobody knows."""

import json
from collections.abc import Iterator

import pytest
import requests
from sqlalchemy.exc import OperationalError

from dagster_stack.monitoring.formatting import counted, number, percent, seconds, size
from dagster_stack.monitoring.prometheus import Prometheus
from dagster_stack.monitoring.snapshot import Alerting, Alerts, Snapshot, Verdict, store_of
from tests.unit.figures_by_hand import CODE, WELL, Rows, figures
from tests.unit.prometheus_stub import PrometheusStub, alert


@pytest.fixture
def stub() -> Iterator[PrometheusStub]:
    with PrometheusStub() as stub:
        yield stub


def snapshot(alerts: Alerts | None = None, without: tuple[str, ...] = (), /, **changed: Rows) -> Snapshot:
    return Snapshot.of(figures(without, **changed), 1000.0, alerts or Alerts())


def test_a_stack_at_work_is_well_and_says_what_it_does() -> None:
    well = snapshot()

    assert well.verdict is Verdict.WELL
    assert well.headline == "All is well: 6 runs in progress, 8 steps running, 812 waiting."
    assert well.runs.by_status == {"queued": 3, "started": 3}
    assert well.runs.by_job == {"flights": 2, "nightly": 4}
    assert [queue.name for queue in well.queues] == ["dagster", "heavy"]
    assert well.queues[0].workers == {CODE: 8}
    assert well.stores.database_connections == 44
    assert well.stores.bucket_bytes == 3.12e9


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"dagster_queue_consumers": [({"queue": "dagster"}, 0)], "dagster_worker_processes": []},
            "No worker on the queue dagster, and 804 messages in it: `make workers`.",
        ),
        (
            {"dagster_daemon_heartbeat_age_seconds": [({"daemon": "SENSOR"}, 700)]},
            "Daemon sensor is silent for 11 min 40 s: `docker compose logs daemon`.",
        ),
        (
            {"dagster_daemon_heartbeat_age_seconds": []},
            "No daemon has given a sign of life yet: `make ps` shows the service `daemon`.",
        ),
        (
            {"dagster_workers": [({"queue": "heavy", "code": "other"}, 1), ({"queue": "heavy", "code": CODE}, 1)]},
            "1 worker on heavy with other code: `make deploy`.",
        ),
        (
            {"dagster_database_connections": [({"state": "idle"}, 190)]},
            "Postgres has 190 of 197 connections in use: raise POSTGRES_MAX_CONNECTIONS in .env, then `make up`.",
        ),
        (
            {"dagster_broker_alarm": [({"kind": "memory"}, 0), ({"kind": "disk"}, 1)]},
            "RabbitMQ is short of disk and takes no messages: docs/runbooks/broker-alarm.md.",
        ),
        (
            {"dagster_host_workers": [({"host": "box2"}, 2), ({"host": "box3"}, 0)]},
            "No worker of host box3 answers: `make hosts`.",
        ),
    ],
)  # fmt: skip
def test_what_the_figures_show_as_wrong_is_said_with_the_cure(changed: dict[str, Rows], problem: str) -> None:
    unwell = snapshot(**changed)

    assert unwell.problems == (problem,)
    assert unwell.verdict is Verdict.UNWELL
    assert unwell.headline == "1 thing to look at."


def test_a_host_whose_workers_make_autoscale_has_taken_away_is_no_problem() -> None:
    answering: Rows = [({"host": "box2"}, 0), ({"host": "box3"}, 0)]
    there: Rows = [({"host": "box2"}, 0), ({"host": "box3"}, 1)]

    found = snapshot(dagster_host_workers=answering, dagster_autoscale_host_workers=there)
    assert found.problems == ("No worker of host box3 answers: `make hosts`.",)


def test_a_queue_whose_workers_are_busy_since_before_they_lost_the_broker_is_no_problem() -> None:
    assert snapshot(dagster_queue_consumers=[({"queue": "dagster"}, 0)]).problems == ()


def test_a_queue_without_workers_and_without_work_is_no_problem() -> None:
    assert (
        snapshot(dagster_queue_consumers=[({"queue": "dagster"}, 8), ({"queue": "heavy"}, 0)]).problems == ()
    )


@pytest.mark.parametrize("name", list(WELL))
def test_what_nobody_measures_is_unknown_and_no_zero(name: str) -> None:
    """One family at a time: nothing else depends on it, and no 0 stands in for it."""
    partial = snapshot(None, (name,))

    assert partial.problems == ()
    assert json.loads(json.dumps(partial.as_json())) != json.loads(json.dumps(snapshot().as_json()))
    assert "null" in json.dumps(partial.as_json())


def test_nothing_in_progress_is_0_and_not_unknown() -> None:
    idle = snapshot(dagster_runs=[], dagster_steps=[])

    assert idle.runs.by_status == {}
    assert idle.queues[0].waiting == 0
    assert idle.headline == "All is well: 0 runs in progress, 0 steps running, 0 waiting."


def test_while_a_store_is_away_nothing_is_claimed() -> None:
    away = Snapshot.of((), 1000.0, Alerts(), away="Postgres")

    assert away.verdict is Verdict.UNKNOWN
    assert away.headline == "Postgres does not answer: `make ps` shows its state, `make up` starts it."
    assert away.problems == ()
    assert away.queues == ()


def test_the_json_has_stable_keys() -> None:
    document = snapshot().as_json()

    assert list(document) == [
        "verdict", "headline", "problems", "at", "runs", "queues", "code", "daemons", "leader", "stores", "alerts", "away",
        "autoscale", "hosts", "autoscale_hosts",
    ]  # fmt: skip
    assert list(document["queues"][0]) == [
        "name", "waiting", "running", "oldest_wait_seconds", "ready", "in_flight", "consumers", "utilisation",
        "processes", "workers",
    ]  # fmt: skip
    assert document["alerts"] == {"state": "off", "firing": (), "complaint": ""}
    assert set(document) == set(Snapshot.of((), 1.0, Alerts(), away="Postgres").as_json())


def test_steps_of_other_executors_are_a_row_while_there_are_some() -> None:
    none = {"queue": "none", "state": "running"}
    assert "none" in {queue.name for queue in snapshot(dagster_steps=[(none, 1)]).queues}
    assert "none" not in {queue.name for queue in snapshot(dagster_steps=[(none, 0)]).queues}


# Alerts.


def test_alerts_that_fire_make_the_stack_unwell(stub: PrometheusStub) -> None:
    stub.alerts = [
        alert("StepWaits", "A step waits.", queue="heavy"),
        alert("NotYet", "Soon.", state="pending"),
        alert("Bare", queue="heavy", severity="critical"),
    ]

    alerts = Alerts.ask(Prometheus(stub.url))
    assert [(each.name, each.severity, each.summary) for each in alerts.firing] == [
        ("Bare", "critical", "queue heavy"),
        ("StepWaits", "warning", "A step waits."),
    ]
    assert snapshot(alerts).verdict is Verdict.UNWELL
    assert snapshot(alerts).headline == "2 things to look at."


def test_without_prometheus_alerts_are_off() -> None:
    address = {"DAGSTER_STACK_PROMETHEUS_URL": "http://prometheus:9090"}
    assert Prometheus.from_environment({}) is None
    assert Prometheus.from_environment({**address, "DAGSTER_STACK_PROFILES": "postgres,minio"}) is None
    assert Prometheus.from_environment({**address, "DAGSTER_STACK_PROFILES": "postgres, monitoring"})
    assert Alerts.ask(None).state is Alerting.OFF


@pytest.mark.parametrize(
    ("status", "body"), [(503, b"{}"), (200, b"<html>"), (200, b"{}"), (200, b"[]"), (200, b'{"data": null}')]
)
def test_a_prometheus_that_answers_nonsense_is_away_and_its_address_is_not_told(
    stub: PrometheusStub, status: int, body: bytes
) -> None:
    stub.http_status, stub.raw_body = status, body

    alerts = Alerts.ask(Prometheus(stub.url))

    assert alerts.state is Alerting.AWAY
    assert "Prometheus does not answer" in alerts.complaint
    assert stub.url not in alerts.complaint


def test_the_store_is_told_from_the_error_without_what_the_error_says() -> None:
    assert store_of(OperationalError("SELECT", {}, Exception("host db.example.com"))) == "Postgres"
    assert store_of(requests.ConnectionError("http://rabbitmq:15672")) == "RabbitMQ's management"
    assert store_of(ValueError("anything")) == "A store"


# Words.


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "?"),
        (0, "0.0 s"),
        (9.96, "10 s"),
        (59.9, "60 s"),
        (65, "1 min 05 s"),
        (3725, "1 h 02 min"),
        (1e5, "1 d 03 h"),
    ],
)
def test_durations_in_words(value: float | None, words: str) -> None:
    assert seconds(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "?"),
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (999_960, "1.0 MB"),
        (1.2e8, "120 MB"),
        (3e15, "3000 TB"),
    ],
)
def test_sizes_in_words(value: float | None, words: str) -> None:
    assert size(value) == words


def test_numbers_in_words() -> None:
    assert (number(None), number(1234567.0), counted(1, "step"), counted(None, "step"), percent(0.5), percent(None)) == (
        "?", "1,234,567", "1 step", "? steps", "50 %", "?",
    )  # fmt: skip


@pytest.mark.parametrize(("put", "multipart", "is_said"), [(1, 1, False), (0, 1, True), (1, 0, True)])
def test_a_store_that_can_not_refuse_late_writes_is_noted_and_no_alarm(
    put: float, multipart: float, is_said: bool
) -> None:
    fences: Rows = [({"write": "put"}, put), ({"write": "multipart"}, multipart)]

    noted = snapshot(dagster_store_fences=fences)

    assert noted.verdict is Verdict.WELL
    assert any("may overwrite" in note for note in noted.notes) == is_said
    assert noted.as_json()["stores"]["store_fences"] == {"put": put, "multipart": multipart}
