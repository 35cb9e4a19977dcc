"""`make rollback`: what it says and asks, what it refuses, and that it swaps as `make deploy` does."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scripts import code_check, code_versions, compose, deploy, engine, images, rollback, schema, up
from scripts.code_versions import Version
from scripts.compose import Container
from scripts.console import Failure
from tests.unit.machines import FakeDocker, calls
from tests.unit.test_make_deploy import has_volume, told

IMAGE = "dagster-celery-stack/dagster"
OLD, NEW = (
    Version(code, datetime(2026, 11, day, tzinfo=UTC), f"sha256:{code}", "")
    for code, day in (("old", 1), ("new", 2))
)


@pytest.fixture
def docker(programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack that runs with the newer one of two versions; gives the docker's folder."""
    env.write_text("BASE_IMAGE=base\n")
    FakeDocker(images=(IMAGE,)).install(programs)
    has(monkeypatch, "postgres", "dagit", "daemon", "runner")
    monkeypatch.setattr(code_versions, "kept", lambda: [NEW, OLD])
    monkeypatch.setattr(code_versions, "running", lambda: {NEW.image_id: ["dagit"]})
    monkeypatch.setattr(code_versions, "inspected", lambda *_: [])
    monkeypatch.setattr(code_check, "check", lambda: "old")
    monkeypatch.setattr(schema, "ask", lambda: {"found": "aaa", "wanted": "aaa", "is_known": True})
    monkeypatch.setattr(engine, "ask", has_volume(engine.ask))
    monkeypatch.setattr(up, "prepare", lambda: None)
    monkeypatch.setattr(up, "is_up", lambda: False)
    monkeypatch.setattr(up, "wait_until_healthy", lambda *_: None)
    monkeypatch.setattr(up, "check_code_location", lambda: None)
    monkeypatch.setattr(deploy, "runs_under_way", lambda: [])
    monkeypatch.setattr(images, "ensure", lambda: pytest.fail("built"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return programs


def has(monkeypatch: pytest.MonkeyPatch, *services: str) -> None:
    found = [Container(f"p-{name}-1", name, "running", "healthy", 0) for name in services]
    monkeypatch.setattr(compose, "containers", lambda: found)


def test_the_older_image_gets_the_name_and_is_swapped_in_as_by_a_deployment(
    docker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollback.rollback()

    steps = [
        told(docker, "tag", OLD.image_id, IMAGE),
        told(docker, "stop", "daemon"),
        told(docker, "tag", OLD.image_id, f"{IMAGE}:{code_versions.ROLLED_BACK}"),
        told(docker, "up", "init"),
        told(docker, "create"),
    ]
    assert all(len(found) == 1 for found in steps)
    assert steps == sorted(steps)
    said = capsys.readouterr().out
    assert "Rolling back to code old, deployed 2026-11-01 00:00 UTC, in place of new" in said
    assert "Runs under way end first" in said
    assert "`make deploy` brings the checkout's code again" in said
    assert "code old in place of new: rolled back" in said


@pytest.mark.parametrize("answer", [True, False])
def test_a_terminal_is_asked_first(docker: Path, monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    monkeypatch.setattr(rollback, "attended", lambda: True)
    monkeypatch.setattr(rollback, "confirm", lambda _: answer)

    if answer:
        rollback.rollback()
    else:
        with pytest.raises(Failure, match="Nothing was rolled back"):
            rollback.rollback()

    assert bool(told(docker, "stop", "daemon")) == answer
    # Where it is not wanted the name is given back
    assert bool(told(docker, "tag", "sha256:1", IMAGE)) != answer


def test_force_asks_nothing(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE", "1")
    monkeypatch.setattr(rollback, "attended", lambda: True)
    monkeypatch.setattr(rollback, "confirm", lambda _: pytest.fail("asked"))

    rollback.rollback()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"found": "fff", "is_known": False}, r"\(fff\) is newer than this code knows \(aaa\)"),
        ({"wanted": "bbb"}, r"\(aaa\) is older than this version's \(bbb\)"),
    ],
)
def test_a_database_of_another_schema_is_refused_before_anything_stops(
    docker: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], said: str
) -> None:
    # Also where a backup would allow a deployment to migrate it
    monkeypatch.setenv("BACKED_UP", "1")
    answer = schema.ask() | found
    monkeypatch.setattr(schema, "ask", lambda: answer)

    with pytest.raises(Failure, match=rf"(?s){said}.*Nothing was rolled back"):
        rollback.rollback()

    assert not told(docker, "stop", "daemon")


def test_where_dagit_is_what_is_broken_runs_are_handed_over(
    docker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(monkeypatch, "postgres", "daemon", "runner")
    monkeypatch.setattr(deploy, "runs_under_way", lambda: pytest.fail("asked"))

    rollback.rollback()

    assert "they go on with the code of before" in capsys.readouterr().out
    assert told(docker, "create")


@pytest.mark.parametrize("daemons", [1, 2])
@pytest.mark.parametrize("has_lease", [True, False])
def test_several_daemons_that_know_no_lease_are_refused_before_anything_stops(
    docker: Path, env: Path, monkeypatch: pytest.MonkeyPatch, daemons: int, has_lease: bool
) -> None:
    """Each would launch what schedules and sensors ask for."""
    env.write_text(f"BASE_IMAGE=base\nDAEMONS={daemons}\n")
    ask = engine.ask
    file = rollback.LEADERSHIP

    def answer(*arguments: str) -> str:
        return (file if has_lease else "") if arguments[-1] == file else ask(*arguments)

    monkeypatch.setattr(engine, "ask", answer)

    if daemons == 1 or has_lease:
        rollback.rollback()
    else:
        with pytest.raises(Failure, match=r"(?s)no lease.*DAEMONS=1.*make up.*Nothing was rolled back"):
            rollback.rollback()
        assert not told(docker, "stop", "daemon")


def test_a_stack_that_is_there_already_is_left_alone(
    docker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "is_up", lambda: True)
    monkeypatch.setattr(code_versions, "rolled_back", lambda: OLD.image_id)

    rollback.rollback()

    said = capsys.readouterr().out
    assert "nothing to roll back" in said
    # And what else somebody may want who types it once more
    assert "`make rollback TO=code` any" in said
    assert not told(docker, "stop", "daemon")


# --- `make up` afterwards ---------------------------------------------------------------------------------


@pytest.fixture
def rolled_back(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_versions, "rolled_back", lambda: OLD.image_id)


@pytest.mark.usefixtures("rolled_back")
def test_make_up_says_that_it_starts_the_checkouts_code_again(capsys: pytest.CaptureFixture[str]) -> None:
    up.agree_to_leave_rollback("new")

    assert "rolled back to code old: it gets the checkout's again, new" in capsys.readouterr().out


@pytest.mark.usefixtures("rolled_back")
def test_make_up_asks_on_a_terminal_and_names_what_keeps_the_older_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(up, "attended", lambda: True)
    monkeypatch.setattr(up, "confirm", lambda _: False)

    with pytest.raises(Failure, match="make rollback TO=old"):
        up.agree_to_leave_rollback("new")


@pytest.mark.usefixtures("rolled_back")
def test_make_deploy_says_it_too(
    docker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images, "ensure", lambda: None)
    monkeypatch.setattr(code_check, "check", lambda: "new")

    deploy.deploy()

    assert "rolled back to code old: it gets the checkout's again" in capsys.readouterr().out
    # And from now on the stack is not rolled back
    assert told(docker, "image", "rm", f"{IMAGE}:{code_versions.ROLLED_BACK}")
    assert calls(docker)


def test_one_here_and_one_on_a_further_host_are_several(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env.write_text("BASE_IMAGE=base\nHOSTS=box2\n")
    env.with_name(".env.box2").write_text("HOST_ENGINE=ssh://me@box2\nDAEMONS=1\n")
    monkeypatch.setattr(engine, "ask", lambda *_: "")

    with pytest.raises(Failure, match=r"DAEMONS=1 in \.env, DAEMONS=0 in \.env\.box2 and `make up`"):
        rollback.require_lease(OLD)
