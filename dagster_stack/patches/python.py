"""Parts of Python's multiprocessing, and of loky, which has copied it: what they keep for a process, undone after a step."""

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import process as _process
from typing import Any

from dagster_stack.patches.part import Part

# fmt: off
_python = partial(Part, read="Python 3.13")

_CHILDREN = "celery's pool processes count as daemons there, and those may start no process."
_KEPT = "what a step has started by it ends with the step, and the next one must not wait for it."

USED = (
    _python("multiprocessing.process:_current_process", "_MainProcess",
        _CHILDREN, upstream="https://github.com/celery/celery/issues/1709"),
    _python("multiprocessing.process:BaseProcess._config", "attribute", _KEPT),
    _python("multiprocessing.process:_children", "set", _KEPT),
    _python("multiprocessing.util:_finalizer_registry", "dict", _KEPT),
    _python("multiprocessing.resource_tracker:_resource_tracker", "ResourceTracker", _KEPT),
    _python("multiprocessing.resource_tracker:ResourceTracker._fd", "attribute", _KEPT),
    _python("multiprocessing.resource_tracker:ResourceTracker._pid", "attribute", _KEPT),
    _python("multiprocessing.forkserver:_forkserver", "ForkServer", _KEPT),
    *(
        _python(f"multiprocessing.forkserver:ForkServer.{name}", "attribute", _KEPT)
        for name in ("_forkserver_address", "_forkserver_alive_fd", "_forkserver_pid")
    ),
)
# fmt: on

#: Seconds for a thread of loky's whose processes have ended.
THREAD_SECS = 2.0
#: Loky's own, and the copy in joblib.
_LOKY = ("joblib.externals.loky", "loky")
_module: Any = _process
#: What multiprocessing has for a program, from before any pool.
_program = _process.current_process()


def allow_children() -> None:
    """Let multiprocessing take this process for any program, which may start processes."""
    _module._current_process = _program


def config() -> dict[str, Any]:
    """What it keeps for this process, the folder for its temporary files among it."""
    return _module._current_process._config  # type: ignore[no-any-return]


def finalizers() -> dict[Any, Any]:
    """What it will call at this process's end."""
    module: Any = sys.modules.get("multiprocessing.util")
    return module._finalizer_registry if module else {}


def trackers() -> list[Any]:
    names = ("multiprocessing.resource_tracker", *(f"{each}.backend.resource_tracker" for each in _LOKY))
    return [sys.modules[each]._resource_tracker for each in names if each in sys.modules]


def helpers() -> Iterator[tuple[Any, dict[str, Any]]]:
    """What it has of each process that it keeps for later: by these attributes, None without one."""
    yield from ((each, {"_fd": each._fd, "_pid": each._pid}) for each in trackers())
    if module := sys.modules.get("multiprocessing.forkserver"):
        server = module._forkserver
        # Its address, its process, and from Python 3.14 on a key.
        yield server, {name: each for name, each in vars(server).items() if name.startswith("_forkserver_")}


def let_go_of_trackers() -> None:
    """Let trackers remove what they track, and end: they do once nobody uses them, so this process closes its end."""
    for tracker in trackers():
        if tracker._fd is not None:
            with suppress(OSError):
                os.close(tracker._fd)
            tracker._fd = tracker._pid = None


def forget_helpers(alive: Collection[int]) -> None:
    """Let it start anew what has ended: all but the processes with these ids."""
    let_go_of_trackers()
    module = sys.modules.get("multiprocessing.forkserver")
    server = module and module._forkserver
    if server and server._forkserver_pid is not None and server._forkserver_pid not in alive:
        with suppress(OSError):
            os.close(server._forkserver_alive_fd)
        server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None
    _module._children -= {each for each in _module._children if each.pid not in alive}
    for each in _LOKY:
        if loky := sys.modules.get(f"{each}.reusable_executor"):
            _forget_executor(loky)


def _forget_executor(module: Any) -> None:
    """The executor that loky keeps for its next caller. Its thread ends, since its processes have."""
    executor, module._executor, module._executor_kwargs = module._executor, None, None
    thread = getattr(executor, "_executor_manager_thread", None)
    if thread:
        thread.join(THREAD_SECS)
