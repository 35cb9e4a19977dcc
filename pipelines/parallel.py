"""`parallel_pipeline`: fifty steps that have nothing to wait for, the smallest thing worth distributing."""

from dagster import job, op

STEPS = 50


@op
def not_much() -> None:
    """Nothing: what this step takes is what a step costs."""


@job
def parallel_pipeline() -> None:
    """50 independent steps. Launch it and watch them spread over the workers."""
    for number in range(STEPS):
        not_much.alias(f"not_much_{number}")()
