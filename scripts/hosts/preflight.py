"""Whether a machine can be a host of this stack: what `make host` requires of it, and what it found."""

import json
import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from scripts import engine, env_file
from scripts.compose import project
from scripts.hosts import file
from scripts.hosts.host import Host, names, wanted
from scripts.hosts.services import SCALES
from scripts.preflight import ENGINE_VERSION, HIGHEST_PORT, NO_ADDRESS, TAKEN, Finding, bind_problem, numbers

#: The image that workers have, measured, and room for what they write.
DISK_GB = 4
#: Seconds that its clock may be off. Each host dates its own events, so a step seems to end before it begins in Dagit; beyond
#: some minutes S3 refuses its requests.
CLOCK_SECS, CLOCK_MOST_SECS = 2, 300
#: Seconds for a connection to a store's port.
CONNECT_SECS = 5
CLUSTER_PORTS = {"CLUSTER_POSTGRES_PORT": ("Postgres", "POSTGRES"), "CLUSTER_AMQP_PORT": ("RabbitMQ", "AMQP"),
                 "CLUSTER_S3_PORT": ("MinIO", "S3")}  # fmt: skip
#: In a container there: free room in kB where the engine keeps images, then each port that does not answer.
PROBE = """
df -kP / | tail -n 1
for place in "$@"; do timeout {secs} bash -c "< /dev/tcp/${place/:/\\/}" 2> /dev/null || echo "closed ${place}"; done
"""


def cluster(own: set[int]) -> list[Finding]:
    """CLUSTER_ADDRESS and its ports, before the stores are published there. `own` are ports that this stack has."""
    settings, name = env_file.settings(), env_file.env_path().name
    address = settings.get("CLUSTER_ADDRESS", "")
    required = "an address of this machine that other hosts reach"
    if not re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", address) or address in ("0.0.0.0", "127.0.0.1"):
        cure = (
            f"set CLUSTER_ADDRESS in {name} to this machine's address in the network of the hosts, such as 10.0.0.1"
            " (`ip -brief address` lists all)"
        )
        return [Finding("cluster address", required, address or "none", cure)]
    findings = []
    for variable, (subject, key) in CLUSTER_PORTS.items():
        port = env_file.number(variable, int(file.PORTS[key]), HIGHEST_PORT)
        problem = None if port in own or engine.is_elsewhere() else bind_problem(address, port)
        cure = (
            f"CLUSTER_ADDRESS={address} in {name} is no address of this machine: correct it"
            if problem == NO_ADDRESS
            else ""
        )
        cure = f"set {variable} in {name} to a free port" if problem == TAKEN else cure
        found = problem or ("this stack's own" if port in own else "free")
        findings.append(Finding(f"port {port} at {address}", f"free for {subject}", found, cure))
    return findings


def host(host: Host) -> list[Finding]:
    """What its engine says of it: kind, version, architecture, clock, cores and memory."""
    began = time.time()
    info: dict[str, Any] = json.loads(host.output(*host.docker("info", "--format", "{{json .}}")))
    ended = time.time()
    place = belonging(host, info)
    return [
        place,
        *([] if place.cure else [stack_of_its_own(host), workers_of_another(host)]),
        *kind(info),
        *clock(info, began, ended),
        *capacity(host, info),
    ]


def belonging(host: Host, info: Mapping[str, Any]) -> Finding:
    """A machine has one place in the stack: under two names each command would replace the containers of the other one."""
    known = {"this machine": engine.info()} | {
        each.name: json.loads(each.output(*each.docker("info", "--format", "{{json .}}")))
        for each in wanted()
        if each.name != host.name
    }
    # Machines that are copies of one disk have the same id, yet names of their own.
    same = next((name for name, other in known.items() if identity(other) == identity(info)), "")
    cure = f"{host.engine} leads to the engine of {same}: add a machine that has no place in the stack yet"
    return Finding("its place", "none yet", f"that of {same}" if same else "none yet", cure if same else "")


def stack_of_its_own(host: Host) -> Finding:
    """Compose there would remove a stack's other services as left over, if it has this one's name."""
    others = sorted({each.service for each in host.containers()} - SCALES.keys())
    cure = f"it has this one's name: COMPOSE_PROJECT_NAME in its .env makes it another one, after `make down` there ({', '.join(others)})"
    found = f"a stack of {len(others)} services" if others else "none"
    return Finding("another stack", f"none that is named {project()}", found, cure if others else "")


def workers_of_another(host: Host) -> Finding:
    """Two stacks by one name would replace each other's workers there, at each command anew: both see them as their own."""
    there = [] if host.name in names() else [each.name for each in host.containers()]
    entries = [
        entry.partition(":")
        for each in (host.inspected(there) if there else [])
        for entry in each["HostConfig"]["ExtraHosts"] or []
    ]
    # What workers reach the stores by; what this stack's own have left when they could not be told to end is no other's.
    others = {address for name, _, address in entries if name == "postgres"}
    others -= {env_file.settings().get("CLUSTER_ADDRESS", "")}
    found = f"of the stack at {', '.join(sorted(others))}" if others else "none"
    cure = (
        f"that stack has this one's name, {project()}: shut {host.name} out there (`make host REMOVE=…`), or take another"
        " machine. One machine can serve two stacks whose COMPOSE_PROJECT_NAME differs"
    )
    return Finding("workers", "none of another stack by this name", found, cure if others else "")


def identity(info: Mapping[str, Any]) -> tuple[Any, Any]:
    return info.get("ID"), info.get("Name")


def kind(info: Mapping[str, Any]) -> list[Finding]:
    version, here = str(info.get("ServerVersion", "")), engine.info()
    machine, required = (
        f"{info.get('OSType')} {info.get('Architecture')}",
        f"linux {here.get('Architecture')}",
    )
    old = "too old: upgrade it there" if numbers(version) < numbers(ENGINE_VERSION) else ""
    other = (
        "the image of this machine can't run there: take a machine of the same kind"
        if machine != required
        else ""
    )
    unlimited = info.get("MemoryLimit") is False or info.get("PidsLimit") is False
    limits = (
        "it can't limit memory or processes: a step that takes too much slows or kills others"
        if unlimited
        else ""
    )
    return [
        Finding("engine", f"{ENGINE_VERSION} or later", version, old),
        Finding("machine", required, machine, other),
        Finding("limits", "memory and processes", "missing" if limits else "both", limits, fatal=False),
    ]


def clock(info: Mapping[str, Any], began: float, ended: float) -> list[Finding]:
    """The engine's clock was read at some moment between the two: what is surely off counts."""
    read = parsed(str(info.get("SystemTime", "")))
    if read is None:
        return []
    off = max(began - read, read - ended, 0)
    cure = f"let it follow a time server (chrony, systemd-timesyncd): beyond {CLOCK_SECS} s Dagit shows events in the wrong order"
    if off > CLOCK_MOST_SECS:
        cure += ", and S3 refuses its requests"
    return [
        Finding(
            "clock",
            f"at most {CLOCK_SECS} s off",
            f"{off:.1f} s",
            cure if off > CLOCK_SECS else "",
            off > CLOCK_MOST_SECS,
        )
    ]


def parsed(text: str) -> float | None:
    """A moment as the engine writes it, with nine digits of a second."""
    try:
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp()
    except ValueError:
        return None


def capacity(host: Host, info: Mapping[str, Any]) -> list[Finding]:
    """Workers there, against its cores and memory: too little is a warning."""
    cores, memory = int(info.get("NCPU") or 0), float(info.get("MemTotal") or 0) / 1e9
    slow = "workers there will be slow: lower WORKERS in " + host.file.name if cores < 1 else ""
    return [
        Finding("cores", "1", str(cores), slow, fatal=False),
        Finding(
            "memory", "1 GB", f"{memory:.1f} GB", "workers may be killed" if memory < 1 else "", fatal=False
        ),
    ]


def inside(host: Host, image: str, places: Mapping[str, str]) -> list[Finding]:
    """What a container there finds: room on its disk, and the stores' ports, by their titles."""
    script = PROBE.replace("{secs}", str(CONNECT_SECS))
    shell = ("run", "--rm", "--entrypoint", "bash", image, "-c", script, "probe", *places.values())
    first, *closed = host.output(*host.docker(*shell)).splitlines()
    free = int(first.split()[3]) * 1024 / 1e9
    full = (
        f"make room there: `docker -H {host.engine} system df` shows what lies there"
        if free < DISK_GB
        else ""
    )
    findings = [Finding("free disk", f"{DISK_GB} GB", f"{free:.1f} GB", full)]
    for title, place in places.items():
        shut = f"closed {place}" in closed
        cure = "let the firewalls of both machines pass it, and what is between them" if shut else ""
        findings.append(Finding(title, f"reached at {place}", "no answer" if shut else "it answers", cure))
    return findings
