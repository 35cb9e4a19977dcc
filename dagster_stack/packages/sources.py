"""Which files of a project name its Python packages: the first of these that a folder has, and no other of them.

1. `pyproject.toml` with `dependencies` in `[project]`; a `uv.lock` beside it, or above it, says which versions.
2. `requirements.txt` with what it includes, or the files that `[tool.setuptools.dynamic]` names.
3. `[tool.poetry.dependencies]`; a `poetry.lock` beside it says which versions.
4. `install_requires` of `setup.cfg` or `setup.py`, where it is a plain list.

Extras and dependency groups are for development: they are not installed.
"""

import ast
import configparser
import re
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster_stack.packages import locks, poetry
from dagster_stack.packages.errors import Refused

IGNORED = shutil.ignore_patterns("__pycache__", ".git", ".venv", "*.egg-info", "build", "dist", "target")
#: A line of requirements.txt that includes another file, and one that names a folder.
INCLUDES = re.compile(r"(?:-r|--requirement|-c|--constraint)[ =]*(\S+)")
FOLDER = re.compile(r"(?:(?:-e|--editable)[ =]*)?((?:file:)?\.{0,2}/[^\s;\[]*|\.{1,2})(?=$|[\s;\[])")
#: The paths of a workspace.yaml, and the files by which a folder is known that has packages of its own.
PATHS = re.compile(r"\b(?:working_directory|relative_path|python_file)\s*:\s*[\"']?([^\s\"'{},#]+)")
FILES = ("pyproject.toml", "requirements.txt", "setup.py", "setup.cfg", "packages.txt")
#: This repository as a package (pyproject.toml).
PLATFORM = "dagster-celery-stack"
#: A repository that is reached with a key, which no build has.
BY_SSH = re.compile(r"git\+ssh://|ssh://git@|\bgit@[\w.-]+:")
FROM_GIT = re.compile(r"\bgit\+|^\s*[\w.-]+\s*=\s*\{[^}]*\bgit\s*=|^\s*git\s*=", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A file for uv, relative to the project's root, and the lock whose versions it prefers, if any.

    `by` is the project's own file, where this one is written from it.
    """

    file: str
    lock: str | None = None
    by: str = ""

    @property
    def name(self) -> str:
        return self.by or self.file


def collect(root: Path, out: Path) -> list[Source]:
    """Copy what names Python packages, at the places that it has in the project; returns what uv is given.

    Raises Refused for what can't be read, or is outside of the project.
    """
    found = []
    for folder in folders(root):
        source = Collector(root.resolve(), out).source(folder.resolve())
        if source and source not in found:
            found.append(source)
    return found


def folders(root: Path) -> list[Path]:
    """The project's root and the folders of its code locations: a dg workspace's, or those of a workspace.yaml."""
    found = [root]
    for name, keys in (("dg.toml", ()), ("pyproject.toml", ("tool", "dg"))):
        workspace = table(toml(root / name), *keys, "workspace")
        for each in workspace.get("projects") or []:
            if isinstance(each, dict) and (root / str(each.get("path"))).is_dir():
                found.append(root / str(each["path"]))
    return list(dict.fromkeys([*found, *of_workspace(root)]))


def of_workspace(root: Path) -> Iterator[Path]:
    """The folders with package files that a workspace.yaml's paths lead to or through, without a parser for YAML."""
    file = root / "workspace.yaml"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    for named in PATHS.findall(text):
        place = (root / named).resolve()
        above = [each for each in (place, *place.parents) if each.is_relative_to(root.resolve())][:-1]
        if home := next((each for each in above if any((each / name).is_file() for name in FILES)), None):
            yield home


def from_git(texts: Iterator[str]) -> bool:
    """Whether a file names a package by its repository; raises Refused for one that wants a key."""
    found = [checked(text) for text in texts]
    return any(found)


def checked(text: str) -> bool:
    if by_ssh := BY_SSH.search(text):
        line = next(line.strip() for line in text.splitlines() if by_ssh[0] in line)
        raise Refused(
            f"{line}: a build has no key for ssh. Write git+https://… and put the login (a token) into a file in the form"
            " of ~/.netrc that NETRC in .env names"
        )
    return FROM_GIT.search(text) is not None


class Collector:
    """Copies the files of one project's folder, and all that they name within the project."""

    def __init__(self, root: Path, out: Path) -> None:
        self._root, self._out = root, out
        self._taken: set[Path] = set()

    def source(self, folder: Path) -> Source | None:
        pyproject = toml(folder / "pyproject.toml")
        project = table(pyproject, "project")
        if isinstance(project.get("dependencies"), list):
            return self._of_pyproject(folder, pyproject)
        dynamic = table(pyproject, "tool", "setuptools", "dynamic", "dependencies").get("file") or []
        named = [dynamic] if isinstance(dynamic, str) else list(dynamic)
        for name in [*named, "requirements.txt"]:
            if (folder / name).is_file():
                self._requirements(folder / name)
                return Source(self._relative(folder / name))
        if of_poetry := table(pyproject, "tool", "poetry", "dependencies"):
            return self._of_poetry(folder, of_poetry)
        for name in ("setup.cfg", "setup.py"):
            if (listed := of_setup(folder / name)) is not None:
                return self._written(folder, listed, name)
        return None

    def _of_poetry(self, folder: Path, dependencies: dict[str, Any]) -> Source:
        try:
            listed = poetry.requirements(dependencies)
        except ValueError as error:
            raise Refused(
                f"{self._relative(folder / 'pyproject.toml')}: in [tool.poetry.dependencies] stands {error}, which only Poetry"
                " reads. Write it as >=… and <…, or: poetry export --output requirements.txt"
            ) from None
        for line in listed:
            if line.startswith("./"):
                self._folder(folder / re.split(r"[\[ ]", line)[0], line)
        lock = folder / "poetry.lock"
        if lock.is_file():
            self._copy(lock)
        return self._written(
            folder, listed, "pyproject.toml", self._relative(lock) if lock.is_file() else None
        )

    def _of_pyproject(self, folder: Path, pyproject: dict[str, Any]) -> Source:
        self._copy(folder / "pyproject.toml")
        self._locals(folder, pyproject)
        above = [each for each in (folder, *folder.parents) if each.is_relative_to(self._root)]
        for each in above:
            # A member of a workspace is read with the workspace's own settings, and those that it names must be there.
            if "workspace" in table(toml(each / "pyproject.toml"), "tool", "uv"):
                self._copy(each / "pyproject.toml")
                for member in members(each, self._root):
                    self._name(member / "pyproject.toml")
        lock = next((each / "uv.lock" for each in above if (each / "uv.lock").is_file()), None)
        if lock:
            self._copy(lock)
        return Source(self._relative(folder / "pyproject.toml"), self._relative(lock) if lock else None)

    def _name(self, file: Path) -> None:
        """Write of a workspace's member what it is called: that is all that those need to know which don't install it."""
        name = table(toml(file), "project").get("name")
        if name and not (self._out / self._relative(file)).exists():
            self._write(file, f'[project]\nname = "{name}"\nversion = "0"\n')

    def _locals(self, folder: Path, pyproject: dict[str, Any]) -> None:
        """The packages that are folders, and those that they need."""
        left_out = for_development(pyproject)
        for name, source in table(pyproject, "tool", "uv", "sources").items():
            if locks.canonical(name) in left_out:
                continue
            for each in source if isinstance(source, list) else [source]:
                if isinstance(each, dict):
                    self._local(folder, name, each)

    def _local(self, folder: Path, name: str, source: dict[str, Any]) -> None:
        """A package that is a folder: of a path, or of a member of the workspace."""
        if "path" in source and locks.canonical(name) == PLATFORM:
            raise Refused(
                f"{name} in [tool.uv.sources]: the image has it anyway. Take it out of dependencies: `uv add --dev` puts it"
                " into a group, which is for development alone"
            )
        if "path" in source:
            self._folder(folder / str(source["path"]), f"{name} in [tool.uv.sources]")
        elif source.get("workspace"):
            for member in members(folder, self._root):
                if table(toml(member / "pyproject.toml"), "project").get("name") == name:
                    self._folder(member, name)

    def _requirements(self, file: Path) -> None:
        """Copy a requirements file without the lines that name the project itself: its code is there anyway."""
        lines = []
        for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            text = line.strip()
            if included := INCLUDES.match(text):
                self._requirements(self._inside(file.parent / included[1], text))
            elif found := FOLDER.match(text):
                target = (file.parent / found[1].removeprefix("file:")).resolve()
                if target in (self._root, file.parent):
                    continue
                self._folder(target, text)
            lines.append(line)
        self._write(file, "\n".join([*lines, ""]))

    def _written(self, folder: Path, requirements: list[str], by: str, lock: str | None = None) -> Source:
        file = folder / "requirements.txt"
        self._write(file, "".join(f"{each}\n" for each in requirements))
        return Source(self._relative(file), lock, self._relative(folder / by))

    def _folder(self, path: Path, by: str) -> None:
        path = self._inside(path, by)
        if not path.is_dir():
            self._copy(path)
        elif path not in self._taken:
            self._taken.add(path)
            shutil.copytree(path, self._out / self._relative(path), ignore=IGNORED, dirs_exist_ok=True)
            self._locals(path, toml(path / "pyproject.toml"))

    def _inside(self, path: Path, by: str) -> Path:
        path = path.resolve()
        if not (path.is_relative_to(self._root) and path.exists()):
            raise Refused(
                f"{by}: {path.name} is not in the project's folder, and nothing else is in the build. Move it there, or name"
                " the folder that holds both as PROJECT in .env, with a dg.toml or workspace.yaml in it that names this project"
            )
        return path

    def _copy(self, file: Path) -> None:
        self._write(file, file.read_text(encoding="utf-8", errors="surrogateescape"))

    def _write(self, file: Path, text: str) -> None:
        target = self._out / self._relative(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", errors="surrogateescape")

    def _relative(self, path: Path) -> str:
        return path.resolve().relative_to(self._root).as_posix()


def for_development(pyproject: dict[str, Any]) -> set[str]:
    """The packages that only groups and extras of a project name."""
    project = table(pyproject, "project")
    lists = [
        *table(pyproject, "dependency-groups").values(),
        *table(project, "optional-dependencies").values(),
    ]
    groups = [each for group in lists if isinstance(group, list) for each in group]
    return names(groups) - names(project.get("dependencies") or [])


def names(requirements: list[Any]) -> set[str]:
    found = (re.match(r"[A-Za-z0-9][\w.-]*", each.strip()) for each in requirements if isinstance(each, str))
    return {locks.canonical(match[0]) for match in found if match}


def members(folder: Path, root: Path) -> Iterator[Path]:
    """The folders of the uv workspace that a folder is in."""
    for each in (folder, *folder.parents):
        if each.is_relative_to(root):
            for pattern in (
                table(toml(each / "pyproject.toml"), "tool", "uv", "workspace").get("members") or []
            ):
                yield from (path for path in each.glob(str(pattern)) if path.is_dir())


def of_setup(file: Path) -> list[str] | None:
    """`install_requires` of an older project's setup.cfg or setup.py; None where there is none."""
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix == ".cfg":
        config = configparser.ConfigParser(interpolation=None)
        config.read_string(text)
        listed = config.get("options", "install_requires", fallback=None)
        return None if listed is None else [line.strip() for line in listed.splitlines() if line.strip()]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.keyword) and node.arg == "install_requires":
            try:
                return [str(each) for each in ast.literal_eval(node.value)]
            except ValueError:
                raise Refused(
                    "setup.py computes its install_requires, which only a run of it would tell. Write the packages into"
                    " requirements.txt, or into dependencies of [project] in pyproject.toml"
                ) from None
    return None


def toml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{file.name} of the project can't be read: {error}") from None


def table(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A table below others; empty where something else, or nothing, stands in its place."""
    for key in keys:
        content = content.get(key) or {}
        if not isinstance(content, dict):
            return {}
    return content
