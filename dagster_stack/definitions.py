"""How new a process's definitions are: code may make them of what it finds while it is imported, a file or a table.

Each reload in Dagit counts one up. A run has the number of its launch as a tag. A process whose code was loaded before
that reload takes no part in the run and is replaced, so that nobody has older definitions than the run asks for. What
changes without a reload shows in the run's snapshot of its job, which Dagit took when it launched the run.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, ClassVar

from dagster import DagsterInstance, DagsterRun, JobDefinition, RunsFilter
from dagster._core.snap import JobSnap
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from dagster_shared.record import copy

from dagster_stack import tags
from dagster_stack.errors import OldDefinitions
from dagster_stack.patches.dagster import CHECK_WORKSPACE
from dagster_stack.patches.dagster import RELOADS as RELOADS_IN_DAGIT
from dagster_stack.store.ledger import stack_storage

logger = logging.getLogger(__name__)

#: The fact that counts the reloads.
RELOADS = "reloads"
#: Begins the facts that say of a job's snapshot that processes with newer code have another one; and days that they stay.
DIFFERS, DIFFERS_DAYS = "differs/", 30


class _Process:
    """This process: how many reloads there were before it loaded its code, when that was (seconds since 1970), and which
    snapshots of jobs it has compared with its own."""

    loaded_after = 0
    loaded_at = 0.0
    compared: ClassVar[set[str]] = set()


def reloads(instance: DagsterInstance) -> int:
    """How many reloads there were so far."""
    storage = stack_storage(instance)
    return int(storage.facts.read(RELOADS) or 0) if storage else 0


# --- processes with the code ----------------------------------------------------------------------------------


def about_to_load(instance: DagsterInstance) -> None:
    """To be called before this process loads its code: what it finds then is as new as the last reload."""
    _Process.loaded_at = time.time()
    _Process.compared.clear()
    _Process.loaded_after = reloads(instance)


def require(instance: DagsterInstance, run: DagsterRun) -> None:
    """Raise OldDefinitions where a run was launched after a reload that this process has not seen."""
    asked, loaded = asked_by(run), _Process.loaded_after
    # A tag is anybody's: what no reload has counted must not replace processes for ever.
    if asked > loaded and reloads(instance) > loaded:
        raise OldDefinitions(
            f"This process loaded its code before the last reload ({loaded}; the run is of {asked})"
        )


def compare(instance: DagsterInstance, run: DagsterRun, load: Callable[[], JobDefinition]) -> None:
    """Compare the job that this process has, by `load`, with the one that the run was launched with.

    Raises OldDefinitions where they differ and this process loaded its code before the launch. One that loaded it since
    has the newer ones: the run's log says so, and no process is replaced for that job again.
    """
    asked, storage = run.job_snapshot_id, stack_storage(instance)
    if not asked or asked in _Process.compared or not storage:
        return
    try:
        own = load().get_job_snapshot()
    except Exception:
        # Whoever executes it says why it can't be loaded.
        return
    if not is_same(own, asked, instance) and not storage.facts.read(f"{DIFFERS}{asked}"):
        record = instance.get_run_record_by_id(run.run_id)
        if record and _Process.loaded_at < record.create_timestamp.timestamp():
            raise OldDefinitions(f"This process has another definition of {run.job_name} than the run")
        if storage.facts.note_once(f"{DIFFERS}{asked}"):
            instance.report_engine_event(
                f"The definition of {run.job_name} has changed since this run was launched: steps have the new one. Where"
                " Dagit shows the old one, `make reload` gives it the new one.",
                run,
            )
    _Process.compared.add(asked)


def is_same(own: JobSnap, asked: str, instance: DagsterInstance) -> bool:
    """Whether a snapshot of a job is the one with this id, but for how a part of the job was selected: that may be said in
    several ways."""
    if own.snapshot_id == asked:
        return True
    theirs = instance.get_job_snapshot(asked)
    one, other = (copy(each, lineage_snapshot=None).snapshot_id for each in (own, theirs))
    return one == other


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
    storage = stack_storage(instance)
    if not storage:
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
    for each in RELOADS_IN_DAGIT:
        each.replace(counted(each.found()))


def counted(original: Callable[..., None]) -> Callable[..., None]:
    def reload_and_count(self: Any, *arguments: Any) -> None:
        # Before the code is loaded: who loads after that has found the same, or newer.
        reload(self.instance)
        original(self, *arguments)

    return reload_and_count


def use_in_daemon() -> None:
    """Let the daemon, which loads the code anew each minute, do so at its next look after a reload."""
    from dagster._daemon import controller

    original = CHECK_WORKSPACE.found()
    seen: list[int] = []

    def check(self: Any, last: float) -> float:
        now = reloads(self._instance)
        if not seen:
            # One that stood by has loaded its code long before its first look.
            seen.append(_Process.loaded_after)
            last = min(last, _Process.loaded_at or last)
        is_new = seen[0] != now
        seen[:] = [now]
        return float(original(self, last - controller.RELOAD_WORKSPACE_INTERVAL if is_new else last))

    CHECK_WORKSPACE.replace(check)


def renew_after_reload(context: Any, registry: Any) -> None:
    """Load the code of a daemon that stands by anew, if a reload in Dagit asks for it."""
    if reloads(context.instance) != _Process.loaded_after:
        about_to_load(context.instance)
        if registry:
            registry.clear_all_grpc_endpoints()
        context.refresh_workspace()
