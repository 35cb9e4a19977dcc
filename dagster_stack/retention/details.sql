-- What tells only how a step was executed, of ended runs (details.py).

-- name: ended
-- Runs in the order of their ends, from a place on. By the index dagster_stack_run_ends.
SELECT run_id, ended, id FROM (
    SELECT run_id, id, coalesce(end_time, CAST(extract(epoch FROM update_timestamp) AS double precision)) AS ended
    FROM runs WHERE status IN ('SUCCESS', 'FAILURE', 'CANCELED')
) AS each
WHERE ended <= :before AND (ended, id) > (:after, :after_id)
ORDER BY ended, id LIMIT :limit;

-- name: transient
-- A level of 10 is DEBUG. In a text of the user's a quote has a backslash before it.
SELECT id FROM event_logs
WHERE run_id = ANY(:runs) AND (
    dagster_event_type = ANY(:kinds) OR dagster_event_type IS NULL AND event LIKE '%"level": 10, %'
);

-- name: sizes
SELECT count(*), coalesce(sum(pg_column_size(event)), 0) FROM event_logs WHERE id IN ({transient});

-- name: delete
WITH gone AS (
    DELETE FROM event_logs WHERE id IN ({transient} LIMIT :limit) RETURNING pg_column_size(event) AS size
)
SELECT count(*), coalesce(sum(size), 0) FROM gone;
