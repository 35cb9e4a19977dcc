"""Every query of every panel, asked of the live Prometheus: after a run each has an answer."""

import re
from collections.abc import Iterator

import pytest

from tests.stack import runs, work
from tests.stack.dashboards import Query, queries
from tests.stack.monitoring import Monitoring
from tests.stack.stack import Stack
from tests.waiting import wait_until

#: Seconds until two scrapes of every target lie behind a run: rates need two samples.
SCRAPES_SECS = 60
#: What a healthy stack without pools, backfills and backups has no series of: there the query's own 0 is the answer.
ABSENT = re.compile(r"ALERTS|up == 0|> 180| unless on|dagster_(concurrency|backfill|backup)|requests_errors")
ZERO = " or on() vector(0)"


@pytest.fixture(scope="module")
def worked(stack: Stack, monitoring: Monitoring) -> Iterator[Monitoring]:
    """Prometheus after runs and steps on every queue, while a run of many steps goes on."""
    work.succeed(stack)
    # The daemon's first pass comes 5 minutes after its start
    stack.make("retention")
    run_id = work.begin_many_steps(stack)
    runs.wait_for_event(stack, run_id, "STEP_SUCCESS")
    yield monitoring
    work.end(stack, run_id)


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.dashboard}-{query.panel}")
def test_a_panels_query_has_an_answer(worked: Monitoring, query: Query) -> None:
    # Anywhere else a 0 in the place of figures that are gone must not pass for an answer
    absent = ABSENT.search(query.expression)
    expression = query.expression if absent else query.expression.removesuffix(ZERO)
    wait_until(lambda: worked.query(expression), SCRAPES_SECS, f"{query.panel}: {expression}")
