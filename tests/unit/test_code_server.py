"""Code servers: forks that have the platform already, each of which knows nothing of another."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import pytest

from dagster_stack.services import code_server, fork_server
from dagster_stack.services.code_server import CodeServer, entry_point, start
from tests.waiting import wait_until

#: Says what it finds when it is loaded.
CODE = """
import json, multiprocessing, os, sys
import dagster as dg
import helpers

HOW = os.environ["HOW"]
if HOW == "exits":
    os._exit(7)
seen = {
    "helpers": helpers.NAME,
    "folder": os.getcwd(),
    "variables": sorted({"OTHER", "WHOSE"} & os.environ.keys()),
    "is_daemon": multiprocessing.current_process().daemon,
    "name": open("/proc/self/comm").read().strip(),
}
defs = dg.Definitions()
with open("seen.part", "w") as file:
    json.dump(seen, file)
os.rename("seen.part", "seen.json")
"""

Starting = Callable[..., CodeServer]


@pytest.fixture(scope="module", autouse=True)
def _begun() -> Iterator[None]:
    fork_server.begin()
    yield
    # What other tests start by one is no child of this one's.
    helper: Any = forkserver._forkserver
    helper._stop()


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[Starting]:
    """Starts the code server of a location with a module `helpers`, as Dagster does."""
    found = []

    def begin(name: str, how: str = "well", **environment: str) -> CodeServer:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "helpers.py").write_text(f"NAME = {name!r}\n")
        (folder / "code.py").write_text(CODE)
        words = [
            *entry_point(sys.executable), "api", "grpc",
            "--socket", str(folder / "socket"), "-f", str(folder / "code.py"), "-d", str(folder),
        ]  # fmt: skip
        server: CodeServer = start(words, env={**os.environ, "HOW": how, **environment}, cwd=str(folder))
        found.append(server)
        return server

    yield begin
    for each in found:
        each.kill()
        each.wait(10)


def seen(folder: Path) -> dict[str, Any]:
    wait_until((folder / "seen.json").exists, 60, "the code is loaded")
    found: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return found


def test_each_has_its_own_modules_variables_and_folder(starting: Starting, tmp_path: Path) -> None:
    servers = [starting("one", OTHER="x"), starting("two", WHOSE="two")]

    for name, variables in (("one", ["OTHER"]), ("two", ["WHOSE"])):
        assert seen(tmp_path / name) == {
            "helpers": name,
            "folder": str(tmp_path / name),
            "variables": variables,
            # So that user code may start processes
            "is_daemon": False,
            "name": "code-server",
        }
    assert {each.pid for each in servers} <= set(code_server.pids())


def test_one_that_is_told_to_stop_ends_well(starting: Starting, tmp_path: Path) -> None:
    server = starting("one")
    wait_until((tmp_path / "one" / "socket").exists, 60, "it serves")
    assert server.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        server.wait(0.01)

    server.terminate()

    assert server.wait(20) == server.returncode == 0


@pytest.mark.parametrize(("how", "code"), [("exits", 7), ("killed", -signal.SIGKILL)])
def test_what_it_ended_of_is_known(starting: Starting, tmp_path: Path, how: str, code: int) -> None:
    server = starting("one", how)
    if how == "killed":
        seen(tmp_path / "one")
        psutil.Process(server.pid).kill()

    assert server.wait(60) == code
    # Once it is gone nobody else gets its signals
    server.terminate()


def test_one_in_another_python_is_a_program_of_its_own(tmp_path: Path) -> None:
    with start(
        [sys.executable, "-c", "import os; print(os.getcwd())"], cwd=str(tmp_path), stdout=-1
    ) as other:
        assert other.communicate()[0].decode().strip() == str(tmp_path)
