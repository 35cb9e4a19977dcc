"""The bucket: a copy by rclone. What changes or vanishes is kept apart, in a folder named after the point that saw it."""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from backup import points
from backup.errors import Failure
from backup.programs import alone, rclone, transferred
from backup.settings import KEPT, Settings

CURRENT, OLD = "kept:bucket", "kept:old"
#: How rclone names a file that it can't read.
BROKEN = re.compile(r"^.* ERROR : (.*?): ", re.MULTILINE)
#: Is there while a copy is made: the moment since which files may be half written.
UNDER_WAY = KEPT / "copying"


def copy(settings: Settings, stamp: str) -> dict[str, int]:
    """Bring the copy up to date; returns how many objects were copied, and their bytes."""
    remove_halves()
    KEPT.mkdir(parents=True, exist_ok=True)
    UNDER_WAY.touch()
    aside = ("--backup-dir", f"{OLD}/{stamp}")
    # Of an object that went meanwhile, such as a step's output so far, no event tells.
    stats = transferred(settings, "sync", settings.bucket, CURRENT, *aside, is_in_use=True)
    UNDER_WAY.unlink()
    return {"objects": int(stats.get("transfers", 0)), "bytes": int(stats.get("bytes", 0))}


def remove_halves() -> None:
    """What a killed copy has left half written: a file gets the time of its object only when it is whole."""
    if not UNDER_WAY.exists():
        return
    since = UNDER_WAY.stat().st_mtime
    for file in files(KEPT / "bucket"):
        if file.stat().st_mtime >= since:
            file.unlink()


def files(folder: Path) -> Iterable[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)


def stamps() -> list[str]:
    """The points that saw changes which are kept apart, the oldest first."""
    folder = KEPT / "old"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def forget(keep_days: int) -> None:
    """Remove what was kept apart, once its time is over."""
    oldest = points.stamp(time.time() - keep_days * 86400)
    for stamp in stamps():
        if stamp < oldest:
            subprocess.run(["rm", "-rf", KEPT / "old" / stamp], check=True)


def restore(settings: Settings, stamp: str) -> None:
    """Write the objects into the bucket as they were at that point. Younger ones stay: nothing names them."""
    transferred(settings, "copy", CURRENT, settings.bucket)
    # Each has what its point replaced, so the last one that is written is what was there first.
    for later in sorted((each for each in stamps() if each > stamp), reverse=True):
        transferred(settings, "copy", f"{OLD}/{later}", settings.bucket, "--ignore-times")
    # What was deleted while the point was made: its log may still name that.
    if stamp in stamps():
        transferred(settings, "copy", f"{OLD}/{stamp}", settings.bucket, "--ignore-existing")


def verify(settings: Settings) -> None:
    """Read and decrypt all that is kept; raises Failure with what is broken.

    A file that was written or moved at that very moment is read again while nothing is.
    """
    read = ("hashsum", "MD5", "--download", "kept:", "--exclude", "/copying")
    with Path(os.devnull).open("wb") as nothing:
        try:
            rclone(settings, *read, stdout=nothing)
        except Failure as failure:
            broken = sorted(set(BROKEN.findall(failure.said)))
            if not broken:
                raise
            with alone("point"), tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
                listed.writelines(f"{name}\n" for name in broken if is_there(name))
                listed.flush()
                if os.path.getsize(listed.name):
                    rclone(settings, *read[:-2], "--files-from-raw", listed.name, stdout=nothing)


def is_there(name: str) -> bool:
    return (KEPT / f"{name}.bin").exists()


def compare(settings: Settings) -> str:
    """Raises Failure where the bucket lacks something that the copy had a minute ago, or has other bytes. Gives `count` and
    `bytes` of its objects, as JSON."""
    options = ("--one-way", "--download", "--min-age", "5m", "--use-server-modtime=false", "--combined", "-")
    rclone(settings, "check", CURRENT, settings.bucket, *options)
    return rclone(settings, "size", settings.bucket, "--json")


def size() -> tuple[int, int]:
    """Objects of the copy, and their bytes."""
    sizes = [file.stat().st_size for file in files(KEPT / "bucket")]
    return len(sizes), sum(sizes)
