"""The copy of the stack on which drills are held, as they see it: launches, the event log, S3, the queues."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.faults.verdict import SENT, STARTED, SUCCEEDED, Event, Reference
from tests.stack import runs
from tests.stack.stack import FINAL, Stack
from tests.waiting import wait_until

LOCATION = "drills"
#: Keys of one large run, and of each of many small ones.
LARGE, SMALL = 200, 3
#: Seconds that a step takes.
NAP_SECS = 0.15
#: The pool of the drills' jobs, and its limit.
POOL, SLOTS = "drill", 4
#: Where the copy's .env says where the folder of the marks is on this host.
MARKS = "DRILL_MARKS"
#: Seconds within which all runs of a drill must have ended.
ENDED_SECS = 420

SET_LIMIT = """
mutation Limit($key: String!, $limit: Int!) {
  setConcurrencyLimit(concurrencyKey: $key, limit: $limit)
}
"""

#: What a step does wrong, by step key: see `Trouble` in `drill_jobs.py`.
Troubles = Mapping[str, Mapping[str, Any]]


@dataclass
class Grounds:
    """A copy of the stack on which drills are held, one after the other."""

    stack: Stack
    #: By number of keys, what a load has when nothing is done to it.
    references: dict[int, Reference] = field(default_factory=dict)

    @cached_property
    def marks(self) -> Path:
        return Path(self.stack.settings[MARKS])

    def prepare(self) -> None:
        """What the drills' jobs need beside their code, and what they are compared with."""
        self.stack.graphql(SET_LIMIT, key=POOL, limit=SLOTS)
        begun = {keys: self.launch(keys) for keys in (LARGE, SMALL)}
        self.references = {keys: self._undisturbed(run_id) for keys, run_id in begun.items()}

    # --- runs --------------------------------------------------------------------------------------------

    def launch(
        self,
        keys: int,
        troubles: Troubles | None = None,
        tags: dict[str, str] | None = None,
        nap: float = NAP_SECS,
    ) -> str:
        """Launch the load as the Launchpad does; returns the run's id. `nap`: how long a step takes."""
        ops: dict[str, Any] = {"source": {"config": {"keys": keys}}}
        for op in ("leaf", "twig"):
            trouble = {key: how for key, how in (troubles or {}).items() if key.startswith(op)}
            ops[op] = {"config": {"seconds": nap, "trouble": trouble}}
        return self.stack.launch("load", {"ops": ops}, tags, LOCATION)

    def launch_backfill(self, partitions: Sequence[str]) -> str:
        """Launch a backfill as Dagit's button does; returns its id."""
        repository = {"repositoryName": "__repository__", "repositoryLocationName": LOCATION}
        selector = {"partitionSetName": "partitioned_partition_set", "repositorySelector": repository}
        return runs.launch_backfill(self.stack, selector=selector, partitionNames=list(partitions))

    def launch_canaries(self, workers: int) -> str:
        """One step for each worker: all must be executed at the same time, or none ends."""
        config = {"ops": {"flock": {"config": {"canaries": workers}}}}
        return self.stack.launch("canaries", config, {"dagster/priority": "10"}, LOCATION)

    def with_tag(self, key: str, value: str) -> list[str]:
        """The ids of the runs that carry a tag."""
        rows = self.stack.sql(f"SELECT run_id FROM run_tags WHERE key = '{key}' AND value = '{value}'")
        return [run_id for (run_id,) in rows]

    def statuses(self, run_ids: Sequence[str]) -> dict[str, str]:
        """The status of each run; empty while the database is away."""
        try:
            return dict(self.stack.sql(f"SELECT run_id, status FROM runs WHERE {among(run_ids)}"))
        except AssertionError:
            return {}

    def wait_for(self, run_ids: Sequence[str], timeout: float = ENDED_SECS) -> dict[str, str]:
        """The status of each run once all have ended, or as it is after so many seconds."""
        deadline = time.monotonic() + timeout
        return wait_until(
            lambda: self.statuses(run_ids), 2 * timeout, "the end of all runs", pause=1,
            until=lambda found: len(found) == len(run_ids)
            and (set(found.values()) <= set(FINAL) or time.monotonic() > deadline),
        )  # fmt: skip

    def _undisturbed(self, run_id: str) -> Reference:
        ends = self.wait_for([run_id])
        assert ends == {run_id: "SUCCESS"}, self.stack.failure_texts(run_id)
        steps = frozenset(event.step for event in self.events([run_id]) if event.kind == SUCCEEDED)
        objects = self.objects(run_id)
        assert objects, "the load leaves no object to compare"
        return Reference(steps, objects)

    # --- what they leave ---------------------------------------------------------------------------------

    def events(self, run_ids: Sequence[str]) -> list[Event]:
        """What the event log says of the runs' steps, each entry of it."""
        kinds = ", ".join(f"'{kind}'" for kind in (SENT, STARTED, SUCCEEDED))
        rows = self.stack.sql(
            "SELECT run_id, step_key, dagster_event_type, extract(epoch FROM timestamp) FROM event_logs"
            f" WHERE {among(run_ids)} AND dagster_event_type IN ({kinds}) ORDER BY id"
        )
        return [Event(run_id, step, kind, float(at)) for run_id, step, kind, at in rows]

    def objects(self, run_id: str) -> dict[str, str]:
        """A run's objects by name with their digests."""
        prefix = f"storage/storage/{run_id}/"
        pages = self.stack.s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.stack.bucket, Prefix=prefix
        )
        return {
            entry["Key"].removeprefix(prefix): entry["ETag"]
            for page in pages
            for entry in page.get("Contents", [])
        }

    def waiting_messages(self) -> dict[str, int]:
        """The queues that are not empty, with what is in them, as the broker itself counts."""
        command = ["rabbitmqctl", "list_queues", "-q", "-p", self.stack.vhost, "--formatter", "json"]
        queues = json.loads(self.stack.exec("rabbitmq", *command, "name", "messages").stdout)
        return {queue["name"]: queue["messages"] for queue in queues if queue["messages"]}

    def purge(self, queue: str) -> None:
        """Forget the messages of a queue, if there is one."""
        self.stack.exec(
            "rabbitmq", "rabbitmqctl", "-q", "purge_queue", "-p", self.stack.vhost, queue, check=False
        )

    def double(self, queue: str) -> int:
        """Send each message that waits in a queue once more; returns how many there were."""
        asked = {"count": 1000, "ackmode": "ack_requeue_true", "encoding": "base64"}
        found = self.stack.broker_do("POST", f"queues/{self.stack.vhost}/{queue}/get", asked)
        for message in found:
            properties = message["properties"]
            # What has no value comes out of this API as a text.
            headers = {
                name: value for name, value in properties["headers"].items() if "undefined" not in str(value)
            }
            content = {
                "routing_key": queue,
                "properties": {**properties, "headers": headers},
                "payload": message["payload"],
                "payload_encoding": message["payload_encoding"],
            }
            self.stack.broker_do("POST", f"exchanges/{self.stack.vhost}/amq.default/publish", content)
        return len(found)

    def slots_taken(self) -> list[list[str]]:
        """Who holds the pool's slots, or waits for one."""
        return self.stack.sql(
            "SELECT run_id, step_key FROM concurrency_slots WHERE run_id IS NOT NULL"
            " UNION ALL SELECT run_id, step_key FROM pending_steps"
        )


def among(run_ids: Sequence[str]) -> str:
    listed = ", ".join(f"'{run_id}'" for run_id in run_ids)
    return f"run_id IN ({listed})"
