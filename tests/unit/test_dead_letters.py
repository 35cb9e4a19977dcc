"""Messages that nobody could use: kept with their reason, and shown to people."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu.transport.memory import Channel, Transport

from dagster_stack.client import dead_letters as client
from dagster_stack.client.dead_letters import show_dead_letters, what
from dagster_stack.errors import BrokerUnreachable, ExitCode, UsageError
from dagster_stack.messaging import dead_letters
from dagster_stack.messaging.app_factory import make_app
from dagster_stack.messaging.dead_letters import DeadLetter, letters, publish_dead_letter
from dagster_stack.settings import CeleryConfig, Settings

RUN = "1f0c8e0a-7a4e-4f4c-9b5e-4a1d2c3b4e5f"


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """An app on the broker in this process's memory, which the command line finds too."""
    Channel.queues.clear()
    Transport.global_state.clear()
    settings = Settings.from_environment({"DAGSTER_HOME": str(tmp_path)})
    app = make_app(CeleryConfig(broker="memory://localhost", backend="disabled://"), settings)

    @contextmanager
    def connected(_: str | None) -> Iterator[tuple[Celery, Any]]:
        with app.connection_for_read() as connection:
            yield app, connection

    monkeypatch.setattr(client, "connected", connected)
    yield app
    app.close()


def letter(number: int = 1, **more: Any) -> DeadLetter:
    values: dict[str, Any] = {
        "queue": "dagster",
        "worker": "dagster@host",
        "body": "hello",
        "at": 1_800_000_000,
    }
    return DeadLetter(reason=f"reason {number}", **{**values, **more})


def shown(as_json: bool = False) -> str:
    out = io.StringIO()
    assert show_dead_letters(out, as_json) is ExitCode.SUCCESS
    return out.getvalue()


def test_letters_come_in_their_order(app: Celery) -> None:
    """That they stay is RabbitMQ's: this broker gives nothing back."""
    for number in range(3):
        publish_dead_letter(app, letter(number))

    with app.connection_for_read() as connection:
        assert list(letters(connection)) == [letter(number) for number in range(3)]


def test_the_queue_is_declared_for_each_letter(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may have deleted it meanwhile, and a message to no queue is dropped without a word."""
    declared: list[str] = []
    declare: Any = Channel.queue_declare

    def counted(self: Any, queue: str, *arguments: Any, **named: Any) -> Any:
        declared.append(queue)
        return declare(self, queue, *arguments, **named)

    monkeypatch.setattr(Channel, "queue_declare", counted)

    for number in range(2):
        publish_dead_letter(app, letter(number))

    assert declared == ["dead-letters"] * 2


def test_what_somebody_else_put_there_is_shown_too(app: Celery) -> None:
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        dead_letters.QUEUE(channel).queue_declare()
        for body in ("no letter", '{"reason": "of a later version", "new": 1}'):
            connection.Producer().publish(
                body, exchange="", routing_key="dead-letters", content_type="text/plain"
            )

    with app.connection_for_read() as connection:
        found = list(letters(connection))

    assert [each.reason for each in found] == ["another program put it here"] * 2
    assert found[0].body == "no letter"


def test_letters_are_a_table_for_people_with_what_to_do(app: Celery) -> None:
    publish_dead_letter(app, letter(1, task="execute_x", body="\x1b[31mred"))

    text = shown()

    header, first = text.splitlines()[:2]
    assert header.split() == ["WHEN", "(UTC)", "QUEUE", "WORKER", "WHAT", "REASON"]
    assert first.split()[:4] == ["2027-01-15", "08:00:00", "dagster", "dagster@host"]
    assert "execute_x" in first
    assert first.split()[-2:] == ["reason", "1"]
    assert "\x1b" not in text
    assert "purge the queue dead-letters" in text


def test_letters_as_json_are_whole(app: Celery) -> None:
    publish_dead_letter(app, letter(1, body="x" * 5000))

    (found,) = json.loads(shown(as_json=True))

    assert found["body"] == "x" * 5000
    assert (found["reason"], found["queue"], found["worker"]) == ("reason 1", "dagster", "dagster@host")


@pytest.mark.usefixtures("app")
def test_no_letters_are_said_to_be_none() -> None:
    assert shown().startswith("There are no dead letters")
    assert json.loads(shown(as_json=True)) == []


STEP = {"run_id": RUN, "step_key": "a", "version": 9}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (json.dumps(STEP), f"step a of run {RUN}"),
        (json.dumps([[], {"message": STEP}, {}]), f"step a of run {RUN}"),
        (json.dumps({"run_id": RUN}), f"run {RUN}"),
        (json.dumps({"run_id": 5}), 'task {"run_id": 5}'),
        ("[1, 2]", "task [1, 2]"),
        ("x" * 500, "task " + "x" * client.SHOWN_BODY),
        ("", "task"),
        (json.dumps({"run_id": "x" * 90_000}), f"run {'x' * client.SHOWN_NAME}"),
        (json.dumps({"run_id": RUN, "step_key": ["a"]}), f"step ['a'] of run {RUN}"),
    ],
)
def test_a_letter_is_named_by_its_run_and_step_or_else_by_how_it_begins(body: str, text: str) -> None:
    assert what(letter(body=body, task="task")) == text


def test_a_name_of_half_a_character_can_be_shown(app: Celery) -> None:
    publish_dead_letter(app, letter(body=json.dumps({"run_id": "\ud800"}), worker="\udfff"))

    assert "run \\ud800" in shown().encode().decode()


@pytest.mark.parametrize("strange", ["\ud800", "\0", "x" * 50_000_000, "ü" * 99_999])
def test_whatever_strangers_write_is_kept_in_bounds_and_shown(app: Celery, strange: str) -> None:
    message = type(
        "Message", (), {"headers": {"task": strange, "id": [strange]}, "delivery_info": {"routing_key": "dagster"},
                        "content_type": strange[:200], "body": strange}
    )()  # fmt: skip

    publish_dead_letter(app, DeadLetter.of(message, f"of version {strange!r}", "dagster@host"))

    assert len(shown(as_json=True)) < 1_000_000
    shown().encode()


def test_dead_letters_without_a_broker_say_what_is_missing() -> None:
    with pytest.raises(UsageError, match="CELERY_BROKER_URL is not set"):
        show_dead_letters(io.StringIO(), as_json=False, environment={})
    with pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1:1"):
        show_dead_letters(io.StringIO(), False, {"CELERY_BROKER_URL": "amqp://u:secret@127.0.0.1:1/v"})
