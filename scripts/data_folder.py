"""DATA_DIR: the folder of this host, if any, in which user code keeps its files; made with the owner that it needs."""

import os
import subprocess
from pathlib import Path

from dagster_stack.errors import SettingsError
from dagster_stack.project.data import SETTING, paths
from scripts import engine, env_file
from scripts.console import ROOT, Failure, done
from scripts.preflight import Finding

VARIABLE = "DATA_DIR"
#: The user that user code runs as in its containers.
USER = 10000
#: What root of a container needs for that.
AS_OWNER = ("--cap-add", "CHOWN", "--cap-add", "FOWNER", "--cap-add", "DAC_OVERRIDE", "--cap-add", "FSETID")
#: What is never given to it.
SYSTEM = {Path(name) for name in ("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/opt", "/proc", "/root", "/run", "/sbin",
                                  "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib")}  # fmt: skip
#: As the user of the containers: a file can be made there, is that user's, and can be locked (DuckDB and SQLite do).
PROBE = """
file=$(mktemp /data/.probe.XXXXXX) || exit 1
owner=$(stat -c %u "$file")
flock -n "$file" true; locked=$?
rm -f "$file"
[ "$owner" = "$(id -u)" ] && [ $locked = 0 ] || { echo "owner $owner, lock $locked"; exit 1; }
"""


def findings() -> list[Finding]:
    """Check the settings before anything is made."""
    settings, file = env_file.settings(), env_file.env_path().name
    text = settings.get(VARIABLE, "")
    try:
        writable = paths(settings.get(SETTING, ""))
    except SettingsError as error:
        return [Finding("files of user code", "folders of the project", "what is none", str(error))]
    found = f"{', '.join(writable)} on {text or 'a volume'}"
    cure = ""
    if text:
        required = "a folder of this host"
        if not Path(text).is_absolute() or ":" in text or ".." in Path(text).parts:
            cure = f"{VARIABLE} in {file} must be a whole path without ':' and '..', such as /srv/my-data; empty, a volume is used"
        elif Path(text) in SYSTEM or Path(text).resolve() in {*SYSTEM, Path.home()}:
            cure = f"{VARIABLE} in {file} is a folder of the system, which is never given to containers: name one below it"
        elif reason := no_owners():
            cure = f"{VARIABLE} is unreliable with {reason}: leave it empty in {file}, a volume is used"
    else:
        required = "a volume, or a folder of this host"
    return [Finding("files of user code", required, found, cure)]


def no_owners() -> str:
    """Why a folder of this host can't be given to the user of the containers; empty when it can."""
    security = {option.partition(",")[0] for option in engine.info().get("SecurityOptions") or []}
    if engine.is_elsewhere():
        return "an engine on another machine"
    return {"name=rootless": "a rootless engine", "name=userns": "an engine that maps users"}.get(
        min(security & {"name=rootless", "name=userns"}, default=""), ""
    )


def ensure() -> None:
    """Make the folder that DATA_DIR names, if any; raises Failure, with the cure, where user code can't write to it.

    A folder with files in it keeps its owner: they are somebody's.
    """
    text = env_file.settings().get(VARIABLE, "")
    if not text:
        return
    folder = Path(text)
    is_new = not os.path.lexists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_free = is_new or (folder.stat().st_uid != USER and not any(folder.iterdir()))
    except FileExistsError:
        raise Failure(
            f"{VARIABLE}={folder} is no folder: name another one in {env_file.env_path().name}."
        ) from None
    except OSError as error:
        raise Failure(
            f"{VARIABLE}={folder} can't be made by this user ({error.filename}: {error.strerror}). Name another one, or make"
            f" it: sudo install -d -o {USER} -g {USER} {folder}"
        ) from None
    if is_free:
        # As root of a container, who may do that even if this user is not root.
        # Whoever owns this checkout may put files there.
        group = ROOT.stat().st_gid or USER
        in_container(folder, f"chown {USER}:{group} /data && chmod 2775 /data", "--user", "0", *AS_OWNER)
    if problem := in_container(folder, PROBE, "--user", f"{USER}:{USER}"):
        raise Failure(
            f"User code can't use {VARIABLE}={folder}, as it runs as user {USER}: {problem}\n\n"
            f"  Give it the folder:  sudo chown -R {USER}:{USER} {folder}\n"
            f"  On a file system that has no owners or locks (exFAT, some network shares) that does not help: name a folder"
            f" elsewhere, or leave {VARIABLE} empty in {env_file.env_path().name} for a volume."
        )
    done(f"{folder} is there for files of user code, as user {USER}" + (": made" if is_new else ""))


def in_container(folder: Path, script: str, *options: str) -> str:
    """Run a script beside the folder; what it says when it fails, else nothing."""
    image = env_file.settings()["BASE_IMAGE"]
    mount = f"{folder}:/data:z"
    command = [
        "run",
        "--rm",
        "--network",
        "none",
        "--cap-drop",
        "ALL",
        "--entrypoint",
        "sh",
        "--volume",
        mount,
    ]
    result = subprocess.run(
        [engine.docker(), *command, *options, image, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    return (result.stderr + result.stdout).strip() or "it fails" if result.returncode else ""
