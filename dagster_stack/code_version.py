"""The content hash of the code that executes runs: of the platform, the user's project and the locked packages.

It is baked into the image, set as a run's tag and carried by each message, so that a process with other code can
be told from one with the same.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

#: Names the file in which the image keeps it.
BAKED = "DAGSTER_STACK_CODE_FILE"
#: What is hashed of the platform, below its folder. A file that is not there does not count.
PARTS = ("dagster_stack", "requirements/stack.lock", "requirements/flights.lock", "requirements/project.lock")
#: What of that executes no run: a colour on the figures' page is no other code for runs under way.
ASIDE = ("dagster_stack/client", "dagster_stack/monitoring")
#: Hexadecimal digits that are kept: enough to tell versions apart, short enough to read.
LENGTH = 12


@cache
def code_version() -> str:
    """The hash of the code of this process; empty outside the image, where code changes under a running process."""
    baked = os.environ.get(BAKED)
    return Path(baked).read_text(encoding="ascii").strip() if baked else ""


def content_hash(root: Path, project: Path) -> str:
    """The hash of names and contents of what counts as code below `root`, and of all files of the user's project."""
    digest = hashlib.sha256()
    parts = [(file.relative_to(root), file) for part in PARTS for file in _files(root / part)]
    files = [each for each in parts if not any(each[0].is_relative_to(folder) for folder in ASIDE)]
    # Under a name that no part has.
    files += [("project" / file.relative_to(project), file) for file in _files(project)]
    for name, file in sorted(files):
        content = file.read_bytes()
        digest.update(f"{name.as_posix()}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()[:LENGTH]


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for file in path.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            yield file


if __name__ == "__main__":
    sys.stdout.write(content_hash(Path(sys.argv[1]), Path(sys.argv[2])) + "\n")
