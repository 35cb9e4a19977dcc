"""`make test`: lint, types and every test; installs what it needs first, and names what it can't install."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts import apt, engine, env_file, halves, images, venv
from scripts.console import BUILD_FOLDER, LOG_FOLDER, ROOT, Failure, Progress, done, main, say, warn

SHELL_SCRIPTS = [
    *(
        f"docker/{name}/start"
        for name in ("postgres", "rabbitmq", "minio", "prometheus", "postgres-exporter", "door")
    ),
    *(f"docker/door/{name}" for name in ("ask-dagit", "certificate", "json", "reload", "user")),
    "docker/certificates/issue",
    "docker/postgres/pgbackrest-push",
    ".ci/run",
    "tests/kubernetes/start",
]
DOCKERFILES = [
    "postgres",
    "rabbitmq",
    "minio",
    "dagster",
    "backup",
    "prometheus",
    "postgres-exporter",
    "door",
    "certificates",
]

#: What needs a Docker engine: what steps and runs do in a stack that stays as it is, then the quick half of the drills;
STACK = ["tests/stack", "-m", "not long"]
DRILLS = ["tests/faults", "-m", "quick"]
#: and beside these, since most of the time they all wait, what gives a stack other code, settings or numbers, or makes a second one.
#: Each half takes about 30 minutes. The engine has addresses for three stacks with monitoring, so one half alone makes further ones.
CHANGES = [
    "tests/stack/deployments",
    "tests/stack/with_backups",
    "tests/stack/test_autoscale.py",
    "tests/stack/test_rotate.py",
    "tests/stack/test_side_by_side.py",
]
#: Alone, when both have ended: Chromium drops its requests when a network of this host comes or goes (ERR_NETWORK_CHANGED).
BROWSER = ["tests/browser"]
#: The copy of the stack of the first part, unless TEST_PROJECT names another; the other part's has this and CHANGED.
PROJECT = "dagster-celery-stack-test"
CHANGED = "-changed"


def test() -> int:
    """All tests. Without an engine only those that need none; it names the others, and fails in CI."""
    python = str(venv.ensure("dev"))
    try:
        engine.ensure()
    except engine.NoEngine as reason:
        if os.environ.get("CI"):
            raise
        lint()
        skipped = (STACK[0], DRILLS[0], BROWSER[0])
        warn(f"Skipped, since they need a Docker engine: {', '.join(skipped)}. {reason}")
        return halves.unit_tests(python)
    apt.ensure("Installing Chromium", "chromium", ["chromium"])
    with images_meanwhile():
        lint()
        # Beside the stack's tests they would take the processor that these measure and wait for.
        units = halves.unit_tests(python)
    with changes_meanwhile(python) as changes:
        # Each part also when the one before failed.
        stack = pytest(python, [*STACK, *(f"--ignore={each}" for each in CHANGES)])
        drills = pytest(python, DRILLS)
    browser = pytest(python, BROWSER)
    # Of one that was killed the code is below 0.
    return max(map(abs, (units, stack, drills, changes.wait(), browser)))


@contextmanager
def changes_meanwhile(python: str) -> Iterator[subprocess.Popen[bytes]]:
    """They go on beside the body, and are printed in one piece behind it."""
    log = LOG_FOLDER / "changes.log"
    project = f"{os.environ.get('TEST_PROJECT') or PROJECT}{CHANGED}"
    command = (python, "-m", "pytest", *CHANGES, *STACK[1:])
    try:
        with beside("Other code, other settings, second stacks", log, command, TEST_PROJECT=project) as tests:
            yield tests
    finally:
        sys.stdout.flush()
        with log.open("rb") as printed:
            shutil.copyfileobj(printed, sys.stdout.buffer)
        sys.stdout.flush()


@contextmanager
def images_meanwhile() -> Iterator[None]:
    """The images of the tests' stack are built beside the body, which needs none; `make up` repeats what fails."""
    log = LOG_FOLDER / "images-of-the-tests.log"
    environment = settings_of_images(os.environ.get("TEST_PROJECT") or PROJECT, images.MONITORING)
    command = (sys.executable, "-m", "scripts.images")
    with beside("Building the stack's images", log, command, **environment) as build:
        yield
    if build.returncode:
        warn(f"The images could not be built: see {log}.")


def settings_of_images(project: str, *profiles: str) -> dict[str, str]:
    """By these `scripts.images` builds those of a copy of the stack that is not there yet."""
    base = env_file.read(ROOT / ".env").get("BASE_IMAGE")
    return {
        "STACK_ENV_FILE": str(BUILD_FOLDER / "images-of-the-tests" / ".env"),
        "COMPOSE_PROJECT_NAME": project,
        "COMPOSE_PROFILES": ",".join([*env_file.STORES, *profiles]),
        **({"BASE_IMAGE": base} if base else {}),
    }


@contextmanager
def beside(
    title: str, log: Path, command: Sequence[str], **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A command that goes on beside the body, and has ended behind it. What interrupts the body interrupts it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"{title}, meanwhile ({log})")
    with (
        log.open("wb") as output,
        # In a process group of its own: of Ctrl-C it hears once, from here.
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, process_group=0, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):  # fmt: skip
        try:
            yield process
            with Progress(title):
                process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            raise


def unit() -> int:
    return halves.unit_tests(venv.ensure("dev"))


def pytest(python: str, arguments: list[str]) -> int:
    return subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


def lint() -> int:
    """Style, types, shell scripts, Dockerfiles; raises Failure with the findings' end."""
    bin_folder = venv.ensure("dev").parent
    dockerfiles = [*(f"docker/{name}/Dockerfile" for name in DOCKERFILES), "tests/kubernetes/Dockerfile"]
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
