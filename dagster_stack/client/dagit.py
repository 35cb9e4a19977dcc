"""A small client of Dagit's GraphQL: what the browser does to launch, watch and terminate a run."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from dagster_stack.errors import DagitError, DagitUnreachable, LaunchRefused

DEFAULT_URL = "http://127.0.0.1:3000"
URL_VARIABLE = "DAGSTER_STACK_DAGIT_URL"
PUBLIC_URL_VARIABLE = "DAGSTER_STACK_DAGIT_PUBLIC_URL"
#: With a login: what the door shows Dagit, so that this client may pass as well.
SECRET_VARIABLE = "DOOR_SECRET"
#: Who the make commands are to Dagit.
USER, ROLE = "make", "admin"

#: Seconds for a connection: Dagit is one hop away, so more only delays the message.
CONNECT_TIMEOUT_SECS = 3.0
#: Seconds for an answer. At a launch Dagit asks the code location for the plan: slow on busy cores.
ANSWER_TIMEOUT_SECS = 60.0
#: Seconds for an answer to a question that is asked again soon.
WATCH_TIMEOUT_SECS = 15.0
#: Seconds for a reload: Dagster gives a code location 180 to load.
RELOAD_TIMEOUT_SECS = 240.0
#: Tries to connect after the first. A refused connection carried no request, so a launch is never doubled.
CONNECT_RETRIES = 2
#: Events in one answer: Dagit reads no more at once.
EVENTS_PER_ANSWER = 1000
#: Job names that an unknown one is answered with, at most.
LISTED_JOBS = 30


def read(query: str) -> str:
    """One of the requests, each of which is a file beside this one."""
    return Path(__file__).with_name("queries").joinpath(f"{query}.graphql").read_text(encoding="utf-8")


JOBS_QUERY = read("jobs")
LAUNCH_MUTATION = read("launch")
#: One question while watching: the run's state and its events since a cursor.
RUN_QUERY = read("run")
OUTPUTS_QUERY = read("outputs")
#: Why a run stays in the run queue: a dead daemon, or runs before it.
QUEUE_QUERY = read("queue")
TERMINATE_MUTATION = read("terminate")
RELOAD_MUTATION = read("reload")


@dataclass(frozen=True)
class Job:
    """A job by the three names that Dagit knows it by."""

    name: str
    repository: str
    location: str


@dataclass(frozen=True)
class RunQueue:
    """What a queued run waits for: `limit` is None where there is no limit."""

    daemon_alive: bool
    in_progress: int
    limit: int | None


class Dagit:
    """One Dagit, by its address. Raises DagitUnreachable or DagitError; opens nothing until first used."""

    def __init__(self, url: str, public_url: str | None = None, secret: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._public_url = (public_url or url).rstrip("/")
        self._session = requests.Session()
        # A proxy in the environment is for the world outside, not for the service beside this process.
        self._session.trust_env = False
        if secret:
            self._session.headers.update({"X-Stack-Door": secret, "X-Stack-User": USER, "X-Stack-Role": ROLE})
        retries = Retry(connect=CONNECT_RETRIES, read=0, status=0, other=0, backoff_factor=0.2)
        self._session.mount("http://", HTTPAdapter(max_retries=retries))
        self._session.mount("https://", HTTPAdapter(max_retries=retries))

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "Dagit":
        return Dagit(
            environment.get(URL_VARIABLE) or DEFAULT_URL,
            environment.get(PUBLIC_URL_VARIABLE),
            environment.get(SECRET_VARIABLE),
        )

    def run_page(self, run_id: str) -> str:
        """The address of a run for the user's browser."""
        return f"{self._public_url}/runs/{run_id}"

    def ask(
        self, query: str, variables: Mapping[str, Any] | None = None, timeout: float = ANSWER_TIMEOUT_SECS
    ) -> dict[str, Any]:
        """One GraphQL request; gives its `data`."""
        try:
            response = self._session.post(
                f"{self.url}/graphql",
                json={"query": query, "variables": dict(variables or {})},
                timeout=(CONNECT_TIMEOUT_SECS, timeout),
            )
        except (requests.exceptions.MissingSchema, requests.exceptions.InvalidURL) as error:
            raise DagitUnreachable(f"{URL_VARIABLE} is no address: {error}") from error
        except requests.exceptions.InvalidSchema as error:
            raise DagitUnreachable(f"{URL_VARIABLE} must start with http:// or https://: {error}") from error
        except requests.RequestException as error:
            raise DagitUnreachable(self._unreachable(brief_reason(error))) from error
        if response.status_code >= 500:
            raise DagitUnreachable(self._unreachable(f"HTTP status {response.status_code}"))
        try:
            answer = response.json()
        except ValueError as error:
            raise DagitUnreachable(
                f"What answers at {self.url} is not Dagit (HTTP status {response.status_code}): is another"
                f" service on that port? {URL_VARIABLE} says where Dagit is."
            ) from error
        if not isinstance(answer, dict) or answer.get("errors") or not isinstance(answer.get("data"), dict):
            errors = answer.get("errors") if isinstance(answer, dict) else None
            reason = errors[0].get("message") if errors else f"HTTP status {response.status_code}"
            raise DagitError(f"Dagit at {self.url} can't answer: {reason}")
        data: dict[str, Any] = answer["data"]
        return data

    def find_job(self, name: str, location: str | None = None) -> Job:
        """The job of that name; raises LaunchRefused with the names that there are."""
        data = self.ask(JOBS_QUERY)
        repositories = data["repositoriesOrError"]
        if repositories["__typename"] != "RepositoryConnection":
            raise DagitError(f"Dagit can't list its jobs: {repositories.get('message', '').strip()}")
        jobs = [
            Job(job["name"], node["name"], node["location"]["name"])
            for node in repositories["nodes"]
            for job in node["jobs"]
        ]
        return choose_job(jobs, load_errors(data["workspaceOrError"]), name, location)

    def launch(self, job: Job, config_yaml: str, tags: Mapping[str, str]) -> str:
        """Launch a run as the Launchpad does; gives its id. Raises LaunchRefused, or DagitError."""
        params = {
            "selector": {
                "jobName": job.name,
                "repositoryName": job.repository,
                "repositoryLocationName": job.location,
            },
            "runConfigData": config_yaml or "{}",
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        answer = self.ask(LAUNCH_MUTATION, {"params": params})["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise launch_error(job.name, answer)
        run_id: str = answer["run"]["runId"]
        return run_id

    def reload(self) -> list[str]:
        """Load all code locations anew, as Dagit's button does; gives their names. Raises DagitError with what failed."""
        answer = self.ask(RELOAD_MUTATION, timeout=RELOAD_TIMEOUT_SECS)["reloadWorkspace"]
        if answer["__typename"] != "Workspace":
            raise DagitError(f"Dagit can't load the code anew: {answer.get('message', '').strip()}")
        if errors := load_errors(answer):
            raise DagitError("\n".join(f"{name} {reason}" for name, reason in errors.items()))
        return [entry["name"] for entry in answer["locationEntries"]]

    def run(self, run_id: str, cursor: str | None, with_plan: bool) -> dict[str, Any]:
        """The run's state, its plan if asked for, and its next events after `cursor`."""
        return self._run(RUN_QUERY, run_id, cursor, {"withPlan": with_plan})

    def output_metadata(self, run_id: str, step: str) -> dict[str, int | str]:
        """The numbers and addresses that a step put on its outputs, by label."""
        metadata: dict[str, int | str] = {}
        for event in self._output_events(run_id):
            if event.get("stepKey") == step:
                for entry in event["metadataEntries"]:
                    if entry["__typename"] == "IntMetadataEntry":
                        metadata[entry["label"]] = int(entry["intRepr"])
                    elif entry["__typename"] == "UrlMetadataEntry":
                        metadata[entry["label"]] = entry["url"]
        return metadata

    def run_queue(self) -> RunQueue:
        """The run queue as the daemon sees it."""
        data = self.ask(QUEUE_QUERY, timeout=WATCH_TIMEOUT_SECS)
        instance = data["instance"]
        limit = (instance["runQueueConfig"] or {}).get("maxConcurrentRuns")
        status = instance["daemonHealth"]["daemonStatus"]
        return RunQueue(
            daemon_alive=bool(status["healthy"]),
            in_progress=data["inProgress"].get("count") or 0,
            # -1 is Dagster's word for no limit.
            limit=limit if limit is not None and limit >= 0 else None,
        )

    def terminate(self, run_id: str) -> None:
        """Ask for the run's end; it is CANCELED some time later. Raises DagitError when it is refused."""
        answer = self.ask(TERMINATE_MUTATION, {"id": run_id})["terminateRun"]
        if answer["__typename"] != "TerminateRunSuccess":
            raise DagitError(f"Dagit can't terminate the run: {answer.get('message', '').strip()}")

    def _output_events(self, run_id: str) -> Iterator[dict[str, Any]]:
        cursor = None
        more = True
        while more:
            page = self._run(OUTPUTS_QUERY, run_id, cursor)["eventConnection"]
            yield from page["events"]
            cursor, more = page["cursor"], page["hasMore"]

    def _run(
        self, query: str, run_id: str, cursor: str | None, more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        variables = {"id": run_id, "cursor": cursor, "limit": EVENTS_PER_ANSWER, **(more or {})}
        run: dict[str, Any] = self.ask(query, variables, timeout=WATCH_TIMEOUT_SECS)["runOrError"]
        if run["__typename"] != "Run":
            raise DagitError(f"Dagit does not show the run {run_id}: {run.get('message', '').strip()}")
        return run

    def _unreachable(self, reason: str) -> str:
        return (
            f"Dagit does not answer at {self.url} ({reason}). `make up` starts the stack;"
            f" {URL_VARIABLE} says where Dagit is."
        )


def brief_reason(error: requests.RequestException) -> str:
    """One phrase out of the nest of exceptions that a failed request is."""
    text = str(error)
    for sign, reason in (
        ("Connection refused", "connection refused"),
        ("Name or service not known", "unknown host name"),
        ("Temporary failure in name resolution", "unknown host name"),
        ("Failed to resolve", "unknown host name"),
        ("No route to host", "no route to host"),
    ):
        if sign in text:
            return reason
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    return "the connection broke"


def load_errors(workspace: Mapping[str, Any]) -> dict[str, str]:
    """Code locations that can't be used, each with its reason."""
    errors = {}
    for entry in workspace.get("locationEntries", []):
        content = entry["locationOrLoadError"]
        if content is None or entry["loadStatus"] == "LOADING":
            errors[entry["name"]] = "is still being loaded"
        elif content["__typename"] == "PythonError":
            errors[entry["name"]] = f"could not be loaded: {content['message'].strip()}"
    return errors


def choose_job(jobs: Sequence[Job], unloaded: Mapping[str, str], name: str, location: str | None) -> Job:
    """The one job that is meant; raises LaunchRefused that lists what there is."""
    found = [job for job in jobs if job.name == name and location in (None, job.location)]
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(sorted(job.location for job in found))
        raise LaunchRefused(
            f"Several code locations have a job {name!r} ({places}): which one? LOCATION={found[-1].location}, or --location."
        )
    lines = [f"There is no job {name!r}" + (f" in the code location {location!r}." if location else ".")]
    # Dagster's own jobs behind assets are no names that a user knows.
    names = sorted({job.name for job in jobs if not job.name.startswith("__")})
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        lines[0] += f" Did you mean {near[0]!r}?"
    if names:
        more = f" and {len(names) - LISTED_JOBS} more" if len(names) > LISTED_JOBS else ""
        lines.append(f"Jobs: {', '.join(names[:LISTED_JOBS])}{more}.")
    lines += [f"The code location {place!r} {reason}" for place, reason in unloaded.items()]
    raise LaunchRefused("\n".join(lines))


def config_problem(problem: Mapping[str, Any]) -> str:
    """A validation error with its path, which most messages hold already (the field `path` never does)."""
    entries = problem["stack"]["entries"]
    steps = [str(entry.get("fieldName", entry.get("listIndex", "?"))) for entry in entries]
    path, message = ":".join(["root", *steps]), problem["message"].strip()
    return message if path in message or not steps else f"{path}: {message}"


def launch_error(job: str, answer: Mapping[str, Any]) -> DagitError:
    """The exception for each way in which Dagit answers a launch with something else than a run."""
    kind = answer["__typename"]
    message = (answer.get("message") or "").strip()
    error: type[DagitError] = LaunchRefused
    match kind:
        case "RunConfigValidationInvalid":
            lines = [f"The run config does not fit the job {job!r}:"]
            lines += [f"  {config_problem(problem)}" for problem in answer["errors"]]
        case "InvalidStepError":
            lines = [f"The job {job!r} has no step {answer['invalidStepKey']!r}."]
        case "InvalidOutputError":
            lines = [f"The step {answer['stepKey']!r} has no output {answer['invalidOutputName']!r}."]
        case "PipelineNotFoundError":
            lines = [f"The job {job!r} is gone from its code location: {message}"]
        case (
            "InvalidSubsetError"
            | "PresetNotFoundError"
            | "NoModeProvidedError"
            | "ConflictingExecutionParamsError"
        ):
            lines = [f"Dagit can't launch the job {job!r}: {message}"]
        case "RunConflict":
            error, lines = DagitError, [f"Dagit has such a run already: {message}"]
        case "UnauthorizedError":
            error, lines = DagitError, [f"This Dagit allows no launches (is it read-only?): {message}"]
        case _:
            causes = [cause["message"].strip() for cause in answer.get("causes") or []]
            lines = [f"Dagit can't launch the job {job!r}: {message or kind}"]
            error, lines = DagitError, lines + [f"  caused by {cause}" for cause in causes]
    return error("\n".join(lines))
