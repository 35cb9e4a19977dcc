"""Who asks Dagit: what the door says of it, which is before Dagit and alone knows the secret between the two."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from dagster_stack.errors import SettingsError
from dagster_stack.services.refusals import RefusalLog, quoted, refusal
from dagster_stack.texts import shown

LOGIN_VARIABLE = "LOGIN"
LOGINS = ("off", "on")
#: All that Dagit has of the secret: user code beside it can't become the door with that.
DIGEST_VARIABLE = "DOOR_SECRET_SHA256"

#: Begins the names of the door's headers, as ASGI has them.
FAMILY = b"x-stack-"
SECRET, USER, ROLE, ADDRESS = (FAMILY + name for name in (b"door", b"user", b"role", b"address"))
#: Where a request has its identity, once the door's headers are taken out.
IDENTITY = "dagster_stack.identity"

#: What the container's health check asks, and from where.
HEALTH_PATH = "/server_info"
LOOPBACK = ("127.0.0.1", "::1")

NOT_THE_DOOR = (
    "Dagit answers only to who has logged in: open the address that `make up` prints. If this came through the door, the"
    " two have different secrets: run `make up`."
)


class Role(StrEnum):
    """What a user may do: each role may do all that the one before may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, other: "Role") -> bool:
        return RANKS[self] >= RANKS[other]


RANKS = {role: number for number, role in enumerate(Role)}


@dataclass(frozen=True)
class Identity:
    """A user as the door has let them in, and the address that they came from."""

    user: str
    role: Role
    address: str = ""


class Refused(Exception):
    """Raised when a request has no identity; the status is HTTP's."""

    def __init__(self, reason: str, status: int = 401) -> None:
        super().__init__(reason)
        self.status = status


def door_digest(environment: Mapping[str, str] = os.environ) -> str | None:
    """The SHA-256 of the door's secret; None with LOGIN=off. Raises SettingsError."""
    login = environment.get(LOGIN_VARIABLE) or LOGINS[0]
    if login not in LOGINS:
        raise SettingsError(
            f"{LOGIN_VARIABLE} must be one of {', '.join(LOGINS)}, it is {login!r}. Change it in .env."
        )
    if login == "off":
        return None
    digest = environment.get(DIGEST_VARIABLE, "")
    if not re.fullmatch("[0-9a-f]{64}", digest) or digest == sha256(b"").hexdigest():
        raise SettingsError(
            f"{LOGIN_VARIABLE}=on, but {DIGEST_VARIABLE} is no SHA-256 of a secret: Dagit could not tell the door from others."
            " Run `make up`, which sets it."
        )
    return digest


def identity_of(source: object) -> Identity | None:
    """Whose request it is; None for what is no request."""
    return source.scope.get(IDENTITY) if isinstance(source, HTTPConnection) else None


class Door:
    """ASGI middleware: 401 for all that does not come through the door, but the health check. What passes has an
    identity, and the door's headers no more: nobody can log them."""

    def __init__(self, app: ASGIApp, digest: str) -> None:
        self._app = app
        self._digest = digest
        self._log = RefusalLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        doors = [each for each in scope["headers"] if each[0].startswith(FAMILY)]
        scope = {**scope, "headers": [each for each in scope["headers"] if not each[0].startswith(FAMILY)]}
        try:
            if doors or not is_health_check(scope):
                scope[IDENTITY] = self._identity(doors)
        except Refused as error:
            self._log.note(f"{error} It came from {quoted(str((scope.get('client') or ['?'])[0]))}.")
            await refusal(str(error), scope, Headers(scope=scope), error.status)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _identity(self, headers: Iterable[tuple[bytes, bytes]]) -> Identity:
        found: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in found:
                raise Refused(NOT_THE_DOOR)
            found[name] = value
        if not compare_digest(sha256(found.get(SECRET, b"")).hexdigest(), self._digest):
            raise Refused(NOT_THE_DOOR)
        user, role, address = (text_of(found.get(name, b"")) for name in (USER, ROLE, ADDRESS))
        if not user:
            raise Refused("The door names no user: log in again.")
        if role not in set(Role):
            raise Refused(
                f"{quoted(user)} has no role here. An admin gives one: make user NAME=… ROLE=viewer, operator or admin.",
                403,
            )
        return Identity(user, Role(role), address)


def is_health_check(scope: Scope) -> bool:
    """Whether it comes from within the container, and asks for what says nothing but releases."""
    return (
        scope["type"] == "http"
        and scope["method"] in ("GET", "HEAD")
        and scope["path"] == HEALTH_PATH
        and (scope.get("client") or [""])[0] in LOOPBACK
    )


def text_of(value: bytes) -> str:
    """A header's text, whatever its bytes are: UTF-8, as names of an identity provider may be, or what HTTP had before."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return shown(text).strip()
