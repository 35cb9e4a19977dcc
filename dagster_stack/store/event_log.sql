-- The event log, and how far its transactions are (event_log.py).

-- name: standing
-- Answered from the index that `init` makes (STEP_ENDS_INDEX), however many events a run has.
SELECT
    runs.status,
    runs.run_body,
    (SELECT value FROM run_tags WHERE run_tags.run_id = runs.run_id AND key = :code_tag),
    ends.dagster_event_type,
    count(ends.id)
FROM runs
LEFT JOIN event_logs AS ends
  ON ends.run_id = runs.run_id AND ends.step_key = :step AND ends.dagster_event_type = ANY(:kinds)
WHERE runs.run_id = :run
GROUP BY runs.id, ends.dagster_event_type;

-- name: fenced_insert
-- Stores events for the holder of a lease: once, also when the answer to the first try was lost with its connection,
-- and not at all when another process has taken over.
WITH mine AS (
    UPDATE dagster_stack_claims SET writes = :writes
    WHERE run_id = :run AND step_key = :step AND attempt = :attempt AND epoch = :epoch AND writes < :writes
    RETURNING 1
)
INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
SELECT row.run_id, row.event, row.dagster_event_type, row.timestamp, row.step_key, row.asset_key, row.partition
FROM mine, unnest(
    CAST(:run_ids AS text[]), CAST(:events AS text[]), CAST(:dagster_event_types AS text[]),
    CAST(:timestamps AS timestamp[]), CAST(:step_keys AS text[]), CAST(:asset_keys AS text[]),
    CAST(:partitions AS text[])
) WITH ORDINALITY
    AS row(run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition, place)
ORDER BY place;

-- name: news
-- Events of a run from a row on, without those that are known, and how far transactions were as it was read. The next
-- one to begin is not the snapshot's end, which is the first after the last that has *ended*: newer ones may be under way.
SELECT CAST(CAST(pg_snapshot_xmin(present) AS text) AS bigint),
    CAST(CAST(pg_snapshot_xmin(present) AS text) AS bigint) + age(CAST(pg_snapshot_xmin(present) AS xid)),
    found.id, found.event
FROM pg_current_snapshot() AS present LEFT JOIN (
    SELECT id, event FROM event_logs
    WHERE run_id = :run AND id > :after AND NOT id = ANY(CAST(:known AS bigint[]))
        AND dagster_event_type = ANY(:kinds)
    ORDER BY id LIMIT :limit
) AS found ON true
ORDER BY found.id;

-- name: stored
-- Whether an event is there, to the letter: no two have the same time.
SELECT 1 FROM event_logs
WHERE run_id = :run_id AND dagster_event_type = :dagster_event_type AND event = :event LIMIT 1;

-- name: writes
SELECT writes FROM dagster_stack_claims
WHERE run_id = :run AND step_key = :step AND attempt = :attempt AND epoch = :epoch;
