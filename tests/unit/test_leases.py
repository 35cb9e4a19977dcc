"""Leases on steps and runs: who has one, when another process gets it, and what it learns of those before it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import pytest
import sqlalchemy
from dagster import DagsterRunStatus
from sqlalchemy.exc import OperationalError

from dagster_stack.errors import Fenced
from dagster_stack.store import leases as leases_module
from dagster_stack.store.leases import KEPT_SECS, Lease, Loss, Renewal, Work
from dagster_stack.timing import STALE_SECS
from tests.unit.holders import Database, any_work

# --- one holder at a time ------------------------------------------------------------------------------------------


def test_a_work_has_one_holder_at_a_time(database: Database) -> None:
    work = any_work()
    first = database.taken(work, "a")

    assert (first.epoch, first.losses) == (1, ())
    assert database.leases.acquire(work, "b") is None
    # And other attempts, steps and runs are nobody's business
    for other in (Work(work.run_id, "step", 2), Work(work.run_id, "other", 1), Work(work.run_id), any_work()):
        assert database.leases.acquire(other, "b")


def test_of_processes_that_ask_at_the_same_moment_one_gets_the_work(database: Database) -> None:
    work, together = any_work(), Barrier(2)

    def ask(holder: str) -> Lease | None:
        together.wait(10)
        return database.leases.acquire(work, holder)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(ask, "ab"))

    assert len([lease for lease in found if lease]) == 1


def test_a_process_that_asks_again_has_it_still_and_is_no_loss(database: Database) -> None:
    """The connection broke with the answer to its question."""
    work = any_work()
    database.taken(work, "a")

    again = database.taken(work, "a")

    assert again.losses == ()
    assert database.leases.renew(again)


def test_a_holder_that_gives_signs_of_life_keeps_its_work(database: Database) -> None:
    work = any_work()
    lease = database.taken(work, "a")

    for _ in range(3):
        database.silence(work, STALE_SECS - 1)
        assert database.leases.acquire(work, "b") is None
        assert database.leases.renew(lease)


# --- taking over ----------------------------------------------------------------------------------------------------


def falls_silent(database: Database, lease: Lease) -> None:
    database.silence(lease.work, STALE_SECS + 1)


def is_released(database: Database, lease: Lease) -> None:
    database.leases.release(lease)


def is_leaving(database: Database, lease: Lease) -> None:
    assert database.leases.renew(lease, leaving=True)


def left_and_died(database: Database, lease: Lease) -> None:
    assert database.leases.renew(lease, leaving=True)
    falls_silent(database, lease)


def is_lost(database: Database, lease: Lease) -> None:
    database.leases.mark_lost(lease.work, lease.holder, "killed (out of memory?)")


def is_swept(database: Database, lease: Lease) -> None:
    database.silence(lease.work, 3)
    database.leases.mark_lost_of_worker("worker@a", started_at=time.monotonic() - 2)


def is_revoked(database: Database, lease: Lease) -> None:
    database.leases.revoke_steps(lease.work.run_id)


HOLDER = "worker@a (process 7)"
#: How a holder gives way, and what the next one is told of it: handing over is no loss.
ENDS: list[tuple[Callable[[Database, Lease], None], str | None]] = [
    (falls_silent, f"no sign of life for {STALE_SECS} s"),
    (is_released, None),
    (is_leaving, None),
    (left_and_died, None),
    (is_lost, "killed (out of memory?)"),
    (is_swept, "its worker ended and was started again"),
    (is_revoked, None),
]


@pytest.mark.parametrize(("ends", "reason"), ENDS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_work_whose_holder_is_gone_goes_to_the_next_one(
    database: Database, ends: Callable[[Database, Lease], None], reason: str | None
) -> None:
    work = any_work()
    old = database.taken(work, HOLDER)
    # When its holder gives way
    ends(database, old)
    # Then another process gets it, and learns of a death but not of a farewell
    new = database.taken(work, "b")
    assert new.epoch > old.epoch
    assert new.losses == ((Loss(HOLDER, reason),) if reason else ())
    # And the old one can do nothing about it any more
    assert database.leases.renew(old) is None
    database.leases.release(old)
    with pytest.raises(Fenced, match=r"step step of run .* what worker@a .process 7. reports of it"):
        database.leases.check(old)
    database.leases.check(new)
    assert database.leases.acquire(work, "c") is None


def test_losses_add_up_in_their_order(database: Database) -> None:
    work = any_work()
    for holder in "abc":
        database.taken(work, holder)
        database.leases.mark_lost(work, holder, f"{holder} died")

    assert [str(loss) for loss in database.taken(work, "d").losses] == [
        "a: a died",
        "b: b died",
        "c: c died",
    ]


def test_a_holder_that_leaves_and_stays_after_all_is_one_like_any_other(database: Database) -> None:
    work = any_work()
    lease = database.taken(work, "a")
    database.leases.renew(lease, leaving=True)
    database.leases.renew(lease, leaving=False)

    assert database.leases.acquire(work, "b") is None


# --- losses that were seen -------------------------------------------------------------------------------------------


def test_whoever_took_over_already_gets_the_reason_that_was_seen(database: Database) -> None:
    """The worker's report of the death comes after the next one found the holder silent."""
    work = any_work()
    falls_silent(database, database.taken(work, "a"))
    new = database.taken(work, "b")

    database.leases.mark_lost(work, "a", "signal 9 (SIGKILL)")

    # Then the one who has it keeps it, and the next one learns the reason
    assert database.leases.renew(new)
    falls_silent(database, new)
    reasons = [loss.reason for loss in database.taken(work, "c").losses]
    assert reasons == ["signal 9 (SIGKILL)", f"no sign of life for {STALE_SECS} s"]


def test_the_death_of_a_process_that_holds_nothing_is_no_loss(database: Database) -> None:
    work = any_work()
    lease = database.taken(work, "a")
    database.leases.mark_lost(work, "somebody else", "killed")
    assert database.leases.renew(lease)

    # As of one that had handed its work over, or ended it
    database.leases.release(lease)
    database.leases.mark_lost(work, "a", "killed")
    assert database.taken(work, "b").losses == ()


def test_a_worker_that_starts_sweeps_its_predecessors_processes_and_nobody_elses(database: Database) -> None:
    # Given works of two processes of a worker before it was started anew, and of others
    run_id = any_work().run_id
    holders = {
        "first": "worker@a (process 7)",
        "second": "worker@a (process 8)",
        "young": "worker@a (process 9)",
        "leaving": "worker@a (process 10)",
        "longer": "worker@ab (process 7)",
        "pattern": "worker@_ (process 7)",
    }
    held = {name: database.taken(Work(run_id, name, 1), holder) for name, holder in holders.items()}
    database.leases.renew(held["leaving"], leaving=True)
    for name in holders:
        database.silence(held[name].work, 1 if name == "young" else 5)

    # When it has been there for three seconds
    database.leases.mark_lost_of_worker("worker@a", started_at=time.monotonic() - 3)

    # Then those that it can't have started itself are lost
    beating = {name for name, lease in held.items() if database.leases.renew(lease)}
    assert beating == {"young", "leaving", "longer", "pattern"}


def test_a_worker_that_had_to_wait_for_postgres_sweeps_nothing_that_a_sibling_took_meanwhile(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that was started 2 s ago, and Postgres away for 10 s more
    now, sibling = time.monotonic(), any_work()
    leases = database.leases

    def back(act: Callable[[], object]) -> object:
        monkeypatch.setattr(leases_module, "time", SimpleNamespace(monotonic=lambda: now + 10))
        return act()

    # When it is back, another process of the worker takes a step, which is 5 s old when the sweep gets its turn
    lease = database.taken(sibling, "worker@a (process 9)")
    database.silence(sibling, 5)
    monkeypatch.setattr(leases_module, "patiently", back)
    leases.mark_lost_of_worker("worker@a", started_at=now - 2)

    # Then that is not a predecessor's
    assert leases.renew(lease)


@pytest.mark.parametrize("ends", [falls_silent, is_lost, is_swept])
def test_a_loss_says_when_it_was_noticed(database: Database, ends: Callable[[Database, Lease], None]) -> None:
    before = time.time()
    ends(database, database.taken(work := any_work(), HOLDER))

    (loss,) = database.taken(work, "b").losses

    assert before - 1 <= loss.at <= time.time() + 1


# --- what a holder hears ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING])
def test_a_sign_of_life_is_answered_with_the_runs_status(
    database: Database, status: DagsterRunStatus
) -> None:
    run = database.run(status)

    lease = database.taken(Work(run.run_id, "step", 1), "a")

    assert database.leases.renew(lease) == Renewal(status.value)


def test_a_sign_of_life_for_a_deleted_run_says_so(database: Database) -> None:
    assert database.leases.renew(database.taken(any_work(), "a")) == Renewal(None)


def test_only_those_who_gave_a_sign_of_life_are_alive(database: Database) -> None:
    run_id, other = any_work().run_id, any_work()
    works = [Work(run_id), *(Work(run_id, key, 1) for key in ("beats", "silent", "released"))]
    held = {work.step_key: database.taken(work, "a") for work in [*works, other]}
    falls_silent(database, held["silent"])
    is_released(database, held["released"])

    assert database.leases.active([run_id]) == {Work(run_id), Work(run_id, "beats", 1)}
    assert database.leases.active([run_id, other.run_id]) >= {other}
    assert database.leases.active([run_id], stale_after=60) == set(works) - {Work(run_id, "released", 1)}
    assert database.leases.active([]) == set()


def test_a_runs_steps_are_revoked_and_its_own_lease_and_other_runs_are_not(database: Database) -> None:
    run_id, other = any_work().run_id, any_work()
    run, step = database.taken(Work(run_id), "a"), database.taken(Work(run_id, "step", 1), "b")
    elsewhere = database.taken(other, "b")

    assert database.leases.revoke_steps(run_id) == [step.work]

    assert database.leases.renew(step) is None
    assert database.leases.renew(run)
    assert database.leases.renew(elsewhere)


@pytest.mark.parametrize(
    "status", [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
)
def test_leases_are_forgotten_a_day_after_their_runs_end(
    database: Database, status: DagsterRunStatus
) -> None:
    """Until then a process that was frozen must find that it is late."""
    ended, open_run = database.run(status), database.run()
    held = {run.run_id: database.taken(Work(run.run_id, "step", 1), "a") for run in (ended, open_run)}

    def ages(seconds: float) -> set[str]:
        database.execute(
            "UPDATE runs SET update_timestamp = now() AT TIME ZONE 'utc' - make_interval(secs => :seconds)",
            seconds=seconds,
        )
        database.leases.prune()
        return {run_id for run_id, lease in held.items() if database.leases.renew(lease)}

    assert ages(KEPT_SECS - 60) == {ended.run_id, open_run.run_id}
    assert ages(KEPT_SECS + 60) == {open_run.run_id}


def test_leases_of_a_deleted_run_are_forgotten(database: Database) -> None:
    run = database.run()
    lease = database.taken(Work(run.run_id, "step", 1), "a")
    database.process().run_storage.delete_run(run.run_id)

    database.leases.prune()

    assert database.execute("SELECT 1 FROM dagster_stack_claims WHERE run_id = :run", run=run.run_id) == []
    # And what its process still writes is refused as ever
    with pytest.raises(Fenced):
        database.leases.check(lease)


# --- locks -----------------------------------------------------------------------------------------------------------------


def test_while_a_holder_writes_its_signs_of_life_go_on_and_a_new_holder_waits(database: Database) -> None:
    """Else one that takes over in the middle of a write could not tell whether it counts."""
    # Given a holder in the middle of storing an event, silent for long
    work = any_work()
    lease = database.taken(work, "a")
    falls_silent(database, lease)
    storage = database.process().event_log_storage
    engine = sqlalchemy.create_engine(database.url, connect_args={"options": "-c lock_timeout=100"})
    with storage.holding(lease), storage._transaction(work.run_id), engine.connect() as other:
        # When another process asks for its work, then it has to wait
        asked = {**work.key, "holder": "b", "stale": STALE_SECS}
        with pytest.raises(OperationalError, match="lock timeout"):
            other.execute(leases_module.ACQUIRE, asked)
        other.rollback()
        # But signs of life do not
        beaten = other.execute(leases_module.RENEW, {**lease.key, "leaving": False}).all()
        assert [tuple(row) for row in beaten] == [(None,)]
        other.commit()
    engine.dispose()
