"""How long processes wait for each other, in seconds: all values that depend on each other.

`tests/unit/test_timing.py` says what must hold between them, and with compose.yaml, celery.yaml and dagster.yaml.
"""

# --- leases ---------------------------------------------------------------------------------------------------

#: Between two renewals of a lease. A run's renewal also notices its termination.
STEP_RENEWAL_SECS = 4
RUN_RENEWAL_SECS = 2
#: Without a renewal, after which a holder counts as dead: what a lost machine costs. Code that keeps Python's global
#: lock for longer (a huge sort) looks dead. That matters only if its worker loses the broker too, which then delivers
#: its message again, or if the worker is restarted.
STALE_SECS = 15
#: Without a holder, after which a run is handed over again, or ended if it is being canceled. Longer than its message
#: is delayed, and than all holders are silent after Postgres was away.
IDLE_SECS = 2 * STALE_SECS

# --- messages -------------------------------------------------------------------------------------------------

#: Until a delayed message is back in its queue.
DELAY_SECS = 2
#: A step or a run waits so long for a process with its code, and longer if there is one that is busy. Then the step
#: fails, and the run goes on with any other code.
FOREIGN_CODE_SECS = 60
#: Between two questions to the workers whether they have a step. Only steps that take longer than this are asked for.
MISSING_LOOK_SECS = 30
#: Looks in a row at which no worker and no queue had a step before it is sent again. A single look may fall between
#: its delivery and its execution.
MISSING_LOOKS = 2
#: The same while messages wait of which one may be its own.
WAITING_LOOKS = 5
#: Between AMQP heartbeats on a run's connection: a cut one is noticed within two of them.
HEARTBEAT_SECS = 10

# --- a worker -------------------------------------------------------------------------------------------------

#: Without a sign of life, after which the event loop and so the broker connection count as dead.
LOOP_SILENCE_SECS = 15
#: The time that the broker gets for an answer to a worker's main process.
BROKER_ANSWER_SECS = 10
#: The time of failed looks after which a worker exits. Longer than a restart of the broker takes, as an exit ends
#: running steps, which go back to the queue.
EXIT_AFTER_SECS = 120
#: Between looks at a service's health.
PROBE_INTERVAL_SECS = 5
#: The time that running steps get when their worker is told to stop.
DRAIN_SECS = 20
#: The time between a step's interrupt and its kill.
GRACE_SECS = 4

# --- Postgres -------------------------------------------------------------------------------------------------

#: The time that a caller waits while Postgres is away. A restart takes seconds, crash recovery minutes.
PATIENCE_SECS = 180
#: Without an acknowledgement of what was sent, after which a connection's other side counts as gone: after a cut cable nobody
#: says so, and Linux would go on for a quarter of an hour. docker/postgres/postgresql.conf has the same.
UNACKNOWLEDGED_SECS = 20
#: The time that a launch waits for a Postgres that takes no write: shorter than callers wait for the answer. A run that
#: starts when its caller has given up would be worse than an error.
WRITE_PATIENCE_SECS = 20
#: The time that a report of a process's death may take: it waits for a database that is away.
TELL_SECS = 300
