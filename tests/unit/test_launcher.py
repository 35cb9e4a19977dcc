"""The run launcher: one message a run, and what is known of a run that is on its way."""

from typing import Any, NoReturn

import pytest
import sqlalchemy
from celery import Celery
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.launcher import LaunchRunContext, ResumeRunContext, WorkerStatus
from sqlalchemy.exc import ProgrammingError

from dagster_stack import tags
from dagster_stack.errors import BrokerUnreachable
from dagster_stack.launch import launcher as module
from dagster_stack.launch.launcher import CeleryRunLauncher
from dagster_stack.messaging.messages import RunMessage, run_task_id
from dagster_stack.messaging.queue_state import QueueState
from dagster_stack.messaging.task_names import RUN_TASK
from dagster_stack.store.leases import Work
from dagster_stack.timing import IDLE_SECS, STALE_SECS
from tests.unit import step_jobs
from tests.unit.clock import Clock
from tests.unit.database_errors import AWAY
from tests.unit.deliveries import waiting
from tests.unit.holders import Database
from tests.unit.runs_by_hand import said, started_run

STARTING, STARTED = DagsterRunStatus.STARTING, DagsterRunStatus.STARTED


@pytest.fixture
def launcher(instance: DagsterInstance, app: Celery, monkeypatch: pytest.MonkeyPatch) -> CeleryRunLauncher:
    """The instance's, of code that has a version."""
    launcher = instance.run_launcher
    assert isinstance(launcher, CeleryRunLauncher)
    monkeypatch.setattr(launcher, "_app", app)
    monkeypatch.setattr(module, "code_version", lambda: "0123456789ab")
    return launcher


def away(*_: Any, **__: Any) -> NoReturn:
    raise BrokerUnreachable("The broker does not answer: refused")


def launch(launcher: CeleryRunLauncher, run: DagsterRun) -> None:
    launcher.launch_run(LaunchRunContext(run, workspace=None))


def found(instance: DagsterInstance, run: DagsterRun) -> DagsterRun:
    found = instance.get_run_by_id(run.run_id)
    assert found
    return found


# --- launching -----------------------------------------------------------------------------------------------------


def test_a_run_becomes_one_durable_message_and_says_its_code(
    instance: DagsterInstance, launcher: CeleryRunLauncher
) -> None:
    run = started_run(instance, step_jobs.linear, status=STARTING)

    launch(launcher, run)

    (message,) = waiting("runs")
    assert message["body"][1]["message"] == RunMessage(run.run_id, "0123456789ab").to_json()
    headers = message["headers"]
    assert (headers["task"], headers["id"]) == (RUN_TASK, run_task_id(run.run_id))
    assert (headers["shadow"], headers["ignore_result"]) == ("linear", True)
    assert message["properties"]["delivery_mode"] == 2
    assert found(instance, run).tags[tags.CODE] == "0123456789ab"
    assert waiting("dagster") == []


def test_the_launcher_connects_to_nothing_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagit has one too, and no broker."""
    monkeypatch.setattr(module, "make_app", away)

    made = CeleryRunLauncher.from_config_value(None, {})

    assert made.inst_data is None


def test_a_run_that_could_not_be_handed_over_stays_as_it_is_and_says_why(
    instance: DagsterInstance, launcher: CeleryRunLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon would fail it otherwise; it is sent when the broker is back."""
    run = started_run(instance, step_jobs.linear, status=STARTING)
    monkeypatch.setattr(module, "send", away)

    launch(launcher, run)

    assert found(instance, run).status == STARTING
    (told,) = said(instance, run.run_id)
    assert "handed over as soon as the broker is back. The broker does not answer: refused" in told


def test_a_run_that_goes_on_is_handed_over_again_under_the_same_id(
    instance: DagsterInstance, launcher: CeleryRunLauncher
) -> None:
    run = started_run(instance, step_jobs.linear)

    assert launcher.supports_resume_run
    launcher.resume_run(ResumeRunContext(run, workspace=None, resume_attempt_number=1))

    (message,) = waiting("runs")
    assert message["headers"]["id"] == run_task_id(run.run_id)


def updated_at(database: Database, run: DagsterRun) -> Any:
    (row,) = database.execute("SELECT update_timestamp FROM runs WHERE run_id = :run", run=run.run_id)
    return row[0]


def test_a_run_that_is_handed_over_again_is_not_written_to_again(
    instance: DagsterInstance, launcher: CeleryRunLauncher, database_url: str
) -> None:
    """When it changed last is what the alert for runs that are stuck goes by."""
    run, database = started_run(instance, step_jobs.linear, status=STARTING), Database(database_url)
    launch(launcher, run)
    before = updated_at(database, run)

    launch(launcher, found(instance, run))

    assert updated_at(database, run) == before
    assert len(waiting("runs")) == 2


@pytest.mark.parametrize("table", ["runs", "run_tags"])
def test_a_database_that_dies_in_the_middle_of_a_launch_delays_it(
    instance: DagsterInstance, launcher: CeleryRunLauncher, database_url: str, table: str
) -> None:
    """Dagster would fail the run for it."""
    run, database = started_run(instance, step_jobs.linear, status=STARTING), Database(database_url)
    killed: list[str] = []

    def kill(connection: sqlalchemy.Connection, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith((f"UPDATE {table} ", f"INSERT INTO {table} ")) and not killed:
            killed.append(statement)
            with sqlalchemy.create_engine(database_url).connect() as other:
                pid = connection.connection.dbapi_connection.get_backend_pid()  # type: ignore[union-attr]
                other.execute(sqlalchemy.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    sqlalchemy.event.listen(database.engine, "before_cursor_execute", kill)
    try:
        launch(launcher, run)
    finally:
        sqlalchemy.event.remove(database.engine, "before_cursor_execute", kill)

    # Then it has its message and its tag, the latter in both tables
    assert killed
    assert len(waiting("runs")) == 1
    assert found(instance, run).tags[tags.CODE] == "0123456789ab"
    query = "SELECT value FROM run_tags WHERE run_id = :run AND key = :key"
    assert database.execute(query, run=run.run_id, key=tags.CODE) == [("0123456789ab",)]


def test_a_database_that_stays_away_leaves_a_run_to_the_watch(
    instance: DagsterInstance, launcher: CeleryRunLauncher, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    run = started_run(instance, step_jobs.linear, status=STARTING)

    def tell_code(_: DagsterRun) -> NoReturn:
        raise AWAY

    monkeypatch.setattr(launcher, "_tell_code", tell_code)

    launch(launcher, run)
    launcher.resume_run(ResumeRunContext(run, workspace=None, resume_attempt_number=1))

    assert found(instance, run).status == STARTING
    assert caplog.text.count("is handed over when Postgres is back: ") == 2
    assert waiting("runs") == []


def test_a_statement_that_is_wrong_is_an_error(
    instance: DagsterInstance, launcher: CeleryRunLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started_run(instance, step_jobs.linear, status=STARTING)

    def tell_code(_: DagsterRun) -> NoReturn:
        raise ProgrammingError("UPDATE", {}, Exception("no such column"))

    monkeypatch.setattr(launcher, "_tell_code", tell_code)

    with pytest.raises(ProgrammingError):
        launch(launcher, run)


# --- ending ---------------------------------------------------------------------------------------------------------


def test_a_run_that_is_to_end_is_canceling_until_whoever_drives_it_sees_that(
    instance: DagsterInstance, launcher: CeleryRunLauncher
) -> None:
    run = started_run(instance, step_jobs.linear)

    assert launcher.terminate(run.run_id)

    assert found(instance, run).status == DagsterRunStatus.CANCELING


@pytest.mark.parametrize(
    "status", [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
)
def test_a_run_that_has_ended_can_not_be_ended(
    instance: DagsterInstance, launcher: CeleryRunLauncher, status: DagsterRunStatus
) -> None:
    run = started_run(instance, step_jobs.linear, status=status)

    assert not launcher.terminate(run.run_id)

    assert found(instance, run).status == status


def test_a_run_that_nobody_knows_can_not_be_ended(launcher: CeleryRunLauncher) -> None:
    assert not launcher.terminate("nobody's")


# --- health ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def queues(monkeypatch: pytest.MonkeyPatch) -> dict[str, QueueState]:
    """What the broker says of its queues; it knows no others."""
    queues: dict[str, QueueState] = {}
    monkeypatch.setattr(module, "queue_state", lambda _, name: queues.get(name, QueueState(0, 0)))
    return queues


def launched(instance: DagsterInstance, status: DagsterRunStatus = STARTED) -> DagsterRun:
    """A run that was handed over by this launcher."""
    run = started_run(instance, step_jobs.linear, status=status)
    instance.add_run_tags(run.run_id, {tags.CODE: "0123456789ab"})
    return found(instance, run)


def health(launcher: CeleryRunLauncher, run: DagsterRun) -> tuple[WorkerStatus, str]:
    assert launcher.supports_check_run_worker_health
    result = launcher.check_run_worker_health(run)
    return result.status, result.msg or ""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def health_later(launcher: CeleryRunLauncher, run: DagsterRun, clock: Clock) -> tuple[WorkerStatus, str]:
    """How a run is that may have had nobody for a while."""
    health(launcher, run)
    clock.sleep(IDLE_SECS)
    return health(launcher, run)


@pytest.mark.usefixtures("queues")
def test_a_run_that_nobody_has_and_no_message_is_lost_after_a_while(
    instance: DagsterInstance, launcher: CeleryRunLauncher, clock: Clock
) -> None:
    """Its message may be on its way, and after Postgres was away everybody is silent for a moment."""
    run = launched(instance)
    for _ in range(2):
        assert health(launcher, run) == (WorkerStatus.RUNNING, "nobody drives it at the moment")
        clock.sleep(IDLE_SECS - 1)
        assert health(launcher, run)[0] == WorkerStatus.RUNNING
        clock.sleep(1)
        # And it gets as long again when it was handed over
        assert health(launcher, run) == (
            WorkerStatus.NOT_FOUND,
            "no runner has given a sign of life for it for 30 s, and no message waits for a runner",
        )


@pytest.mark.usefixtures("queues")
def test_a_run_that_somebody_had_meanwhile_is_not_lost(
    instance: DagsterInstance, launcher: CeleryRunLauncher, database_url: str, clock: Clock
) -> None:
    run, database = launched(instance), Database(database_url)
    health(launcher, run)
    clock.sleep(IDLE_SECS - 1)
    lease = database.taken(Work(run.run_id), "runner@a")
    assert health(launcher, run) == (WorkerStatus.RUNNING, "")
    database.leases.release(lease)

    clock.sleep(IDLE_SECS)
    assert health(launcher, run) == (WorkerStatus.RUNNING, "nobody drives it at the moment")


@pytest.mark.parametrize("silence", [0, STALE_SECS - 1, STALE_SECS + 1])
@pytest.mark.usefixtures("queues")
def test_a_run_is_well_while_its_runner_gives_signs_of_life(
    instance: DagsterInstance, launcher: CeleryRunLauncher, database_url: str, silence: float, clock: Clock
) -> None:
    run, database = launched(instance), Database(database_url)
    database.taken(Work(run.run_id), "runner@a")
    database.silence(Work(run.run_id), silence)

    status, _ = health_later(launcher, run, clock)

    assert status == (WorkerStatus.RUNNING if silence < STALE_SECS else WorkerStatus.NOT_FOUND)


@pytest.mark.usefixtures("queues")
def test_a_step_that_runs_is_no_sign_of_life_of_its_run(
    instance: DagsterInstance, launcher: CeleryRunLauncher, database_url: str, clock: Clock
) -> None:
    run = launched(instance)
    Database(database_url).taken(Work(run.run_id, "one", 1), "worker@a")

    assert health_later(launcher, run, clock)[0] == WorkerStatus.NOT_FOUND


def test_a_run_may_be_among_those_that_wait(
    instance: DagsterInstance, launcher: CeleryRunLauncher, queues: dict[str, QueueState], clock: Clock
) -> None:
    queues["runs"] = QueueState(ready=1, consumers=0)

    status, reason = health_later(launcher, launched(instance), clock)

    assert status == WorkerStatus.RUNNING
    assert reason == 'it may wait in queue "runs"'


def test_a_message_that_is_delayed_for_as_long_as_another_run_lasts_hides_no_lost_run(
    instance: DagsterInstance, launcher: CeleryRunLauncher, queues: dict[str, QueueState], clock: Clock
) -> None:
    queues["runs.delayed"] = QueueState(ready=1, consumers=0)

    assert health_later(launcher, launched(instance), clock)[0] == WorkerStatus.NOT_FOUND


@pytest.mark.parametrize("is_there", [True, False])
def test_a_run_of_other_code_waits_for_its_runner_as_long_as_there_is_one(
    launcher: CeleryRunLauncher, queues: dict[str, QueueState], clock: Clock,
    monkeypatch: pytest.MonkeyPatch, is_there: bool,
) -> None:  # fmt: skip
    """It is busy, and any other runner delays the run's message; a new one would give it this process's code."""
    there = {"0123456789ab": ["runner@ours"], "other": ["runner@theirs"] if is_there else []}
    queues["runs.delayed"] = QueueState(ready=1, consumers=0)
    monkeypatch.setattr(module, "workers_of", lambda _, queue, code: there[code])
    run = launched(launcher._instance)
    launcher._instance.add_run_tags(run.run_id, {tags.CODE: "other"})

    status, _ = health_later(launcher, found(launcher._instance, run), clock)
    assert status == (WorkerStatus.RUNNING if is_there else WorkerStatus.NOT_FOUND)


def test_unknown_is_not_dead(
    instance: DagsterInstance, launcher: CeleryRunLauncher, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(module, "queue_state", away)

    status, reason = health_later(launcher, launched(instance), clock)

    assert status == WorkerStatus.RUNNING
    assert reason == "unknown: The broker does not answer: refused"


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (DagsterRunStatus.SUCCESS, WorkerStatus.SUCCESS),
        (DagsterRunStatus.FAILURE, WorkerStatus.FAILED),
        (DagsterRunStatus.CANCELED, WorkerStatus.FAILED),
    ],
)
def test_a_run_that_has_ended_is_neither_lost_nor_running(
    instance: DagsterInstance, launcher: CeleryRunLauncher, ended: DagsterRunStatus, expected: WorkerStatus
) -> None:
    assert health(launcher, launched(instance, ended))[0] == expected


@pytest.mark.usefixtures("queues")
def test_of_a_run_that_somebody_executes_by_hand_nothing_is_known(
    instance: DagsterInstance, launcher: CeleryRunLauncher
) -> None:
    status, reason = health(launcher, started_run(instance, step_jobs.linear))

    assert status == WorkerStatus.RUNNING
    assert reason == "executed by hand: whether it lives, nobody here knows"
