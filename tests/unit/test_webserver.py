"""Dagit's look at the process that loads the code: only one that was there can be missed."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from dagster_stack.services.webserver import CodeServerProbe
from tests.waiting import wait_until


@pytest.fixture
def code_server() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with process:
        yield process
        process.kill()


def test_a_dagit_that_has_not_started_its_code_server_yet_is_well() -> None:
    assert CodeServerProbe()() is None


def test_the_end_of_the_code_server_is_a_complaint(code_server: subprocess.Popen) -> None:
    # Given a code server, which the probe has seen
    probe = CodeServerProbe(lambda: [code_server.pid])
    assert probe() is None
    # When it dies, and nobody has taken note of that yet (a zombie)
    code_server.kill()
    # Then the probe complains
    complaint = wait_until(probe, 10, "complains")
    assert "no run can be launched" in str(complaint)


def test_a_new_code_server_ends_the_complaint() -> None:
    # Given a code server that is gone
    servers = [1]
    probe = CodeServerProbe(lambda: servers)
    assert probe() is None
    servers.clear()
    assert probe() is not None
    # When a reload in Dagit starts another one
    servers.append(1)
    # Then all is well
    assert probe() is None
