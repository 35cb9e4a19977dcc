"""A piece of real work: the proof that a stack works, in as few seconds as it can be had."""

import hashlib
import json
import uuid
from contextlib import suppress
from pathlib import Path

from pipelines.queues import HEAVY, LIGHT
from tests.stack import many_steps, runs
from tests.stack.stack import Stack
from tests.waiting import wait_until

JOB = "queues"
#: A job of so many steps, and where all containers that load code find it: on their volume.
MANY_STEPS, MANY = many_steps.many_steps.name, many_steps.NUMBER
VOLUME = "/opt/data"
#: Steps on both queues that sleep no second.
NO_NAPS = {"ops": {op.name: {"config": {"seconds": 0}} for op in LIGHT + HEAVY}}


def succeed(stack: Stack) -> str:
    """Run steps on every queue and insist on success; returns the run's id."""
    return stack.succeed(JOB, NO_NAPS)


def launch(stack: Stack) -> str:
    """Launch the same without waiting for its end."""
    return stack.launch(JOB, NO_NAPS)


def end(stack: Stack, *run_ids: str) -> None:
    """Terminate runs that have served their purpose, and wait until the workers are free."""
    for run_id in run_ids:
        # One that has just ended by itself refuses.
        with suppress(AssertionError):
            runs.terminate(stack, run_id)
    for run_id in run_ids:
        stack.wait_for_run(run_id)


def begin_many_steps(stack: Stack) -> str:
    """A run of MANY steps that do nothing, half a minute on two cores; returns its id once it is there."""
    return begin_on_volume(stack, many_steps.__file__, MANY_STEPS)


def begin_on_volume(stack: Stack, file: str, job: str) -> str:
    """A run of a job of a file of the tests; returns its id once it is there.

    The file is on the volume: the container of a killed worker has it again when it restarts, and a new one has it too.
    """
    source = Path(file).read_text()
    # A worker keeps the modules that it has loaded.
    target = f"{VOLUME}/{Path(file).stem}_{hashlib.sha256(source.encode()).hexdigest()[:8]}.py"
    # At once: a worker may read it for a run before.
    write = f'printf %s "$1" > {target}.new && mv {target}.new {target}'
    stack.exec("daemon", "sh", "-c", write, "sh", source)
    mark = str(uuid.uuid4())
    command = ["dagster", "job", "execute", "-f", target, "-j", job]
    stack.compose("exec", "-d", "daemon", *command, "--tags", json.dumps({"test/mark": mark}))
    found = wait_until(lambda: runs.with_tag(stack, "test/mark", mark), 60, f"a run of {job}")
    return str(found[0]["runId"])
