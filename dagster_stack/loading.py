"""How a process loads much code: without the garbage collector, which would look again and again at what stays anyway."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """For imports of the platform: a fifth less of processor. What they made is looked at by no later collection."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
