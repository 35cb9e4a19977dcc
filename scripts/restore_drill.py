"""`make restore-drill`: the newest backup restored into a scratch copy under another name, looked at, and removed."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from scripts import backups, base_image, compose, engine, env_file, images, restore, up
from scripts.backups import local, size
from scripts.console import BUILD_FOLDER, Failure, Progress, done, main, run_logged, say

#: What the scratch copy has of its own: no backups, no pages, and of the stores those that are looked at, none of them an
#: outside one.
OWN = {"BACKUP": "off", "BACKUP_TARGET": "", "LOGIN": "off", "INTERNAL_TLS": "off", "BIND_ADDRESS": "127.0.0.1",
       "COMPOSE_PROFILES": "postgres,minio", "MINIO_PORT": "0", "MINIO_CONSOLE_PORT": "0", "TAKE_OVER": "yes",
       "RABBITMQ_HOST": "", "S3_ENDPOINT_URL": "", "S3_PUBLIC_URL": "", "S3_ACCESS_KEY": "drill", "S3_SECRET_KEY": "of-a-scratch-copy",
       "S3_SESSION_TOKEN": ""}  # fmt: skip
COUNTS = "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM event_logs)"


def drill() -> None:
    backups.require_service()
    if env_file.settings().get("POSTGRES_HOST"):
        raise Failure(
            "Postgres is an outside store, of which there are dumps: pg_restore one into a database beside it."
        )
    project = compose.project()
    name = f"{project}-drill"
    say(
        f"Restoring {project}'s newest backup as {name}, which is removed afterwards; {project} goes on meanwhile"
    )
    with scratch_copy(name):
        began = time.monotonic()
        plan = json.loads(restore.ask("plan"))
        with Progress("Restoring the database"):
            restore.ask("database")
        restore.start_postgres()
        done(f"database as of {local(plan['to'])} ({time.monotonic() - began:.0f} s)")
        up.run("Starting MinIO", (*up.UP, "minio", "init"))
        up.wait_until_healthy("init")
        with Progress("Restoring the bucket"):
            restore.ask("bucket")
        seconds = time.monotonic() - began
        with Progress("Comparing the bucket with its copy, byte by byte"):
            bucket = json.loads(restore.ask("compare"))
        database = env_file.settings().get("POSTGRES_DB") or "dagster"
        counts = compose.output(
            "exec",
            "--no-TTY",
            "postgres",
            "psql",
            "-h",
            "/run/postgresql",
            "-U",
            "postgres",
            "-d",
            database,
            "-Atc",
            COUNTS,
        )
    runs, events = counts.strip().split("|")
    restored = plan["base"]["size"] + bucket["bytes"]
    backups.ask("drilled", "--seconds", f"{seconds:.0f}")
    done(
        f"{int(runs):,} runs, {int(events):,} events, {bucket['count']:,} objects: {size(restored)} in {seconds:.0f} s,"
        f" {restored / 1e9 / seconds * 60:.2f} GB/min"
    )


@contextmanager
def scratch_copy(name: str) -> Iterator[None]:
    """All that is done in here is done to a copy with volumes of its own, which reads this one's repository."""
    folder = env_file.settings().get("BACKUP_DIR") or engine.ask(
        "volume", "inspect", "--format", "{{.Mountpoint}}", f"{compose.project()}_backups"
    )
    scratch = BUILD_FOLDER / name / ".env"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    env_file.write(scratch, env_file.env_path().read_text(encoding="utf-8"))
    own = {**OWN, "COMPOSE_PROJECT_NAME": name, "BACKUP_DIR": folder}
    env_file.set_values(own, scratch)
    here = {each.name: base_image.image_id(each.name) for each in images.images()}
    tags = {each.replace(compose.project(), name, 1): image_id for each, image_id in here.items() if image_id}
    for tag, image_id in tags.items():
        subprocess.run([engine.docker(), "tag", image_id, tag], check=True)
    with restore.settings_in_use(scratch, *own):
        try:
            remove(name)
            yield
        finally:
            remove(name)
            engine.ask("image", "rm", *tags)
            scratch.unlink()


def remove(name: str) -> None:
    """The scratch copy with its volumes; one of a drill that was killed, too."""
    run_logged(f"Removing {name}", [*compose.compose(), *restore.DOWN, "--volumes"])


if __name__ == "__main__":
    main(drill)
