"""The service `metrics`: what Prometheus gets, also while a store is away."""

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
import requests
from dagster import DagsterRunStatus
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from dagster_stack.errors import UsageError
from dagster_stack.monitoring.exporter import Exporter
from dagster_stack.monitoring.gauges import QUESTIONS
from dagster_stack.monitoring.metrics import Figures, figures_of_stack
from dagster_stack.store.connections import pooled_engine, url_from_environment
from tests.unit.holders import Database
from tests.waiting import wait_until


@pytest.fixture
def database(database_url: str) -> Database:
    database = Database(database_url)
    database.process()
    database.execute("UPDATE runs SET status = 'SUCCESS'")
    return database


@pytest.fixture
def exporter(database: Database) -> Iterator[Exporter]:
    engine = pooled_engine(database.url, 1)
    exporter = Exporter(Figures(engine), ("127.0.0.1", 0))
    thread = threading.Thread(target=exporter.serve_forever, daemon=True)
    thread.start()
    yield exporter
    exporter.shutdown()
    thread.join()
    exporter.server_close()
    engine.dispose()


def ask(exporter: Exporter, path: str = "/metrics") -> requests.Response:
    return requests.get(f"http://127.0.0.1:{exporter.server_address[1]}{path}", timeout=10)


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_question_has_an_answer(exporter: Exporter, database: Database) -> None:
    for _ in range(2):
        database.run(DagsterRunStatus.CANCELING)
    database.execute("UPDATE runs SET status = 'QUEUED' WHERE status = 'CANCELING'")
    database.run(DagsterRunStatus.STARTED)
    answer = ask(exporter)
    assert answer.status_code == 200
    found = samples(answer.text)
    assert found["dagster_run_queue_length",] == 2
    assert found["dagster_runs", "a_job", "queued"] == 2
    assert found["dagster_runs", "a_job", "started"] == 1
    assert {f"# TYPE {question.name} gauge" for question in QUESTIONS} <= set(answer.text.splitlines())


def test_no_run_is_named(exporter: Exporter, database: Database) -> None:
    run = database.run(DagsterRunStatus.STARTED)
    assert run.run_id not in ask(exporter).text


def test_another_page_is_not_there(exporter: Exporter) -> None:
    answer = ask(exporter, "/favicon.ico")
    assert (answer.status_code, answer.text) == (404, "There are /, /status.json and /metrics.\n")


@pytest.mark.parametrize("host", ["evil.example", "[", "a.b:80", ""])
def test_a_page_of_the_internet_gets_no_figures(exporter: Exporter, host: str) -> None:
    url = f"http://127.0.0.1:{exporter.server_address[1]}/status.json"
    assert requests.get(url, headers={"Host": host}, timeout=10).status_code == 421


def test_a_client_that_leaves_early_is_one_line_in_the_log(
    exporter: Exporter, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    with socket.create_connection(("127.0.0.1", exporter.server_address[1]), timeout=10) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ")
    wait_until(
        lambda: [record for record in caplog.records if "a request ended early" in record.message],
        10, "the event in the log",
    )  # fmt: skip
    assert "Traceback" not in capfd.readouterr().err


def test_who_asks_while_others_wait_for_a_store_does_not_wait_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagster_stack.monitoring.metrics.TURN_SECS", 0.05)
    waits, goes_on = threading.Event(), threading.Event()

    def slow() -> list[Metric]:
        waits.set()
        goes_on.wait(10)
        return []

    engine = pooled_engine(database.url, 1)
    figures = Figures(engine, sources=[slow])
    first = threading.Thread(target=figures.collect)
    first.start()
    assert waits.wait(10)
    with pytest.raises(TimeoutError, match="others wait for a store"):
        figures.collect()
    goes_on.set()
    first.join()
    assert figures.collect()
    engine.dispose()


def test_a_scrape_that_a_store_refuses_fails_without_saying_why_and_the_next_one_is_well(
    exporter: Exporter, database: Database
) -> None:
    database.execute("ALTER TABLE runs RENAME TO away")
    try:
        answer = ask(exporter)
    finally:
        database.execute("ALTER TABLE away RENAME TO runs")
    assert answer.status_code == 500
    assert "away" not in answer.text
    assert ask(exporter).status_code == 200


def test_connections_that_died_are_replaced(exporter: Exporter, database: Database) -> None:
    assert ask(exporter).status_code == 200
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert ask(exporter).status_code == 200


def test_page_and_json_show_what_the_database_holds(exporter: Exporter, database: Database) -> None:
    # Given a run in progress, and a daemon that has just given a sign of life
    database.run(DagsterRunStatus.STARTED)
    database.execute(
        "INSERT INTO daemon_heartbeats (daemon_type, daemon_id, timestamp, body)"
        " VALUES ('SENSOR', 'x', now() AT TIME ZONE 'utc', '{}')"
    )

    # When page and JSON are asked for
    answer = ask(exporter, "/status.json").json()

    # Then they show it, and nothing of the stores that nobody asked
    assert answer["verdict"] == "well"
    assert answer["runs"]["by_status"] == {"started": 1}
    assert answer["runs"]["by_job"] == {"a_job": 1}
    assert 0 <= answer["daemons"]["SENSOR"] < 60
    assert answer["stores"]["database_connections"] >= 1
    assert answer["stores"]["bucket_bytes"] is None
    assert "1 run in progress" in ask(exporter, "/").text


def test_page_and_json_say_which_store_is_away(exporter: Exporter, database: Database) -> None:
    database.execute("ALTER TABLE runs RENAME TO away")
    try:
        answer = ask(exporter, "/status.json")
    finally:
        database.execute("ALTER TABLE away RENAME TO runs")
    assert answer.status_code == 503
    assert answer.json()["away"] == "Postgres"
    assert ask(exporter, "/status.json").status_code == 200


def test_figures_are_of_the_stores_that_the_environment_names() -> None:
    environment = {
        "DAGSTER_POSTGRES_HOST": "postgres", "DAGSTER_POSTGRES_PORT": "5432", "DAGSTER_POSTGRES_DB": "dagster",
        "DAGSTER_POSTGRES_USER": "dagster", "DAGSTER_POSTGRES_PASSWORD": "a/b@c",
    }  # fmt: skip

    url = url_from_environment(environment)

    assert url == "postgresql+psycopg2://dagster:a%2Fb%40c@postgres:5432/dagster"
    # Nothing is connected by that
    assert figures_of_stack(environment)
    with pytest.raises(UsageError, match="DAGSTER_POSTGRES_PASSWORD is not set"):
        url_from_environment({**environment, "DAGSTER_POSTGRES_PASSWORD": ""})
