"""The program: runs one after the other, or all at once."""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from dagster import AssetKey, DagsterInstance, ReexecutionOptions, RunsFilter, execute_job
from dagster._core.definitions.reconstruct import ReconstructableRepository

from . import IN_PROCESS

#: The tag by which a test finds its runs.
TAG = "test/ad-hoc"


def execute(spec: dict[str, Any]) -> None:
    """One run to its end. `again` is the mark of the run to be repeated from its failure."""
    if spec.get("in_process"):
        os.environ[IN_PROCESS] = "1"
    code = ReconstructableRepository.for_module(
        f"{__package__}.definitions", "defs", str(Path(__file__).parents[1])
    )
    with DagsterInstance.get() as instance:
        options = None
        if parent := spec.get("again"):
            (run,) = instance.get_runs(RunsFilter(tags={TAG: parent}))
            options = ReexecutionOptions.from_failure(run.run_id, instance)
        execute_job(
            code.get_reconstructable_job(spec["job"]),
            instance,
            run_config=spec.get("config"),
            tags={**spec.get("tags", {}), TAG: spec["mark"]},
            op_selection=spec.get("ops"),
            asset_selection=[AssetKey(name) for name in spec["assets"]] if spec.get("assets") else None,
            reexecution_options=options,
        )


def main(specs: list[dict[str, Any]], at_once: bool) -> int:
    """Each run in a process of its own, as every launcher has it, but without loading Dagster each time."""
    failed = 0
    children = []
    for spec in specs:
        child = os.fork()
        if not child:
            try:
                execute(spec)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
        if not at_once:
            failed |= os.waitpid(children.pop(), 0)[1]
    for child in children:
        failed |= os.waitpid(child, 0)[1]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), at_once="--at-once" in sys.argv))
