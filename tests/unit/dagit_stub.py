"""A stand-in for Dagit: a real HTTP server that answers the client's own queries, so that no test waits for one."""

import json
import threading
from collections.abc import Callable
from typing import Any

from tests.unit.http_stub import HttpStub

Json = dict[str, Any]

RUN_ID = "1f0c8e0a-7a4e-4f4c-9b5e-4a1d2c3b4e5f"


def event(kind: str, step: str | None = None, **more: Any) -> Json:
    return {"eventType": kind, "stepKey": step, "message": "", **more}


class DagitStub(HttpStub):
    """One location `pipelines` with jobs `flights` and `slow`, and one run whose state the test sets.

    Like the real one it gives each event once a cursor, answers errors as members of a union with HTTP
    status 200, and cancels a run some time after `terminateRun` has succeeded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.status = "STARTED"
        self.events: list[Json] = []
        self.plan = ["a", "b"]
        self.launch_answer: Json = {"__typename": "LaunchRunSuccess", "run": {"runId": RUN_ID}}
        self.locations: list[Json] = []
        self.launched: list[Json] = []
        self.terminated = threading.Event()
        #: What to do at each question about the run, before it is answered.
        self.on_run: Callable[[], None] = lambda: None

    def body(self, path: str, content: bytes) -> bytes:
        request = json.loads(content)
        return json.dumps({"data": self.answer(request["query"], request["variables"])}).encode()

    def answer(self, query: str, variables: Json) -> Json:
        kind = query.split()[1].partition("(")[0]
        match kind:
            case "Jobs":
                return self._jobs()
            case "Launch":
                self.launched.append(variables["params"])
                return {"launchRun": self.launch_answer}
            case "Run":
                self.on_run()
                return {"runOrError": self._run(variables)}
            case "Outputs":
                return {"runOrError": self._run(variables)}
            case "Reload":
                return {"reloadWorkspace": {"__typename": "Workspace", "locationEntries": self.locations}}
            case "Terminate":
                self.terminated.set()
                self.status = "CANCELED"
                return {"terminateRun": {"__typename": "TerminateRunSuccess", "run": {"runId": RUN_ID}}}
        raise AssertionError(f"The stub does not know the query {kind}.")

    def _jobs(self) -> Json:
        jobs = [{"name": name} for name in ("flights", "slow", "__ASSET_JOB")]
        node = {"name": "__repository__", "location": {"name": "pipelines"}, "jobs": jobs}
        return {
            "repositoriesOrError": {"__typename": "RepositoryConnection", "nodes": [node]},
            "workspaceOrError": {"__typename": "Workspace", "locationEntries": self.locations},
        }

    def _run(self, variables: Json) -> Json:
        seen = int(variables["cursor"] or 0)
        events = self.events[seen : seen + variables["limit"]]
        steps = [{"key": key, "kind": "COMPUTE", "metadata": [], "inputs": []} for key in self.plan]
        return {
            "__typename": "Run",
            "status": self.status,
            "startTime": 1000.0,
            "endTime": 1012.3 if self.status in ("SUCCESS", "FAILURE", "CANCELED") else None,
            "tags": [],
            **({"executionPlan": {"steps": steps}} if variables.get("withPlan") else {}),
            "eventConnection": {
                "cursor": str(seen + len(events)),
                "hasMore": seen + len(events) < len(self.events),
                "events": events,
            },
        }
