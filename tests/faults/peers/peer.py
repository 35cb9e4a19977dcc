"""One peer: a daemon and workers as Dagster and dagster-celery bring them, in containers of their own."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from scripts.console import BUILD_FOLDER, ROOT
from tests.stack import faults
from tests.stack.stack import Stack
from tests.waiting import wait_until

HERE = Path(__file__).parent
OWN_DAGSTER = ROOT / "bench" / "dagster.yaml"
FINAL = {"SUCCESS", "FAILURE", "CANCELED"}
LAUNCHER = {
    "module": "dagster_celery.launcher",
    "class": "CeleryRunLauncher",
    "config": {"broker": {"env": "CELERY_BROKER_URL"}, "default_queue": "runs"},
}


@dataclass(frozen=True)
class Seen:
    """A run as the event log has it."""

    status: str
    started: Counter[str]
    ended: Counter[str]

    @property
    def is_over(self) -> bool:
        return self.status in FINAL


@dataclass(frozen=True)
class Peer:
    """A way to run a job, with a schema in Postgres and a virtual host in RabbitMQ of its own."""

    name: str
    title: str
    job: str
    celery_launcher: bool
    step_workers: int

    # --- its services ------------------------------------------------------------------------------------

    def start(self, stack: Stack) -> None:
        """Everything, from nothing; returns when all answer."""
        self.stop(stack)
        stack.broker_do("PUT", f"vhosts/{self.name}")
        allowed = {"configure": ".*", "write": ".*", "read": ".*"}
        stack.broker_do("PUT", f"permissions/{self.name}/{stack.settings['RABBITMQ_USER']}", allowed)
        stack.sql(f"CREATE SCHEMA {self.name}")
        (self.home(stack) / "dagster.yaml").write_text(self.dagster_yaml())
        self._run(stack, "daemon", "dagster-daemon", "run", "-w", "/peers/workspace.yaml")
        self._ready(stack, "daemon", "Instance is configured with the following daemons")
        for number in range(self.step_workers):
            self._worker(stack, f"worker{number}", "dagster")
        if self.celery_launcher:
            self._worker(stack, "runner", "runs")

    def stop(self, stack: Stack) -> None:
        for name in self.containers(stack):
            stack.docker("rm", "-f", name)
        with suppress(AssertionError):
            stack.broker_do("DELETE", f"vhosts/{self.name}")
        stack.sql(f"DROP SCHEMA IF EXISTS {self.name} CASCADE")

    def containers(self, stack: Stack) -> list[str]:
        prefix = self._container(stack, "")
        return stack.docker(
            "ps", "-a", "--filter", f"name=^{prefix}", "--format", "{{.Names}}"
        ).stdout.split()

    def home(self, stack: Stack) -> Path:
        folder = BUILD_FOLDER / stack.project / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def dagster_yaml(self) -> str:
        content = yaml.safe_load(OWN_DAGSTER.read_text())
        if self.celery_launcher:
            content["run_launcher"] = LAUNCHER
        return str(yaml.safe_dump(content))

    def _worker(self, stack: Stack, role: str, queue: str) -> None:
        start = ("dagster-celery", "worker", "start", "-A", "dagster_celery.app", "-y", "/peers/worker.yaml")
        self._run(stack, role, *start, "-q", queue, "-n", role)
        self._ready(stack, role, " ready.")

    def _run(self, stack: Stack, role: str, *command: str) -> None:
        container, settings = self._container(stack, role), stack.settings
        broker = (
            f"amqp://{settings['RABBITMQ_USER']}:{settings['RABBITMQ_PASSWORD']}@rabbitmq:5672/{self.name}"
        )
        options = {
            "--env": [
                "DAGSTER_HOME=/home",
                f"PGOPTIONS=-c search_path={self.name}",
                f"CELERY_BROKER_URL={broker}",
            ],
            "--volume": [f"{HERE}:/peers:ro", f"{self.home(stack)}:/home:ro"],
        }
        given = [word for option, values in options.items() for value in values for word in (option, value)]
        stack.compose("run", "-d", "--no-deps", "--name", container, *given, "cli", *command)
        # `docker compose run` gives none; a service of theirs would have one.
        stack.docker("update", "--restart", "unless-stopped", container)

    def _ready(self, stack: Stack, role: str, sign: str) -> None:
        def log() -> str:
            result = stack.docker("logs", self._container(stack, role))
            return result.stdout + result.stderr

        wait_until(log, 180, f"{role} of {self.title} is ready", until=lambda text: sign in text)

    def _container(self, stack: Stack, role: str) -> str:
        return f"{stack.project}-{self.name}-{role}"

    # --- its run -----------------------------------------------------------------------------------------

    def launch(self, stack: Stack) -> None:
        options = ("-w", "/peers/workspace.yaml", "-j", self.job)
        stack.docker("exec", self._container(stack, "daemon"), "dagster", "job", "launch", *options)

    def seen(self, stack: Stack) -> Seen:
        """What stands in the event log of the one run."""
        status = stack.sql(f"SELECT status FROM {self.name}.runs")
        rows = stack.sql(
            f"SELECT dagster_event_type, step_key, count(*) FROM {self.name}.event_logs"
            " WHERE step_key IS NOT NULL GROUP BY 1, 2"
        )
        counted = {kind: Counter({step: int(number) for each, step, number in rows if each == kind})
                   for kind in ("STEP_START", "STEP_SUCCESS", "STEP_FAILURE")}  # fmt: skip
        return Seen(
            status[0][0] if status else "not there",
            counted["STEP_START"],
            counted["STEP_SUCCESS"] + counted["STEP_FAILURE"],
        )

    def reasons(self, stack: Stack) -> list[str]:
        """The messages of what failed."""
        rows = stack.sql(
            "SELECT replace(left(event::json -> 'dagster_event' ->> 'message', 300), chr(10), ' ')"
            f" FROM {self.name}.event_logs WHERE dagster_event_type IN ('PIPELINE_FAILURE', 'STEP_FAILURE')"
            " OR (dagster_event_type = 'ENGINE_EVENT' AND event LIKE '%rror%') LIMIT 5"
        )
        return ["|".join(row) for row in rows]

    # --- faults ------------------------------------------------------------------------------------------

    def kill(self, stack: Stack, role: str) -> None:
        """The container's main process, as a crash: its restart policy brings it back."""
        faults.crash(stack.pid(self._container(stack, role)))
