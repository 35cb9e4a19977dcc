"""A running copy of the stack, as the tests touch it: only through what users touch as well."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import requests

from scripts import compose, env_file
from scripts.compose import ONE_SHOTS, Container
from scripts.console import ROOT
from tests.waiting import wait_until

#: Seconds that a container may need to be healthy again after a fault.
HEALTHY_SECS = 120
#: Seconds that a small run may take on a busy machine.
RUN_SECS = 300
FINAL = ("SUCCESS", "FAILURE", "CANCELED")

LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PipelineNotFoundError { message }
  }
}
"""
RUN = """
query Run($id: ID!) {
  runOrError(runId: $id) {
    ... on Run {
      status startTime endTime tags { key value }
      stepStats { stepKey status startTime endTime attempts { startTime endTime } }
    }
  }
}
"""
EVENTS = """
query Events($id: ID!, $cursor: String) {
  logsForRun(runId: $id, afterCursor: $cursor, limit: 1000) {
    ... on EventConnection {
      cursor hasMore
      events {
        __typename
        ... on MessageEvent { message timestamp stepKey eventType }
        ... on ExecutionStepFailureEvent {
          error { message className causes { message className } }
          failureMetadata { metadataEntries { label ... on TextMetadataEntry { text } } }
        }
        ... on ExecutionStepUpForRetryEvent { error { message className causes { message className } } }
        ... on RunFailureEvent { error { message } }
        ... on LogsCapturedEvent { fileKey stepKeys }
        ... on DisplayableEvent {
          metadataEntries {
            __typename label
            ... on IntMetadataEntry { intValue }
            ... on FloatMetadataEntry { floatValue }
            ... on TextMetadataEntry { text }
            ... on UrlMetadataEntry { url }
            ... on PathMetadataEntry { path }
            ... on MarkdownMetadataEntry { mdStr }
            ... on JsonMetadataEntry { jsonString }
          }
        }
      }
    }
  }
}
"""


@dataclass(frozen=True)
class Stack:
    """One copy of the stack: its .env, and every surface that it shows."""

    env: Path
    #: Seconds that Dagit has for an answer.
    patience: float = 60
    #: The checkout whose make targets and compose.yaml are used.
    checkout: Path = ROOT
    #: Further variables of the user's shell.
    shell: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """What .env holds now: `make up` completes it, and tests change it."""
        return env_file.read(self.env)

    @property
    def project(self) -> str:
        return self.settings["COMPOSE_PROJECT_NAME"]

    # --- command lines ---------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """For commands on this host: this copy's .env, and nothing of it from outside."""
        kept = {name: value for name, value in os.environ.items() if name not in self.settings}
        return {**kept, "STACK_ENV_FILE": str(self.env), "COMPOSE_ENV_FILES": str(self.env), **self.shell}

    def make(
        self, *arguments: str, check: bool = True, timeout: float = 900
    ) -> subprocess.CompletedProcess[str]:
        """A make target, without a terminal."""
        return self._run(["make", *arguments], check, timeout)

    def compose(
        self, *arguments: str, check: bool = True, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Plain `docker compose`, as a user types it."""
        return self._run([docker(), "compose", *arguments], check, timeout)

    def exec(self, service: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """In its first container that runs, as `docker compose exec` does it in ten times the time."""
        running = [each.name for each in self.containers(service) if each.state == "running"]
        return self.docker("exec", next(iter(running), f"{self.project}-{service}-1"), *command, check=check)

    def docker(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._run([docker(), *arguments], check, 300)

    def _run(self, command: list[str], check: bool, timeout: float) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            command,
            check=False, cwd=self.checkout, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip
        if check and result.returncode:
            raise AssertionError(
                f"`{' '.join(command)}` ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
            )
        return result

    # --- containers ------------------------------------------------------------------------------------

    def containers(self, service: str | None = None) -> list[Container]:
        """By name, ended ones too, and none of `docker compose run`."""
        found = compose.parsed(self.docker(*compose.listing(self.project)).stdout)
        return [each for each in found if service in (None, each.service)]

    def inspect(self, container: str) -> dict[str, Any]:
        """`docker inspect` of one container."""
        found: dict[str, Any] = json.loads(self.docker("inspect", container).stdout)[0]
        return found

    def start(self, service: str) -> None:
        """A service's containers that were stopped; Compose would first have `init` do its part once more."""
        self.docker("start", *(entry.name for entry in self.containers(service)))

    def container(self, service: str) -> str:
        """The name of the first running container of a service."""
        return str(next(entry.name for entry in self.containers(service) if entry.state == "running"))

    def pid(self, container: str) -> int:
        """The host's process id of a container's main process: killing it is a crash, not a manual stop."""
        return int(self.inspect(container)["State"]["Pid"])

    def health(self, container: str) -> str:
        return str(self.inspect(container)["State"]["Health"]["Status"])

    def wait_until_healthy(self, service: str | None = None, timeout: float = HEALTHY_SECS) -> None:
        """Until every container (of a service) runs and is healthy; a one-shot counts when it ended with 0."""

        def unwell() -> list[str]:
            return [
                f"{entry.name} {entry.state} {entry.health}"
                for entry in self.containers(service)
                if not (entry.state == "running" and entry.health in ("", "healthy"))
                and not (entry.service in ONE_SHOTS and entry.exit_code == 0)
            ]

        wait_until(unwell, timeout, f"{service or 'all services'} healthy", until=lambda found: not found)

    # --- Dagit -----------------------------------------------------------------------------------------

    @property
    def dagit_url(self) -> str:
        return f"http://127.0.0.1:{self.settings['DAGIT_PORT']}"

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        response = requests.post(
            f"{self.dagit_url}/graphql", json={"query": query, "variables": variables}, timeout=self.patience
        )
        body = response.json()
        assert "errors" not in body, body["errors"]
        data: dict[str, Any] = body["data"]
        return data

    def launch(
        self,
        job: str,
        config: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
        location: str = "pipelines",
    ) -> str:
        """Launch a job as the Launchpad does; returns the run's id."""
        selector = {
            "repositoryLocationName": location, "repositoryName": "__repository__", "jobName": job,
        }  # fmt: skip
        params = {
            "selector": selector,
            "runConfigData": config or {},
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in (tags or {}).items()]},
        }
        answer = self.graphql(LAUNCH, params=params)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def run(self, run_id: str) -> dict[str, Any]:
        """Status, tags and step statistics of a run."""
        found: dict[str, Any] = self.graphql(RUN, id=run_id)["runOrError"]
        return found

    def wait_for_run(self, run_id: str, timeout: float = RUN_SECS) -> dict[str, Any]:
        """The run once it has ended, however it did."""
        return wait_until(
            lambda: self.run(run_id), timeout, f"run {run_id} ended", until=lambda run: run["status"] in FINAL
        )

    def succeed(
        self, job: str, config: dict[str, Any] | None = None, tags: dict[str, str] | None = None
    ) -> str:
        """Run a job to its end and insist on success; returns the run's id."""
        run_id = self.launch(job, config, tags)
        run = self.wait_for_run(run_id)
        assert run["status"] == "SUCCESS", self.failure_texts(run_id)
        return run_id

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """Every event of a run, in order."""
        return list(self._events(run_id))

    def _events(self, run_id: str) -> Iterator[dict[str, Any]]:
        cursor: str | None = None
        more = True
        while more:
            page = self.graphql(EVENTS, id=run_id, cursor=cursor)["logsForRun"]
            yield from page["events"]
            cursor, more = page["cursor"], page["hasMore"]

    def failure_texts(self, run_id: str) -> list[str]:
        """What went wrong in a run, in its own words."""
        return [
            f"{event.get('stepKey')}: {event['message']} {event.get('error')}"
            for event in self.events(run_id)
            if "FAILURE" in (event.get("eventType") or "")
        ]

    def metadata(self, run_id: str, step: str) -> dict[str, Any]:
        """All metadata that a step's events carry, by label."""
        values: dict[str, Any] = {}
        for event in self.events(run_id):
            if event.get("stepKey") == step:
                for entry in event.get("metadataEntries") or []:
                    value = {k: v for k, v in entry.items() if k not in ("__typename", "label")}
                    values[entry["label"]] = next(iter(value.values()), None)
        return values

    # --- stores ----------------------------------------------------------------------------------------

    @cached_property
    def s3(self) -> Any:
        """S3 with the keys that the stack itself has."""
        return self.s3_client(self.settings["S3_ACCESS_KEY"], self.settings["S3_SECRET_KEY"])

    @cached_property
    def s3_root(self) -> Any:
        """S3 with root's keys, to look at what the stack's user may not see."""
        return self.s3_client("root", self.settings["MINIO_ROOT_PASSWORD"])

    def s3_client(self, access_key: str, secret_key: str) -> Any:
        by_tls = self.settings.get("INTERNAL_TLS") == "on"
        return boto3.client(
            "s3", endpoint_url=f"http{'s' if by_tls else ''}://127.0.0.1:{self.settings['MINIO_PORT']}",
            region_name="us-east-1", aws_access_key_id=access_key, aws_secret_access_key=secret_key,
            verify=self._authority if by_tls else None,
        )  # fmt: skip

    @cached_property
    def _authority(self) -> str:
        """The file with the certificate of the copy's own authority."""
        file = self.env.with_name("ca.pem")
        file.write_text(self.exec("minio", "cat", "/trust/ca.pem").stdout)
        return str(file)

    @property
    def bucket(self) -> str:
        return self.settings["S3_BUCKET"]

    def keys(self, prefix: str) -> list[str]:
        """The keys in the bucket under a prefix."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def broker(self, path: str, user: str = "admin") -> Any:
        """GET of RabbitMQ's management API."""
        response = self.broker_response(path, user)
        response.raise_for_status()
        return response.json()

    def broker_do(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        """A request of RabbitMQ's management API that changes something; what it answers, if it does."""
        response = requests.request(
            method,
            f"http://127.0.0.1:{self.settings['RABBITMQ_PORT']}/api/{path}",
            json=content, auth=("admin", self.settings["RABBITMQ_ADMIN_PASSWORD"]), timeout=20,
        )  # fmt: skip
        assert response.ok, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    @property
    def vhost(self) -> str:
        """The broker's virtual host of this stack."""
        return self.settings["RABBITMQ_VHOST"]

    def broker_response(
        self, path: str, user: str = "admin", password: str | None = None
    ) -> requests.Response:
        names = {"admin": "RABBITMQ_ADMIN_PASSWORD", "monitor": "RABBITMQ_MONITOR_PASSWORD",
                 "dagster": "RABBITMQ_PASSWORD"}  # fmt: skip
        return requests.get(
            f"http://127.0.0.1:{self.settings['RABBITMQ_PORT']}/api/{path}",
            auth=(user, password or self.settings[names[user]]), timeout=20,
        )  # fmt: skip

    def sql(self, statement: str) -> list[list[str]]:
        """Rows of a statement, as Dagster's own database user."""
        command = f"PGPASSWORD=$POSTGRES_PASSWORD psql -X -A -t -F '|' -h 127.0.0.1 -U $POSTGRES_USER -d $POSTGRES_DB -c \"{statement}\""
        output = self.exec("postgres", "sh", "-c", command).stdout
        return [line.split("|") for line in output.splitlines()]


def docker() -> str:
    from scripts.engine import docker

    return docker()
