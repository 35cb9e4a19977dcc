"""A Celery worker whose first task asks for its process's replacement; the target of `celery -A`."""

import os
import threading
from pathlib import Path

from celery import Celery

from dagster_stack.messaging.app_factory import use_folder_as_broker
from dagster_stack.pool import replacement

FOLDER = Path(os.environ.get("REPLACED_WORKER_FOLDER", "/nonexistent"))

app = Celery("replaced", set_as_current=False)
if FOLDER.exists():
    use_folder_as_broker(app, FOLDER / "broker")
if transport := os.environ.get("REPLACED_WORKER_TRANSPORT"):
    app.conf.update(broker_url=None, broker_transport=transport)
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, task_ignore_result=True)
replacement.install(app)


@app.task(name="note")
def note(name: str, replace: bool) -> None:
    """Say in a file which process executes it."""
    with (FOLDER / "executed").open("a") as file:
        file.write(f"{name} {os.getpid()}\n")
    if replace:
        threading.Thread(target=threading.Event().wait).start()
        replacement.replace_process()
