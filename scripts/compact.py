"""`make compact`: Postgres gives the disk back what deleted rows took, and work goes on meanwhile."""

import re

from scripts import compose, env_file
from scripts.console import Failure, done, main, run_logged, say

#: pg_repack copies a table and its indexes, with what is written meanwhile: so much of their size must be free.
ROOM = 1.2
#: Tables with fewer bytes give back nothing worth a copy.
SMALLEST = 8 << 20
#: Seconds that it waits for others to let go of a table, twice for an instant, before it gives up: it cancels nobody.
WAIT_SECS = 60
#: Those that rows are deleted from; what their dead rows leave is reused, but not given back.
TABLES = """
    SELECT format('%s %s', relname, pg_total_relation_size(pg_class.oid)) FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = 'public' AND relkind = 'r' AND relname IN ('event_logs', 'runs', 'run_tags', 'snapshots',
        'asset_event_tags', 'asset_check_executions', 'bulk_actions', 'job_ticks', 'asset_keys')
    ORDER BY pg_total_relation_size(pg_class.oid)
"""
OUTSIDE = (
    "Postgres is an outside store (POSTGRES_HOST in {file}): its space is its operator's. pg_repack runs beside that"
    " server, as a superuser or as the tables' owner with --no-superuser-check: https://reorg.github.io/pg_repack"
)
CONNECTION = ("--host=/run/postgresql", "--username=postgres")


def compact() -> None:
    compose.require_env_file()
    if env_file.settings().get("POSTGRES_HOST"):
        raise Failure(OUTSIDE.format(file=env_file.env_path().name))
    before = sizes()
    large = {table: size for table, size in before.items() if size >= SMALLEST}
    if not large:
        done("no table is large enough to give anything back")
        return
    names = ", ".join(f"{table} ({in_mb(size)})" for table, size in large.items())
    say(f"  a copy of each is made, one after the other: {names}")
    require_room(max(large.values()))
    sql("CREATE EXTENSION IF NOT EXISTS pg_repack")
    try:
        for table in large:
            repack(table)
    finally:
        # Of the version that is installed now; the next one may have another.
        sql("DROP EXTENSION IF EXISTS pg_repack")
    after = sizes()
    for table, size in large.items():
        say(f"  {table}: {in_mb(size)} before, {in_mb(after[table])} now")
    done(f"the disk has {in_mb(max(0, sum(large.values()) - sum(after[table] for table in large)))} more")


def sizes() -> dict[str, int]:
    """Bytes of tables with their indexes, the smallest first: the room that one gives back is there for the next."""
    rows = (line.split() for line in sql(TABLES).splitlines())
    return {table: int(size) for table, size in rows}


def require_room(size: int) -> None:
    """Raise Failure when the largest table has no room for its copy."""
    found = inside("df", "--output=avail", "--block-size=1", "/data")
    free = int(re.findall(r"\d+", found)[-1])
    if free < ROOM * size:
        raise Failure(
            f"The disk under Postgres has {in_mb(free)} free, and the copy of its largest table needs {in_mb(ROOM * size)}."
            " Make room, or a larger disk: deleted rows' space is used again without this, only not given back."
        )


def repack(table: str) -> None:
    options = [*CONNECTION, f"--dbname={database()}", f"--table=public.{table}", "--no-kill-backend", f"--wait-timeout={WAIT_SECS}"]  # fmt: skip
    run_logged(f"Compacting {table}", [*compose.compose(), *EXEC, "pg_repack", *options])


EXEC = ("exec", "--no-TTY", "postgres")


def sql(statement: str) -> str:
    options = ("--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "-v", "ON_ERROR_STOP=1")
    return inside("psql", *CONNECTION, f"--dbname={database()}", *options, f"--command={statement}")


def inside(*command: str) -> str:
    """What a program in Postgres's container prints. Over the socket it is the superuser's, without a password."""
    return compose.output(*EXEC, *command)


def database() -> str:
    return env_file.settings().get("POSTGRES_DB") or "dagster"


def in_mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


if __name__ == "__main__":
    main(compact)
