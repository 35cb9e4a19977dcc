"""Messages of no use to the process that got them: they wait beside the queue that they came from."""

from pathlib import Path
from typing import cast

import pytest
from celery import Task

from dagster_stack.messaging.delayed import delay
from dagster_stack.messaging.messages import RunMessage
from dagster_stack.messaging.task_names import RUN_TASK
from tests.unit.deliveries import Delivery, delayed, memory_app, waiting


@pytest.mark.parametrize("queue", ["runs", "heavy", "dagster"])
def test_a_message_waits_beside_its_own_queue_and_not_in_the_default_one(tmp_path: Path, queue: str) -> None:
    # Given a message that a worker on some queue got
    app = memory_app(tmp_path)
    message = RunMessage("a-run", "its-code")

    # When the worker can't use it
    delay(cast(Task, Delivery(app, RUN_TASK, queue=queue)), message, refused=True)

    # Then it waits to go back to that queue, and says since when it was refused
    (found,) = delayed(queue)
    assert found["run_id"] == "a-run"
    assert found["refused_at"]
    assert waiting("dagster") == []
