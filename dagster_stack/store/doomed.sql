-- Runs that retention removes, or has removed (doomed.py).

-- name: table
-- Made by `init`. A row is there before anything of its run goes, and stays while something of it is left: what is the
-- latest of an asset, a partition or a check. `snapshots`: those that the run's row named, until they were looked at.
CREATE TABLE IF NOT EXISTS dagster_stack_doomed (
    run_id text PRIMARY KEY,
    snapshots text[] NOT NULL,
    doomed_at timestamptz NOT NULL DEFAULT now(),
    gone_at timestamptz,
    checked_at timestamptz
);

-- name: run_ends
-- Ended runs in the order of their ends: Dagster has no index by time.
CREATE INDEX IF NOT EXISTS dagster_stack_run_ends
ON runs ((coalesce(end_time, CAST(extract(epoch FROM update_timestamp) AS double precision))), id)
WHERE status IN ('SUCCESS', 'FAILURE', 'CANCELED');

-- name: checks_of_runs
CREATE INDEX IF NOT EXISTS dagster_stack_checks_of_runs ON asset_check_executions (run_id);

-- name: latest_checks
CREATE INDEX IF NOT EXISTS dagster_stack_latest_checks
ON asset_check_executions (asset_key, check_name, (coalesce(partition, '')), id);

-- name: lock
SELECT pg_advisory_xact_lock(hashtextextended(:name, 0));

-- name: lock_shared
SELECT pg_advisory_xact_lock_shared(hashtextextended(:name, 0));

-- name: among
SELECT run_id FROM dagster_stack_doomed WHERE run_id = ANY(:runs) LIMIT 1;
