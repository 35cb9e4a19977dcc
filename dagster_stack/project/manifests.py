"""What Dagster reads of a dbt project when it loads the code: `target/manifest.json`, made in the image's build.

`python -m dagster_stack.project.manifests make FOLDER OUT` runs `dbt deps` and `dbt parse` in each dbt project below a
folder, and writes the manifests, and why one could not be made, below OUT. `lay FOLDER OUT` puts them into the projects.
`absent FOLDER` makes those that are absent where they belong.

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

from dagster_stack.packages.explain import MARK
from dagster_stack.project import PLATFORM
from dagster_stack.project.dbt import (
    ASKED,
    CHOICES,
    FILE,
    MANIFEST,
    OF_PACKAGES,
    SECRET,
    DbtProject,
    find,
    has_default,
    is_own,
)

#: Where the build keeps manifests until the whole project is there; and why it could not make others, by their folders.
BAKED, PROBLEMS = PLATFORM / "dbt", "problems.json"
#: The value of each variable in the build, which has none of the project's: a text, and a number where one is wanted.
PLACEHOLDER, SECRET_PLACEHOLDER = "1", "not-known-in-the-build"
#: Files that name packages of dbt, and where those are put.
PACKAGES, INSTALLED = ("packages.yml", "dependencies.yml"), "packages-install-path"
#: Lines of dbt's own explanation that are kept.
LINES = 6


class NotMade(Exception):
    """Raised when dbt can't parse a project: why, and the cure."""


class Unreached(NotMade):
    """Raised when what dbt installs can't be reached, which may be different at another time."""


def make_all(root: Path, out: Path) -> None:
    """Make each dbt project's manifest, and write down why not. Raises Unreached: a build that goes on would be kept so."""
    if (choices := root / CHOICES).exists():
        # What else decides is not known here.
        os.environ.update(json.loads(choices.read_text(encoding="utf-8"))["variables"])
    projects = find(root)
    # Each takes a processor some 5 s.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = pool.map(lambda project: problem_of(project, kept(project, out)), projects)
    found = {str(project.folder): why for project, why in zip(projects, problems, strict=True) if why}
    out.mkdir(parents=True, exist_ok=True)
    (out / PROBLEMS).write_text(json.dumps(found), encoding="utf-8")
    choices.unlink(missing_ok=True)


def kept(project: DbtProject, out: Path) -> Path:
    return out / project.folder.relative_to(project.root) / MANIFEST.name


def problem_of(project: DbtProject, manifest: Path) -> str:
    """Make a project's manifest; returns why that can't be, else an empty text. Raises Unreached."""
    try:
        make(project, manifest)
    except Unreached as problem:
        raise Unreached(sentence(project, str(problem))) from None
    except NotMade as problem:
        return str(problem)
    return ""


def make(project: DbtProject, manifest: Path) -> None:
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
        manifest.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(folder, MANIFEST.name), manifest)


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
    """Why dbt failed, and the cure where it is known; raises Unreached."""
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
        raise Unreached(
            f"{said}. What dbt deps fetches must be reachable in the build (HTTPS_PROXY in .env), or lie in the project:"
            f" run dbt deps, and let git list {installed(project).name}/"
        )
    return said


def lay(root: Path, out: Path) -> None:
    """Put manifests where Dagster looks for them: in the place of what the project itself has brought."""
    for project in find(root):
        if (made := kept(project, out)).exists():
            project.manifest.parent.mkdir(exist_ok=True)
            shutil.copyfile(made, project.manifest)


def warnings(root: Path) -> Iterator[str]:
    """What the image's build could not make, in sentences."""
    file = BAKED / PROBLEMS
    problems: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for project in find(root):
        if problem := problems.get(str(project.folder)):
            yield sentence(project, problem)


def described(root: Path) -> dict[str, str]:
    """The dbt projects that have a connection, in words, by name."""
    return {
        each.name: f"{each.adapter or 'no adapter known'}, {'with' if each.manifest.exists() else 'without'} a manifest"
        for each in find(root)
        if each.profiles or each.profile
    }


def sentence(project: DbtProject, problem: str) -> str:
    brought = " The one that the project brings is used." if project.manifest.exists() else ""
    return f"{project.name}/{FILE}: no {MANIFEST}, which Dagster reads, was made of it: {problem.rstrip('.')}.{brought}"


def make_absent(root: Path) -> None:
    for project in find(root):
        if not project.manifest.exists():
            try:
                make(project, project.manifest)
            except NotMade as problem:
                print(f"! {sentence(project, str(problem))}", file=sys.stderr)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", folder, out]:
            try:
                make_all(Path(folder), Path(out))
            except Unreached as unreached:
                sys.exit(f"{MARK}{unreached}")
        case ["lay", folder, out]:
            lay(Path(folder), Path(out))
        case ["absent", folder]:
            make_absent(Path(folder))
