"""Stores that are away while a run is at work: the run waits for them, says so, and ends right."""

import pytest

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc, Spec, naps
from tests.stack.stack import FINAL, Stack
from tests.waiting import wait_until

HAS_EVENTS = "query Has($id: ID!) { logsForRun(runId: $id, limit: 1) { __typename } }"
WAITING, BACK = "Waiting for the broker", "The broker is back"


@pytest.mark.parametrize(("leave", "come_back"), [("stop", "start"), ("pause", "unpause")])
def test_steps_wait_for_a_broker_that_is_away(stack: Stack, jobs: AdHoc, leave: str, come_back: str) -> None:
    # Given a run whose first step is at work
    (run_id,) = jobs.begin(Spec("line", naps(first=6)))
    runs.wait_for_event(stack, run_id, "STEP_START", "first")

    # When the broker goes before the second one is sent
    stack.compose(leave, "rabbitmq")
    try:
        assert "middle" not in {entry.step for entry in runs.sent(stack, run_id)}, "too late"

        # Then the run's log says what is waited for
        runs.wait_until_told(stack, run_id, WAITING, 60)
        assert stack.run(run_id)["status"] == "STARTED"
    finally:
        stack.compose(come_back, "rabbitmq")

    # And once it is back, the log says so, and the run ends with each step executed once
    runs.wait_until_told(stack, run_id, BACK, 60)
    assert stack.wait_for_run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    assert runs.count_events(stack, run_id, "STEP_START") == {"first": 1, "middle": 1, "last": 1}
    told = [text for _, text in runs.told_by_executor(stack, run_id)]
    assert sum(WAITING in text for text in told) == sum(BACK in text for text in told) == 1
    # And every worker is well again
    stack.wait_until_healthy()
    jobs.install()


def test_a_restart_of_postgres_under_load_costs_no_step(stack: Stack, jobs: AdHoc) -> None:
    # Given a run in the middle of many steps
    (run_id,) = jobs.begin(Spec("wide", {"ops": {"wide_beds": {"config": {"count": 40, "seconds": 0.3}}}}))
    wait_until(
        lambda: runs.count_events(stack, run_id, "STEP_SUCCESS").total(), 60, "some steps",
        until=lambda done: done > 5,
    )  # fmt: skip

    # When the database is restarted
    stack.compose("restart", "postgres")
    stack.wait_until_healthy("postgres")

    # Then the run goes on to its end
    ended = wait_until(
        lambda: stack.sql(f"SELECT status FROM runs WHERE run_id = '{run_id}'"), 120, "the run's end",
        until=lambda rows: rows and rows[0][0] in FINAL,
    )  # fmt: skip
    assert ended == [["SUCCESS"]]
    # And, as Dagit shows once it has noticed that the database is back, each step is in the log once
    stack.wait_until_healthy()
    wait_until(
        lambda: stack.graphql(HAS_EVENTS, id=run_id)["logsForRun"],
        60,
        "Dagit",
        until=lambda log: log["__typename"] == "EventConnection",
    )
    for kind in ("STEP_START", "STEP_SUCCESS"):
        counted = runs.count_events(stack, run_id, kind)
        assert counted.total() == len(counted) == 41, (kind, counted)
