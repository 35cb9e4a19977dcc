"""Every query of every panel, asked of the live Prometheus: after a run each has an answer."""

import pytest

from tests.stack import work
from tests.stack.dashboards import Query, queries
from tests.stack.monitoring import Monitoring
from tests.stack.stack import Stack
from tests.waiting import wait_until

#: Seconds until two scrapes of every target lie behind a run: rates need two samples.
SCRAPES_SECS = 60


@pytest.fixture(scope="module")
def worked(stack: Stack, monitoring: Monitoring) -> Monitoring:
    """Prometheus after runs and steps on every queue."""
    work.succeed(stack)
    stack.succeed("parallel_pipeline")
    return monitoring


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.dashboard}-{query.panel}")
def test_a_panels_query_has_an_answer(worked: Monitoring, query: Query) -> None:
    wait_until(lambda: worked.query(query.expression), SCRAPES_SECS, f"{query.panel}: {query.expression}")
