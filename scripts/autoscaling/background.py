"""Questions that wait for an answer beside each other, in threads that keep no process from its end."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Answer = TypeVar("Answer")


def aside(question: Callable[..., Answer], *arguments: Any) -> Future[Answer]:
    """The answer to come. A pool of threads would be waited for at the end, also for those whose host is silent."""
    answer: Future[Answer] = Future()

    def ask() -> None:
        try:
            answer.set_result(question(*arguments))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return answer
