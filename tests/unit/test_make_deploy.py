"""`make deploy`: what it refuses, what it waits for, and what it puts back when it can't go on."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scripts import code_check, code_versions, compose, deploy, engine, images, schema, up
from scripts.compose import Container
from scripts.console import Failure
from tests.unit.clock import START, Clock
from tests.unit.machines import FakeDocker, calls

IMAGE = "dagster-celery-stack/dagster"
SCHEMA = {"found": "aaa", "wanted": "aaa", "is_known": True}


@pytest.fixture
def docker(programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack that runs with an older image than the one that is built here; gives the docker's folder."""
    env.write_text("BASE_IMAGE=base\n")
    FakeDocker(images=(IMAGE,)).install(programs)
    monkeypatch.setattr(code_versions, "inspected", lambda *_: [])
    monkeypatch.setattr(schema, "ask", lambda: dict(SCHEMA))
    monkeypatch.setattr(engine, "ask", has_volume(engine.ask))
    names = ("postgres", "dagit", "daemon")
    running = [Container(f"p-{name}-1", name, "running", "healthy", 0) for name in names]
    running += [
        Container("p-worker-1", "worker", "created", "", 0),
        Container("p-init-1", "init", "exited", "", 0),
    ]
    monkeypatch.setattr(compose, "containers", lambda: running)
    monkeypatch.setattr(up, "prepare", lambda: None)
    monkeypatch.setattr(up, "is_up", lambda: False)
    monkeypatch.setattr(up, "start", lambda: None)
    monkeypatch.setattr(up, "wait_until_healthy", lambda *_: None)
    monkeypatch.setattr(up, "check_code_location", lambda: None)
    monkeypatch.setattr(images, "ensure", lambda: None)
    monkeypatch.setattr(deploy, "LOOK_SECS", 0)
    return programs


def has_volume(ask: Callable[..., str]) -> Callable[..., str]:
    """The engine's answers, with a database on its volume."""
    return lambda *words: "dagster-celery-stack_postgres" if words[0] == "volume" else ask(*words)


@pytest.fixture
def under_way(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """What Dagit answers, look by look; nothing is under way after that."""
    answers: list[list[dict[str, Any]]] = []
    monkeypatch.setattr(deploy, "runs_under_way", lambda: answers.pop(0) if answers else [])
    return answers


def run(number: int, status: str = "STARTED") -> dict[str, Any]:
    return {"runId": f"{number:08}-0000", "jobName": "nightly", "status": status}


def told(docker: Path, *words: str) -> list[int]:
    """The places of the calls of docker in which all of these words are."""
    return [place for place, call in enumerate(calls(docker)) if set(words) <= set(call.split())]


@pytest.fixture(autouse=True)
def signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)


def test_the_code_is_tried_before_anything_stops_and_init_is_swapped_before_all_others_at_once(
    docker: Path, under_way: list[list[dict[str, Any]]]
) -> None:
    # Given two looks at which a run is under way
    under_way += [[run(1)], [run(1)]]

    # When the stack is deployed
    deploy.deploy()

    # Then it goes from the trial over the daemon's stop to init, and to all the others, once
    steps = [
        told(docker, "run", "dagster_stack.project.check"),
        told(docker, "stop", "daemon"),
        told(docker, "up", "init"),
        told(docker, "create"),
        told(docker, "start", "p-worker-1"),
    ]
    assert all(len(found) == 1 for found in steps)
    assert steps == sorted(steps)
    assert under_way == []
    assert not told(docker, "start", "daemon")


def test_no_service_is_made_without_its_dependencies_and_init_runs_once(docker: Path) -> None:
    """`up --no-deps` labels a container with another hash: the next `up` would make it, and stop its steps, once more."""
    deploy.swap()

    assert not told(docker, "--no-deps")
    assert len(told(docker, "up")) == 1
    assert not told(docker, "start", "p-init-1")


def test_what_was_made_is_started_and_what_runs_is_left_alone(
    docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"init": "exited", "dagit": "created", "daemon": "exited", "postgres": "running"}
    made = [Container(f"p-{name}-1", name, state, "", 0) for name, state in states.items()]
    monkeypatch.setattr(compose, "containers", lambda: made)

    up.start_made()

    started = {call.split()[-1] for call in calls(docker) if "start" in call.split()}
    assert started == {"p-dagit-1", "p-daemon-1"}


def test_nothing_is_deployed_where_nothing_changed(
    docker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "is_up", lambda: True)

    deploy.deploy()

    assert "nothing to deploy" in capsys.readouterr().out
    assert not told(docker, "run")
    assert not told(docker, "stop")


def test_code_that_does_not_load_leaves_all_as_it_was(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise Failure("it can't be imported")

    monkeypatch.setattr(code_check, "check", broken)

    with pytest.raises(Failure, match=r"it can't be imported\n\n  Nothing was deployed"):
        deploy.deploy()

    # The image's name is the old one's again, and the daemon was not touched
    assert told(docker, "tag", "sha256:1", IMAGE)
    assert not told(docker, "stop", "daemon")


@pytest.mark.parametrize("error", [KeyboardInterrupt, Failure])
def test_whoever_gives_up_while_runs_end_has_the_old_stack_with_its_daemon(
    docker: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted() -> None:
        raise error("no")

    monkeypatch.setattr(deploy, "runs_under_way", interrupted)

    with pytest.raises(error):
        deploy.deploy()

    assert told(docker, "stop", "daemon") < told(docker, "start", "daemon") < told(docker, "tag", IMAGE)
    assert not told(docker, "up", "init")


def test_runs_that_go_on_after_the_limit_are_handed_over(
    docker: Path, under_way: list[list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    # Given more looks than the limit lasts
    monkeypatch.setenv("DEPLOY_WAIT_MINUTES", "0")
    under_way += [[run(1), run(2), run(3), run(4)]] * 1000

    deploy.deploy()

    said = capsys.readouterr().out
    assert "4 runs (nightly 00000001, nightly 00000002, nightly 00000003 and 1 more) still going on" in said
    assert told(docker, "up", "init")


def test_runs_that_do_not_start_are_left_to_the_new_code_when_all_others_have_ended(
    docker: Path, under_way: list[list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One whose message was lost: with the daemon, whoever would send it again has stopped."""
    # Given a run that never starts, beside one that ends after a while
    clock = Clock()
    monkeypatch.setattr(deploy, "time", clock)
    monkeypatch.setattr(deploy, "LOOK_SECS", 1)
    stuck = run(2, "STARTING")
    under_way += [[run(1), stuck]] * (deploy.START_SECS + 10) + [[stuck]] * 1000

    deploy.deploy()

    # Then it is waited for no longer than the one that had started
    assert clock.now - START == deploy.START_SECS + 10
    assert "1 run (nightly 00000002) not started yet: they start with the new code" in capsys.readouterr().out
    assert told(docker, "up", "init")


def test_runs_get_a_minute_to_start(
    docker: Path, under_way: list[list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(deploy, "time", clock)
    monkeypatch.setattr(deploy, "LOOK_SECS", 1)
    under_way += [[run(1, "STARTING")]] * 30 + [[run(1)]] * 100

    deploy.deploy()

    assert clock.now - START == 130


def test_a_hand_over_asks_for_no_run(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY", "hand-over")
    monkeypatch.setattr(deploy, "runs_under_way", lambda: pytest.fail("it asked"))

    deploy.deploy()

    assert told(docker, "create")


@pytest.mark.parametrize("answer", [None, {"__typename": "PythonError", "message": "no database"}])
def test_a_dagit_that_does_not_say_which_runs_there_are_is_told_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, str] | None
) -> None:
    def output(*_: str, given: str) -> str:
        if answer is None:
            raise Failure("curl: (28) Operation timed out")
        return json.dumps({"data": {"runsOrError": answer}})

    monkeypatch.setattr(compose, "containers", lambda: [Container("p-dagit-1", "dagit", "running", "", 0)])
    monkeypatch.setattr(compose, "output", output)

    with pytest.raises(Failure, match=r"(timed out|no database)(.|\n)*DEPLOY=hand-over` does not ask"):
        deploy.runs_under_way()


def test_an_unknown_way_is_refused_before_anything_is_done(
    docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY", "now")

    with pytest.raises(Failure, match=r"DEPLOY=now: there are wait and hand-over"):
        deploy.deploy()

    assert calls(docker) == []


def test_an_interrupted_swap_says_what_completes_it(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(up, "wait_until_healthy", interrupted)

    with pytest.raises(Failure, match="`make deploy` or `make up` completes it"):
        deploy.swap()


# --- versions that are kept, and the database's schema ----------------------------------------------------


def test_the_new_code_is_kept_before_the_swap_and_nothing_that_was_not_deployed(
    docker: Path, under_way: list[list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "swap", lambda: pytest.fail("swapped"))
    with pytest.raises(pytest.fail.Exception):
        deploy.deploy()
    (place,) = [
        n for n, call in enumerate(calls(docker)) if call.startswith("tag sha256:1") and "-new" in call
    ]
    assert told(docker, "stop", "daemon")[0] < place

    monkeypatch.setattr(deploy, "runs_under_way", lambda: pytest.fail("asked"))
    (docker / "calls").unlink()
    with pytest.raises(pytest.fail.Exception):
        deploy.deploy()
    assert not [call for call in calls(docker) if "-new" in call]


def test_a_schema_of_newer_code_is_refused_with_the_ways_out_before_anything_stops(
    docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "ask", lambda: SCHEMA | {"found": "fff", "is_known": False})

    with pytest.raises(
        Failure, match=r"(?s)\(fff\) is newer than this code knows \(aaa\).*make rollback TO=.*backup"
    ):
        deploy.deploy()

    assert not told(docker, "stop", "daemon")
    assert told(docker, "tag", "sha256:1", IMAGE)


def test_a_schema_of_older_code_is_not_migrated_without_a_way_back(
    docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "ask", lambda: SCHEMA | {"wanted": "bbb"})

    with pytest.raises(Failure, match=r"(?s)BACKED_UP=1.*Nothing was deployed"):
        deploy.deploy()

    assert not told(docker, "stop", "daemon")


@pytest.mark.parametrize("fails", [False, True])
def test_a_schema_is_migrated_while_nothing_of_the_old_code_runs(
    docker: Path, under_way: list[list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    # Given a backup that was made by hand, and a run under way
    monkeypatch.setenv("BACKED_UP", "1")
    monkeypatch.setattr(schema, "ask", lambda: SCHEMA | {"wanted": "bbb"})
    monkeypatch.setattr(
        code_versions, "running", lambda: {"sha256:1": ["dagit", "runner", "runner", "worker"]}
    )
    monkeypatch.setattr(code_versions, "code_of", lambda _: "old")
    services = ("daemon", "dagit", "runner", "worker", "postgres")
    containers = [compose.Container(f"p-{name}-1", name, "running", "healthy", 0) for name in services]
    monkeypatch.setattr(
        compose, "containers", lambda: [each for each in containers if not told(docker, "stop", each.service)]
    )
    under_way.append([run(1)])
    if fails:
        client = (docker / "docker").read_text()
        (docker / "docker").write_text(
            client.replace('case "$1 $2"', '[[ "$*" == *--migrate ]] && exit 1\ncase "$1 $2"')
        )
        with pytest.raises(Failure):
            deploy.deploy()
    else:
        deploy.deploy()

    # Then it was waited for, all that has the old code stopped, and then was migrated
    steps = [
        told(docker, "stop", "daemon"),
        told(docker, "stop", "dagit", "runner", "worker"),
        told(docker, "init", "--migrate"),
    ]
    assert all(len(found) == 1 for found in steps)
    assert steps == sorted(steps)
    # And where that failed all of it goes on as it was
    assert bool(told(docker, "start", "dagit", "runner", "worker")) == fails
    assert bool(told(docker, "create")) != fails


@pytest.mark.parametrize(("host", "is_either"), [("", True), ("db.example.com", False)])
def test_the_stacks_own_postgres_is_asked_though_internal_tls_was_just_switched(
    env: Path, monkeypatch: pytest.MonkeyPatch, host: str, is_either: bool
) -> None:
    env.write_text(f"INTERNAL_TLS=on\nPOSTGRES_HOST={host}\n")
    asked: list[str] = []

    def output(*words: str, **_: str) -> str:
        asked.extend(words)
        return json.dumps(SCHEMA)

    monkeypatch.setattr(compose, "output", output)

    assert schema.ask() == SCHEMA

    assert ("PGSSLMODE=prefer" in asked) is is_either


def test_what_was_deployed_last_is_not_asked_for_its_schema_again(
    docker: Path, under_way: list[list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    last = code_versions.Version("aaa", datetime.now(UTC), "sha256:1", "")
    monkeypatch.setattr(code_versions, "kept", lambda: [last])
    monkeypatch.setattr(schema, "ask", lambda: pytest.fail("asked"))

    deploy.deploy()


def test_postgres_is_started_where_it_is_down_and_has_a_database(
    docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "containers", lambda: [])
    started: list[str] = []

    assert schema.required(lambda: started.append("postgres")) is None
    assert started == ["postgres"]

    # A fresh stack has none
    monkeypatch.setattr(engine, "ask", lambda *_: "")
    monkeypatch.setattr(schema, "ask", lambda: pytest.fail("asked"))
    assert schema.required(lambda: pytest.fail("started")) is None


def test_a_stopped_stack_has_no_runs_to_wait_for(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "containers", lambda: [])
    monkeypatch.setattr(deploy, "runs_under_way", lambda: pytest.fail("asked"))

    deploy.settle_runs("wait", 1)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("aaa", "bbb", "code bbb in place of aaa"),
        ("", "bbb", "code bbb in place of none"),
        ("aaa", "aaa", "code aaa (unchanged) with new settings"),
    ],
)
def test_both_hashes_are_told(old: str, new: str, text: str) -> None:
    assert deploy.change(old, new) == text
