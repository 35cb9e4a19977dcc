-- Which runs belong together, and which groups may go (groups.py).

-- name: kin
-- Runs, with what ties them to others, and whether each ended long ago.
SELECT runs.run_id, coalesce(root.value, runs.run_id), runs.backfill_id,
    runs.status IN ('SUCCESS', 'FAILURE', 'CANCELED')
        AND coalesce(end_time, CAST(extract(epoch FROM update_timestamp) AS double precision)) <= :before
FROM runs LEFT JOIN run_tags AS root ON root.run_id = runs.run_id AND root.key = 'dagster/root_run_id'
WHERE runs.id IN (
    SELECT id FROM runs WHERE run_id = ANY(:runs) OR run_id = ANY(:roots)
    UNION SELECT id FROM runs WHERE backfill_id = ANY(:backfills)
    UNION SELECT runs.id FROM run_tags JOIN runs USING (run_id)
        WHERE key = 'dagster/root_run_id' AND value = ANY(:roots)
);

-- name: open_backfills
SELECT key FROM bulk_actions
WHERE key = ANY(:backfills) AND NOT status IN ('COMPLETED', 'COMPLETED_SUCCESS', 'COMPLETED_FAILED', 'FAILED', 'CANCELED');

-- name: wanted
-- Runs that a page about now, or an automation, would miss: the last one of an asset, and the last one that made it; one by
-- which an asset or partition counts as failed; one that was to evaluate a check and did not, nor did any later one.
SELECT last_run_id FROM asset_keys WHERE last_run_id = ANY(:runs)
UNION SELECT made.run_id FROM event_logs AS made
WHERE made.run_id = ANY(:runs) AND made.dagster_event_type = 'ASSET_MATERIALIZATION' AND made.asset_key IS NOT NULL
    AND NOT EXISTS (
        SELECT FROM event_logs AS later
        WHERE later.asset_key = made.asset_key AND later.dagster_event_type = 'ASSET_MATERIALIZATION'
            AND later.id > made.id
    )
-- The last run of an asset is nobody's once somebody has reported it by hand.
UNION SELECT planned.run_id FROM event_logs AS planned JOIN runs USING (run_id)
WHERE planned.run_id = ANY(:runs) AND runs.status = 'FAILURE'
    AND planned.dagster_event_type = 'ASSET_MATERIALIZATION_PLANNED'
    AND planned.asset_key IS NOT NULL AND planned.partition IS NULL
    AND NOT EXISTS (
        SELECT FROM event_logs AS later
        WHERE later.asset_key = planned.asset_key AND later.id > planned.id
            AND later.dagster_event_type = 'ASSET_MATERIALIZATION_PLANNED'
    )
UNION SELECT planned.run_id FROM event_logs AS planned JOIN runs USING (run_id)
WHERE planned.run_id = ANY(:runs) AND runs.status = 'FAILURE'
    AND planned.dagster_event_type = 'ASSET_MATERIALIZATION_PLANNED'
    AND planned.asset_key IS NOT NULL AND planned.partition IS NOT NULL
    -- One by one: the index has the kind before the partition.
    AND NOT EXISTS (
        SELECT FROM event_logs AS later
        WHERE later.asset_key = planned.asset_key AND later.partition = planned.partition AND later.id > planned.id
            AND later.dagster_event_type = 'ASSET_MATERIALIZATION_PLANNED'
    )
    AND NOT EXISTS (
        SELECT FROM event_logs AS later
        WHERE later.asset_key = planned.asset_key AND later.partition = planned.partition AND later.id > planned.id
            AND later.dagster_event_type = 'ASSET_MATERIALIZATION'
    )
UNION SELECT planned.run_id FROM asset_check_executions AS planned
WHERE planned.run_id = ANY(:runs) AND planned.execution_status = 'PLANNED'
    AND NOT EXISTS (
        SELECT FROM asset_check_executions AS later
        WHERE later.asset_key = planned.asset_key AND later.check_name = planned.check_name
            AND coalesce(later.partition, '') = coalesce(planned.partition, '') AND later.id > planned.id
    );

-- name: doom
-- With all that looks like a plan's snapshot in a run's text: the launch's config may have such a key too.
INSERT INTO dagster_stack_doomed (run_id, snapshots)
SELECT run_id, array_remove(array_append(
    ARRAY(SELECT found[1] FROM regexp_matches(run_body, '"execution_plan_snapshot_id": "([^"]+)"', 'g') AS found),
    CAST(snapshot_id AS text)
), NULL)
FROM runs WHERE run_id = ANY(:runs)
ON CONFLICT (run_id) DO NOTHING;
