"""What user code leaves behind: in its process, and on the disk."""

import io
import json
import logging
import os
import resource as resource_limits
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from dagster import In, MetadataValue, Nothing, OpExecutionContext, job, op

from .data import show
from .queues import QUEUE


def process_state() -> dict[str, Any]:
    """What a step may take for granted about its process."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "pid": os.getpid(),
        "folder": os.getcwd(),
        "leak": os.environ.get("LEAK"),
        "home": os.environ.get("HOME"),
        "path": sys.path,
        "umask": umask,
        "zone": time.tzname,
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "silenced": logging.root.manager.disable,
        "patience": socket.getdefaulttimeout(),
        "open files": resource_limits.getrlimit(resource_limits.RLIMIT_NOFILE)[0],
        "handlers": {
            signal.Signals(number).name: str(
                getattr(signal.getsignal(number), "__qualname__", signal.getsignal(number))
            )
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)
        },
    }


@op(tags={QUEUE: "heavy"})
def before_leak(context: OpExecutionContext) -> None:
    show(context, json.dumps(process_state()))
    context.instance.add_run_tags(context.run_id, {"test/rows": "5"})


@op(tags={QUEUE: "heavy"}, ins={"start": In(Nothing)})
def leak() -> None:
    folder = tempfile.mkdtemp()
    Path(tempfile.mkdtemp(), "file").write_text("left")
    os.chdir(folder)
    shutil.rmtree(folder)
    os.environ["LEAK"] = "everywhere"
    os.environ.pop("HOME", None)
    sys.path.insert(0, folder)
    os.umask(0o777)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    signal.alarm(1)
    logging.disable()
    socket.setdefaulttimeout(0.001)
    resource_limits.setrlimit(
        resource_limits.RLIMIT_NOFILE, (100, resource_limits.getrlimit(resource_limits.RLIMIT_NOFILE)[1])
    )
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    sys.stdout.close()


@op(tags={QUEUE: "heavy"}, ins={"start": In(Nothing)})
def after_leak(context: OpExecutionContext) -> None:
    print("stdout is heard again", flush=True)
    time.sleep(1.1)
    Path(tempfile.mkdtemp(), "file").write_text("can be written")
    show(context, json.dumps(process_state()))
    context.add_output_metadata(
        {
            "rows": MetadataValue.text(context.run.tags.get("test/rows", "none")),
            "left": MetadataValue.text(" ".join(os.listdir(Path(tempfile.gettempdir()).parent))),
        }
    )


@op(tags={QUEUE: "heavy"}, ins={"start": In(Nothing)})
def leave_thread() -> None:
    threading.Thread(target=threading.Event().wait, name="poller", daemon=False).start()


@op(tags={QUEUE: "heavy"}, ins={"start": In(Nothing)})
def after_thread(context: OpExecutionContext) -> None:
    show(context, " ".join(each.name for each in threading.enumerate()))


@op(tags={QUEUE: "heavy", "dagster-stack/isolation": "process"}, ins={"start": In(Nothing)})
def killed_once(context: OpExecutionContext) -> None:
    """In a process of its own, which is killed the first time."""
    print("printed apart", flush=True)
    show(context, os.getpid())
    if "test/killed" not in context.run.tags:
        context.instance.add_run_tags(context.run_id, {"test/killed": str(os.getpid())})
        os.kill(os.getpid(), signal.SIGKILL)


@op(tags={QUEUE: "heavy", "dagster-stack/isolation": "process"}, ins={"start": In(Nothing)})
def nap_apart(context: OpExecutionContext) -> None:
    time.sleep(300)


@job
def leaking() -> None:
    killed_once(after_thread(leave_thread(after_leak(leak(before_leak())))))


@job
def apart() -> None:
    nap_apart()


def reserve(file: Path, megabytes: int) -> None:
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, megabytes << 20)


@op(tags={QUEUE: "heavy"}, ins={"start": In(Nothing)})
def leave_file(context: OpExecutionContext) -> None:
    folder = Path(f"/tmp/left by {context.op_handle.name}")
    folder.mkdir(exist_ok=True)
    reserve(folder / "large.csv", 300)


@op(tags={QUEUE: "heavy"}, ins={"start": In(Nothing)})
def fill() -> None:
    reserve(Path(tempfile.gettempdir()) / "large.bin", 200)
    reserve(Path(tempfile.gettempdir()) / "larger.bin", 2000)


@op(tags={QUEUE: "heavy"})
def heavy_step() -> None: ...


@job
def leaving_files() -> None:
    done = heavy_step()
    for number in range(1, 5):
        done = leave_file.alias(f"leave_{number}")(done)
    fill(done)


@job
def heavy_alone() -> None:
    heavy_step()


JOBS = [leaking, apart, leaving_files, heavy_alone]
