"""A piece of real work: the proof that a stack works, in as few seconds as it can be had."""

from pipelines.queues import HEAVY, LIGHT
from tests.stack.stack import Stack

JOB = "queues"
#: Steps on both queues that sleep no second.
NO_NAPS = {"ops": {op.name: {"config": {"seconds": 0}} for op in LIGHT + HEAVY}}


def succeed(stack: Stack) -> str:
    """Run steps on every queue and insist on success; returns the run's id."""
    return stack.succeed(JOB, NO_NAPS)


def launch(stack: Stack) -> str:
    """Launch the same without waiting for its end."""
    return stack.launch(JOB, NO_NAPS)
