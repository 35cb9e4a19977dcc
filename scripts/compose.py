"""Docker Compose as the scripts call it: the right client, the right .env, and what it says of containers."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import NoReturn

from scripts import env_file
from scripts.console import ROOT, Failure, main
from scripts.engine import docker


@dataclass(frozen=True)
class Container:
    """One line of `docker compose ps`. `health` is empty where there is no check."""

    name: str
    service: str
    state: str
    health: str
    exit_code: int
    ports: frozenset[int]

    @property
    def is_well(self) -> bool:
        """Running and healthy, or a one-shot that ended well."""
        if self.service == "init":
            return self.state == "exited" and self.exit_code == 0
        return self.state == "running" and self.health in ("", "healthy")

    @property
    def condition(self) -> str:
        if self.state == "exited":
            return f"ended with {self.exit_code}"
        return self.health or self.state


def compose() -> list[str]:
    """The start of every Compose command line."""
    env = ["--env-file", str(env_file.env_path())] if "STACK_ENV_FILE" in os.environ else []
    return [docker(), "compose", "--project-directory", str(ROOT), *env]


def become(*arguments: str) -> NoReturn:
    """Replace this process by Compose, so that terminal and signals are its own."""
    require_env_file()
    command = [*compose(), *arguments]
    sys.stdout.flush()
    os.execvp(command[0], command)


def output(*arguments: str) -> str:
    """What Compose prints; raises Failure with its own words."""
    result = subprocess.run([*compose(), *arguments], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise Failure(f"`docker compose {' '.join(arguments)}` failed:\n{result.stderr.strip()}")
    return result.stdout


def containers() -> list[Container]:
    """The project's containers, ended ones too."""
    found = []
    for line in output("ps", "--all", "--format", "json").splitlines():
        entry = json.loads(line)
        found.append(
            Container(
                name=entry["Name"],
                service=entry["Service"],
                state=entry["State"],
                health=entry["Health"],
                exit_code=entry["ExitCode"],
                ports=frozenset(
                    port["PublishedPort"] for port in entry.get("Publishers") or [] if port["PublishedPort"]
                ),
            )
        )
    return found


def require_env_file() -> None:
    """Raises Failure when `make up` has not run yet."""
    if not env_file.env_path().exists():
        raise Failure(f"There is no {env_file.env_path().name} yet: run `make up` first, it writes one.")


if __name__ == "__main__":
    main(lambda: become(*sys.argv[1:]))
