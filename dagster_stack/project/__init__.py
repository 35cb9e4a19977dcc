"""The user's project: which code locations it has, and where they are imported from.

Host scripts and the entrypoint of containers import this: the standard library alone.
"""

import json
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster_stack.project.discovery import Project

#: Where the platform lies: the image's /opt/dagster, or a checkout.
PLATFORM = Path(__file__).resolve().parent.parent.parent
#: What the image's build has found; there is none in a checkout.
BAKED = PLATFORM / "project.json"
#: Names the project's folder, relative to the platform's; and the default, this repository's example.
VARIABLE, DEFAULT = "PROJECT", "pipelines"


@cache
def found() -> "Project":
    """The project of this process: what the image's build found, else what is in the folder that PROJECT names.

    Raises ProjectError, with the cure, where nothing can be found there.
    """
    from dagster_stack.project import discovery

    if BAKED.exists():
        return discovery.Project.from_dict(json.loads(BAKED.read_text(encoding="utf-8")))
    return discovery.discover(PLATFORM / Path(os.environ.get(VARIABLE) or DEFAULT).expanduser())


def use(path: Iterable[str]) -> None:
    """Let this process, and the Pythons that it starts, import from these folders: behind the platform's own.

    Dagster puts a location's folder on the path only while it loads; functions may import later.
    """
    entries = [entry for entry in path if entry not in sys.path]
    # The first place is the script's: Dagster takes it away while it loads.
    at = sys.path.index(str(PLATFORM)) + 1 if str(PLATFORM) in sys.path else 1
    sys.path[at:at] = entries
    known = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if new := [entry for entry in entries if entry not in known]:
        os.environ["PYTHONPATH"] = os.pathsep.join([*known, *new])
