"""`.env`: made once from `.env.example` with random secrets; later only what is missing is added."""

import os
import re
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

from scripts import dotenv
from scripts.console import ROOT, Failure, done
from scripts.dotenv import Statement

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
    "DOOR_ADMIN_PASSWORD",
    "DOOR_SECRET",
    "BACKUP_KEY",
    "STACK_ID",
)
#: Profiles of the stack's own stores. Naming an outside store switches its own off, not leaving its profile out.
STORES = ("postgres", "rabbitmq", "minio")


def env_path() -> Path:
    """The file in use: `.env`, or the one that STACK_ENV_FILE names (a second copy, the tests)."""
    return Path(os.environ.get("STACK_ENV_FILE") or ROOT / ".env").resolve()


def text_of(path: Path) -> str:
    """The very file, also where it is not UTF-8."""
    return path.read_bytes().decode(errors="surrogateescape")


def statements(text: str) -> list[Statement]:
    """What sets a variable that Compose takes: one with a digit in front it leaves out."""
    found = dotenv.statements(text, os.environ)
    return [each for each in found if re.fullmatch(r"[A-Za-z_]\w*", each.name, re.ASCII)]


def read(path: Path) -> dict[str, str]:
    """The variables of a file; empty when there is none. Where one stands twice the last wins, as in Compose."""
    return {each.name: each.value for each in statements(text_of(path))} if path.exists() else {}


def require_clear() -> None:
    """Raises Failure where the file in use says something else to Compose than to whoever wrote it."""
    path = env_path()
    if not path.exists():
        return
    text = text_of(path)
    found = []
    for each in dotenv.statements(text, os.environ):
        objection = each.objection
        raw = text[each.start : each.end]
        if not objection and each.name in SECRETS and dotenv.names_part(raw):
            objection = (
                "a $ in its value begins the name of a variable. Single quotes let a $ be a $: NAME='…'"
            )
        if objection:
            line = text.count("\n", 0, each.start) + 1
            found.append(f"    line {line}{f', {each.name}' if each.name else ''}: {objection}")
    if found:
        raise Failure(f"{path} is not clear, and nothing was started:\n" + "\n".join(found))


def settings() -> dict[str, str]:
    """What Compose will see: the file, overridden by the environment of this process."""
    return {**read(env_path()), **os.environ}


def profiles() -> set[str]:
    """The parts of the stack that are started."""
    return {name for part in settings().get("COMPOSE_PROFILES", "").split(",") if (name := part.strip())}


def has_login() -> bool:
    """Whether the pages stand behind the door: LOGIN=on."""
    return settings().get("LOGIN") == "on"


def has_internal_tls() -> bool:
    """Whether the stack's own stores take no client without TLS: INTERNAL_TLS=on."""
    return settings().get("INTERNAL_TLS") == "on"


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
        write(path, filled(text_of(example)))
        done(f"{path.name} written, with random secrets in it (mode 0600, not in git)")
        return
    present = read(path)
    for name in SECRETS:
        if present.get(name) == "":
            set_value(name, generated(name), path)
            done(f"{path.name} had an empty {name}: generated")
    missing = [name for name in read(example) if name not in present]
    if missing:
        text = text_of(path)
        end = end_of_line(text)
        added = [line.rstrip() for line in filled(text_of(example)).splitlines() if name_of(line) in missing]
        lines = ["", "# Added by `make up`, see .env.example.", *added, ""]
        write(path, whole_lines(text) + end.join(lines))
        done(f"{path.name} lacked {', '.join(missing)}: added, as in {example.name}; nothing else changed")
    else:
        path.chmod(0o600)
        done(f"{path.name} is complete, kept as it is")


def name_of(line: str) -> str | None:
    """The variable that a line sets, if it sets one."""
    found = statements(line)
    return found[0].name if found else None


def filled(text: str) -> str:
    """The example, with a fresh secret where it wants one."""
    wanted = {each.name: generated(each.name) for each in statements(text) if is_wanted(each)}
    return replaced(text, wanted)


def is_wanted(statement: Statement) -> bool:
    return statement.name in SECRETS and not statement.value


def generated(name: str) -> str:
    """A fresh secret. People read the stack's id, so it is this machine's name and a short one."""
    text = secrets.token_hex(SECRET_BYTES)
    return f"{re.sub('[^A-Za-z0-9.-]', '-', socket.gethostname())}-{text[:8]}" if name == "STACK_ID" else text


def set_value(name: str, value: str, path: Path | None = None) -> None:
    """Set one variable where it stands (the last place, which wins), or at the end."""
    set_values({name: value}, path)


def set_values(values: Mapping[str, str], path: Path | None = None) -> None:
    """Set several at once: after a crash the file has all of them or none."""
    path = path or env_path()
    write(path, replaced(text_of(path), values))


def replaced(text: str, values: Mapping[str, str]) -> str:
    """A file's text with other values, each as it is: of letters, digits and what needs no quotes."""
    last = {each.name: each for each in statements(text)}
    for each in sorted(last.values(), key=lambda each: each.start, reverse=True):
        if each.name in values:
            text = f"{text[: each.start]}{values[each.name]}{text[each.end :]}"
    new = [f"{name}={value}{end_of_line(text)}" for name, value in values.items() if name not in last]
    return whole_lines(text) + "".join(new) if new else text


def end_of_line(text: str) -> str:
    return "\r\n" if text.partition("\n")[0].endswith("\r") else "\n"


def whole_lines(text: str) -> str:
    return text if not text or text.endswith("\n") else text + end_of_line(text)


def write(path: Path, text: str, like: Path | None = None) -> None:
    """Replace the file at once, readable by its owner alone: who owns `like`, else who owned the file, else the folder."""
    like = like or (path if path.exists() else path.parent)
    scratch = path.with_name(f"{path.name}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode(errors="surrogateescape"))
        file.flush()
        # Before it takes the place of the one with the passwords: after a power cut some file systems would have an empty one.
        os.fsync(descriptor)
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
