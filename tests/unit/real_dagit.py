"""The stack's own webserver as a process of its own, without any other service: SQLite, and runs that start at once."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from scripts.console import ROOT

#: Seconds until the webserver answers: it loads Dagster twice, on busy cores.
START_LIMIT_SECS = 90.0

CODE = """
from dagster import *

@op(out=DynamicOut())
def fan():
    for key in "xyz":
        yield DynamicOutput(key, mapping_key=key)

@op(config_schema={"times": int})
def work(context, text):
    return text * context.op_config["times"]

@op
def report(texts):
    return Output("".join(texts), metadata={
        "rows": 336776, "used": 336000, "cancelled": 700, "rejected": 76,
        "report": MetadataValue.url("http://s3/report.html"),
    })

@job(config={"ops": {"work": {"config": {"times": 2}}}})
def flights():
    report(fan().map(work).collect())

@job
def configured():
    report(fan().map(work).collect())

@op
def read():
    try:
        {}["month"]
    except KeyError as error:
        raise ValueError("a row without month") from error

@op
def use(text): ...

@job
def failing():
    use(read())

defs = Definitions(jobs=[flights, configured, failing], executor=in_process_executor)
"""


@contextmanager
def real_dagit(home: Path, storage: str = "", code: str = CODE, **environment: str) -> Iterator[str]:
    """The address of a Dagit with some code; its data, if `storage` says nothing else, and its log are in `home`."""
    (home / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\n"
        "run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}\n" + storage
    )
    (home / "jobs.py").write_text(code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (home / "webserver.log").open("w+")
    command = [sys.executable, "-m", "dagster_stack", "dagit", "-f", "jobs.py", "-h", "127.0.0.1"]
    own = {
        "DAGSTER_HOME": str(home),
        "DAGSTER_STACK_HEARTBEAT_FILE": str(home / "heartbeat"),
        "PYTHONPATH": str(ROOT),
    }
    server = subprocess.Popen(
        [*command, "-p", str(port)],
        cwd=home,
        env={**os.environ, **own, **environment},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        wait_for_server(f"http://127.0.0.1:{port}", server, home / "webserver.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        # Its code server first gets the time to end by itself.
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        log.close()


def wait_for_server(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_SECS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if requests.get(f"{url}/server_info", timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)  # Nobody tells when a port is opened.
    raise AssertionError(f"The webserver did not start:\n{log.read_text()}")
