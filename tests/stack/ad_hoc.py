"""Jobs for tests alone: put into running containers, and executed beside the daemon."""

import hashlib
import json
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.stack import runs
from tests.stack.stack import LAUNCH, Stack
from tests.waiting import wait_until

TAG = "test/ad-hoc"
#: Where they are inside.
FOLDER = "/tmp"
#: The services whose containers have them.
PLACES = ("daemon", "runner", "worker", "worker-heavy")
#: Writes files: a path, what it holds, the next path.
WRITE = 'while [ $# -gt 0 ]; do mkdir -p "${1%/*}"; printf %s "$2" > "$1"; shift 2; done'


@dataclass(frozen=True)
class Spec:
    """A run to be made of a job in `executor_jobs`; see `execute` in its program."""

    job: str
    config: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    ops: Sequence[str] = ()
    assets: Sequence[str] = ()
    #: The spec of the same call whose run is to be repeated from its failure.
    again: "Spec | None" = None
    in_process: bool = False


def naps(**seconds: float) -> dict[str, Any]:
    """The config by which steps take so many seconds."""
    return {"ops": {name: {"config": {"seconds": secs}} for name, secs in seconds.items()}}


@dataclass(frozen=True)
class AdHoc:
    """The jobs of a module beside this one, on the workers of a stack."""

    stack: Stack
    module: str = "ad_hoc_jobs"

    @property
    def source(self) -> Path:
        """The module's file, or the folder of a package."""
        here = Path(__file__).parent
        return file if (file := here / f"{self.module}.py").exists() else here / self.module

    @property
    def files(self) -> list[Path]:
        return [self.source] if self.source.is_file() else sorted(self.source.glob("*.py"))

    @property
    def name(self) -> str:
        """Of the module inside. A package's says what it holds: a worker keeps the modules that it has loaded."""
        if self.source.is_file():
            return self.module
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in self.files)).hexdigest()
        return f"{self.module}_{digest[:8]}"

    @property
    def target(self) -> str:
        """The same path everywhere: a worker loads a job from where the run says."""
        return f"{FOLDER}/{self.name}{self.source.suffix}"

    def install(self) -> None:
        """Into every worker and runner, and into the daemon's container, where the command line runs."""
        contents: list[str] = []
        for file in self.files:
            contents += [
                self.target if file == self.source else f"{self.target}/{file.name}",
                file.read_text(),
            ]
        for entry in self.stack.containers():
            if entry.state == "running" and entry.service in PLACES:
                self.stack.docker("exec", entry.name, "sh", "-c", WRITE, "sh", *contents)

    # --- one run, by Dagster's command line ------------------------------------------------------------

    def start(self, job: str) -> str:
        """Begin a run beside the daemon; returns its id once Dagit knows it."""
        mark = str(uuid.uuid4())
        self.stack.compose("exec", "-d", "daemon", *self._command(job, mark))
        return self._run_id(job, mark)

    def run(self, job: str, **environment: str) -> str:
        """A run to its end, however that is."""
        mark = str(uuid.uuid4())
        variables = ["env", *(f"{name}={value}" for name, value in environment.items())]
        result = self.stack.exec("daemon", *variables, *self._command(job, mark), check=False)
        found = runs.with_tag(self.stack, TAG, mark)
        assert found, f"no run of {job}: {result.stderr}"
        return str(found[0]["runId"])

    def _command(self, job: str, mark: str) -> list[str]:
        return ["dagster", "job", "execute", "-f", self.target, "-j", job, "--tags", json.dumps({TAG: mark})]

    def _run_id(self, job: str, mark: str) -> str:
        return str(
            wait_until(lambda: runs.with_tag(self.stack, TAG, mark), 60, f"a run of {job}")[0]["runId"]
        )

    # --- several, by the module's own program ----------------------------------------------------------

    def execute(self, *specs: Spec) -> list[str]:
        """Runs one after the other, each to its end; returns their ids."""
        marks, program = self._program(specs)
        result = self.stack.exec("daemon", *program, check=False)
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return [self._run_id(spec.job, mark) for spec, mark in zip(specs, marks, strict=True)]

    def begin(self, *specs: Spec) -> list[str]:
        """Begin runs, all at once; returns their ids once Dagit knows them."""
        marks, program = self._program(specs)
        self.stack.compose("exec", "-d", "daemon", *program, "--at-once")
        return [self._run_id(spec.job, mark) for spec, mark in zip(specs, marks, strict=True)]

    @contextmanager
    def in_container(self, spec: Spec) -> Iterator[tuple[str, str]]:
        """A run in a container of its own, where nothing else is to be seen; gives the run's id and its name."""
        name = f"{self.stack.project}-test-run"
        (mark,), program = self._program([spec])
        with self._container(name, *program):
            yield self._run_id(spec.job, mark), name

    def _program(self, specs: Sequence[Spec]) -> tuple[list[str], list[str]]:
        batch = uuid.uuid4()
        marks = [f"{batch}/{place}" for place in range(len(specs))]
        content = [
            {
                "job": spec.job,
                "mark": mark,
                "config": spec.config,
                "tags": spec.tags,
                "ops": list(spec.ops) or None,
                "assets": list(spec.assets),
                "again": marks[[each is spec.again for each in specs].index(True)] if spec.again else None,
                "in_process": spec.in_process,
            }
            for spec, mark in zip(specs, marks, strict=True)
        ]
        path = f"PYTHONPATH={FOLDER}:/opt/dagster"
        return marks, ["env", path, "python", "-m", self.name, json.dumps(content)]

    # --- in Dagit ----------------------------------------------------------------------------------------

    @contextmanager
    def dagit(self) -> Iterator["OwnDagit"]:
        """One more Dagit, in a container of its own, whose code location is this module."""
        name = f"{self.stack.project}-test-dagit"
        command = ["python", "-m", "dagster_stack", "dagit", "--port", "3000", "-f", self.target]
        with self._container(name, *command):
            dagit = OwnDagit(self.stack, name, f"{self.module}.py")
            wait_until(dagit.answers, 120, "the test's own Dagit answers")
            yield dagit

    # --- workers beside the stack's own ----------------------------------------------------------------

    @contextmanager
    def worker(self, *queues: str, name: str = "own", options: Sequence[str] = ()) -> Iterator[str]:
        """One more worker with one process, in a container of its own; gives its Celery name."""
        with self.workers(*queues, names=[name], options=options) as (worker,):
            yield worker

    @contextmanager
    def workers(self, *queues: str, names: Sequence[str], options: Sequence[str] = ()) -> Iterator[list[str]]:
        """Such workers, which start at the same time; gives their Celery names."""
        containers = {name: f"{self.stack.project}-test-worker-{name}" for name in names}
        command = [
            "celery",
            "-A",
            "dagster_stack.app",
            "worker",
            "-Q",
            ",".join(queues),
            "--concurrency",
            "1",
        ]
        with ExitStack() as started:
            for name, container in containers.items():
                more = ["-n", f"{name}@%h", "--loglevel", "INFO", *options]
                started.enter_context(self._container(container, *command, *more))
            for name, container in containers.items():
                wait_until(
                    lambda: self.stack.docker("logs", container), 90, f"worker {name} is ready",  # noqa: B023
                    until=lambda logs: " ready." in logs.stderr + logs.stdout,
                )  # fmt: skip
            hosts = {name: self.stack.inspect(at)["Config"]["Hostname"] for name, at in containers.items()}
            yield [f"{name}@{host}" for name, host in hosts.items()]

    @contextmanager
    def queues(self, *names: str) -> Iterator[None]:
        """Queues of the test's own: afterwards they are gone."""
        try:
            yield
        finally:
            for name in names:
                with suppress(AssertionError):
                    self.stack.broker_do("DELETE", f"queues/{self.stack.vhost}/{name}")

    @contextmanager
    def _container(self, name: str, *command: str) -> Iterator[None]:
        mount = f"{self.source}:{self.target}:ro"
        self.stack.docker("rm", "-f", name, check=False)
        self.stack.compose("run", "-d", "--no-deps", "--name", name, "--volume", mount, "cli", *command)
        try:
            yield
        finally:
            self.stack.docker("rm", "-f", name, check=False)


@dataclass(frozen=True)
class OwnDagit:
    """A Dagit that only its own container reaches; what it launches goes the way of all runs."""

    stack: Stack
    container: str
    location: str

    def launch(self, job: str, config: dict[str, Any] | None = None) -> str:
        """Launch a job as the Launchpad does; returns the run's id."""
        selector = {
            "repositoryLocationName": self.location, "repositoryName": "__repository__", "jobName": job,
        }  # fmt: skip
        params = {"selector": selector, "runConfigData": config or {}}
        answer = json.loads(self._ask({"query": LAUNCH, "variables": {"params": params}}).stdout)
        assert "errors" not in answer, answer["errors"]
        launched = answer["data"]["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def answers(self) -> bool:
        return self._ask({"query": "{ version }"}, check=False).returncode == 0

    def _ask(self, content: dict[str, Any], check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["curl", "-sS", "-H", "content-type: application/json", "-d", json.dumps(content)]
        return self.stack.docker(
            "exec", self.container, *command, "http://127.0.0.1:3000/graphql", check=check
        )
