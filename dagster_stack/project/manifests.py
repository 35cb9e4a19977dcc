"""What Dagster reads of a dbt project when it loads the code: `target/manifest.json`, made in the image's build.

`python -m dagster_stack.project.manifests FOLDER [FILE]` runs `dbt deps` and `dbt parse` in each dbt project below a
folder, and writes what it could not make, by project, into FILE; without one, it makes only what is absent.

Not by `dagster-dbt project prepare-and-package`: that imports the user's code, which may want variables that no build
has, and finds no manifest that code names by its path.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dagster_stack.project import PLATFORM
from dagster_stack.project.dbt import (
    ASKED,
    FILE,
    MANIFEST,
    OF_PACKAGES,
    SECRET,
    DbtProject,
    find,
    has_default,
    is_own,
)
from dagster_stack.project.discovery import defs_folders

#: What the build could not make, beside what it found.
BAKED = PLATFORM / "dbt.json"
#: The value of each variable in the build, which has none of the project's: a text, and a number where one is wanted.
PLACEHOLDER, SECRET_PLACEHOLDER = "1", "not-known-in-the-build"
#: Files that name packages of dbt, and where those are put.
PACKAGES, INSTALLED = ("packages.yml", "dependencies.yml"), "packages-install-path"
#: Lines of dbt's own explanation that are kept.
LINES = 6
#: Where a component that keeps its state beside the code looks for that, and makes folders even to find none.
STATE = ".local_defs_state"


class NotMade(Exception):
    """Raised when dbt can't parse a project: why, and the cure."""


def make_all(root: Path) -> dict[str, str]:
    """Make each dbt project's manifest; returns why not, by project."""
    projects = find(root)
    # Each takes a processor some 5 s.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = pool.map(problem_of, projects)
    return {project.name: problem for project, problem in zip(projects, problems, strict=True) if problem}


def problem_of(project: DbtProject) -> str:
    """Make a project's manifest; returns why that can't be, else an empty text."""
    try:
        make(project)
    except NotMade as problem:
        brought = ". The one that the project brings is used" if project.manifest.exists() else ""
        return f"{problem}{brought}"
    return ""


def make(project: DbtProject) -> None:
    """Install what a dbt project names, and parse it; raises NotMade."""
    if not project.profiles:
        if not project.profile:
            # A package for others: nobody runs it by itself.
            return
        raise NotMade(
            f"no profiles.yml in the image has its profile {project.profile!r}. One in ~/.dbt is not there, nor one that git"
            f" ignores: put it beside {FILE}, with {{{{ env_var('NAME') }}}} for what is secret, and NAME into the project's .env"
        )
    if not program().exists():
        raise NotMade(
            f"the project's packages have no dbt: add dagster-dbt and {adapter(project)} to its pyproject.toml or"
            " requirements.txt"
        )
    names_packages = any((project.folder / name).is_file() for name in PACKAGES)
    if names_packages and not next(installed(project).glob("*"), None):
        run(project, "deps")
    with tempfile.TemporaryDirectory() as folder:
        run(project, "parse", *project.arguments, target=folder)
        project.manifest.parent.mkdir(exist_ok=True)
        shutil.copyfile(Path(folder, MANIFEST.name), project.manifest)


def program() -> Path:
    return Path(sys.executable).with_name("dbt")


def adapter(project: DbtProject) -> str:
    return f"dbt-{project.adapter}" if project.adapter else "the adapter of your database (dbt-postgres, …)"


def installed(project: DbtProject) -> Path:
    return project.folder / str(project.content.get(INSTALLED) or "dbt_packages")


def run(project: DbtProject, *arguments: str, target: str = "") -> None:
    assert project.profiles
    with tempfile.TemporaryDirectory() as logs:
        result = subprocess.run(
            [str(program()), "--no-use-colors", "--quiet", *arguments],
            cwd=project.folder,
            env={
                **dict.fromkeys(asked(project), PLACEHOLDER),
                **{name: SECRET_PLACEHOLDER for name in asked(project) if name.startswith(SECRET)},
                **os.environ,
                "DBT_PROFILES_DIR": str(project.profiles.parent),
                "DBT_TARGET_PATH": target or logs,
                "DBT_LOG_PATH": logs,
                "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    if result.returncode:
        raise NotMade(reason(project, arguments[0], result.stdout))


def asked(project: DbtProject) -> set[str]:
    """The variables that a dbt project, or a package of it, can't do without; those of its neighbours among them."""
    return {
        found[2]
        for file in texts(project.root)
        for found in ASKED.finditer(file.read_text(encoding="utf-8", errors="replace"))
        if not has_default(found)
    }


def texts(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if each in OF_PACKAGES or is_own(each)]
        yield from (Path(place, name) for name in names if name.endswith((".yml", ".yaml", ".sql", ".py")))


def reason(project: DbtProject, command: str, output: str) -> str:
    """Why dbt failed, and the cure where it is known."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if not line.endswith(("Encountered an error:", "Runtime Error"))]
    kept = 1 if "Traceback (most recent call last):" in output or 'File "' in output else LINES
    said = f"dbt {command} says: {' '.join(lines[-kept:])}"
    if missing := re.search(r"Could not find adapter type ([\w-]+)", output):
        return f"dbt-{missing[1]} is missing: add it to the project's pyproject.toml or requirements.txt"
    if command != "deps":
        return said
    if re.search(r"No such file or directory: '?git|Make sure .*git|not find command.*git", output):
        return "a package of dbt comes from git: write the line `git` into packages.txt of the project"
    if SECRET in "".join(
        (project.folder / name).read_text() for name in PACKAGES if (project.folder / name).is_file()
    ):
        return (
            f"{said}. A build has no secrets of the project: write the package's address without one, and put the login"
            " into the file that NETRC in .env names"
        )
    if re.search(r"Connection|resolve|timed out|unable to access|CERTIFICATE", output):
        return (
            f"{said}. What dbt deps fetches must be reachable in the build (HTTPS_PROXY in .env), or lie in the project:"
            f" run dbt deps, and let git list {installed(project).name}/"
        )
    return said


def make_state_folders(root: Path) -> None:
    """The folders that a DbtProjectComponent makes when it is loaded: it takes them for empty then, and the manifest."""
    projects = find(root)
    for defs in defs_folders(root) if projects else ():
        (defs / STATE).mkdir(parents=True, exist_ok=True)
        (defs / STATE / ".gitignore").touch()
        for project in projects:
            for name in {project.folder.stem, str(project.content.get("name"))}:
                key = re.sub(r"[^A-Za-z0-9._-]", "__", f"DbtProjectComponent[{name}]")
                (defs / STATE / key).mkdir(exist_ok=True)


def warnings() -> list[str]:
    """What the image's build could not make, in sentences."""
    found: dict[str, str] = json.loads(BAKED.read_text(encoding="utf-8")) if BAKED.exists() else {}
    return [sentence(name, problem) for name, problem in found.items()]


def described(root: Path) -> dict[str, str]:
    """The dbt projects that have a connection, in words, by name."""
    return {
        each.name: f"{each.adapter or 'no adapter known'}, {'with' if each.manifest.exists() else 'without'} a manifest"
        for each in find(root)
        if each.profiles or each.profile
    }


def sentence(name: str, problem: str) -> str:
    return f"{name}/{FILE}: no {MANIFEST}, which Dagster reads, was made of it: {problem}."


def main(folder: str, file: str | None = None) -> None:
    root = Path(folder)
    if file:
        Path(file).write_text(json.dumps(make_all(root)), encoding="utf-8")
        make_state_folders(root)
        return
    for project in find(root):
        if not project.manifest.exists() and (problem := problem_of(project)):
            print(f"! {sentence(project.name, problem)}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
