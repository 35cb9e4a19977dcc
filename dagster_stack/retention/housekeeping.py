"""Part of the daemon: a pass of retention every hour."""

import logging
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from dagster import DagsterInstance
from sqlalchemy.engine import Engine

from dagster_stack.objects.client import s3_client
from dagster_stack.retention.outputs import Outputs
from dagster_stack.retention.periods import Periods
from dagster_stack.retention.retention import DAY_SECS, Retention
from dagster_stack.settings import Settings
from dagster_stack.store.audit import Audit
from dagster_stack.store.facts import Facts
from dagster_stack.store.ledger import stack_storage

logger = logging.getLogger(__name__)

#: Seconds from the end of a pass to the next one.
INTERVAL_SECS = 3600
#: Seconds after the daemon's start: whatever the start of a stack costs is over by then.
FIRST_SECS = 300
#: Seconds after which it is tried again when a backup was at work, or a store was away.
AGAIN_SECS = 600
#: Seconds after which a pass goes on that has made way for a backup: there may be one each half minute.
ON_SECS = 60
#: Days since the last look after which this machine's clock may be wrong, and seconds that NTP then has to set it.
DOUBT_DAYS, DOUBT_SECS = 8, 3600
#: The fact that says when somebody last looked, by that machine's clock.
LOOKED = "retention.looked"


def retention_of_stack(engine: Engine, environment: Mapping[str, str] = os.environ) -> Retention:
    """Of the bucket and the periods that the environment names. Raises SettingsError."""
    settings = Settings.from_environment(environment)
    outputs = None
    if settings.s3:
        client = s3_client(settings.s3.endpoint_url)
        outputs = Outputs(client, settings.s3.bucket, settings.data_prefix, settings.log_prefix)
    return Retention(engine, outputs, Periods.from_environment(environment))


class Housekeeping(threading.Thread):
    """Removes what is old, for as long as the process lives. Raises SettingsError as it is made."""

    def __init__(self, instance: DagsterInstance, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__(name="housekeeping", daemon=True)
        storage = stack_storage(instance)
        self._audit = storage.audit if storage else None
        self._retention = retention_of_stack(storage.engine, environment) if storage else None

    def run(self) -> None:
        if self._retention is None or self._audit is None:
            return
        pause: float = FIRST_SECS
        while True:
            time.sleep(pause)
            pause = self.look(self._retention, self._audit)

    @staticmethod
    def look(retention: Retention, audit: Audit) -> float:
        """One pass; gives the seconds until the next one."""
        try:
            if has_jumped(Facts(retention.engine)):
                logger.warning(
                    "old runs are removed in an hour, if the clock says then what it says now, %s UTC: the last look was more than"
                    " %d days ago",
                    datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
                    DOUBT_DAYS,
                    extra={"action": "retention.waiting"},
                )
                return DOUBT_SECS
            if retention.periods.audit:
                audit.forget(retention.periods.audit)
            freed = retention.run()
        except Exception as error:
            logger.warning(
                "old runs could not be removed, it is tried again in %d min: %s",
                AGAIN_SECS // 60,
                error,
                extra={"action": "retention.failed"},
            )
            return AGAIN_SECS
        if freed is None:
            logger.info(
                "old runs are removed later: a backup, or `make retention`, is at work",
                extra={"action": "retention.waiting"},
            )
            return AGAIN_SECS
        if freed.anything:
            logger.info("removed what is old: %s", freed, extra={"action": "retention.done"})
        return INTERVAL_SECS if retention.is_done else ON_SECS


def has_jumped(facts: Facts) -> bool:
    """Whether the clock may have: with a wrong one all runs would be old. The next look believes it."""
    now, before = time.time(), facts.read(LOOKED)
    facts.note(LOOKED, now)
    return before is not None and now - before > DOUBT_DAYS * DAY_SECS
