"""One code location, loaded as a code server loads it, and what can be said of it before anybody relies on it.

A process of its own for each (`python -m dagster_stack.project.inspection NAME FILE`): two locations never meet in one.
"""

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dagster_stack.project import found, use
from dagster_stack.project.discovery import Location

#: Connections that are noted: nobody reads more of them.
MOST_CONNECTIONS = 20
#: Names of settings that hold a path where a resource keeps its data.
PLACES = {
    "base_dir",
    "base_path",
    "database",
    "path",
    "db_path",
    "directory",
    "folder",
    "root",
    "root_dir",
    "file_path",
}
#: Executors that leave the steps to workers, or are asked not to.
OWN_EXECUTORS = {"celery", "in_process"}


#: How components keep their state, in Dagster's words.
BESIDE_CODE, FETCHED_AT_LOAD = "LOCAL_FILESYSTEM", "LEGACY_CODE_SERVER_SNAPSHOTS"
#: The component of a dbt project that lies in the user's.
OF_DBT = re.compile(r"DbtProjectComponent\[(?!.*[:@])")


@dataclass
class Report:
    """What one location is made of. Lines of code are named relative to the project's root."""

    name: str
    secs: float = 0.0
    error: str = ""
    jobs: list[str] = field(default_factory=list)
    assets: list[str] = field(default_factory=list)
    schedules: list[str] = field(default_factory=list)
    sensors: list[str] = field(default_factory=list)
    #: Of each executor the jobs that have it.
    executors: dict[str, list[str]] = field(default_factory=dict)
    #: Of each key the IO manager's kind.
    io_managers: dict[str, str] = field(default_factory=dict)
    #: Of each resource that keeps data in a file of this machine: its kind, and the path (empty: Dagster's own folder).
    local: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: Variables that its resources are configured with.
    variables: list[str] = field(default_factory=list)
    #: Of each component that lacks the state that its definitions are made of: how it keeps that.
    stateless: dict[str, str] = field(default_factory=dict)
    #: What was asked of the network while it was loaded, and by which line.
    connections: dict[str, str] = field(default_factory=dict)


class Connections:
    """Notes which hosts code asks for, with the line of the project that does."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.found: dict[str, str] = {}
        self.is_on = True
        # There is no way to take it off again.
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on or event not in ("socket.connect", "socket.getaddrinfo"):
            return
        address = arguments[1] if event == "socket.connect" else arguments[:2]
        if isinstance(address, tuple) and len(self.found) < MOST_CONNECTIONS:
            line = line_of(traceback.extract_stack(), self._root)
            # A name first, its address then: one of them is enough.
            if line and line not in self.found.values():
                self.found[":".join(str(part) for part in address[:2])] = line


def line_of(frames: Sequence[traceback.FrameSummary], root: str) -> str:
    """The innermost of these lines that belongs to the project; empty without any."""
    own = [frame for frame in frames if is_own(frame.filename, root)]
    return f"{os.path.relpath(own[-1].filename, root)}:{own[-1].lineno}" if own else ""


def is_own(file: str, root: str) -> bool:
    return file.startswith(root + os.sep) and f"{os.sep}site-packages{os.sep}" not in file


def inspect(location: Location, root: str) -> Report:
    """Load it and look what is in it; an error of the code is part of the report."""
    report = Report(location.name)
    connections = Connections(root)
    began = time.monotonic()
    try:
        repositories = load(location)
    except BaseException as error:
        # Code may call sys.exit(), too.
        report.error = told(error, root)
        repositories = []
    finally:
        report.secs = time.monotonic() - began
        connections.is_on = False
        report.connections = connections.found
    for repository in repositories:
        describe(repository, report)
    return report


def load(location: Location) -> list[Any]:
    """Its repositories, by what a code server calls."""
    from dagster import DagsterInstance
    from dagster._core.storage.defs_state import UPathDefsStateStorage
    from dagster._core.storage.defs_state.base import set_defs_state_storage
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
    from dagster._grpc.server import LoadedRepositories
    from upath import UPath

    from dagster_stack.project import defaults, variables

    use(location.path)
    os.environ.update(variables.of_location(location.name))
    # As in each process that loads code.
    defaults.use()
    field_of = {
        "python_file": "python_file",
        "python_module": "module_name",
        "python_package": "package_name",
        "autoload_defs_module": "autoload_defs_module_name",
    }
    origin = LoadableTargetOrigin(
        executable_path=sys.executable,
        working_directory=location.path[0],
        attribute=location.attribute,
        **{field_of[location.kind]: location.target},
    )
    with ExitStack() as stack:
        # Before the stack is there, its store of components' state is not: an empty one takes its place.
        instance = stack.enter_context(DagsterInstance.ephemeral())
        storage = UPathDefsStateStorage(UPath(stack.enter_context(TemporaryDirectory())))
        storage.register_instance(instance)
        stack.enter_context(set_defs_state_storage(storage))
        loaded = LoadedRepositories(origin, None, [], None, code_location_name=location.name)
        return list(loaded.definitions_by_name.values())


def describe(repository: Any, report: Report) -> None:
    """Add what a repository holds."""
    from dagster._core.definitions.resource_definition import ResourceDefinition

    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    report.jobs += sorted(job.name for job in jobs)
    report.assets += sorted(key.to_user_string() for key in repository.asset_graph.executable_asset_keys)
    report.schedules += sorted(each.name for each in repository.schedule_defs)
    report.sensors += sorted(each.name for each in repository.sensor_defs)
    resources: dict[str, ResourceDefinition] = dict(repository.get_top_level_resources())
    for job in repository.get_all_jobs():
        report.executors.setdefault(job.executor_def.name, []).append(job.name)
        resources |= job.resource_defs
        for key in io_manager_keys(job):
            if key in job.resource_defs:
                report.io_managers[key] = kind_of(job.resource_defs[key])
    for key, resource in resources.items():
        if (place := local_place(resource)) is not None:
            report.local[key] = (kind_of(resource), place)
    report.stateless |= stateless(repository)
    # By its name it is the other way round.
    report.variables += sorted(repository.get_env_vars_by_top_level_resource())


def stateless(repository: Any) -> dict[str, str]:
    """The components without the state that `dg dev` would fetch for them; how each keeps it."""
    from dagster import StateBackedComponent
    from dagster.components.utils.project_paths import get_local_state_path

    tree = repository.get_component_tree()
    found = {}
    for component in tree.get_all_components(of_type=StateBackedComponent) if tree else ():
        config = component.defs_state_config
        kind = str(config.management_type.value)
        has_state = kind == FETCHED_AT_LOAD or (
            kind == BESIDE_CODE and get_local_state_path(config.key, tree.project_root).exists()
        )
        # That of dbt has its manifest, which is made in the build.
        if not has_state and not OF_DBT.match(config.key):
            found[config.key] = kind
    return found


def io_manager_keys(job: Any) -> set[str]:
    return {
        output.io_manager_key
        for node in job.all_node_defs
        for output in node.output_defs
        if hasattr(output, "io_manager_key")
    }


def kind_of(resource: Any) -> str:
    """The class of a resource, without its module; the function's name of one that a function makes."""
    from dagster._config.pythonic_config.resource import get_resource_type_name

    return str(get_resource_type_name(resource)).rsplit(".", 1)[-1]


def local_place(resource: Any) -> str | None:
    """Where on this machine's disk a resource keeps data, empty for Dagster's own folder; None where it does not."""
    from dagster._config.pythonic_config.resource import get_resource_type_name
    from dagster._core.storage import fs_io_manager

    if str(get_resource_type_name(resource)).startswith("dagster_stack."):
        # The stack's own. In the embedded mode they are files of the one machine there is.
        return None
    values: Any = None
    with suppress(Exception):
        schema = resource.config_schema
        values = json.loads(schema.default_value_as_json_str) if schema.default_provided else {}
    for name, value in values.items() if isinstance(values, dict) else ():
        if name in PLACES and isinstance(value, str) and is_path(value):
            return value
    own = (
        kind_of(resource) in {"FilesystemIOManager", "fs_io_manager"}
        or resource is fs_io_manager.fs_io_manager
    )
    return "" if own else None


def is_path(value: str) -> bool:
    """Whether a text is a path of this machine, and no address, no store of a cloud and no memory."""
    return bool(value) and not value.startswith(":") and "://" not in value and not value.startswith("md:")


def told(error: BaseException, root: str) -> str:
    """An error of user code: what it is, and the project's own lines that led to it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [
        f"  {os.path.relpath(frame.filename, root)}:{frame.lineno}  {frame.line}"
        for frame in traceback.extract_tb(error.__traceback__)
        if is_own(frame.filename, root)
    ]
    if isinstance(error, SyntaxError) and error.filename and is_own(error.filename, root):
        lines.append(
            f"  {os.path.relpath(error.filename, root)}:{error.lineno}  {(error.text or '').strip()}"
        )
    if isinstance(error, SystemExit):
        return "\n".join([f"it ends its process while it is loaded: sys.exit({error.code!r})", *lines])
    return "\n".join(["".join(traceback.format_exception_only(error)).strip(), *lines, *cure(error, root)])


def cure(error: BaseException, root: str) -> list[str]:
    """What a user can do about an import that finds nothing."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        name = error.name.split(".")[0]
        files = (file for kind in (f"{name}.py", f"{name}/__init__.py") for file in Path(root).rglob(kind))
        if here := next((file for file in files if is_own(str(file), root)), None):
            place = os.path.relpath(here, root)
            return [f"{place} is there, in a folder where this code location's imports do not look."]
        return [f"Where {name} is not yours, name its package in pyproject.toml or requirements.txt."]
    if isinstance(error, ImportError) and "cannot open shared object file" in str(error):
        return ["A library of the system is missing: name its Debian package in packages.txt."]
    return []


def locations(name: str) -> Iterator[Location]:
    return (each for each in found().locations if each.name == name)


def main(name: str, file: str) -> None:
    """Write the report of the location of that name into a file; what the code prints goes where it goes."""
    report = inspect(next(locations(name)), found().root)
    Path(file).write_text(json.dumps(asdict(report)), encoding="utf-8")
    # Threads of the user's code must not keep it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
