"""The broker's password: out of the environment before user code of steps is loaded, and still there for the platform."""

import os

import pytest
from celery import Celery
from kombu.connection import Connection

from dagster_stack import environment
from dagster_stack.messaging import address as broker_address
from dagster_stack.messaging.address import address, withhold
from dagster_stack.messaging.app_factory import make_app
from dagster_stack.run.executor import run_app
from dagster_stack.settings import BROKER_PARTS, BROKER_VARIABLE, CeleryConfig, Settings

URL = "amqp://dagster:sesame@rabbitmq:5672/dagster"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_address, "_withheld", {})
    monkeypatch.setenv(BROKER_VARIABLE, URL)
    monkeypatch.setenv("DAGSTER_STACK_S3_BUCKET", "a-bucket")


def worker(queue: str) -> Celery:
    settings = Settings.from_environment()
    app = make_app(CeleryConfig.load(settings.celery_yaml), settings)
    app.amqp.queues.select([queue])
    return app


def test_a_process_that_executes_steps_has_it_no_more_and_its_app_has() -> None:
    app = worker("dagster")

    withhold(app)

    assert "sesame" not in repr(dict(os.environ))
    for url in (app.conf.broker_url, app.conf.broker_read_url, app.conf.broker_write_url):
        assert url == URL
    assert app.connection_for_write().password == "sesame"


def test_what_is_made_there_later_has_it_too() -> None:
    withhold(worker("dagster"))

    # A run that a step launches, and one that it executes itself
    settings = Settings.from_environment()
    assert make_app(CeleryConfig.load(settings.celery_yaml), settings).conf.broker_url == URL
    assert run_app({}).conf.broker_url == URL
    assert address() == URL


def test_a_job_that_names_another_broker_keeps_that() -> None:
    withhold(worker("dagster"))

    assert run_app({"broker": "amqp://other"}).conf.broker_url == "amqp://other"


def test_a_process_without_an_app_that_loads_code_for_the_daemon_has_it_no_more() -> None:
    withhold()

    assert BROKER_VARIABLE not in os.environ
    assert address() == URL


def test_where_runs_are_driven_it_stays() -> None:
    withhold(worker("runs"))

    assert os.environ[BROKER_VARIABLE] == URL


ODD = """a$b #%41'"\\@:/?&+=*`{}é["""


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BROKER_VARIABLE)
    for part, value in zip(
        BROKER_PARTS, ("amqps", "mq.example.com", "5671", "v/h", f"me{ODD}", ODD), strict=True
    ):
        monkeypatch.setenv(BROKER_PARTS[part], value)


@pytest.mark.usefixtures("in_parts")
def test_a_password_of_any_characters_arrives_as_it_stands_in_env() -> None:
    connection = Connection(address())

    assert (connection.userid, connection.password, connection.virtual_host) == (f"me{ODD}", ODD, "v/h")
    assert (connection.hostname, connection.port, connection.transport_cls) == (
        "mq.example.com",
        5671,
        "amqps",
    )


@pytest.mark.usefixtures("in_parts")
def test_an_address_that_is_set_wins_over_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BROKER_VARIABLE, URL)

    assert address() == URL


@pytest.mark.usefixtures("in_parts")
def test_the_first_command_of_a_container_gets_the_address_for_whoever_reads_the_variable() -> None:
    expected = address()

    environment.complete()

    assert os.environ[BROKER_VARIABLE] == expected


@pytest.mark.usefixtures("in_parts")
def test_the_parts_are_without_the_password_too_once_it_is_withheld() -> None:
    expected = address()

    withhold(worker("dagster"))

    assert ODD not in os.environ.values()
    assert address() == expected


@pytest.mark.parametrize("part", ["HOST", "PASSWORD"])
@pytest.mark.usefixtures("in_parts")
def test_parts_that_are_not_complete_are_no_address(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setenv(BROKER_PARTS[part], "")

    assert address() is None


@pytest.mark.usefixtures("in_parts")
def test_an_address_by_number_is_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BROKER_PARTS["HOST"], "2001:db8::1")

    assert Connection(address()).hostname == "2001:db8::1"
