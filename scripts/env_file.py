"""`.env`: made once from `.env.example` with random secrets; later only what is missing is added."""

import os
import re
import secrets
import socket
from pathlib import Path

from scripts.console import ROOT, Failure, done

EXAMPLE = ROOT / ".env.example"
#: Bytes of randomness in each secret; they are written as twice as many hexadecimal digits.
SECRET_BYTES = 24
#: Variables that are generated when they are empty in the example.
SECRETS = (
    "POSTGRES_PASSWORD",
    "POSTGRES_SUPERUSER_PASSWORD",
    "POSTGRES_MONITOR_PASSWORD",
    "RABBITMQ_PASSWORD",
    "RABBITMQ_ADMIN_PASSWORD",
    "RABBITMQ_MONITOR_PASSWORD",
    "MINIO_ROOT_PASSWORD",
    "MINIO_MONITOR_PASSWORD",
    "FLOWER_PASSWORD",
    "S3_SECRET_KEY",
    "GRAFANA_PASSWORD",
    "BACKUP_KEY",
    "STACK_ID",
)
#: Profiles of the stack's own stores. Naming an outside store switches its own off, not leaving its profile out.
STORES = ("postgres", "rabbitmq", "minio")
#: A line that sets a variable, as Compose reads it: what stands before the value, its name, the value, the rest.
ASSIGNMENT = re.compile(
    r"""(\s*(?:export\s+)?([A-Za-z_]\w*)[ \t]*=)([ \t]*(?:"[^"]*"|'[^']*')|.*?)((?:[ \t]+\#.*)?\s*)""",
    re.DOTALL,
)


def env_path() -> Path:
    """The file in use: `.env`, or the one that STACK_ENV_FILE names (a second copy, the tests)."""
    return Path(os.environ.get("STACK_ENV_FILE") or ROOT / ".env").resolve()


def lines_of(path: Path) -> list[str]:
    """The lines with their ends, such that joined they are the very file."""
    return path.read_bytes().decode(errors="surrogateescape").splitlines(keepends=True)


def read(path: Path) -> dict[str, str]:
    """The variables of a file; empty when there is none. Where one stands twice the last wins, as in Compose."""
    if not path.exists():
        return {}
    found = (ASSIGNMENT.fullmatch(line) for line in lines_of(path))
    return {match[2]: unquoted(match[3]) for match in found if match}


def unquoted(value: str) -> str:
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def settings() -> dict[str, str]:
    """What Compose will see: the file, overridden by the environment of this process."""
    return {**read(env_path()), **os.environ}


def profiles() -> set[str]:
    """The parts of the stack that are started."""
    return {name for part in settings().get("COMPOSE_PROFILES", "").split(",") if (name := part.strip())}


def complete_profiles() -> None:
    """Add the stores' profiles where only others are named: without its stores no other service starts."""
    missing = [store for store in STORES if store not in profiles()]
    if not missing:
        return
    set_profiles(profiles() | set(STORES))
    done(f"COMPOSE_PROFILES was without {', '.join(missing)}: added, as all else needs them")


def set_profiles(names: set[str]) -> None:
    """Where they come from: in the environment, for this process and those that it starts, else in the file."""
    text = ",".join([*(store for store in STORES if store in names), *sorted(names - set(STORES))])
    if "COMPOSE_PROFILES" in os.environ:
        os.environ["COMPOSE_PROFILES"] = text
    else:
        set_value("COMPOSE_PROFILES", text)


def number(name: str, default: int, most: int = 1_000_000) -> int:
    """A setting that must be a whole number from 0 to `most`; raises Failure that names it."""
    text = settings().get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and int(text) <= most):
        where = "the environment" if name in os.environ else env_path().name
        raise Failure(f"{name}={text} in {where} is not a whole number from 0 to {most}: change it there.")
    return int(text)


def complete(path: Path | None = None, example: Path = EXAMPLE) -> None:
    """Make the file, or add the variables that it lacks; a value that is there is never changed."""
    path = path or env_path()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, "".join(filled(line) for line in lines_of(example)))
        done(f"{path.name} written, with random secrets in it (mode 0600, not in git)")
        return
    present = read(path)
    for name in SECRETS:
        if present.get(name) == "":
            set_value(name, generated(name), path)
            done(f"{path.name} had an empty {name}: generated")
    missing = [name for name in read(example) if name not in present]
    if missing:
        lines = lines_of(path)
        end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
        if lines and not lines[-1].endswith("\n"):
            lines.append(end)
        added = [filled(line).rstrip() for line in lines_of(example) if name_of(line) in missing]
        text = end.join(["", "# Added by `make up`, see .env.example.", *added, ""])
        write(path, "".join(lines) + text)
        done(f"{path.name} was of an older version: added {', '.join(missing)}; nothing else changed")
    else:
        path.chmod(0o600)
        done(f"{path.name} is complete, kept as it is")


def name_of(line: str) -> str | None:
    """The variable that a line sets, if it sets one."""
    match = ASSIGNMENT.fullmatch(line)
    return match[2] if match else None


def filled(line: str) -> str:
    """A line of the example, with a fresh secret where it wants one."""
    match = ASSIGNMENT.fullmatch(line)
    if match and match[2] in SECRETS and not match[3]:
        return f"{match[1]}{generated(match[2])}{match[4]}"
    return line


def generated(name: str) -> str:
    """A fresh secret. People read the stack's id, so it is this machine's name and a short one."""
    text = secrets.token_hex(SECRET_BYTES)
    return f"{re.sub('[^A-Za-z0-9.-]', '-', socket.gethostname())}-{text[:8]}" if name == "STACK_ID" else text


def set_value(name: str, value: str, path: Path | None = None) -> None:
    """Set one variable where it stands (the last place, which wins), or at the end."""
    path = path or env_path()
    lines = lines_of(path)
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += end
    for index, line in reversed(list(enumerate(lines))):
        match = ASSIGNMENT.fullmatch(line)
        if match and match[2] == name:
            lines[index] = f"{match[1]}{value}{match[4]}"
            break
    else:
        lines.append(f"{name}={value}{end}")
    write(path, "".join(lines))


def write(path: Path, text: str, like: Path | None = None) -> None:
    """Replace the file at once, readable by its owner alone: who owns `like`, else who owned the file, else the folder."""
    like = like or (path if path.exists() else path.parent)
    scratch = path.with_name(f"{path.name}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode(errors="surrogateescape"))
    scratch.chmod(0o600)
    give(scratch, like)
    scratch.replace(path)


def hand_on(path: Path, text: str, like: Path) -> None:
    """Make a file below the build folder what Compose is to read of it; without text there is none.

    Compose looks for it at every command, also as the user who started the stack by sudo: that one owns it, as `like`.
    """
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
        give(folder, like)
    if not text:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        write(path, text, like=env_path())


def give(path: Path, like: Path) -> None:
    """Let the owner of `like` own it: `sudo make up` must not take it away from the user who runs `make ps` next."""
    if os.geteuid() == 0:
        owner = like.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
