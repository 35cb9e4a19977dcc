"""What the tests ask Dagit about runs beyond `Stack`, and what they tell it to do with them."""

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

from dagster_stack.failure_reasons import LABEL
from tests.stack.stack import LAUNCH, RUN_SECS, Stack
from tests.waiting import wait_until

LOCATION = {"repositoryLocationName": "pipelines", "repositoryName": "__repository__"}
EXECUTING = "Celery worker"

TERMINATE = """
mutation Terminate($id: String!, $policy: TerminateRunPolicy) {
  terminateRun(runId: $id, terminatePolicy: $policy) {
    __typename
    ... on TerminateRunFailure { message }
    ... on PythonError { message }
  }
}
"""
REEXECUTE = """
mutation Reexecute($id: String!, $strategy: ReexecutionStrategy!) {
  launchRunReexecution(reexecutionParams: {parentRunId: $id, strategy: $strategy}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
RUNS = """
query Runs($filter: RunsFilter!) {
  runsOrError(filter: $filter, limit: 100) { ... on Runs { results { runId status jobName tags { key value } } } }
}
"""
CAPTURED = """
query Captured($key: [String!]!) {
  capturedLogs(logKey: $key) { stdout stderr }
  capturedLogsMetadata(logKey: $key) { stdoutDownloadUrl stderrDownloadUrl stdoutLocation }
}
"""


class Output(NamedTuple):
    """What Dagit shows of a step's output, and the addresses that it offers for a download."""

    stdout: str
    stderr: str
    stdout_url: str | None
    stderr_url: str | None


class Sent(NamedTuple):
    """What the run's log says of a step that was sent to its queue."""

    step: str
    at: float
    queue: str
    priority: int
    attempt: int
    task: str


class Execution(NamedTuple):
    """What the run's log says of a delivery that a worker executed."""

    step: str
    at: float
    worker: str
    pid: int
    attempt: int
    task: str


def sent(stack: Stack, run_id: str) -> list[Sent]:
    """The steps that `dagster_stack.celery_executor` sent, in order."""
    return [
        Sent(event["stepKey"], _at(event), told["queue"], int(told["priority"]), int(told["attempt"]), told["task"])
        for event in stack.events(run_id)
        if event.get("eventType") == "STEP_WORKER_STARTING" and (told := _told(event))
    ]  # fmt: skip


def executions(stack: Stack, run_id: str) -> list[Execution]:
    """The executions by workers of `dagster_stack.celery_executor`'s steps, in order."""
    return [
        Execution(
            event["stepKey"],
            _at(event),
            told[EXECUTING],
            int(told["pid"]),
            int(told["attempt"]),
            told["task"],
        )
        for event in stack.events(run_id)
        if event.get("eventType") == "STEP_WORKER_STARTED" and (told := _told(event))
    ]


def told_by_executor(stack: Stack, run_id: str) -> list[tuple[float, str]]:
    """When the executor said what in the run's log."""
    return [
        (_at(event), event["message"])
        for event in stack.events(run_id)
        if event.get("eventType") == "ENGINE_EVENT"
    ]


def wait_until_told(stack: Stack, run_id: str, text: str, timeout: float = 120) -> tuple[float, str]:
    """Until the executor said something in the run's log; when it did, and the whole of it."""
    told = wait_until(
        lambda: told_by_executor(stack, run_id), timeout, f"“{text}” in the log of {run_id}",
        until=lambda told: any(text in message for _, message in told),
    )  # fmt: skip
    return next(entry for entry in told if text in entry[1])


def _at(event: dict[str, Any]) -> float:
    return float(event["timestamp"]) / 1000


def _told(event: dict[str, Any]) -> dict[str, str]:
    """An event's metadata as texts, by label."""
    return {
        entry["label"]: str(next(value for name, value in entry.items() if name not in ("__typename", "label")))
        for entry in event.get("metadataEntries") or []
    }  # fmt: skip


def most_at_once(spans: Collection[tuple[float, float]]) -> int:
    """How many of these times overlap at most; one that begins when another ends does not overlap it."""
    changes = sorted(change for start, end in spans for change in ((start, 1), (end, -1)))
    return max(accumulate((change for _, change in changes), initial=0))


def launch(stack: Stack, job: str, metadata: dict[str, str] | None = None, **selection: Any) -> str:
    """Launch a part of a job: `solidSelection`, `assetSelection`, `assetCheckSelection`, `config`."""
    config = selection.pop("config", {})
    params = {
        "selector": {**LOCATION, "jobName": job, **selection},
        "runConfigData": config,
        "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in (metadata or {}).items()]},
    }
    answer = stack.graphql(LAUNCH, params=params)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["runId"])


def terminate(stack: Stack, run_id: str, policy: str = "SAFE_TERMINATE") -> None:
    answer = stack.graphql(TERMINATE, id=run_id, policy=policy)["terminateRun"]
    assert answer["__typename"] == "TerminateRunSuccess", answer


def reexecute(stack: Stack, run_id: str, strategy: str = "FROM_FAILURE") -> str:
    """Re-execute a run as Dagit's button does; returns the new run's id."""
    answer = stack.graphql(REEXECUTE, id=run_id, strategy=strategy)["launchRunReexecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["runId"])


def launch_backfill(stack: Stack, **params: Any) -> str:
    """Launch a backfill as Dagit's button does, with these `LaunchBackfillParams`; returns its id."""
    answer = stack.graphql(BACKFILL, params=params)["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    return str(answer["backfillId"])


def with_tag(stack: Stack, key: str, value: str) -> list[dict[str, Any]]:
    """The runs that carry a tag, newest first."""
    found: list[dict[str, Any]] = stack.graphql(RUNS, filter={"tags": [{"key": key, "value": value}]})[
        "runsOrError"
    ]["results"]
    return found


def wait_for_event(
    stack: Stack, run_id: str, kind: str, step: str | None = None, timeout: float = 120
) -> None:
    """Until a run has an event of a kind (of a step)."""
    wait_until(
        lambda: [(event.get("eventType"), event.get("stepKey")) for event in stack.events(run_id)],
        timeout,
        f"{kind} of {step or run_id}",
        until=lambda seen: any(entry[0] == kind and step in (None, entry[1]) for entry in seen),
    )


def wait_until_submitted(stack: Stack, run_id: str, steps: int, timeout: float = 120) -> None:
    """Until a run has sent this many steps to the broker."""
    wait_until(
        lambda: len(sent(stack, run_id)),
        timeout,
        f"{steps} steps of {run_id} submitted",
        until=lambda seen: seen >= steps,
    )


def workers(stack: Stack, run_id: str) -> dict[str, set[str]]:
    """Celery workers that executed each step, such as `dagster@5c220928f129`."""
    found: dict[str, set[str]] = {}
    for event in stack.events(run_id):
        for entry in event.get("metadataEntries") or []:
            if entry["label"] == EXECUTING:
                found.setdefault(event["stepKey"], set()).add(entry["text"])
    return found


def failure_reasons(stack: Stack, run_id: str) -> set[str]:
    """Why the stack failed steps of a run, as figures and alerts count it."""
    return {
        entry["text"]
        for event in stack.events(run_id)
        for entry in (event.get("failureMetadata") or {}).get("metadataEntries", [])
        if entry["label"] == LABEL
    }


def count_events(stack: Stack, run_id: str, kind: str) -> Counter[str]:
    """How many events of a kind each step has."""
    return Counter(event["stepKey"] for event in stack.events(run_id) if event.get("eventType") == kind)


def spans(stack: Stack, run_id: str, prefix: str = "") -> dict[str, tuple[float, float]]:
    """When each step whose key begins with `prefix` started and ended, in the order of their starts."""
    stats = [entry for entry in stack.run(run_id)["stepStats"] if entry["stepKey"].startswith(prefix)]
    return {
        entry["stepKey"]: (entry["startTime"], entry["endTime"])
        for entry in sorted(stats, key=lambda entry: entry["startTime"] or 0)
    }


def statuses(stack: Stack, run_id: str) -> dict[str, str]:
    """The final status of each step that had one."""
    return {entry["stepKey"]: entry["status"] for entry in stack.run(run_id)["stepStats"]}


def output(stack: Stack, run_id: str, step: str) -> Output | None:
    """What a step's first execution printed, as Dagit shows it; None until it has begun to be captured."""
    return next(outputs(stack, run_id, step), None)


def outputs(stack: Stack, run_id: str, step: str) -> Iterator[Output]:
    """What each execution of a step printed, in their order."""
    for event in stack.events(run_id):
        if step in (event.get("stepKeys") or []):
            answer = stack.graphql(CAPTURED, key=[run_id, "compute_logs", event["fileKey"]])
            logs, places = answer["capturedLogs"], answer["capturedLogsMetadata"]
            yield Output(
                logs["stdout"] or "", logs["stderr"] or "",
                places["stdoutDownloadUrl"], places["stderrDownloadUrl"],
            )  # fmt: skip


def run_id_in(text: str) -> str:
    """The id of the run whose page a command names."""
    address = next(word for word in text.split() if "/runs/" in word)
    return address.rpartition("/runs/")[2]


def healthy(stack: Stack, service: str) -> int:
    """How many containers of a service run and are healthy."""
    return sum(entry.state == "running" and entry.health == "healthy" for entry in stack.containers(service))


def wait_for_workers(stack: Stack, number: int, service: str = "worker", timeout: float = RUN_SECS) -> None:
    """Until there are exactly so many containers of a service, all healthy."""
    wait_until(
        lambda: [f"{entry.name} {entry.state} {entry.health}" for entry in stack.containers(service)],
        timeout,
        f"{number} healthy containers of {service}",
        until=lambda seen: len(seen) == number and all(entry.endswith("running healthy") for entry in seen),
    )
