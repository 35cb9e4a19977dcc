"""What Dagit answers, whatever the database holds (texts of before, or of another program, were never mended) or
refuses."""

import json
from typing import Any

from dagster_webserver import graphql
from graphql import GraphQLError
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

from dagster_stack.patches.dagster import JSON_RESPONSE, STATUS_CODE
from dagster_stack.patches.servers import SEND_JSON
from dagster_stack.store.sqlstate import kind_of

OWN_STATUS_CODE = STATUS_CODE.found()


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


def status_code(
    server: graphql.GraphQLServer[Any],
    resolver_errors: list[GraphQLError] | None,
    captured_errors: list[Exception],
) -> int:
    """Dagster's own; but HTTP 500 would hide the answer from who asks, when that is what Postgres said."""
    others = [error for error in captured_errors if kind_of(error) is None]
    return int(OWN_STATUS_CODE(server, resolver_errors, others))


def use_in_webserver() -> None:
    """Let Dagster's webserver in this process answer so."""
    STATUS_CODE.replace(status_code)
    JSON_RESPONSE.replace(Answer)
    SEND_JSON.replace(send_json)
