"""How long processes wait for each other, in seconds: what must fit together, in one place.

`tests/unit/test_timing.py` has what must hold between them, and with compose.yaml, celery.yaml and dagster.yaml.
"""

# --- leases ---------------------------------------------------------------------------------------------------

#: Between a holder's signs of life. By a run's, its termination is noticed too.
STEP_RENEWAL_SECS = 4
RUN_RENEWAL_SECS = 2
#: Without one, after which a holder counts as dead: what a lost machine costs. Code that keeps Python's global lock for
#: longer (a huge sort) looks dead; that matters only if its worker loses the broker too, which then delivers its message
#: again, or is restarted.
STALE_SECS = 15
#: For which nobody may drive a run before it is handed over again, or ended if it is being canceled: longer than its
#: message is delayed, and than all holders are silent after Postgres was away.
IDLE_SECS = 2 * STALE_SECS

# --- messages -------------------------------------------------------------------------------------------------

#: Until a delayed message is back in its queue.
DELAY_SECS = 2
#: That a step or a run waits for a process with its code, unless there is one that is busy. Then the step fails, and the
#: run goes on with any other.
FOREIGN_CODE_SECS = 60
#: Between questions to the workers whether they have the steps that take longer than this.
MISSING_LOOK_SECS = 30
#: Looks at which a step must have been with nobody before it is sent again: one may fall between a delivery and its
#: execution.
MISSING_LOOKS = 2
#: The same while messages wait that may be its own.
WAITING_LOOKS = 5
#: Between AMQP heartbeats on a run's connection: a cut one is noticed within two of them.
HEARTBEAT_SECS = 10

# --- a worker -------------------------------------------------------------------------------------------------

#: Without a sign of life after which the event loop, thus the broker connection, counts as dead.
LOOP_SILENCE_SECS = 15
#: That the broker gets for an answer to a worker's main process.
BROKER_ANSWER_SECS = 10
#: Of failed looks after which a worker exits: longer than a restart of the broker takes, as an exit ends running steps,
#: and they go to the queue again.
EXIT_AFTER_SECS = 120
#: Between looks at a service's health.
PROBE_INTERVAL_SECS = 5
#: That running steps get when their worker is told to stop.
DRAIN_SECS = 20
#: That a step gets to end after it was interrupted, before it is killed.
GRACE_SECS = 4

# --- Postgres -------------------------------------------------------------------------------------------------

#: That a caller waits while it is away. A restart takes seconds, crash recovery minutes.
PATIENCE_SECS = 180
#: That a launch waits for one that takes no write: shorter than whoever launches waits for the answer. A run that starts
#: when nobody expects it any more would be worse than an error.
WRITE_PATIENCE_SECS = 20
#: That telling of what a process died may take: it waits for a database that is away.
TELL_SECS = 300
