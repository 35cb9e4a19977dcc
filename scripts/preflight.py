"""What the machine must have before anything is changed: what is required and what was found."""

import errno
import os
import re
import shutil
import socket
from collections import ChainMap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster_stack.errors import SettingsError
from dagster_stack.own_names import OwnNames, bound_host
from dagster_stack.retention.periods import Periods
from scripts import compose, engine, env_file, images
from scripts.console import ROOT, Failure, done, warn
from scripts.hosts.host import elsewhere, in_all

#: Fewer work, slowly: the tests and figures of this project are from 2.
CORES = 2
#: All containers idle at 2.1 GB; steps and runs come on top.
MEMORY_GB = 4
#: Images, build caches and an empty stack, measured: see docs/operations.md. Later: room for data.
DISK_FIRST_GB = 12
DISK_LATER_GB = 2
#: The first engine that checks health every second while a container starts (`start_interval`).
ENGINE_VERSION = "25.0"
#: The first Compose with optional dependencies and several merges in one mapping.
COMPOSE_VERSION = "2.24"
#: With INTERNAL_TLS=on: the first ones that mount a part of a volume. Earlier ones of Compose mount all of it, silently.
TLS_ENGINE_VERSION = "26.0"
TLS_COMPOSE_VERSION = "2.26"

HIGHEST_PORT = 65535
TAKEN = "taken by another program"
NO_ADDRESS = "not to be had at that address"
PORT_VARIABLES = {
    "DAGIT_PORT": ("Dagit", 3000),
    "RABBITMQ_PORT": ("RabbitMQ's management UI", 15672),
    "MINIO_PORT": ("MinIO's S3", 9000),
    "MINIO_CONSOLE_PORT": ("MinIO's console", 9001),
}
#: Those that are the door's with LOGIN=on.
DOOR_PORTS = ("DAGIT_PORT", "MINIO_PORT")
#: What the engine takes in an image's name, which is stricter than Compose; and characters that were tried.
STACK_NAME = re.compile(r"[a-z0-9]+(?:(?:_|__|-+)[a-z0-9]+)*")
LONGEST_NAME = 100
#: Those of the profiles that may be off.
PROFILE_PORTS = {
    "monitoring": {
        "METRICS_PORT": ("the page of the figures", 9808),
        "FLOWER_PORT": ("Flower", 5555),
        "PROMETHEUS_PORT": ("Prometheus", 9090),
    },
    "grafana": {"GRAFANA_PORT": ("Grafana", 3001)},
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
    """Cores and memory: too little is a warning."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = total_memory_gb()
    return [
        Finding("cores", f"{CORES}", f"{cores}", "all will be slow" if cores < CORES else "", fatal=False),
        Finding(
            "memory",
            f"{MEMORY_GB} GB",
            f"{memory:.1f} GB",
            "containers may be killed: lower WORKERS and RUNNERS in .env" if memory < MEMORY_GB else "",
            fatal=False,
        ),
    ]


def disk() -> list[Finding]:
    """Room where the engine keeps images; less is needed once they are built. Empty for an engine elsewhere."""
    if engine.is_elsewhere():
        return []
    built = env_file.env_path().exists() and all(images.built_from(image) for image in images.wanted())
    required = env_file.number("REQUIRED_DISK_GB", DISK_LATER_GB if built else DISK_FIRST_GB)
    folder = Path(engine.ask("info", "--format", "{{.DockerRootDir}}") or "/var/lib/docker")
    free = free_gb(folder)
    cure = (
        f"make room in {folder}: `docker system df` shows what lies there, `docker builder prune` and"
        " `docker image prune` remove what is unused (REQUIRED_DISK_GB=… asks for less, at your risk)"
    )
    return [Finding("free disk", f"{required} GB", f"{free:.1f} GB", cure if free < required else "")]


def free_gb(folder: Path) -> float:
    """Free room in a folder; in its nearest parent that this user can look at."""
    try:
        return shutil.disk_usage(folder).free / 1e9
    except OSError:
        return free_gb(folder.parent)


def engine_kind() -> list[Finding]:
    """The kind of engine: refuses what does not work, and names what was never tried, before anything starts."""
    info = engine.info()
    security = {option.partition(",")[0] for option in info.get("SecurityOptions") or []}
    kinds = [
        name
        for name, is_so in {
            "rootless": "name=rootless" in security,
            "user namespaces": "name=userns" in security,
            "SELinux": "name=selinux" in security,
            "Docker Desktop": "Docker Desktop" in info.get("OperatingSystem", ""),
            "snap": is_snap(info),
            f"at {engine.endpoint()}": engine.is_elsewhere(),
        }.items()
        if is_so
    ]
    found = f"Docker Engine ({', '.join(kinds)})" if kinds else "Docker Engine"
    required = "Docker's own, for Linux"
    problems = [Finding("engine", required, found, cure) for cure in refused(info)]
    problems += [Finding("engine", required, found, cure, fatal=False) for cure in limited(info)]
    return problems or [Finding("engine", required, found)]


def refused(info: dict[str, Any]) -> list[str]:
    """Why nothing can run on this engine, with the cure."""
    cures = []
    if engine.is_podman():
        cures.append(
            "Podman behind Docker's socket is not supported: it has no BuildKit, and checks containers in its own way."
            " Install Docker Engine, or name it with DOCKER_HOST"
        )
    if info.get("OSType", "linux") != "linux":
        cures.append("its containers are not Linux: switch Docker Desktop to Linux containers")
    if is_snap(info) and not snap_sees(ROOT):
        cures.append(
            f"Docker from a snap sees only files of your home folder, none of {ROOT}: move this checkout there, or"
            " install Docker Engine from your distribution's packages"
        )
    if engine.is_elsewhere() and "grafana" in env_file.profiles():
        cures.append(
            "Grafana's dashboards are files of this checkout, which an engine on another machine can't see: take"
            " grafana out of COMPOSE_PROFILES"
        )
    return cures


def limited(info: dict[str, Any]) -> list[str]:
    """What is missing, or was not tried, with an engine on which the stack starts."""
    cures = []
    missing = {"memory": "MemoryLimit", "the number of processes": "PidsLimit"}
    if unlimited := [what for what, name in missing.items() if info.get(name) is False]:
        cures.append(
            f"it can't limit {' and '.join(unlimited)} of containers (no such cgroup; rootless engines need cgroup 2"
            " and systemd's delegation): a step that takes too much slows or kills the others"
        )
    if "Docker Desktop" in info.get("OperatingSystem", ""):
        cures.append("this stack was not tried on Docker Desktop: please report what does not work")
    return cures


def is_snap(info: dict[str, Any]) -> bool:
    return str(info.get("DockerRootDir", "")).startswith("/var/snap/")


def snap_sees(folder: Path) -> bool:
    """Whether a program of a snap may read a folder: below home, in no folder of it whose name begins with a dot."""
    home = Path.home().resolve()
    return folder.is_relative_to(home) and not str(folder.relative_to(home)).startswith(".")


def compose_files() -> list[Finding]:
    """COMPOSE_FILE of another project, left in the user's shell: its services would be started in place of the stack's."""
    named = env_file.settings().get("COMPOSE_FILE")
    if not named:
        return []
    separator = env_file.settings().get("COMPOSE_PATH_SEPARATOR") or os.pathsep
    own = any((ROOT / name).resolve() == ROOT / "compose.yaml" for name in named.split(separator))
    where = "the environment" if "COMPOSE_FILE" in os.environ else env_file.env_path().name
    cure = (
        ""
        if own
        else f"COMPOSE_FILE in {where} leaves out compose.yaml of this folder: unset it, or add that"
    )
    return [Finding("Compose files", "compose.yaml among them", named, cure)]


def versions(tls: bool = False) -> list[Finding]:
    """Of engine and Compose; `tls` where INTERNAL_TLS is about to be on."""
    tls = tls or env_file.has_internal_tls()
    found = [
        ("Docker engine", TLS_ENGINE_VERSION if tls else ENGINE_VERSION, engine.version()),
        ("Docker Compose", TLS_COMPOSE_VERSION if tls else COMPOSE_VERSION, engine.compose_version()),
    ]
    why = ", as INTERNAL_TLS=on" if tls else ""
    cure = "too old: upgrade it (Debian 12: from the trixie suite; else: https://docs.docker.com/engine/install/)"
    cure += f", or set INTERNAL_TLS=off in {env_file.env_path().name}" if tls else ""
    return [
        Finding(
            subject,
            f"{required} or later{why}",
            version,
            cure if numbers(version) < numbers(required) else "",
        )
        for subject, required, version in found
    ]


def runs_at_once() -> list[Finding]:
    """MAX_CONCURRENT_RUNS against the places of runners: with more, the daemon would not start."""
    runners, each = in_all("RUNNERS"), env_file.number("RUNNER_CONCURRENCY", 4)
    places, wanted = runners * each, env_file.number("MAX_CONCURRENT_RUNS", 0)
    file = env_file.env_path().name
    cure = (
        f"lower it in {file}, or leave it empty; or raise RUNNERS ({runners}) or RUNNER_CONCURRENCY ({each})"
        if wanted > places
        else ""
    )
    found = f"MAX_CONCURRENT_RUNS={wanted}" if wanted else "no limit below that"
    return [Finding("runs at once", f"at most {places}, as runners drive", found, cure)]


def daemons() -> list[Finding]:
    """DAEMONS: without one no run starts. Those of further hosts stand by for one here."""
    found, others = env_file.number("DAEMONS", 1), elsewhere("DAEMONS")
    cure = "" if found else f"set DAEMONS=1 in {env_file.env_path().name}: without a daemon no run starts"
    words = f"{found}, and {others} on further hosts" if others else str(found)
    return [Finding("daemons", "1, or more of which one leads", words, cure)]


def kept() -> list[Finding]:
    """KEEP_DETAILS_DAYS, KEEP_RUNS_DAYS, AUDIT_DAYS: refused as the daemon would refuse them, before anything is started."""
    try:
        periods = Periods.from_environment(env_file.settings())
    except SettingsError as error:
        return [Finding("what is kept", "days", "no number of days", str(error))]
    return [Finding("what is kept", "KEEP_DETAILS_DAYS, KEEP_RUNS_DAYS", str(periods))]


def ports() -> list[Finding]:
    """The addresses that the stack publishes: free, or already its own."""
    settings = env_file.settings()
    bound = settings.get("BIND_ADDRESS") or "127.0.0.1"
    file = env_file.env_path().name
    own, elsewhere = compose.published_ports(), engine.is_elsewhere()
    findings = []
    chosen: dict[int, str] = {}
    # Behind the door the pages of monitoring have no port of their own.
    profiles = () if env_file.has_login() else sorted(env_file.profiles())
    of_profiles = [PROFILE_PORTS.get(profile, {}) for profile in profiles]
    for variable, (subject, default) in ChainMap(*of_profiles[::-1], PORT_VARIABLES).items():
        if is_outside(variable, settings):
            continue
        port = env_file.number(variable, default, HIGHEST_PORT)
        address = "127.0.0.1" if env_file.has_login() and variable not in DOOR_PORTS else bound
        found, cure = "free", ""
        if port in chosen:
            found, cure = (
                "asked for twice",
                f"{chosen[port]} and {variable} are the same: change one in {file}",
            )
        elif port in own:
            found = "this stack's own"
        elif not elsewhere and (problem := bind_problem(address, port)):
            found, cure = problem, f"set {variable} in {file} to a free port"
            if problem == NO_ADDRESS:
                cure = f"BIND_ADDRESS={address} in {file} is no address of this machine: correct it"
        chosen[port] = variable
        findings.append(Finding(f"port {port}", f"free for {subject}", found, cure))
    return findings


def names() -> list[Finding]:
    """The names under which Dagit answers. Where it listens on every address it can't know them: they must be set."""
    settings = env_file.settings()
    file = env_file.env_path().name
    subject, required = "names of Dagit", "host names"
    try:
        own = OwnNames.of("dagit", settings)
    except SettingsError as error:
        return [Finding(subject, required, "what is no name", str(error))]
    found = ", ".join(map(str, sorted(own.public, key=str))) or "none besides this host's own"
    address = settings.get("BIND_ADDRESS") or "127.0.0.1"
    cure = (
        f"Dagit listens on {address} and answers as 127.0.0.1 and localhost alone: set PUBLIC_HOST in {file} to the"
        " name or address by which other machines reach it"
        if not own.public and bound_host(address) is None
        else ""
    )
    return [Finding(subject, required, found, cure, fatal=False)]


def stack_name() -> list[Finding]:
    """COMPOSE_PROJECT_NAME, which is in the names of an image and of all containers."""
    named = compose.project()
    cure = (
        ""
        if STACK_NAME.fullmatch(named) and len(named) <= LONGEST_NAME
        else f"COMPOSE_PROJECT_NAME={named} in {env_file.env_path().name} can't be the name of an image: small letters and"
        f" digits, parted by - or _ (as in data_team-2), at most {LONGEST_NAME} of all"
    )
    return [Finding("this stack's name", "one that images can have", named, cure)]


def keys() -> list[Finding]:
    """The access key of the stack's own S3 store, which is that of no machine's role."""
    settings = env_file.settings()
    if settings.get("S3_ENDPOINT_URL") or settings.get("S3_ACCESS_KEY"):
        return []
    cure = (
        f"set S3_ACCESS_KEY in {env_file.env_path().name} (it came as `dagster`); it may be empty for an outside store"
        " alone (S3_ENDPOINT_URL), on a machine that has a role"
    )
    return [Finding("S3 access key", "one, for the stack's own store", "none", cure)]


def is_outside(variable: str, settings: dict[str, str]) -> bool:
    """Whether the port belongs to a store that is an outside one, so that nothing is published."""
    store = {"RABBITMQ_PORT": "RABBITMQ_HOST", "MINIO_PORT": "S3_ENDPOINT_URL",
             "MINIO_CONSOLE_PORT": "S3_ENDPOINT_URL"}.get(variable)  # fmt: skip
    return bool(store and settings.get(store))


def report(
    findings: list[Finding], unready: str = "This machine is not ready, and nothing was started"
) -> None:
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
        raise Failure(f"{unready}:\n{reasons}")


def bind_problem(address: str, port: int) -> str | None:
    """Why nothing can listen there; None when it can."""
    address = address.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        # As the engine's own proxy binds: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except PermissionError:
            # A low port: not this user's to open, but the engine's.
            return None
        except OSError as error:
            return TAKEN if error.errno == errno.EADDRINUSE else NO_ADDRESS
    return None


def total_memory_gb() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
