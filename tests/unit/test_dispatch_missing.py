"""Steps that nobody has: found missing, sent again, and given up when that does not help."""

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
from dagster import DagsterInstance

from dagster_stack.errors import BrokerUnreachable
from dagster_stack.run.dispatch import MOST_RESENDS
from dagster_stack.store.leases import Work
from dagster_stack.timing import MISSING_LOOK_SECS, MISSING_LOOKS, STALE_SECS, WAITING_LOOKS
from tests.unit import step_jobs
from tests.unit.clock import Clock
from tests.unit.dispatched_steps import CONTROL_ERRORS, Broker, Driven
from tests.unit.holders import Database
from tests.unit.runs_by_hand import events


def looks(driven: Driven, clock: Clock, count: int) -> list[bool]:
    """What so many looks for missing steps say, with the time between them that they need."""
    found = []
    for _ in range(count):
        clock.sleep(MISSING_LOOK_SECS)
        found.append(driven.look())
    return found


def test_a_step_that_nobody_has_is_sent_again_after_two_looks(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    # Given a step whose message was lost
    driven.send("one")
    broker.lose()

    # When workers are asked, then it counts as lost only after having been missing twice
    assert MISSING_LOOKS == 2
    assert looks(driven, clock, 2) == [False, True]
    driven.dispatch.send_missing_again(driven.context)

    # And it is sent again under the same id, which the run's log says
    assert broker.keys == ["one", "one"]
    assert [message.task_id for message in broker.queues["dagster"]] == [driven.task("one")]
    assert len([line for line in driven.reported if "its message was lost, it is sent again" in line]) == 1

    # And once more only when it is lost again
    driven.dispatch.send_missing_again(driven.context)
    assert looks(driven, clock, 4) == [False] * 4
    assert broker.keys == ["one", "one"]


def test_a_step_that_a_worker_has_is_not_missing(driven: Driven, broker: Broker, clock: Clock) -> None:
    """A step of hours is silent, and well."""
    driven.send("one")
    broker.take()

    assert looks(driven, clock, 5) == [False] * 5


def test_a_step_that_waits_in_its_queue_is_not_missing(driven: Driven, broker: Broker, clock: Clock) -> None:
    """Nobody is asked: with thousands of waiting steps that would take long."""
    driven.send("one")

    assert looks(driven, clock, 5) == [False] * 5
    assert broker.questions == []


def test_missing_looks_must_follow_each_other(driven: Driven, broker: Broker, clock: Clock) -> None:
    """A look may fall between a delivery and its execution, or meet a worker that is slow to answer."""
    driven.send("one")
    task = broker.take()
    for with_worker in (False, True, False, True):
        broker.with_workers = {task} if with_worker else set()
        assert looks(driven, clock, 1) == [False]


def test_without_any_answer_from_workers_steps_are_missing(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    """All workers are gone with their steps: the message waits for the next one to come."""
    driven.send("one")
    broker.take()
    broker.workers_answer = False

    assert looks(driven, clock, 2) == [False, True]


@pytest.mark.parametrize(
    "wrong", [{"away": True}, *({"control_error": error} for error in CONTROL_ERRORS)], ids=str
)
def test_a_broker_or_workers_that_can_not_be_asked_say_nothing_about_a_step(
    driven: Driven, broker: Broker, clock: Clock, wrong: dict[str, Any]
) -> None:
    """Unknown is not lost: nothing is sent twice, and no run fails, because of a broker that restarts."""
    driven.send("one")
    broker.lose()
    with patch.multiple(broker, **wrong):
        assert looks(driven, clock, 5) == [False] * 5

    # And nothing was counted meanwhile
    assert looks(driven, clock, 2) == [False, True]


def test_a_step_that_was_not_sent_yet_is_not_missing(
    driven: Driven, broker: Broker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.away = True
    driven.send("one")

    # Given a link that can ask but not send
    broker.away = False

    def refused(*_: Any) -> None:
        raise BrokerUnreachable("refused")

    monkeypatch.setattr(broker, "send", refused)

    assert looks(driven, clock, 4) == [False] * 4
    assert broker.questions == []


def test_nobody_is_asked_for_steps_that_were_sent_a_moment_ago(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    """A question to all workers takes a second: a chain of short steps must never wait for one."""
    for key in ("one", "unimportant"):
        clock.sleep(MISSING_LOOK_SECS - 1)
        driven.send(key)
        clock.sleep(1)
        assert not driven.look()
        del driven.dispatch.in_flight[key]

    assert broker.questions == []


def test_a_lost_step_is_missed_also_while_other_steps_end(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    # Given a step whose message was lost, in a run in which others end all the time
    driven.send("one")
    broker.lose()

    # When time passes
    found = False
    for _ in range(2 * MISSING_LOOKS):
        driven.send("unimportant")
        broker.take()
        del driven.dispatch.in_flight["unimportant"]
        clock.sleep(MISSING_LOOK_SECS / 2)
        found = driven.look()

    # Then it is found missing as soon as in a silent run
    assert found


def test_a_step_that_has_ended_is_not_looked_for(driven: Driven, broker: Broker, clock: Clock) -> None:
    driven.send("one")
    broker.lose()
    del driven.dispatch.in_flight["one"]

    assert looks(driven, clock, 4) == [False] * 4


def test_a_question_names_so_many_steps_at_most(
    instance: DagsterInstance, broker: Broker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagster_stack.run.dispatch.QUESTION_SIZE", 5)
    with ExitStack() as stack:
        driven = Driven(instance, broker, step_jobs.wide, stack)
        driven.send(*(f"step_{number:02d}" for number in range(12)))
        broker.lose()

        looks(driven, clock, 2)

    assert [len(question) for question in broker.questions] == [5, 5]


# --- given up --------------------------------------------------------------------------------------------------------


def lost_again(driven: Driven, broker: Broker, clock: Clock) -> None:
    """The message of the one step that is on its way is lost once more, and that is found out."""
    broker.lose("heavy")
    assert looks(driven, clock, MISSING_LOOKS)[-1]
    driven.dispatch.send_missing_again(driven.context)


def test_a_step_whose_message_is_lost_again_and_again_fails_with_where_to_look(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    """Each worker that gets it may put it aside: nothing would ever end."""
    driven.send("heavy")
    for _ in range(MOST_RESENDS):
        lost_again(driven, broker, clock)
    assert broker.keys == ["heavy"] * (1 + MOST_RESENDS)
    failures = [event for event in events(driven.instance, driven.run.run_id) if event.is_step_failure]
    assert failures == []

    # When it is lost once more
    lost_again(driven, broker, clock)

    # Then it is not sent again: it has failed, and says where its message may be
    assert broker.keys == ["heavy"] * (1 + MOST_RESENDS)
    (failure,) = (event for event in events(driven.instance, driven.run.run_id) if event.is_step_failure)
    assert failure.step_key == "heavy"
    error = failure.step_failure_data.error
    assert error
    assert error.message == (
        'Its message was lost 4 times in queue "heavy". `make dead-letters` shows whether a worker put it aside,'
        " and why."
    )


def test_three_resends_are_what_a_step_gets() -> None:
    assert MOST_RESENDS == 3


def test_a_step_whose_message_was_delayed_is_not_missing(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    """It waits beside its queue for a worker with its code."""
    driven.send("one")
    broker.queues["dagster.delayed"] = [broker.queues["dagster"].pop()]

    assert looks(driven, clock, 4) == [False] * 4


# --- while messages wait ----------------------------------------------------------------------------------------------


def test_a_message_that_is_delayed_for_as_long_as_another_step_lasts_hides_no_lost_step(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    """A worker was cut off from the broker: the message of its step of hours is delivered again and again."""
    driven.send("one", "unimportant")
    broker.take()
    broker.queues["dagster.delayed"] = [broker.queues["dagster"].pop()]

    assert looks(driven, clock, WAITING_LOOKS) == [False] * (WAITING_LOOKS - 1) + [True]
    driven.dispatch.send_missing_again(driven.context)

    assert broker.keys == ["one", "unimportant", "unimportant"]


def test_looks_while_messages_wait_do_not_count_once_the_queue_is_empty(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    # Given a step that may wait, at some looks
    driven.track("one")
    driven.send("unimportant")
    assert looks(driven, clock, WAITING_LOOKS - 1) == [False] * (WAITING_LOOKS - 1)
    # When the queue is empty: it may be between its delivery and its execution
    broker.queues["dagster"].clear()
    # Then it takes as many looks as ever
    assert looks(driven, clock, 2) == [False, True]


def test_a_step_that_an_earlier_process_may_not_have_sent_is_sent_once_although_others_wait(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    # Given a runner that was killed after it had announced a step, and a queue that is never empty
    driven.track("one")
    driven.send("unimportant")

    # When no worker has it for a while
    assert looks(driven, clock, WAITING_LOOKS) == [False] * (WAITING_LOOKS - 1) + [True]
    driven.dispatch.send_missing_again(driven.context)

    # Then it is sent, which the run's log says, and what this process has sent is not
    assert broker.keys == ["unimportant", "one"]
    assert len([line for line in driven.reported if "no worker has had for 150 s: 1. Whether" in line]) == 1

    # And that was all: however long the queue is
    assert looks(driven, clock, 3 * WAITING_LOOKS) == [False] * 3 * WAITING_LOOKS


def test_a_step_that_an_earlier_process_sent_and_a_worker_has_is_not_sent_again(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    driven.track("one")
    driven.send("unimportant")
    broker.with_workers = {driven.task("one")}

    assert looks(driven, clock, 2 * WAITING_LOOKS) == [False] * 2 * WAITING_LOOKS


def test_a_broker_that_was_away_may_have_lost_what_it_had_confirmed(
    driven: Driven, broker: Broker, clock: Clock
) -> None:
    """It lost its disk, and other runs keep its queues filled ever since."""
    driven.send("one")
    assert looks(driven, clock, WAITING_LOOKS) == [False] * WAITING_LOOKS

    for times in range(1, MOST_RESENDS + 3):
        broker.connections += 1
        assert looks(driven, clock, WAITING_LOOKS)[-1]
        driven.dispatch.send_missing_again(driven.context)
        assert looks(driven, clock, WAITING_LOOKS) == [False] * WAITING_LOOKS
        assert broker.keys == ["one"] * (1 + times)

    # And it does not fail for that: nothing says that its message was lost at all
    assert not [event for event in events(driven.instance, driven.run.run_id) if event.is_step_failure]


# --- in the stack -----------------------------------------------------------------------------------------------------


def test_a_step_whose_process_gives_signs_of_life_is_not_missing_and_no_worker_is_asked(
    driven: Driven, broker: Broker, clock: Clock, database_url: str
) -> None:
    """A worker that is cut off from the broker does not answer: the database knows who is alive."""
    database = Database(database_url)
    driven.send("one")
    broker.lose()
    lease = database.taken(Work(driven.run.run_id, "one", 1), "worker@a")

    assert looks(driven, clock, 4) == [False] * 4
    assert broker.questions == []

    # And when these end, and no worker has it, it is missing
    database.silence(lease.work, STALE_SECS + 1)
    assert looks(driven, clock, 2) == [False, True]
    assert broker.questions == [(driven.task("one"),)] * 2


def test_a_step_whose_process_falls_silent_is_not_missing_while_its_worker_has_it(
    driven: Driven, broker: Broker, clock: Clock, database_url: str
) -> None:
    """It sorts for minutes in one call, or is cut off from Postgres alone: sent again, it would be executed twice."""
    database = Database(database_url)
    driven.send("one")
    broker.take()
    lease = database.taken(Work(driven.run.run_id, "one", 1), "worker@b")
    database.silence(lease.work, STALE_SECS + 1)

    assert looks(driven, clock, 4) == [False] * 4

    # And while nobody can be asked, nothing is known
    broker.control_error = CONTROL_ERRORS[0]
    assert looks(driven, clock, 4) == [False] * 4
