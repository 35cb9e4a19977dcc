"""`make restore`: the stack as it was at a moment, from its backups; it does not go on before somebody has chosen how.

Killed at any point, `make restore` completes it.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from getpass import getpass
from pathlib import Path
from typing import Any

from scripts import (
    backups,
    base_image,
    certificates,
    compose,
    engine,
    env_file,
    images,
    login,
    proxies,
    store_logins,
    turns,
    unfinished,
    up,
    users,
)
from scripts.backups import local, size
from scripts.console import (
    BUILD_FOLDER,
    ROOT,
    Failure,
    Progress,
    attended,
    confirm,
    done,
    main,
    run_logged,
    say,
    warn,
)
from scripts.hosts import host, logins
from scripts.hosts import services as hosts

#: What becomes of runs under way, and of the times of schedules that have passed; the first is what happens by itself.
RUNS, SCHEDULES = ("resume", "cancel"), ("catch-up", "skip")
#: Runs and schedules that are listed.
SHOWN = 20
RUN = ("--progress", "quiet", "run", "--rm", "--no-TTY", "--no-deps")
DOWN = ("--progress", "plain", "--profile", "*", "down", "--remove-orphans")
#: The project in which a copy's settings are read, before it is known whose they are.
SCRATCH = "dagster-celery-stack-restore"
#: Seconds between two looks at a Postgres that reads its journal.
LOOK_SECS = 1
#: What Compose puts before lines for a terminal.
CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
ANSWER = re.compile(r"^\{.*\}$", re.MULTILINE)


def restore() -> None:
    runs, schedules = chosen("RUNS", RUNS), chosen("SCHEDULES", SCHEDULES)
    wanted, source = os.environ.get("TO", ""), os.environ.get("FROM", "")
    if not (wanted or source) and env_file.env_path().exists():
        if unfinished.state() == unfinished.RESTORED:
            go_on(runs, schedules)
            return
        wanted, source = unfinished.aim()
    to = moment(wanted)
    began = time.monotonic()
    place(source)
    if not env_file.env_path().exists():
        bring_settings(source)
    compose.require_env_file()
    up.prepare()
    say("Building images")
    images.ensure()
    if not backups.is_on():
        images.ensure_only("backup")
    certificates.issue()
    hosts.bring()
    if source:
        fetch(source)
    plan = json.loads(ask("plan", *moment_option(to)))
    announce(plan)
    if attended() and not os.environ.get("FORCE") and not confirm("Restore this?"):
        say("  nothing was changed")
        return
    unfinished.note(unfinished.RESTORING, wanted, source)
    carry_out(plan, to)
    done(f"restored in {time.monotonic() - began:.0f} s")
    go_on(runs, schedules)


# --- what is asked -----------------------------------------------------------------------------------------


def chosen(name: str, answers: tuple[str, ...]) -> str:
    answer = os.environ.get(name, "")
    # RUNNERS is another variable; RUNS is set by nobody else.
    if answer not in ("", *answers):
        raise Failure(f"{name}={answer}: there are {' and '.join(answers)}.")
    return answer


def moment(text: str) -> float | None:
    """A moment as people write it, in this host's time zone unless it names one; raises Failure that shows how."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Failure(
            f"TO={text} is no moment: write TO='2026-11-28 14:00' or TO='2026-11-28 14:00:05+01:00'."
        ) from None
    if found.timestamp() > time.time():
        raise Failure(f"TO={text} is in the future.")
    return found.timestamp()


def moment_option(to: float | None) -> list[str]:
    return [] if to is None else ["--to", repr(to)]


def place(source: str) -> None:
    """Let the container `restore` find what FROM names: a folder of this host is mounted there."""
    os.environ["RESTORE_FROM"] = source
    if source.startswith("/"):
        if not Path(source).is_dir():
            raise Failure(f"FROM={source} is no folder of this host.")
        os.environ["RESTORE_FOLDER"] = source
    elif source and not source.startswith(("s3:", "sftp:")):
        raise Failure(
            f"FROM={source}: write s3:bucket/folder, sftp:user@host:22/folder or a folder's whole path."
        )


def ask(*arguments: str) -> str:
    """What the container `restore` prints; raises Failure with its words."""
    command = [*compose.compose(), *RUN, "restore", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise Failure(result.stderr.strip())
    return result.stdout


# --- a fresh machine ---------------------------------------------------------------------------------------


def bring_settings(source: str) -> None:
    """Make .env what it was, from the copy; the machine's own is its base image alone."""
    file = env_file.env_path()
    if not source:
        raise Failure(
            f"There is no {file.name} here, so say where the backups are: make restore FROM=s3:… (or sftp:…, /folder)"
            " BACKUP_KEY=…; the recovery sheet has both."
        )
    key = os.environ.get("BACKUP_KEY") or (
        getpass("  ? BACKUP_KEY of the recovery sheet: ") if attended() else ""
    )
    if not key:
        raise Failure(f"Which key? make restore FROM={source} BACKUP_KEY=… (it is on the recovery sheet).")
    engine.ensure()
    with scratch_settings(key) as scratch:
        certificates.record()
        proxies.record()
        base_image.ensure()
        images.ensure_only("backup")
        text = ask("settings")
        base = env_file.read(scratch)["BASE_IMAGE"]
    env_file.write(file, text)
    env_file.set_value("BASE_IMAGE", base)
    done(f"{file.name} is as it was when the last backup was made")
    if left := host.names():
        env_file.set_value(host.SETTING, "")
        warn(
            f"{', '.join(left)} must join again: set CLUSTER_ADDRESS to this machine's, then `make host ADD=…`"
        )


@contextmanager
def scratch_settings(key: str) -> Iterator[Path]:
    """Settings of no stack, with which a container can be started that reads those of the copy."""
    scratch = BUILD_FOLDER / "restore" / "scratch.env"
    scratch.unlink(missing_ok=True)
    env_file.complete(scratch)
    # Another stack of this host has the name that comes by itself.
    env_file.set_values({"COMPOSE_PROJECT_NAME": SCRATCH, "BACKUP_KEY": key}, scratch)
    with settings_in_use(scratch, "COMPOSE_PROJECT_NAME", "BACKUP_KEY"):
        try:
            yield scratch
        finally:
            if env_file.read(scratch).get("BASE_IMAGE"):
                compose.output(*DOWN, "--volumes")
            for file in (certificates.file(), proxies.file(), scratch):
                file.unlink(missing_ok=True)


@contextmanager
def settings_in_use(file: Path, *named: str) -> Iterator[None]:
    """In here these settings are in use; what they name is what they say, and not what the shell says."""
    before = dict(os.environ)
    for variable in named:
        os.environ.pop(variable, None)
    os.environ["STACK_ENV_FILE"] = str(file)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def fetch(source: str) -> None:
    """Bring the repository here."""
    stop = [*compose.compose(), "--progress", "plain", "--profile", "*", "rm", "--stop", "--force", "backup"]
    run_logged("Stopping the service backup", stop)
    began = time.monotonic()
    with Progress(f"Copying the backups from {source}"):
        ask("fetch")
    done(f"the backups of {source} are here ({time.monotonic() - began:.0f} s)")


# --- the restore -------------------------------------------------------------------------------------------


def announce(plan: dict[str, Any]) -> None:
    """Say what will be done, before anything is."""
    point, bucket = plan["point"], plan["bucket"]
    base = plan.get("base")
    of_base = (
        f"base backup of {local(base['ended'])}, {size(base['size'])}, and the journal since then"
        if base
        else "a dump"
    )
    say(
        f"\nRestoring {compose.project()} to {local(plan['to'])}\n"
        f"  database   {of_base}: all that it has now is replaced\n"
        f"  bucket     {bucket['objects']:,} objects, {size(bucket['bytes'])}, as of {local(point['at'])}; younger ones stay\n"
        "  broker     its volume is removed: messages are sent again, dead letters are in the backup\n"
        "  stays      files of user code (data/), figures of the past, users, .env\n"
        "  afterwards Dagit runs; daemon, runners and workers stay down until you choose what becomes of runs under way\n"
    )


def carry_out(plan: dict[str, Any], to: float | None) -> None:
    """Everything down, the stores as they were, Dagit up."""
    hosts.stop_all()
    run_logged("Stopping all services", [*compose.compose(), *DOWN])
    engine.ask("volume", "rm", "--force", f"{compose.project()}_rabbitmq")
    outside = env_file.settings()
    restored = 0
    began = time.monotonic()
    with Progress("Restoring the database"):
        if not outside.get("POSTGRES_HOST"):
            ask("database", *moment_option(to))
            restored += plan["base"]["size"]
    if not outside.get("POSTGRES_HOST"):
        start_postgres()
        store_logins.close_restored()
        logins.close_restored()
    done(f"database ({time.monotonic() - began:.0f} s)")
    stores = sorted({"minio", "rabbitmq"} & up.started_services())
    up.run("Starting the other stores", (*up.UP, *stores, "init"))
    up.wait_until_healthy(*stores, "init")
    if outside.get("POSTGRES_HOST"):
        ask("database", *moment_option(to))
    began_bucket = time.monotonic()
    with Progress("Restoring the bucket"):
        ask("bucket", *moment_option(to))
    restored += plan["bucket"]["bytes"]
    done(f"bucket ({time.monotonic() - began_bucket:.0f} s)")
    ask("restored", "--to", repr(plan["to"]))
    minutes = (time.monotonic() - began) / 60
    say(f"    {size(restored)} at {restored / 1e9 / minutes:.2f} GB/min")
    pages = ["dagit", "door"] if env_file.has_login() else ["dagit"]
    up.run("Starting Dagit", ("--progress", "plain", "up", "--detach", "--no-deps", *pages))
    up.wait_until_healthy(*pages)
    if env_file.has_login():
        login.hand_over_certificate()
        bring_users()
    unfinished.note(unfinished.RESTORED)


def bring_users() -> None:
    """Give a new door the users of the backup. One that has some keeps them: who was removed must not come back."""
    if set(users.users()) == {login.ADMIN} and (kept := ask("users")):
        users.change("import", given=kept)
        done("users can log in as before")


def start_postgres() -> None:
    """Start Postgres and wait until it has read its journal, however long that takes; raises Failure with its log."""
    up.run("Starting Postgres", ("--progress", "plain", "up", "--detach", "--no-deps", "postgres"))
    with Progress("Postgres reads its journal up to that moment"):
        while True:
            (postgres,) = (each for each in compose.containers() if each.service == "postgres")
            if postgres.health == "healthy":
                return
            log = compose.output("logs", "--no-color", "--no-log-prefix", "--tail", "60", "postgres")
            if postgres.state != "running" or "the wanted moment can't be reached" in log:
                compose.output("stop", "postgres")
                raise Failure(why_unreachable(log))
            time.sleep(LOOK_SECS)


def why_unreachable(log: str) -> str:
    lines = [line for line in CODES.sub("", log).splitlines() if re.search("FATAL|ERROR|WARN|HINT", line)]
    said = "\n".join(lines[-8:])
    if "recovery ended before configured recovery target was reached" in log:
        return (
            "A part of the journal is missing in the repository, so that moment can't be reached. Name an earlier TO, before"
            f" the gap; `make restore` says what there is. If there is a copy off this host: FROM=…\n{said}"
        )
    return f"Postgres can't be restored: {backups_cure(log)}\n{said}"


def backups_cure(log: str) -> str:
    return "BACKUP_KEY is not the key of this repository." if "CryptoError" in log else "its log says why."


# --- the choice --------------------------------------------------------------------------------------------


def go_on(runs: str, schedules: str) -> None:
    """List what would go on, have it chosen, and start the rest; without a choice all stays as it is."""
    found = under_way()
    describe(found)
    if attended() and not os.environ.get("FORCE"):
        runs = runs or asked("Runs and backfills under way", RUNS, bool(found["under_way"]))
        schedules = schedules or asked(
            "Times of schedules that have passed", SCHEDULES, bool(found["schedules"])
        )
    if not (runs and schedules):
        say(
            "\n  Daemon, runners and workers stay down; Dagit shows what was restored. Go on by\n"
            "    make restore RUNS=resume|cancel SCHEDULES=catch-up|skip"
        )
        return
    said = command_line("restored", "--runs", runs, "--schedules", schedules)
    for line in said.splitlines():
        done(line)
    unfinished.note("")
    say("Starting")
    up.start()
    up.finish()


def under_way() -> dict[str, list[dict[str, Any]]]:
    found = ANSWER.findall(command_line("restored"))
    answer: dict[str, list[dict[str, Any]]] = json.loads(found[-1])
    return answer


def command_line(*words: str) -> str:
    return compose.output(*RUN, "cli", "python", "-m", "dagster_stack", *words)


def describe(found: dict[str, list[dict[str, Any]]]) -> None:
    runs, schedules = found["under_way"], found["schedules"]
    say(
        f"\n  Under way then: {len(runs)}"
        + ("; RUNS=resume lets them go on, RUNS=cancel ends them" if runs else "")
    )
    for run in runs[:SHOWN]:
        say(f"    {run['kind']} {run['id'][:8]}  {run['status']:<9} {run['name']}")
    if len(runs) > SHOWN:
        say(f"    and {len(runs) - SHOWN} more: Dagit lists all")
    say(
        f"  Schedules that are on: {len(schedules)}"
        + ("; SCHEDULES=catch-up launches up to 5 missed runs of each, skip none" if schedules else "")
    )
    for schedule in schedules[:SHOWN]:
        say(f"    {schedule['name']}  ({schedule['cron']}), last evaluated {local(schedule['last'])}")


def asked(what: str, answers: tuple[str, ...], is_needed: bool) -> str:
    if not is_needed:
        return answers[0]
    while True:
        try:
            answer = input(f"  ? {what}: {' or '.join(answers)} (nothing: decide later) ").strip().lower()
        except EOFError:
            return ""
        if answer in ("", *answers):
            return answer
        warn(f"{answer} is neither")


if __name__ == "__main__":
    main(turns.alone(restore))
