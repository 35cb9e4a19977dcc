"""The one place where user code may write: a volume that all who execute it share, under the project's `data/`.

The build makes the links, and keeps aside what the project brings there (`python -m dagster_stack.project.data`, in the
project's root); `init` lays that on the volume.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

from dagster_stack.errors import SettingsError

logger = logging.getLogger(__name__)

#: Names the volume's folder; set in containers alone.
VARIABLE = "DAGSTER_STACK_DATA"
VOLUME = Path("/opt/data")
#: What the project brings of it, as the image keeps it.
BROUGHT = Path("/opt/data-of-image")
#: On the volume: what was laid there, as its path and the hash of its content.
RECORD = ".laid-by-init.json"
#: The folder that is the volume itself.
DATA = "data"
SETTING = "DATA_PATHS"


def paths(setting: str) -> list[str]:
    """The project's writable folders, `data` first; raises SettingsError for what can't be one."""
    found = [DATA]
    for text in filter(None, (each.strip() for each in setting.split(","))):
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in text:
            raise SettingsError(
                f"{SETTING} names {text}: it takes folders below the project's root, such as output,reports/html."
                " Change it in .env."
            )
        if not is_within(str(path), found):
            found.append(str(path))
    return found


def is_within(path: str, folders: Sequence[str]) -> bool:
    """Whether a relative path is one of these folders, or below it."""
    return any(PurePosixPath(path).is_relative_to(folder) for folder in folders)


def place(path: str) -> PurePosixPath:
    """Where a writable folder lies on the volume: `data` is all of it, any other is below that."""
    return PurePosixPath() if path == DATA else PurePosixPath(path)


def link(root: Path, setting: str, volume: Path = VOLUME, brought: Path = BROUGHT) -> None:
    """Put links to the volume in the place of a project's writable folders; keep aside what is in them, and lay it there.

    Raises SettingsError for what DATA_PATHS should not name. A package called `data` stays what it is.
    """
    brought.mkdir(parents=True, exist_ok=True)
    for path in paths(setting):
        folder = root / path
        if code := next(folder.rglob("*.py"), None) if folder.is_dir() else None:
            if path == DATA:
                continue
            raise SettingsError(
                f"{SETTING} makes {path} a folder for data, and it holds code ({code.relative_to(root)}), which would"
                " never be renewed there: move that, or name another folder in .env."
            )
        if folder.is_dir():
            shutil.copytree(folder, brought / place(path), symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder)
        elif folder.exists() or folder.is_symlink():
            raise SettingsError(
                f"{path} of the project is a file, and a folder for data is to be there: rename it."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(volume / place(path))
    # For what the build itself reads there, and for a volume that is new.
    lay(setting, volume, brought)


def lay(setting: str, volume: Path = VOLUME, brought: Path = BROUGHT) -> None:
    """Make the writable folders, and lay on the volume what the project brings there.

    What user code or anybody else has changed or made there stays; what nobody has touched is renewed.
    """
    for path in paths(setting):
        (volume / place(path)).mkdir(parents=True, exist_ok=True)
    laid = _laid(volume)
    now: dict[str, str] = {}
    for file in _files(brought):
        name, target = str(file.relative_to(brought)), volume / file.relative_to(brought)
        now[name] = digest = _digest(file)
        if not target.exists():
            _copy(file, target)
        elif laid.get(name) != digest and _digest(target) != digest:
            if laid.get(name) == _digest(target):
                _copy(file, target)
            else:
                now[name] = laid.get(name, "")
                logger.warning(
                    "%s on the volume was changed there and stays; the project brings another one",
                    name,
                    extra={"action": "data.kept"},
                )
    if now != laid:
        _write(volume / RECORD, json.dumps(now).encode())
    if now:
        logger.info("%d files of the project are on the volume", len(now), extra={"action": "data.ready"})


def _laid(volume: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        found = json.loads((volume / RECORD).read_text(encoding="utf-8"))
        return {str(name): str(digest) for name, digest in found.items()}
    return {}


def _files(folder: Path) -> Iterator[Path]:
    yield from (file for file in sorted(folder.rglob("*")) if file.is_file())


def _digest(file: Path) -> str:
    with suppress(OSError), file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
    return ""


def _copy(file: Path, target: Path) -> None:
    """The whole file or none; user code may change it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.new")
    shutil.copyfile(file, scratch)
    scratch.replace(target)


def _write(target: Path, content: bytes) -> None:
    scratch = target.with_name(f"{target.name}.new")
    scratch.write_bytes(content)
    scratch.replace(target)


def lay_absent(setting: str, volume: Path = VOLUME, brought: Path = BROUGHT) -> None:
    """Lay there what is absent, and nothing else: for code that is tried beside older code, which has the volume too."""
    for path in paths(setting):
        (volume / place(path)).mkdir(parents=True, exist_ok=True)
    for file in _files(brought):
        if not (target := volume / file.relative_to(brought)).exists():
            _copy(file, target)


if __name__ == "__main__":
    try:
        (lay_absent if sys.argv[1:] == ["absent"] else partial(link, Path.cwd()))(os.environ.get(SETTING, ""))
    except SettingsError as error:
        sys.exit(str(error))
