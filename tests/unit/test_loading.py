"""Imports without the garbage collector: afterwards it is as it was before."""

import gc
from collections.abc import Iterator
from contextlib import suppress

import pytest

from dagster_stack.loading import uncollected


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_collector_rests_meanwhile_and_is_as_before_afterwards(is_enabled: bool) -> None:
    (gc.enable if is_enabled else gc.disable)()

    with suppress(ImportError), uncollected():
        assert not gc.isenabled()
        raise ImportError("no such module")

    assert gc.isenabled() is is_enabled


def test_what_was_loaded_is_looked_at_by_no_later_collection() -> None:
    gc.unfreeze()

    with uncollected():
        pass

    assert gc.get_freeze_count() > 0
