"""Answers to requests that Dagit does not take, with the reason; the log has one in a while."""

import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Scope

logger = logging.getLogger(__name__)

#: Seconds between log lines: a page can send thousands of requests.
LOG_EVERY_SECS = 10
#: Characters of a header that a reason quotes.
QUOTED = 100


class RefusalLog:
    """Writes that a request was refused, and why, at most every LOG_EVERY_SECS."""

    def __init__(self) -> None:
        self._logged_at = -float(LOG_EVERY_SECS)

    def note(self, reason: str) -> None:
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_SECS:
            self._logged_at = now
            logger.warning("a request was refused: %s", reason, extra={"action": "http.refused"})


def refusal(reason: str, scope: Scope, headers: Headers, status: int = 403) -> Response:
    """An answer with this status, as JSON where the client is one of GraphQL."""
    never_kept = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if scope["path"].endswith("/graphql") and "text/html" not in headers.get("accept", ""):
        content: dict[str, Any] = {"data": None, "errors": [{"message": reason}]}
        return JSONResponse(content, status, never_kept)
    return PlainTextResponse(f"{reason}\n", status, never_kept)


def quoted(text: str) -> str:
    return repr(text if len(text) <= QUOTED else f"{text[:QUOTED]}…")
