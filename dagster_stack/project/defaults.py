"""What a project gets that names nothing: steps on workers, and an IO manager that all of them reach.

A process that loads code opens the instance first, which `dagster.yaml` makes a StackInstance, or is a worker
(`warm_up`): so no project imports this, no command needs another name, and all of them see the same jobs.
"""

import errno
import os
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from dagster import (
    DagsterError,
    DagsterInstance,
    JobDefinition,
    in_process_executor,
    multi_or_in_process_executor,
    multiprocess_executor,
)
from dagster._core.executor.base import Executor
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.defs_state import UPathDefsStateStorage
from dagster._core.storage.root import LocalArtifactStorage
from dagster._core.system_config.objects import ResolvedRunConfig
from dagster.components.utils.project_paths import get_defs_module_path_for_project
from upath import UPath

from dagster_stack import tags
from dagster_stack.objects.default_io_manager import VARIABLES
from dagster_stack.patches import dagster
from dagster_stack.settings import Settings

#: The folder that all services with user code see, where there is one.
DATA_VARIABLE = "DAGSTER_STACK_DATA"
#: Where components keep their state, in the folder with a project's definitions.
STATE = ".local_defs_state"

_dagsters_own = dagster.MULTIPROCESS.found()
_state_folder = dagster.STATE_FOLDER.found()


class StackInstance(DagsterInstance):
    """Dagster's, which brings the defaults into each process that opens it (`instance_class` in dagster.yaml)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if folder := os.environ.get(DATA_VARIABLE):
            # Of `fs_io_manager` and its like without a folder: a step on another worker must find the file.
            options["local_artifact_storage"] = LocalArtifactStorage(str(Path(folder, "dagster")))
            # And whoever loads the code the state that a component has fetched.
            options["defs_state_storage"] = UPathDefsStateStorage(UPath(folder, "dagster", "defs_state"))
        super().__init__(*arguments, **options)
        use()

    def run_will_resume(self, run_id: str) -> bool:
        """No runner takes over what a script, or a step, executes by itself: interrupted, it has failed."""
        run = self.get_run_by_id(run_id)
        return bool(run and tags.CODE in run.tags and super().run_will_resume(run_id))

    @classmethod
    def config_schema(cls) -> Mapping[str, Any]:
        """What dagster.yaml may say beyond Dagster's own."""
        return {}

    @classmethod
    def config_defaults(cls, base_dir: str) -> Mapping[str, Any]:
        return InstanceRef.config_defaults(base_dir)


def use() -> None:
    """Let jobs of this process that name no executor, or no IO manager, have the stack's. Twice does no harm.

    For the IO manager Dagster has variables, for the executor nothing: a job that is asked for the executor that it was
    not given looks at a constant. Replacing that leaves jobs and `Definitions` as they are; giving each of them an
    executor would not: `Definitions.merge` refuses two.
    """
    from dagster_stack.run.executor import celery_executor

    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    dagster.DEFAULT_EXECUTOR.replace(celery_executor)
    dagster.MULTIPROCESS.replace(multiprocess)
    # As dagster.yaml says. An instance that user code makes, such as local_temp(), has no such file, and no folder for it.
    dagster.TELEMETRY.replace(lambda _: False)
    dagster.STATE_FOLDER.replace(state_folder)


def multiprocess(config: Mapping[str, Any]) -> Executor:
    """In the place of Dagster's own: a job that names it may be mapped to the workers, with its limits."""
    if not _is_mapped():
        own: Executor = _dagsters_own(config)
        return own
    from dagster_stack.run.executor import made

    limit = config.get("max_concurrent")
    at_once = f"at most {limit} at once (max_concurrent)" if limit else "as many at once as there are workers"
    ignored = "; start_method has no effect" if config.get("start_method") else ""
    return made(
        config, f"By EXECUTOR=celery the steps of this run are executed by workers, {at_once}{ignored}."
    )


def uses_workers(job: JobDefinition, run_config: Mapping[str, Any]) -> bool:
    """Whether a run's steps are executed by workers, and so outlive the process that drives it."""
    from dagster_stack.run.executor import IN_PROCESS

    if not _is_ours(job) and not (_starts_processes(job) and _is_mapped()):
        return False
    return IN_PROCESS not in _executor_config(job, run_config)


def advice(job: JobDefinition) -> str:
    """What the log says of a run whose steps are executed where it is driven; empty for executors of others."""
    cause, cure = f'its executor "{job.executor_def.name}"', "Leave the executor out of the job"
    if _is_ours(job):
        cause, cure = "`in_process` in its config", "Leave that out"
    elif _starts_processes(job):
        cure += ", or set EXECUTOR=celery in .env and `make up`"
    elif job.executor_def.executor_creation_fn is not in_process_executor.executor_creation_fn:
        return ""
    return (
        f"The steps of this run use no workers: by {cause} they are executed in this runner, and share its memory and"
        f" processors. {cure}, and workers execute them."
    )


def _is_ours(job: JobDefinition) -> bool:
    from dagster_stack.run.executor import celery_executor

    return job.executor_def.executor_creation_fn is celery_executor.executor_creation_fn


def _starts_processes(job: JobDefinition) -> bool:
    found = job.executor_def.executor_creation_fn
    return found in [
        each.executor_creation_fn for each in (multiprocess_executor, multi_or_in_process_executor)
    ]


def _is_mapped() -> bool:
    return Settings.from_environment().executor == "celery"


def _executor_config(job: JobDefinition, run_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a run says to its executor; nothing, where it says what it can't."""
    from dagster_stack.run.executor import IN_PROCESS, celery_executor

    own = job.executor_def is not celery_executor or job.run_config or job.config_mapping
    if not own and IN_PROCESS not in str(run_config.get("execution")):
        # To resolve the config of a large job takes milliseconds.
        return {}
    try:
        return ResolvedRunConfig.build(job, deepcopy(run_config)).execution.execution_engine_config
    except DagsterError:
        # Dagster fails the run for it, and says why.
        return {}


# --- components ---------------------------------------------------------------------------------------------


def state_folder(key: str, project_root: Path) -> Path:
    """Where a component's state lies beside the code. Dagster makes the folder, even to find it empty."""
    try:
        own: Path = _state_folder(key, project_root)
        return own
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
    folder = get_defs_module_path_for_project(project_root)
    return folder / STATE / re.sub(r"[^A-Za-z0-9._-]", "__", key)
