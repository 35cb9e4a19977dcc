"""Jobs for tests alone: put into running containers, launched with Dagster's own command line."""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from tests.stack import runs
from tests.stack.stack import Stack
from tests.waiting import wait_until

SOURCE = Path(__file__).with_name("ad_hoc_jobs.py")
#: The same path everywhere: a worker loads a job from the file that the run names.
TARGET = "/tmp/ad_hoc_jobs.py"
TAG = "test/ad-hoc"


@dataclass(frozen=True)
class AdHoc:
    """The jobs of `ad_hoc_jobs.py` on the workers of a stack."""

    stack: Stack

    def install(self) -> None:
        """Into every worker, and into the daemon's container, where the command line runs."""
        for service in ("daemon", "worker", "worker-heavy"):
            for entry in self.stack.containers(service):
                command = ("sh", "-c", f'printf %s "$1" > {TARGET}', "sh", SOURCE.read_text())
                self.stack.docker("exec", entry["Name"], *command)

    def start(self, job: str) -> str:
        """Begin a run beside the daemon; returns its id once Dagit knows it."""
        mark = str(uuid.uuid4())
        self.stack.compose("exec", "-d", "daemon", *self._command(job, mark))
        return str(
            wait_until(lambda: runs.with_tag(self.stack, TAG, mark), 60, f"a run of {job}")[0]["runId"]
        )

    def run(self, job: str) -> str:
        """A run to its end, however that is."""
        mark = str(uuid.uuid4())
        result = self.stack.exec("daemon", *self._command(job, mark), check=False)
        found = runs.with_tag(self.stack, TAG, mark)
        assert found, f"no run of {job}: {result.stderr}"
        return str(found[0]["runId"])

    @staticmethod
    def _command(job: str, mark: str) -> list[str]:
        return ["dagster", "job", "execute", "-f", TARGET, "-j", job, "--tags", json.dumps({TAG: mark})]
