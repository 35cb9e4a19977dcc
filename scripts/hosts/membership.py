"""`make host ADD=ssh://user@box2`: a machine joins, by its engine's own remote access; `make host REMOVE=box2` shuts it out.

Killed at any point, the same command again completes it.
"""

import os
import signal
from urllib.parse import urlsplit

from scripts import (
    certificates,
    compose,
    deploy,
    env_file,
    images,
    preflight,
    store_logins,
    turns,
    unfinished,
    up,
)
from scripts.connections import require_connections
from scripts.console import Failure, attended, confirm, done, main, say, warn
from scripts.hosts import file, logins, services
from scripts.hosts import images as transfer
from scripts.hosts import preflight as host_preflight
from scripts.hosts.host import (
    ENGINE,
    NAME,
    RESERVED,
    SETTING,
    SKIP,
    Host,
    named,
    names,
    require_reachable,
    unreachable,
)

USAGE = "make host ADD=ssh://user@box2 [NAME=box2], or make host REMOVE=box2 (`make hosts` lists them)"
#: In place of an address: people there start its workers.
BY_HAND = "by-hand"


def membership() -> None:
    compose.require_env_file()
    unfinished.require_none()
    env_file.require_clear()
    added, removed = os.environ.get("ADD", ""), os.environ.get("REMOVE", "")
    if bool(added) == bool(removed):
        raise Failure(f"Which host? {USAGE}")
    # `kill` ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if added:
        add(added)
    else:
        remove(named(removed))


# --- a host joins --------------------------------------------------------------------------------------


def add(address: str) -> None:
    by_hand = address == BY_HAND
    host = Host(chosen_name(address), "" if by_hand else address)
    require_same(host.name, host.address)
    require_reachable()
    say(f"Looking at {host.name}")
    ports = compose.published_ports()
    findings = [*preflight.versions(tls=True), *host_preflight.cluster(ports)]
    if not by_hand:
        if problem := unreachable(address):
            raise Failure(
                f"No engine answers at {address}: {problem}\n  `docker -H {address} version` must work for this user without a"
                " question: an ssh key there, its host key known here, its user in the group docker."
            )
        findings += host_preflight.host(host)
    unready = f"{host.name} can't join like this, and nothing was changed"
    preflight.report(findings, unready)
    if not up.is_up(with_images=False):
        raise Failure("Not all services are up and healthy with the settings of .env: `make up` first.")
    if not by_hand:
        base = tagged(env_file.settings()["BASE_IMAGE"])
        # Its layers are Dagster's lowest ones, too.
        transfer.ship(host, base)
        preflight.report(host_preflight.inside(host, base, {}), unready)
        transfer.ship(host, services.image())
    join(host)
    certificates.record()
    images.ensure_only("certificates")
    certificates.issue()
    file.write(host, host.engine)
    require_connections(env_file.number("WORKERS", 2))
    publish(host)
    if by_hand:
        logins.ensure()
        by_hand_now(host)
        return
    # From inside a container there, as its workers will.
    preflight.report(
        host_preflight.inside(host, services.image(), places()),
        f"{host.name} can't reach the stores: the same command again completes it, `make host REMOVE={host.name}` undoes it",
    )
    os.environ.pop(SKIP, None)
    services.start()
    done(
        f"{host.name} has joined: `make scale N=8 ON={host.name}` sets its workers, {host.file.name} the rest"
    )


def chosen_name(address: str) -> str:
    """NAME, or what the address says; raises Failure for one that can't be in names of logins and files."""
    name = os.environ.get("NAME") or (first_label(address) if "://" in address else address)
    if address == BY_HAND and not os.environ.get("NAME"):
        raise Failure(f"make host ADD={BY_HAND} NAME=box2: it needs a name.")
    if not NAME.fullmatch(name) or name in RESERVED or name.startswith("s3"):
        raise Failure(
            f"{name or address} can't be a host's name here: NAME=box2, of small letters, digits and dashes, at most 30."
        )
    return name


def first_label(address: str) -> str:
    """`box2` of ssh://me@box2.example.com; an address in numbers as it is."""
    host = urlsplit(address).hostname or ""
    return host if host.replace(".", "").isdecimal() else host.partition(".")[0]


def require_same(name: str, engine: str) -> None:
    """Raises Failure when another machine has joined by this name: nobody would look after its workers any more."""
    host = Host(name)
    if name in names() and host.engine != engine:
        raise Failure(
            f"{name} has joined already, {f'at {host.engine}' if host.engine else 'by hand'}. Another machine needs another name: NAME=box3."
            f"\n  The same machine by another way: write that as {ENGINE} into {host.file.name}, then `make up`."
        )


def tagged(image: str) -> str:
    return image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"


def join(host: Host) -> None:
    """Note it in `.env`; the stores take clients with TLS alone from now on."""
    if not env_file.has_internal_tls():
        env_file.set_value(certificates.INTERNAL, "on")
        done(
            f"{certificates.INTERNAL}=on in {env_file.env_path().name}: from now on the stores need TLS, on this host too"
        )
    if host.name not in names():
        env_file.set_value(SETTING, ",".join([*names(), host.name]))


def publish(host: Host) -> None:
    """Have the first host's services as `.env` has them now: with the first host that joins the stores are published."""
    os.environ[SKIP] = ",".join({*filter(None, os.environ.get(SKIP, "").split(",")), host.name})
    services.count()
    if up.is_up(with_images=False):
        return
    how, minutes = deploy.wanted()
    say("All services are swapped once, since the stores are reached by TLS now, and at CLUSTER_ADDRESS")
    with deploy.queue_stopped():
        deploy.settle_runs(how, minutes)
    deploy.swap()


def places() -> dict[str, str]:
    """Where the stack's own stores are reached, by what they are."""
    settings = env_file.settings()
    own = logins.own_stores()
    ports = {"postgres": "POSTGRES", "rabbitmq": "AMQP", "s3": "S3"}
    return {
        store_logins.STORES[store].title: f"{settings['CLUSTER_ADDRESS']}:"
        f"{settings.get(f'CLUSTER_{key}_PORT') or file.PORTS[key]}"
        for store, key in ports.items()
        if store in own
    }


def by_hand_now(host: Host) -> None:
    image = services.image()
    say(f"""
  {host.name} may join now. On it, in a checkout of this commit, with {host.file.name} of this folder brought there:

    docker load < image.tar       # here: docker save {image} > image.tar
    {by_hand_there(host)} up -d

  After each `make deploy` it needs the new image, after `make rotate` the new file.""")


def by_hand_there(host: Host) -> str:
    return f"docker compose --env-file {host.file.name} -f compose.worker.yaml"


# --- a host leaves -------------------------------------------------------------------------------------


def remove(host: Host) -> None:
    """Its workers end, its logins are closed and their connections cut; also where it can't be reached."""
    if attended() and not os.environ.get("FORCE") and not confirm(f"Shut {host.name} out?"):
        raise Failure("Not wanted.")
    # Its file, which says so, goes.
    is_by_hand = not host.engine
    if host.engine and host.name not in os.environ.get(SKIP, "").split(","):
        if problem := host.problem():
            warn(f"{host.name} can't be reached ({problem}), so nothing ends there: it is shut out")
        elif host.file.exists():
            services.stop(host)
            done(f"{host.name}: its workers have ended, and given back what they had")
    os.environ[SKIP] = ",".join(each for each in os.environ.get(SKIP, "").split(",") if each != host.name)
    # From here on a repetition, or `make up`, completes it: its file goes last.
    env_file.set_value(SETTING, ",".join(name for name in names() if name != host.name))
    services.count()
    if not are_stores_up():
        warn(f"the stores are down: `make up`, or a restore, closes the logins of {host.name}")
        return
    logins.close_shut_out()
    if not up.is_up(with_images=False):
        why = "there are fewer runners or daemons" if names() else "the stores are published no more"
        say(f"All services are swapped once, since {why}")
        how, minutes = deploy.wanted()
        with deploy.queue_stopped():
            deploy.settle_runs(how, minutes)
        deploy.swap()
    done(f"{host.name} is shut out: no store takes its logins")
    if is_by_hand:
        say(
            f"  Its workers go on there, and reach nothing, until its people end them: {by_hand_there(host)} down"
        )


def are_stores_up() -> bool:
    """Whether all of the stack's own are, so that logins can be closed."""
    running = {each.service for each in compose.containers() if each.state == "running"}
    return {logins.SERVICES[store] for store in logins.own_stores()} <= running


if __name__ == "__main__":
    main(turns.alone(membership, "host"))
