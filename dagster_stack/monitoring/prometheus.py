"""Prometheus as it is asked here: alerts that fire, and how figures went."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests

from dagster_stack.errors import PrometheusUnreachable

URL_VARIABLE = "DAGSTER_STACK_PROMETHEUS_URL"
#: What Compose starts besides the services without a profile, and the one that has Prometheus.
PROFILES_VARIABLE, PROFILE = "DAGSTER_STACK_PROFILES", "monitoring"
#: Seconds for an answer: Prometheus is one hop away, and whoever asks can do without it.
TIMEOUT_SECS = 3.0


@dataclass(frozen=True)
class Alert:
    """A rule of Prometheus that is fulfilled. `since` is as Prometheus writes times (RFC 3339)."""

    name: str
    severity: str
    summary: str
    since: str


@dataclass(frozen=True)
class Series:
    """How one figure went: its labels, and values by seconds since 1970."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


class Prometheus:
    """Its HTTP API. Raises PrometheusUnreachable whatever is wrong with it."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()
        # As for Dagit: a proxy in the environment is not for a service beside this process.
        self._session.trust_env = False

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "Prometheus | None":
        """None where the environment names no Prometheus: the profile `monitoring` is off."""
        url, profiles = environment.get(URL_VARIABLE), environment.get(PROFILES_VARIABLE, "")
        is_on = PROFILE in [profile.strip() for profile in profiles.split(",")]
        return Prometheus(url) if url and is_on else None

    def firing(self) -> tuple[Alert, ...]:
        """The alerts that fire, the longest first."""
        found = (
            read_alert(entry) for entry in self._ask("alerts", "alerts") if entry.get("state") == "firing"
        )
        return tuple(sorted(found, key=lambda alert: (alert.since, alert.name, alert.summary)))

    def between(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """The series of a PromQL expression from `start` to `end`, each `step` seconds; may hold NaN."""
        found = self._ask(
            "query_range",
            "result",
            query=expression,
            start=start,
            end=end,
            step=step,
            timeout=f"{TIMEOUT_SECS:g}s",
        )
        return [
            Series(entry["metric"], [(float(at), float(value)) for at, value in entry["values"]])
            for entry in found
        ]

    def _ask(self, what: str, member: str, **parameters: str | float) -> list[dict[str, Any]]:
        try:
            response = self._session.get(
                f"{self._url}/api/v1/{what}", params=parameters, timeout=TIMEOUT_SECS
            )
            response.raise_for_status()
            return list(response.json()["data"][member])
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            # Without its address, which may hold a password.
            raise PrometheusUnreachable(
                f"Prometheus does not answer ({type(error).__name__}): `make ps` shows its state,"
                " `docker compose logs prometheus` says why."
            ) from error


def read_alert(entry: Mapping[str, Any]) -> Alert:
    """An alert as Prometheus gives it; of one without a summary its labels say what it is about."""
    labels, notes = entry.get("labels") or {}, entry.get("annotations") or {}
    rest = ", ".join(
        f"{name} {value}" for name, value in sorted(labels.items()) if name not in ("alertname", "severity")
    )
    return Alert(
        name=str(labels.get("alertname", "?")),
        severity=str(labels.get("severity", "")),
        summary=str(notes.get("summary") or notes.get("description") or rest),
        since=str(entry.get("activeAt", "")),
    )
