"""`make up`: from whatever there is to a healthy stack, and where to look then."""

import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from dagster_stack.project import DEFAULT
from dagster_stack.retention.periods import Periods
from scripts import (
    backups,
    base_image,
    certificates,
    code_check,
    code_location,
    code_versions,
    compose,
    data_folder,
    engine,
    env_file,
    images,
    login,
    preflight,
    proxies,
    schema,
    store_logins,
    store_volumes,
    turns,
    unfinished,
    variables,
)
from scripts import project as user_project
from scripts.autoscaling import limits
from scripts.connections import require_connections
from scripts.console import ROOT, Failure, Progress, attended, confirm, done, main, run_logged, say, warn
from scripts.hosts import services as hosts

#: Seconds until every service must be healthy; 20 is usual with warm images.
HEALTHY_TIMEOUT_SECS = 240
#: Services that are there or not by `.env`: an outside store can replace them, or BACKUP is off.
SWITCHED = {*env_file.STORES, "backup"}
REMOVE = ("--progress", "plain", "--profile", "*", "rm", "--stop", "--force")
UP = ("--progress", "plain", "up", "--detach", "--remove-orphans")
POSTGRES = ("--progress", "plain", "up", "--detach", "--wait", "postgres")
UNTOUCHED = "Nothing was started or changed."
#: Lines of an unhealthy service's log that are printed.
LOG_LINES = 25


def up() -> None:
    unfinished.require_none()
    prepare()
    code_versions.keep_running()
    with images.kept_on_failure(UNTOUCHED):
        say("Building images")
        images.ensure()
        certificates.issue()
        hosts.bring()
        code = "" if is_up() else code_check.check()
        if code:
            agree_to_leave_rollback(code)
            store_volumes.require_openable()
            if migration := schema.required(start_postgres):
                migration.run(code)
            code_versions.keep(images.dagster_id(), code)
        code_versions.forget_rollback()
    say("Starting")
    start()
    finish()


def finish() -> None:
    """What there is to do and to say once all services are up."""
    close_former_logins()
    if env_file.has_login():
        login.ask_issuer()
    backups.keep()
    # Before the user is told what to do next.
    check_code_location()
    addresses()


def agree_to_leave_rollback(code: str) -> None:
    """Say that a rollback ends with this, and ask on a terminal: whoever changed a setting may not expect it."""
    back = code_versions.rolled_back()
    if not back or back == images.dagster_id():
        return
    former = code_versions.code_of(back)
    warn(f"the stack was rolled back to code {former}: it gets the checkout's again, {code}")
    if attended() and not confirm("Start the checkout's code?"):
        raise Failure(f"`make rollback TO={former}` brings new settings to the code that runs.")


def prepare() -> None:
    """Make all that images and containers need: engine, settings, base image."""
    say("Looking at this machine")
    preflight.report(preflight.machine())
    env_file.require_clear()
    engine.ensure()
    preflight.report([*preflight.engine_kind(), *preflight.compose_files()])
    preflight.report([*preflight.versions(), *preflight.disk()])
    env_file.complete()
    env_file.complete_profiles()
    preflight.report([*preflight.stack_name(), *login.findings(), *certificates.findings()])
    login.derive()
    compose.require_own_project()
    hosts.prepare()
    certificates.record()
    proxies.record()
    variables.record()
    if "grafana" in env_file.profiles():
        make_readable(ROOT / "docker" / "grafana")
    require_connections(env_file.number("WORKERS", 2))
    preflight.report(
        [
            *preflight.runs_at_once(),
            *preflight.daemons(),
            *preflight.kept(),
            *preflight.ports(),
            *preflight.names(),
            *preflight.keys(),
            *data_folder.findings(),
            *backups.findings(),
        ]
    )
    base_image.ensure()
    data_folder.ensure()
    backups.ensure()


def make_readable(folder: Path) -> None:
    """Let every user read a folder that is mounted into a container, where it was made under a umask that forbids it."""
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        if missing := (0o555 if path.is_dir() else 0o444) & ~mode:
            path.chmod(mode | missing)


def check_code_location() -> None:
    """Raise Failure when Dagit, where it can be asked from here, can't load the code. The door, by which it is asked, gets its
    certificate before."""
    if env_file.has_login():
        login.hand_over_certificate()
    if not engine.is_elsewhere():
        if env_file.has_login():
            code_location.check(local_url("https"), login.opener())
        else:
            code_location.check(local_url("http"))


def start() -> None:
    """Start what is not up, and wait until all is healthy; raises Failure with the log of what is not."""
    if is_up():
        done("all services are up and healthy, with these images and settings: nothing to do")
        return
    started = time.monotonic()
    remove_unwanted()
    remove_abandoned()
    hosts.stop_old_daemons()
    run("Starting the services", UP)
    wait_until_healthy()
    hosts.start()
    done(f"all services are healthy ({time.monotonic() - started:.0f} s)")


def close_former_logins() -> None:
    """Complete what `make rotate` has begun; raises Failure while a service may still have a former login."""
    if not store_logins.former():
        return
    # Not by what was just started alone: `.env` may have got new ones meanwhile.
    if not is_up(with_images=False):
        raise Failure(
            f"Not all services have the logins that {env_file.env_path().name} names, so the former ones stay open:"
            " `make up` completes it."
        )
    store_logins.close_former()


def run(title: str, command: Sequence[str]) -> None:
    """Let Compose change the containers; raises Failure with the log of one that ended, else with Compose's words."""
    try:
        run_logged(title, [*compose.compose(), *command], detail=Awaited())
    except Failure as failure:
        # A one-shot or a store that others wait for: its own words say more than Compose's.
        unwell = [container for container in compose.containers() if container.exit_code]
        raise unwell_failure(unwell[0]) if unwell else Failure(f"{failure}{cure(str(failure))}") from None


def start_postgres() -> None:
    run("Starting Postgres, to ask for its schema", POSTGRES)


def start_made() -> None:
    """Start all containers that stand, but those that have done their part: Compose would have them run once more."""
    still = [
        each
        for each in compose.containers()
        if each.state in compose.STANDING and each.service not in compose.ONE_SHOTS
    ]
    # One call for all would start them one after the other.
    started = [
        subprocess.Popen(
            [engine.docker(), "start", each.name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for each in still
    ]
    said = [process.communicate()[1].strip() for process in started]
    if errors := [text for text, process in zip(said, started, strict=True) if process.returncode]:
        raise Failure("\n".join([*errors, "`make up` tries it again."]))


class Awaited:
    """What Compose does now, from the lines that it prints; these need not be in the order of events."""

    def __init__(self) -> None:
        self._containers: set[str] = set()

    def __call__(self, line: str) -> str:
        if found := re.fullmatch(r"Container (\S+)\s+(\w+)", line):
            container, condition = found.groups()
            (self._containers.add if condition == "Waiting" else self._containers.discard)(container)
        return f"waiting for {', '.join(sorted(self._containers))}" if self._containers else line


def cure(log: str) -> str:
    """What to do about a start that failed, where Compose says why."""
    if "IPv4 address pool" in log or "Pool overlaps" in log:
        return (
            "\n\nThe engine has no addresses left for the stack's networks. `docker network ls` lists all"
            " (`docker network prune` removes unused ones); default-address-pools in /etc/docker/daemon.json"
            " gives it more, where a VPN takes the usual ones as well."
        )
    return ""


def remove_unwanted() -> None:
    """Remove the containers of what .env has switched off, or replaced by outside stores: to Compose they are no orphans."""
    unwanted = sorted(
        {container.service for container in compose.containers()} & SWITCHED - started_services()
    )
    if unwanted:
        title = f"Removing the containers of {', '.join(unwanted)}: not of the stack by .env, data stays"
        run_logged(title, [*compose.compose(), *REMOVE, *unwanted])


def remove_abandoned() -> None:
    """Remove what an interrupted `up` or deploy left half made: Compose would fail, since its name is taken."""
    if found := [container.name for container in compose.containers() if container.is_abandoned]:
        engine.ask("rm", "--force", *found)


def is_up(with_images: bool = True) -> bool:
    """Whether every container runs well with the settings and image, or with the settings alone, that it would get now."""
    hashes = compose.config_hashes()
    found = compose.containers()
    wanted = wanted_scales()
    missing = started_services() - {container.service for container in found}
    if any(wanted.get(service, 1) for service in missing):
        return False
    if not all(container.is_well for container in found):
        return False
    template = (
        '{{index .Config.Labels "com.docker.compose.service"}} '
        '{{index .Config.Labels "com.docker.compose.config-hash"}} {{.Image}} {{.Config.Image}}'
    )
    command = [engine.docker(), "inspect", "--format", template, *(container.name for container in found)]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    scales = {service: sum(c.service == service for c in found) for service in hashes}
    return (
        len(lines) == len(found)
        and all(is_current(line.split(), hashes, with_images) for line in lines)
        and all(scales.get(service, number) == number for service, number in wanted.items())
        and hosts.are_up(with_images)
    )


def is_current(fields: list[str], hashes: dict[str, str], with_images: bool = True) -> bool:
    service, config_hash, image_id, image = fields
    return hashes.get(service) == config_hash and (not with_images or base_image.image_id(image) == image_id)


def started_services() -> set[str]:
    """The services of the active profiles."""
    return set(compose.output("config", "--services").split())


def wanted_scales() -> dict[str, int]:
    return {
        **{each.service: env_file.number(each.variable, 1) for each in limits.configured()},
        "daemon": env_file.number("DAEMONS", 1),
        "runner": env_file.number("RUNNERS", 2),
        "worker": env_file.number("WORKERS", 2),
        "worker-heavy": env_file.number("HEAVY_WORKERS", 1),
    }


def wait_until_healthy(*services: str) -> None:
    """Wait for these services, or for all; raises Failure with the log of one that is not well."""
    deadline = time.monotonic() + HEALTHY_TIMEOUT_SECS
    with Progress("Waiting until all is healthy") as progress:
        while True:
            found = [each for each in compose.containers() if not services or each.service in services]
            unwell = [container for container in found if not container.is_well]
            if not unwell:
                return
            progress.at(", ".join(f"{container.service} {container.condition}" for container in unwell))
            ended = [container for container in unwell if container.state in ("exited", "dead")]
            if ended or time.monotonic() > deadline:
                break
            time.sleep(0.5)
    raise unwell_failure((ended or unwell)[0])


def unwell_failure(container: compose.Container) -> Failure:
    """What is wrong with a container, with the end of its log."""
    log = compose.output("logs", "--no-color", "--no-log-prefix", "--tail", str(LOG_LINES), container.service)
    return Failure(
        f"{container.service} is not well ({container.condition}). The end of its log"
        f" (all of it: docker compose logs {container.service}):\n\n{log}"
    )


def local_url(scheme: str) -> str:
    """Where Dagit, or the door before it, is reached from here."""
    return f"{scheme}://{host()}:{env_file.settings().get('DAGIT_PORT') or 3000}"


def host() -> str:
    """The host in the pages' addresses: where they are bound, this very host where that is everywhere."""
    address = (env_file.settings().get("BIND_ADDRESS") or "127.0.0.1").strip("[]")
    if address in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{address}]" if ":" in address else address


def addresses() -> None:
    """Where to look, and what to do next."""
    settings = env_file.settings()
    name = env_file.env_path().name
    here = host()
    if env_file.has_login():
        here = "127.0.0.1"
        rows = [("Dagit", settings["DOOR_URL"], f"user {login.ADMIN}, DOOR_ADMIN_PASSWORD in {name}")]
    else:
        rows = [("Dagit", local_url("http"), "")]
    if not settings.get("RABBITMQ_HOST"):
        port = settings.get("RABBITMQ_PORT") or 15672
        rows.append(("RabbitMQ", f"http://{here}:{port}", f"user admin, RABBITMQ_ADMIN_PASSWORD in {name}"))
    if not settings.get("S3_ENDPOINT_URL"):
        port = settings.get("MINIO_CONSOLE_PORT") or 9001
        scheme = "https" if env_file.has_internal_tls() else "http"
        rows.append(("MinIO", f"{scheme}://{here}:{port}", f"user root, MINIO_ROOT_PASSWORD in {name}"))
    if env_file.has_login():
        rows += [(title, f"{settings['DOOR_URL']}/{path}", "") for title, path in pages_behind_door()]
    elif "monitoring" in env_file.profiles():
        port = settings.get("METRICS_PORT") or 9808
        rows.append(("Figures", f"http://{host()}:{port}", "`make status` has them too"))
        port = settings.get("FLOWER_PORT") or 5555
        rows.append(("Flower", f"http://{host()}:{port}", f"user admin, FLOWER_PASSWORD in {name}"))
        port = settings.get("PROMETHEUS_PORT") or 9090
        rows.append(("Prometheus", f"http://{host()}:{port}/classic/alerts", ""))
    if "grafana" in env_file.profiles() and not env_file.has_login():
        port = settings.get("GRAFANA_PORT") or 3001
        rows.append(("Grafana", f"http://{host()}:{port}", f"user admin, GRAFANA_PASSWORD in {name}"))
    say("")
    for title, address, note in rows:
        say(f"  {title:<10} {address:<24} {note}".rstrip())
    if env_file.has_login():
        say("  `make user NAME=ana ROLE=operator` adds a user, `make users` lists them.")
    say(
        f"\n  {Periods.from_environment(settings)}; `make retention DRY_RUN=1` says what would go (KEEP_*_DAYS in {name})."
    )
    is_example = user_project.folder() == ROOT / DEFAULT
    flights = "`make demo` runs 336,776 flights through it"
    own = "`make run JOB=…` or Dagit launches a job, `make project` lists yours"
    say(f"\n  Next: {flights if is_example else own}; `make help` lists the rest.")


def pages_behind_door() -> list[tuple[str, str]]:
    """Those of the profiles that are on, by their titles; and the page that lists them."""
    monitoring = [("Figures", "figures/"), ("Flower", "flower/"), ("Prometheus", "prometheus/classic/alerts")]
    return [
        ("Log out", "door/"),
        *(monitoring if "monitoring" in env_file.profiles() else []),
        *([("Grafana", "grafana/")] if "grafana" in env_file.profiles() else []),
    ]


if __name__ == "__main__":
    main(turns.alone(up))
