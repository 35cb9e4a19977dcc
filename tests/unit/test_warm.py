"""What a worker's process keeps between steps."""

import os
import warnings

from dagster import DagsterInstance

from dagster_stack.pool import warm


def test_a_forked_process_opens_an_instance_of_its_own(instance: DagsterInstance) -> None:
    """Its parent's connections are not its own."""
    assert warm.warm_instance.cache_info().currsize == 1

    with warnings.catch_warnings():
        # Python 3.12 and later warn when the parent has threads; this child only looks and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(warm.warm_instance.cache_info().currsize)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert warm.warm_instance() is instance
