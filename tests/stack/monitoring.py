"""The pages of monitoring, as a user's tools read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.stack.stack import Stack
from tests.waiting import wait_until

#: Seconds for one answer while the machine is busy.
ANSWER_SECS = 20
#: The services of the profile.
SERVICES = ("metrics", "flower", "prometheus", "postgres-exporter")
#: Who looks at Flower.
FLOWER_USER = "admin"


class Figures:
    """What the service `metrics` says at one moment."""

    def __init__(self, text: str) -> None:
        self._samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def sum(self, name: str, **labels: str) -> float:
        """Over all samples of a name that have these labels; 0 without one."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str, label: str) -> set[str]:
        return {sample.labels[label] for sample in self._samples if sample.name == name}


@dataclass(frozen=True)
class Monitoring:
    """The profile `monitoring` of a stack."""

    stack: Stack

    def get(self, port: str, path: str, **options: Any) -> requests.Response:
        """GET of a page; `port` is the setting that names it."""
        url = f"http://127.0.0.1:{self.stack.settings[port]}{path}"
        return requests.get(url, timeout=ANSWER_SECS, **options)

    def figures(self) -> Figures:
        answer = self.get("METRICS_PORT", "/metrics")
        assert answer.status_code == 200, answer.text
        return Figures(answer.text)

    def query(self, expression: str) -> list[Mapping[str, Any]]:
        """The samples that Prometheus has for an expression now."""
        answer = self.get("PROMETHEUS_PORT", "/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", answer
        found: list[Mapping[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float | None:
        """Of an expression with one sample; None without."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> list[str]:
        """The names of the alerts that Prometheus says are firing."""
        alerts = self.get("PROMETHEUS_PORT", "/api/v1/alerts").json()["data"]["alerts"]
        return sorted(each["labels"]["alertname"] for each in alerts if each["state"] == "firing")

    @property
    def flower_login(self) -> tuple[str, str]:
        return FLOWER_USER, self.stack.settings["FLOWER_PASSWORD"]

    def flower(self, path: str, **parameters: Any) -> Any:
        answer = self.get("FLOWER_PORT", path, params=parameters, auth=self.flower_login)
        answer.raise_for_status()
        return answer.json()

    def wait_for_targets(self, timeout: float = 120) -> None:
        """Until Prometheus gets an answer of all that it asks."""

        def silent() -> list[str]:
            targets = self.get("PROMETHEUS_PORT", "/api/v1/targets").json()["data"]["activeTargets"]
            return [
                f"{each['labels']['job']}: {each['lastError'] or each['health']}"
                for each in targets
                if each["health"] != "up"
            ] or ([] if targets else ["no target"])

        wait_until(silent, timeout, "all targets up", until=lambda found: not found)
