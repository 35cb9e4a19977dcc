"""The copy off this host: the whole repository at BACKUP_TARGET, encrypted as it is."""

import json
import shutil
import tempfile
from pathlib import Path

from backup import bucket, points, repository, state
from backup.errors import Failure
from backup.programs import alone, rclone
from backup.settings import KEPT, REPOSITORY, Settings, remote_of

#: By which a copy is known as that of this repository.
IDENTITY = repository.FILE.name
#: What changes under the same name: it goes last, as it names the rest. `state.json` is of this host.
LATE = ("*.info", "*.info.copy", "/points/**", f"/{IDENTITY}", "/kept/settings/**", "/kept/dead-letters.json")
NEVER = ("/state.json", "/state.new", "/kept/copying", "*.part", "*.pgbackrest.tmp")


def copy(settings: Settings) -> None:
    """Bring the copy up to date; raises Failure where it is another repository's."""
    if not settings.target:
        return
    with alone("mirror"), tempfile.TemporaryDirectory() as scratch:
        target = remote_of(settings.target)[0]
        require_own(settings, target)
        # What they name is in the repository now, and so in the copy before them.
        listed = Path(scratch, "points")
        if points.FOLDER.is_dir():
            shutil.copytree(points.FOLDER, listed)
        seen = bucket.stamps()
        not_late = [option for name in (*NEVER, *LATE) for option in ("--exclude", name)]
        rclone(settings, "copy", str(REPOSITORY), target, "--size-only", *not_late)
        replaced = Path(scratch, "replaced")
        replaced.write_text(
            "".join(f"{name}\n" for name in replaced_since(state.read().get("mirrored", ""))),
            encoding="utf-8",
        )
        if replaced.stat().st_size:
            rclone(
                settings, "copy", str(KEPT / "bucket"), f"{target}/kept/bucket",
                "--files-from-raw", str(replaced), "--ignore-times", "--no-traverse",
            )  # fmt: skip
        late = [option for name in LATE if not name.startswith("/points") for option in ("--include", name)]
        rclone(settings, "copy", str(REPOSITORY), target, "--ignore-times", *late)
        if listed.is_dir():
            rclone(settings, "sync", str(listed), f"{target}/points", "--ignore-times")
        never = [option for name in (*NEVER, *LATE) for option in ("--exclude", name)]
        rclone(settings, "sync", str(REPOSITORY), target, "--size-only", *never)
    state.note(mirrored=seen[-1] if seen else "")


def replaced_since(stamp: str) -> list[str]:
    """The objects whose copy was replaced by points after this one, and is there: their size may be the same."""
    found: set[str] = set()
    for each in bucket.stamps():
        if each > stamp:
            folder = KEPT / "old" / each
            found.update(str(file.relative_to(folder)) for file in bucket.files(folder))
    return sorted(name for name in found if (KEPT / "bucket" / name).exists())


def require_own(settings: Settings, target: str) -> None:
    """An empty repository, such as that of a new disk, must not empty the copy of the lost one."""
    own = repository.identity()
    there = (
        rclone(settings, "lsf", target, "--files-only", "--include", f"/{IDENTITY}")
        if exists(settings, target)
        else ""
    )
    if not there.strip():
        return
    other = json.loads(rclone(settings, "cat", f"{target}/{IDENTITY}"))["id"]
    if other != own:
        raise Failure(
            f"{settings.target} has the copy of another repository, which this one would replace. To go back to that one:"
            f" make restore FROM={settings.target}. Else name another folder as BACKUP_TARGET in .env, then `make up`."
        )


def exists(settings: Settings, target: str) -> bool:
    """Whether the folder is there; raises Failure where that can't be said."""
    try:
        return bool(rclone(settings, "lsf", target, "--max-depth", "1"))
    except Failure as failure:
        if "directory not found" in str(failure):
            return False
        raise


def fetch(settings: Settings) -> None:
    """Bring the repository here from the copy that `target` names; what is here and whole is not fetched again."""
    target = remote_of(settings.target)[0]
    if not exists(settings, target):
        raise Failure(f"There is nothing at {settings.target}: name the folder that BACKUP_TARGET named.")
    if not rclone(settings, "lsf", target, "--files-only", "--include", f"/{IDENTITY}").strip():
        raise Failure(f"{settings.target} is no copy of a repository: it has no {IDENTITY}.")
    other = json.loads(rclone(settings, "cat", f"{target}/{IDENTITY}"))["id"]
    if repository.FILE.exists() and other != repository.identity() and points.read()[0]:
        raise Failure(
            f"The repository here has backups of its own, which are not those of {settings.target}. Name an empty folder as"
            " BACKUP_DIR in .env."
        )
    rclone(
        settings, "copy", target, str(REPOSITORY), "--size-only", "--exclude", "/state.json", *late_excluded()
    )
    for name in LATE:
        rclone(settings, "copy", target, str(REPOSITORY), "--ignore-times", "--include", name)


def late_excluded() -> list[str]:
    return [option for name in LATE for option in ("--exclude", name)]
