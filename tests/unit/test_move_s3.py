"""`make move-s3`, without an engine: which store it goes to, in what order, and what `.env` says when it is killed."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts import compose, deploy, engine, env_file, images, move_s3, s3_store, standstill, up
from scripts.console import Failure
from scripts.hosts.host import Host

TEXT = """\
# mine
COMPOSE_PROJECT_NAME=mine
#S3_ENDPOINT_URL=https://s3.example.com
S3_BUCKET=dagster
S3_REGION=us-east-1
S3_ACCESS_KEY=dagster-1
S3_SECRET_KEY=former
ROTATING=
WORKERS=2
"""
TARGET = """\
S3_ENDPOINT_URL=http://s3.example.com:8333
S3_BUCKET=theirs
S3_ACCESS_KEY=elsewhere
S3_SECRET_KEY='o$ut #1'
WORKERS=9
"""


@pytest.fixture
def target(env: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that names a store, and `.env` of a stack in its own MinIO."""
    env.write_text(TEXT)
    file = env.with_name("target.env")
    file.write_text(TARGET)
    monkeypatch.setenv("TO", str(file))
    return file


@pytest.fixture
def said(target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A stack that is up; what is done with it, in order, with the store that `.env` names then."""
    told: list[str] = []

    def tell(what: str) -> None:
        told.append(f"{what} ({s3_store.current()['S3_BUCKET']})")

    def run_logged(title: str, command: list[str], **_: Any) -> None:
        tell(title)
        if detail := _.get("detail"):
            detail("clocks differ by 3 s")

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        tell(f"{command[command.index('plain') + 1]} {' '.join(command[command.index('plain') + 2 :])}"
             if "plain" in command else command[-1])  # fmt: skip
        return subprocess.CompletedProcess(command, 0)

    services = ("daemon", "runner", "worker", "mine", "dagit", "minio", "postgres")
    containers = [compose.Container(f"x-{name}-1", name, "running", "healthy", 0) for name in services]
    monkeypatch.setattr(move_s3, "BUILD_FOLDER", tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(compose, "compose", lambda: ["compose"])
    monkeypatch.setattr(compose, "containers", lambda: containers)
    monkeypatch.setattr(engine, "ask", lambda *_: "")
    monkeypatch.setattr(up, "is_up", lambda **_: True)
    monkeypatch.setattr(up, "run", lambda title, _: tell(title))
    monkeypatch.setattr(up, "wait_until_healthy", lambda *_: None)
    monkeypatch.setattr(images, "ensure_only", lambda *names: tell(f"images {' '.join(names)}"))
    for module in ("certificates", "proxies"):
        monkeypatch.setattr(f"scripts.{module}.record", lambda: None)
    monkeypatch.setattr(standstill, "run_logged", run_logged)
    monkeypatch.setattr(deploy, "wait_for_runs", lambda _: tell("wait"))
    monkeypatch.setattr(deploy, "swap", lambda: tell("swap"))
    monkeypatch.setattr(move_s3, "run_logged", run_logged)
    monkeypatch.setattr(subprocess, "run", run)
    return told


def test_all_is_copied_while_all_runs_then_writers_stop_for_the_rest_and_come_back_with_the_target(
    env: Path, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    move_s3.move()

    assert said == [
        "images backup (dagster)",
        "Preparing the bucket (dagster)",
        "check-s3 (dagster)",
        "Copying, pass 1 (dagster)",
        "Stopping the run queue, schedules and sensors (dagster)",
        "wait (dagster)",
        # A worker of the user's own too
        "Stopping daemon, mine, runner, worker (dagster)",
        "Copying what has changed (dagster)",
        "Copying what is young once more (dagster)",
        "Comparing all objects (dagster)",
        "swap (theirs)",
    ]
    now = env_file.read(env)
    assert (now["S3_ENDPOINT_URL"], now["S3_SECRET_KEY"]) == ("http://s3.example.com:8333", "o$ut #1")
    # And what is no store's stays
    assert now["WORKERS"] == "2"
    assert env.read_text().startswith("# mine\n")
    output = capsys.readouterr().out
    assert "from  s3://dagster/ at the stack's own MinIO" in output
    assert "to    s3://theirs/ at http://s3.example.com:8333" in output
    assert "Links that were signed before" in output
    assert "at http://s3.example.com:8333; for 0 s no step was executed" in output


def test_the_way_back_is_written_down_and_is_another_move(
    env: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    move_s3.move()
    back = env.with_name(".env.s3.minio.dagster")
    assert back.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("TO", str(back))
    said.clear()

    move_s3.move()

    assert said[:2] == ["images backup minio (theirs)", "Starting the stack's own MinIO (theirs)"]
    assert said[-1] == "swap (dagster)"
    before, now = (s3_store.completed(values) for values in (env_file.read(back), env_file.read(env)))
    assert before == now
    assert (now["S3_ENDPOINT_URL"], now["S3_ACCESS_KEY"], now["S3_SECRET_KEY"]) == ("", "dagster-1", "former")
    assert env.with_name(".env.s3.s3.example.com-8333.theirs").exists()


def test_with_hand_over_it_does_not_wait(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY", "hand-over")

    move_s3.move()

    assert not [each for each in said if each.startswith("wait")]


@pytest.mark.parametrize("step", ["Copying, pass 1", "Copying what has changed", "Comparing all objects"])
def test_until_env_names_the_target_a_failure_leaves_all_as_it_was_with_services_started_again(
    env: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    working = vars(move_s3)["run_logged"]

    def fails(title: str, command: list[str], **options: Any) -> None:
        if title == step:
            raise Failure("no room")
        working(title, command, **options)

    monkeypatch.setattr(move_s3, "run_logged", fails)

    with pytest.raises(Failure, match=r"no room\n\n  Nothing was moved: the stack goes on with the store"):
        move_s3.move()

    assert env.read_text() == TEXT
    started = [each for each in said if each.startswith("start")]
    assert started == (
        [] if "pass" in step else ["start daemon mine runner worker (dagster)", "start daemon (dagster)"]
    )


@pytest.fixture
def box2(env: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host whose workers write to the store, and read of it in its file."""
    env.write_text(f"{TEXT}HOSTS=box2\nINTERNAL_TLS=on\n")
    host = Host("box2")
    host.file.write_text("HOST_ENGINE=ssh://me@box2\n")
    there = [compose.Container("x-worker-1", "worker", "running", "healthy", 0)]
    monkeypatch.delenv("SKIP", raising=False)
    monkeypatch.setattr(compose, "output", lambda *_: "CERTIFICATE")
    monkeypatch.setattr("scripts.hosts.host.unreachable", lambda _: "")
    monkeypatch.setattr("scripts.hosts.images.ship", lambda *_: None)
    monkeypatch.setattr(Host, "containers", lambda _: there)
    monkeypatch.setattr(Host, "output", lambda _, *command: said.append(" ".join(command[-2:])))
    return host


def test_workers_of_further_hosts_stop_too_and_come_back_with_the_target(said: list[str], box2: Host) -> None:
    move_s3.move()

    assert (
        said.index("wait (dagster)")
        < said.index("stop x-worker-1")
        < said.index("Copying what has changed (dagster)")
    )
    assert box2.settings["S3_ENDPOINT_URL"] == "http://s3.example.com:8333"


@pytest.mark.parametrize(("skip", "engine"), [("box2", "ssh://me@box2"), ("", "")])
def test_a_host_that_would_go_on_with_the_store_of_before_is_refused(
    said: list[str], box2: Host, monkeypatch: pytest.MonkeyPatch, skip: str, engine: str
) -> None:
    monkeypatch.setenv("SKIP", skip)
    env_file.set_value("HOST_ENGINE", engine, box2.file)

    with pytest.raises(Failure, match=r"former store\. Shut them out first: `make host REMOVE=box2`"):
        move_s3.move()

    assert not said


VANISHED = """\
2026/11/30 08:21:29 ERROR : logs/a.err.partial: Failed to copy: failed to open source object: NoSuchKey: The specified key does not exist.
\tstatus code: 404, request id: 18ECC4F0B0D4F7D3, host id: dd90
2026/11/30 08:21:36 ERROR : S3 bucket moved: not deleting files as there were IO errors
2026/11/30 08:21:36 ERROR : Attempt 3/3 failed with 1 errors and: failed to open source object: NoSuchKey: The specified key
"""
DENIED = "2026/11/30 08:21:30 ERROR : storage/b: Failed to copy: AccessDenied: Access Denied.\n"


@pytest.mark.parametrize(
    ("step", "said_by_rclone", "is_forgiven"),
    [
        ("Copying, pass 1", VANISHED, True),
        ("Copying, pass 1", VANISHED + DENIED, False),
        ("Copying, pass 1", "", False),
        # Nobody writes then.
        ("Copying what has changed", VANISHED, False),
    ],
)
def test_what_vanishes_while_all_goes_on_is_no_failure(
    said: list[str], monkeypatch: pytest.MonkeyPatch, step: str, said_by_rclone: str, is_forgiven: bool
) -> None:
    """A step that ends removes its output so far, which may have been listed."""
    working = vars(move_s3)["run_logged"]

    def fails(title: str, command: list[str], **options: Any) -> None:
        working(title, command)
        if title == step:
            for line in said_by_rclone.splitlines():
                options["detail"](line.strip())
            raise Failure("rclone failed")

    monkeypatch.setattr(move_s3, "run_logged", fails)
    monkeypatch.setattr(move_s3, "in_container", lambda *_: "clocks differ by 3 s")

    if is_forgiven:
        move_s3.move()
    else:
        with pytest.raises(Failure, match="rclone failed"):
            move_s3.move()

    assert (said[-1] == "swap (theirs)") is is_forgiven


def test_a_target_that_refuses_one_object_after_the_other_is_not_asked_for_each(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full one cost more than 10 minutes, in which nothing said why."""
    full = "2026/11/30 08:21:30 ERROR : storage/b: Failed to copy: InternalError: We encountered an internal error."
    asked = []

    def refused(title: str, command: list[str], **options: Any) -> None:
        while title.startswith("Copying"):
            asked.append(title)
            options["detail"](full)

    monkeypatch.setattr(move_s3, "run_logged", refused)
    monkeypatch.setattr(move_s3, "in_container", lambda *_: "clocks differ by 3 s")

    with pytest.raises(Failure, match=r"objects could not be copied\. The last of them:\n\n.*InternalError"):
        move_s3.move()

    assert len(asked) == move_s3.MOST_ERRORS


def test_one_that_was_killed_after_the_switch_is_completed(
    env: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(move_s3, "swap", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            move_s3.move()
    said.clear()
    monkeypatch.setattr(up, "is_up", lambda **_: False)

    move_s3.move()
    assert said == ["swap (theirs)"]

    said.clear()
    monkeypatch.setattr(up, "is_up", lambda **_: True)
    move_s3.move()
    assert said == []


def test_what_one_that_was_killed_before_it_has_stopped_is_started_first(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(up, "is_up", lambda **_: next(answers))
    for name in ("remove_unwanted", "remove_abandoned", "start_made"):
        monkeypatch.setattr(up, name, lambda name=name: said.append(name))

    move_s3.move()

    assert said[:3] == ["remove_unwanted", "remove_abandoned", "start_made"]
    assert said[-1] == "swap (theirs)"


def test_two_at_once_are_refused(said: list[str]) -> None:
    with move_s3.alone(), pytest.raises(Failure, match="Another `make move-s3` is at work"):
        move_s3.move()


def test_a_target_that_does_not_suffice_gets_nothing(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))

    with pytest.raises(Failure, match="The target does not do what the stack needs"):
        move_s3.move()

    assert said[-1] == "Preparing the bucket (dagster)"


# --- which store -----------------------------------------------------------------------------------------------------


def test_without_a_target_it_says_how_to_name_one(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TO")

    with pytest.raises(Failure, match="Where to"):
        move_s3.move()


def test_variables_name_one_and_leave_the_environment(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env.write_text(TEXT)
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://other")
    monkeypatch.setenv("S3_ACCESS_KEY", "")

    store = s3_store.named()

    assert store is not None
    assert (store["S3_ENDPOINT_URL"], store["S3_BUCKET"], store["S3_SECRET_KEY"]) == (
        "http://other",
        "dagster",
        "",
    )
    assert not [name for name in s3_store.NAMES if name in os.environ]


def test_another_stores_keys_are_never_those_of_this_one(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env.write_text(TEXT)
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://other")

    with pytest.raises(Failure, match="S3_ACCESS_KEY and S3_SECRET_KEY of that store are missing"):
        s3_store.named()


def test_another_bucket_of_the_same_store_is_reached_with_the_same_keys(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.write_text(TEXT)
    monkeypatch.setenv("S3_BUCKET", "other")

    store = s3_store.named()

    assert store is not None
    assert (store["S3_BUCKET"], store["S3_SECRET_KEY"]) == ("other", "former")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("WORKERS=2\n", "names no S3_ENDPOINT_URL"),
        ("S3_ENDPOINT_URL='http://x\n", "the quote"),
        ("S3_ENDPOINT_URL=http://x\nS3_ACCESS_KEY=a\nS3_SECRET_KEY=a$b\n", "names no variable"),
        (None, "can't be read: No such file"),
    ],
)
def test_a_file_that_is_not_clear_is_refused(target: Path, text: str | None, reason: str) -> None:
    target.unlink() if text is None else target.write_text(text)

    with pytest.raises(Failure, match=reason):
        s3_store.named()


def test_the_prefix_stays_since_the_event_log_names_keys(target: Path) -> None:
    target.write_text(f"{TARGET}S3_PREFIX=team-b\n")

    with pytest.raises(Failure, match=r"The event log names objects by their keys"):
        move_s3.wanted()


@pytest.mark.parametrize("value", ["plain", "a$b'c", 'a"b # c', "", "ä\\n"])
def test_any_value_stands_in_the_file_as_it_is(env: Path, value: str) -> None:
    env.write_text(f"S3_SECRET_KEY={s3_store.quoted('S3_SECRET_KEY', value)}\n")

    assert env_file.read(env)["S3_SECRET_KEY"] == value


def test_rclone_knows_amazon_and_the_machines_role() -> None:
    store = s3_store.completed({"S3_ENDPOINT_URL": "https://s3.eu-central-1.amazonaws.com"})
    found = move_s3.remote("TO", store)
    assert found["RCLONE_CONFIG_TO_PROVIDER"] == "AWS"
    assert found["RCLONE_CONFIG_TO_ENV_AUTH"] == "true"
    assert "RCLONE_CONFIG_TO_SECRET_ACCESS_KEY" not in found
