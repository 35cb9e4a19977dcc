"""Containers of workers: what reaches an engine, and which number stands in a host's file."""

import re
from pathlib import Path
from typing import Any

import pytest

from scripts import compose, engine, env_file
from scripts.autoscaling import containers
from scripts.autoscaling.limits import Limits
from scripts.console import Failure
from scripts.hosts.host import Host
from tests.unit.autoscaling.cluster import member


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those that reached the engine, which has two workers and makes as many as it is told."""
    found: list[str] = []
    states = ["running", "running"]

    def command(arguments: list[str], seconds: float, environment: Any = None, host: Any = None) -> str:
        if arguments[0] == "ps":
            return "".join(
                f"w-{n}\tworker\t{state}\tUp 2 seconds\t{n:012}\n" for n, state in enumerate(states, start=1)
            )
        found.append(" ".join(arguments))
        if "create" in arguments:
            assert environment
            states.extend(["created"] * (int(environment["WORKERS"]) - len(states)))
        if arguments[0] == "start":
            states[int(arguments[1].removeprefix("w-")) - 1] = "running"
        return ""

    monkeypatch.setattr(containers, "command", command)
    return found


def test_env_has_the_higher_number_before_and_the_lower_one_after(
    env: Path, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, the next `make up` makes one more; it never takes one away, which might work."""
    env.write_text("WORKERS=2\n")
    seen: list[str] = []
    command = containers.command

    def look_and_do(*words: Any, **others: Any) -> str:
        seen.append(env_file.read(env)["WORKERS"])
        return command(*words, **others)

    monkeypatch.setattr(containers, "command", look_and_do)
    monkeypatch.setattr(compose, "compose", lambda: ["docker", "compose"])

    containers.raise_to(Limits("worker", 1, 8), 4)
    containers.remove(Limits("worker", 1, 8), "stack-worker-2", 3)

    assert set(seen) == {"4"}
    assert env_file.read(env)["WORKERS"] == "3"
    assert sorted(commands[1:3]) == ["start w-3", "start w-4"]
    assert [commands[0], *commands[3:]] == [
        "compose --progress quiet create --no-recreate worker",
        "stop stack-worker-2",
        "rm stack-worker-2",
    ]


def test_a_container_that_was_stopped_and_not_removed_goes(env: Path, commands: list[str]) -> None:
    env.write_text("WORKERS=2\n")
    found = [
        member("1", "w-1"),
        member("2", "w-2", state="exited"),
        member("3", "h-1", "worker-heavy", "exited"),
        member("4", "w-3", state="created"),
    ]

    containers.remove_ended(Limits("worker", 1, 8), found)

    assert commands == ["rm w-2"]
    assert env_file.read(env)["WORKERS"] == "1"


def test_what_an_engine_refuses_is_said_in_its_own_words_and_in_one_line(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.write_text("WORKERS=2\n")
    monkeypatch.setattr(engine, "docker", lambda: "false")
    with pytest.raises(Failure, match=r"^`docker ps --all --filter …`: $"):
        containers.members()


def test_of_a_host_that_ssh_does_not_reach_ssh_s_own_words_are_said(env: Path, programs: Path) -> None:
    env.write_text("WORKERS=2\n")
    env.with_name(".env.box9").write_text("HOST_ENGINE=ssh://me@box9\n")
    docker = programs / "docker"
    docker.write_text(
        '#!/bin/sh\n[ $1 != --host ] || { echo \'error during connect: Get "http://docker.example.com/…": command [ssh -l me -- box9'
        " docker system dial-stdio] has exited with exit status 255, …: stderr=Host key verification failed.' >&2; exit 1; }\n"
    )
    docker.chmod(0o755)

    with pytest.raises(Failure, match=r"^`docker ps --all --filter …`: Host key verification failed\.$"):
        containers.members(Host("box9"))


def test_an_engine_is_asked_by_its_address_and_with_its_own_file(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.write_text("WORKERS=2\n")
    path = env.with_name(".env.box9")
    path.write_text("HOST_ENGINE=ssh://me@box9\nWORKERS=1\n")
    lines: list[list[str]] = []

    def command(arguments: list[str], *_: Any, host: Host) -> str:
        lines.append([*host.docker(), *arguments])
        return ""

    monkeypatch.setattr(engine, "docker", lambda: "docker")
    monkeypatch.setattr(containers, "command", command)

    containers.raise_to(Limits("worker", 1, 8), 4, Host("box9"))

    assert env_file.read(path)["WORKERS"] == "4"
    assert env_file.read(env)["WORKERS"] == "2"
    create = " ".join(lines[0])
    assert re.fullmatch(
        r"docker --host ssh://me@box9 compose --project-directory \S+ --env-file \S+/\.env\.box9"
        r" --file \S+/compose\.worker\.yaml --progress quiet create --no-recreate worker",
        create,
    )
