"""One HTTP request of the API: head, bounded body, response; memory and connection limits.

Bodies and messages that have come in part, answers and messages that wait to be read, records read
ahead: what is large is counted here before it is held. A caller may hold as much as is still free:
one alone half of all, two a third each. So there is always room for one more, and nobody has to
know how many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web import http

from linkd import events
from linkd.api.errors import ApiError
from linkd.config import LimitSettings
from linkd.protocol.json import (
    JSON,
    MAX_JSON_DEPTH,
    body_of,
    check_syntax,
    extras_of,
    media_type,
    nested_deeply,
    rfc3339,
)
from linkd.protocol.records import Batch, read_records

if TYPE_CHECKING:
    from linkd.api.site import ApiChannel


NDJSON = "application/x-ndjson"
to_json = msgspec.json.Encoder().encode
"""Returns a value's JSON."""


def to_json_line(value: Any) -> bytes:
    """Return JSON and a newline, so that curl leaves the shell's prompt on a line of its own."""
    return to_json(value) + b"\n"


def check_json(body: bytes, where: str = "the body") -> None:
    """Raise ApiError unless `body` is one JSON value in UTF-8."""
    try:
        check_syntax(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("malformed", f"expected JSON in {where}: {error}") from None
    if nested_deeply(body):
        message = f"expected JSON nested at most {MAX_JSON_DEPTH} deep in {where}"
        raise ApiError("malformed", message)


def check_body(body: bytes, content_type: str) -> None:
    """Raise ApiError if a body does not match its content type."""
    kind = media_type(content_type)
    if kind == JSON:
        check_json(body)
    elif kind.startswith("text/"):
        charset = content_type.lower().partition("charset=")[2].strip(' "').partition(";")[0]
        if charset not in ("", "utf-8", "utf8", "us-ascii"):
            raise ApiError(
                "unsupported-type", f"expected text in UTF-8, got charset {charset[:40]}"
            )
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise ApiError("malformed", f"expected UTF-8 in the body: {error}") from None


def record_objects(batch: Batch) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, JSON object) of each record of a batch; volatile ones have offset 0."""
    time, origin, first = rfc3339(batch.time), batch.origin.node, batch.origin.first
    channel, offset = batch.channel, batch.offset
    for place, record in enumerate(read_records(batch.records, batch.count)):
        name, value = body_of(record)
        yield (
            offset + place if offset else 0,
            to_json(
                {
                    "offset": offset + place if offset else None,
                    "channel": channel,
                    "type": record.type or None,
                    "id": record.id or None,
                    "origin": origin,
                    "origin_offset": first + place if offset else None,
                    "time": time,
                    **extras_of(record),
                    name: value,
                }
            ),
        )


MAX_HELD_BYTES: Final = 256 * 1024 * 1024
"""Bytes held for all callers together; the memory for them is at most twice as much."""

BODY_BYTES: Final = 65_536
"""At least so much of a body comes in any `BODY_SECONDS`, or its rest."""

SMALL_BYTES: Final = 65_536
"""So little of a connection need not be counted: it is no more than its buffers."""


class MemoryBudget:
    """Counts the bytes held for all callers.

    Args:
        most: How many bytes may be.

    Attributes:
        held: How many bytes are.
    """

    def __init__(self, most: int = MAX_HELD_BYTES) -> None:
        self.most = most
        self.held = 0
        self._callers: dict[str, CallerBudget] = {}
        self._waiting: dict[Callable[[], None], None] = {}

    def for_caller(self, name: str) -> CallerBudget:
        """Return the budget of a caller, by its name: there are as many as keys."""
        budget = self._callers.get(name)
        if budget is None:
            budget = self._callers[name] = CallerBudget(self)
        return budget

    def when_freed(self, call: Callable[[], None]) -> None:
        """Have `call` made once, as soon as anything was given back."""
        self._waiting[call] = None

    def forget(self, call: Callable[[], None]) -> None:
        """Have `call` not made."""
        self._waiting.pop(call, None)

    def freed(self, size: int) -> None:
        """Count that some caller holds less, and call those who wait for it."""
        self.held -= size
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            call()


class CallerBudget:
    """Counts the bytes held for one caller.

    Attributes:
        held: How many bytes.
    """

    __slots__ = ("_total", "held")

    def __init__(self, total: MemoryBudget) -> None:
        self._total = total
        self.held = 0

    def reserve(self, size: int) -> bool:
        """Count bytes that are about to be held; return whether there is room, else none are."""
        has_room = self.has_room(size)
        if has_room:
            self.held += size
            self._total.held += size
        return has_room

    def has_room(self, size: int) -> bool:
        """Return whether so many bytes more may be held."""
        total = self._total
        return self.held + size <= total.most - total.held - size

    def add(self, size: int) -> None:
        """Count bytes that are held already, whether there is room or not."""
        self.held += size
        self._total.held += size

    def release(self, size: int) -> None:
        """Count bytes that are no longer held."""
        if size:
            self.held -= size
            self._total.freed(size)


SOCKET: Final = "socket"
"""The address of connections to the unix socket."""

MAX_REFUSAL_SLOTS: Final = 8
"""Connections beyond the bound of their address that are kept until their refusal is sent."""

REFUSAL_SLOTS: Final = "refused"
"""The address under which those connections count."""

_SOCKET_PART: Final = 8
"""One part in so many is kept for the socket: an operator gets in while a client of `http` leaks
connections."""

Full = Literal["connections", "address"]


class ConnectionSlots:
    """Limits the number of connections to the API.

    Args:
        limits: The bounds in force; may be replaced.

    Attributes:
        limits: The bounds in force.
        share: The API's share of this process's descriptors, or None: the settings alone count.
        refused: How many connections were refused, by reason.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self.limits = limits
        self.share: int | None = None
        self.refused: Counter[Full] = Counter()
        self._open: Counter[str] = Counter()
        self._total = 0

    def acquire(self, address: str) -> bool:
        """Count a new connection; return False, and log it, where there are too many.

        Args:
            address: Where it comes from; `SOCKET` for the unix socket.
        """
        full = self._full(address)
        if full is None:
            self._total += 1
            self._open[address] += 1
            return True
        self.refused[full] += 1
        events.emit("api.busy", reason=full, address=address, connections=self._total)
        return False

    def acquire_to_refuse(self, address: str) -> bool:
        """Count a connection that stays only until its refusal is sent, as `REFUSAL_SLOTS`.

        Return False where too many of those are open, or `address` is below its own bound: then
        there are too many connections in all.
        """
        if self._full(address) != "address" or self._open[REFUSAL_SLOTS] >= MAX_REFUSAL_SLOTS:
            return False
        self._total += 1
        self._open[REFUSAL_SLOTS] += 1
        return True

    def release(self, address: str) -> None:
        """Count a connection less."""
        self._total -= 1
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]

    @property
    def most(self) -> int:
        """How many connections there may be in all."""
        most = self.limits.api_connections
        return most if self.share is None else min(most, self.share)

    def _full(self, address: str) -> Full | None:
        """Return which bound one more connection from `address` would break, or None."""
        most = self.most
        if address == SOCKET:
            return "connections" if self._total >= most else None
        if self._total >= most - max(1, most // _SOCKET_PART):
            return "connections"
        here = self._open[address]
        return "address" if here >= self.limits.api_connections_per_address else None


class Response(msgspec.Struct, frozen=True):
    """The response to a call.

    Args:
        status: HTTP status.
        body: Its bytes.
        type: Its content type.
        headers: Further headers.
    """

    status: int = 200
    body: bytes = b""
    type: str = "application/json"
    headers: Mapping[str, str] = {}


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer in JSON."""
    return Response(status, to_json_line(value), headers=headers or {})


MAX_REQUEST_BYTES = 17_825_792
"""No request is larger: 16 MiB and its frame."""

_Request: Any = http.Request

_EVERY_ANSWER = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
)


_PHRASES = {421: b"Misdirected Request"}
"""Reason phrases that Twisted does not know."""


class ApiRequest(_Request):  # type: ignore[misc]  # Twisted's HTTP has no types
    """One request.

    Attributes:
        local: It came over the unix socket.
        address: Where it came from, for the log.
        gone: The connection was lost, or the request was handed over.
        admitted: What `ApiServer.admit` noted.
    """

    channel: ApiChannel

    def __init__(self, channel: ApiChannel, *_: Any) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)
        self.local = isinstance(self.host, UNIXAddress)
        self.address = "socket" if self.local else str(getattr(self.client, "host", "?"))
        self.gone = False
        self.admitted: Any = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._refused = False
        self._budget: CallerBudget | None = None
        self._held = 0
        self._running: Deferred[Any] | None = None

    # coming in

    def gotLength(self, length: int | None) -> None:
        """Judge the head; `length` is None if the body is chunked."""
        channel = self.channel
        self.content = BytesIO()
        self.path = self.uri.partition(b"?")[0]
        self._length = length
        try:
            if length is not None and length > MAX_REQUEST_BYTES:
                raise _too_large(length)
            channel.site.answering.admit(self)
            admitted = self.admitted
            if length != 0 and (
                admitted is None or admitted.match.route.access in ("open", "optional")
            ):
                raise ApiError("body-too-large", "this call takes no body")
            if length:
                self.hold(length)
        except ApiError as refusal:
            self._refuse(refusal)
        except Exception:  # noqa: BLE001 - a bug of ours must not look like a lost connection
            self._refuse(internal_error("admit"))

    @property
    def budget(self) -> CallerBudget:
        """The memory budget of the caller."""
        if self._budget is None:
            caller = getattr(self.admitted, "caller", None)
            name = "" if caller is None else caller.name
            self._budget = self.channel.site.budget.for_caller(name)
        return self._budget

    def hold(self, size: int) -> None:
        """Count bytes that are held until the request is answered; raise ApiError without room."""
        if not self.budget.reserve(size):
            raise ApiError(
                "unavailable",
                "too many bytes of this caller are on their way",
                {"Retry-After": "1"},
            )
        self._held += size

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a piece of the body."""
        if self._refused:
            return
        self._size += len(data)
        self._chunks.append(data)
        try:
            if self._size > MAX_REQUEST_BYTES:
                raise _too_large(self._size)
            if self._length is None:
                self.hold(len(data))
        except ApiError as refusal:
            self._refuse(refusal)
        else:
            if self._size >= BODY_BYTES:
                self.channel.came(self._size)

    def _refuse(self, refusal: ApiError) -> None:
        """Answer at once; the rest of the body is read for a moment and discarded."""
        self._refused = True
        self._drop_body()
        self.requestHeaders.removeHeader(b"expect")
        if self._length != 0 or refusal is self.channel.refusal:
            self.channel.close_soon(self)
        self.channel.site.refused(self, refusal)
        self._write(refused(refusal))

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Serve the complete request."""
        self.channel.stop_deadline()
        if self._refused:
            self.finish()
            return
        try:
            running = self.channel.site.answering.serve(self)
        except ApiError as refusal:
            self.channel.site.refused(self, refusal)
            self.respond(refused(refusal))
            return
        self._running = running
        running.addCallbacks(self._served, self._failed)

    def _served(self, result: Response | None) -> None:
        self._running = None
        if result is not None:
            self.respond(result)

    def _failed(self, failure: Failure) -> None:
        self._running = None
        if self.gone or failure.check(CancelledError):
            return
        if isinstance(failure.value, ApiError):
            refusal = failure.value
            self.channel.site.refused(self, refusal)
        else:
            refusal = internal_error(self.path.decode("ascii", "replace")[:80], failure)
        self.respond(refused(refusal))

    def connectionLost(self, reason: Failure) -> None:
        """Cancel the work of a caller that has disconnected."""
        self._drop_body()
        self.gone = True
        super().connectionLost(reason)
        if self._running is not None:
            self._running.cancel()

    # what was asked

    def header(self, name: str) -> str | None:
        """Return a header as text; raise ApiError where it is no UTF-8 or comes several times."""
        values = self.requestHeaders.getRawHeaders(name.encode())
        if not values:
            return None
        try:
            text: str = values[0].decode()
        except UnicodeDecodeError:
            raise ApiError("malformed", f"expected UTF-8 in the header {name}") from None
        if len(values) > 1:
            raise ApiError("malformed", f"the header {name} occurs {len(values)} times")
        return text

    def headers_after(self, prefix: str) -> dict[str, str]:
        """Return the headers that begin with `prefix`, without it; raise ApiError as `header`."""
        found: dict[str, str] = {}
        for raw, _ in self.requestHeaders.getAllRawHeaders():
            name = raw.decode("latin-1")
            if name.lower().startswith(prefix.lower()):
                found[name[len(prefix) :]] = self.header(name) or ""
        return found

    def body(self) -> bytes:
        """Return the body."""
        if len(self._chunks) != 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]

    def _drop_body(self) -> None:
        if self._held:
            held, self._held = self._held, 0
            self.budget.release(held)
        self._chunks, self._size = [], 0

    # going out

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Write an answer's head."""
        self.setResponseCode(status, _PHRASES.get(status))
        for key, value in _EVERY_ANSWER:
            self.setHeader(key, value)
        for name, text in headers.items():
            self.setHeader(name.encode(), text.encode())

    def respond(self, result: Response) -> None:
        """Write a whole answer and be done."""
        if self.gone:
            return
        self._write(result)
        self.finish()

    def finish(self) -> None:
        """End the answer."""
        self._drop_body()
        self.gone = True
        super().finish()

    def _write(self, result: Response) -> None:
        self.begin(result.status, {"Cache-Control": "no-store", **result.headers})
        if result.status not in (204, 304):
            self.setHeader(b"Content-Type", result.type.encode())
            self.setHeader(b"Content-Length", b"%d" % len(result.body))
        body = result.body if result.status not in (204, 304) else b""
        if len(body) > SMALL_BYTES:
            self.budget.add(len(body))
            self.write(body)
            self.channel.hold_answer(self.budget, len(body))
        else:
            self.write(body)

    def hand_over(self) -> Any:
        """Give the connection away, to a WebSocket; return the callback for its end."""
        self._drop_body()
        self.gone = True
        return self.channel.hand_over()


def refused(refusal: ApiError) -> Response:
    """Return a refusal as an answer."""
    return Response(refusal.status, to_json_line(refusal.body()), headers=refusal.headers)


def internal_error(where: str, failure: Failure | None = None) -> ApiError:
    """Log a bug; return the error for the caller."""
    failure = failure or Failure()
    events.emit("node.internal-error", where=f"api {where}", detail=failure.getTraceback()[-2000:])
    return ApiError("internal", "linkd made a mistake; its log has the details")


def _too_large(size: int) -> ApiError:
    return ApiError(
        "body-too-large", f"expected at most {MAX_REQUEST_BYTES} bytes, got {size} or more"
    )
