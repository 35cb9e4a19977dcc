"""How new a process's definitions are: code may make them of what it finds while it is imported, a file or a table.

Each reload in Dagit counts one up. A run has the number of its launch as a tag. A process whose code was loaded before
that reload takes no part in the run and is replaced, so that nobody has older definitions than the run asks for.
"""

import logging
from collections.abc import Callable
from typing import Any

from dagster import DagsterInstance, DagsterRun, RunsFilter
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from dagster_stack import tags
from dagster_stack.errors import OldDefinitions
from dagster_stack.logs.libraries import replace
from dagster_stack.storage.event_log import PooledEventLogStorage

logger = logging.getLogger(__name__)

#: The fact that counts the reloads.
RELOADS = "reloads"


class _Process:
    """This process: how many reloads there were before it loaded its code."""

    loaded_after = 0


def reloads(instance: DagsterInstance) -> int:
    """How many reloads there were so far."""
    storage = instance.event_log_storage
    return int(storage.facts.read(RELOADS) or 0) if isinstance(storage, PooledEventLogStorage) else 0


# --- processes with the code ----------------------------------------------------------------------------------


def about_to_load(instance: DagsterInstance) -> None:
    """To be called before this process loads its code: what it finds then is as new as the last reload."""
    _Process.loaded_after = reloads(instance)


def require(instance: DagsterInstance, run: DagsterRun) -> None:
    """Raise OldDefinitions where a run was launched after a reload that this process has not seen."""
    asked, loaded = asked_by(run), _Process.loaded_after
    # A tag is anybody's: what no reload has counted must not replace processes for ever.
    if asked > loaded and reloads(instance) > loaded:
        raise OldDefinitions(asked, loaded)


def asked_by(run: DagsterRun) -> int:
    """The reload whose definitions a run has; 0 where none is named."""
    text = run.tags.get(tags.DEFINITIONS, "")
    return int(text) if text.isdecimal() else 0


# --- launches and reloads ---------------------------------------------------------------------------------------


def new_tags(instance: DagsterInstance, run: DagsterRun) -> dict[str, str]:
    """What a run that is launched now is to be tagged with, beside what it has. Nothing before the first reload."""
    now = reloads(instance)
    return {tags.DEFINITIONS: str(now)} if asked_by(run) != now else {}


def reload(instance: DagsterInstance) -> None:
    """Count a reload; steps of runs that go on have the new definitions from now on, and their logs say so."""
    storage = instance.event_log_storage
    if not isinstance(storage, PooledEventLogStorage):
        return
    now = storage.facts.count(RELOADS)
    for run in instance.get_runs(RunsFilter(statuses=list(IN_PROGRESS_RUN_STATUSES))):
        instance.add_run_tags(run.run_id, {tags.DEFINITIONS: str(now)})
        instance.report_engine_event(
            "Definitions were reloaded: steps that begin now have the new ones.", run
        )
    logger.info(
        "reload %d: processes with older definitions are replaced",
        now,
        extra={"action": "definitions.reloaded"},
    )


def use_in_webserver() -> None:
    """Let each reload in Dagit, of a location or of all, count."""
    from dagster._core.workspace.context import WorkspaceProcessContext

    for name in ("reload_code_location", "reload_workspace"):
        replace(WorkspaceProcessContext, name, counted(getattr(WorkspaceProcessContext, name)))


def counted(original: Callable[..., None]) -> Callable[..., None]:
    def reload_and_count(self: Any, *arguments: Any) -> None:
        # Before the code is loaded: who loads after that has found the same, or newer.
        reload(self.instance)
        original(self, *arguments)

    return reload_and_count


def use_in_daemon() -> None:
    """Let the daemon, which loads the code anew each minute, do so at its next look after a reload."""
    from dagster._daemon import controller

    original = controller.DagsterDaemonController.check_workspace_freshness
    seen: list[int] = []

    def check(self: Any, last: float) -> float:
        now = reloads(self._instance)
        is_new = bool(seen) and seen[0] != now
        seen[:] = [now]
        return original(self, last - controller.RELOAD_WORKSPACE_INTERVAL if is_new else last)

    replace(controller.DagsterDaemonController, "check_workspace_freshness", check)
