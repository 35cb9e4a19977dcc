"""Where a worker's time for one step goes, in Dagster's own way and in this stack's, by timers around both.

The steps of a chain are executed one after the other in this process, each as a worker executes it when its
message has come. What the messages themselves take is not in here; the way in the event log has it (`walk`).
"""

from collections.abc import Callable
from typing import Any

from dagster import DagsterInstance, DagsterRun
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.outputs import StepOutputHandle
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.plan.step import ExecutionStep
from dagster._core.execution.retries import RetryMode
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import pack_value

from bench.jobs import reconstructable_job
from bench.runs import TAG, instance_of
from bench.stopwatch import Stopwatch
from bench.works import CHAIN
from dagster_stack.settings import Settings

#: Executes one step like a worker does.
Execute = Callable[[ExecutionStep, KnownExecutionState], None]

CONNECTION = "database connection"
WRITE = "event writes"
READ = "database reads"
CLIENT = "S3 clients made"
INPUT = "S3: input"
OUTPUT = "S3: output"
LOGS = "S3: step's stdout and stderr"
OTHER_S3 = "S3: other requests"
CAPTURE = "capture of stdout and stderr"
PLAN = "job and plan"
INSTANCE = "Dagster instance"
RESOURCES = "resources"
REST = "Dagster's own work, and the step's"


def profile(variant: str) -> dict[str, Any]:
    """Per step: `kinds` with count and seconds of each, and the `run_id`. Spoils this process for anything else."""
    job = reconstructable_job(CHAIN, variant)
    assert job
    watch = Stopwatch()
    instrument(watch)
    with instance_of(variant) as instance:
        # Once for what a process does only once.
        execute_chain(instance, job, variant, watch)
        watch.reset()
        run, steps = execute_chain(instance, job, variant, watch)
    return {
        "run_id": run.run_id,
        "kinds": {
            name: {"count": kind.count / steps, "seconds": kind.seconds / steps}
            for name, kind in watch.kinds.items()
        },
    }


def execute_chain(
    instance: DagsterInstance, job: ReconstructableJob, variant: str, watch: Stopwatch
) -> tuple[DagsterRun, int]:
    """A new run of the job, its steps executed in order; gives their number too."""
    run = instance.create_run_for_job(
        job.get_definition(), tags={TAG: "true"}, job_code_origin=job.get_python_origin()
    )
    execute = WORKERS[variant](instance, job, run)
    steps = create_execution_plan(job).get_steps_to_execute_in_topo_order()
    ready: set[StepOutputHandle] = set()
    for step in steps:
        state = KnownExecutionState(ready_outputs=set(ready))
        with watch.measure(REST):
            execute(step, state)
        ready |= {StepOutputHandle(step.key, output.name) for output in step.step_outputs}
    return run, len(steps)


def this_stack(_: DagsterInstance, __: ReconstructableJob, run: DagsterRun) -> Execute:
    """What this stack's workers do with a message."""
    from dagster_stack.messaging.messages import step_message
    from dagster_stack.step.step_execution import StepExecution

    def execute(step: ExecutionStep, state: KnownExecutionState) -> None:
        message = step_message(run, step, state, RetryMode.DISABLED)
        StepExecution(message, "a worker", lambda: None).run()

    return execute


def stock(instance: DagsterInstance, job: ReconstructableJob, run: DagsterRun) -> Execute:
    """What dagster-celery's task does."""
    from celery import Celery
    from dagster_celery.tasks import create_task

    task = create_task(Celery(set_as_current=False))

    def execute(step: ExecutionStep, state: KnownExecutionState) -> None:
        arguments = ExecuteStepArgs(
            job_origin=job.get_python_origin(),
            run_id=run.run_id,
            step_keys_to_execute=[step.key],
            instance_ref=instance.get_ref(),
            retry_mode=RetryMode.DISABLED,
            known_state=state,
            print_serialized_events=True,
        )
        task.run(pack_value(arguments), job.to_dict())

    return execute


WORKERS = {"stack": this_stack, "stock": stock}


def instrument(watch: Stopwatch) -> None:
    """Timers around what both ways do, at the places where both come along."""
    from botocore.client import BaseClient
    from botocore.session import Session
    from dagster._core.execution import resources_init
    from dagster._core.storage.cloud_storage_compute_log_manager import (
        CloudStorageComputeLogManager,
        TruncatingCloudStorageComputeLogManager,
    )
    from dagster_aws.s3.io_manager import PickledObjectS3IOManager
    from dagster_celery import tasks
    from sqlalchemy import event
    from sqlalchemy.engine import Connection, Engine

    from dagster_stack.objects.compute_logs import S3ComputeLogs
    from dagster_stack.objects.io_manager import PickledObjects
    from dagster_stack.step import plan_cache, step_execution

    watch.wrap(Engine, "connect", CONNECTION)
    watch.wrap(Connection, "close", CONNECTION, counts=False)
    event.listen(Engine, "before_cursor_execute", lambda *a: watch.begin(statement_kind(a[2])))
    event.listen(Engine, "after_cursor_execute", lambda *_: watch.end())
    watch.wrap(Session, "create_client", CLIENT)
    watch.wrap(BaseClient, "_make_api_call", request_kind)
    watch.wrap_context(CloudStorageComputeLogManager, "capture_logs", CAPTURE)
    watch.wrap_context(S3ComputeLogs, "capture_logs", CAPTURE)
    # In Dagster's own way it hands the upload to a thread, and waits.
    watch.wrap(TruncatingCloudStorageComputeLogManager, "upload_to_cloud_storage", LOGS)
    # As it does with an output; and each may ask for other things before.
    for manager, dump, load in (
        (PickledObjectS3IOManager, "dump_to_path", "load_from_path"),
        (PickledObjects, "dump", "load"),
    ):
        watch.wrap(manager, dump, OUTPUT)
        watch.wrap(manager, load, INPUT)
    watch.wrap_generator(resources_init, "single_resource_event_generator", RESOURCES)
    watch.wrap(DagsterInstance, "from_ref", INSTANCE)
    watch.wrap(step_execution, "planned_job", PLAN)
    watch.wrap(plan_cache.PlannedJob, "plan_for", PLAN)
    watch.wrap(tasks, "create_execution_plan", PLAN)
    watch.wrap(ReconstructableJob, "get_definition", PLAN)


def statement_kind(statement: str) -> str:
    return READ if statement.lstrip().upper().startswith("SELECT") else WRITE


def request_kind(_: Any, operation: str, parameters: dict[str, Any]) -> str:
    """The kind of a request to S3."""
    if str(parameters.get("Key", "")).startswith(f"{Settings.log_prefix}/"):
        return LOGS
    return {"GetObject": INPUT, "PutObject": OUTPUT}.get(operation, OTHER_S3)
