"""`make run`: one job, launched through Dagit like a browser does, with its progress on this terminal."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from scripts import compose
from scripts.console import Failure, interactive, main

#: The variable that carries the run config into the container, which can't see this host's files.
CONFIG_VARIABLE = "RUN_CONFIG"


def run() -> NoReturn:
    job = os.environ.get("JOB")
    if not job:
        raise Failure("Which job? For example: make run JOB=parallel_pipeline (Dagit lists all of them)")
    compose.require_env_file()
    options = ["--tags", os.environ["TAGS"]] if os.environ.get("TAGS") else []
    if os.environ.get("CONFIG"):
        os.environ[CONFIG_VARIABLE] = read_config(Path(os.environ["CONFIG"]))
        options.append("--env-config")
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
    terminal = [] if interactive() else ["--no-TTY"]
    options = ["--rm", "--no-deps", *terminal]
    if CONFIG_VARIABLE in os.environ:
        options += ["--env", CONFIG_VARIABLE]
    compose.become("--progress", "quiet", "run", *options, "cli", "python", "-m", "dagster_stack", *arguments)


if __name__ == "__main__":
    main(run if sys.argv[1:] == [] else lambda: command_line(*sys.argv[1:]))
