"""The tags by which a step or a run says where and when its steps run: the contract with `pipelines`."""

import re
from collections.abc import Mapping

from dagster_celery import tags as stock

from dagster_stack.messaging import app_factory

#: On an op: its queue, and its priority there; on a run: what is added to that of its steps.
QUEUE = stock.DAGSTER_CELERY_QUEUE_TAG
PRIORITY, RUN_PRIORITY = stock.DAGSTER_CELERY_STEP_PRIORITY_TAG, stock.DAGSTER_CELERY_RUN_PRIORITY_TAG
HIGHEST, DEFAULT = app_factory.HIGHEST_PRIORITY, app_factory.DEFAULT_PRIORITY

#: On a run: the content hash of the code that drives it. Set by the stack, for everybody to see.
CODE = "dagster-stack/code"
#: On a run: the reload whose definitions it has, counted from 1. Set by the stack, once there was a reload.
DEFINITIONS = "dagster-stack/definitions"
#: On a run that a step executes by itself: of which execution it is a part. Set by the stack.
WITHIN = "dagster-stack/within"
#: On an op, a job or a run: "false" when an execution that was lost must not be repeated.
REDELIVER = "dagster-stack/redeliver"
#: On an op, a job or a run: the seconds that an attempt of a step may take.
TIMEOUT = "dagster-stack/timeout"
#: On an op, a job or a run: in which process a step is executed.
ISOLATION = "dagster-stack/isolation"
#: One that is warm and was there before, or one of its own.
WARM, PROCESS = ISOLATIONS = ("warm", "process")

#: AMQP's.
LOWEST = 0


def step_priority(step_tags: Mapping[str, str], run_tags: Mapping[str, str]) -> int:
    """A step's priority in its queue: its own plus its run's, kept within 0 to 10.

    A tag that is no whole number counts as not set: a typing error must not fail a run.
    """
    total = _number(step_tags.get(PRIORITY), DEFAULT) + _number(run_tags.get(RUN_PRIORITY), 0)
    return max(LOWEST, min(HIGHEST, total))


def may_be_redelivered(step_tags: Mapping[str, str], run_tags: Mapping[str, str]) -> bool:
    """Whether a step may be executed again after its worker was lost; a step's own tag wins over its run's."""
    return step_tags.get(REDELIVER, run_tags.get(REDELIVER, "true")).strip().lower() != "false"


def timeout(step_tags: Mapping[str, str], run_tags: Mapping[str, str]) -> tuple[float, str] | None:
    """The seconds that an attempt of a step may take, and who says so; a step's own tag wins over its run's.

    A tag that is no number of seconds counts as not set; the run's log warns of it.
    """
    for found, owner in ((step_tags, "op"), (run_tags, "run")):
        if (value := seconds(found.get(TIMEOUT))) is not None:
            return value, f"tag {TIMEOUT} of the {owner}"
    return None


def seconds(text: str | None) -> float | None:
    """A number of seconds above 0, such as "600" or "0.5"; None for anything else."""
    value = float(text) if text and re.fullmatch(r"\s*[0-9]{1,12}(\.[0-9]+)?\s*", text) else 0.0
    return value or None


def isolation(step_tags: Mapping[str, str], run_tags: Mapping[str, str]) -> str:
    """One of ISOLATIONS; a step's own tag wins over its run's. Any other counts as not set; the run's log warns of it."""
    for found in (step_tags, run_tags):
        if (value := found.get(ISOLATION, "").strip().lower()) in ISOLATIONS:
            return value
    return WARM


def _number(text: str | None, default: int) -> int:
    try:
        return int(text) if text is not None else default
    except ValueError:
        return default
