"""`make backup` and `make backups`: what the service `backup` does by itself, at once; and what there is to go back to."""

import json
import os
import secrets
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from scripts import base_image, compose, data_folder, env_file, login, unfinished
from scripts.console import BUILD_FOLDER, ROOT, Failure, Progress, done, main, say, warn
from scripts.preflight import Finding

#: What BACKUP may be; the profile of the service is named after it.
HOW = ("off", "daily")
PROFILE = "backup-daily"
#: The user that the service and Postgres run as.
USER = 10002
PROBE = 'file=$(mktemp /data/.probe.XXXXXX) && rm -f "$file"'
#: By which the service knows a repository from a folder whose disk is not mounted (docker/backup/backup/repository.py).
IDENTITY = "/data/repository.json"


# --- settings --------------------------------------------------------------------------------------------


def is_on() -> bool:
    return env_file.settings().get("BACKUP") == "daily"


def findings() -> list[Finding]:
    """Check the settings before anything is made."""
    settings, file = env_file.settings(), env_file.env_path().name
    how, folder = settings.get("BACKUP") or "off", settings.get("BACKUP_DIR", "")
    cure = ""
    if how not in HOW:
        cure = f"BACKUP={how} in {file}: there are {' and '.join(HOW)}"
    elif folder and (not Path(folder).is_absolute() or ":" in folder or ".." in Path(folder).parts):
        cure = f"BACKUP_DIR in {file} must be a whole path without ':' and '..', such as /mnt/second-disk/backups"
    elif folder and (
        Path(folder) in data_folder.SYSTEM or Path(folder).resolve() in {*data_folder.SYSTEM, Path.home()}
    ):
        cure = f"BACKUP_DIR in {file} is a folder of the system, which is never given to containers: name one below it"
    found = f"{how}{f' in {folder}' if folder else ''}"
    return [Finding("backups", "off, or daily", found, cure)]


def ensure() -> None:
    """Switch the profile on, and make the folder that BACKUP_DIR names; raises Failure where it can't be written to."""
    if not is_on():
        return
    if PROFILE not in env_file.profiles():
        env_file.set_profiles(env_file.profiles() | {PROFILE})
    text = env_file.settings().get("BACKUP_DIR", "")
    if not text:
        if not env_file.settings().get("BACKUP_TARGET"):
            warn(
                "backups lie on the disk of the data: BACKUP_DIR or BACKUP_TARGET in .env names another place"
            )
        return
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_free = folder.stat().st_uid != USER and not any(folder.iterdir())
    except OSError as error:
        raise Failure(
            f"BACKUP_DIR={folder} can't be made by this user ({error.strerror}). Name another one in"
            f" {env_file.env_path().name}, or make it: sudo install -d -m 0700 -o {USER} -g {USER} {folder}"
        ) from None
    as_user = ("--user", f"{USER}:{USER}")
    if is_known(folder) and data_folder.in_container(folder, f"[ -s {IDENTITY} ]", *as_user):
        raise Failure(
            f"BACKUP_DIR={folder} had the backups of this stack, and has none now. Is its disk mounted? Mount it, or name"
            f" another folder in {env_file.env_path().name} for new ones."
        )
    if is_free:
        data_folder.in_container(
            folder, f"chown {USER}:{USER} /data && chmod 0700 /data", "--user", "0", *data_folder.AS_OWNER
        )
    if problem := data_folder.in_container(folder, PROBE, *as_user):
        raise Failure(
            f"Backups can't be written to BACKUP_DIR={folder} by user {USER}: {problem}\n\n"
            f"  Give it the folder:  sudo chown -R {USER}:{USER} {folder}"
        )
    make_repository(folder)


def make_repository(folder: Path) -> None:
    """Let the service know the folder as its repository, and this host that it is one."""
    identity = json.dumps({"id": secrets.token_hex(8)})
    script = f"[ -s {IDENTITY} ] || echo '{identity}' > {IDENTITY}"
    if problem := data_folder.in_container(folder, script, "--user", f"{USER}:{USER}"):
        raise Failure(f"Backups can't be written to BACKUP_DIR={folder}: {problem}")
    if not is_known(folder):
        env_file.hand_on(known(), str(folder), like=env_file.env_path())


def known() -> Path:
    """The file that names the folder in which this stack's backups are."""
    return BUILD_FOLDER / compose.project() / "repository"


def is_known(folder: Path) -> bool:
    try:
        return known().read_text(encoding="utf-8").strip() == str(folder)
    except OSError:
        return False


# --- the service -----------------------------------------------------------------------------------------


def ask(*arguments: str, given: str = "") -> str:
    """What the service's program prints; raises Failure with its words."""
    command = [*compose.compose(), "exec", "--no-TTY", "backup", "python3", "-m", "backup", *arguments]
    result = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Failure(result.stderr.strip() or f"the service `backup` ended with {result.returncode}")
    return result.stdout


def require_service() -> None:
    """Raises Failure where there is no service to ask."""
    compose.require_env_file()
    if not is_on():
        raise Failure(
            f"BACKUP is off in {env_file.env_path().name}. Write BACKUP=daily there, then `make up`: Postgres restarts once."
        )
    unfinished.require_none()
    if not any(each.service == "backup" and each.state == "running" for each in compose.containers()):
        raise Failure("The service `backup` does not run: `make up` starts it.")


def keep() -> None:
    """Keep .env and the versions with the backups; print the recovery sheet when they are the first ones."""
    if not is_on():
        return
    try:
        is_first = (
            ask("keep", "settings/env", given=env_file.env_path().read_text(encoding="utf-8")).strip()
            == "first"
        )
        ask("keep", "settings/versions.json", given=json.dumps(versions(), sort_keys=True))
    except Failure as failure:
        warn(f"backups: {failure}")
        return
    if is_first:
        recovery_sheet()
    keep_users()


def keep_users() -> None:
    """Keep who may log in with the backups, but for `admin`, whom .env names."""
    if not (is_on() and env_file.has_login()):
        return
    try:
        ask("keep", "settings/users", given=login.in_door("user", "export"))
    except Failure as failure:
        warn(f"backups: {failure}")


def versions() -> dict[str, str]:
    """What the stack is made of, by which another host can be told to be the same."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = {"commit": commit.stdout.strip()}
    for name in ("postgres", "rabbitmq", "minio", "dagster"):
        found[name] = base_image.image_id(f"{compose.project()}/{name}")
    return found


def recovery_sheet() -> None:
    settings = env_file.settings()
    target, folder = settings.get("BACKUP_TARGET", ""), settings.get("BACKUP_DIR", "")
    login = {"s3": "BACKUP_S3_…", "sf": "BACKUP_SFTP_…"}.get(target[:2], "")
    say(
        f"\n  Recovery sheet of {compose.project()}: shown this once. Keep it away from this host; backups are of no use"
        f" without the key.\n\n"
        f"    key        {settings.get('BACKUP_KEY')}\n"
        f"    backups    {folder or 'the volume backups'}\n"
        f"    copy       {target or 'none: BACKUP_TARGET is not set'}"
    )
    if target or folder:
        say(
            f"    restore    in a clone of this repository: make restore FROM={target or folder} BACKUP_KEY=…"
        )
    if login:
        say(f"               with the login of that place in the environment: {login}, as in .env.example")
    say("")


# --- make targets ----------------------------------------------------------------------------------------


def backup() -> None:
    """A base backup, a point and the copy off this host, now."""
    require_service()
    how = "full" if os.environ.get("FULL", "0") not in ("", "0", "no") else "incremental"
    say(f"Backing up {compose.project()}: {how}; the stack goes on meanwhile")
    keep()
    with Progress("Database, bucket, copy off this host"):
        said = ask("now", *(["--full"] if how == "full" else []))
    for line in said.splitlines():
        name, seconds = line.rsplit(" ", 1)
        done(f"{name} ({seconds} s)")
    show(json.loads(ask("list")))


def listing() -> None:
    """What there is: age, size, last verified."""
    require_service()
    found = json.loads(ask("list"))
    if os.environ.get("JSON"):
        say(json.dumps(found, indent=2))
        return
    show(found)


def show(found: dict[str, Any]) -> None:
    now, state = found["now"], found["state"]
    for base in found["bases"]:
        say(
            f"  {local(base['ended'])}  {ago(now - base['ended']):>8}  {base['kind']:<5} {size(base['size']):>9} of database,"
            f" {size(base['stored'])} stored"
        )
    if found["points"] and earliest(found) <= found["points"][-1]["at"]:
        first, last = found["points"][0], found["points"][-1]
        say(f"  any second from {local(earliest(found))} to {local(last['at'])} ({ago(now - last['at'])})" if last["wal"] else
            f"  a dump each day from {local(first['at'])} to {local(last['at'])}")  # fmt: skip
    else:
        say("  no moment to restore to yet")
    say(f"  bucket: {found['bucket']['objects']:,} objects, {size(found['bucket']['bytes'])}")
    for text, key in (
        ("last verified", "verified"),
        ("copied off this host", "mirror"),
        ("last restore drill", "drill"),
    ):
        at = state.get(key)
        if key != "mirror" or found["target"]:
            say(f"  {text}: {f'{local(at)} ({ago(now - at)})' if at else 'never'}")
    if not found["target"]:
        say("  copied off this host: no, as BACKUP_TARGET is empty")
    for name, text in found["errors"].items():
        warn(f"{name}: {text}")


def earliest(found: dict[str, Any]) -> float:
    """From which second on the database can be restored: the end of the oldest base backup."""
    return float(min((base["ended"] for base in found["bases"]), default=found["points"][0]["at"]))


def local(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def ago(seconds: float) -> str:
    for unit, secs in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * secs:
            return f"{seconds / secs:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} TB"


if __name__ == "__main__":
    main(listing if sys.argv[1:] == ["list"] else backup)
