"""How Postgres tidies up the tables of which rows are deleted all the time."""

from collections.abc import Iterator

import sqlalchemy

#: Those that retention, and Dagster itself, deletes from.
TABLES = ("event_logs", "runs", "run_tags", "asset_event_tags", "asset_check_executions", "job_ticks")
#: At a hundredth of a table: by default it is a fifth, and a log of 100 GB would keep 20 GB of dead rows.
OPTIONS = {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_analyze_scale_factor": "0.02",
    "toast.autovacuum_vacuum_scale_factor": "0.01",
    "toast.autovacuum_vacuum_threshold": "1000",
}
#: Of a table that has none of its own: an operator's stay. Only then, since it waits for a vacuum under way.
SET = """
    DO $$ BEGIN
        IF NOT EXISTS (
            SELECT FROM pg_class AS main LEFT JOIN pg_class AS toast ON toast.oid = main.reltoastrelid,
                unnest(array_cat(main.reloptions, toast.reloptions)) AS option
            WHERE main.oid = '{table}'::regclass AND option LIKE 'autovacuum_%'
        ) THEN
            ALTER TABLE {table} SET ({options});
        END IF;
    END $$
"""


def settings() -> Iterator[sqlalchemy.TextClause]:
    """The statements that set it. Safe to repeat."""
    options = ", ".join(f"{name} = {value}" for name, value in OPTIONS.items())
    return (sqlalchemy.text(SET.format(table=table, options=options)) for table in TABLES)
