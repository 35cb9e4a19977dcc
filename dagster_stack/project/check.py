"""What is to be known of a project before it is served: `make project` prints it, `make up` and `make deploy` heed it.

`python -m dagster_stack.project.check` loads each location in a process of its own and prints JSON.
"""

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dagster_stack.code_version import code_version
from dagster_stack.packages.wanted import REPLACED
from dagster_stack.project import PLATFORM, dbt, found, manifests
from dagster_stack.project.data import VOLUME
from dagster_stack.project.discovery import PASSED_OVER, WORKSPACE, Location, Project
from dagster_stack.project.inspection import BESIDE_CODE, OWN_EXECUTORS, Report
from dagster_stack.project.variables import of_location
from dagster_stack.settings import EXECUTOR_VARIABLE

#: Seconds that a load may take before it is told; Dagster itself gives up a code server after 180.
SLOW_SECS, PATIENCE_SECS = 60, 180
#: Lines of what the code printed that go with an error that leaves no report.
PRINTED_LINES = 15
#: Top-level modules that are no part of what is served.
NO_CODE = {"setup", "conftest", "noxfile", "tasks", *PASSED_OVER}
#: The executors that EXECUTOR in .env concerns.
MAPPED_EXECUTORS = {"multiprocess", "multi_or_in_process_executor"}


@dataclass(frozen=True)
class Checked:
    """A project with what its locations are made of, what would go wrong, and what can't work."""

    project: Project
    reports: list[Report]
    warnings: list[str] = field(default_factory=list)
    #: The error of each location that does not load, by its name.
    errors: dict[str, str] = field(default_factory=dict)
    #: Variables that the code asks for, each with the place that asks; and those of them that are not set.
    variables: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    #: dbt projects in it, with what they are.
    dbt: dict[str, str] = field(default_factory=dict)


def check(project: Project) -> Checked:
    """Load all locations, one after the other, and judge what was found."""
    reports = [report_of(location, project) for location in project.locations]
    asked = variables(project, reports)
    missing = unset_of(asked, project)
    warnings = [*replaced(), *(sentence for report in reports for sentence in judged(report, project))]
    warnings += [*manifests.warnings(Path(project.root)), *connections_of_dbt(project)]
    warnings += [
        *other_pythons(project),
        *shared_modules(project),
        *(unset(name, asked[name]) for name in missing),
    ]
    errors = {report.name: report.error for report in reports if report.error}
    of_dbt = manifests.described(Path(project.root))
    return Checked(project, reports, warnings, errors, asked, missing, of_dbt)


def report_of(location: Location, project: Project) -> Report:
    """A location's report, from a process that works where its code server will."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.json")
        command = [sys.executable, "-m", "dagster_stack.project.inspection", location.name, str(file)]
        try:
            result = subprocess.run(
                command,
                cwd=project.root,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=PATIENCE_SECS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Report(location.name, PATIENCE_SECS, f"it is not loaded after {PATIENCE_SECS} s")
        if file.exists():
            return Report(**json.loads(file.read_text(encoding="utf-8")))
        printed = result.stdout.decode(errors="replace").splitlines()[-PRINTED_LINES:]
        ended = f"its process ended with {result.returncode} while it was loaded"
        return Report(location.name, error="\n".join([ended, *printed]))


# --- judgements ----------------------------------------------------------------------------------------------


def replaced() -> list[str]:
    """What of the project's package files gave way to the platform's versions, when the image was built."""
    file = PLATFORM / "requirements" / REPLACED
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def judged(report: Report, project: Project) -> Iterator[str]:
    """What of one location would surprise on the stack, in words with the cure."""
    name = report.name
    for executor, jobs in report.executors.items():
        if executor not in OWN_EXECUTORS and not is_mapped(executor):
            yield (
                f"{name}: {listed(jobs)} {'has' if len(jobs) == 1 else 'have'} the executor {executor}, whose steps do not"
                " go to the workers. Leave `executor` out, or set EXECUTOR=celery in .env."
            )
    for key, (kind, place) in report.local.items():
        if place and is_shared(place, project):
            continue
        where = place or "Dagster's own folder"
        yield (
            f"{name}: the resource {key} ({kind}) keeps its data in {where}, on the disk of one container: a step on"
            " another worker does not find it, or finds an old one. Use a path below data/, which all services share,"
            " or leave it to the stack's IO manager."
        )
    for key, kind in report.stateless.items():
        fetch = "`dg utils refresh-defs-state` in your project fetches it, and the image takes it along"
        if kind != BESIDE_CODE:
            fetch = (
                f"here that is on the volume for data, where this check does not look: `dg utils refresh-defs-state` in a worker"
                f" fetches it (dagster-dg-cli among your packages). With management_type: {BESIDE_CODE} the image takes along"
                " what the same command has fetched in your project"
            )
        yield f"{name}: the component {key} makes no definitions without its state: {fetch}."
    for address, line in report.connections.items():
        yield (
            f"{name}: {line} asks {address} while the code is loaded: where that does not answer, nothing can be"
            " launched. Ask it in an asset, an op or a sensor."
        )
    if report.secs > SLOW_SECS:
        yield (
            f"{name}: the code takes {report.secs:.0f} s to load, in each process of each service. Import heavy"
            " libraries, and read large files, in the functions that need them."
        )


def is_mapped(executor: str) -> bool:
    """Whether EXECUTOR=celery gives the steps of jobs with this executor to the workers."""
    return os.environ.get(EXECUTOR_VARIABLE) == "celery" and executor in MAPPED_EXECUTORS


def is_shared(place: str, project: Project) -> bool:
    """Whether a path lies on the volume that all services share: it, or a link of the project that leads there."""
    real = os.path.realpath(os.path.join(project.root, os.path.expanduser(place)))
    return Path(real).is_relative_to(VOLUME) or Path(
        os.path.normpath(os.path.join(project.root, place))
    ).is_relative_to(Path(project.root, "data"))


def connections_of_dbt(project: Project) -> Iterator[str]:
    """Secrets in profiles.yml, and DuckDB files that not all services share: its paths are relative to dbt_project.yml."""
    for each in dbt.find(Path(project.root)):
        if not each.profiles:
            continue
        profiles = each.shown(each.profiles)
        for name in each.plain_secrets():
            yield (
                f"{profiles} holds a {name}, which is in the image now: write {{{{ env_var('NAME') }}}} in its place, and NAME"
                " into the project's .env."
            )
        if (file := each.duckdb_file()) and not is_shared(str(file), project):
            own = file.is_relative_to(project.root)
            where = "in the project's read-only folder" if own else "on the disk of one container"
            shared = os.path.relpath(Path(project.root, "data", file.name), each.folder)
            yield (
                f"{profiles} keeps DuckDB's file at {each.shown(file) if own else file}, {where}: write path: {shared}, which"
                " all services share."
            )


def other_pythons(project: Project) -> Iterator[str]:
    """Locations of a workspace.yaml that name a Python of their own: one image has one."""
    import yaml

    file = Path(project.root, WORKSPACE)
    if not project.source.endswith(f"/{WORKSPACE}"):
        return
    content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    # It has one for each location, in this order.
    for location, entry in zip(project.locations, content["load_from"], strict=True):
        fields = next(iter(entry.values()))
        if isinstance(fields, dict) and (named := fields.get("executable_path")):
            yield (
                f"{location.name}: {project.source} names the Python {named} for it. Here all locations have the image's, with"
                f" the packages that the project's files name: the ones that {named} has must be among them. Locations that need"
                " two versions of one package can't be in one stack."
            )


def shared_modules(project: Project) -> Iterator[str]:
    """Top-level modules of one name in several locations: no trouble here, but for whatever has both on one path."""
    homes: dict[str, dict[Path, list[str]]] = {}
    for location in project.locations:
        for module, home in top_level(location).items():
            homes.setdefault(module, {}).setdefault(home, []).append(location.name)
    for module, places in sorted(homes.items()):
        if len(places) > 1:
            where = " and ".join(
                f"{os.path.relpath(home, project.root)} ({listed(names)})" for home, names in places.items()
            )
            yield (
                f"several locations have a module {module}: {where}. Each imports its own, since no process here has two"
                " locations. A script or a test that has both on its path takes the first one: give each a name of its"
                " own, or put it into the location's package."
            )


def top_level(location: Location) -> dict[str, Path]:
    """The modules and packages that a location's code may import by a bare name, with their files."""
    result: dict[str, Path] = {}
    for entry in location.path:
        for each in sorted(Path(entry).iterdir()) if Path(entry).is_dir() else ():
            is_module = each.suffix == ".py" or (each / "__init__.py").is_file()
            if is_module and each.stem.isidentifier() and each.stem not in NO_CODE:
                result.setdefault(each.stem, each)
    return result


# --- variables -------------------------------------------------------------------------------------------------


def unset_of(asked: Mapping[str, str], project: Project) -> list[str]:
    """Those variables that neither all locations have nor one of them."""
    missing = [name for name in asked if name not in os.environ]
    # To ask for a location's own imports Dagster.
    own = {name for each in project.locations for name in of_location(each.name)} if missing else set()
    return [name for name in missing if name not in own]


def unset(name: str, place: str) -> str:
    return (
        f"{name} is not set, and {place} asks for it: put it into the project's .env, or into SECRETS_FILE."
    )


def variables(project: Project, reports: list[Report]) -> dict[str, str]:
    """The variables that the code asks for and has no default for, each with the place that asks."""
    asked: dict[str, str] = {}
    for location in project.locations:
        for entry in location.path:
            for file in code_files(Path(entry)):
                place = os.path.relpath(file, project.root)
                for name, line in asked_in(file):
                    asked.setdefault(name, f"{place}:{line}")
    for report in reports:
        for name in report.variables:
            asked.setdefault(name, f"a resource of {report.name}")
    for each in dbt.find(Path(project.root)):
        for name, place in each.variables():
            asked.setdefault(name, place)
    return dict(sorted(asked.items()))


def code_files(entry: Path) -> Iterator[Path]:
    """The files below an import root that may ask for variables."""
    for place, folders, files in os.walk(entry):
        folders[:] = sorted(
            name
            for name in folders
            if name not in PASSED_OVER
            and not name.startswith(".")
            and not Path(place, name, "pyvenv.cfg").exists()
        )
        yield from (Path(place, name) for name in sorted(files) if name.endswith((".py", ".yaml", ".yml")))


def asked_in(file: Path) -> Iterator[tuple[str, int]]:
    """The names of variables in a file that it can't do without, with their lines."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if file.suffix != ".py":
        for number, line in enumerate(text.splitlines(), 1):
            yield from ((name, number) for name in dbt.IN_COMPONENT.findall(line))
        return
    if "EnvVar" not in text and "environ" not in text:
        return
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if (name := asked_by(node)) and isinstance(node, ast.expr):
            yield name, node.lineno


def asked_by(node: ast.AST) -> str | None:
    """The variable of `EnvVar("A")`, `EnvVar.int("A")` or `os.environ["A"]`; None for anything else."""
    match node:
        case ast.Call(func=func, args=[ast.Constant(value=str(name))]) if "EnvVar" in words(func):
            return name
        case ast.Subscript(value=value, slice=ast.Constant(value=str(name)), ctx=ast.Load()) if words(value)[
            :1
        ] == ["environ"]:
            return name
    return None


def words(node: ast.expr) -> list[str]:
    """The words of `a.b.c`, the last one first."""
    if isinstance(node, ast.Attribute):
        return [node.attr, *words(node.value)]
    return [node.id] if isinstance(node, ast.Name) else []


def listed(names: list[str]) -> str:
    """Some of these names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def name_unset(project: Project) -> None:
    """Print what is to be known of variables, without loading the code: in seconds less."""
    asked = variables(project, [])
    for name in unset_of(asked, project):
        print(f"  ! {unset(name, asked[name])}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["unset"]:
        name_unset(found())
    else:
        json.dump({**asdict(check(found())), "code": code_version()}, sys.stdout)
