"""What the machine must have before anything is changed: what is required and what was found."""

import os
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from scripts import compose, engine, env_file, images
from scripts.console import Failure, done, warn

#: Fewer work, slowly: the tests and figures of this project are from 2.
CORES = 2
#: All containers idle at 1.7 GB; steps and runs come on top.
MEMORY_GB = 4
#: Images, build caches and an empty stack, measured: see docs/operations.md. Later: room for data.
DISK_FIRST_GB = 12
DISK_LATER_GB = 2
#: The first engine that checks health every second while a container starts (`start_interval`).
ENGINE_VERSION = "25.0"
#: The first Compose with optional dependencies and several merges in one mapping.
COMPOSE_VERSION = "2.24"

PORT_VARIABLES = {
    "DAGIT_PORT": ("Dagit", 3000),
    "RABBITMQ_PORT": ("RabbitMQ's management UI", 15672),
    "MINIO_PORT": ("MinIO's S3", 9000),
    "MINIO_CONSOLE_PORT": ("MinIO's console", 9001),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. `cure` is empty when all is well; `fatal` stops `make up`."""

    subject: str
    required: str
    found: str
    cure: str = ""
    fatal: bool = True


def machine() -> list[Finding]:
    """Cores and memory: too little is said, and left to the user."""
    cores = len(os.sched_getaffinity(0))
    memory = total_memory_gb()
    return [
        Finding("cores", f"{CORES}", f"{cores}", "all will be slow" if cores < CORES else "", fatal=False),
        Finding(
            "memory",
            f"{MEMORY_GB} GB",
            f"{memory:.1f} GB",
            "containers may be killed: lower WORKERS and MAX_CONCURRENT_RUNS in .env" if memory < MEMORY_GB else "",
            fatal=False,
        ),
    ]


def disk() -> Finding:
    """Room where the engine keeps images; less is needed once they are built."""
    folder = engine_folder()
    built = all(images.built_from(image) for image in images.images()) if env_file.env_path().exists() else False
    required = int(os.environ.get("REQUIRED_DISK_GB") or (DISK_LATER_GB if built else DISK_FIRST_GB))
    free = shutil.disk_usage(folder).free / 1e9
    cure = f"make room in {folder}, for example with `docker system df` and `docker image prune`"
    return Finding("free disk", f"{required} GB", f"{free:.1f} GB", cure if free < required else "")


def engine_folder() -> Path:
    """Where the engine keeps its data; its nearest existing parent when it is not there yet."""
    folder = Path("/var/lib/docker")
    while not folder.exists():
        folder = folder.parent
    return folder


def versions() -> list[Finding]:
    found = [
        ("Docker engine", ENGINE_VERSION, engine.version()),
        ("Docker Compose", COMPOSE_VERSION, engine.compose_version()),
    ]
    cure = "too old: upgrade it, on Debian 12 from the trixie suite"
    return [
        Finding(subject, f"{required} or later", version, cure if numbers(version) < numbers(required) else "")
        for subject, required, version in found
    ]


def ports() -> list[Finding]:
    """The addresses that the stack publishes: free, or already its own."""
    settings = env_file.settings()
    address = settings.get("BIND_ADDRESS") or "127.0.0.1"
    own = {port for container in compose.containers() for port in container.ports}
    findings = []
    chosen: dict[int, str] = {}
    for variable, (subject, default) in PORT_VARIABLES.items():
        if is_outside(variable, settings):
            continue
        port = int(settings.get(variable) or default)
        cure = ""
        if port in chosen:
            cure = f"{chosen[port]} has the same: change one of them in {env_file.env_path().name}"
        elif port not in own and not is_free(address, port):
            cure = f"taken by another program: set {variable} in {env_file.env_path().name} to a free port"
        chosen[port] = variable
        findings.append(Finding(f"port {port}", f"free for {subject}", "free" if not cure else "taken", cure))
    return findings


def is_outside(variable: str, settings: dict[str, str]) -> bool:
    """Whether the port belongs to a store that is an outside one, so that nothing is published."""
    store = {"RABBITMQ_PORT": "RABBITMQ_HOST", "MINIO_PORT": "S3_ENDPOINT_URL",
             "MINIO_CONSOLE_PORT": "S3_ENDPOINT_URL"}.get(variable)  # fmt: skip
    return bool(store and settings.get(store))


def report(findings: list[Finding]) -> None:
    """Print required and found; raises Failure that names every cure when one is fatal."""
    for finding in findings:
        line = f"{finding.subject}: required {finding.required}, found {finding.found}"
        if finding.cure:
            warn(f"{line} — {finding.cure}")
        else:
            done(line)
    fatal = [finding for finding in findings if finding.cure and finding.fatal]
    if fatal:
        reasons = "\n".join(f"    {finding.subject}: {finding.cure}" for finding in fatal)
        raise Failure(f"This machine is not ready, and nothing was started:\n{reasons}")


def is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        # As the engine's own proxy binds: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def total_memory_gb() -> float:
    match = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(match[1]) * 1024 / 1e9 if match else 0


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
