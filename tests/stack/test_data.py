"""Stopping all, removing the containers, starting anew: cleanly, and without losing anything."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.console import ROOT
from tests.stack import work
from tests.stack.stack import Stack

SERVICES = ("postgres", "rabbitmq", "minio", "dagit", "daemon", "runner", "worker", "worker-heavy")


@dataclass(frozen=True)
class Rebirth:
    """How each container ended, and what the stores held and Dagit told before and after."""

    run_id: str
    ends: dict[str, dict[str, Any]]
    before: dict[str, Any]
    after: dict[str, Any]


@pytest.fixture(scope="module")
def rebirth(stack: Stack) -> Rebirth:
    """The stack stopped, its containers removed and made anew, by plain Compose."""
    stack.wait_until_healthy()
    run_id = work.succeed(stack)
    [[last_event]] = stack.sql("SELECT max(id) FROM event_logs")
    before = stored(stack, last_event) | {"told": stack.events(run_id)}
    stack.compose("stop")
    ends = {entry.name: stack.inspect(entry.name)["State"] for entry in stack.containers()}
    stack.compose("down")
    assert stack.containers() == []
    stack.compose("up", "-d")
    stack.wait_until_healthy()
    after = stored(stack, last_event) | {"told": stack.events(run_id)}
    return Rebirth(run_id, ends, before, after)


def stored(stack: Stack, last_event: str) -> dict[str, Any]:
    """Run history, every event up to one, every object with its content's hash, the broker's queues."""
    events = f"SELECT count(*), md5(string_agg(id || event, '' ORDER BY id)) FROM event_logs WHERE id <= {last_event}"
    pages = stack.s3.get_paginator("list_objects_v2").paginate(Bucket=stack.bucket)
    return {
        "runs": stack.sql("SELECT run_id, status, create_timestamp FROM runs ORDER BY id"),
        "events": stack.sql(events),
        "objects": {entry["Key"]: entry["ETag"] for page in pages for entry in page.get("Contents", [])},
        "queues": {
            queue["name"]: queue["arguments"]
            for queue in stack.broker(f"queues/{stack.settings['RABBITMQ_VHOST']}")
            if queue["durable"] and not queue["auto_delete"]
        },
    }


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_stops_cleanly_within_its_grace_period(
    stack: Stack, rebirth: Rebirth, service: str
) -> None:
    # Then each container of it ended by itself (0) or by the signal to do so (143), and was not killed (137)
    ends = [end for name, end in rebirth.ends.items() if name.startswith(f"{stack.project}-{service}-")]
    assert ends
    for end in ends:
        assert end["ExitCode"] in (0, 143)
        assert not end["OOMKilled"]


def test_history_and_data_survive_down_and_up(stack: Stack, rebirth: Rebirth) -> None:
    # Given a run with its events, its objects and its queues
    assert [rebirth.run_id, "SUCCESS"] in [row[:2] for row in rebirth.before["runs"]]
    assert any(rebirth.run_id in key for key in rebirth.before["objects"])
    assert {"dagster", "heavy"} <= set(rebirth.before["queues"])
    assert rebirth.before["told"]
    # Then all of it is what it was, in the stores and in Dagit
    assert rebirth.after == rebirth.before
    assert stack.run(rebirth.run_id)["status"] == "SUCCESS"


@pytest.mark.parametrize("command", [["config"], ["up", "-d"], ["ps"]], ids=" ".join)
def test_plain_compose_without_env_file_says_what_to_run(
    stack: Stack, tmp_path: Path, command: list[str]
) -> None:
    # Given a fresh clone, where no .env lies
    bare = Stack(tmp_path / "absent.env")
    (tmp_path / "absent.env").touch()
    for name in ("compose.yaml", "compose", "docker/no-proxy.env"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    arguments = ["--project-directory", str(tmp_path)]
    # When a user types a command of Compose
    answer = bare.compose(*arguments, *command, check=False)
    # Then it says what to do, and does nothing
    assert answer.returncode != 0
    assert "run 'make up' once, it writes .env" in answer.stderr
