"""An attempt that is called back, or executed again and again: what stops it, and what must not."""

from dagster_stack.messaging.messages import step_task_id
from tests.stack import runs
from tests.stack.ad_hoc import AdHoc, Spec, naps
from tests.stack.stack import Stack

#: What ten executions that came to no end leave with the attempt.
RETURNED = """
INSERT INTO dagster_stack_claims (run_id, step_key, attempt, epoch, holder, returns)
SELECT '{run}', 'middle', 1, 20, 'nobody',
    jsonb_agg(jsonb_build_object('holder', 'worker', 'reason', 'reason ' || number, 'at', number))
FROM generate_series(1, 10) AS number
"""


def test_ids_that_were_called_back_stop_no_step_and_executions_without_an_end_do(
    stack: Stack, jobs: AdHoc
) -> None:
    # Given two runs whose first step is at work, the second step of one of which has been executed ten times
    called_back, looping = jobs.begin(Spec("line", naps(first=10)), Spec("line", naps(first=4)))
    stack.sql(" ".join(RETURNED.format(run=looping).split()))
    runs.wait_for_event(stack, called_back, "STEP_START", "first")
    # When all workers are told to drop that of the other one, as a runner of a run that ended does
    task = step_task_id(called_back, "middle", 1)
    stack.exec("worker", "celery", "-A", "dagster_stack.app", "control", "revoke", task)
    assert not runs.count_events(stack, called_back, "STEP_SUCCESS"), "too late: its first step has ended"
    # Then this one is executed once
    assert stack.wait_for_run(called_back)["status"] == "SUCCESS"
    assert runs.count_events(stack, called_back, "STEP_START")["middle"] == 1
    # And the one that was executed so often fails with the last reasons
    assert stack.wait_for_run(looping)["status"] == "FAILURE"
    (told,) = (text for text in stack.failure_texts(looping) if text.startswith("middle"))
    assert "It was executed 10 times and never came to its end" in told
    assert "worker: reason 8; worker: reason 9; worker: reason 10" in told
