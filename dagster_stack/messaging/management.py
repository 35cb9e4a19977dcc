"""RabbitMQ's management API: how much waits in each queue, and the alarms of the broker."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import requests

from dagster_stack.authorities import bundle
from dagster_stack.messaging.task_names import RUN_QUEUE
from dagster_stack.settings import BROKER_PARTS

URL_VARIABLE = "DAGSTER_STACK_BROKER_API_URL"
USER_VARIABLE = "DAGSTER_STACK_BROKER_API_USER"
PASSWORD_VARIABLE = "DAGSTER_STACK_BROKER_API_PASSWORD"
VHOST_VARIABLE = BROKER_PARTS["VHOST"]

#: Seconds for an answer: the backlog is an extra, the progress must not wait long for it.
TIMEOUT_SECS = 2.0

#: Queues of delayed messages and of dead letters: no worker takes from them.
NOT_OF_WORK = re.compile(r"dead-letters|.+\.delayed")
#: What a node of the broker calls its alarms, by what is short; while one is on it takes no messages.
ALARMS = {"memory": "mem_alarm", "disk": "disk_free_alarm"}
COLUMNS = "name,durable,auto_delete,exclusive,messages_ready,messages_unacknowledged,consumers"


@dataclass(frozen=True)
class QueueDepth:
    """One queue: messages that wait, messages that workers hold, and its consumers."""

    name: str
    ready: int
    unacked: int
    consumers: int


class BrokerApi:
    """RabbitMQ's management API, as a user that may read its vhost."""

    def __init__(self, url: str, user: str, password: str, vhost: str = "/") -> None:
        self._api = f"{url.rstrip('/')}/api"
        self._queues = f"queues/{quote(vhost, safe='')}"
        self._session = requests.Session()
        # A proxy in the environment is not for a service of this stack.
        self._session.trust_env = False
        self._session.verify = bundle() or True
        self._session.auth = (user, password)

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "BrokerApi | None":
        """None where the environment names no management API."""
        url = environment.get(URL_VARIABLE)
        if not url:
            return None
        return BrokerApi(
            url,
            environment.get(USER_VARIABLE, ""),
            environment.get(PASSWORD_VARIABLE, ""),
            environment.get(VHOST_VARIABLE) or "/",
        )

    def read(self) -> tuple[QueueDepth, ...]:
        """The queues that steps wait in, by name. Raises requests.RequestException or ValueError."""
        return tuple(depth for depth in self.read_all() if depth.name != RUN_QUEUE)

    def read_all(self) -> tuple[QueueDepth, ...]:
        """The same and that of the runs."""
        answer = self._get(self._queues, COLUMNS)
        try:
            return work_queues(answer)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"its answer is no list of queues ({error})") from error

    def read_alarms(self) -> dict[str, bool]:
        """What is short on any node, by ALARMS; nothing where the user may not see nodes, as that of an outside broker.
        Raises requests.RequestException."""
        try:
            nodes = self._get("nodes", ",".join(ALARMS.values()))
        except requests.HTTPError as error:
            if error.response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                return {}
            raise
        return {kind: any(node.get(name) for node in nodes) for kind, name in ALARMS.items()}

    def _get(self, path: str, columns: str) -> Any:
        response = self._session.get(f"{self._api}/{path}", params={"columns": columns}, timeout=TIMEOUT_SECS)
        response.raise_for_status()
        return response.json()


def work_queues(answer: Iterable[Mapping[str, Any]]) -> tuple[QueueDepth, ...]:
    """The queues of steps and runs in an answer. Celery's own for replies, events and control are not durable."""
    return tuple(
        sorted(
            (
                QueueDepth(
                    entry["name"],
                    # A queue younger than the broker's first count (5 s) has no numbers yet.
                    entry.get("messages_ready") or 0,
                    entry.get("messages_unacknowledged") or 0,
                    entry.get("consumers") or 0,
                )
                for entry in answer
                if entry.get("durable")
                and not entry.get("auto_delete")
                and not entry.get("exclusive")
                and not NOT_OF_WORK.fullmatch(entry["name"])
            ),
            key=lambda depth: depth.name,
        )
    )
