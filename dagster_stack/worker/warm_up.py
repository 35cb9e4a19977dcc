"""What a worker loads before its first step, and in which of its processes."""

import gc
import importlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from celery import current_app, signals

from dagster_stack.broker.address import withhold
from dagster_stack.logs.libraries import use_in_dagster
from dagster_stack.project import found, use
from dagster_stack.project.discovery import IMPORTED
from dagster_stack.settings import Settings
from dagster_stack.worker import pool
from dagster_stack.worker.descendants import adopt_orphans, allow_children

logger = logging.getLogger(__name__)


#: What the processes of a pool share: of the platform, what every step or run needs. 34 MB less for each process.
SHARED = ("dagster_stack.worker.step_execution", "dagster_stack.storage.compute_logs")


@dataclass
class Worker:
    """The worker of this process: its Celery name, and when it was started (monotonic clock)."""

    name: str = ""
    started_at: float = 0.0


_worker = Worker()


def install() -> None:
    """Warm up the processes of this process's worker."""
    _worker.started_at = time.monotonic()
    # A weak reference would be gone with the caller's frame.
    signals.celeryd_after_setup.connect(share, weak=False)
    signals.worker_process_init.connect(warm_up, weak=False)


def share(sender: Any, instance: Any, **_: Any) -> None:
    """Load the platform before a pool of several processes is forked, so that they share it.

    A pool of one has nobody to share with: its main process stays small. User code is never loaded here:
    threads and connections that it starts would not survive the fork.
    """
    _worker.name = str(sender)
    pool.prepare(instance.concurrency)
    from dagster_stack.storage.capture import PUMP

    # Shared by all its processes, those that come later too.
    PUMP.start()
    if instance.concurrency > 1:
        for module in SHARED:
            importlib.import_module(module)
        if place := Settings.from_environment().s3:
            from dagster_stack.storage.s3 import s3_client

            # Made without a connection. Of the S3 service's description alone it holds 15 MB.
            s3_client(place.endpoint_url)
        gc.freeze()


def warm_up(**_: Any) -> None:
    """Load what the first step of this process would wait for: the code, the instance, a connection.

    A failure here is only logged. A step that meets it again fails with it, where people look.
    """
    adopt_orphans()
    allow_children()
    withhold(current_app)
    try:
        load()
        from dagster_stack.storage.event_log import PooledEventLogStorage
        from dagster_stack.worker.process import warm_instance

        storage = warm_instance().event_log_storage
        if isinstance(storage, PooledEventLogStorage):
            # Whatever an earlier worker of this name executed: it is dead.
            storage.claims.sweep(_worker.name, _worker.started_at)
        else:
            warm_instance().get_runs(limit=1)
    except Exception:
        logger.warning("this process starts cold", exc_info=True, extra={"action": "process.cold"})
    # What is loaded by now stays: the garbage collector need not look at it again.
    gc.freeze()


def load() -> None:
    """Load Dagster as services log it, what its secrets loader knows, and then the code of the workspace."""
    from dagster_stack.project import defaults, read_only
    from dagster_stack.worker import scratch
    from dagster_stack.worker.process import warm_instance

    # Before the code, which may ask a job of its own for its executor.
    defaults.use()
    use_in_dagster()
    scratch.use_in_errors()
    read_only.use_in_dagster()
    use(found().path)
    workspace = Settings.from_environment().workspace_yaml
    try:
        for name in location_names(workspace):
            warm_instance().inject_env_vars(name)
    except Exception:
        # Code that needs them says so itself.
        logger.warning(
            "Dagster's secrets loader failed", exc_info=True, extra={"action": "secrets.not_loaded"}
        )
    for module in code_modules(workspace):
        importlib.import_module(module)


def code_modules(workspace: Path) -> list[str]:
    """The modules that a workspace file names as code locations, but files; without that file those of the project."""
    if not workspace.exists():
        return found().modules
    named = [entry[kind] for entry in entries(workspace) for kind in IMPORTED if kind in entry]
    return [
        each if isinstance(each, str) else each.get("module_name") or each["package_name"] for each in named
    ]


def location_names(workspace: Path) -> list[str]:
    """What a workspace file calls its code locations, as far as it says; a module's own name else."""
    contents = [content for entry in entries(workspace) for content in entry.values()]
    names = (
        each if isinstance(each, str) else each.get("location_name") or each.get("module_name")
        for each in contents
    )
    return [name for name in names if name]


def entries(workspace: Path) -> list[dict[str, Any]]:
    """What stands in a workspace file; nothing without the file."""
    try:
        content = yaml.safe_load(workspace.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    found: list[dict[str, Any]] = content["load_from"]
    return found
