"""What a worker loads before its first step, and in which of its processes."""

import gc
import importlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from celery import current_app, signals

from dagster_stack.loading import uncollected
from dagster_stack.logs.libraries import use_in_dagster
from dagster_stack.messaging.address import withhold
from dagster_stack.patches.python import allow_children
from dagster_stack.project import found, use
from dagster_stack.project.discovery import IMPORTED
from dagster_stack.project.locations import several
from dagster_stack.settings import Settings
from dagster_stack.step.descendants import adopt_orphans
from dagster_stack.worker import prefork_pool
from dagster_stack.worker.lost_processes import database

logger = logging.getLogger(__name__)


#: What the processes of a pool share: of the platform, what every step or run needs. 34 MB less for each process.
SHARED = ("dagster_stack.step.step_execution", "dagster_stack.objects.compute_logs")


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

    A pool of one has nobody to share with: its main process stays small. Its process has, where it forks for each of
    several code locations. User code is never loaded here: threads and connections that it starts would not survive the
    fork.
    """
    _worker.name = str(sender)
    prefork_pool.prepare(instance.concurrency)
    from dagster_stack.objects.capture import PUMP

    # Shared by all its processes, those that come later too.
    PUMP.start()
    if instance.concurrency > 1:
        load_shared()
        gc.freeze()


def load_shared() -> None:
    """Load the platform for all processes that are forked from this one."""
    with uncollected():
        for module in SHARED:
            importlib.import_module(module)
    if place := Settings.from_environment().s3:
        from dagster_stack.objects.client import s3_client

        # Made without a connection. Of the S3 service's description alone it holds 15 MB.
        s3_client(place.endpoint_url)


def warm_up(**_: Any) -> None:
    """Load what the first step of this process would wait for: the code, the instance, a connection.

    A failure here is only logged. A step that meets it again fails with it, where people look.
    """
    adopt_orphans()
    allow_children()
    withhold(current_app)
    if several():
        # Each location's process loads its code; this one never loads any.
        load_shared()
        gc.freeze()
        sweep()
        return
    try:
        load()
        from dagster_stack.pool.warm import warm_instance
        from dagster_stack.store.ledger import stack_storage

        if storage := stack_storage(warm_instance()):
            # An earlier worker of this name is dead, and so is what it executed.
            storage.leases.mark_lost_of_worker(_worker.name, _worker.started_at)
        else:
            warm_instance().get_runs(limit=1)
    except Exception:
        logger.warning("this process starts cold", exc_info=True, extra={"action": "process.cold"})
    # What is loaded by now stays: the garbage collector need not look at it again.
    gc.freeze()


def sweep() -> None:
    """Free what an earlier worker of this name executed, on a connection that no fork inherits."""
    import sqlalchemy

    from dagster_stack.store.connections import noting_engine
    from dagster_stack.store.leases import Leases

    try:
        if url := database():
            leases = Leases(noting_engine(url, poolclass=sqlalchemy.NullPool))
            leases.mark_lost_of_worker(_worker.name, _worker.started_at)
    except Exception:
        # They come free by themselves.
        logger.warning(
            "leases of an earlier worker stay for a while",
            exc_info=True,
            extra={"action": "leases.not_marked"},
        )


def load(location: str = "") -> None:
    """Load Dagster as services log it, what its secrets loader knows, and then the code of the workspace: in a project of
    several code locations that of one."""
    with uncollected():
        from dagster_stack import definitions
        from dagster_stack.pool import scratch
        from dagster_stack.pool.warm import warm_instance
        from dagster_stack.project import defaults, read_only

    # Before the code, which may ask a job of its own for its executor.
    defaults.use()
    try:
        definitions.about_to_load(warm_instance())
    except Exception:
        # They count as older than the first reload: a run of any reload replaces this process.
        logger.warning(
            "how new the definitions are is not known", exc_info=True, extra={"action": "definitions.unknown"}
        )
    use_in_dagster()
    scratch.use_in_errors()
    read_only.use_in_dagster()
    use(found().path_of(location))
    workspace = entries(Settings.from_environment().workspace_yaml, location)
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


def code_modules(workspace: Sequence[Mapping[str, Any]]) -> list[str]:
    """The modules that a workspace's entries name as code locations, but files."""
    named = [entry[kind] for entry in workspace for kind in IMPORTED if kind in entry]
    return [
        each if isinstance(each, str) else each.get("module_name") or each["package_name"] for each in named
    ]


def location_names(workspace: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of code locations in a workspace's entries; without a name the module's own."""
    contents = [content for entry in workspace for content in entry.values()]
    names = (
        each if isinstance(each, str) else each.get("location_name") or each.get("module_name")
        for each in contents
    )
    return [name for name in names if name]


def entries(workspace: Path, location: str = "") -> list[dict[str, Any]]:
    """What stands in a workspace file, without that file what was found in the project; in a project of several code
    locations the entry of the one that is named, if it is among them."""
    try:
        content = yaml.safe_load(workspace.read_text(encoding="utf-8"))
    except FileNotFoundError:
        content = found().workspace()
    all_of_them: list[dict[str, Any]] = content["load_from"]
    if not several():
        return all_of_them
    return [each for each in all_of_them if location in location_names([each])]
