"""The Celery app of a real worker in a process of its own: the pool and the event loop that it has on RabbitMQ.

On a folder as broker Celery would take its blocking pool, which treats processes that die in another way. So kombu's
transport says here that it can be used from an event loop, which asks it every few milliseconds.
"""

import os
import signal
import time
from pathlib import Path
from queue import Empty
from typing import Any
from uuid import uuid4

from celery import Celery, signals
from kombu.transport import filesystem
from kombu.utils.json import dumps

from dagster_stack.messaging.app_factory import use_folder_as_broker
from dagster_stack.messaging.task_names import STEP_TASK
from dagster_stack.pool import replacement
from dagster_stack.worker import prefork_pool, request, revocation

#: Where the folder is, and where tasks say what happens to them.
FOLDER_VARIABLE = "TEST_FOLDER"
POLL_SECS = 0.02


class Channel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]
        # kombu opens a message's file before it writes: whoever looks in between takes an empty one.
        name = f"{time.monotonic_ns()}_{uuid4()}.{queue}.msg"
        begun = Path(self.data_folder_out, f"{name}.part")
        begun.write_text(dumps(payload))
        begun.rename(begun.with_name(name))


class Transport(filesystem.Transport):
    Channel = Channel
    implements = filesystem.Transport.implements.extend(asynchronous=True)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        loop.call_repeatedly(POLL_SECS, self._poll, connection)

    def _poll(self, connection: Any) -> None:
        for channel in connection.channels:
            try:
                channel.drain_events(callback=self._deliver)
            except Empty:
                continue


def make_app(folder: Path) -> Celery:
    app = Celery("test", set_as_current=False)
    app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1)
    use_folder_as_broker(app, folder)
    app.conf.update(broker_url=None, broker_transport="tests.unit.looping_worker:Transport")
    for name in ("work", STEP_TASK):
        app.task(work, name=name, ignore_result=True, shared=False)
    app.task(leave, name="leave", ignore_result=True, shared=False)
    request.install(app)
    revocation.install()
    replacement.install(app)
    signals.celeryd_after_setup.connect(prepare, weak=False)
    return app


def work(name: str, on_interrupt: str = "", seconds: float = 0) -> None:
    """Say that it began and that it ended, `seconds` later; meanwhile do what is told when it is interrupted."""

    def interrupted(*_: Any) -> None:
        say(name, "interrupted")
        if on_interrupt == "end":
            raise InterruptedError

    before = signal.signal(signal.SIGINT, interrupted)
    until = time.monotonic() + seconds
    say(name, f"began {os.getpid()}")
    try:
        while time.monotonic() < until:
            time.sleep(0.02)
    except InterruptedError:
        pass
    finally:
        signal.signal(signal.SIGINT, before)
    say(name, "ended")


def prepare(instance: Any, **_: Any) -> None:
    prefork_pool.prepare(instance.concurrency)


def leave(name: str) -> None:
    """The first time: start processes that go on, say which, and be killed. Then say which of them are there."""
    children = Path(os.environ[FOLDER_VARIABLE]) / f"{name}-children"
    if children.exists():
        left = [pid for pid in children.read_text().split() if Path("/proc", pid).exists()]
        say(name, f"again, with {left}")
        return
    found = []
    for gets_away in (False, True):
        reads, writes = os.pipe()
        if not (child := os.fork()):
            if gets_away and os.fork():
                os._exit(0)
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            os.write(writes, f"{os.getpid()}".encode())
            time.sleep(600)
            os._exit(0)
        found.append(os.read(reads, 20).decode())
        if gets_away:
            os.waitpid(child, 0)
    children.write_text(" ".join(found))
    say(name, f"leaves {time.monotonic()}")
    os.kill(os.getpid(), signal.SIGKILL)


def say(name: str, what: str) -> None:
    with (Path(os.environ[FOLDER_VARIABLE]) / name).open("a") as file:
        file.write(f"{what}\n")


if FOLDER_VARIABLE in os.environ:
    app = make_app(Path(os.environ[FOLDER_VARIABLE]))
