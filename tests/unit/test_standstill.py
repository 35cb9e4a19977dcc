"""Services stop on all hosts while something must not be written, and go on everywhere when it fails."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts import compose, engine, env_file, standstill
from scripts.compose import Container
from scripts.console import Failure
from scripts.hosts import file
from scripts.hosts.host import Host
from scripts.standstill import standing_still


@pytest.fixture(autouse=True)
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two that can be asked, and one that is looked after by hand."""
    path = tmp_path / ".env"
    path.write_text("COMPOSE_PROJECT_NAME=mine\nINTERNAL_TLS=on\nCLUSTER_ADDRESS=10.0.0.1\nHOSTS=box2,box3\n")
    monkeypatch.setenv("STACK_ENV_FILE", str(path))
    monkeypatch.delenv("SKIP", raising=False)
    monkeypatch.setattr(compose, "output", lambda *_: "CERTIFICATE\n")
    monkeypatch.setattr(compose, "containers", lambda: running("worker", "dagit", "postgres"))
    monkeypatch.setattr(Host, "containers", lambda self: running("runner", "worker"))
    for name in ("box2", "box3"):
        file.write(Host(name), f"ssh://me@{name}")


def running(*services: str) -> list[Container]:
    return [Container(f"{service}-1", service, "running", "healthy", 0) for service in services]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """What is done where: the host, the verb, the services."""
    found: list[tuple[str, str, str]] = []

    def tell(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        place = next((word.partition("@")[2] for word in command if "@" in word), "here")
        words = command[command.index("plain") + 1 :] if "plain" in command else command[3:]
        found.append((place, words[0], " ".join(words[1:])))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(engine, "docker", lambda: "docker")
    monkeypatch.setattr(compose, "compose", lambda: ["docker", "compose"])
    monkeypatch.setattr(subprocess, "run", tell)
    monkeypatch.setattr(standstill, "run_logged", lambda _, command: tell(command))
    return found


def writes(service: str) -> bool:
    return service in ("worker", "runner")


def test_they_stop_on_all_hosts_and_stay_so_for_the_swap(told: list[tuple[str, str, str]]) -> None:
    with standing_still(writes):
        stopped = sorted(told)
    assert stopped == [
        ("box2", "stop", "runner-1 worker-1"),
        ("box3", "stop", "runner-1 worker-1"),
        ("here", "stop", "worker"),
    ]
    assert sorted(told) == stopped


@pytest.mark.parametrize("error", [Failure("no room"), KeyboardInterrupt()])
def test_they_go_on_everywhere_after_a_failure(
    told: list[tuple[str, str, str]], error: BaseException
) -> None:
    stopping = standing_still(writes)
    stopping.__enter__()
    told.clear()
    assert not stopping.__exit__(type(error), error, None)
    assert sorted(told) == [
        ("box2", "start", "runner-1 worker-1"), ("box3", "start", "runner-1 worker-1"), ("here", "start", "worker"),
    ]  # fmt: skip


def test_a_host_on_which_they_can_not_be_stopped_is_named_and_all_others_go_on(
    told: list[tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    former: Callable[..., Any] = subprocess.run

    def run(command: Sequence[str], **options: Any) -> Any:
        answer = former(command, **options)
        if "stop" in command and "ssh://me@box3" in command:
            return subprocess.CompletedProcess(command, 1, "", "no route to host")
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(Failure, match=r"(?s)box3.*no route to host"), standing_still(writes):
        pytest.fail("went on")
    assert {place for place, verb, _ in told if verb == "start"} == {"here", "box2", "box3"}


@pytest.mark.parametrize("beyond", ["SKIP", "by hand"])
def test_what_can_not_be_stopped_from_here_must_be_shut_out_first(
    monkeypatch: pytest.MonkeyPatch, beyond: str
) -> None:
    if beyond == "SKIP":
        monkeypatch.setenv("SKIP", "box3")
    else:
        env_file.set_value("HOST_ENGINE", "", Host("box3").file)
    with pytest.raises(Failure, match=r"box3 .* would write to it\..*`make host REMOVE=box3`"):
        standstill.require_possible("they would write to it")


def test_hosts_that_can_be_stopped_are_no_hindrance() -> None:
    standstill.require_possible("they would write to it")
