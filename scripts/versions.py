"""`make test-versions`: the tests with other releases of Dagster, Celery and the rest than those that are locked.

Each set is a copy of this folder with other requirements, in which `make lock` and the tests are what they are here.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from dagster_stack.packages import locks
from scripts import halves, venv
from scripts.console import BUILD_FOLDER, ROOT, Failure, done, main, run_logged, say

FOLDER = BUILD_FOLDER / "versions"
#: What a copy goes without: what was made here, and what is no file of the project.
ASIDE = shutil.ignore_patterns(
    ".git", ".venv", ".build", ".env", "*.lock", "__pycache__", ".*_cache", ".hypothesis", ".logs"
)
#: With STACK=1, besides the unit tests: the executor's, on a running stack.
STACK_TESTS = sorted(each.relative_to(ROOT).as_posix() for each in ROOT.glob("tests/stack/test_executor*.py"))
#: What is told of a set.
NAMED = (
    "dagster",
    "dagster-celery",
    "celery",
    "kombu",
    "amqp",
    "sqlalchemy",
    "boto3",
    "starlette",
    "uvicorn",
    "flower",
)
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?P<range>[^;]*)")
LOWER = re.compile(r"(?P<sign>>=|==)\s*(?P<version>[0-9.]*[0-9])")


def oldest(name: str, range_: str) -> str:
    """The first release that a range allows: of `celery==5.7.*` it is 5.7.0."""
    lower = LOWER.search(range_)
    if not lower:
        return name + range_
    return f"{name}=={lower['version']}{'.0' if lower['sign'] == '==' else ''}"


def newest(name: str, range_: str) -> str:
    return name + range_


def latest(name: str, range_: str) -> str:
    """Any later release, except those that have an exclusion of their own."""
    lower = LOWER.search(range_)
    return f"{name}>={lower['version']}" if lower else name + range_


#: What each set makes of a requirement.
SETS: dict[str, Callable[[str, str], str]] = {"oldest": oldest, "newest": newest, "latest": latest}


def versions() -> int:
    """Every set that SETS names, or all; raises Failure that names those that failed."""
    wanted = [each for each in os.environ.get("SETS", "").replace(",", " ").split() if each] or list(SETS)
    if unknown := [each for each in wanted if each not in SETS]:
        raise Failure(f"SETS={','.join(unknown)}: there are {', '.join(SETS)}.")
    tests = os.environ.get("TESTS", "").split()
    failed = []
    for name in wanted:
        checkout = prepare(name)
        found = locks.versions((checkout / "requirements/stack.lock").read_text(encoding="utf-8"))
        say(f"Testing {name}: {', '.join(f'{each} {found[each]}' for each in NAMED if each in found)}")
        python = checkout / venv.FOLDER.relative_to(ROOT) / "bin" / "python"
        results = [pytest(checkout, python, tests) if tests else halves.unit_tests(python, checkout)]
        # Also when the part before failed.
        if os.environ.get("STACK"):
            results.append(pytest(checkout, python, STACK_TESTS))
        if any(results):
            failed.append(name)
    if failed:
        raise Failure(
            f"Tests failed with the releases of {', '.join(failed)}. The tests of dagster_stack/patches say first what"
            " has changed; a release that can't be supported is left out by a bound in pyproject.toml."
        )
    done(f"The tests pass with the releases of {', '.join(wanted)}")
    return 0


def prepare(name: str) -> Path:
    """A copy of the project that asks for the releases of a set, with its locks and its environment."""
    checkout = FOLDER / name
    shutil.rmtree(checkout, ignore_errors=True)
    shutil.copytree(ROOT, checkout, ignore=ASIDE, symlinks=True)
    project = checkout / "pyproject.toml"
    project.write_text(with_requirements(project.read_text(encoding="utf-8"), SETS[name]), encoding="utf-8")
    for lock in ("build", "flights"):
        shutil.copy(ROOT / f"requirements/{lock}.lock", checkout / "requirements")
    run_logged(f"Resolving {name}", [sys.executable, "-m", "scripts.lock"], cwd=checkout)
    run_logged(f"Installing {name}", [sys.executable, "-m", "scripts.venv", "dev"], cwd=checkout)
    return checkout


def with_requirements(text: str, asked: Callable[[str, str], str]) -> str:
    """A pyproject.toml whose own requirements are others; its comments stay."""
    for requirement in tomllib.loads(text)["project"]["dependencies"]:
        match = REQUIREMENT.fullmatch(requirement)
        if not match:
            raise Failure(f"pyproject.toml: {requirement!r} is not a name with a range.")
        text = text.replace(f'"{requirement}"', f'"{asked(match["name"], match["range"])}"')
    return text


def pytest(checkout: Path, python: Path, arguments: list[str]) -> int:
    return subprocess.run(
        [python, "-m", "pytest", *arguments],
        cwd=checkout,
        check=False,
        env=os.environ | {"TEST_PROJECT": "dcs-versions"},
    ).returncode


if __name__ == "__main__":
    main(versions)
