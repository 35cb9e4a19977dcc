"""What Dagit answers, whatever texts the database holds: those of before, or of another program, were never mended."""

import json
from typing import Any

from dagster_webserver import graphql
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

from dagster_stack.logs.libraries import replace


class Answer(JSONResponse):
    """JSON in UTF-8, or in ASCII when a lone surrogate in it can't be encoded: Dagit would answer HTTP 500."""

    def render(self, content: Any) -> bytes:
        try:
            return super().render(content)
        except UnicodeEncodeError:
            return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


async def send_json(websocket: WebSocket, data: Any, mode: str = "text") -> None:
    """The same over a WebSocket, in place of starlette's own."""
    await websocket.send_text(bytes(Answer(data).body).decode())


def use_in_webserver() -> None:
    """Let Dagster's webserver in this process answer so."""
    replace(graphql, "JSONResponse", Answer)
    replace(WebSocket, "send_json", send_json)
