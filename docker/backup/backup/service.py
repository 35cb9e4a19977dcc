"""What the service does by itself: points, base backups, the copy off this host, and the figures of all that."""

import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from backup import bucket, database, mirror, papers, points, repository, state
from backup.errors import Failure
from backup.programs import alone
from backup.settings import Settings

#: Seconds between two points, at least and at most: where the bucket's copy takes long, as many as four copies do.
POINT_SECS, MOST_POINT_SECS, COPIES = 30, 900, 4
#: Seconds between two looks at whether a base backup is due.
BASE_SECS = 60
MIRROR_SECS = 900
#: Seconds between two readings of all that is in the repository; and between two looks at whether it is due.
VERIFY_SECS, VERIFY_LOOK_SECS = 7 * 86400, 3600
#: Seconds after which what has failed is tried again.
AGAIN_SECS = 60
PORT = 9854
#: What fails now, by the name of the task.
ERRORS = Path("/tmp/errors.json")
#: When this process began: what no repository says is as old.
STARTED = time.time()


# --- what is done, by the service or at once ---------------------------------------------------------------


def point(settings: Settings) -> points.Point:
    """A moment to which the stack can be restored: database first, bucket after, and the journal in the repository."""
    with alone("point"):
        with database.without_retention(settings):
            at, wal = database.mark()
            stamp = points.stamp(at)
            began = time.monotonic()
            bucket.copy(settings, stamp)
        state.note(copy_seconds=time.monotonic() - began)
        database.wait_until_archived(wal)
        made = points.Point(at, stamp, wal)
        points.add(made)
        points.forget(settings.keep_days)
        bucket.forget(settings.keep_days)
    state.note(point=at)
    return made


def base(settings: Settings, kind: str = "") -> None:
    """A base backup if one is due, or of this kind; with what belongs to it."""
    if settings.is_outside_postgres:
        last = state.read().get("base", 0)
        if not kind and time.time() - last < database.EACH_SECS:
            return
        with alone("point"), database.without_retention(settings):
            at, name = database.dump(settings)
            stamp = points.stamp(at)
            bucket.copy(settings, stamp)
            points.add(points.Point(at, stamp, dump=name))
        state.note(base=at, point=at)
    else:
        database.prepare()
        found = database.bases()
        restored = max((each.at for each in points.read()[1]), default=0.0)
        due = kind or database.kind_due(found, time.time(), restored)
        if not due:
            # Of another service before this one, too.
            if found:
                state.note(base=found[-1].ended)
            return
        database.back_up("full" if due == "incr" and not found else due)
        state.note(base=database.bases()[-1].ended)
        # Before it there may be no moment to go back to.
        point(settings)
    papers.keep_dead_letters(settings)


def verify(settings: Settings, *, now: bool = False) -> None:
    """Read all that is in the repository, each week."""
    if not now and time.time() - state.read().get("verified", 0) < VERIFY_SECS:
        return
    if not settings.is_outside_postgres:
        if not database.bases():
            return
        database.verify()
    bucket.verify(settings)
    note_error("verification", None)
    state.note(verified=time.time())


def copy_off_host(settings: Settings) -> None:
    mirror.copy(settings)
    if settings.target:
        state.note(mirror=time.time())


# --- again and again -----------------------------------------------------------------------------------------


@dataclass
class Task:
    """Something that is done again and again, in a thread of its own, whatever becomes of it."""

    name: str
    pause_secs: Callable[[], float]
    work: Callable[[], Any]
    again_secs: float = AGAIN_SECS
    #: Seconds after the start of the service.
    first_secs: float = 0

    def run_forever(self) -> None:
        failed = False
        time.sleep(self.first_secs)
        while True:
            try:
                self.work()
            except Exception as error:
                text = str(error) if isinstance(error, Failure) else traceback.format_exc()
                if not failed or text.splitlines()[0] not in state.read().get("errors", {}).get(
                    self.name, ""
                ):
                    print(f"{self.name}: {text}", flush=True)
                failed = True
                note_error(self.name, text)
                time.sleep(self.again_secs)
                continue
            if failed:
                print(f"{self.name}: works again", flush=True)
            failed = False
            note_error(self.name, None)
            time.sleep(self.pause_secs())


def note_error(name: str, error: str | None) -> None:
    """Write down what keeps something, or that nothing does: beside the repository, which may be what fails."""
    if state.read(ERRORS).get(name) != error:
        state.note(ERRORS, **{name: error})


def point_pause() -> float:
    copying = float(state.read().get("copy_seconds", 0.0))
    return min(max(POINT_SECS, COPIES * copying), MOST_POINT_SECS)


def tasks(settings: Settings) -> list[Task]:
    """What is done again and again, where there is a repository."""

    def task(
        name: str, pause_secs: Callable[[], float], work: Callable[[Settings], Any], **more: float
    ) -> Task:
        def guarded() -> None:
            repository.require(settings)
            work(settings)

        return Task(name, pause_secs, guarded, **more)

    look = float(VERIFY_LOOK_SECS)
    found = [
        task("base backup", lambda: BASE_SECS, base),
        task("verification", lambda: look, verify, again_secs=look, first_secs=look),
    ]
    if not settings.is_outside_postgres:
        found.append(task("point", point_pause, point))
    if settings.target:
        found.append(task("copy off this host", lambda: MIRROR_SECS, copy_off_host))
    return found


def remember_start(settings: Settings) -> None:
    """Since when there are backups: what was never done is as old as that."""
    with suppress(Failure):
        repository.require(settings)
        if "since" not in state.read():
            state.note(since=STARTED)


def serve(settings: Settings) -> None:
    """Run until the process is ended."""
    print(
        f"A point every {POINT_SECS} s, a base backup each day, kept {settings.keep_days} days;"
        f" a copy off this host: {settings.target or 'none, as BACKUP_TARGET is empty'}",
        flush=True,
    )
    remember_start(settings)
    threads = [threading.Thread(target=task.run_forever, daemon=True) for task in tasks(settings)]
    for thread in threads:
        thread.start()
    ThreadingHTTPServer(("", PORT), figures_handler(settings)).serve_forever()


# --- figures -----------------------------------------------------------------------------------------------


def figures(settings: Settings, found: dict[str, Any], now: float) -> str:
    """What Prometheus reads. What was never done is as old as the service."""
    since = found.get("since", STARTED)
    ages = [
        ("dagster_backup_age_seconds", "Age of the last good base backup", "base"),
        ("dagster_backup_verified_age_seconds", "Since the repository was last read as a whole", "verified"),
    ]
    if not settings.is_outside_postgres:
        # Dumps are moments themselves.
        ages.append(
            (
                "dagster_backup_point_age_seconds",
                "Age of the newest moment to which the stack can be restored",
                "point",
            )
        )
    if settings.target:
        ages.append(("dagster_backup_copy_age_seconds", "Age of the copy off this host", "mirror"))
    if "drill" in found:
        ages.append(("dagster_backup_drill_age_seconds", "Since the last restore drill", "drill"))
    lines = []
    for name, text, key in ages:
        lines += [
            f"# HELP {name} {text}.",
            f"# TYPE {name} gauge",
            f"{name} {max(now - found.get(key, since), 0):.0f}",
        ]
    return "\n".join([*lines, ""])


def figures_handler(settings: Settings) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = self.path == "/metrics"
            body = figures(settings, state.read(), time.time()).encode() if is_known else b""
            self.send_response(200 if is_known else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A look is no news."""

    return Handler
