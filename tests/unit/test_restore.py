"""What `make restore` and `make backups` are asked, and how they answer before anything is done."""

import json
import os
import shutil
import subprocess
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scripts import (
    backups,
    base_image,
    certificates,
    compose,
    data_folder,
    deploy,
    engine,
    env_file,
    images,
    restore,
    restore_drill,
    rotate,
    scale,
    store_logins,
    unfinished,
    up,
    users,
)
from scripts.console import Failure

PLAN = {
    "to": 1764460800.0,
    "point": {"at": 1764460830.0, "stamp": "x", "wal": "y", "dump": ""},
    "base": {"ended": 1764460000.0, "size": 33_000_000},
    "bucket": {"objects": 1201, "bytes": 96_800},
}


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / ".env"
    file.write_text("COMPOSE_PROJECT_NAME=one\n")
    monkeypatch.setenv("STACK_ENV_FILE", str(file))
    monkeypatch.setattr(unfinished, "BUILD_FOLDER", tmp_path / "build")
    for name in ("BACKUP", "BACKUP_DIR", "FROM", "TO", "RUNS", "SCHEDULES", "COMPOSE_PROFILES"):
        monkeypatch.delenv(name, raising=False)
    return file


# --- make restore ----------------------------------------------------------------------------------------


def test_a_moment_is_in_this_hosts_time_zone_unless_it_names_one() -> None:
    assert restore.moment("2025-11-30 01:00:00+01:00") == datetime(2025, 11, 30, tzinfo=UTC).timestamp()
    assert restore.moment("2025-11-30 14:00") == datetime(2025, 11, 30, 14).timestamp()
    assert restore.moment("") is None


@pytest.mark.parametrize("text", ["yesterday", "14:00", "2025-13-01"])
def test_what_is_no_moment_is_refused_with_how_one_is_written(text: str) -> None:
    with pytest.raises(Failure, match="write TO="):
        restore.moment(text)


def test_a_moment_in_the_future_is_refused() -> None:
    with pytest.raises(Failure, match="in the future"):
        restore.moment("2999-01-01")


def test_a_choice_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNS", "restart")
    with pytest.raises(Failure, match="resume and cancel"):
        restore.chosen("RUNS", restore.RUNS)


def test_a_folder_is_mounted_and_what_is_no_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    restore.place(str(tmp_path))
    assert os.environ == {"RESTORE_FROM": str(tmp_path), "RESTORE_FOLDER": str(tmp_path)}
    with pytest.raises(Failure, match="no folder of this host"):
        restore.place("/not/there")
    with pytest.raises(Failure, match="s3:bucket/folder"):
        restore.place("nas:/backups")


def test_a_fresh_machine_is_asked_for_the_copy_and_the_key(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.unlink()
    monkeypatch.delenv("BACKUP_KEY", raising=False)
    with pytest.raises(Failure, match="make restore FROM="):
        restore.bring_settings("")
    with pytest.raises(Failure, match="recovery sheet"):
        restore.bring_settings("s3:far/one")


def test_settings_that_only_serve_to_read_the_copy_are_gone_afterwards(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "BUILD_FOLDER", tmp_path / "build")
    # Given a shell that names a stack, whose volumes would be removed with the scratch
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "one")
    with restore.scratch_settings("abc") as scratch:
        assert env_file.env_path() == scratch
        assert env_file.settings()["COMPOSE_PROJECT_NAME"] == restore.SCRATCH
        assert env_file.settings()["BACKUP_KEY"] == "abc"
    assert env_file.env_path() == env
    assert os.environ["COMPOSE_PROJECT_NAME"] == "one"
    assert not scratch.exists()


@pytest.mark.parametrize("runs", ["", "resume"])
def test_one_that_was_interrupted_is_completed_to_where_it_was_to_go(
    runs: str, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    carried_out: list[float | None] = []
    monkeypatch.setattr(up, "prepare", lambda: None)
    monkeypatch.setattr(images, "ensure", lambda: None)
    monkeypatch.setattr(images, "ensure_only", lambda *services: None)
    monkeypatch.setattr(certificates, "issue", lambda: None)
    monkeypatch.setattr(restore, "fetch", lambda source: asked.append(("fetch", source)))
    monkeypatch.setattr(restore, "go_on", lambda runs, schedules: asked.append(("go on", runs)))

    def ask(*words: str) -> str:
        asked.append(words)
        return json.dumps(PLAN)

    def carry_out(plan: object, to: float | None) -> None:
        carried_out.append(to)
        if len(carried_out) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(restore, "ask", ask)
    monkeypatch.setattr(restore, "carry_out", carry_out)
    # Given a restore to a moment, from a copy, that was interrupted
    monkeypatch.setenv("TO", "2025-11-30 01:00:00+01:00")
    monkeypatch.setenv("FROM", "s3:far/one")
    with pytest.raises(KeyboardInterrupt):
        restore.restore()
    former, asked[:] = list(asked), []
    # When it is repeated by somebody who remembers neither
    monkeypatch.delenv("TO")
    monkeypatch.delenv("FROM")
    monkeypatch.setenv("RUNS", runs)
    restore.restore()
    # Then it goes to the same moment, and what follows is chosen by this command
    assert carried_out == [datetime(2025, 11, 30, tzinfo=UTC).timestamp()] * 2
    assert asked == [*former, ("go on", runs)]


# --- what a restore does beside the stores ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "other"), [("dagster", "dagster_b"), ("dagster_b", "dagster"), ("", "dagster_b")]
)
def test_a_login_that_env_does_not_name_is_closed(
    user: str, other: str, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment before a rotation has it open."""
    env.write_text(f"POSTGRES_USER={user}\n")
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(compose, "output", lambda *words, given: asked.append(words))
    store_logins.close_restored()
    (words,) = asked
    assert f"former={other}" in words


@pytest.mark.parametrize(
    ("there", "kept", "changes"),
    [
        ({"admin": "admin"}, "ana viewer $2y$05$x\n", [("import", "ana viewer $2y$05$x\n")]),
        ({"admin": "admin"}, "", []),
        # One that was removed since must not come back.
        ({"admin": "admin", "bob": "viewer"}, "ana viewer $2y$05$x\n", []),
    ],
)
def test_a_new_door_gets_the_users_of_the_backup(
    there: dict[str, str], kept: str, changes: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    monkeypatch.setattr(users, "users", lambda: there)
    monkeypatch.setattr(users, "change", lambda command, given: done.append((command, given)))
    monkeypatch.setattr(restore, "ask", lambda what: kept)
    restore.bring_users()
    assert done == changes


# --- make restore-drill ----------------------------------------------------------------------------------


def test_a_drill_touches_no_store_of_the_stack_whatever_the_shell_names(
    env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a stack with outside stores, and a shell that names it
    outside = {
        "S3_ENDPOINT_URL": "https://s3.example.com",
        "RABBITMQ_HOST": "mq.example.com",
        "S3_ACCESS_KEY": "real",
    }
    named = {"COMPOSE_PROJECT_NAME": "one", "LOGIN": "on", "INTERNAL_TLS": "on", **outside}
    env.write_text("".join(f"{name}={value}\n" for name, value in named.items()))
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(restore_drill, "BUILD_FOLDER", tmp_path / "build")
    monkeypatch.setattr(restore_drill, "remove", lambda name: None)
    here = {"one/dagster": "sha256:1", "one/postgres": "sha256:2"}
    did: list[str] = []

    def ask(*line: str) -> str:
        did.append(" ".join(line))
        return "/var/lib/backups"

    monkeypatch.setattr(base_image, "image_id", lambda name: here.get(name, ""))
    monkeypatch.setattr("subprocess.run", lambda command, **_: did.append(" ".join(command)))
    monkeypatch.setattr(engine, "ask", ask)
    monkeypatch.setattr(engine, "docker", lambda: "docker")

    with restore_drill.scratch_copy("one-drill"):
        found = env_file.settings()

    assert {
        name: found[name] for name in ("COMPOSE_PROJECT_NAME", "BACKUP_DIR", "LOGIN", "INTERNAL_TLS")
    } == {
        "COMPOSE_PROJECT_NAME": "one-drill",
        "BACKUP_DIR": "/var/lib/backups",
        "LOGIN": "off",
        "INTERNAL_TLS": "off",
    }
    assert not {"https://s3.example.com", "mq.example.com", "real"} & set(found.values())
    assert env_file.settings()["COMPOSE_PROJECT_NAME"] == "one"
    # And it has the stack's images by names of its own as long as it is there
    assert sorted(line for line in did if line.startswith("docker tag")) == [
        "docker tag sha256:1 one-drill/dagster",
        "docker tag sha256:2 one-drill/postgres",
    ]
    (gone,) = (line for line in did if line.startswith("image rm"))
    assert sorted(gone.split()[2:]) == ["one-drill/dagster", "one-drill/postgres"]


def test_a_drill_says_what_it_has_restored_and_not_what_the_copy_has_meanwhile(
    env: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The copy was being made anew, after a restore: 344 of 501 objects were said."""
    answers = {
        "plan": {
            "to": 1.0,
            "base": {"size": 7_000_000_000},
            "bucket": {"objects": 344, "bytes": 2_500_000_000},
        },
        "compare": {"count": 501, "bytes": 4_200_000_000},
    }
    for owner, name in ((backups, "require_service"), (restore, "start_postgres"), (backups, "ask"),
                        (up, "run"), (up, "wait_until_healthy")):  # fmt: skip
        monkeypatch.setattr(owner, name, lambda *_: None)
    monkeypatch.setattr(restore, "ask", lambda what: json.dumps(answers.get(what)))
    monkeypatch.setattr(restore_drill, "scratch_copy", lambda *_: nullcontext())
    monkeypatch.setattr(compose, "output", lambda *_: "1|4299471\n")

    restore_drill.drill()

    assert "1 runs, 4,299,471 events, 501 objects: 11.2 GB in" in capsys.readouterr().out


def test_there_is_no_drill_of_an_outside_postgres(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env.write_text("POSTGRES_HOST=db.example.com\n")
    monkeypatch.setattr(backups, "require_service", lambda: None)
    with pytest.raises(Failure, match="outside store"):
        restore_drill.drill()


def test_all_that_will_be_replaced_is_said_first(env: Path, capsys: pytest.CaptureFixture[str]) -> None:
    restore.announce(PLAN)
    said = capsys.readouterr().out
    for text in (
        "Restoring one to",
        "33.0 MB",
        "1,201 objects, 96.8 kB",
        "broker",
        "stay down until you choose",
    ):
        assert text in said


def test_a_part_of_the_journal_that_is_missing_is_named_with_the_cure() -> None:
    log = "FATAL:  recovery ended before configured recovery target was reached"
    assert "Name an earlier TO" in restore.why_unreachable(log)


# --- a restore that is not finished ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "cure"),
    [(unfinished.RESTORED, "RUNS=resume|cancel"), (unfinished.RESTORING, "`make restore` completes it")],
)
def test_nothing_else_starts_the_stack_meanwhile(env: Path, state: str, cure: str) -> None:
    unfinished.require_none()
    unfinished.note(state)
    for start in (up.up, deploy.deploy, rotate.rotate, scale.scale):
        with pytest.raises(Failure) as raised:
            start()
        assert cure in str(raised.value)
    unfinished.note("")
    unfinished.require_none()


# --- make backups ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "cure"),
    [
        ("BACKUP=daily\n", ""),
        ("BACKUP=hourly\n", "off and daily"),
        ("BACKUP=daily\nBACKUP_DIR=backups\n", "whole path"),
        ("BACKUP=daily\nBACKUP_DIR=/srv\n", "folder of the system"),
        ("BACKUP=daily\nBACKUP_DIR=/mnt/second-disk/backups\n", ""),
    ],
)
def test_settings_that_can_not_be_are_found_before_anything_is_made(env: Path, lines: str, cure: str) -> None:
    env.write_text(env.read_text() + lines)
    (finding,) = backups.findings()
    assert cure in finding.cure
    assert bool(finding.cure) == bool(cure)


def test_daily_switches_the_profile_on_and_off_leaves_it(env: Path) -> None:
    env.write_text(env.read_text() + "COMPOSE_PROFILES=postgres,rabbitmq,minio\n")
    backups.ensure()
    assert backups.PROFILE not in env_file.profiles()
    env.write_text(env.read_text() + "BACKUP=daily\n")
    backups.ensure()
    assert env_file.profiles() == {"postgres", "rabbitmq", "minio", backups.PROFILE}


@pytest.fixture
def nas(env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What BACKUP_DIR names: a folder that containers may write to."""
    folder = tmp_path / "nas"
    env.write_text(env.read_text() + f"BACKUP=daily\nBACKUP_DIR={folder}\nBASE_IMAGE=x\n")
    monkeypatch.setattr(backups, "BUILD_FOLDER", tmp_path / "build")

    def in_container(folder: Path, script: str, *_: str) -> str:
        script = script.replace("/data", str(folder)).replace("chown", "true")
        return "" if subprocess.run(["sh", "-c", script], check=False).returncode == 0 else "it fails"

    monkeypatch.setattr(data_folder, "in_container", in_container)
    return folder


def test_a_folder_is_made_a_repository_once(nas: Path) -> None:
    backups.ensure()
    made = json.loads((nas / "repository.json").read_text())["id"]
    backups.ensure()
    assert json.loads((nas / "repository.json").read_text())["id"] == made


def test_a_disk_that_is_not_mounted_gets_no_new_repository(nas: Path, env: Path) -> None:
    backups.ensure()
    shutil.rmtree(nas)
    nas.mkdir()
    with pytest.raises(Failure, match=r"mounted.*name another folder"):
        backups.ensure()
    assert list(nas.iterdir()) == []
    # Another folder is a new repository
    env_file.set_value("BACKUP_DIR", f"{nas}-new", env)
    backups.ensure()
    assert Path(f"{nas}-new", "repository.json").exists()


def test_without_backups_the_cure_is_how_they_are_switched_on(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "require_env_file", lambda: None)
    with pytest.raises(Failure, match="BACKUP=daily"):
        backups.require_service()


def test_while_a_restore_waits_its_choice_is_the_cure(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env.write_text(env.read_text() + "BACKUP=daily\n")
    monkeypatch.setattr(compose, "require_env_file", lambda: None)
    unfinished.note(unfinished.RESTORED)
    with pytest.raises(Failure, match=r"make restore RUNS=resume\|cancel"):
        backups.require_service()


@pytest.mark.parametrize(
    ("target", "named", "not_named"),
    [
        ("", "FROM=/mnt/second-disk/backups BACKUP_KEY=…", "BACKUP_S3_"),
        ("s3:far/one", "FROM=s3:far/one BACKUP_KEY=…", "BACKUP_SFTP_"),
        ("sftp:me@nas/backups", "FROM=sftp:me@nas/backups BACKUP_KEY=…", "BACKUP_S3_"),
    ],
)
def test_the_recovery_sheet_says_what_is_typed_on_a_new_host(
    env: Path, capsys: pytest.CaptureFixture[str], target: str, named: str, not_named: str
) -> None:
    env.write_text(
        f"{env.read_text()}BACKUP_KEY=abc\nBACKUP_DIR=/mnt/second-disk/backups\nBACKUP_TARGET={target}\n"
    )
    backups.recovery_sheet()
    said = capsys.readouterr().out
    assert "abc" in said
    assert named in said
    assert not_named not in said


@pytest.mark.parametrize(("seconds", "text"), [(8, "8 s"), (180, "3 min"), (7300, "2 h"), (5 * 86400, "5 d")])
def test_ages_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert backups.ago(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7 B"), (96_800, "96.8 kB"), (3.3e7, "33.0 MB"), (2e12, "2.00 TB")]
)
def test_sizes_are_read_at_a_glance(number: float, text: str) -> None:
    assert backups.size(number) == text
