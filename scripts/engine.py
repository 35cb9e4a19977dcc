"""The Docker engine: found, installed from the distribution where that is possible, and started."""

import os
import re
import shutil
import signal
import subprocess
import time
from functools import cache
from pathlib import Path

from scripts import apt
from scripts.console import Failure, Progress, confirm, done, interactive, main, run_logged, warn

#: Debian's packages of the engine. Those of Debian 12 lack Compose and BuildKit; trixie's are taken there.
PACKAGES = ["docker.io", "docker-cli", "docker-buildx", "docker-compose"]
#: Ubuntu names its Compose and Buildx packages otherwise.
UBUNTU_PACKAGES = ["docker.io", "docker-buildx", "docker-compose-v2"]

PID_FILES = [Path("/var/run/docker.pid"), Path("/var/run/docker/containerd/containerd.pid")]
DAEMON_LOG = Path("/var/log/dagster-stack-dockerd.log")
#: Seconds that one attempt to start may take: loading the containers of a killed engine takes a while.
START_TIMEOUT_SECS = 60
START_ATTEMPTS = 3

WITHOUT_DOCKER = "Without Docker, `make dev` runs the same pipelines on this machine alone."


class NoEngine(Failure):
    """Raised when no engine can be had here; `make demo` then falls back to the embedded mode."""


@cache
def docker() -> str:
    """The first docker client on PATH (or Debian's) that has Compose; raises NoEngine."""
    for client in clients():
        if answers([client, "compose", "version"]):
            return client
    if clients():
        raise NoEngine(
            f"{clients()[0]} has no Compose plugin. Install it (Debian: docker-compose of trixie, Ubuntu:"
            f" docker-compose-v2, elsewhere: docker-compose-plugin). {WITHOUT_DOCKER}"
        )
    raise NoEngine(f"There is no docker on this machine. {WITHOUT_DOCKER}")


def clients() -> list[str]:
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"]
    found = [shutil.which("docker", path=folder) for folder in folders]
    return list(dict.fromkeys(client for client in found if client))


def answers(command: list[str], timeout: float = 20) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=timeout).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def running() -> bool:
    """Whether an engine answers to some client."""
    return any(answers([client, "version", "--format", "{{.Server.Version}}"]) for client in clients())


def ensure() -> None:
    """Install and start what is missing; raises NoEngine with the reason when that can't be."""
    if not (running() and has_plugins()):
        if not has_plugins() or not (shutil.which("dockerd") or is_remote()):
            install()
        if not running():
            start()
    done(f"Docker engine answers: {version()}")


def has_plugins() -> bool:
    try:
        return answers([docker(), "buildx", "version"])
    except NoEngine:
        docker.cache_clear()
        return False


def is_remote() -> bool:
    """Whether the client is told to use an engine elsewhere: not ours to start."""
    return bool(os.environ.get("DOCKER_HOST"))


def version() -> str:
    output = subprocess.run(
        [docker(), "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True
    )
    return output.stdout.strip() or "none"


def compose_version() -> str:
    output = subprocess.run([docker(), "compose", "version", "--short"], capture_output=True, text=True)
    return output.stdout.strip().removeprefix("v") or "none"


# --- install -------------------------------------------------------------------------------------------


def install() -> None:
    """Install the engine with its plugins from Debian or Ubuntu; raises NoEngine when that can't be."""
    missing = "no Docker engine with Compose and Buildx"
    if is_remote():
        raise NoEngine(
            f"There is {missing} behind DOCKER_HOST={os.environ['DOCKER_HOST']}. {WITHOUT_DOCKER}"
        )
    if os.environ.get("INSTALL_DOCKER") == "no":
        raise NoEngine(f"There is {missing}, and INSTALL_DOCKER=no forbids to install it. {WITHOUT_DOCKER}")
    distribution = apt.distribution()
    if distribution.id not in ("debian", "ubuntu"):
        raise NoEngine(
            f"There is {missing}, and it can be installed by itself only on Debian and Ubuntu; this is"
            f" {distribution.name}. Install Docker Engine 25 or later with its Compose plugin."
            f" {WITHOUT_DOCKER}"
        )
    if os.geteuid() != 0:
        raise NoEngine(
            f"There is {missing}, and only root can install it: run `sudo make up`, or ask whoever runs"
            f" this machine for docker.io, docker-buildx and docker-compose. {WITHOUT_DOCKER}"
        )
    question = f"There is {missing}. Install {distribution.name}'s packages?"
    if interactive() and not os.environ.get("INSTALL_DOCKER") and not confirm(question):
        raise NoEngine(f"Nothing was installed. {WITHOUT_DOCKER}")
    apt.update()
    if distribution.id == "ubuntu":
        apt.install("Installing the Docker engine", [*UBUNTU_PACKAGES, "iptables"])
    elif distribution.major < 13:
        apt.pin_suite("trixie")
        apt.install("Installing the Docker engine", [*(f"{name}/trixie" for name in PACKAGES), "iptables"])
    else:
        apt.install("Installing the Docker engine", [*PACKAGES, "iptables"])
    docker.cache_clear()


# --- start ---------------------------------------------------------------------------------------------


def start() -> None:
    """Start the engine of this machine; raises NoEngine with the end of its log."""
    if is_remote():
        raise NoEngine(f"No engine answers at DOCKER_HOST={os.environ['DOCKER_HOST']}. {WITHOUT_DOCKER}")
    if os.geteuid() != 0:
        raise NoEngine(
            "No Docker engine answers. If one runs, this user may not use it: add it to the group `docker`"
            f" and log in again; else start it: `sudo systemctl start docker`. {WITHOUT_DOCKER}"
        )
    if Path("/run/systemd/system").is_dir():
        run_logged("Starting the Docker engine", ["systemctl", "start", "docker"])
        return
    for attempt in range(1, START_ATTEMPTS + 1):
        remove_stale_pid_files()
        if start_by_hand(attempt):
            return
    tail = "\n".join(DAEMON_LOG.read_text(errors="replace").splitlines()[-15:])
    raise NoEngine(f"The Docker engine does not start. The end of {DAEMON_LOG}:\n\n{tail}\n\n{WITHOUT_DOCKER}")


def start_by_hand(attempt: int) -> bool:
    """Start dockerd in a session of its own and wait until it answers; False when it gave up."""
    with DAEMON_LOG.open("a") as log, Progress("Starting the Docker engine") as progress:
        progress.at(f"log: {DAEMON_LOG}" + (f", attempt {attempt}" if attempt > 1 else ""))
        process = subprocess.Popen(
            ["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
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


def remove_stale_pid_files(files: list[Path] = PID_FILES) -> None:
    """Remove what a killed engine left: it refuses to start while that pid exists, be it a zombie's or
    another program's that got the same number."""
    for file in files:
        try:
            pid = int(file.read_text())
        except (FileNotFoundError, ValueError):
            continue
        if not is_engine(pid):
            warn(f"{file} is left from an engine that was killed: removed")
            file.unlink(missing_ok=True)


def is_engine(pid: int) -> bool:
    """Whether the process is a living dockerd or containerd."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    fields = dict(re.findall(r"^(\w+):\s*(\S+)", status, re.MULTILINE))
    return fields.get("Name") in ("dockerd", "containerd") and fields.get("State") not in ("Z", "X")


if __name__ == "__main__":
    main(ensure)
