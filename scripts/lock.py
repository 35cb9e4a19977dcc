"""`make lock`: requirements/*.lock from pyproject.toml, with hashes and without index addresses.

What is locked stays, unless pyproject.toml asks for something else or UPGRADE names it (`UPGRADE=name`, several with
commas, or `all`). The locks change together, and only when all of them could be resolved.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster_stack.packages import explain, locks
from scripts import uv
from scripts.console import ROOT, Failure, done, main, run_logged, say, warn

#: Where they are resolved, below ROOT, starting from the undamaged entries of the present locks.
SCRATCH = ".build/locks"
#: The oldest Python that the embedded mode supports; the locks hold for all later ones too.
OLDEST_PYTHON = "3.11"
OPTIONS = ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes", "--no-emit-index-url",
           "--no-annotate", "--no-header", "--no-progress", "--color", "never"]  # fmt: skip
#: What is resolved into which lock, in this order: all of them hold the very versions of the stack's.
STACK = ["--constraint", f"{SCRATCH}/stack.lock"]
BUILD = ["--constraint", f"{SCRATCH}/build.lock"]
LOCKS = {
    "stack": ["pyproject.toml"],
    "build": [*STACK, "requirements/build.in"],
    "flights": ["--no-deps", "requirements/flights.in"],
    "dev": ["--group", "dev", *STACK, *BUILD, "pyproject.toml"],
}
#: A package to upgrade, with or without a version: `pandas`, `pandas==2.3.1`, `pandas<3`.
UPGRADED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*((?:[=<>!~]=?=?[^,\s]+)?)")


def lock() -> None:
    """Resolve every lock file and say what changed; it takes part in the next build."""
    present = {name: read(name) for name in LOCKS}
    resolve_all(os.environ.get("UPGRADE", ""))
    take()
    for name, text in present.items():
        report(name, locks.versions(text), locks.versions(read(name)))


def resolve_all(upgrade: str) -> None:
    """Resolve every lock file beside the present ones, which stay; `upgrade` names packages as UPGRADE does."""
    present = {name: read(name) for name in LOCKS}
    options = [*OPTIONS, *upgrades(present, upgrade)]
    program = str(uv.ensure())
    shutil.rmtree(ROOT / SCRATCH, ignore_errors=True)
    (ROOT / SCRATCH).mkdir(parents=True)
    for name, text in present.items():
        scratch(name).write_text(locks.whole(text), encoding="utf-8")
        if damaged(text):
            warn(f"requirements/{name}.lock is damaged: its whole entries are kept, the others resolved anew")
    for name, sources in LOCKS.items():
        resolve(program, name, [*options, *sources])
        if name == "stack":
            bind_dagster(program, [*options, *sources])


def take() -> None:
    """Put what was resolved in the place of the present lock files."""
    for name in LOCKS:
        scratch(name).replace(lock_file(name))


@contextmanager
def kept_on_failure() -> Iterator[None]:
    """Give every lock file its text back, unless all goes well."""
    before = {lock_file(name): read(name) for name in LOCKS}
    try:
        yield
    except BaseException:
        for path, text in before.items():
            path.write_text(text, encoding="utf-8")
        raise


def lock_file(name: str) -> Path:
    return ROOT / "requirements" / f"{name}.lock"


def scratch(name: str) -> Path:
    return ROOT / SCRATCH / f"{name}.lock"


def resolved(name: str) -> str:
    """A lock that `resolve_all` made."""
    return scratch(name).read_text(encoding="utf-8")


def read(name: str) -> str:
    path = lock_file(name)
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def damaged(text: str) -> bool:
    return text.split() != locks.whole(text).split()


def upgrades(present: dict[str, str], upgrade: str) -> list[str]:
    """uv's options for what UPGRADE names; raises Failure for a name that no lock has."""
    wanted = [part.strip() for part in upgrade.split(",") if part.strip()]
    if wanted == ["all"]:
        return ["--upgrade"]
    known = {name for text in present.values() for name in locks.versions(text)}
    options = []
    for part in wanted:
        match = UPGRADED.fullmatch(part)
        name = locks.canonical(match[1]) if match else ""
        if not match or name not in known:
            raise Failure(
                f"UPGRADE={part}: no lock has such a package. A new one goes into pyproject.toml, then `make lock`;"
                " UPGRADE=all upgrades every package."
            )
        # Dagster's parts move together: each asks for the very version of the others.
        family = {each for each in known if each.startswith("dagster-")} if name == "dagster" else set()
        options += [
            f"--upgrade-package={name}{match[2]}",
            *(f"--upgrade-package={each}" for each in sorted(family)),
        ]
    return options


def resolve(program: str, name: str, options: list[str]) -> None:
    run_logged(
        f"Resolving requirements/{name}.lock",
        [program, "pip", "compile", *options, "--output-file", str(scratch(name))],
        excerpt=conflict,
        cwd=ROOT,
        detail=lambda line: None if line.startswith(" ") or "==" in line else line,
    )


def conflict(log: str) -> str:
    """Why uv found no solution, and what to do."""
    reason = explain.explanation(log)
    if "No solution found" not in log:
        return explain.excerpt(log)
    return (
        f"{reason}\n\n  What you require stands in pyproject.toml: allow other versions there, or take one of the two out."
        " Nothing was changed. Where a version that is locked stands in the way: make lock UPGRADE=name"
    )


def bind_dagster(program: str, options: list[str]) -> None:
    """Resolve again when a library of Dagster's was resolved to a version for another Dagster.

    Its early releases name no Dagster, so a resolver takes them when the right one conflicts with something. Packages
    of others that are named dagster-… have no such version, and stay. Raises Failure that names the conflict.
    """
    locked = locks.versions(scratch("stack").read_text(encoding="utf-8"))
    own = {
        name: f"{name}=={series}"
        for name, series in locks.foreign(locked).items()
        if exists(program, f"{name}=={series}")
    }
    if not own:
        return
    constraints = ROOT / SCRATCH / "dagster.txt"
    constraints.write_text("".join(f"{each}\n" for each in own.values()), encoding="utf-8")
    named = ", ".join(f"{name} {locked[name]}" for name in own)
    warn(f"{named}: of another Dagster than {locked['dagster']}. Resolving with {', '.join(own.values())}")
    try:
        resolve(program, "stack", [*options, "--constraint", str(constraints)])
    except Failure as failure:
        raise Failure(
            f"{named} does not belong to Dagster {locked['dagster']}, and {', '.join(own.values())}, which does, can't be"
            f" had with the rest.\n{failure}"
        ) from None


def exists(program: str, requirement: str) -> bool:
    """Whether the index has such a version at all."""
    command = [program, "pip", "compile", "--quiet", "--no-deps", "--python-version", OLDEST_PYTHON, "-"]
    result = subprocess.run(command, input=requirement, capture_output=True, text=True, cwd=ROOT, check=False)
    return result.returncode == 0


def report(name: str, before: dict[str, str], after: dict[str, str]) -> None:
    """Say what changed in a lock, line by line."""
    changed = locks.changes(before, after)
    done(
        f"requirements/{name}.lock: {f'{len(changed)} changed' if changed else 'as it was'} ({len(after)} packages)"
    )
    for line in changed:
        say(f"      {line}")


if __name__ == "__main__":
    main(lock)
