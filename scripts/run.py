"""`make run`: one job, launched through Dagit like a browser does, with its progress on this terminal."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

from scripts import compose, env_file
from scripts.console import Failure, interactive, main
from scripts.engine import docker

#: The variable that carries the run config into the container, which can't see this host's files.
CONFIG_VARIABLE = "RUN_CONFIG"
#: By which Dagit knows whom it may trust. It is for the commands that ask Dagit, and for no other process.
SECRET_VARIABLE = "DOOR_SECRET"
ASKING_DAGIT = ("run", "demo", "reload")


def run() -> NoReturn:
    job = os.environ.get("JOB")
    if not job:
        raise Failure(
            "Which job? For example: make run JOB=parallel_pipeline (`make project` lists all of them)"
        )
    compose.require_env_file()
    options = ["--tags", os.environ["TAGS"]] if os.environ.get("TAGS") else []
    if os.environ.get("CONFIG"):
        os.environ[CONFIG_VARIABLE] = read_config(Path(os.environ["CONFIG"]))
        options.append("--env-config")
    if os.environ.get("LOCATION"):
        options += ["--location", os.environ["LOCATION"]]
    command_line("run", job, *options)


def read_config(file: Path) -> str:
    """The file's content; raises Failure when it can't be read."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise Failure(
            f"CONFIG={file} can't be read: {error.strerror}. Give a YAML file with run config."
        ) from error
    except UnicodeDecodeError as error:
        raise Failure(f"CONFIG={file} is no text in UTF-8: {error}") from error


def command_line(*arguments: str) -> NoReturn:
    """Become the stack's command line, in a container of its own."""
    options = ["--env", CONFIG_VARIABLE] if CONFIG_VARIABLE in os.environ else []
    if env_file.has_login() and arguments[0] in ASKING_DAGIT:
        os.environ[SECRET_VARIABLE] = env_file.settings().get(SECRET_VARIABLE, "")
        options += ["--env", SECRET_VARIABLE]
    command = [*options, "cli", "python", "-m", "dagster_stack", *arguments]
    start = ["--progress", "quiet", "run", "--rm", "--no-deps"]
    if interactive():
        compose.become(*start, *command)
    else:
        name = f"{compose.project()}-cli-{uuid4().hex[:12]}"
        sys.exit(follow(name, [*start, "--no-TTY", "--name", name, *command]))


def follow(container: str, arguments: list[str]) -> int:
    """Run Compose and hand signals to its container; returns the exit code.

    Without a terminal Compose leaves at a signal, before the container's last words, which say what becomes
    of the run. So it gets none: it has a session of its own.
    """
    compose.require_env_file()
    sys.stdout.flush()
    process = subprocess.Popen([*compose.compose(), *arguments], start_new_session=True)

    def hand_on(number: int, _: object) -> None:
        subprocess.run(
            [docker(), "kill", "--signal", str(number), container], capture_output=True, check=False
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    return process.wait()


if __name__ == "__main__":
    main(run if sys.argv[1:] == [] else lambda: command_line(*sys.argv[1:]))
