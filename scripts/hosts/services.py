"""What runs on further hosts: brought to the first host's image and settings, beside its own services."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scripts import base_image, env_file, images, standstill
from scripts.console import ROOT, Failure, Progress, done, warn
from scripts.hosts import file, logins
from scripts.hosts import images as transfer
from scripts.hosts.host import (
    SETTING,
    Host,
    by_engine,
    elsewhere,
    in_all,
    joined,
    number,
    require_reachable,
    shut_out,
    skipped,
    together,
    wanted,
)

#: Services there, and the setting of a host's file that says how many.
SCALES = {"worker": "WORKERS", "worker-heavy": "HEAVY_WORKERS", "runner": "RUNNERS", "daemon": "DAEMONS"}
#: Settings that count those of all hosts, and where `.env` has the sum while further hosts have any.
IN_ALL = {"RUNNERS": "RUNNERS_IN_ALL", "DAEMONS": "DAEMONS_IN_ALL"}
UP = ("--progress", "plain", "up", "--detach", "--remove-orphans")
#: Seconds until all of a host must be healthy.
HEALTHY_SECS = 240
LOG_LINES = 25


def prepare() -> None:
    """Raises Failure where a host that is to be looked after can't be reached."""
    count()
    if not joined():
        return
    if not env_file.has_internal_tls():
        raise Failure(
            f"{SETTING} in {env_file.env_path().name} has hosts, which reach the stores by TLS alone: INTERNAL_TLS=on there."
        )
    found = require_reachable()
    if found:
        done(f"hosts that answer: {together(found)}")
    if left := skipped():
        warn(
            f"without {', '.join(sorted(left))}, as SKIP says: `make up` looks after them when they are back"
        )


def count() -> None:
    """Tell the run queue how many runners there are in all, and daemons whether one of several leads."""
    for setting, noted in IN_ALL.items():
        number_in_all = str(in_all(setting)) if elsewhere(setting) else ""
        if env_file.settings().get(noted, "") != number_in_all:
            env_file.set_value(noted, number_in_all)


def bring() -> None:
    """Their files as `.env` has it, and the image that Dagster's name has here, while all goes on. Certificates must have been
    issued."""
    for host in joined():
        file.write(host)
    for host in wanted():
        transfer.ship(host, image())


def image() -> str:
    return f"{images.dagster().name}:latest"


# --- what runs there -----------------------------------------------------------------------------------


def are_up(with_images: bool = True) -> bool:
    """Whether all that a command looks after have what they should have, and it is well; and no other one has logins."""
    return not shut_out() and all(is_up(host, with_images) for host in wanted())


def is_up(host: Host, with_images: bool = True) -> bool:
    found = host.containers()
    scales = {service: number(host, setting, int(file.OWN[setting])) for service, setting in SCALES.items()}
    if {service: sum(each.service == service for each in found) for service in SCALES} != scales:
        return False
    if not all(each.is_well for each in found):
        return False
    hashes = host.config_hashes()
    wanted_id = base_image.image_id(image())
    return all(
        each["Config"]["Labels"]["com.docker.compose.config-hash"]
        == hashes.get(each["Config"]["Labels"]["com.docker.compose.service"])
        and (not with_images or each["Image"] == wanted_id)
        for each in (host.inspected([each.name for each in found]) if found else [])
    )


@contextmanager
def swapping() -> Iterator[None]:
    """All hosts get the new image and settings while the body swaps the first host's services. The stores must be up."""
    hosts = wanted()
    if joined():
        logins.ensure()
    started = begin(hosts)
    try:
        yield
    except BaseException:
        for process in started.values():
            process.communicate()
        raise
    end(started)
    if joined() or shut_out():
        logins.close_shut_out()


def start() -> None:
    """Bring all hosts to what they should have, once the first host's services are up."""
    with swapping():
        pass


def begin(hosts: Sequence[Host]) -> dict[Host, "subprocess.Popen[str]"]:
    """Start Compose for each of them, side by side."""
    return {
        host: subprocess.Popen(
            host.compose(*UP), cwd=ROOT, env=host.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for host in hosts
    }  # fmt: skip


def end(started: dict[Host, "subprocess.Popen[str]"]) -> None:
    """Wait until all of them are healthy; raises Failure that says what went wrong where."""
    if not started:
        return
    hosts = list(started)
    with Progress(f"Starting workers on {together(hosts)}"):
        said = {host: process.communicate()[0] for host, process in started.items()}
    failed = {host: said[host] for host, process in started.items() if process.returncode}
    if failed:
        lines = "\n".join(f"{host.name}: {text.strip()[-1500:]}" for host, text in failed.items())
        raise Failure(f"Workers of further hosts could not be started; `make up` tries it again.\n{lines}")
    began = time.monotonic()
    for host in hosts:
        wait_until_healthy(host)
        transfer.remove_unused(host)
    done(f"workers on {together(hosts)} are healthy ({time.monotonic() - began:.0f} s)")


def wait_until_healthy(host: Host) -> None:
    """Raises Failure with the log of one that is not well."""
    deadline = time.monotonic() + HEALTHY_SECS
    with Progress(f"Waiting until all of {host.name} is healthy") as progress:
        while unwell := [each for each in host.containers() if not each.is_well]:
            progress.at(", ".join(f"{each.service} {each.condition}" for each in unwell))
            if time.monotonic() > deadline or any(each.state in ("exited", "dead") for each in unwell):
                break
            time.sleep(0.5)
    if unwell:
        service = unwell[0].service
        log = host.output(
            *host.compose("logs", "--no-color", "--no-log-prefix", "--tail", str(LOG_LINES), service)
        )
        raise Failure(
            f"{service} on {host.name} is not well ({unwell[0].condition}). The end of its log:\n\n{log}"
        )


def stop_old_daemons() -> None:
    """Stop those of hosts that are to get another image or other settings: else they lead while the first host's are swapped."""
    standstill.begin("daemon".__eq__, [host for host in wanted() if not is_up(host)])


def stop(host: Host, with_data: bool = False) -> None:
    """End all of the stack there; its images stay."""
    volumes = ["--volumes"] if with_data else []
    host.output(*host.compose("--progress", "plain", "down", "--remove-orphans", *volumes))


def stop_all(with_data: bool = False) -> None:
    """For `make down` and `make clean`: one that does not answer is named."""
    for host in by_engine():
        if host.name in skipped():
            continue
        if problem := host.problem():
            warn(f"{host.name} can't be reached, so its workers go on, and find no stores: {problem}")
            continue
        stop(host, with_data)
        done(f"{host.name}: nothing of the stack runs")
