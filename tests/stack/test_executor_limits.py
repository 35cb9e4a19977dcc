"""How many steps go at once: per run, per tag, and for all runs in a pool."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc, Spec
from tests.stack.stack import Stack
from tests.waiting import wait_until

NAP_SECS = 0.4
POOL = "test-pool"
SET_LIMIT = (
    "mutation Set($key: String!, $limit: Int!) { setConcurrencyLimit(concurrencyKey: $key, limit: $limit) }"
)
DELETE_LIMIT = "mutation Delete($key: String!) { deleteConcurrencyLimit(concurrencyKey: $key) }"
SLOTS = """
query Slots($key: String!) {
  instance { concurrencyLimit(concurrencyKey: $key) { slotCount claimedSlots { runId } pendingSteps { runId } } }
}
"""


def naps(*names: str, **executor: Any) -> dict[str, Any]:
    return {
        "ops": {name: {"config": {"seconds": NAP_SECS}} for name in names},
        "execution": {"config": executor},
    }


LIMITED = [f"{kind}_{number}" for kind in ("free", "scarce") for number in range(3)]
POOLED = [f"{queue}_{number}" for queue in ("dagster", "heavy") for number in range(2)]
SPECS = {
    "free": Spec("limited", naps(*LIMITED)),
    "one_at_a_time": Spec("limited", naps(*LIMITED, max_concurrent=1)),
    "scarce": Spec(
        "limited", naps(*LIMITED, tag_concurrency_limits=[{"key": "scarce", "value": "yes", "limit": 1}])
    ),
    "pooled": Spec("pooled", naps(*POOLED)),
}


@pytest.fixture(scope="module")
def made(stack: Stack, jobs: AdHoc) -> Iterator[dict[str, str]]:
    stack.graphql(SET_LIMIT, key=POOL, limit=1)
    try:
        yield dict(zip(SPECS, jobs.execute(*SPECS.values()), strict=True))
    finally:
        stack.graphql(DELETE_LIMIT, key=POOL)


def at_once(stack: Stack, run_id: str, prefix: str = "") -> int:
    assert stack.run(run_id)["status"] == "SUCCESS", stack.failure_texts(run_id)
    return runs.most_at_once(runs.spans(stack, run_id, prefix).values())


def test_steps_without_a_limit_use_all_workers(stack: Stack, made: dict[str, str]) -> None:
    # Given six steps for two workers, without any limit
    # When their times are laid side by side
    # Then two went at once
    assert at_once(stack, made["free"]) == 2


def test_max_concurrent_is_never_exceeded(stack: Stack, made: dict[str, str]) -> None:
    # Given the same steps with `max_concurrent: 1`
    # When their times are laid side by side
    # Then none began before another had ended
    assert at_once(stack, made["one_at_a_time"]) == 1


def test_a_limit_on_a_tag_holds_for_its_steps_alone(stack: Stack, made: dict[str, str]) -> None:
    # Given the same steps with a limit of one for a tag that half of them have
    # When their times are laid side by side
    # Then those with the tag went one by one, and another beside them
    assert at_once(stack, made["scarce"], "scarce_") == 1
    assert at_once(stack, made["scarce"]) == 2


def test_a_pool_is_never_exceeded_and_empty_in_the_end(stack: Stack, made: dict[str, str]) -> None:
    # Given four steps for three workers, in a pool with one slot
    # When their times are laid side by side
    # Then they went one by one
    assert at_once(stack, made["pooled"]) == 1
    assert len(runs.spans(stack, made["pooled"])) == len(POOLED)
    # And the slot is free again
    slots = wait_until(
        lambda: stack.graphql(SLOTS, key=POOL)["instance"]["concurrencyLimit"], 30, "a free slot",
        until=lambda found: not found["claimedSlots"] and not found["pendingSteps"],
    )  # fmt: skip
    assert slots["slotCount"] == 1
