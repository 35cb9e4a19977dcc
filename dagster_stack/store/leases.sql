-- Leases: who may execute a step attempt, or drive a run (leases.py).

-- name: table
-- Made by `init`. With the second key a new epoch is a change of a key. So it waits for transactions that hold the row
-- FOR KEY SHARE, as fenced writes do; a sign of life does not wait.
CREATE TABLE IF NOT EXISTS dagster_stack_claims (
    run_id text NOT NULL,
    step_key text NOT NULL,
    attempt integer NOT NULL,
    epoch integer NOT NULL,
    holder text NOT NULL,
    beat_at timestamptz,
    leaving boolean NOT NULL DEFAULT false,
    writes integer NOT NULL DEFAULT 0,
    losses jsonb NOT NULL DEFAULT '[]',
    returns jsonb NOT NULL DEFAULT '[]',
    PRIMARY KEY (run_id, step_key, attempt),
    UNIQUE (run_id, step_key, attempt, epoch)
);

-- name: column
-- For a table of an older version; only then, since it waits for open transactions.
DO $$ BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = 'dagster_stack_claims'::regclass AND attname = 'returns'
    ) THEN
        ALTER TABLE dagster_stack_claims ADD COLUMN returns jsonb NOT NULL DEFAULT '[]';
    END IF;
END $$;

-- name: acquire
-- A holder that died without a word adds a loss here; one whose death was seen (MARK_LOST), or that handed its work
-- over, has none to add.
INSERT INTO dagster_stack_claims AS held (run_id, step_key, attempt, epoch, holder, beat_at)
VALUES (:run, :step, :attempt, 1, :holder, now())
ON CONFLICT (run_id, step_key, attempt) DO UPDATE SET
    epoch = held.epoch + 1,
    writes = 0,
    losses = CASE
        WHEN held.beat_at IS NULL OR held.leaving OR held.holder = excluded.holder THEN held.losses
        ELSE held.losses || jsonb_build_object(
            'holder', held.holder, 'reason', 'no sign of life for ' || CAST(:stale AS text) || ' s',
            'at', extract(epoch FROM now())
        )
    END,
    returns = CASE
        WHEN held.beat_at IS NULL OR NOT held.leaving THEN held.returns
        ELSE held.returns || jsonb_build_object(
            'holder', held.holder, 'reason', CAST(:stopped AS text), 'at', extract(epoch FROM now())
        )
    END,
    holder = excluded.holder,
    beat_at = excluded.beat_at,
    leaving = false
WHERE held.beat_at IS NULL
    OR held.beat_at < now() - make_interval(secs => :stale)
    OR held.leaving
    -- The same process asks again, since the connection was lost with the answer.
    OR held.holder = excluded.holder
RETURNING epoch, losses, returns;

-- name: renew
UPDATE dagster_stack_claims SET beat_at = now(), leaving = :leaving
WHERE run_id = :run AND step_key = :step AND attempt = :attempt AND epoch = :epoch
RETURNING (SELECT status FROM runs WHERE runs.run_id = :run);

-- name: release
-- A new epoch without a holder: all further writes of the last holder are refused.
UPDATE dagster_stack_claims SET
    epoch = epoch + 1,
    beat_at = NULL,
    returns = returns || jsonb_build_object(
        'holder', holder, 'reason', CAST(:reason AS text), 'at', extract(epoch FROM now())
    )
WHERE run_id = :run AND step_key = :step AND attempt = :attempt AND epoch = :epoch;

-- name: revoke
UPDATE dagster_stack_claims SET epoch = epoch + 1, beat_at = NULL
WHERE run_id = :run AND step_key != '' AND beat_at IS NOT NULL
RETURNING run_id, step_key, attempt;

-- name: mark_lost
-- By the worker whose process died. A process that has already taken over gets the reason too.
UPDATE dagster_stack_claims SET
    losses = CASE
        WHEN holder = :holder AND beat_at IS NOT NULL
        THEN losses || jsonb_build_object(
            'holder', CAST(:holder AS text), 'reason', CAST(:reason AS text), 'at', extract(epoch FROM now())
        )
        ELSE coalesce((
            SELECT jsonb_agg(
                CASE WHEN loss ->> 'holder' = :holder
                THEN loss || jsonb_build_object('reason', CAST(:reason AS text)) ELSE loss END ORDER BY place
            )
            FROM jsonb_array_elements(losses) WITH ORDINALITY AS each(loss, place)
        ), '[]')
    END,
    epoch = CASE WHEN holder = :holder THEN epoch + 1 ELSE epoch END,
    beat_at = CASE WHEN holder = :holder THEN NULL ELSE beat_at END
WHERE run_id = :run AND (
    step_key = :step AND attempt = :attempt
    -- With a run, the step that its own process executed.
    OR CAST(:step AS text) = '' AND holder = :holder AND beat_at IS NOT NULL
);

-- name: mark_lost_of_worker
-- Processes of a worker that was started anew: their last sign of life is older than it.
UPDATE dagster_stack_claims SET
    losses = losses || jsonb_build_object(
        'holder', holder, 'reason', CAST(:reason AS text), 'at', extract(epoch FROM now())
    ),
    epoch = epoch + 1,
    beat_at = NULL
WHERE starts_with(holder, :worker) AND NOT leaving
    AND beat_at < now() - make_interval(secs => :age);

-- name: active
SELECT run_id, step_key, attempt FROM dagster_stack_claims
WHERE run_id = ANY(:runs) AND (
    beat_at > now() - make_interval(secs => :stale)
    -- A read-only server takes no sign of life: who had the work still counts as alive.
    OR (beat_at IS NOT NULL AND current_setting('transaction_read_only') = 'on')
);

-- name: held
-- One that is silent may be busy, and comes back to its work as long as the run goes on.
SELECT held.run_id, step_key, attempt, epoch FROM dagster_stack_claims AS held JOIN runs USING (run_id)
WHERE run_id = ANY(:runs) AND beat_at IS NOT NULL AND (
    beat_at > now() - make_interval(secs => :stale) OR runs.status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED')
);

-- name: ends
SELECT losses, returns FROM dagster_stack_claims
WHERE run_id = :run AND step_key = :step AND attempt = :attempt;

-- name: hold
SELECT 1 FROM dagster_stack_claims WHERE run_id = :run AND step_key = :step AND attempt = :attempt AND epoch = :epoch FOR KEY SHARE;

-- name: hold_alone
-- The same, once no transaction of the holder's is under way: one whose connection broke may still be, or be stored.
SELECT 1 FROM dagster_stack_claims WHERE run_id = :run AND step_key = :step AND attempt = :attempt AND epoch = :epoch FOR UPDATE;

-- name: lead
-- What a write of the leading daemon begins with. A process that is frozen in it must not hold up the next leader.
SELECT set_config('idle_in_transaction_session_timeout', '2s', true) FROM dagster_stack_claims
WHERE run_id = :run AND step_key = :step AND attempt = :attempt AND epoch = :epoch FOR KEY SHARE;

-- name: forget_ends
UPDATE dagster_stack_claims SET losses = '[]', returns = '[]'
WHERE run_id = :run AND step_key = :step AND attempt = :attempt;

-- name: dissolve
DELETE FROM dagster_stack_claims WHERE run_id = :run AND step_key = :step AND attempt = :attempt;

-- name: holder
SELECT CASE WHEN beat_at > now() - make_interval(secs => :stale) THEN holder END FROM dagster_stack_claims
WHERE run_id = :run AND step_key = :step AND attempt = :attempt;

-- name: prune
-- Runs that ended a while ago: until then, a zombie of theirs must find that its epoch is not the last. And deleted
-- runs: no process can take their works any more, and a zombie finds no lease at all.
DELETE FROM dagster_stack_claims AS held
WHERE run_id != :lead AND NOT EXISTS (
    SELECT 1 FROM runs
    WHERE runs.run_id = held.run_id AND NOT (
        runs.status IN ('SUCCESS', 'FAILURE', 'CANCELED')
        AND runs.update_timestamp < now() AT TIME ZONE 'utc' - make_interval(secs => :age)
    )
);
