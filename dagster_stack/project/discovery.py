"""Where a Dagster project keeps its code locations: found as Dagster's own tools find them. Nothing is imported.

In this order: `dg.toml` or `[tool.dg]` (a project, or a workspace of several), `[tool.dagster]`, `workspace.yaml`, the
one module that holds a `Definitions`, in the folder, in its `src/`, or the folder itself being a package; and at last the
one file that `dagster dev -f` takes.
"""

import ast
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from dagster_stack.errors import ProjectError

DG, PYPROJECT, WORKSPACE = "dg.toml", "pyproject.toml", "workspace.yaml"
#: What a location is loaded from, and how its name is called there: the words of a workspace file.
FILE, MODULE, PACKAGE, AUTOLOAD = "python_file", "python_module", "python_package", "autoload_defs_module"
NAMED_BY = {FILE: "relative_path", MODULE: "module_name", PACKAGE: "package_name", AUTOLOAD: "module_name"}
IMPORTED = (MODULE, PACKAGE, AUTOLOAD)
#: Folders in which nobody keeps the code that is served.
PASSED_OVER = {"tests", "test", "node_modules", "__pycache__", "build", "dist", "target", "site-packages"}
#: What a module with code for Dagster calls, or puts above a function.
CALLS = {"Definitions", "load_defs", "load_from_defs_folder"}
DECORATORS = {"definitions", "lazy_definitions", "repository"}
#: What a file may hold that is served without a `Definitions`.
BARE = {"asset", "multi_asset", "graph_asset", "graph_multi_asset", "dbt_assets", "job"}
#: Of modules of one package, those that are served before others.
USUAL = ("__init__", "definitions", "repository")


@dataclass(frozen=True)
class Location:
    """One code location: what is loaded (a module's name, a file's path), and the folders it is imported from."""

    name: str
    kind: str
    target: str
    path: tuple[str, ...]
    attribute: str | None = None

    def entry(self) -> dict[str, dict[str, str]]:
        """It as an entry of a workspace file."""
        fields = {
            NAMED_BY[self.kind]: self.target,
            "working_directory": self.path[0],
            "location_name": self.name,
        }
        return {self.kind: {**fields, "attribute": self.attribute} if self.attribute else fields}


@dataclass(frozen=True)
class Project:
    """A project: the folder that its tools are called in, its code locations, and what named them."""

    root: str
    locations: tuple[Location, ...]
    source: str

    @property
    def path(self) -> list[str]:
        """The folders that all locations are imported from; the root, where their processes work, is the last."""
        entries = (entry for location in self.locations for entry in location.path)
        return list(dict.fromkeys([*entries, self.root]))

    def path_of(self, name: str) -> list[str]:
        """The same for one location; for all of them where none is called so."""
        for location in self.locations:
            if location.name == name:
                return list(dict.fromkeys([*location.path, self.root]))
        return self.path

    def workspace(self) -> dict[str, Any]:
        """The content of a workspace file."""
        return {"load_from": [location.entry() for location in self.locations]}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        locations = (Location(**{**each, "path": tuple(each["path"])}) for each in content["locations"])
        return cls(content["root"], tuple(locations), content["source"])


def discover(folder: Path) -> Project:
    """The project in `folder`. Raises ProjectError with a sentence that names the cure."""
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise ProjectError(
            f"PROJECT names {folder}, which is no folder: name the one that `dg dev` is called in."
        )
    for look in (_by_dg, _by_dagster, _by_workspace, _as_package, _by_search, _by_file):
        if project := look(folder):
            return _distinct(project)
    raise ProjectError(
        f"No Dagster code was found in {folder.name}: it has no {DG}, no [tool.dg] and no [tool.dagster] in"
        f" {PYPROJECT}, no {WORKSPACE}, and no module with a Definitions or with assets. PROJECT in .env names the folder that"
        f" `dg dev` is called in{_others(folder)}."
    )


def _distinct(project: Project) -> Project:
    names = [location.name for location in project.locations]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ProjectError(
            f"{project.source} gives the name {twice[0]!r} to two code locations: give one of them a code_location_name"
            " (workspace.yaml: location_name) of its own."
        )
    return project


def _others(folder: Path) -> str:
    """What the folder's own folders offer instead."""
    found = [each.name for each in _folders(folder) if _dg_of(each) or _dagster_of(each)]
    return f": did you mean {' or '.join(f'{folder.name}/{name}' for name in found)}?" if found else ""


# --- dg ----------------------------------------------------------------------------------------------


def _by_dg(folder: Path) -> Project | None:
    """A project of `dg`, or a workspace of several."""
    if not (found := _dg_of(folder)):
        return None
    source, config = found
    kind = config.get("directory_type") or ("workspace" if "workspace" in config else "project")
    if kind == "project":
        return Project(str(folder), (_dg_location(folder, source, config),), source)
    if kind != "workspace":
        raise ProjectError(f'{source} says directory_type = {kind!r}: it may be "project" or "workspace".')
    locations = [
        _dg_member(folder, source, spec) for spec in _table(config, "workspace", source).get("projects", [])
    ]
    if not locations:
        raise ProjectError(
            f'The workspace of {source} has no project: add [[workspace.projects]] with path = "…" for each.'
        )
    return Project(str(folder), tuple(locations), source)


def members(folder: Path) -> dict[str, Path]:
    """The folders of a `dg` workspace's projects, by the names of their locations. Raises ProjectError."""
    config = (_dg_of(folder) or ("", {}))[1]
    if not (_by_dg(folder) and "workspace" in config):
        return {}
    specs = config["workspace"]["projects"]
    return {
        _dg_member(folder, "", spec).name: Path(os.path.normpath(folder / spec["path"])) for spec in specs
    }


def _dg_member(folder: Path, source: str, spec: Any) -> Location:
    """The location of one of a workspace's projects."""
    if not isinstance(spec, dict) or not isinstance(spec.get("path"), str):
        raise ProjectError(f'Each of the projects in {source} needs path = "…", the folder of that project.')
    member = Path(os.path.normpath(folder / spec["path"]))
    if not member.is_relative_to(folder):
        raise ProjectError(
            f"{source} names the project {spec['path']}, outside of {folder.name}: let PROJECT name a folder that holds"
            " both, or move it in."
        )
    if not member.is_dir():
        raise ProjectError(
            f"{source} names the project {spec['path']}, and there is no such folder: correct its path."
        )
    found = _dg_of(member)
    if not found or found[1].get("directory_type", "project") != "project":
        raise ProjectError(
            f"{source} names {spec['path']}, which is no dg project: it needs [tool.dg.project] with root_module in its"
            f" {PYPROJECT} (or {DG})."
        )
    return _dg_location(member, *found)


def _dg_location(folder: Path, source: str, config: Mapping[str, Any]) -> Location:
    project = _table(config, "project", source)
    root_module = _text(project, "root_module", source)
    if not root_module:
        raise ProjectError(
            f'{source} needs root_module = "…" under [tool.dg.project]: the name of your package.'
        )
    target = _text(project, "code_location_target_module", source)
    name = _text(project, "code_location_name", source) or folder.name
    if project.get("autoload_defs") and not target:
        module = _text(project, "defs_module", source) or f"{root_module}.defs"
        return Location(name, AUTOLOAD, module, _path(folder, module, source))
    module = target or f"{root_module}.definitions"
    return Location(name, MODULE, module, _path(folder, module, source))


def _dg_of(folder: Path) -> tuple[str, Mapping[str, Any]] | None:
    """The file with the folder's `dg` configuration, and that. `dg.toml` goes before `pyproject.toml`, as in `dg`."""
    for file, keys in ((folder / DG, ()), (folder / PYPROJECT, ("tool", "dg"))):
        source = f"{folder.name}/{file.name}"
        content: Mapping[str, Any] = _toml(file)
        for key in keys:
            content = _table(content, key, source)
        # What is configured may be its command line alone.
        if content.keys() & {"directory_type", "project", "workspace"}:
            return source, content
    return None


# --- [tool.dagster] ------------------------------------------------------------------------------------


def _by_dagster(folder: Path) -> Project | None:
    """What `dagster dev` reads: `module_name`, or a list of modules."""
    config = _dagster_of(folder)
    if not config:
        return None
    source = f"{folder.name}/{PYPROJECT}"
    modules = [_text(config, "module_name", source)] if "module_name" in config else []
    for each in config.get("modules", []):
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise ProjectError(
                f'Each of the modules in {source} is {{type = "module", name = "…"}}: correct it.'
            )
        modules.append(each["name"])
    name = _text(config, "code_location_name", source) if len(modules) == 1 else None
    locations = [
        Location(name or each, MODULE, each, _path(folder, each, source)) for each in modules if each
    ]
    return Project(str(folder), tuple(locations), source) if locations else None


def _dagster_of(folder: Path) -> Mapping[str, Any]:
    source = f"{folder.name}/{PYPROJECT}"
    config = _table(_table(_toml(folder / PYPROJECT), "tool", source), "dagster", source)
    return config if config.keys() & {"module_name", "modules"} else {}


# --- workspace.yaml ------------------------------------------------------------------------------------


def _by_workspace(folder: Path) -> Project | None:
    """The project's own workspace file, as Dagster reads it: one process for each of its entries."""
    file, source = folder / WORKSPACE, f"{folder.name}/{WORKSPACE}"
    if not file.is_file():
        return None
    # Not everybody who asks has it: what a host's Python can't read, the image's can.
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProjectError(f"{source} is not valid YAML: {error}. Correct it.") from error
    entries = content.get("load_from") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ProjectError(
            f"{source} names no code location: it needs `load_from:` with a list of python_module, …"
        )
    return Project(str(folder), tuple(_entry(folder, source, entry) for entry in entries), source)


def _entry(folder: Path, source: str, entry: Any) -> Location:
    kind = next(iter(entry)) if isinstance(entry, dict) and len(entry) == 1 else None
    if kind == "grpc_server":
        raise ProjectError(
            f"{source} names a grpc_server: workers can't load the code of another host. Name the code itself, as"
            " python_module or python_file."
        )
    if kind not in (FILE, *IMPORTED):
        raise ProjectError(
            f"{source} has the entry {entry!r}: each is one of {', '.join((FILE, *IMPORTED))}."
        )
    word = NAMED_BY[kind]
    fields = {word: entry[kind]} if isinstance(entry[kind], str) else entry[kind]
    if not isinstance(fields, dict) or not fields.get(word):
        raise ProjectError(f"{source}: {kind} needs {word}.")
    for field, value in fields.items():
        if not isinstance(value, str):
            raise ProjectError(f"{source}: {field} of {kind} must be a text, not {value!r}.")
    attribute, named = fields.get("attribute"), fields.get("location_name")
    place = _inside(folder, fields.get("working_directory") or ".", source)
    target, default = fields[word], fields[word]
    path: tuple[str, ...] = (str(place),)
    if kind == FILE:
        file = _inside(folder, target, source)
        if not file.is_file():
            raise ProjectError(
                f"{source} names the file {target}, which is not there: correct relative_path."
            )
        target, default = str(file), file.name
    elif base := _base(place, target):
        path = tuple(dict.fromkeys([str(base), str(place)]))
    name = named or (f"{default}:{attribute}" if attribute else default)
    return Location(name, kind, target, path, attribute)


def _inside(folder: Path, name: str, source: str) -> Path:
    """A path that stands in a file of the project; raises ProjectError for one that the image will not have."""
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder):
        raise ProjectError(
            f"{source} names {name}, outside of {folder.name}: use a path relative to that file."
        )
    return path


# --- without any configuration --------------------------------------------------------------------------


def _as_package(folder: Path) -> Project | None:
    """The folder itself as a package: its parent is the root."""
    if not (folder / "__init__.py").is_file():
        return None
    if not folder.name.isidentifier():
        raise ProjectError(
            f"{folder.name} is a package (it has an __init__.py), but Python can't import that name: rename the folder"
            " with letters, digits and _ alone, or put the package into a folder and let PROJECT name that."
        )
    module = folder.name
    if not _defines(folder / "__init__.py") and _defines(folder / "definitions.py"):
        module = f"{folder.name}.definitions"
    root = str(folder.parent)
    return Project(root, (Location(folder.name, MODULE, module, (root,)),), f"{folder.name}/__init__.py")


def _by_search(folder: Path) -> Project | None:
    """The one module with a `Definitions`; that of a package's modules which is the usual one, or the topmost."""
    found: dict[tuple[Path, str], list[tuple[str, ...]]] = {}
    bases = list(dict.fromkeys(_bases(folder)))
    for base in bases:
        for module in _modules(base, bases):
            found.setdefault((base, module[0]), []).append(module)
    if not found:
        return None
    if len(found) == 1:
        ((base, package), modules), *_ = found.items()
        first, *others = sorted(modules, key=_order)
        if not others or _order(first) < _order(others[0]):
            name = ".".join(first)
            _refuse_inner(folder, base, first)
            location = Location(package, MODULE, name, tuple(dict.fromkeys([str(base), str(folder)])))
            return Project(str(folder), (location,), f"{folder.name}, its module {name}")
    names = sorted(".".join(sorted(modules, key=_order)[0]) for modules in found.values())
    if len(found) == 1:
        names = sorted(".".join(module) for module in next(iter(found.values())))
    raise ProjectError(
        f"{folder.name} has several modules with a Definitions: {', '.join(names)}. Say which is to be served, in"
        f' {folder.name}/{PYPROJECT}:\n\n[tool.dagster]\nmodule_name = "{names[0]}"'
    )


def _refuse_inner(folder: Path, base: Path, module: Sequence[str]) -> None:
    """Raise ProjectError where a module lies in a project below the folder: that one's imports and packages are its own."""
    for number in range(1, len(module)):
        inner = base.joinpath(*module[:number])
        is_project = any((inner / name).is_file() for name in (PYPROJECT, DG, WORKSPACE, "setup.py"))
        if is_project and not (inner / "__init__.py").exists():
            place = inner.relative_to(folder.parent)
            raise ProjectError(
                f"The code for Dagster that {folder.name} has belongs to a project below it: let PROJECT in .env name that,"
                f" the folder {place}."
            )


def _by_file(folder: Path) -> Project | None:
    """The one file with code for Dagster, whatever its name (`hello-dagster.py`), with a `Definitions` or without."""
    files = [file for file in sorted(folder.glob("*.py")) if not file.name.startswith("test_")]
    found = [file for file in files if _defines(file)] or [file for file in files if _defines(file, BARE)]
    if len(found) > 1:
        entries = "".join(f"\n- python_file: {file.name}" for file in found)
        raise ProjectError(
            f"{folder.name} has several files with code for Dagster. Name those that are to be served, each of which becomes a"
            f" code location, in {folder.name}/{WORKSPACE}:\n\nload_from:{entries}"
        )
    source = f"{folder.name}, its file {found[0].name}" if found else ""
    locations = tuple(Location(file.name, FILE, str(file), (str(folder),)) for file in found)
    return Project(str(folder), locations, source) if found else None


def _modules(base: Path, bases: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """The names of the modules below an import root that hold code for Dagster, each by its parts."""
    for place, folders, files in os.walk(base):
        here = Path(place)
        parts = here.relative_to(base).parts
        folders[:] = sorted(
            name
            for name in folders
            # Another import root is looked through by itself; and a virtual environment holds other people's code.
            if name.isidentifier()
            and name not in PASSED_OVER
            and here / name not in bases
            and not (here / name / "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)
            if (
                suffix == ".py"
                and stem.isidentifier()
                and not stem.startswith("test_")
                and _defines(here / name)
            ):
                yield parts if stem == "__init__" else (*parts, stem)


def _order(module: Sequence[str]) -> tuple[int, int]:
    return len(module), USUAL.index(module[-1]) if module[-1] in USUAL else len(USUAL)


def _defines(file: Path, decorators: Set[str] = DECORATORS) -> bool:
    """Whether a module holds code for Dagster at its top: by its text, since nothing is imported here."""
    try:
        text = file.read_bytes()
    except OSError:
        return False
    if b"defs" not in text and not any(word.encode() in text for word in CALLS | decorators):
        return False
    try:
        return any(_is_entry(node, file.name == "__init__.py", decorators) for node in ast.parse(text).body)
    except (SyntaxError, ValueError):
        # It will be said when it is loaded.
        return b"Definitions(" in text


def _is_entry(node: ast.stmt, in_package: bool, decorators: Set[str]) -> bool:
    match node:
        case ast.FunctionDef(decorator_list=above) | ast.AsyncFunctionDef(decorator_list=above):
            return any(decorators & set(_names(each)) for each in above)
        case ast.Assign(value=ast.Call(func=func)) | ast.AnnAssign(value=ast.Call(func=func)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            return bool(CALLS & set(_names(func))) or any("defs" in _names(each) for each in targets)
        case ast.ImportFrom(names=names):
            return in_package and any((alias.asname or alias.name) == "defs" for alias in names)
    return False


def _names(node: ast.expr) -> list[str]:
    """The words of `a.b.c`, of a call of it or of it as a target."""
    return [
        each.id if isinstance(each, ast.Name) else each.attr
        for each in ast.walk(node.func if isinstance(node, ast.Call) else node)
        if isinstance(each, ast.Name | ast.Attribute)
    ]


# --- import roots ----------------------------------------------------------------------------------------


def _path(folder: Path, module: str, source: str) -> tuple[str, ...]:
    """The folders that a project's module is imported from: where its package is, and the project's own."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise ProjectError(
            f"{source} names the module {module!r}, which is no name that Python can import: correct it."
        )
    if base := _base(folder, module):
        return tuple(dict.fromkeys([str(base), str(folder)]))
    places = " or ".join(
        f"{base.relative_to(folder.parent).joinpath(*module.split('.'))}.py"
        for base in dict.fromkeys(_bases(folder))
    )
    raise ProjectError(
        f"{source} leads to the module {module}, and there is no {places}: correct the name there"
        " (root_module, code_location_target_module, module_name), or add that file."
    )


def _base(folder: Path, module: str) -> Path | None:
    """The import root below which a module lies."""
    parts = module.split(".")
    for base in _bases(folder):
        place = base.joinpath(*parts)
        if place.with_name(f"{place.name}.py").is_file() or place.is_dir():
            return base
    return None


def _bases(folder: Path) -> Iterator[Path]:
    """Where packages of a project may lie: `src/`, what its build backend is told, the folder itself."""
    tool = _toml(folder / PYPROJECT).get("tool", {})
    named = [
        "src",
        *(
            str(Path(each).parent)
            for each in _find(tool, "hatch", "build", "targets", "wheel", "packages") or []
        ),
        *(_find(tool, "setuptools", "packages", "find", "where") or []),
        _find(tool, "setuptools", "package-dir", ""),
        *(each.get("from") for each in _find(tool, "poetry", "packages") or [] if isinstance(each, dict)),
        _find(tool, "uv", "build-backend", "module-root"),
    ]
    for name in named:
        base = Path(os.path.normpath(folder / name)) if isinstance(name, str) else folder
        # `src` may be a package itself: `from src.x import y`.
        is_package = (base / "__init__.py").is_file()
        if base != folder and base.is_relative_to(folder) and base.is_dir() and not is_package:
            yield base
    yield folder


# --- files -----------------------------------------------------------------------------------------------


def _toml(file: Path) -> dict[str, Any]:
    """A TOML file's content; nothing where there is none."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProjectError(
            f"{file.parent.name}/{file.name} is not valid TOML: {error}. Correct it."
        ) from error


def _table(content: Mapping[str, Any], key: str, source: str) -> Mapping[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise ProjectError(f"{source}: {key} must be a table, not {value!r}. Correct it.")
    return value


def _text(content: Mapping[str, Any], key: str, source: str) -> str | None:
    value = content.get(key)
    if value is not None and (not isinstance(value, str) or not value):
        raise ProjectError(f"{source}: {key} must be a text, not {value!r}. Correct it.")
    return value


def _find(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _folders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
