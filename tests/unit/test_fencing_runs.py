"""Reports on a run: one at a time, of the process that has it, and none after its end."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import sqlalchemy
from dagster import DagsterEvent, DagsterEventType, DagsterRunStatus, RunsFilter
from sqlalchemy.exc import OperationalError

from dagster_stack.errors import Fenced
from dagster_stack.store.instance_storage import PooledPostgresStorage, PooledRunStorage
from dagster_stack.store.leases import Work
from dagster_stack.store.session import Session
from dagster_stack.timing import STALE_SECS
from tests.unit.holders import Database

KINDS = DagsterEventType


def report(storage: PooledPostgresStorage, run_id: str, kind: DagsterEventType) -> None:
    storage.run_storage.handle_run_event(run_id, DagsterEvent(kind.value, job_name="a_job"))


def status(database: Database, run_id: str) -> DagsterRunStatus:
    (run,) = database.process().run_storage.get_runs(RunsFilter(run_ids=[run_id]))
    return run.status


ENDED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]


@pytest.mark.parametrize(
    "kind", [KINDS.RUN_START, KINDS.RUN_SUCCESS, KINDS.RUN_FAILURE, KINDS.RUN_CANCELING, KINDS.RUN_CANCELED]
)
@pytest.mark.parametrize("ended", ENDED)
def test_a_run_that_has_ended_stays_as_it_ended(
    database: Database, ended: DagsterRunStatus, kind: DagsterEventType
) -> None:
    run = database.run(ended)

    report(database.process(), run.run_id, kind)

    assert status(database, run.run_id) == ended


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        (KINDS.RUN_START, DagsterRunStatus.CANCELING),
        (KINDS.RUN_STARTING, DagsterRunStatus.CANCELING),
        (KINDS.RUN_SUCCESS, DagsterRunStatus.SUCCESS),
        (KINDS.RUN_FAILURE, DagsterRunStatus.FAILURE),
        (KINDS.RUN_CANCELED, DagsterRunStatus.CANCELED),
    ],
)
def test_a_run_that_is_being_canceled_does_not_start_and_does_end(
    database: Database, kind: DagsterEventType, after: DagsterRunStatus
) -> None:
    """Its process may be about to say that it starts, when somebody ends it."""
    run = database.run(DagsterRunStatus.CANCELING)

    report(database.process(), run.run_id, kind)

    assert status(database, run.run_id) == after


def test_of_two_processes_that_report_a_runs_end_at_once_one_wins(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    run, together = database.run(), Barrier(2)

    def end(kind: DagsterEventType) -> None:
        storage = database.process()
        together.wait(10)
        report(storage, run.run_id, kind)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(end, (KINDS.RUN_SUCCESS, KINDS.RUN_FAILURE)))

    (ignored,) = (record.getMessage() for record in caplog.records if "is ignored" in record.getMessage())
    other = {"SUCCESS": "FAILURE", "FAILURE": "SUCCESS"}[status(database, run.run_id).value]
    assert ignored.startswith(f"{other} of run {run.run_id} is ignored")


def test_while_one_process_reports_on_a_run_another_one_waits(database: Database) -> None:
    """Both would read the run's status first, and each find that it may set it."""
    run, other_run = database.run(), database.run()
    engine = sqlalchemy.create_engine(
        database.url, isolation_level="AUTOCOMMIT", connect_args={"options": "-c lock_timeout=100"}
    )
    impatient = PooledRunStorage(database.url, engine, Session())
    canceled = DagsterEvent(KINDS.RUN_CANCELED.value, job_name="a_job")

    with database.process().run_storage._transaction(run.run_id, alone=True):
        with pytest.raises(OperationalError, match="lock timeout"):
            impatient.handle_run_event(run.run_id, canceled)
        # Reports on other runs do not
        impatient.handle_run_event(other_run.run_id, canceled)

    engine.dispose()
    assert status(database, run.run_id) == DagsterRunStatus.STARTED
    assert status(database, other_run.run_id) == DagsterRunStatus.CANCELED


def test_a_runner_that_lost_its_run_can_not_end_it(database: Database) -> None:
    run, paused, new = database.run(), database.process(), database.process()
    work = Work(run.run_id)
    with paused.event_log_storage.holding(database.taken(work, "a")):
        database.silence(work, STALE_SECS + 1)
        with new.event_log_storage.holding(database.taken(work, "b")):
            # When both report its end
            with pytest.raises(Fenced, match=f"run {run.run_id} is another process's now"):
                report(paused, run.run_id, KINDS.RUN_FAILURE)
            assert status(database, run.run_id) == DagsterRunStatus.STARTED
            report(new, run.run_id, KINDS.RUN_SUCCESS)
    # Then the one that has it is right
    assert status(database, run.run_id) == DagsterRunStatus.SUCCESS
