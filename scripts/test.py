"""`make test`: lint, types and every test; what it needs is installed first, what can't be is said."""

import os
import subprocess
import sys

from scripts import apt, engine, venv
from scripts.console import ROOT, Failure, done, main, say, warn

SHELL_SCRIPTS = [
    *(
        f"docker/{name}/start"
        for name in ("postgres", "rabbitmq", "minio", "prometheus", "postgres-exporter")
    ),
    ".ci/run",
]
DOCKERFILES = ["postgres", "rabbitmq", "minio", "dagster", "prometheus", "postgres-exporter"]

#: What of the tests needs what.
UNIT = ["tests/unit"]
STACK = ["tests/stack", "tests/browser"]
#: The quick half of the drills, on a copy of the stack of their own.
DRILLS = ["tests/faults", "-m", "quick"]


def test() -> int:
    """Everything. Without an engine what needs none, and what was left out is named; in CI that fails."""
    python = str(venv.ensure("dev"))
    lint()
    try:
        engine.ensure()
    except engine.NoEngine as reason:
        if os.environ.get("CI"):
            raise
        warn(f"Skipped, since they need a Docker engine: {', '.join(STACK + DRILLS[:1])}. {reason}")
        return pytest(python, UNIT)
    apt.ensure("Installing Chromium", "chromium", ["chromium"])
    # One copy of the stack at a time; the second half also when the first one failed.
    results = [pytest(python, [*UNIT, *STACK]), pytest(python, DRILLS)]
    return max(results)


def unit() -> int:
    return pytest(str(venv.ensure("dev")), UNIT)


def pytest(python: str, arguments: list[str]) -> int:
    return subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


def lint() -> int:
    """Style, types, shell scripts, Dockerfiles; raises Failure with the findings' end."""
    bin_folder = venv.ensure("dev").parent
    dockerfiles = [f"docker/{name}/Dockerfile" for name in DOCKERFILES]
    checks = {
        "ruff": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy"],
        "shellcheck": ["shellcheck", *SHELL_SCRIPTS],
        "hadolint": ["hadolint", *dockerfiles],
    }
    say("Lint and types")
    for name, (program, *arguments) in checks.items():
        command = [str(bin_folder / program), *arguments]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if result.returncode:
            raise Failure(f"{name} finds:\n{result.stdout}{result.stderr}")
        done(name)
    return 0


if __name__ == "__main__":
    main({"unit": unit, "lint": lint}.get(sys.argv[1], test) if sys.argv[1:] else test)
