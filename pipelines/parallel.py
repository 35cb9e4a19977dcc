"""`parallel_pipeline`: fifty steps that have nothing to wait for, the smallest thing worth distributing."""

from socket import gethostname

from dagster import job, op

STEPS = 50


@op
def not_much() -> None:
    """Next to nothing: what this step takes is what a step costs. Its output says which worker ran it."""
    print(f"not much, done by {gethostname()}")


@job
def parallel_pipeline() -> None:
    """50 independent steps. Launch it and watch them spread over the workers."""
    for number in range(STEPS):
        not_much.alias(f"not_much_{number}")()
