-- The rows of doomed runs (removal.py).

-- name: doomed
SELECT run_id FROM dagster_stack_doomed WHERE gone_at IS NULL ORDER BY run_id LIMIT :limit;

-- name: events_of
SELECT run_id, count(*) FROM event_logs WHERE run_id = ANY(:runs) GROUP BY run_id;

-- name: old_checks
-- All but the latest of a check and partition, and the latest that was evaluated.
SELECT mine.id FROM asset_check_executions AS mine
WHERE mine.run_id = ANY(:runs)
    AND EXISTS (
        SELECT FROM asset_check_executions AS later
        WHERE later.asset_key = mine.asset_key AND later.check_name = mine.check_name
            AND coalesce(later.partition, '') = coalesce(mine.partition, '') AND later.id > mine.id
    )
    AND (
        mine.execution_status = 'PLANNED'
        OR EXISTS (
            SELECT FROM asset_check_executions AS later
            WHERE later.asset_key = mine.asset_key AND later.check_name = mine.check_name
                AND coalesce(later.partition, '') = coalesce(mine.partition, '') AND later.id > mine.id
                AND later.execution_status != 'PLANNED'
        )
    );

-- name: old_events
-- All but the latest of its kind of an asset and partition, and what a check that stays was evaluated by.
SELECT mine.id FROM event_logs AS mine
WHERE mine.run_id = ANY(:runs)
    AND NOT coalesce(
        mine.asset_key IS NOT NULL AND mine.dagster_event_type = ANY(:kept)
        AND CASE WHEN mine.partition IS NULL THEN NOT EXISTS (
            SELECT FROM event_logs AS later
            WHERE later.asset_key = mine.asset_key AND later.dagster_event_type = mine.dagster_event_type
                AND later.partition IS NULL AND later.id > mine.id
        ) ELSE NOT EXISTS (
            SELECT FROM event_logs AS later
            WHERE later.asset_key = mine.asset_key AND later.dagster_event_type = mine.dagster_event_type
                AND later.partition = mine.partition AND later.id > mine.id
        ) END,
        false
    )
    AND NOT mine.id = ANY(ARRAY(
        SELECT evaluation_event_storage_id FROM asset_check_executions
        WHERE run_id = ANY(:runs) AND evaluation_event_storage_id IS NOT NULL AND NOT id IN ({old_checks})
    ))
    -- And since when a partition has the data version that it has now: by that Dagster tells whether what was made of an
    -- earlier one is stale. At most one more of each partition.
    AND NOT EXISTS (
        SELECT FROM asset_event_tags AS version
        WHERE mine.dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_OBSERVATION') AND mine.partition IS NOT NULL
            AND version.event_id = mine.id AND version.key = 'dagster/data_version'
            AND NOT EXISTS (
                SELECT FROM event_logs AS later
                WHERE later.asset_key = mine.asset_key AND later.dagster_event_type = mine.dagster_event_type
                    AND later.partition = mine.partition AND later.id > mine.id
                    AND NOT EXISTS (
                        SELECT FROM asset_event_tags AS other
                        WHERE other.event_id = later.id AND other.key = version.key AND other.value = version.value
                    )
            )
            AND NOT EXISTS (
                SELECT FROM asset_event_tags AS other
                WHERE other.key = version.key AND other.value = version.value AND other.event_id = (
                    SELECT max(earlier.id) FROM event_logs AS earlier
                    WHERE earlier.asset_key = mine.asset_key AND earlier.dagster_event_type = mine.dagster_event_type
                        AND earlier.partition = mine.partition AND earlier.id < mine.id
                )
            )
    );

-- name: kept_events
-- Those that stay, as texts: they may name objects.
SELECT run_id, event FROM event_logs WHERE run_id = ANY(:runs) AND NOT id IN ({old_events});

-- name: count_checks
SELECT count(*), coalesce(sum(pg_column_size(evaluation_event)), 0)
FROM asset_check_executions WHERE id IN ({old_checks});

-- name: delete_checks
WITH gone AS (
    DELETE FROM asset_check_executions WHERE id IN ({old_checks}) RETURNING pg_column_size(evaluation_event) AS size
)
SELECT count(*), coalesce(sum(size), 0) FROM gone;

-- name: count_events
SELECT count(*), coalesce(sum(pg_column_size(event)), 0) FROM event_logs WHERE id IN ({old_events});

-- name: delete_events
WITH gone AS (
    DELETE FROM event_logs WHERE id IN ({old_events}) RETURNING id, pg_column_size(event) AS size
), tags AS (
    DELETE FROM asset_event_tags WHERE event_id IN (SELECT id FROM gone) RETURNING pg_column_size(value) AS size
), freed AS (
    SELECT size FROM gone UNION ALL SELECT size FROM tags
)
SELECT count(*), coalesce(sum(size), 0) FROM freed;

-- name: keyed
-- Runs that stay with their tags, empty. Those that a sensor or schedule asked for with a run key: Dagster looks for the key
-- among runs, and launches once more what it does not find. And the last one of each partition of a job without assets, but
-- for canceled ones: without it that partition would count as missing.
SELECT run_id FROM run_tags WHERE run_id = ANY(:runs) AND key = 'dagster/run_key'
UNION SELECT mine.run_id FROM runs AS mine
WHERE mine.run_id = ANY(:runs) AND mine.partition_set IS NOT NULL AND mine.partition IS NOT NULL
    AND mine.status != 'CANCELED' 
    AND NOT EXISTS (
        SELECT FROM event_logs AS planned
        WHERE planned.run_id = mine.run_id AND planned.dagster_event_type = 'ASSET_MATERIALIZATION_PLANNED'
    )
    AND NOT EXISTS (
        SELECT FROM runs AS later
        WHERE later.partition_set = mine.partition_set AND later.partition = mine.partition AND later.id > mine.id
            AND later.status != 'CANCELED'
            -- Another location may have a job of that name. By the text, since tags go first.
            AND substring(later.run_body FROM '"\.dagster/repository": "[^"]*"')
                IS NOT DISTINCT FROM substring(mine.run_body FROM '"\.dagster/repository": "[^"]*"')
    );

-- name: count_runs
SELECT count(*), coalesce(sum(pg_column_size(run_body)), 0) FROM runs
WHERE run_id = ANY(:runs) AND NOT run_id IN ({keyed});

-- name: delete_claims
DELETE FROM dagster_stack_claims WHERE run_id = ANY(:runs);

-- name: delete_tags
WITH gone AS (
    DELETE FROM run_tags WHERE run_id = ANY(:runs) AND NOT run_id IN ({keyed}) RETURNING pg_column_size(value) AS size
)
SELECT count(*), coalesce(sum(size), 0) FROM gone;

-- name: delete_runs
WITH gone AS (
    DELETE FROM runs WHERE run_id = ANY(:runs) AND NOT run_id IN ({keyed}) RETURNING pg_column_size(run_body) AS size
)
SELECT count(*), coalesce(sum(size), 0) FROM gone;

-- name: mark
UPDATE dagster_stack_doomed SET gone_at = coalesce(gone_at, now()), checked_at = now() WHERE run_id = ANY(:runs);

-- name: remains
-- Runs that were removed a while ago: what of theirs was the latest may no longer be so, and late outputs may have come.
SELECT run_id FROM dagster_stack_doomed
WHERE gone_at IS NOT NULL AND snapshots = '{}' AND checked_at < now() - make_interval(secs => :secs)
ORDER BY checked_at, run_id LIMIT :limit;

-- name: forget
-- Nothing is left of them.
DELETE FROM dagster_stack_doomed AS doomed
WHERE run_id = ANY(:runs) AND gone_at < now() - make_interval(secs => :secs)
    AND NOT EXISTS (SELECT FROM event_logs WHERE event_logs.run_id = doomed.run_id)
    AND NOT EXISTS (SELECT FROM asset_check_executions AS checks WHERE checks.run_id = doomed.run_id)
    AND NOT EXISTS (SELECT FROM runs WHERE runs.run_id = doomed.run_id);

-- name: delete_backfills
WITH gone AS (
    DELETE FROM bulk_actions
    WHERE id IN (
        SELECT id FROM bulk_actions AS old
        WHERE status IN ('COMPLETED', 'COMPLETED_SUCCESS', 'COMPLETED_FAILED', 'FAILED', 'CANCELED')
            AND timestamp < to_timestamp(:before) AT TIME ZONE 'utc'
            AND NOT EXISTS (SELECT FROM runs WHERE runs.backfill_id = old.key)
        LIMIT :limit
    )
    RETURNING key, pg_column_size(body) AS size
), tags AS (
    DELETE FROM backfill_tags WHERE backfill_id IN (SELECT key FROM gone)
)
SELECT count(*), coalesce(sum(size), 0) FROM gone;

-- name: count_backfills
SELECT count(*), coalesce(sum(pg_column_size(body)), 0) FROM bulk_actions AS old
WHERE status IN ('COMPLETED', 'COMPLETED_SUCCESS', 'COMPLETED_FAILED', 'FAILED', 'CANCELED')
    AND timestamp < to_timestamp(:before) AT TIME ZONE 'utc'
    AND NOT EXISTS (SELECT FROM runs WHERE runs.backfill_id = old.key);
