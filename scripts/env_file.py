"""`.env`: made once from `.env.example` with random secrets; later only what is missing is added."""

import os
import re
import secrets
from pathlib import Path

from scripts.console import ROOT, done

EXAMPLE = ROOT / ".env.example"
#: Bytes of randomness in each secret; they are written as twice as many hexadecimal digits.
SECRET_BYTES = 24
#: Variables that are generated when they are empty in the example.
SECRETS = (
    "POSTGRES_PASSWORD",
    "POSTGRES_SUPERUSER_PASSWORD",
    "RABBITMQ_PASSWORD",
    "RABBITMQ_ADMIN_PASSWORD",
    "RABBITMQ_MONITOR_PASSWORD",
    "MINIO_ROOT_PASSWORD",
    "S3_SECRET_KEY",
)
ASSIGNMENT = re.compile(r"^([A-Z][A-Z0-9_]*)=(.*)$")


def env_path() -> Path:
    """The file in use: `.env`, or the one that STACK_ENV_FILE names (a second copy, the tests)."""
    return Path(os.environ.get("STACK_ENV_FILE") or ROOT / ".env").resolve()


def read(path: Path) -> dict[str, str]:
    """The variables of a file; empty when there is none."""
    if not path.exists():
        return {}
    return dict(match.groups() for line in path.read_text().splitlines() if (match := ASSIGNMENT.match(line)))


def settings() -> dict[str, str]:
    """What Compose will see: the file, overridden by the environment of this process."""
    values = read(env_path())
    return {**values, **{name: os.environ[name] for name in values if name in os.environ}}


def complete(path: Path | None = None, example: Path = EXAMPLE) -> None:
    """Make the file, or add the variables that it lacks; a value that is there is never changed."""
    path = path or env_path()
    present = read(path)
    if not present and not path.exists():
        write(path, "".join(filled(line) for line in example.read_text().splitlines(keepends=True)))
        done(f"{path.name} written, with random secrets in it (mode 0600, not in git)")
        return
    for name in SECRETS:
        if present.get(name) == "":
            set_value(name, secrets.token_hex(SECRET_BYTES), path)
            done(f"{path.name} had an empty {name}: generated")
    missing = [line for line in example.read_text().splitlines() if is_missing(line, present)]
    if missing:
        text = path.read_text()
        separator = "" if text.endswith("\n") else "\n"
        added = "".join(filled(line + "\n") for line in missing)
        write(path, f"{text}{separator}\n# Added by `make up`, see .env.example.\n{added}")
        names = ", ".join(line.partition("=")[0] for line in missing)
        done(f"{path.name} was of an older version: added {names}; nothing else changed")
    else:
        path.chmod(0o600)
        done(f"{path.name} is complete, kept as it is")


def is_missing(line: str, present: dict[str, str]) -> bool:
    match = ASSIGNMENT.match(line)
    return bool(match) and match[1] not in present  # type: ignore[index]


def filled(line: str) -> str:
    """A line of the example, with a fresh secret where it wants one."""
    match = ASSIGNMENT.match(line)
    if match and match[1] in SECRETS and not match[2]:
        return f"{match[1]}={secrets.token_hex(SECRET_BYTES)}\n"
    return line


def set_value(name: str, value: str, path: Path | None = None) -> None:
    """Set one variable where it stands, or at the end."""
    path = path or env_path()
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith(f"{name}="):
            lines[number] = f"{name}={value}"
            break
    else:
        lines.append(f"{name}={value}")
    write(path, "\n".join(lines) + "\n")


def write(path: Path, text: str) -> None:
    """Replace the file at once, readable by its owner alone."""
    scratch = path.with_name(f"{path.name}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    scratch.chmod(0o600)
    scratch.replace(path)
