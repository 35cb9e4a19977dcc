"""A function executed in a process of its own, whose output is kept for the case that it fails.

The process is forked: it has the code loaded, as a runner or a worker has, and makes everything else by itself.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from tempfile import TemporaryFile
from traceback import format_exc
from typing import IO, Any

FORK = multiprocessing.get_context("fork")
#: Seconds that a process which took too long has for its end.
END_SECS = 20
#: Characters of the end of its output that are shown.
TAIL = 1500


class Failed(Exception):
    """Raised when the process ended without a result, or took too long."""


def forked(function: Callable[..., Any], *arguments: Any, limit: float = 600) -> Any:
    """What the function returns; raises Failed when it raises, or takes more than `limit` seconds."""
    receiving, sending = FORK.Pipe(duplex=False)
    with TemporaryFile() as output:
        process = FORK.Process(target=_call, args=(function, arguments, sending, output))
        process.start()
        sending.close()
        answered = False
        try:
            answered = receiving.poll(limit)
            failure, result = receiving.recv() if answered else (f"took longer than {limit:.0f} s", None)
        except EOFError:
            failure, result = "its process ended without a word", None
        finally:
            if not answered:
                process.terminate()
            process.join(END_SECS)
            process.kill()
            process.join()
        if failure:
            output.seek(0)
            text = output.read().decode(errors="replace").strip()
            raise Failed("\n".join(part for part in (failure, text[-TAIL:]) if part))
    return result


def _call(
    function: Callable[..., Any], arguments: tuple[Any, ...], answer: Connection, output: IO[bytes]
) -> None:
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    try:
        answer.send((None, function(*arguments)))
    except Exception:
        answer.send((format_exc(limit=-3), None))
