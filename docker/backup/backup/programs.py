"""The programs that do the work: pgBackRest, rclone, psql."""

import fcntl
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

from backup.errors import Failure, cure
from backup.settings import SILENCE_SECS, Settings, rclone_environment

#: Lines of a failed program's words that are shown.
SHOWN_LINES = 6
RCLONE = (
    "--config", "", "--contimeout", "15s", "--timeout", f"{SILENCE_SECS}s", "--retries", "2", "--low-level-retries", "3",
    "--transfers", "4", "--checkers", "8", "--use-server-modtime", "--fast-list", "--skip-links", "--log-level", "ERROR",
    # Several streams for a large file begin with its end: one that was killed would have the size of a whole one, with holes.
    "--multi-thread-streams", "1",
)  # fmt: skip
#: What rclone says of an object that it has listed, and that was gone when it came to copy it; and what it says of itself then.
VANISHED = re.compile(r"NoSuchKey|object not found")
SUMMED_UP = re.compile(r"Attempt \d|not deleting ")
PSQL = ("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "-v", "ON_ERROR_STOP=1")
#: As a user of this container that is Postgres' own.
SOCKET = ("--host=/run/postgresql", "--username=postgres")


def run(
    *command: str,
    given: str | None = None,
    environment: dict[str, str] | None = None,
    stdout: IO[bytes] | None = None,
) -> str:
    """What a program prints; raises Failure with the cure and its own words."""
    result = subprocess.run(
        command,
        input=given.encode() if given is not None else None,
        stdin=subprocess.DEVNULL if given is None else None,
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        check=False,
    )
    output = (result.stdout or b"").decode(errors="replace")
    if result.returncode:
        said = output + result.stderr.decode(errors="replace")
        raise failure(
            command[0], said.strip() or f"it ended with {result.returncode} and without a word; try again"
        )
    return output


def failure(program: str, said: str) -> Failure:
    # What is tried again is said again.
    lines = [
        line for line in dict.fromkeys(said.splitlines()) if line.strip() and not line.startswith("Attempt ")
    ]
    shown = "\n".join(lines[-SHOWN_LINES:])
    return Failure(f"{cure(said) or f'{program} failed.'}\n{shown}", said)


def pgbackrest(*arguments: str) -> str:
    """pgBackRest, whose settings are in this container's environment."""
    return run("pgbackrest", *arguments)


def rclone(
    settings: Settings, *arguments: str, given: str | None = None, stdout: IO[bytes] | None = None
) -> str:
    return run(
        "rclone", *RCLONE, *arguments, given=given, stdout=stdout, environment=rclone_environ(settings)
    )


@cache
def remotes(settings: Settings) -> dict[str, str]:
    """A program is asked to obscure each password, so this is made once."""
    return rclone_environment(settings)


def rclone_environ(settings: Settings) -> dict[str, str]:
    """This container's environment with the remotes. SSL_CERT_FILE says whom to trust: with AWS_CA_BUNDLE rclone ends at once."""
    return {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"} | remotes(settings)


def transferred(settings: Settings, *arguments: str, is_in_use: bool = False) -> dict[str, Any]:
    """rclone with what it has transferred: `bytes`, `transfers`, `deletes`. From a bucket in use objects may go meanwhile."""
    result = subprocess.run(
        ["rclone", *RCLONE, *arguments, "--log-level", "NOTICE", "--use-json-log", "--stats", "24h", "--stats-log-level", "NOTICE"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        env=rclone_environ(settings), check=False,
    )  # fmt: skip
    found: dict[str, Any] = {}
    said: list[str] = []
    errors: list[str] = []
    for line in result.stderr.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            said.append(line)
            continue
        if "stats" in entry:
            found = entry["stats"]
        elif entry.get("level") in ("error", "critical", "fatal"):
            said.append(re.sub(r"\s+", " ", f"{entry.get('msg', '')} {entry.get('object', '')}").strip())
            if not SUMMED_UP.match(said[-1]):
                errors.append(said[-1])
    if result.returncode and not (is_in_use and errors and all(map(VANISHED.search, errors))):
        raise failure("rclone", "\n".join(said) or result.stderr)
    return found


def sql(statement: str) -> list[list[str]]:
    """The rows that Postgres answers over its socket; each statement is a transaction of its own."""
    return [
        line.split("|")
        for line in run(*PSQL, *SOCKET, "--dbname=postgres", "--file=-", given=statement).splitlines()
    ]


@contextmanager
def alone(what: str) -> Iterator[None]:
    """One process of this container does this at a time: the service, or whoever asked for it now."""
    with Path(f"/tmp/{what}.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
