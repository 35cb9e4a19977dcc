"""AUTOSCALE: what it says, and what is refused."""

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
    "text",
    [
        "worker",
        "worker:8",
        "worker:8..1",
        "worker:0..0",
        "worker:1..8,worker:1..2",
        "runner:1..4",
        "worker:1..99999",
    ],
)
def test_what_is_no_limit_is_refused_by_name(text: str) -> None:
    with pytest.raises(Failure, match="AUTOSCALE"):
        limits.parsed(text)


@pytest.mark.parametrize(
    ("service", "variable"),
    [("worker", "WORKERS"), ("worker-heavy", "HEAVY_WORKERS"), ("worker-big-gpu", "BIG_GPU_WORKERS")],
)
def test_a_services_number_stands_in_env(service: str, variable: str) -> None:
    assert Limits(service, 0, 1).variable == variable
