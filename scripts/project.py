"""The user's project on this host: its folder, and the copy of its files that goes into the image.

What git ignores stays out, and what the project's own `.dockerignore` names; so do secrets, environments and caches.
"""

import filecmp
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from dagster_stack.errors import ProjectError
from dagster_stack.project import DEFAULT, VARIABLE, data
from dagster_stack.project.discovery import discover
from scripts import env_file
from scripts.compose import project as compose_project
from scripts.console import BUILD_FOLDER, ROOT, Failure, warn

#: Names that stay out of the image, wherever they are; and those that begin like a file of secrets.
LEFT_OUT = {
    ".git",
    ".venv",
    "__pycache__",
    "node_modules",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".tox",
}
SECRETS = ".env"
#: What Dagster reads of dbt's output: the build makes it anew, where it can.
MANIFEST = "manifest.json"
#: What components have fetched, to make definitions of: Dagster lets git ignore it, and looks for it in the image. That of
#: a dbt project that lies here is a copy of it, which the build makes the manifest of anew.
STATE, STATE_OF_DBT = ".local_defs_state", "DbtProjectComponent__"
#: Bytes up to which a copy is compared with its original byte by byte; of a larger file, size and time.
COMPARED = 1 << 20
#: Bytes above which it is said how large the image gets.
LARGE = 500 << 20
#: Git must neither refuse a folder of another user nor run what that folder's configuration names.
GIT = ("git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false")
LISTS = ("ls-files", "-z", "--exclude-standard")
STATES = ("--others", "--ignored", "--", f":(glob)**/{STATE}/**")


def folder() -> Path:
    """The folder that PROJECT names; raises Failure if it is no folder."""
    named = env_file.settings().get(VARIABLE) or DEFAULT
    found = Path(os.path.abspath(ROOT / Path(named).expanduser()))
    if not found.is_dir():
        problem = "a file" if found.exists() else "not there"
        # Other tools have a variable of that name, too.
        where = " in this shell's environment" if VARIABLE in os.environ else ""
        raise Failure(
            f"{VARIABLE}={named}{where}: {found} is {problem}. Name the folder that `dg dev` is called in, absolute or relative"
            f" to {ROOT}."
        )
    if found == found.parent:
        raise Failure(
            f"{VARIABLE}={named}: that is the whole disk. Name the folder that `dg dev` is called in."
        )
    return found


def context() -> Path:
    """The build context that holds the project's folder alone, under its name: see compose.yaml."""
    return BUILD_FOLDER / compose_project() / "project"


def stage() -> Path:
    """Bring the build context up to date and find the code locations in it; raises Failure when there is none."""
    source = folder()
    staged = context() / source.name
    for other in context().glob("*"):
        if other != staged:
            remove(other)
    staged.mkdir(parents=True, exist_ok=True)
    size = copy(source, staged)
    if size > LARGE:
        warn(
            f"{size >> 20} MB of {source} go into the image: name the files that are not code in {source.name}/.dockerignore"
        )
    warn_of_data(source, staged)
    try:
        discover(staged)
    except ProjectError as error:
        raise Failure(str(error)) from None
    except ImportError:
        # This Python reads no YAML; the image's does.
        pass
    return staged


def warn_of_data(source: Path, staged: Path) -> None:
    """Warn of files in the project's data folders that only this host has, and not the volume."""
    settings = env_file.settings()
    if settings.get("DATA_DIR"):
        return
    for name in data.paths(settings.get(data.SETTING, "")):
        files = (file for file in sorted((source / name).rglob("*")) if file.is_file())
        if left_out := next(
            (file for file in files if not (staged / file.relative_to(source)).exists()), None
        ):
            cure = (
                f"DATA_DIR={source / name} in .env gives the stack this very folder"
                if name == data.DATA
                else "keep them in data/, and name that as DATA_DIR in .env"
            )
            warn(
                f"{left_out.relative_to(source)} and what else git ignores in {name}/ is not on the volume that the code"
                f" finds there: {cure}"
            )


# --- which files -------------------------------------------------------------------------------------------


def files(source: Path) -> Iterator[str]:
    """The names of all files that belong to a folder, relative to it; links are among them, folders are not."""
    ignores = Ignores(source)
    for name in names(source):
        if not is_left_out(source, name) and not ignores(name):
            yield name


def names(source: Path) -> list[str]:
    """What git knows or would add; all that is there where there is no git."""
    found = listed(source)
    if found is None:
        return sorted(
            os.path.relpath(os.path.join(place, name), source)
            for place, folders, files in os.walk(source)
            # Links to folders are not followed.
            for name in [*files, *(each for each in folders if os.path.islink(os.path.join(place, each)))]
        )
    result = dict.fromkeys(
        name for name in found if not (source / name).is_dir() or (source / name).is_symlink()
    )
    # Submodules, and other repositories that lie in here: only their own git knows what is in them.
    for name in dict.fromkeys(name.rstrip("/") for name in found):
        if name not in result and (source / name).is_dir():
            inner = names(source / name)
            if not inner:
                warn(f"{source / name} is empty: `git submodule update --init` fetches a submodule's files")
            result |= dict.fromkeys(f"{name}/{each}" for each in inner)
    return [name for name in result if os.path.lexists(source / name)]


def listed(source: Path) -> list[str] | None:
    """What git lists in a folder; outside a repository the files that its .gitignore files do not name."""
    if not shutil.which(GIT[0]):
        return None
    inside = git(source, "rev-parse", "--is-inside-work-tree") == "true"
    # A folder that a repository around it ignores is no part of that.
    if inside and git(source, "check-ignore", "--quiet", ".") is None:
        found = split(git(source, *LISTS, "--cached", "--others"))
        if found is not None:
            return [*found, *(split(git(source, *LISTS, *STATES)) or [])]
    with tempfile.TemporaryDirectory() as empty:
        if git(source, "init", "--quiet", "--bare", empty) is None:
            return None
        of_empty = (f"--git-dir={empty}", f"--work-tree={source}", *LISTS)
        found = split(git(source, *of_empty, "--others"))
        return None if found is None else [*found, *(split(git(source, *of_empty, *STATES)) or [])]


def split(output: str | None) -> list[str] | None:
    return None if output is None else [name for name in output.split("\0") if name]


def git(place: Path, *arguments: str) -> str | None:
    """What git says in a folder; None where it fails."""
    # A git hook sets variables that name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    result = subprocess.run(
        [*GIT, *arguments],
        cwd=place,
        env=environment,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return None if result.returncode else os.fsdecode(result.stdout).strip()


def is_left_out(source: Path, name: str) -> bool:
    """Whether a file is a secret, part of an environment, or made by a tool."""
    parts = name.split("/")
    if any(part in LEFT_OUT or part.startswith(SECRETS) or part.endswith(".egg-info") for part in parts):
        return True
    folders = [source.joinpath(*parts[:number]) for number in range(1, len(parts))]
    if any(map(is_state_of_dbt, folders)):
        return True
    if folders and is_dbts(folders[-1]) and parts[-1] == MANIFEST:
        return False
    return any(is_made(folder) or is_dbts(folder) for folder in folders)


@cache
def is_made(place: Path) -> bool:
    """Whether a folder is a virtual environment or this stack's own build folder."""
    return (place / "pyvenv.cfg").exists() or place == BUILD_FOLDER


@cache
def is_dbts(place: Path) -> bool:
    """Whether a folder is dbt's output."""
    return place.name in {"target", "logs"} and (place.parent / "dbt_project.yml").exists()


@cache
def is_state_of_dbt(place: Path) -> bool:
    """Whether a folder is a component's copy of a dbt project in this one; a clone of another repository is none."""
    is_copy = not (place / "project" / ".git").exists()
    return place.parent.name == STATE and place.name.startswith(STATE_OF_DBT) and is_copy


class Ignores:
    """Whether a folder's `.dockerignore` names a file, by Docker's rules: the last pattern that fits decides."""

    def __init__(self, source: Path) -> None:
        file = source / ".dockerignore"
        text = file.read_text(encoding="utf-8-sig", errors="replace") if file.is_file() else ""
        lines = [line.strip() for line in text.splitlines() if not line.startswith("#")]
        self._patterns = [
            (line.startswith("!"), re.compile(expression(line.removeprefix("!").strip())))
            for line in lines
            if line
        ]

    def __call__(self, name: str) -> bool:
        parts = name.split("/")
        above = ["/".join(parts[: number + 1]) for number in range(len(parts))]
        ignored = False
        for brings_back, pattern in self._patterns:
            if brings_back == ignored and any(pattern.fullmatch(each) for each in above):
                ignored = not brings_back
        return ignored


def expression(pattern: str) -> str:
    """A pattern of `.dockerignore` as a regular expression."""
    pattern = os.path.normpath(pattern).strip("/")
    kinds = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    found = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return "".join(
        kinds.get(part) or (part if part.startswith("[") and part.endswith("]") else re.escape(part))
        for part in found
    )


# --- their copy --------------------------------------------------------------------------------------------


def copy(source: Path, target: Path) -> int:
    """Make `target` hold what belongs to `source`, touching only what differs; returns how many bytes that is."""
    kept: set[Path] = {target}
    size = 0
    for file, name, root in contents(source, frozenset()):
        place = target / name
        kept |= {place, *(parent for parent in place.parents if parent.is_relative_to(target))}
        try:
            size += copy_one(file, root, place, target)
        except PermissionError as error:
            raise Failure(
                f"{error.filename} can't be read by this user: change that, or name it in {source.name}/.dockerignore."
            ) from None
    for here, folders, files in os.walk(target, topdown=False):
        for name in (*files, *folders):
            if Path(here, name) not in kept:
                remove(Path(here, name))
    return size


def contents(source: Path, above: frozenset[Path]) -> Iterator[tuple[Path, str, Path]]:
    """All files of a folder, each with its name in it and the folder that links may lead to.

    A link that leads out of the folder counts as what it names.
    """
    folder = real(source)
    for name in files(source):
        file = source / name
        if file.is_symlink() and file.is_dir() and not real(file).is_relative_to(folder):
            outside = real(file)
            if folder.is_relative_to(outside) or outside in above:
                warn(f"{file} leads to {outside}, which holds it: left out")
                continue
            for inner, below, root in contents(outside, above | {folder}):
                yield inner, f"{name}/{below}", root
        else:
            yield file, name, folder


def real(path: Path) -> Path:
    """Where a path leads; unlike Path.resolve() also of a link that leads to itself."""
    return Path(os.path.realpath(path))


def copy_one(file: Path, root: Path, place: Path, target: Path) -> int:
    """Make `place` what `file` is; returns its bytes. What is neither a file nor a link does not count."""
    if file.is_symlink() and (real(file).is_relative_to(root) or not file.exists()):
        # Such that it leads to the same file in the copy. One that leads nowhere here may do so there.
        link = os.readlink(file)
        if file.exists() and os.path.isabs(link):
            link = os.path.relpath(real(file), real(file.parent))
        if not place.is_symlink() or os.readlink(place) != link:
            make_way(place, target)
            place.symlink_to(link)
        return 0
    if not file.is_file():
        return 0
    status = file.stat()
    if not is_same(file, place, status):
        make_way(place, target)
        shutil.copyfile(file, place)
        os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
    return status.st_size


def is_same(file: Path, place: Path, status: os.stat_result) -> bool:
    if place.is_symlink() or not place.is_file() or place.stat().st_size != status.st_size:
        return False
    if status.st_size > COMPARED:
        return place.stat().st_mtime_ns == status.st_mtime_ns
    return filecmp.cmp(file, place, shallow=False)


def make_way(place: Path, target: Path) -> None:
    """Make room for a file at `place`: remove what is there, and what stands where its folders below `target` go."""
    for parent in reversed(place.parents):
        if parent != target and parent.is_relative_to(target) and (parent.is_symlink() or parent.is_file()):
            remove(parent)
    place.parent.mkdir(parents=True, exist_ok=True)
    remove(place)


def remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
