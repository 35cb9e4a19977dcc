"""What the service of backups says and is told: figures, places, cures."""

import base64
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from backup import database, errors, papers, programs, repository, service, settings, state
from backup.errors import Failure
from backup.settings import Settings

from scripts.console import ROOT

NEEDED = {"BACKUP_KEY": "abc", "S3_BUCKET": "dagster"}


def figures(target: str, found: dict[str, float]) -> dict[str, float]:
    text = service.figures(Settings.read({**NEEDED, "BACKUP_TARGET": target}), found, 1000.0)
    pairs = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert len({name for name, _ in pairs}) == len(pairs)
    return {name: float(value) for name, value in pairs}


# --- figures -----------------------------------------------------------------------------------------------


def test_figures_are_ages_and_what_was_never_done_is_as_old_as_the_service() -> None:
    found = figures("", {"since": 400.0, "base": 900.0, "point": 990.0})
    assert found == {
        "dagster_backup_age_seconds": 100,
        "dagster_backup_point_age_seconds": 10,
        "dagster_backup_verified_age_seconds": 600,
    }


def test_a_copy_and_a_drill_have_a_figure_where_there_are_some() -> None:
    found = figures("s3:far/one", {"since": 400.0, "drill": 700.0})
    assert found["dagster_backup_copy_age_seconds"] == 600
    assert found["dagster_backup_drill_age_seconds"] == 300


def test_the_page_explains_every_figure_and_no_other_one() -> None:
    page = (ROOT / "docs" / "backup.md").read_text()
    explained = {name for line in page.splitlines() for name in re.findall(r"^\| `(dagster_\w+)`", line)}
    assert explained == figures("s3:far/one", {"since": 1.0, "drill": 1.0}).keys()


# --- places --------------------------------------------------------------------------------------------------


def test_a_bucket_of_another_store() -> None:
    path, options = settings.remote_of("s3:far/one/", {"BACKUP_S3_ENDPOINT_URL": "https://s3.example.com"})
    assert path == "target:far/one"
    assert (options["provider"], options["endpoint"], options["force_path_style"]) == (
        "Other",
        "https://s3.example.com",
        "true",
    )


def test_without_an_address_it_is_amazons() -> None:
    assert settings.remote_of("s3:far", {})[1]["provider"] == "AWS"


def test_a_server_is_known_by_its_key_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "KNOWN_HOSTS", tmp_path / "known_hosts")
    key = base64.b64encode(b"-----BEGIN\nabc\n-----END\n").decode()
    environment = {"BACKUP_SFTP_HOST_KEY": "ssh-ed25519 AAAA", "BACKUP_SFTP_KEY": key}
    path, options = settings.remote_of("sftp:me@nas.example.com:2222/backups/one/", environment)
    assert path == "target:/backups/one"
    assert (options["host"], options["port"], options["user"]) == ("nas.example.com", "2222", "me")
    assert options["key_pem"] == "-----BEGIN\\nabc\\n-----END"
    assert (tmp_path / "known_hosts").read_text() == "[nas.example.com]:2222 ssh-ed25519 AAAA\n"
    with pytest.raises(Failure, match=r"ssh-keyscan -p 22 nas \| cut"):
        settings.remote_of("sftp:me@nas/backups", environment | {"BACKUP_SFTP_HOST_KEY": ""})
    with pytest.raises(Failure, match="no keys of a server"):
        settings.remote_of("sftp:me@nas/backups", environment | {"BACKUP_SFTP_HOST_KEY": "AAAA"})


def test_all_keys_of_a_server_are_believed_as_rclone_asks_for_the_kind_that_it_likes_best(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """rclone 1.60 wants a server's ECDSA key, whatever kind it is told: with another one alone it ends with a mismatch."""
    monkeypatch.setattr(settings, "KNOWN_HOSTS", tmp_path / "known_hosts")

    settings.known_hosts("nas", 22, {"BACKUP_SFTP_HOST_KEY": "ssh-ed25519 AAAA ecdsa-sha2-nistp256 BBBB "})

    assert (tmp_path / "known_hosts").read_text() == "nas ssh-ed25519 AAAA\nnas ecdsa-sha2-nistp256 BBBB\n"


def test_a_server_without_a_login_is_refused_with_what_is_missing() -> None:
    with pytest.raises(Failure, match="BACKUP_SFTP_KEY and BACKUP_SFTP_PASSWORD are empty"):
        settings.login({})


@pytest.mark.parametrize("target", ["nas:/backups", "s3:", "sftp:nas/backups", "backups"])
def test_what_is_no_place_is_refused_with_how_one_is_written(target: str) -> None:
    with pytest.raises(Failure, match="s3:bucket/folder"):
        settings.remote_of(target, {})


def test_a_key_that_is_no_base64_is_refused() -> None:
    with pytest.raises(Failure, match="base64 -w0"):
        settings.login({"BACKUP_SFTP_KEY": "-----BEGIN"})


@pytest.mark.parametrize(
    "changed", [{"BACKUP_KEY": ""}, {"BACKUP_KEEP_DAYS": "0"}, {"BACKUP_KEEP_DAYS": "-1"}]
)
def test_settings_that_can_not_be_are_refused(changed: dict[str, str]) -> None:
    with pytest.raises(Failure, match=next(iter(changed))):
        Settings.read({**NEEDED, **changed})


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "b", "S3_SESSION_TOKEN": "c"}, ("false", "a", "b", "c")),
        ({"S3_ACCESS_KEY": "", "S3_SECRET_KEY": "", "S3_SESSION_TOKEN": ""}, ("true", "", "", "")),
    ],
)
def test_without_an_access_key_the_machines_role_has_the_keys(
    keys: dict[str, str], found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "obscured", lambda text: text)
    remotes = settings.rclone_environment(Settings.read(NEEDED), keys)
    names = ("ENV_AUTH", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
    assert tuple(remotes[f"RCLONE_CONFIG_STORE_{name}"] for name in names) == found


def test_keys_of_a_shared_bucket_have_their_prefix() -> None:
    assert Settings.read({**NEEDED, "S3_PREFIX": "/team-a/"}).bucket == "store:dagster/team-a"


def test_rclone_trusts_the_file_of_the_stack_by_the_one_variable_that_it_can_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(programs, "remotes", lambda _: {"RCLONE_CONFIG_STORE_TYPE": "s3"})
    for name in ("SSL_CERT_FILE", "AWS_CA_BUNDLE"):
        monkeypatch.setenv(name, "/tmp/bundle.pem")
    found = programs.rclone_environ(Settings.read(NEEDED))
    assert found["SSL_CERT_FILE"] == "/tmp/bundle.pem"
    assert found["RCLONE_CONFIG_STORE_TYPE"] == "s3"
    assert "AWS_CA_BUNDLE" not in found


#: What rclone 1.60 prints of an object that a step removed after the list was made, and of one that it may not read.
SAID = """\
{"level":"error","msg":"Failed to copy: failed to open source object: NoSuchKey: gone\\n\\tstatus code: 404","object":"logs/a"}
{"level":"error","msg":"not deleting files as there were IO errors","object":"kept:bucket"}
{"level":"error","msg":"Attempt 2/2 failed with 1 errors and: failed to open source object: NoSuchKey: gone"}
{"level":"warning","msg":"Transferred","stats":{"bytes":3,"transfers":1}}
2026/11/30 08:24:19 Failed to sync: failed to open source object: NoSuchKey: gone
\tstatus code: 404, request id: , host id:
"""
DENIED = '{"level":"error","msg":"Failed to copy: AccessDenied: Access Denied","object":"storage/b"}\n'


@pytest.mark.parametrize(
    ("said", "is_in_use", "is_copied"),
    [(SAID, True, True), (SAID, False, False), (DENIED + SAID, True, False)],
)
def test_an_object_that_goes_while_the_bucket_is_copied_is_no_failure(
    said: str, is_in_use: bool, is_copied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that ends removes its output so far."""
    (tmp_path / "said").write_text(said)
    program = tmp_path / "rclone"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/said >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(programs, "remotes", lambda _: {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    if is_copied:
        found = programs.transferred(Settings.read(NEEDED), "sync", is_in_use=is_in_use)
        assert found == {"bytes": 3, "transfers": 1}
    else:
        with pytest.raises(Failure, match="NoSuchKey" if "Access" not in said else "AccessDenied"):
            programs.transferred(Settings.read(NEEDED), "sync", is_in_use=is_in_use)


# --- a disk that is not mounted ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(repository, "FILE", tmp_path / "repository.json")
    return tmp_path


def test_an_empty_folder_is_no_repository(folder: Path) -> None:
    with pytest.raises(
        Failure, match=r"BACKUP_DIR=/mnt/nas .*mounted.*docker compose restart postgres backup"
    ):
        repository.require(Settings.read({**NEEDED, "BACKUP_DIR": "/mnt/nas"}))
    assert list(folder.iterdir()) == []


def test_one_that_make_up_has_made_is(folder: Path) -> None:
    (folder / "repository.json").write_text('{"id": "abc"}')
    repository.require(Settings.read({**NEEDED, "BACKUP_DIR": "/mnt/nas"}))
    assert repository.identity() == "abc"


def test_a_volume_is_made_one(folder: Path) -> None:
    repository.require(Settings.read(NEEDED))
    made = repository.identity()
    repository.require(Settings.read(NEEDED))
    assert repository.identity() == made


def test_nothing_is_written_to_an_empty_folder_and_its_ages_grow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nas = Settings.read({**NEEDED, "BACKUP_DIR": "/mnt/nas", "BACKUP_TARGET": "s3:far"})
    did: list[str] = []
    monkeypatch.setattr(state, "FILE", folder / "state.json")
    for name in ("base", "point", "verify", "copy_off_host"):
        monkeypatch.setattr(service, name, lambda _, name=name: did.append(name))
    service.remember_start(nas)
    for task in service.tasks(nas):
        with pytest.raises(Failure, match="mounted"):
            task.work()
    assert (did, list(folder.iterdir())) == ([], [])
    monkeypatch.setattr(service, "STARTED", 400.0)
    assert "dagster_backup_point_age_seconds 600\n" in service.figures(nas, {}, 1000.0)


# --- what is said ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("ERROR: [045]: archive-push … No space left on device", "BACKUP_DIR more room"),
        ("ERROR: [095]: CryptoError: unable to flush", "BACKUP_KEY is not the key"),
        ("Failed to cat: unexpected EOF", "BACKUP_KEY is not the key"),
        ("dial tcp 10.0.0.1:443: i/o timeout", "does not answer"),
        (
            "ERROR: [028]: backup and archive info files exist but do not match the database",
            "another database",
        ),
        ("ERROR: [082]: WAL segment 01 was not archived before the 10000ms timeout", "its log says why"),
        ("ERROR: [087]: archive_mode must be enabled", "`make up` restarts it"),
        ("ssh: handshake failed: ssh: unable to authenticate", "login or the permissions"),
        ("ssh: handshake failed: knownhosts: key mismatch", "all of its keys"),
    ],
)
def test_what_programs_say_has_a_cure(said: str, cure: str) -> None:
    assert cure in errors.cure(said)


def test_a_full_repository_is_said_though_pgbackrest_only_says_that_a_file_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "ARCHIVED_SECS", -1)
    monkeypatch.setattr(database, "sql", lambda _: [["", "000000010000000000000030!"]])
    monkeypatch.setattr("backup.database.shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))

    with pytest.raises(Failure, match=r"The repository is full.*\n.*00000001000000000000007D"):
        database.wait_until_archived("00000001000000000000007D")


def test_a_broker_that_is_down_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VHOST", "ADMIN_USER", "ADMIN_PASSWORD"):
        monkeypatch.setenv(f"RABBITMQ_{name}", "x")
    with pytest.raises(Failure, match="dead letters of the one before"):
        papers.keep_dead_letters(Settings.read({**NEEDED, "RABBITMQ_API_URL": "http://127.0.0.1:9"}))


def test_a_program_that_was_killed_is_said_to_be() -> None:
    with pytest.raises(Failure, match=r"sh failed.\nit ended with -9"):
        programs.run("sh", "-c", "kill -9 $$")


def test_what_nobody_knows_has_none() -> None:
    assert errors.cure("the dog ate it") == ""


# --- what was done last ------------------------------------------------------------------------------------------


def test_a_note_leaves_all_others(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    state.note(file, base=1.0, errors={"point": "full"})
    state.note(file, point=2.0, errors=None)
    assert state.read(file) == {"base": 1.0, "point": 2.0}


def test_what_is_broken_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text("{")
    assert state.read(file) == {}


def test_points_are_half_a_minute_apart_or_four_times_what_the_bucket_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for copying, pause in ((1.0, 30), (20.0, 80), (10_000.0, 900)):
        monkeypatch.setattr(state, "read", lambda copying=copying: {"copy_seconds": copying})
        assert service.point_pause() == pause
