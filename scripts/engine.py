"""The Docker engine: found, installed from the distribution where that is possible, and started."""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from scripts import apt
from scripts.console import Failure, Progress, attended, confirm, done, main, run_logged, warn

#: Debian's packages of the engine. Those of Debian 12 lack Compose and BuildKit; trixie's are taken there.
PACKAGES = ["docker.io", "docker-cli", "docker-buildx", "docker-compose"]
#: Ubuntu names its Compose and Buildx packages otherwise.
UBUNTU_PACKAGES = ["docker.io", "docker-buildx", "docker-compose-v2"]

#: Where Debian's client and engine are, for users and services whose PATH lacks them.
SYSTEM_FOLDERS = ["/usr/bin", "/usr/sbin", "/usr/local/sbin"]
#: What an engine is recognized by, and by its plugins the client that can do what is needed here.
SOCKET = Path("/var/run/docker.sock")
#: There while systemd is this machine's first process.
SYSTEMD = Path("/run/systemd/system")
PLUGINS = {"Compose": "compose", "BuildKit (buildx)": "buildx"}

#: The pid files that a killed engine leaves, and whose they are.
PID_FILES = {
    Path("/var/run/docker.pid"): "dockerd",
    Path("/var/run/docker/containerd/containerd.pid"): "containerd",
}
DAEMON_LOG = Path("/var/log/dagster-stack-dockerd.log")
#: Seconds that one attempt to start may take: loading the containers of a killed engine takes a while.
START_TIMEOUT_SECS = 60
START_ATTEMPTS = 3

WITHOUT_DOCKER = "Without Docker, `make dev` runs the same pipelines on this machine alone."


class NoEngine(Failure):
    """Raised when no engine can be had here; `make demo` then falls back to the embedded mode."""


@cache
def docker() -> str:
    """The first docker client on PATH (or Debian's) that has Compose and BuildKit; raises NoEngine."""
    for client in clients():
        if not lacks(client):
            return client
    raise NoEngine(
        f"{what_is_missing()} On Debian and Ubuntu `sudo make up` installs it; elsewhere these are Docker's"
        f" own packages docker-ce, docker-buildx-plugin and docker-compose-plugin. {WITHOUT_DOCKER}"
    )


def what_is_missing() -> str:
    """A sentence that names the missing ones of client, plugins and engine."""
    found = clients()
    if not found:
        return "There is no Docker engine on this machine."
    plugins = lacks(found[0])
    if plugins:
        return f"The docker client {found[0]} has no {' and no '.join(plugins)}."
    return f"There is a docker client ({found[0]}), but no engine on this machine."


def clients() -> list[str]:
    return everywhere("docker")


def everywhere(program: str) -> list[str]:
    """Each place where a program is, in the order of PATH."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), *SYSTEM_FOLDERS]
    found = [shutil.which(program, path=folder) for folder in folders if folder]
    return list(dict.fromkeys(path for path in found if path))


def lacks(client: str) -> list[str]:
    """Which of the two plugins a client does not have."""
    return [title for title, plugin in PLUGINS.items() if not answers([client, plugin, "version"])]


def answers(command: list[str], timeout: float = 20) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=timeout, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def running() -> bool:
    """Whether an engine answers to some client."""
    return any(answers([client, "version", "--format", "{{.Server.Version}}"]) for client in clients())


def ensure() -> None:
    """Install and start what is missing; raises NoEngine with the reason when that can't be."""
    if not has_plugins() or not (running() or engine_is_here() or named_engine()):
        install()
    docker()
    if not running():
        start()
    done(f"Docker engine answers: {version()}")


def has_plugins() -> bool:
    return any(not lacks(client) for client in clients())


def engine_is_here() -> bool:
    """Whether this machine has an engine, even one that is stopped or closed to this user (whose PATH lacks sbin)."""
    return SOCKET.exists() or bool(everywhere("dockerd"))


def named_engine() -> str | None:
    """The engine that the user named: not ours to install or to start."""
    return os.environ.get("DOCKER_HOST")


def endpoint() -> str:
    """The engine's address: what DOCKER_HOST says, or the context that the user chose."""
    return named_engine() or ask("context", "inspect", "--format", "{{.Endpoints.docker.Host}}") or "unix:"


def is_elsewhere() -> bool:
    """Whether the engine is on another machine, whose disk and ports can't be looked at from here."""
    return endpoint().partition(":")[0] not in ("unix", "npipe")


def ask(*arguments: str) -> str:
    """What the client prints; empty when it can't."""
    try:
        return subprocess.run(
            [docker(), *arguments], capture_output=True, text=True, timeout=60, check=False
        ).stdout.strip()
    except subprocess.TimeoutExpired:
        return ""


def info() -> dict[str, Any]:
    """What the engine says of itself; empty when it can't be read."""
    try:
        found = json.loads(ask("info", "--format", "{{json .}}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def is_podman() -> bool:
    """Whether Podman answers behind a Docker socket."""
    return "Podman" in ask("version", "--format", "{{json .Server}}")


def version() -> str:
    return ask("version", "--format", "{{.Server.Version}}") or "none"


def compose_version() -> str:
    return ask("compose", "version", "--short").removeprefix("v") or "none"


# --- install -------------------------------------------------------------------------------------------


def install() -> None:
    """Install the engine with its plugins from Debian or Ubuntu; raises NoEngine when that can't be."""
    missing = what_is_missing()
    if os.environ.get("INSTALL_DOCKER") == "no":
        raise NoEngine(f"{missing} INSTALL_DOCKER=no forbids to install it. {WITHOUT_DOCKER}")
    distribution = apt.distribution()
    if distribution.id not in ("debian", "ubuntu"):
        raise NoEngine(
            f"{missing} It can be installed from here only on Debian and Ubuntu, and this is"
            f" {distribution.name}: install Docker Engine 25 or later with its Compose and"
            f" Buildx plugins: https://docs.docker.com/engine/install/. {WITHOUT_DOCKER}"
        )
    packages = UBUNTU_PACKAGES if distribution.id == "ubuntu" else PACKAGES
    if os.geteuid() != 0:
        raise NoEngine(
            f"{missing} Only root can install it: run `sudo make up`, or ask whoever runs"
            f" this machine for {', '.join(packages)}. {WITHOUT_DOCKER}"
        )
    question = f"{missing} Install {distribution.name}'s packages ({', '.join(packages)})?"
    if attended() and not os.environ.get("INSTALL_DOCKER") and not confirm(question):
        raise NoEngine(f"Nothing was installed. {WITHOUT_DOCKER}")
    try:
        # Debian's testing and unstable have no number, and all that is needed.
        if distribution.id == "debian" and 0 < distribution.major < 13:
            apt.pin_suite("trixie")
            packages = [f"{name}/trixie" for name in packages]
        apt.install("Installing the Docker engine", [*packages, "iptables"])
    except Failure as failure:
        raise NoEngine(f"{failure}\n\n  {WITHOUT_DOCKER}") from failure


# --- start ---------------------------------------------------------------------------------------------


def start() -> None:
    """Start the engine of this machine; raises NoEngine with the end of its log."""
    if named_engine():
        raise NoEngine(
            f"No engine answers at DOCKER_HOST={named_engine()}. Start it, or unset DOCKER_HOST to use this"
            f" machine's. {WITHOUT_DOCKER}"
        )
    if os.geteuid() != 0:
        raise NoEngine(no_access())
    if SYSTEMD.is_dir():
        start_by_systemd()
        return
    for attempt in range(1, START_ATTEMPTS + 1):
        remove_stale_pid_files()
        if start_by_hand(attempt):
            return
    tail = "\n".join(DAEMON_LOG.read_text(errors="replace").splitlines()[-15:])
    raise NoEngine(
        f"The Docker engine does not start. The end of {DAEMON_LOG}:\n\n{tail}\n\n  {WITHOUT_DOCKER}"
    )


def no_access() -> str:
    """Why no engine answers this user, with the cure."""
    if SOCKET.exists() and not os.access(SOCKET, os.W_OK):
        return (
            f"A Docker engine is here, but this user may not use it ({SOCKET} is closed to it). Add it to the"
            f" group `docker` (sudo usermod -aG docker {user_name()}) and log in again, or run `sudo make up`."
            f" {WITHOUT_DOCKER}"
        )
    return (
        "No Docker engine answers, and only root can start it: `sudo systemctl start docker`, or `sudo make up`,"
        f" which starts it where there is no systemd as well. {WITHOUT_DOCKER}"
    )


def user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "$(id -un)"


def start_by_systemd() -> None:
    try:
        run_logged("Starting the Docker engine", ["systemctl", "start", "docker"])
    except Failure as failure:
        raise NoEngine(f"{failure}\n\n  Its log: journalctl -u docker. {WITHOUT_DOCKER}") from failure
    if not running():
        raise NoEngine(
            "systemd says that the Docker engine runs, but it does not answer. Its log: journalctl -u docker;"
            f" often `systemctl restart docker` helps. {WITHOUT_DOCKER}"
        )


def start_by_hand(attempt: int) -> bool:
    """Start dockerd in a session of its own and wait until it answers; False when it gave up."""
    programs = everywhere("dockerd")
    if not programs:
        raise NoEngine(f"There is a docker client, but no engine (dockerd) on this machine. {WITHOUT_DOCKER}")
    with DAEMON_LOG.open("a") as log, Progress("Starting the Docker engine") as progress:
        progress.at(f"log: {DAEMON_LOG}" + (f", attempt {attempt}" if attempt > 1 else ""))
        process = subprocess.Popen(
            programs[:1], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
        deadline = time.monotonic() + START_TIMEOUT_SECS
        while time.monotonic() < deadline and process.poll() is None:
            if running():
                return True
            time.sleep(0.3)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return False


def remove_stale_pid_files(files: Mapping[Path, str] = PID_FILES) -> None:
    """Remove what a killed engine left: it refuses to start while that pid exists, be it a zombie's or
    another program's that got the same number."""
    for file, program in files.items():
        try:
            pid = int(file.read_text())
        except (FileNotFoundError, ValueError):
            continue
        if not is_alive(pid, program):
            warn(f"{file} is left from an engine that was killed: removed")
            file.unlink(missing_ok=True)


def is_alive(pid: int, program: str) -> bool:
    """Whether the process lives and is that program."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    fields = dict(re.findall(r"^(\w+):\s*(\S+)", status, re.MULTILINE))
    return fields.get("Name") == program and fields.get("State") not in ("Z", "X")


if __name__ == "__main__":
    main(ensure)
