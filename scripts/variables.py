"""The project's own variables, from its `.env` and SECRETS_FILE, handed only to services that execute its code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from dagster_stack.errors import ProjectError
from dagster_stack.project.discovery import members
from dagster_stack.project.variables import MOST_BYTES, VARIABLE, names, objection, packed
from scripts import env_file
from scripts import project as user_project
from scripts.compose import project
from scripts.console import BUILD_FOLDER, ROOT, Failure, done, warn

SETTING = "SECRETS_FILE"


def file() -> Path:
    """The file by which Compose gives them to containers; there only where the project has some."""
    return BUILD_FOLDER / "variables" / f"{project()}.env"


def sources() -> list[Path]:
    """The files that are there, the most important one last; raises Failure when SECRETS_FILE is not."""
    settings = env_file.settings()
    of_stack = {env_file.env_path(), (ROOT / ".env").resolve()}
    own = user_project.folder() / ".env"
    found = [own] if own.is_file() and own.resolve() not in of_stack else []
    if named := settings.get(SETTING):
        secrets = ROOT / named
        if not secrets.is_file():
            raise Failure(
                f"{SETTING}={named} in {env_file.env_path().name} is no file: make it, or correct that."
            )
        if secrets.resolve() in of_stack:
            raise Failure(
                f"{SETTING}={named} has the stack's own passwords, which no code may get: name another file."
            )
        found.append(secrets)
    return found


def sources_of_locations() -> dict[str, Path]:
    """The `.env` of each project of a workspace, by its code location; only that one gets it, as with `dg dev`."""
    try:
        found = members(user_project.folder())
    except ProjectError as error:
        raise Failure(str(error)) from error
    return {name: folder / ".env" for name, folder in found.items() if (folder / ".env").is_file()}


def checked(source: Path) -> str:
    """A file's text; raises Failure for a name that would change the stack, and for what is no text."""
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{source} can't be read: {error}") from error
    found, broken = names(text)
    if "\0" in text:
        raise Failure(f"{source} is no text: it holds a NUL.")
    if refused := [f"{name}: {cure}" for name in dict.fromkeys(found) if (cure := objection(name))]:
        lines = "\n".join(f"    {line}" for line in refused)
        raise Failure(f"{source} sets variables that would change the stack; nothing was started:\n{lines}")
    if broken:
        warn(f"{source}: line {', '.join(map(str, broken))} sets no variable, `dg dev` leaves it out as well")
    return text


def found(files: Sequence[Path], of_locations: Mapping[str, Path] = MappingProxyType({})) -> str:
    """What is handed on of these; empty when there are none. Raises Failure."""
    texts = [checked(source) for source in files]
    own = {name: checked(source) for name, source in of_locations.items()}
    value = packed(texts, own) if texts or own else ""
    if len(value) > MOST_BYTES:
        size = sum(map(len, [*texts, *own.values()]))
        raise Failure(
            f"{' and '.join(map(str, [*files, *of_locations.values()]))} have {size:,} characters, and containers take some"
            f" {MOST_BYTES * 3 // 4:,}: keep large values in files of their own."
        )
    return value


def record() -> None:
    """Write the variables for Compose, which makes the containers that have them anew when they change."""
    files, of_locations = sources(), sources_of_locations()
    value = found(files, of_locations)
    files += of_locations.values()
    env_file.hand_on(file(), f"{VARIABLE}={value}\n" if value else "", like=ROOT)
    if not value:
        return
    set_names = {name for source in files for name in names(source.read_text(encoding="utf-8"))[0]}
    done(f"{len(set_names)} variables for user code, from {' and '.join(map(shown, files))}")


def shown(source: Path) -> str:
    return str(source.relative_to(ROOT) if source.is_relative_to(ROOT) else source)
