"""Where packages come from besides the public index: addresses and logins of .env, which reach the build as secrets.

No image, container or log has them.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from scripts import env_file
from scripts.compose import project
from scripts.console import BUILD_FOLDER, ROOT, Failure

#: Variables of uv and pip that name indexes, with what they know of logins.
NAMES = re.compile(r"UV_(?:DEFAULT_INDEX|(?:EXTRA_)?INDEX\w*)|PIP_(?:EXTRA_)?INDEX_URL")


def write() -> None:
    """Write the two files that compose.yaml hands to the build; raises Failure for a NETRC that can't be read."""
    settings = env_file.settings()
    put("json", json.dumps(found(settings)))
    put("netrc", logins(settings.get("NETRC", "")))


def found(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings that name package indexes."""
    return {name: value for name, value in sorted(settings.items()) if NAMES.fullmatch(name) and value}


def logins(named: str) -> str:
    if not named:
        return ""
    path = Path(named).expanduser()
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(
            f"NETRC={named} can't be read ({error}). It is a file of lines such as"
            " `machine packages.example.com login me password …`: make it, or take the line out of"
            f" {env_file.env_path().name}."
        ) from None


def put(kind: str, text: str) -> None:
    path = BUILD_FOLDER / "package-index" / f"{project()}.{kind}"
    for folder in (BUILD_FOLDER, path.parent):
        folder.mkdir(exist_ok=True)
        env_file.give(folder, ROOT)
    env_file.write(path, text, like=ROOT)
