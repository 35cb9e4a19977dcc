"""`make upgrade`: newer packages, Python's and Debian's, on a stack that runs; no run fails and no step is lost.

It says what is newer, old → new, and asks on a terminal. Then it writes new lock files and builds the images while
everything runs on. A backup is made, the stores are swapped one after the other under load, then Dagster as by `make deploy`.
Until the first store is swapped, whatever goes wrong leaves all as it was. Killed at any point, the same command again goes on.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from dagster_stack.packages import locks
from scripts import (
    backups,
    base_image,
    certificates,
    code_check,
    code_versions,
    compose,
    deploy,
    engine,
    env_file,
    image_packages,
    images,
    lock,
    restore_point,
    schema,
    store_volumes,
    turns,
    unfinished,
    up,
)
from scripts.console import Failure, Progress, attended, confirm, done, main, say, warn
from scripts.hosts import services as hosts
from scripts.image_packages import DEBIAN, PYTHON, STATUS, Change, Packages

#: What WHAT may be: which packages get newer.
WHAT = ("all", "python", "debian")
UNTOUCHED = "Nothing was upgraded: the stack goes on as it was."
HALF = "Dagster goes on as it was: `make upgrade` completes it."
BRING_UP = ("--progress", "plain", "up", "--detach", "--wait")


def upgrade() -> None:
    compose.require_env_file()
    unfinished.require_none()
    how, minutes = deploy.wanted()
    what = wanted()
    # `kill` ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if is_dry_run():
        engine.ensure()
    else:
        up.prepare()
    require_stack()
    before, after, behind = look(what)
    changed = image_packages.changes(before, after)
    tell(changed, before)
    if is_dry_run():
        say("  DRY_RUN=1: nothing was changed.")
        return
    agree(changed, deploy.WAYS[how].format(minutes=minutes))
    code_versions.keep_running()
    # Those whose swap was killed: steps wait for them, and a backup needs them all.
    bring_up(store_volumes.unwell(), "Starting")
    base = env_file.settings()["BASE_IMAGE"]
    names = image_ids()
    with images.kept_on_failure(UNTOUCHED, {base: base_image.image_id(base), **names}), new_locks(what):
        say("Building images")
        if base in behind:
            base_image.renew()
        images.ensure(behind)
        certificates.issue()
        hosts.bring()
        if up.is_up():
            code_versions.forget_rollback()
            up.close_former_logins()
            done("all services run with these packages, this code and these settings: nothing to upgrade")
            return
        tell_more(changed, before)
        code_versions.warn_of_rollback()
        old, new = deploy.running_code(), code_check.check()
        store_volumes.require_openable()
        migration = schema.required(up.start_postgres)
        if store_volumes.outdated() and not migration:
            back_up()
    dagster = {images.dagster().name: names[images.dagster().name]}
    with images.kept_on_failure(HALF, dagster), deploy.queue_stopped():
        # A run that is launched while RabbitMQ is away would be sent again only once the daemon is back.
        bring_up(store_volumes.outdated(), "Swapping")
        deploy.settle_runs(how, minutes)
        if migration:
            migration.run(new)
        code_versions.keep(images.dagster_id(), new)
        code_versions.forget_rollback()
    complete(old, new)


def complete(old: str, new: str) -> None:
    """Dagster, as by `make deploy`, and what else has another image."""
    deploy.swap()
    up.close_former_logins()
    backups.keep()
    done(f"{deploy.change(old, new)}: upgraded")
    if old != new:
        say(
            "  `make rollback` goes back to the code and Python packages of before; stores and Debian's packages stay."
        )


def is_dry_run() -> bool:
    return os.environ.get("DRY_RUN", "0") not in ("", "0", "no")


def wanted() -> str:
    """Which packages; raises Failure that names the choice."""
    what = os.environ.get("WHAT") or WHAT[0]
    if what not in WHAT:
        raise Failure(f"WHAT={what}: there are {', '.join(WHAT)}.")
    if what == "debian" and os.environ.get("UPGRADE"):
        raise Failure(
            "UPGRADE names Python packages, and WHAT=debian leaves those alone: take one of the two out."
        )
    return what


def require_stack() -> None:
    if not compose.containers():
        raise Failure("The stack is down. `make up` starts it as it is; then `make upgrade`.")
    base = env_file.settings().get("BASE_IMAGE", "")
    if not base_image.image_id(base):
        raise Failure(
            f"The base image {base} is no longer here: `make up` gets it again; then `make upgrade`."
        )


# --- old → new -------------------------------------------------------------------------------------------


def look(what: str) -> tuple[dict[str, Packages], dict[str, Packages], set[str]]:
    """The packages of each image that runs, those that it would have, and the images that are behind Debian's archive."""
    used, named = in_use(), image_ids()
    here = {image_id for image_id in (*used.values(), *named.values()) if image_id}
    with Progress("Reading which packages the images hold"):
        texts = {image_id: image_packages.texts(image_id) for image_id in here}
    before = {short(name): image_packages.packages(texts[image_id]) for name, image_id in used.items()}
    # What has the name already may be newer than what runs: after a `make upgrade` that was killed.
    after = {short(name): image_packages.packages(texts[named[name] or used[name]]) for name in used}
    behind = set()
    if what != "python":
        base = env_file.settings()["BASE_IMAGE"]
        statuses = {name: texts[image_id][STATUS] for name, image_id in named.items() if image_id}
        found = image_packages.newer(base, {**statuses, base: image_packages.texts(base)[STATUS]})
        behind = {name for name, newer in found.items() if newer}
        for name in behind & used.keys():
            after[short(name)] |= {(DEBIAN, package): version for package, version in found[name].items()}
    if what != "debian":
        lock.resolve_all(os.environ.get("UPGRADE") or "all")
    if (name := images.dagster().name) in used:
        read = lock.read if what == "debian" else lock.resolved
        kept = {key: version for key, version in after[short(name)].items() if key[0] != PYTHON}
        locked = {**locks.versions(read("stack")), **locks.versions(read("flights"))}
        after[short(name)] = kept | {(PYTHON, package): version for package, version in locked.items()}
    return before, after, behind


def in_use() -> dict[str, str]:
    """The image that containers have, by its name now; that of a running one where they have several."""
    names = {each.service: each.name for each in images.wanted()}
    containers = sorted(compose.containers(), key=lambda each: each.state == "running")
    found = code_versions.inspected("container", [each.name for each in containers])
    used = {
        names.get(each["Config"]["Labels"]["com.docker.compose.service"], each["Config"]["Image"]): each[
            "Image"
        ]
        for each in found
    }
    return {name: image_id for name, image_id in used.items() if name in names.values()}


def image_ids() -> dict[str, str]:
    """The images that have the stack's names now."""
    return {each.name: base_image.image_id(each.name) for each in images.wanted()}


def short(name: str) -> str:
    return name.rpartition("/")[2]


def tell(changed: list[Change], before: dict[str, Packages]) -> None:
    say("What runs → what there is")
    for row in image_packages.table(changed, before):
        say(row)
    if not changed:
        say("  No package is newer than what runs.")


def tell_more(changed: list[Change], before: dict[str, Packages]) -> None:
    """What the new images changed besides, such as the packages of the project."""
    built = image_ids()
    after = {
        short(name): image_packages.packages(image_packages.texts(built[name]))
        for name in built
        if short(name) in before
    }
    if more := [each for each in image_packages.changes(before, after) if each not in changed]:
        say("The new images change this, too")
        for row in image_packages.rows(more, len(before)):
            say(row)


def agree(changed: list[Change], way: str) -> None:
    """Say what will be done; raises Failure where somebody on a terminal does not want it."""
    if not changed:
        return
    if backups.is_on():
        backup = "Before a store restarts, a backup is made."
    elif restore_point.is_by_hand():
        backup = "No backup is made: BACKED_UP=1 says that there is one."
    else:
        backup = "No backup is made, as BACKUP is off: what newer stores write stays."
    say("Upgrading")
    say(
        f"  Images are built while all goes on. {backup} Stores restart one after the other; steps wait for them."
    )
    say(f"  {way}")
    if attended() and not os.environ.get("FORCE") and not confirm("Upgrade?"):
        raise Failure(f"Not wanted. {UNTOUCHED}")


# --- the upgrade -----------------------------------------------------------------------------------------


@contextmanager
def new_locks(what: str) -> Iterator[None]:
    """The lock files that were resolved, in their place; after a failure the former ones."""
    if what == "debian":
        yield
        return
    with lock.kept_on_failure():
        lock.take()
        yield


def back_up() -> None:
    """The way back for stores, which can't be had from older images."""
    if way := restore_point.made():
        done(f"the way back of the stores: {way}")
    else:
        warn("no backup is made, as BACKUP is off")


def bring_up(stores: list[str], what: str) -> None:
    """One after the other, each healthy before the next goes: whoever works waits for it, and goes on."""
    up.remove_abandoned()
    try:
        for store in stores:
            up.run(f"{what} {store}", [*BRING_UP, store])
    except KeyboardInterrupt:
        raise Failure("Interrupted while stores were swapped: `make upgrade` completes it.") from None


if __name__ == "__main__":
    main(upgrade if is_dry_run() else turns.alone(upgrade))
