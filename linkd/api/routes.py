"""The table of routes: dispatch, documentation and OpenAPI are made from it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from linkd.api import operations, publish, read
from linkd.api.call import Call, unquoted
from linkd.api.errors import ERRORS, ApiError
from linkd.api.http import Response
from linkd.config.settings import CONSUMER_NAME_PATTERN, NAME_PATTERN
from linkd.protocol.channels import CHANNEL_PATTERN, CHANNELS_PATTERN
from linkd.protocol.records import HEADER_VALUE_PATTERN
from linkd.status import (
    Availability,
    Event,
    InstanceStatus,
    LinkHistory,
    NodeStatus,
    Outage,
)
from linkd.version import VERSION

if TYPE_CHECKING:
    from linkd.api.server import ApiServer

Run = Callable[["ApiServer", Call], Awaitable[Response | None]]
Access = Literal["open", "optional", "caller", "token", "socket"]
"""`open`: anyone. `optional`: anyone, but a caller with a key sees more. `caller`: a key, a cookie
session, or the socket. `token`: a token too. `socket`: the unix socket alone; elsewhere there is no
such path."""


class Param(msgspec.Struct, frozen=True):
    """A value in the path, the query, a header or a body, and what it must look like.

    Args:
        name: Its name.
        description: Its description.
        type: Its type in JSON Schema.
        pattern: A regular expression that it fits.
        minimum: The least number.
        maximum: The greatest number.
        choice: All that it may be, where that is little.
        required: It must be there.
        nullable: It may be null, as if it were not there.
        repeated: It may come several times.
    """

    name: str
    description: str
    type: str = "string"
    pattern: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    choice: tuple[str | int, ...] = ()
    required: bool = False
    nullable: bool = False
    repeated: bool = False


class Route(msgspec.Struct, frozen=True, dict=True):
    """One call.

    Args:
        call: Its method and path, such as `GET /v1/status`; `{name}` matches one segment.
        description: Its purpose, one sentence.
        responses: The meaning of each status, beside those of any call.
        run: Its handler; None for files and WebSockets.
        access: The callers that may use it.
        path_params: The parameters in the path's `{names}`.
        query: The query parameters; others are refused.
        any_query: Other query parameters are ignored.
        headers: The request headers that it uses.
        fields: Of the body where it is a JSON object.
        body: Other content types of the request's body.
        produces: Content types of the answer.
        available_while_starting: Also while the node starts or stops.
        socket: A WebSocket; programs add query parameters of their own to its URL.
    """

    call: str
    description: str
    responses: dict[int, str]
    run: Run | None = None
    access: Access = "caller"
    path_params: tuple[Param, ...] = ()
    query: tuple[Param, ...] = ()
    any_query: bool = False
    headers: tuple[Param, ...] = ()
    fields: tuple[Param, ...] = ()
    body: tuple[str, ...] = ()
    produces: tuple[str, ...] = ("application/json",)
    available_while_starting: bool = False
    socket: bool = False

    @property
    def method(self) -> str:
        """GET, POST or DELETE."""
        return self.call.partition(" ")[0]

    @property
    def path(self) -> str:
        """The path, with its `{names}`."""
        return self.call.partition(" ")[2]

    @cached_property
    def query_names(self) -> dict[str, bool]:
        """The query parameters, and whether each may be repeated."""
        return {param.name: param.repeated for param in self.query}


_CHANNEL = Param("channel", "A channel.", pattern=CHANNEL_PATTERN)
_CHANNELS = Param("channel", "A channel or pattern.", pattern=CHANNELS_PATTERN)
_NAMED = Param("name", "A consumer's name.", pattern=CONSUMER_NAME_PATTERN)
_PEER = Param("name", "A peer's name.", pattern=NAME_PATTERN)
_OFFSET = r"^(earliest|latest|[0-9]{1,18})$"
_FROM = Param("from", "The first offset wanted, `earliest` or `latest`.", pattern=_OFFSET)
_OWNER = Param(
    "owner",
    "Whose consumer it is; the caller's own where absent. Only an operator may name another.",
)
_CONSUMER = Param(
    "consumer",
    "A named consumer, in place of `from`; made where it is new.",
    pattern=CONSUMER_NAME_PATTERN,
)
_LAST_RECORD = Param(
    "Last-Event-ID",
    "Resume an event stream behind this id: OFFSET@EPOCH, or an offset of this log.",
    pattern=r"^[0-9]{0,18}(@[0-9A-Za-z_-]{0,64})?$",
)
_LAST_EVENT = Param(
    "Last-Event-ID", "Resume an event stream behind this event's number.", pattern=r"^[0-9]{0,18}$"
)
_CONFIRMED = Param("confirmed", "Do it; else only return what it would do.", "boolean")

_TIMEOUT = Param(
    "timeout",
    "Seconds beyond the interval of pings that the client may leave them unanswered.",
    "number",
    minimum=1.0,
    maximum=60.0,
)


def _file(path: str, description: str, kind: str, meaning: str) -> Route:
    """Return the route of a file that anyone may read, also while the node starts."""
    return Route(
        f"GET {path}",
        description,
        {200: meaning, 304: "It has not changed."},
        access="open",
        produces=(kind,),
        available_while_starting=True,
    )


ROUTES: tuple[Route, ...] = (
    Route(
        "POST /v1/channels/{channel}",
        "Publish the body as one message, or one a line (application/x-ndjson).",
        {
            200: "A message with that id was published before; nothing was stored.",
            201: "It is on disk (with `wait`: on that peer's disk).",
            409: "The peer does not get this channel.",
            504: "It is stored, but the peer did not have it in time.",
            507: "The log or its disk has no room.",
        },
        publish.publish,
        path_params=(_CHANNEL,),
        query=(
            Param("wait", "Answer once this peer has it on disk."),
            Param("timeout", "Seconds to wait at most, 30 by default.", "number", minimum=0),
        ),
        headers=(
            Param("Linkd-Type", "The application's word for what it is."),
            Param("Linkd-Id", "The same id again stores nothing; for one message only."),
            Param("Linkd-Ttl", "Seconds of life.", "number", minimum=0.001, maximum=1e9),
            Param(
                "Linkd-Header-NAME",
                "A header of the record, under any name; at most 16, each of at most 255"
                " characters.",
                pattern=HEADER_VALUE_PATTERN.replace(r"\Z", "$"),
            ),
        ),
        body=("application/json", "application/x-ndjson", "text/plain", "application/octet-stream"),
    ),
    Route(
        "GET /v1/channels/{channel}",
        "A page of a channel or pattern; with Accept: text/event-stream, follow it.",
        {200: "A page, or an event stream whose event ids are offsets."},
        read.read,
        path_params=(_CHANNELS,),
        query=(
            _FROM,
            _CONSUMER,
            Param(
                "limit", "Records at most, 100 by default.", "integer", minimum=1, maximum=10_000
            ),
            Param("wait", "Seconds to wait for a first record, up to 300.", "number", minimum=0),
        ),
        headers=(_LAST_RECORD,),
        produces=("application/json", "text/event-stream"),
    ),
    Route(
        "GET /v1/presence/{channel}",
        "Return the clients present on a channel of `/ws`, at all nodes.",
        {200: "The clients that are present."},
        read.present,
        path_params=(_CHANNEL,),
    ),
    Route(
        "GET /v1/consumers",
        "The named consumers: next offset, records yet to read, offsets to the log's end.",
        {200: "The consumers that the caller may see."},
        operations.consumers,
    ),
    Route(
        "POST /v1/consumers/{name}/ack",
        "Set a consumer's cursor: everything below `next` is done; it never moves back.",
        {
            200: "It is on disk.",
            404: "There is no such consumer.",
            410: "The node has another log than `log`: its offsets are of other records.",
        },
        read.acknowledge,
        path_params=(_NAMED,),
        query=(_OWNER,),
        fields=(
            Param(
                "next",
                "The next offset wanted.",
                "integer",
                minimum=0,
                maximum=2**62,
                required=True,
            ),
            Param("log", "The id of the log that is meant; absent: the node's, whichever it is."),
        ),
    ),
    Route(
        "DELETE /v1/consumers/{name}",
        "Forget a consumer and its cursor.",
        {204: "It is gone.", 404: "There is no such consumer."},
        operations.forget,
        path_params=(_NAMED,),
        query=(_OWNER,),
        produces=(),
    ),
    Route(
        "POST /v1/consumers/{name}/move",
        "Give a consumer another owner and name; for the socket and a key for everything.",
        {
            200: "It has the new name.",
            404: "There is no such consumer or key.",
            409: "The name is in use, or its owner may have no further consumer.",
        },
        operations.move,
        path_params=(_NAMED,),
        query=(_OWNER,),
        fields=(
            Param("owner", "The key that has it from now on, or `socket`.", required=True),
            Param("name", "Its new name.", pattern=CONSUMER_NAME_PATTERN, required=True),
        ),
    ),
    Route(
        "GET /v1/records/{offset}",
        "The exact bytes of one body.",
        {
            200: "The body, with the content type that it was published with.",
            404: "There is no such record.",
            410: "It is no longer in the log.",
        },
        read.record,
        path_params=(Param("offset", "Its offset.", "integer", minimum=0, maximum=2**62),),
        produces=("application/octet-stream",),
    ),
    Route(
        "GET /v1/status",
        "The state of node and links.",
        {200: "The status."},
        operations.status,
        available_while_starting=True,
    ),
    Route(
        "GET /v1/instances",
        "The instances that serve this node, where `[cluster]` is set.",
        {200: "The instances, by name; an empty list without `[cluster]`."},
        operations.instances,
        available_while_starting=True,
    ),
    Route(
        "GET /v1/events",
        "The changes of links, as a page or as an event stream.",
        {200: "The changes, oldest first."},
        operations.events,
        query=(
            Param("after", "Only those with a higher number.", "integer", minimum=0, maximum=2**62),
        ),
        headers=(_LAST_EVENT,),
        produces=("application/json", "text/event-stream"),
        available_while_starting=True,
    ),
    Route(
        "GET /v1/outages",
        "The recorded outages, oldest first, and each link's availability.",
        {200: "The outages and availabilities.", 404: "There is no such peer."},
        operations.outages,
        query=(
            Param("peer", "Only this peer's."),
            Param("since", "Only of the last so many seconds.", "number", minimum=0),
            Param("drills", "0: leave out what drills here made.", "integer", minimum=0, maximum=1),
        ),
        available_while_starting=True,
    ),
    Route(
        "GET /v1/peers/{name}/history",
        "The last hour of what the dashboard plots of one link, a value for each 5 s.",
        {200: "Its series.", 404: "There is no such peer."},
        operations.history,
        path_params=(_PEER,),
        available_while_starting=True,
    ),
    Route(
        "POST /v1/peers/{name}/kick",
        "Have a link try again at once, whatever its delay.",
        {200: "It tries.", 404: "There is no such peer."},
        operations.kick,
        path_params=(_PEER,),
    ),
    Route(
        "POST /v1/peers/{name}/resync",
        "Return what a resync would send again or lose; do it if confirmed.",
        {
            200: "The effect, and whether it was done.",
            404: "There is no such peer.",
            409: "Not now.",
        },
        operations.resync,
        path_params=(_PEER,),
        fields=(_CONFIRMED,),
    ),
    Route(
        "POST /v1/peers/{name}/forget",
        "Answer what a peer whose `[[peer]]` is missing is owed; forget it where confirmed.",
        {
            200: "The records owed to it: `records`, `bytes`; `done`.",
            404: "There is no such peer.",
            409: "It is configured.",
        },
        operations.forget_peer,
        path_params=(_PEER,),
        fields=(_CONFIRMED,),
    ),
    Route(
        "POST /v1/peers/{name}/drill",
        "Record a deliberate fault in the log and the events. On the unix socket only.",
        {204: "It is recorded.", 404: "There is no such peer."},
        operations.drill,
        path_params=(_PEER,),
        access="socket",
        fields=(
            Param("drill", "Its name.", pattern=operations.DRILL_PATTERN, required=True),
            Param("state", "Whether it begins.", choice=("started", "ended"), required=True),
            Param("seconds", "How long it is to last.", "number"),
            Param("verdict", "Its result.", choice=("pass", "fail"), nullable=True),
        ),
        produces=(),
    ),
    Route(
        "POST /v1/drain",
        "Take no new links, end those that are up, and report how far that is.",
        {200: "It drains."},
        operations.begin_drain,
        fields=(
            Param(
                "timeout",
                "Seconds to wait for acknowledgements before the links end, 10 by default.",
                "number",
                minimum=0,
                maximum=operations.MAX_DRAIN_SECONDS,
            ),
            Param(
                "retry_after",
                "Seconds after which peers should come back, 1 by default.",
                "number",
                minimum=0,
                maximum=operations.MAX_DRAIN_SECONDS,
            ),
        ),
    ),
    Route(
        "GET /v1/drain",
        "Return how far a drain is.",
        {200: "Whether the node drains, and which links are left."},
        operations.drain_status,
    ),
    Route(
        "DELETE /v1/drain",
        "Take links again.",
        {200: "It takes links, as if there had been no drain."},
        operations.undo_drain,
    ),
    Route(
        "POST /v1/log/trim",
        "Return the number of records below an offset; delete them if confirmed.",
        {200: "The records to delete, or that were deleted."},
        operations.trim,
        fields=(
            Param("before", "The offset.", "integer", minimum=0, maximum=2**62, required=True),
            _CONFIRMED,
        ),
    ),
    Route(
        "POST /v1/pairing/invite",
        "Make a code with which another node can join, once. On the unix socket only.",
        {201: "The code.", 409: "This node can't be paired with like that."},
        operations.pair,
        access="socket",
        fields=(
            Param("name", "The other node's name.", required=True),
            Param("address", "HOST or HOST:PORT at which it reaches this node.", nullable=True),
            Param("send", "Patterns of what it gets.", "array", nullable=True),
            Param("receive", "Patterns of what it may send.", "array", nullable=True),
            Param("relay", "It may pass on what began at other nodes.", "boolean"),
        ),
    ),
    Route(
        "GET /v1/pairing/peers",
        "Return the invited and paired peers. On the unix socket only.",
        {200: "The peers, by name."},
        operations.pair,
        access="socket",
        available_while_starting=True,
    ),
    Route(
        "POST /v1/pairing/peers/{name}/revoke",
        "Take every certificate of a peer back, at once. On the unix socket only.",
        {200: "How many were good until now.", 409: "No such node was paired."},
        operations.pair,
        path_params=(_PEER,),
        access="socket",
    ),
    Route(
        "POST /v1/token",
        "A token: good once, for 30 s, for one WebSocket or one cookie session.",
        {201: "The token."},
        operations.token,
        fields=(
            Param("channel", "A pattern that narrows it.", pattern=CHANNELS_PATTERN, nullable=True),
        ),
        available_while_starting=True,
    ),
    Route(
        "POST /v1/session",
        "Open a cookie session with a token or a key as bearer.",
        {204: "The cookie is set: HttpOnly, SameSite=Strict, 12 h."},
        operations.open_session,
        access="token",
        produces=(),
        available_while_starting=True,
    ),
    Route(
        "DELETE /v1/session",
        "End the cookie session; the cookie is good for nothing any more.",
        {204: "The session has ended."},
        operations.close_session,
        access="open",
        produces=(),
        available_while_starting=True,
    ),
    Route(
        "GET /v1/openapi.json",
        "This description.",
        {200: "OpenAPI 3.1."},
        operations.openapi,
        access="open",
        available_while_starting=True,
        any_query=True,
    ),
    Route(
        "GET /v1/stream",
        "The stream of the Python clients: WebSocket subprotocol linkd.client.1.",
        {101: "A WebSocket.", 400: "No WebSocket upgrade, or not this subprotocol."},
        access="token",
        query=(
            Param("token", "A token, where no header can be sent."),
            Param("ws_token", "The same."),
            _TIMEOUT,
        ),
        produces=(),
        socket=True,
    ),
    Route(
        "GET /ws",
        "A WebSocket for browsers and any client: a text frame is one message.",
        {101: "A WebSocket.", 400: "No WebSocket upgrade."},
        access="token",
        query=(
            Param("ws_token", "A token, where no header can be sent."),
            Param("token", "The same."),
            Param(
                "channel",
                "Followed; what is published without a channel goes to the first. Absent: the"
                " caller's default channel; empty: none.",
                pattern=rf"^$|{CHANNELS_PATTERN}",
                repeated=True,
            ),
            Param(
                "from",
                "Follow the channel from this offset, `earliest` or `latest`.",
                pattern=_OFFSET,
            ),
            Param(
                "envelope",
                "1: everything arrives with channel, offset and origin.",
                "integer",
                choice=(0, 1),
            ),
            Param("status", "1: changes of links arrive too.", "integer", choice=(0, 1)),
            Param(
                "presence",
                "1: also send joins and leaves, at any node; `text`: as a sentence.",
                choice=("0", "1", "text"),
            ),
            Param("name", "The client's name for the others; absent: its key's."),
            Param("uid", "The same."),
            Param(
                "consumer",
                "Follow the channels as this named consumer: what was not received comes again.",
                pattern=CONSUMER_NAME_PATTERN,
            ),
            Param(
                "resume",
                "The same for a client that comes back within 10 minutes: any id of its own.",
                pattern=r"^[A-Za-z0-9._-]{1,56}$",
            ),
            Param("private", "1: a private channel, named in `opened`.", "integer", choice=(0, 1)),
            Param("linkd", "1: linkd.js is at the other end.", "integer", choice=(0, 1)),
            _TIMEOUT,
        ),
        produces=(),
        socket=True,
    ),
    Route(
        "GET /healthz",
        "The process makes progress.",
        {200: "It does."},
        operations.healthz,
        access="open",
        available_while_starting=True,
        any_query=True,
    ),
    Route(
        "GET /readyz",
        "All required links are up.",
        {200: "They are.", 503: "Some are not, or the node starts, stops or drains."},
        operations.readyz,
        access="open",
        available_while_starting=True,
    ),
    Route(
        "GET /metrics",
        "Metrics for Prometheus; with a key also of the consumers that it may see.",
        {200: "Text format 0.0.4."},
        operations.metrics,
        access="optional",
        produces=("text/plain",),
        available_while_starting=True,
        any_query=True,
    ),
    _file("/", "The dashboard.", "text/html", "A page."),
    _file("/linkd.js", "The client for browsers and Node.js.", "text/javascript", "An ES module."),
    _file(
        "/linkd.mjs",
        "The same, under a name that Node.js takes for an ES module.",
        "text/javascript",
        "An ES module.",
    ),
    _file(
        "/linkd.d.mts",
        "Its types for TypeScript; for `linkd.js` they are at `/linkd.d.ts`.",
        "text/plain",
        "Declarations.",
    ),
    _file("/linkd.d.ts", "The types of `linkd.js` for TypeScript.", "text/plain", "Declarations."),
    Route(
        "GET /dashboard/{file}",
        "The dashboard's scripts and styles.",
        {200: "A file.", 304: "It has not changed.", 404: "There is no such file."},
        path_params=(Param("file", "Its name."),),
        access="open",
        produces=("text/javascript", "text/css", "text/plain"),
        available_while_starting=True,
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
        ApiError: There is no such path, or it knows other methods.
    """
    for pattern, routes in _PATTERNS:
        found = pattern.fullmatch(path)
        if found is None:
            continue
        wanted = "GET" if method == "HEAD" and "GET" in routes and _heads(routes["GET"]) else method
        route = routes.get(wanted)
        if route is None:
            raise ApiError(
                "method-not-allowed",
                f"{method[:20]} is not for this path",
                {"Allow": ", ".join(allowed(routes))},
            )
        values: dict[str, Any] = found.groupdict()
        for name, value in values.items():
            values[name] = unquoted(value)
        return Match(route, values)
    raise ApiError("not-found", "there is no such path; see /v1/openapi.json")


def _heads(route: Route) -> bool:
    """Return whether HEAD makes sense: the route is open, ends and changes nothing."""
    return route.access in ("open", "optional")


def allowed(routes: dict[str, Route]) -> list[str]:
    """Return the methods of a path."""
    methods = list(routes)
    if "GET" in routes and _heads(routes["GET"]):
        methods.append("HEAD")
    return methods


_JSON = ("application/json",)
_ANY_CALL = (400, 401, 403, 413, 421, 429, 500, 503)
"""Statuses that any call may be answered with."""


def describe() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    _, schemas = msgspec.json.schema_components(
        (NodeStatus, Event, Outage, Availability, LinkHistory, InstanceStatus),
        ref_template="#/components/schemas/{name}",
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "linkd",
            "version": VERSION,
            "description": "The local API of one linkd node.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                **schemas,
                "Error": {
                    "type": "object",
                    "required": ["error", "message"],
                    "properties": {
                        "error": {"type": "string", "enum": list(ERRORS)},
                        "message": {"type": "string"},
                    },
                },
            },
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "linkd_session"},
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.description,
        "operationId": route.method.lower() + re.sub(r"\W+", "_", route.path).rstrip("_"),
        "parameters": [
            *(_parameter(param, "path") for param in route.path_params),
            *(_parameter(param, "query") for param in route.query),
            *(_parameter(param, "header") for param in route.headers),
        ],
        "responses": _responses(route),
        "security": [{"key": []}, {"session": []}] if route.access in ("caller", "token") else [],
    }
    if route.fields or route.body:
        operation["requestBody"] = {
            "required": any(field.required for field in route.fields),
            "content": {kind: {"schema": _body(route, kind)} for kind in route.body or _JSON},
        }
    return operation


def _parameter(param: Param, place: str) -> dict[str, Any]:
    return {
        "name": param.name,
        "in": place,
        "description": param.description,
        "required": place == "path" or param.required,
        "schema": {"type": "array", "items": _schema(param)} if param.repeated else _schema(param),
    }


def _schema(param: Param) -> dict[str, Any]:
    """Return what a value must look like."""
    schema: dict[str, Any] = {"type": [param.type, "null"] if param.nullable else param.type}
    if param.type == "array":
        schema["items"] = {"type": "string", "pattern": CHANNELS_PATTERN}
    bounds = {
        "pattern": param.pattern,
        "minimum": param.minimum,
        "maximum": param.maximum,
        "enum": list(param.choice) or None,
    }
    return schema | {key: bound for key, bound in bounds.items() if bound is not None}


def _body(route: Route, kind: str) -> dict[str, Any]:
    """Return what a body must look like."""
    if not route.fields:
        return {} if kind == "application/json" else {"type": "string"}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [field.name for field in route.fields if field.required],
        "properties": {
            field.name: {**_schema(field), "description": field.description}
            for field in route.fields
        },
    }


def _responses(route: Route) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {}
    for status, meaning in route.responses.items():
        response: dict[str, Any] = {"description": meaning}
        if status >= 400 and route.path != "/readyz":
            response["content"] = error
        elif status in (200, 201, 503) and route.produces:
            response["content"] = {kind: _content(route.path, kind) for kind in route.produces}
        responses[str(status)] = response
    for status in _ANY_CALL:
        meanings = [meaning for number, meaning in ERRORS.values() if number == status]
        responses.setdefault(str(status), {"description": " ".join(meanings), "content": error})
    if route.path.count("{") or route.access == "socket":
        responses.setdefault("404", {"description": ERRORS["not-found"][1], "content": error})
    if route.fields or route.body:
        responses.setdefault(
            "415", {"description": ERRORS["unsupported-type"][1], "content": error}
        )
    return dict(sorted(responses.items()))


_STRUCTS = {"/v1/status": "NodeStatus", "/v1/peers/{name}/history": "LinkHistory"}
_LISTS = {
    "/v1/events": {"events": "Event"},
    "/v1/instances": {"instances": "InstanceStatus"},
    "/v1/outages": {"outages": "Outage", "availability": "Availability"},
}
"""Answers that are structs, by path; and those that are lists of structs: path, key, struct."""


def _content(path: str, kind: str) -> dict[str, Any]:
    """Return the schema of a JSON answer, if a struct defines it."""
    if kind != "application/json":
        return {}
    if path in _STRUCTS:
        return {"schema": {"$ref": f"#/components/schemas/{_STRUCTS[path]}"}}
    if path in _LISTS:
        of = {
            key: {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}}
            for key, name in _LISTS[path].items()
        }
        return {"schema": {"type": "object", "required": [*of], "properties": of}}
    return {}
