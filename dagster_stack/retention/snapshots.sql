-- Snapshots of jobs and plans that no run names any more (snapshots.py).

-- name: candidates
SELECT DISTINCT unnest(snapshots) FROM dagster_stack_doomed WHERE gone_at IS NOT NULL;

-- name: of_runs
-- Those that runs name, and runs that are doomed still have.
SELECT snapshot_id FROM runs WHERE snapshot_id IS NOT NULL
UNION SELECT found[1] FROM runs, regexp_matches(run_body, '"execution_plan_snapshot_id": "([^"]+)"', 'g') AS found
UNION SELECT unnest(snapshots) FROM dagster_stack_doomed WHERE gone_at IS NULL;

-- name: jobs
SELECT snapshot_id FROM snapshots WHERE snapshot_type = 'PIPELINE';

-- name: bodies
SELECT snapshot_id, snapshot_body FROM snapshots WHERE snapshot_id = ANY(:snapshots);

-- name: newest
SELECT coalesce(max(id), 0) FROM runs;

-- name: delete
-- But those that a run names which has begun since.
WITH gone AS (
    DELETE FROM snapshots WHERE snapshot_id = ANY(:snapshots)
        AND NOT EXISTS (SELECT FROM runs WHERE runs.snapshot_id = snapshots.snapshot_id)
        AND NOT EXISTS (
            SELECT FROM runs WHERE runs.id > :newest AND strpos(run_body, '"' || snapshots.snapshot_id || '"') > 0
        )
    RETURNING octet_length(snapshot_body) AS size
)
SELECT count(*), coalesce(sum(size), 0) FROM gone;

-- name: done
UPDATE dagster_stack_doomed SET snapshots = '{}' WHERE gone_at IS NOT NULL AND snapshots != '{}';
