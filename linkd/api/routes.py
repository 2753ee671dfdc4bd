"""The one table of routes: it dispatches, and docs and OpenAPI come from it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from linkd.api import acting, publishing, reading
from linkd.api.call import Answer, Call, unquoted
from linkd.api.refusals import Refusal

if TYPE_CHECKING:
    from linkd.api.server import Api

Run = Callable[["Api", Call], Awaitable[Answer | None]]
Access = Literal["open", "caller", "token", "socket"]
"""`open`: anyone. `caller`: a key, a cookie session, or the socket. `token`: a token too. `socket`:
the unix socket alone; elsewhere there is no such path."""


class Param(msgspec.Struct, frozen=True):
    """A value in the query or a header."""

    name: str
    about: str
    type: str = "string"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One call.

    Args:
        method: GET, POST or DELETE.
        path: Its path; `{name}` stands for one segment.
        about: What it does, one sentence.
        run: What answers it; None for files and WebSockets.
        access: Who may call.
        answers: What each status means, beside those that any call may have.
        query: What may stand in the query.
        headers: What request headers mean something.
        body: The content types of the request's body, none where it has none.
        fields: Of the body where it is a JSON object.
        gives: Content types of the answer.
        always: Also while the node starts or stops.
        socket: A WebSocket.
    """

    method: str
    path: str
    about: str
    run: Run | None = None
    access: Access = "caller"
    answers: dict[int, str]
    query: tuple[Param, ...] = ()
    headers: tuple[Param, ...] = ()
    body: tuple[str, ...] = ()
    fields: tuple[Param, ...] = ()
    gives: tuple[str, ...] = ("application/json",)
    always: bool = False
    socket: bool = False


_FROM = Param("from", "The first offset wanted, `earliest` or `latest`.")
_CONSUMER = Param("consumer", "A named consumer, in place of `from`; made where it is new.")
_LAST = Param("Last-Event-ID", "Resume an event stream after this.", "integer")
_CONFIRMED = Param("confirmed", "Do it; else only told what would be.", "boolean")
_JSON = ("application/json",)

ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/v1/channels/{channel}",
        about="Publish the body as one message, or one a line (application/x-ndjson).",
        run=publishing.publish,
        answers={
            200: "A message with that id was published before; nothing was stored.",
            201: "It is on disk (with `wait`: on that peer's disk).",
            409: "The peer does not get this channel.",
            504: "It is stored, but the peer did not have it in time.",
            507: "The log or its disk has no room.",
        },
        query=(
            Param("wait", "Answer once this peer has it on disk."),
            Param("timeout", "Seconds to wait at most, 30 by default.", "number"),
        ),
        headers=(
            Param("Linkd-Type", "The application's word for what it is."),
            Param("Linkd-Id", "The same id again stores nothing; for one message only."),
            Param("Linkd-Ttl", "Seconds of life.", "number"),
        ),
        body=("application/json", "application/x-ndjson", "text/plain", "application/octet-stream"),
    ),
    Route(
        method="GET",
        path="/v1/channels/{channel}",
        about="A page of a channel or pattern; with Accept: text/event-stream, follow it.",
        run=reading.read,
        answers={200: "A page, or an event stream whose event ids are offsets."},
        query=(
            _FROM,
            _CONSUMER,
            Param("limit", "Records at most, 100 by default, up to 10000.", "integer"),
            Param("wait", "Seconds to wait for a first record, up to 300.", "number"),
        ),
        headers=(_LAST,),
        gives=("application/json", "text/event-stream"),
    ),
    Route(
        method="GET",
        path="/v1/consumers",
        about="The named consumers: next offset, and how many offsets lie behind the log's end.",
        run=acting.consumers,
        answers={200: "The consumers that the caller may see."},
    ),
    Route(
        method="POST",
        path="/v1/consumers/{name}/ack",
        about="Set a consumer's cursor: everything below `next` is done; it never moves back.",
        run=reading.acknowledge,
        answers={200: "It is on disk.", 404: "There is no such consumer."},
        body=_JSON,
        fields=(Param("next", "The next offset wanted.", "integer"),),
    ),
    Route(
        method="DELETE",
        path="/v1/consumers/{name}",
        about="Forget a consumer and its cursor.",
        run=acting.forget,
        answers={204: "It is gone.", 404: "There is no such consumer."},
        gives=(),
    ),
    Route(
        method="GET",
        path="/v1/records/{offset}",
        about="The exact bytes of one body.",
        run=reading.record,
        answers={
            200: "The body, with the content type that it was published with.",
            404: "There is no such record.",
            410: "It is no longer in the log.",
        },
        gives=("application/octet-stream",),
    ),
    Route(
        method="GET",
        path="/v1/status",
        about="The state of node and links.",
        run=acting.status,
        answers={200: "What is true now."},
        always=True,
    ),
    Route(
        method="GET",
        path="/v1/events",
        about="The changes of links, as a page or as an event stream.",
        run=acting.events,
        answers={200: "The changes, oldest first."},
        query=(Param("after", "Only those with a higher number.", "integer"),),
        headers=(_LAST,),
        gives=("application/json", "text/event-stream"),
        always=True,
    ),
    Route(
        method="GET",
        path="/v1/outages",
        about="The recorded outages, oldest first.",
        run=acting.outages,
        answers={200: "The outages."},
        query=(
            Param("peer", "Only this peer's."),
            Param("since", "Only of the last so many seconds.", "number"),
        ),
        always=True,
    ),
    Route(
        method="POST",
        path="/v1/peers/{name}/kick",
        about="Have a link try again at once, whatever its delay.",
        run=acting.kick,
        answers={200: "It tries.", 404: "There is no such peer."},
    ),
    Route(
        method="POST",
        path="/v1/peers/{name}/resync",
        about="Tell what a resync would send again or lose; do it where confirmed.",
        run=acting.resync,
        answers={
            200: "What would be, or was done.",
            404: "There is no such peer.",
            409: "Not now.",
        },
        body=_JSON,
        fields=(_CONFIRMED,),
    ),
    Route(
        method="POST",
        path="/v1/log/trim",
        about="Tell how many records lie below an offset; delete them where confirmed.",
        run=acting.trim,
        answers={200: "What would go, or went."},
        body=_JSON,
        fields=(Param("before", "The offset.", "integer"), _CONFIRMED),
    ),
    Route(
        method="POST",
        path="/v1/pairing/invite",
        about="Make a code with which another node can join, once. On the unix socket only.",
        run=acting.pair,
        access="socket",
        answers={201: "The code.", 409: "This node can't be paired with like that."},
        body=_JSON,
        fields=(
            Param("name", "The other node's name."),
            Param("address", "HOST or HOST:PORT at which it reaches this node."),
            Param("send", "Patterns of what it gets.", "array"),
            Param("receive", "Patterns of what it may send.", "array"),
        ),
    ),
    Route(
        method="GET",
        path="/v1/pairing/peers",
        about="Who was invited or paired. On the unix socket only.",
        run=acting.pair,
        access="socket",
        answers={200: "The peers, by name."},
        always=True,
    ),
    Route(
        method="POST",
        path="/v1/pairing/peers/{name}/revoke",
        about="Take every certificate of a peer back, at once. On the unix socket only.",
        run=acting.pair,
        access="socket",
        answers={200: "How many were good until now.", 409: "No such node was paired."},
    ),
    Route(
        method="POST",
        path="/v1/token",
        about="A token: good once, for 30 s, for one WebSocket or one cookie session.",
        run=acting.token,
        answers={201: "The token."},
        body=_JSON,
        fields=(Param("channel", "A pattern that narrows it."),),
        always=True,
    ),
    Route(
        method="POST",
        path="/v1/session",
        about="Open a cookie session with a token or a key as bearer.",
        run=acting.open_session,
        access="token",
        answers={204: "The cookie is set: HttpOnly, SameSite=Strict, 12 h."},
        gives=(),
        always=True,
    ),
    Route(
        method="DELETE",
        path="/v1/session",
        about="Take the cookie away.",
        run=acting.close_session,
        access="open",
        answers={204: "The cookie is gone."},
        gives=(),
        always=True,
    ),
    Route(
        method="GET",
        path="/v1/openapi.json",
        about="This description.",
        run=acting.openapi,
        access="open",
        answers={200: "OpenAPI 3.1."},
        always=True,
    ),
    Route(
        method="GET",
        path="/v1/stream",
        about="The stream of the Python clients: WebSocket subprotocol linkd.client.1.",
        access="token",
        answers={101: "A WebSocket.", 400: "No WebSocket upgrade, or not this subprotocol."},
        query=(
            Param("token", "A token, where no header can be sent."),
            Param("ws_token", "The same."),
        ),
        gives=(),
        socket=True,
    ),
    Route(
        method="GET",
        path="/ws",
        about="A WebSocket for browsers and any client: a text frame is one message.",
        access="token",
        answers={101: "A WebSocket.", 400: "No WebSocket upgrade."},
        query=(
            Param("ws_token", "A token, where no header can be sent."),
            Param("token", "The same."),
            Param("channel", "What is published without a channel goes there; it is followed."),
            Param("from", "Follow the channel from this offset, `earliest` or `latest`."),
            Param("envelope", "1: everything arrives with channel, offset and origin.", "integer"),
            Param("status", "1: changes of links arrive too.", "integer"),
            Param("presence", "1: who joins and leaves arrives too.", "integer"),
        ),
        gives=(),
        socket=True,
    ),
    Route(
        method="GET",
        path="/healthz",
        about="The process makes progress.",
        run=acting.healthz,
        access="open",
        answers={200: "It does."},
        always=True,
    ),
    Route(
        method="GET",
        path="/readyz",
        about="All required links are up.",
        run=acting.readyz,
        access="open",
        answers={200: "They are.", 503: "Some are not, or the node starts or stops."},
        always=True,
    ),
    Route(
        method="GET",
        path="/metrics",
        about="Metrics for Prometheus.",
        run=acting.metrics,
        access="open",
        answers={200: "Text format 0.0.4."},
        gives=("text/plain",),
        always=True,
    ),
    Route(
        method="GET",
        path="/",
        about="The dashboard.",
        access="open",
        answers={200: "A page.", 304: "It has not changed."},
        gives=("text/html",),
        always=True,
    ),
    Route(
        method="GET",
        path="/linkd.js",
        about="The client for browsers and Node.js.",
        access="open",
        answers={200: "An ES module.", 304: "It has not changed."},
        gives=("text/javascript",),
        always=True,
    ),
    Route(
        method="GET",
        path="/dashboard/{file}",
        about="The dashboard's scripts and styles.",
        access="open",
        answers={200: "A file.", 304: "It has not changed.", 404: "There is no such file."},
        gives=("text/javascript", "text/css", "text/plain"),
        always=True,
    ),
)


class Match(msgspec.Struct, frozen=True):
    """A route, and the values in its path."""

    route: Route
    path: dict[str, str]


def _pattern(path: str) -> re.Pattern[bytes]:
    parts = re.split(r"(\{\w+\})", path)
    regex = "".join(
        f"(?P<{part[1:-1]}>[^/]+)" if part.startswith("{") else re.escape(part) for part in parts
    )
    return re.compile(regex.encode())


_PATTERNS: tuple[tuple[re.Pattern[bytes], dict[str, Route]], ...] = tuple(
    (_pattern(path), {route.method: route for route in ROUTES if route.path == path})
    for path in dict.fromkeys(route.path for route in ROUTES)
)


def find(method: str, path: bytes) -> Match:
    """Return the route of a request.

    Raises:
        Refusal: There is no such path, or it knows other methods.
    """
    for pattern, routes in _PATTERNS:
        found = pattern.fullmatch(path)
        if found is None:
            continue
        wanted = "GET" if method == "HEAD" and "GET" in routes and _heads(routes["GET"]) else method
        route = routes.get(wanted)
        if route is None:
            raise Refusal(
                "method-not-allowed",
                f"{method[:20]} is not for this path",
                {"Allow": ", ".join(allowed(routes))},
            )
        values: dict[str, Any] = found.groupdict()
        return Match(route, {name: unquoted(value) for name, value in values.items()})
    raise Refusal("not-found", "there is no such path; see /v1/openapi.json")


def _heads(route: Route) -> bool:
    """Tell whether HEAD makes sense: what is open has an end and changes nothing."""
    return route.access == "open"


def allowed(routes: dict[str, Route]) -> list[str]:
    """Return the methods of a path."""
    methods = list(routes)
    if "GET" in routes and _heads(routes["GET"]):
        methods.append("HEAD")
    return methods
