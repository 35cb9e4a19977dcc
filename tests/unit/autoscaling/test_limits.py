"""AUTOSCALE: what it says, and what is refused."""

from pathlib import Path

import pytest

from scripts.autoscaling import limits
from scripts.autoscaling.limits import Limits
from scripts.console import Failure


def test_each_service_has_its_limits() -> None:
    assert limits.parsed("worker:1..8, worker-heavy:0..2") == [
        Limits("worker", 1, 8),
        Limits("worker-heavy", 0, 2),
    ]


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("worker", "For example: AUTOSCALE=worker:1..8"),
        ("worker:8", "For example"),
        ("worker:1-8", "For example"),
        ("worker: 1..8", "For example"),
        ("worker:1..8;worker-heavy:0..2", "For example"),
        ("worker:-1..8", "For example"),
        ("worker:8..1", "the fewest come first: worker:1..8"),
        ("worker:0..0", "take it out, or allow 1"),
        ("worker:1..8,worker:1..2", "names worker twice"),
        ("runner:1..4", "runner is no service of workers: RUNNERS in .env says how many"),
        ("daemon:1..4", "daemon is no service of workers: DAEMONS in .env says how many"),
        ("workers:1..4", "workers is no service of workers: there are worker, worker-heavy"),
        ("worker:1..99999", "at most 10000"),
    ],
)
def test_what_is_no_limit_is_refused_with_the_cure(env: Path, text: str, cure: str) -> None:
    with pytest.raises(Failure, match="^AUTOSCALE.*" + cure.replace(".", "[.]")):
        limits.parsed(text)


@pytest.mark.parametrize("text", ["worker:2..2", "worker:1..8,", " worker:1..8 ,, worker-heavy:0..1"])
def test_what_says_one_thing_is_taken(text: str) -> None:
    assert limits.parsed(text)


@pytest.mark.parametrize(
    ("service", "variable"),
    [("worker", "WORKERS"), ("worker-heavy", "HEAVY_WORKERS"), ("worker-big-gpu", "BIG_GPU_WORKERS")],
)
def test_a_services_number_stands_in_env(service: str, variable: str) -> None:
    assert Limits(service, 0, 1).variable == variable
