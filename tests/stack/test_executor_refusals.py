"""What Postgres does not take: a step or a launch fails once with Postgres's sentence, and nothing starts later."""

import random
import string

import pytest

from tests.stack import runs
from tests.stack.ad_hoc import AdHoc, Spec
from tests.stack.stack import Stack

#: Compressed it is still longer than an index takes.
LONG = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=8000))
SENTENCE = 'for index "idx_run_tags"'


def test_a_step_that_writes_too_long_a_tag_fails_once_with_what_postgres_says(
    stack: Stack, jobs: AdHoc
) -> None:
    (run_id,) = jobs.begin(Spec("refused"))

    assert stack.wait_for_run(run_id)["status"] == "FAILURE"

    assert runs.count_events(stack, run_id, "STEP_START") == {"write_long_tag": 1}
    assert any(SENTENCE in text for text in stack.failure_texts(run_id))


def test_a_launch_that_is_refused_says_why_and_leaves_no_run(stack: Stack) -> None:
    before = stack.sql("SELECT count(*) FROM runs")

    with pytest.raises(AssertionError, match=SENTENCE):
        stack.launch("parallel_pipeline", tags={"long": LONG})

    assert stack.sql("SELECT count(*) FROM runs") == before
