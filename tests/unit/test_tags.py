"""The priority of a step from the tags of its op and its run, whatever people write into them."""

import pytest

from dagster_stack.tags import PRIORITY, QUEUE, RUN_PRIORITY, step_priority


def test_the_tags_are_those_of_dagster_celery() -> None:
    """Users have them in their code: a job moves over by changing an import."""
    assert PRIORITY == "dagster-celery/priority"
    assert RUN_PRIORITY == "dagster-celery/run_priority"
    assert QUEUE == "dagster-celery/queue"


@pytest.mark.parametrize(
    ("step", "run", "expected"),
    [
        (None, None, 5),
        ("0", None, 0),
        ("7", None, 7),
        (None, "2", 7),
        (None, "-2", 3),
        ("3", "4", 7),
        ("3", "-1", 2),
        (" 3 ", None, 3),
    ],
)
def test_a_priority_is_the_steps_and_the_runs_together(
    step: str | None, run: str | None, expected: int
) -> None:
    assert step_priority(tags(PRIORITY, step), tags(RUN_PRIORITY, run)) == expected


@pytest.mark.parametrize(
    ("step", "run", "expected"),
    [
        ("11", None, 10),
        ("1000", "1000", 10),
        ("-1", None, 0),
        ("8", "8", 10),
        ("2", "-8", 0),
        ("99", "-95", 4),
    ],
)
def test_a_priority_stays_within_what_a_queue_has(step: str, run: str | None, expected: int) -> None:
    """It is the sum that is kept within 0 and 10, not its parts."""
    assert step_priority(tags(PRIORITY, step), tags(RUN_PRIORITY, run)) == expected


@pytest.mark.parametrize("junk", ["", "high", "1.5", "0x5", "None", "5; drop table", "٣x"])
def test_a_tag_that_is_no_whole_number_counts_as_not_set(junk: str) -> None:
    """A typing error in a tag must not fail a run."""
    assert step_priority({PRIORITY: junk}, {}) == 5
    assert step_priority({}, {RUN_PRIORITY: junk}) == 5
    assert step_priority({PRIORITY: junk}, {RUN_PRIORITY: "3"}) == 8


def test_a_step_takes_no_priority_from_a_tag_that_is_its_runs() -> None:
    assert step_priority({RUN_PRIORITY: "9"}, {PRIORITY: "9"}) == 5


def tags(name: str, value: str | None) -> dict[str, str]:
    return {} if value is None else {name: value}
