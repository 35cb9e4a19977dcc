"""Launches through Dagit: how long until the first step starts, and how many runs a second come of a backfill."""

import time
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.storage.tags import BACKFILL_ID_TAG, MAX_RETRIES_TAG

from bench.progress import say
from bench.runs import TAG, RunFailed
from bench.works import INTERVALS, LAUNCHED, LAUNCHERS, PARTITIONS
from dagster_stack.client.dagit import Dagit, Job

#: Seconds between two looks at runs, in the database: Dagit has nothing to do with them meanwhile.
LOOK_SECS = 0.2
#: Seconds that the stack is left alone before a launch; and over how many more the launches are spread, as the run
#: before ends in step with the run queue's looks.
PAUSE_SECS, SPREAD_SECS = 1.0, 5.0
#: Seconds that a run, and a backfill, may take.
RUN_SECS, BACKFILL_SECS = 120, 1200
ENDED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
#: Ours are removed by their tag; no run is tried again.
TAGS = {TAG: "true", MAX_RETRIES_TAG: "0"}

BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on Error { message }
  }
}
"""


@dataclass(frozen=True)
class Launch:
    """Seconds from the answer to a launch to the start of its first step."""

    variant: str
    first_step: float


@dataclass(frozen=True)
class Backfill:
    """A backfill's seconds from its submission to its last run's end."""

    variant: str
    runs: int
    seconds: float


class Launches:
    """Measures one launcher, through one Dagit and the database behind it."""

    def __init__(self, variant: str, dagit: Dagit, instance: DagsterInstance) -> None:
        self._variant = variant
        self._dagit = dagit
        self._instance = instance
        self._job = dagit.find_job(LAUNCHED[variant])

    def warm_up(self) -> None:
        """Processes that stay load what they have not yet: runners and workers, where a run has no process of its own."""
        say(f"warming up · {LAUNCHERS[self._variant]}")
        if self._variant in INTERVALS:
            self._launch(0)
        else:
            self._backfill(PARTITIONS // 4)

    def launch(self, number: int) -> list[dict[str, Any]]:
        """As many launches, each on an idle stack."""
        found = [self._launch(PAUSE_SECS + SPREAD_SECS * place / number) for place in range(number)]
        return [asdict(each) for each in found]

    def backfill(self, number: int) -> list[dict[str, Any]]:
        """As many backfills of all partitions, one after the other."""
        return [asdict(self._backfill(PARTITIONS)) for _ in range(number)]

    def _launch(self, after: float) -> Launch:
        time.sleep(after)
        run_id = self._dagit.launch(self._job, "", TAGS)
        answered = time.time()
        self._wait(1, RUN_SECS, run_ids=[run_id])
        first, *_ = self._instance.all_logs(run_id, of_type=DagsterEventType.STEP_START)
        launch = Launch(self._variant, first.timestamp - answered)
        say(f"launch · {LAUNCHERS[self._variant]}: {launch.first_step:.2f} s")
        return launch

    def _backfill(self, partitions: int) -> Backfill:
        began = time.time()
        answer = self._dagit.ask(BACKFILL, {"params": backfill_params(self._job, partitions)})
        answer = answer["launchPartitionBackfill"]
        if answer["__typename"] != "LaunchBackfillSuccess":
            raise RunFailed(f"no backfill: {answer.get('message')}")
        tags = {BACKFILL_ID_TAG: answer["backfillId"]}
        self._wait(partitions, BACKFILL_SECS, tags=tags)
        records = self._instance.get_run_records(RunsFilter(tags=tags))
        backfill = Backfill(
            self._variant,
            partitions,
            max(record.end_time or 0 for record in records) - began,
        )
        say(
            f"backfill of {partitions} · {LAUNCHERS[self._variant]}:"
            f" {partitions / backfill.seconds:.1f} runs a second"
        )
        return backfill

    def _wait(self, number: int, patience: float, **which: Any) -> None:
        """Until so many runs have ended; raises RunFailed unless all succeeded."""
        until = time.monotonic() + patience
        while (ended := self._instance.get_runs_count(RunsFilter(statuses=ENDED, **which))) < number:
            if time.monotonic() > until:
                raise RunFailed(f"{ended} of {number} runs ended within {patience:.0f} s")
            time.sleep(LOOK_SECS)
        succeeded = self._instance.get_runs_count(RunsFilter(statuses=[DagsterRunStatus.SUCCESS], **which))
        if succeeded < number:
            raise RunFailed(f"{number - succeeded} of {number} runs failed")


def backfill_params(job: Job, partitions: int) -> dict[str, Any]:
    return {
        "selector": {
            "partitionSetName": f"{job.name}_partition_set",
            "repositorySelector": {
                "repositoryName": job.repository,
                "repositoryLocationName": job.location,
            },
        },
        "partitionNames": [f"{number:03}" for number in range(partitions)],
        "tags": [{"key": key, "value": value} for key, value in (TAGS | {"try": uuid4().hex}).items()],
    }
