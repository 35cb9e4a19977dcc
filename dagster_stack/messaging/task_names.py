"""The tasks that a worker knows, by name: what a message asks for."""

#: Executes one step.
STEP_TASK = "dagster_stack.execute_step"
#: Drives one run.
RUN_TASK = "dagster_stack.execute_run"
#: Where runs wait. Steps have queues of their own: a run that waits for its steps must not take their place.
RUN_QUEUE = "runs"
#: dagster-celery's tasks by the function that makes each: a step of its executor, a run of its launcher.
STOCK_TASKS = {
    "execute_plan": "create_task",
    "execute_job": "create_execute_job_task",
    "resume_job": "create_resume_job_task",
}
