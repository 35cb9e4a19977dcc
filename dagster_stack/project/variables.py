"""The project's own variables: its `.env` and SECRETS_FILE, in the environment of all that executes its code; of a
workspace's projects each its own, in what executes that one's.

`make up` hands their texts to containers in one variable, which no parser but python-dotenv's, that of `dg dev`, looks
into. As a program (`python -m dagster_stack.project.variables COMMAND …`) this module becomes a command that has them.
"""

import base64
import binascii
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from dagster_stack import environment

#: The texts, the most important one last, as JSON in base64: nothing in it means anything to a shell or to Compose.
VARIABLE = "DAGSTER_STACK_VARIABLES"
#: Bytes that it may have: Linux takes no longer variable.
MOST_BYTES = 128 * 1024 - len(VARIABLE) - 2

#: Dagster's own: a JSON object with the folder of each location's `.env`. `dg dev` sets it in a workspace.
OF_LOCATIONS = "DAGSTER_PROJECT_ENV_FILE_PATHS"
#: Where a container has those.
FOLDER = Path("/tmp/dagster/variables")

#: What the stack and the processes in its containers are set up with.
OWN = {
    "DAGSTER_HOME": "the stack has an instance of its own: take the line out",
    "PYTHONPATH": "say in pyproject.toml where the project's modules are",
    "PYTHONHOME": "take the line out",
    "PATH": "name programs by their whole path",
    "HOME": "it is /tmp in containers: give caches a variable of their own, such as XDG_CACHE_HOME",
    "TMPDIR": "each step has a temporary folder of its own: take the line out",
    "LD_PRELOAD": "take the line out",
    "LD_LIBRARY_PATH": "take the line out",
    "AWS_PROFILE": "~/.aws is not there: give its keys, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "PGSSLROOTCERT": "Dagster's own connections would follow it: put sslrootcert into your connection's address",
    "PGSSLMODE": "Dagster's own connections would follow it: put sslmode into your connection's address",
    # Without the stack's own hosts in it, services would look for each other behind the proxy.
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "name those hosts in NO_PROXY of the stack's own .env"),
}
OF_SETTINGS = (
    "RUNNERS",
    "RUNNER_CONCURRENCY",
    "MAX_CONCURRENT_RUNS",
    "MAX_DELIVERIES",
    "KEEP_DETAILS_DAYS",
    "KEEP_RUNS_DAYS",
    "LOG_FORMAT",
    "PUBLIC_HOST",
    "BIND_ADDRESS",
    "LOGIN",
    "DOOR_SECRET",
    "DOOR_SECRET_SHA256",
    "AUDIT_DAYS",
)
FAMILIES = ("DAGSTER_STACK_", "DAGSTER_POSTGRES_", "CELERY_")
#: A project that names one of these has a store of its own: none of the stack's variables for S3 reach it then.
OWN_STORE = ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
#: Those that the stack gives to user code, for its own bucket.
OF_STORE = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
)

# The grammar of python-dotenv, as far as names need it.
_SPACE, _BLANKS = re.compile(r"\s*"), re.compile(r"[^\S\r\n]*")
_NAME = re.compile(r"""(?:export[^\S\r\n]+)?+(?:(?=\#)|'([^']+)'|(?!')([^=\#\s]+))""")
_VALUE = re.compile(
    r"""=[^\S\r\n]*+(?:(?<=\s)(?=\#)|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?!['"])[^\r\n]*)|(?!=)""", re.DOTALL
)
_END = re.compile(r"(?:[^\S\r\n]*\#[^\r\n]*)?[^\S\r\n]*(?:\r\n|\n|\r|$)")
_REST = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)?")


def names(text: str) -> tuple[list[str], list[int]]:
    """The names that a file of variables sets, and the lines that set none; without python-dotenv, for the host."""
    found, broken = [], []
    text = text.removeprefix("\ufeff")
    at = 0

    def take(pattern: re.Pattern[str]) -> re.Match[str] | None:
        nonlocal at
        if match := pattern.match(text, at):
            at = match.end()
        return match

    while take(_SPACE) and at < len(text):
        start = at
        if (name := take(_NAME)) and take(_BLANKS) and take(_VALUE) and take(_END):
            found.append(name[1] or name[2])
        else:
            take(_REST)
            broken.append(len(re.findall(r"\r\n|\n|\r", text[:start])) + 1)
    return [name for name in found if name], broken


def objection(name: str) -> str | None:
    """What is to be done about a variable that would change the stack; None: a project may set it."""
    if "=" in name:
        return "no variable can be called so: take the line out"
    if name in OWN:
        return OWN[name]
    if name in OF_SETTINGS:
        return "that is a setting of the stack, for its own .env; give yours another name"
    if name.startswith(FAMILIES):
        return "names that begin so are the stack's: give yours another one"
    return None


def packed(texts: Sequence[str], of_locations: Mapping[str, str] = MappingProxyType({})) -> str:
    """Texts for all, and one for each of some code locations."""
    return base64.b64encode(json.dumps([texts, dict(of_locations)]).encode()).decode()


def unpacked(value: str) -> tuple[list[str], dict[str, str]]:
    """Raises ValueError for what nobody has packed."""
    try:
        texts, of_locations = json.loads(base64.b64decode(value, validate=True))
        return list(map(str, texts)), {str(name): str(text) for name, text in of_locations.items()}
    except (binascii.Error, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def apply() -> None:
    """Put the project's variables into this process's environment, in the place of their texts, as `dg dev` would."""
    if not (value := os.environ.pop(VARIABLE, None)):
        return
    from dotenv import dotenv_values

    texts, of_locations = unpacked(value)
    if of_locations:
        os.environ[OF_LOCATIONS] = json.dumps(written(of_locations))
    for text in texts:
        found = dotenv_values(stream=StringIO(text)).items()
        values = {name: value for name, value in found if value is not None and not objection(name)}
        if not values.keys().isdisjoint(OWN_STORE):
            for name in OF_STORE:
                os.environ.pop(name, None)
        os.environ.update(values)


def written(of_locations: Mapping[str, str]) -> dict[str, str]:
    """Put each location's own where Dagster's loader finds them; returns the folder of each."""
    folders = {}
    for number, (name, text) in enumerate(of_locations.items()):
        folder = FOLDER / str(number)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(folder / ".env", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(file, "w", encoding="utf-8", newline="") as opened:
            opened.write(text)
        folders[name] = str(folder)
    return folders


def of_location(name: str) -> dict[str, str]:
    """What one code location has beyond all others' variables, by Dagster's own loader."""
    from dagster._core.secrets.env_file import PerProjectEnvFileLoader

    return PerProjectEnvFileLoader().get_secrets_for_environment(name)


def main(command: Sequence[str]) -> NoReturn:
    try:
        environment.complete()
        apply()
    except (ValueError, OSError) as error:
        sys.exit(f"What `make up` has handed on can't be used ({error}): `make up` writes it anew.")
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
