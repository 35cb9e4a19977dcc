"""`make move-s3`: the stack's bucket moves to another S3 store, or back; no run fails.

The target is tried and filled while everything runs. Then the daemon, runners and workers stop, what has changed since is
copied, all is compared, `.env` names the target, and services come back with it. Until `.env` does, the stack works with the
store that it has. Killed at any moment, the same command begins again, or completes it.
"""

import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from scripts import (
    certificates,
    compose,
    deploy,
    engine,
    env_file,
    images,
    login,
    proxies,
    s3_store,
    store_logins,
    turns,
    up,
)
from scripts.console import BUILD_FOLDER, ROOT, Failure, attended, confirm, done, main, run_logged, say, warn
from scripts.hosts import services as hosts
from scripts.s3_store import Store
from scripts.standstill import require_possible, standing_still

WAYS = {
    "wait": "runs under way end first, at most {minutes} min, then",
    "hand-over": "runs under way are interrupted, then go on;",
}
#: Who writes no objects, and goes on meanwhile.
STAY = {"postgres", "rabbitmq", "minio", "dagit", "door", "metrics", "flower", "prometheus", "postgres-exporter",
        "grafana", "backup", *compose.ONE_SHOTS}  # fmt: skip
RCLONE = (
    "--config", "/dev/null", "--contimeout", "15s", "--timeout", "60s", "--retries", "2", "--low-level-retries", "3",
    "--transfers", "8", "--checkers", "16",
    "--fast-list", "--metadata", "--no-unicode-normalization", "--stats", "2s", "--stats-one-line", "--stats-log-level", "NOTICE",
)  # fmt: skip
FROM, TO = "FROM", "TO"
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
#: A pass that takes longer is followed by another one, while everything runs; and how many there are at most.
LONG_PASS_SECS, MOST_PASSES = 60, 5
#: What is younger than the last pass by so much is copied once more: times of objects are in seconds.
MARGIN_SECS = 60
#: What rclone says of an object that it has listed, and that was gone when it came to copy it; and what it says of itself then.
VANISHED = re.compile(r"NoSuchKey|object not found")
SUMMED_UP = re.compile(r"ERROR : (Attempt \d|.*: not deleting )")
#: A store that is full or refuses would be asked for each object, again and again: 250 objects took more than 10 minutes.
MOST_ERRORS = 10
SKEW = re.compile(r"clocks differ by (\d+) s")
UNTOUCHED = "Nothing was moved: the stack goes on with the store that it had."


def move() -> None:
    compose.require_env_file()
    env_file.require_clear()
    how, minutes = how_long = deploy.wanted()
    # `kill` ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    target = wanted()
    hosts.prepare()
    require_possible("they would go on writing to the former store")
    with alone():
        source = s3_store.current()
        if s3_store.is_same(source, target):
            complete()
            return
        describe(source, target, WAYS[how].format(minutes=minutes))
        if attended() and not os.environ.get("FORCE") and not confirm("Move it?"):
            say("  nothing was changed")
            return
        with untouched_on_failure():
            skew = fill(source, target)
            since = copy_while_all_goes_on(source, target) - skew - MARGIN_SECS
            said, stopped = hand_over(source, target, since, *how_long)
        for line in [*said.splitlines(), f"{env_file.env_path().name} names the target"]:
            done(line)
        swap()
        tell(source, target, time.monotonic() - stopped)


def wanted() -> Store:
    """The target; raises Failure that shows how to name one."""
    if store_logins.former():
        raise Failure("`make rotate` was interrupted: `make up` completes it. Then move.")
    target = s3_store.named()
    if target is None:
        raise Failure(
            "Where to? make move-s3 TO=file, with S3_ENDPOINT_URL=… and the other S3_* of .env.example in it;"
            " S3_ENDPOINT_URL= without a value is the stack's own MinIO."
        )
    prefix = s3_store.current()["S3_PREFIX"]
    if target["S3_PREFIX"].strip("/") != prefix.strip("/"):
        raise Failure(
            f"S3_PREFIX={target['S3_PREFIX']} is not that of .env ({prefix or 'empty'}). The event log names objects by their"
            " keys, so these stay as they are: leave it out, and name a bucket of the stack's own."
        )
    # Said before anything begins, where a value can't be written down.
    s3_store.statements(target)
    return target


@contextmanager
def alone() -> Iterator[None]:
    """Raises Failure while another one is at work; what a killed one has left running is ended."""
    folder = BUILD_FOLDER / compose.project()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "move-s3.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure("Another `make move-s3` is at work.") from None
        end_copy()
        yield


def describe(source: Store, target: Store, way: str) -> None:
    """Say what will be done."""
    say(
        f"Moving the bucket of {compose.project()}\n"
        f"  from  {s3_store.described(source)}, which keeps all that it has\n"
        f"  to    {s3_store.described(target)}: what it has of this stack and the other one has not is deleted there\n"
        "  First the target is tried and filled, while all goes on. Then the run queue, schedules and sensors stop,\n"
        f"  {way} runners and workers stop for what has changed meanwhile, and all come back with the target."
    )


# --- while everything runs ---------------------------------------------------------------------------------


def fill(source: Store, target: Store) -> int:
    """Make the bucket and try it; returns the seconds by which the source's clock is another. Raises Failure."""
    require_up()
    certificates.record()
    proxies.record()
    images.ensure_only("backup", *(["minio"] if s3_store.is_own(target) else []))
    if s3_store.is_own(target):
        start_minio(target)
    said = in_container("Preparing the bucket", source, target, "init", "prepare-s3")
    check(target)
    return max(map(int, SKEW.findall(said)))


def require_up() -> None:
    """Raises Failure where the stack is not up with the settings of `.env`. What a killed move has stopped is started."""
    if up.is_up(with_images=False):
        return
    up.remove_unwanted()
    up.remove_abandoned()
    up.start_made()
    up.wait_until_healthy()
    if not up.is_up(with_images=False):
        raise Failure(
            "Not all services are up and healthy with the settings of .env: `make up` first, then move."
        )


def start_minio(target: Store) -> None:
    with s3_store.in_use(target):
        certificates.issue()
        up.run(
            "Starting the stack's own MinIO", ("--progress", "plain", "up", "--detach", "--no-deps", "minio")
        )
        up.wait_until_healthy("minio")


def check(target: Store) -> None:
    """Print what the target can do; raises Failure where that does not suffice."""
    with s3_store.in_use(target):
        command = ("--progress", "quiet", "run", "--rm", "--no-deps", "--no-TTY", "cli", *MODULE, "check-s3")
        result = subprocess.run(
            [*compose.compose(), *command], cwd=ROOT, stdin=subprocess.DEVNULL, check=False
        )
    if result.returncode:
        raise Failure("The target does not do what the stack needs.")


MODULE = ("python", "-m", "dagster_stack")


def in_container(title: str, source: Store, target: Store, service: str, command: str) -> str:
    """Let the stack's command line do something with both stores; returns what it printed. Raises Failure with it."""
    variables = s3_store.as_source(source)
    options = [part for name in variables for part in ("--env", name)]
    start = ("--progress", "quiet", "run", "--rm", "--no-deps", "--no-TTY", *options, service)
    lines: list[str] = []

    def seen(line: str) -> str:
        lines.append(line)
        return line

    with s3_store.in_use(target):
        run_logged(title, [*compose.compose(), *start, *MODULE, command], detail=seen, environment=variables)
    return "\n".join(lines)


# --- copies ------------------------------------------------------------------------------------------------


def copied(
    title: str,
    source: Store,
    target: Store,
    *command: str,
    options: Sequence[str] = (),
    forgives: Callable[[Sequence[str]], bool] = lambda _: False,
) -> None:
    """Let rclone do it; it does not outlive this. Raises Failure, unless what went wrong is forgiven; after MOST_ERRORS at once."""
    variables = {**remote(FROM, source), **remote(TO, target)}
    named = [part for name in variables for part in ("--env", name)]
    start = (
        "--progress",
        "quiet",
        "run",
        "--rm",
        "--no-deps",
        "--no-TTY",
        "--name",
        container(),
        *named,
        "move",
    )
    paths = (f"from:{path(source)}", f"to:{path(target)}")
    errors: list[str] = []

    def seen(line: str) -> str | None:
        if " ERROR : " in line and not SUMMED_UP.search(line):
            errors.append(line)
            if not forgives(errors) and len(errors) >= MOST_ERRORS:
                raise Failure(
                    f"{title}: {len(errors)} objects could not be copied. The last of them:\n\n{line}"
                )
        return progress(line)

    try:
        run_logged(
            title,
            [*compose.compose(), *start, *command, *paths, *RCLONE, *options],
            detail=seen,
            environment=variables,
        )
    except Failure:
        if not (errors and forgives(errors)):
            raise
    finally:
        end_copy()


def remote(name: str, store: Store) -> dict[str, str]:
    """The variables by which rclone knows a store."""
    endpoint = s3_store.endpoint(store)
    is_amazon = (urlsplit(endpoint).hostname or "").endswith(".amazonaws.com")
    options = {
        "TYPE": "s3",
        "PROVIDER": "AWS" if is_amazon else "Other",
        "ENDPOINT": endpoint,
        "REGION": store["S3_REGION"],
        # Without keys, those of the machine's role.
        "ENV_AUTH": "false" if store["S3_ACCESS_KEY"] else "true",
        "ACCESS_KEY_ID": store["S3_ACCESS_KEY"],
        "SECRET_ACCESS_KEY": store["S3_SECRET_KEY"],
        "SESSION_TOKEN": store["S3_SESSION_TOKEN"],
        "FORCE_PATH_STYLE": "true",
        "NO_CHECK_BUCKET": "true",
        # As boto3 lists.
        "LIST_VERSION": "2",
        "LIST_URL_ENCODE": "true",
    }
    return {f"RCLONE_CONFIG_{name}_{option}": value for option, value in options.items() if value}


def path(store: Store) -> str:
    return "/".join(filter(None, (store["S3_BUCKET"], store["S3_PREFIX"].strip("/"))))


def container() -> str:
    """One name, so that there is one copy at a time, whoever was killed."""
    return f"{compose.project()}-move-s3"


def end_copy() -> None:
    engine.ask("rm", "--force", container())


def progress(line: str) -> str | None:
    """What rclone says of how far it is, without its clock."""
    return re.sub(r"^\S+ \S+ NOTICE: *", "", line)


def copy_while_all_goes_on(source: Store, target: Store) -> float:
    """Until a pass is short, whose begin it returns: what is left for the stop is what has changed since."""
    for number in range(1, MOST_PASSES + 1):
        began = time.time()
        # By size and time. An object that is the same gets no request for its time.
        copied(
            f"Copying, pass {number}",
            source,
            target,
            "sync",
            options=["--no-update-modtime"],
            forgives=have_vanished,
        )
        if time.time() - began < LONG_PASS_SECS:
            break
    return began


def have_vanished(errors: Sequence[str]) -> bool:
    """Whether all that went wrong is that objects went while all goes on, as the output so far of a step does at its end."""
    return all(map(VANISHED.search, errors))


def copy_the_rest(source: Store, target: Store, since: float) -> None:
    """What has changed since then, by listings alone. Of objects in parts no hash is known, so all that are young are copied."""
    quickly = ["--checksum", "--no-update-modtime"]
    copied("Copying what has changed", source, target, "sync", options=quickly)
    young = f"{time.time() - since:.0f}s"
    all_young = ["--ignore-times", "--use-server-modtime", "--max-age", young]
    copied("Copying what is young once more", source, target, "copy", options=all_young)


# --- the stop ----------------------------------------------------------------------------------------------


def hand_over(source: Store, target: Store, since: float, how: str, minutes: int) -> tuple[str, float]:
    """Let `.env` name the target, with all that the source has; returns what was compared, and since when no step is executed.
    Until then the old services can be started again."""
    try:
        with deploy.queue_stopped():
            if how == "wait":
                deploy.wait_for_runs(minutes)
            stopped = time.monotonic()
            with standing_still(writes):
                copy_the_rest(source, target, since)
                said = in_container("Comparing all objects", source, target, "cli", "compare-s3")
                keep(source)
                for number in INTERRUPTS:
                    # From here on nobody may start the old ones.
                    signal.signal(number, signal.SIG_IGN)
                env_file.set_values(s3_store.statements(target))
    finally:
        for number in INTERRUPTS:
            signal.signal(number, signal.default_int_handler)
    return said, stopped


@contextmanager
def untouched_on_failure() -> Iterator[None]:
    """Say with what goes wrong that the stack has the store that it had."""
    try:
        yield
    except Failure as failure:
        raise Failure(f"{failure}\n\n  {UNTOUCHED}") from None
    except BaseException:
        warn(UNTOUCHED)
        raise


def writes(service: str) -> bool:
    """Whether it may write objects."""
    return service not in STAY


def keep(source: Store) -> None:
    """Write down how to come back."""
    file = s3_store.file_of(source)
    lines = [f"{name}={value}\n" for name, value in s3_store.statements(source).items()]
    env_file.write(file, f"# For the way back: make move-s3 TO={file.name}\n" + "".join(lines))


def swap() -> None:
    login.derive()
    hosts.bring()
    deploy.swap()


def complete() -> None:
    """What a killed move has left to be done, where `.env` names the target already."""
    hosts.bring()
    if up.is_up(with_images=False):
        done("the bucket is there, and all services work with it: nothing to do")
        return
    say("Completing the move that was interrupted")
    swap()
    done("all services work with the store that .env names")


def tell(source: Store, target: Store, secs: float) -> None:
    """What is different now, and how to come back."""
    if names := store_logins.commands():
        warn(
            f"{', '.join(names)}: started before with `docker compose run`, with the former store; start them anew"
        )
    done(f"all services work with {s3_store.described(target)}; for {secs:.0f} s no step was executed")
    links = "do not open while its MinIO is down" if s3_store.is_own(source) else "show what was there before"
    say(
        f"\n  Links that were signed before {links}; Dagit makes new ones for step output.\n"
        f"  Back: make move-s3 TO={s3_store.file_of(source)}\n"
        "  The former bucket is as it was; delete it yourself, once you need no way back."
    )


if __name__ == "__main__":
    main(turns.alone(move, "move-s3"))
