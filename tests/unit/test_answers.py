"""What Dagit answers when the database holds text that can't be encoded."""

import asyncio
import json
from typing import Any, cast

import pytest
from dagster_webserver import graphql
from sqlalchemy.exc import DataError
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

from dagster_stack.services.answers import OWN_STATUS_CODE, Answer, send_json, status_code, use_in_webserver
from dagster_stack.store.sqlstate import note


def test_an_answer_with_a_lone_surrogate_is_json_all_the_same() -> None:
    body = bytes(Answer({"message": "file\udcff ü 😀"}).body)

    assert json.loads(body) == {"message": "file\udcff ü 😀"}


def test_an_ordinary_answer_is_dagits_own() -> None:
    content = {"message": "ü 😀", "number": 1.5}

    assert Answer(content).body == JSONResponse(content).body


def test_so_is_what_goes_over_a_websocket() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def talk() -> None:
        websocket = WebSocket({"type": "websocket"}, receive, send)
        await websocket.accept()
        await send_json(websocket, {"text": "\udcff"})

    asyncio.run(talk())

    assert json.loads(sent[-1]["text"].encode()) == {"text": "\udcff"}


def test_what_postgres_says_is_an_answer_and_what_anything_else_says_is_a_mistake() -> None:
    """The page, and every client, shows it; of HTTP 500 they show the number."""
    ours = DataError("INSERT", {}, Exception("too long"))
    note(ours, is_sent=True)

    assert status_code(cast(Any, object()), None, [ours]) == 200
    for other in (DataError("INSERT", {}, Exception("of user code's database")), RuntimeError("a mistake")):
        assert status_code(cast(Any, object()), None, [other]) == 500


def test_the_webserver_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphql, "JSONResponse", JSONResponse)
    monkeypatch.setattr(WebSocket, "send_json", WebSocket.send_json)
    monkeypatch.setattr(graphql.GraphQLServer, "_determine_status_code", OWN_STATUS_CODE)

    use_in_webserver()

    assert vars(graphql)["JSONResponse"] is Answer
