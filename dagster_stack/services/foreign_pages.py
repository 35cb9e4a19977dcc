"""Refuses what a page of another site makes a browser send to Dagit, which has no login of its own."""

from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dagster_stack.own_names import PUBLIC_VARIABLE, Authority, OwnNames
from dagster_stack.services.refusals import RefusalLog, quoted, refusal

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
#: What Sec-Fetch-Site says of Dagit's own page, and of an address that was typed.
OWN_SITES = ("same-origin", "none")
#: What browsers are told with each answer. Dagit frames its notebooks itself.
PROTECTION = [
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class ForeignPages:
    """ASGI middleware: 403 with the reason for foreign hosts, origins and sites, and for changes that a page could
    send without asking (anything but POST with application/json). Clients that are no browser send no Origin."""

    def __init__(self, app: ASGIApp, own: OwnNames) -> None:
        self._app = app
        self._own = own
        self._log = RefusalLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *PROTECTION]
            await send(message)

        headers = Headers(scope=scope)
        reason = self._foreign(scope, headers)
        if reason is None and scope["type"] == "http":
            reason = smuggled_change(scope, headers)
        if reason is None:
            await self._app(scope, receive, send_protected)
            return
        self._log.note(reason)
        await refusal(reason, scope, headers)(scope, receive, send_protected)

    def _foreign(self, scope: Scope, headers: Headers) -> str | None:
        """Why the request is one of a foreign page, if it is."""
        names = headers.getlist("host")
        host = Authority.of(names[0]) if len(names) == 1 else None
        if host is None or not self._own.has(host):
            name = host.host if host else ", ".join(names)
            return (
                f"Dagit is not asked under its own name but under {quoted(name)}: use 127.0.0.1 or localhost, or write"
                f" that name into {PUBLIC_VARIABLE} in .env, with LOGIN=on, and run `make up`."
            )
        for text in headers.getlist("origin"):
            origin = Authority.of_origin(text)
            if origin is None or not self._own.is_own_origin(origin, host):
                return (
                    f"A page of {quoted(text)} may not use Dagit: if that is Dagit itself behind a proxy, write it"
                    f" into {PUBLIC_VARIABLE} in .env, with LOGIN=on, and run `make up`."
                )
        if set(headers.getlist("sec-fetch-site")) - set(OWN_SITES) and not is_visit(scope, headers):
            return "A page of another site may not use Dagit: open Dagit by its address in a tab of its own."
        return None


def is_visit(scope: Scope, headers: Headers) -> bool:
    """Whether the user follows a link to Dagit: the answer fills a tab, and the other page can't read it."""
    return (
        scope["type"] == "http"
        and scope["method"] in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def smuggled_change(scope: Scope, headers: Headers) -> str | None:
    """Why the request may change something although any page can send the like, if so: browsers ask first for
    application/json alone. A request without a content type has no body that Dagit reads, but an address."""
    kinds = headers.getlist("content-type")
    is_json = [kind.partition(";")[0].strip().lower() for kind in kinds] == ["application/json"]
    if scope["method"] not in SAFE_METHODS and kinds and not is_json:
        return (
            f"Dagit takes POST with the content type application/json alone, and not {quoted(', '.join(kinds))}:"
            " send the query as JSON with that header."
        )
    if all(map(only_reads, QueryParams(scope["query_string"]).getlist("query"))):
        return None
    return "A mutation is taken by POST with the content type application/json alone, not in an address."


def only_reads(document: str) -> bool:
    """Whether no operation of a GraphQL document changes anything. What can't be parsed is never executed: Dagit parses
    with the same function, which stops at a depth that is far from the interpreter's."""
    try:
        definitions = parse(document, no_location=True).definitions
    except GraphQLError:
        return True
    operations = [each for each in definitions if isinstance(each, OperationDefinitionNode)]
    return all(each.operation is OperationType.QUERY for each in operations)
