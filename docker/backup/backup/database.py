"""Postgres: base backups and its journal by pgBackRest; of an outside one, dumps."""

import json
import math
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backup import points
from backup.errors import Failure
from backup.programs import PSQL, SOCKET, alone, failure, pgbackrest, rclone, rclone_environ, sql
from backup.settings import CLUSTER, REPOSITORY, Settings

#: A full base backup each week, what changed since then each day.
FULL_SECS, EACH_SECS = 7 * 86400, 86400
#: What `pgbackrest verify` says of files that are not as they were. Missing ones of the journal are a gap, which is known.
BROKEN = re.compile(r"(checksum|size) invalid: [1-9]|status: (?!valid|ok)")
#: Seconds that Postgres has to hand a file of its journal to the repository.
ARCHIVED_SECS = 120
#: Bytes of the repository below which it is full: a file of the journal and what pgBackRest writes beside it.
ROOM = 48 << 20
#: Is touched where Postgres drops a part of its journal, since the repository takes none: docker/postgres/pgbackrest-push.
DROPPED = CLUSTER.parent / "journal-dropped"

#: The advisory lock that retention holds while it works (RETENTION_AND_BACKUP in dagster_stack/store/doomed.py), and seconds that
#: it gets to make way, which takes it some.
LOCK, WAY_SECS = "hashtextextended('dagster_stack_backup', 0)", 180
#: Seconds after which a session that has not answered never will.
ANSWER_SECS = WAY_SECS + 30


@dataclass(frozen=True)
class Base:
    """A base backup. Times in seconds since 1970, sizes in bytes: of the database, and in the repository."""

    label: str
    kind: str
    started: float
    ended: float
    size: int
    stored: int
    #: Postgres begins a new one with each restore.
    timeline: int

    @staticmethod
    def of(entry: dict[str, Any]) -> "Base":
        times, sizes = entry["timestamp"], entry["info"]
        return Base(
            entry["label"],
            entry["type"],
            times["start"],
            times["stop"],
            sizes["size"],
            sizes["repository"]["delta"],
            int(entry["archive"]["stop"][:8], 16),
        )


def bases() -> list[Base]:
    """The good base backups of the repository, the oldest first; raises Failure for a wrong key."""
    answer = json.loads(pgbackrest("info", "--output=json"))
    stanza = next((each for each in answer if each["name"] == "stack"), None)
    if stanza is None:
        return []
    repository = stanza["repo"][0]["status"]
    # 1 to 3: nothing is there yet.
    if repository["code"] > 3:
        raise failure("pgbackrest", repository["message"])
    return [Base.of(entry) for entry in stanza.get("backup", []) if not entry.get("error")]


def prepare() -> None:
    """Make the stanza; safe to repeat."""
    pgbackrest("stanza-create")


def kind_due(found: Sequence[Base], now: float, restored: float = 0.0) -> str:
    """Which base backup is due: `full`, `incr`, or none, which is an empty text. A restore asks for one at once."""
    last_full = max((base.ended for base in found if base.kind == "full"), default=-math.inf)
    if now - last_full >= FULL_SECS:
        return "full"
    last = max((base.ended for base in found), default=0.0)
    return "incr" if now - last >= EACH_SECS or last < restored or has_gap(found) else ""


def has_gap(found: Sequence[Base]) -> bool:
    """Whether a part of the journal was dropped since the last base backup began: a new one makes later points reachable."""
    try:
        dropped = DROPPED.stat().st_mtime
    except OSError:
        return False
    return dropped > max((base.started for base in found), default=0.0)


def back_up(kind: str) -> None:
    """Make a base backup, and drop those whose time is over."""
    with alone("base"):
        pgbackrest("backup", f"--type={kind}")


def mark() -> tuple[float, str]:
    """End the journal's file behind a moment: that moment by Postgres' clock, and the name of the file."""
    # The message is a commit after that time, by which a restore to it knows where to end.
    (at,), _, (wal,) = sql(
        "SELECT extract(epoch FROM clock_timestamp());"
        " SELECT pg_logical_emit_message(true, 'backup', 'point');"
        " SELECT pg_walfile_name(pg_switch_wal());"
    )
    return float(at), wal


@contextmanager
def without_retention(settings: Settings) -> Iterator[None]:
    """In here retention removes nothing. Raises Failure where it does not make way, or where the lock was lost meanwhile."""
    where = () if settings.is_outside_postgres else SOCKET
    with subprocess.Popen(
        [*PSQL, *where, f"--dbname={settings.database}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
    ) as session:  # fmt: skip
        ask(session, f"SET lock_timeout = '{WAY_SECS}s'; SELECT 'had' FROM pg_advisory_lock({LOCK});", "had")
        yield
        ask(session, f"SELECT 'freed' WHERE pg_advisory_unlock({LOCK});", "freed")


def ask(session: "subprocess.Popen[bytes]", statement: str, answer: str) -> None:
    """Raises Failure where there is another answer, or none."""
    assert session.stdin
    assert session.stdout
    with suppress(BrokenPipeError):
        session.stdin.write(f"{statement}\n".encode())
    said = b""
    if select.select([session.stdout], [], [], ANSWER_SECS)[0]:
        said = session.stdout.readline()
    if said.decode().strip() != answer:
        session.kill()
        said += session.stdout.read()
        raise failure("psql", said.decode(errors="replace") or "timeout expired")


def wait_until_archived(wal: str) -> None:
    """Wait until the repository has this file of the journal; raises Failure with what keeps it."""
    deadline = time.monotonic() + ARCHIVED_SECS
    while True:
        ((last, failing),) = sql(
            "SELECT coalesce(last_archived_wal, ''), coalesce(last_failed_wal, '')"
            " || CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity') THEN '!' ELSE '' END"
            " FROM pg_stat_archiver"
        )
        # Of a later timeline too: both sort by name.
        if last[:24] >= wal and len(last) >= 24:
            return
        if time.monotonic() > deadline:
            if failing.endswith("!"):
                if shutil.disk_usage(REPOSITORY).free < ROOM:
                    raise failure(
                        "pgbackrest", f"No space left on device: {wal} of Postgres' journal waits for it"
                    )
                # It says what keeps Postgres from that, too.
                pgbackrest("check", "--archive-timeout=10")
            raise Failure(
                f"Postgres has not handed {wal} of its journal to the repository for {ARCHIVED_SECS} s: its log says why"
                " (make logs SERVICE=postgres)."
            )
        time.sleep(0.5)


def verify() -> None:
    """Read all that the repository has of Postgres; raises Failure with what is broken."""
    with alone("base"):
        said = pgbackrest("verify", "--output=text", "--verbose")
    if BROKEN.search(said):
        raise Failure(
            f"The repository has broken files: make a full backup now (make backup FULL=1).\n{said[-2000:]}"
        )


# --- restore -------------------------------------------------------------------------------------------


def chosen_base(found: Sequence[Base], restores: Sequence[points.Restore], to: float, at: float) -> Base:
    """The newest base backup from which `to` can be reached, in the past of the point at `at`."""
    usable = [base for base in found if base.ended <= to and not points.abandoned(base.ended, restores, at)]
    if not usable:
        oldest = min((base.ended for base in found), default=None)
        there = f"the oldest one is of {points.shown(oldest)}" if oldest else "there is none"
        raise Failure(f"No base backup is old enough for {points.shown(to)}: {there}. Name a later TO.")
    return max(usable, key=lambda base: base.ended)


def restore(base: Base, point: points.Point, to: float | None) -> None:
    """Write the cluster as it was into its volume; Postgres reads its journal up to then when it starts.

    Killed at any point it is repaired by another one, and Postgres does not start in between.
    """
    unfinished = CLUSTER.parent / "restore-unfinished"
    unfinished.write_text("`make restore` again completes it.\n", encoding="utf-8")
    target = point.at if to is None else to
    options = (
        ["--delta"] if (CLUSTER / "PG_VERSION").exists() or (CLUSTER / "backup.manifest").exists() else []
    )
    if not options:
        clear(CLUSTER)
    pgbackrest(
        "restore", *options, f"--set={base.label}", "--type=time", f"--target={precise(target)}",
        f"--target-timeline={target_timeline(base, point)}", "--target-action=promote", "--process-max=2",
    )  # fmt: skip
    DROPPED.unlink(missing_ok=True)
    unfinished.unlink()


def target_timeline(base: Base, point: points.Point) -> str:
    """The way from a base backup to a point. A repository that is younger than a restore does not have the history of the
    timeline in which it began, and Postgres would not go there by its number."""
    return "current" if base.timeline == point.timeline else str(point.timeline)


def clear(folder: Path) -> None:
    subprocess.run(["rm", "-rf", folder], check=True)
    folder.mkdir(mode=0o700)


def precise(at: float) -> str:
    """With microseconds, as Postgres counts."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) + f".{round(at % 1 * 1e6) % 1_000_000:06d}+00"


# --- an outside Postgres ---------------------------------------------------------------------------------


def dump(settings: Settings) -> tuple[float, str]:
    """A dump of an outside database into the repository: its moment and its name there."""
    at = time.time()
    name = f"dumps/{points.stamp(at)}"
    command = ["pg_dump", "--format=custom", "--no-owner", "--dbname", settings.database]
    with (
        alone("base"),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as dumping,
    ):
        copying = subprocess.run(
            ["rclone", "--config", "", "rcat", f"kept:{name}.part"],
            stdin=dumping.stdout, capture_output=True, env=rclone_environ(settings), check=False,
        )  # fmt: skip
        assert dumping.stderr
        said = dumping.stderr.read().decode(errors="replace")
    if dumping.returncode or copying.returncode:
        raise failure("pg_dump", said + copying.stderr.decode(errors="replace"))
    rclone(settings, "moveto", f"kept:{name}.part", f"kept:{name}")
    return at, name


def load(settings: Settings, name: str) -> None:
    """Replace what the outside database has by a dump."""
    with subprocess.Popen(
        ["rclone", "--config", "", "cat", f"kept:{name}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=rclone_environ(settings),
    ) as reading:  # fmt: skip
        loading = subprocess.run(
            ["pg_restore", "--clean", "--if-exists", "--no-owner", "--single-transaction", "--dbname", settings.database],
            stdin=reading.stdout, capture_output=True, check=False,
        )  # fmt: skip
        assert reading.stderr
        said = reading.stderr.read().decode(errors="replace")
    if reading.returncode or loading.returncode:
        raise failure("pg_restore", said + loading.stderr.decode(errors="replace"))
