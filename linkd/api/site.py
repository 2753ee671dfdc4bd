"""HTTP/1.1 under the API: bounds, deadlines, requests judged before their body is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from io import BytesIO
from typing import Any, Protocol

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure
from twisted.web import http

from linkd import events
from linkd.api.bodies import to_json
from linkd.api.call import Answer
from linkd.api.refusals import Refusal
from linkd.net.limits import origin

MAX_REQUEST_BYTES = 17_825_792
"""No request is larger: 16 MiB and its frame."""

MAX_BODIES_BYTES = 268_435_456
"""Bytes of bodies that may be on their way in, over all connections."""

HEAD_SECONDS = 10.0
"""A request's head must be there so soon after its first byte."""

BODY_SECONDS = 30.0
"""And its body so soon after that, with another second for every 64 KiB."""

IDLE_SECONDS = 75.0
REFUSED_SECONDS = 2.0
"""A refused request whose body still comes is cut after that, so that the answer can be read."""

_Request: Any = http.Request
_Channel: Any = http.HTTPChannel
_Factory: Any = http.HTTPFactory

_EVERY_ANSWER = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
)


class Answering(Protocol):
    """Who judges and answers requests."""

    def admit(self, request: ApiRequest) -> None:
        """Judge a request by its head; raise Refusal before its body is read."""

    def serve(self, request: ApiRequest) -> Deferred[Answer | None]:
        """Answer a complete request; None: it sees to its answer itself."""


class ApiRequest(_Request):  # type: ignore[misc]  # Twisted's HTTP has no types
    """One request.

    Attributes:
        local: It came over the unix socket.
        address: Where it came from, for the log.
        gone: The connection was lost, or the request was handed over.
        admitted: What `Answering.admit` noted.
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
        self._running: Deferred[Any] | None = None

    # coming in

    def gotLength(self, length: int | None) -> None:
        """The head is there; `length` is None where the body comes in chunks."""
        channel = self.channel
        self.content = BytesIO()
        self.method, self.uri, self.clientproto = channel.first_line()
        self.path = self.uri.partition(b"?")[0]
        self._length = length
        try:
            if length is not None and length > MAX_REQUEST_BYTES:
                raise _too_large(length)
            if channel.site.bodies_bytes + (length or 0) > MAX_BODIES_BYTES:
                raise Refusal(
                    "unavailable", "too many bodies are on their way", {"Retry-After": "1"}
                )
            channel.site.answering.admit(self)
        except Refusal as refusal:
            self._refuse(refusal)
        except Exception:  # noqa: BLE001 - a bug of ours must not look like a lost connection
            self._refuse(bug("admit"))

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a piece of the body."""
        if self._refused:
            return
        self._size += len(data)
        self.channel.site.bodies_bytes += len(data)
        self._chunks.append(data)
        if self._size > MAX_REQUEST_BYTES:
            self._refuse(_too_large(self._size))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer at once; what of the body still comes is read for a moment and thrown away."""
        self._refused = True
        self._drop_body()
        self.requestHeaders.removeHeader(b"expect")
        if self._length != 0:
            self.channel.close_soon(self)
        self.channel.site.refused(self, refusal)
        self._write(refused(refusal))

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The request is complete."""
        self.channel.complete()
        if self._refused:
            self.finish()
            return
        try:
            running = self.channel.site.answering.serve(self)
        except Refusal as refusal:
            self.channel.site.refused(self, refusal)
            self.give(refused(refusal))
            return
        self._running = running
        running.addCallbacks(self._served, self._failed)

    def _served(self, result: Answer | None) -> None:
        self._running = None
        if result is not None:
            self.give(result)

    def _failed(self, failure: Failure) -> None:
        self._running = None
        if self.gone or failure.check(CancelledError):
            return
        if isinstance(failure.value, Refusal):
            refusal = failure.value
            self.channel.site.refused(self, refusal)
        else:
            refusal = bug(self.path.decode("ascii", "replace")[:80], failure)
        self.give(refused(refusal))

    def connectionLost(self, reason: Failure) -> None:
        """The caller went away: what runs for it is ended."""
        self._drop_body()
        self.gone = True
        super().connectionLost(reason)
        if self._running is not None:
            self._running.cancel()

    # what was asked

    def header(self, name: str) -> str | None:
        """Return a header as text; raise Refusal where it is no UTF-8 or comes several times."""
        values = self.requestHeaders.getRawHeaders(name.encode())
        if not values:
            return None
        try:
            text: str = values[0].decode()
        except UnicodeDecodeError:
            raise Refusal("malformed", f"expected UTF-8 in the header {name}") from None
        if len(values) > 1:
            raise Refusal("malformed", f"the header {name} stands there {len(values)} times")
        return text

    def body(self) -> bytes:
        """Return the body."""
        if len(self._chunks) != 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]

    def _drop_body(self) -> None:
        if not self.gone:
            self.channel.site.bodies_bytes -= self._size
        self._chunks, self._size = [], 0

    # going out

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Write an answer's head."""
        self.setResponseCode(status)
        for key, value in _EVERY_ANSWER:
            self.setHeader(key, value)
        for name, text in headers.items():
            self.setHeader(name.encode(), text.encode())

    def give(self, result: Answer) -> None:
        """Write a whole answer and be done."""
        if self.gone:
            return
        self._write(result)
        self.finish()

    def finish(self) -> None:
        """Nothing more is to be written."""
        self._drop_body()
        self.gone = True
        super().finish()

    def _write(self, result: Answer) -> None:
        self.begin(result.status, {"Cache-Control": "no-store", **result.headers})
        if result.status not in (204, 304):
            self.setHeader(b"Content-Type", result.type.encode())
            self.setHeader(b"Content-Length", b"%d" % len(result.body))
        self.write(result.body if result.status not in (204, 304) else b"")

    def hand_over(self) -> Any:
        """Give the connection away, to a WebSocket; return how to tell that it has ended."""
        self._drop_body()
        self.gone = True
        return self.channel.hand_over()


class ApiChannel(_Channel):  # type: ignore[misc]
    """One connection."""

    site: ApiSite

    def __init__(self) -> None:
        super().__init__()
        self.requestFactory = ApiRequest
        self.released: Callable[[], None] | None = None
        self._deadline: Any = None

    def first_line(self) -> tuple[bytes, bytes, bytes]:
        """Return method, target and version of the request whose head has come."""
        return self._command, self._path, self._version

    def dataReceived(self, data: bytes) -> None:
        """Bytes came; a request that has begun must be complete in time."""
        if self._deadline is None and not self._handlingRequest:
            self._due(HEAD_SECONDS)
        super().dataReceived(data)

    def allHeadersReceived(self) -> None:
        """The head is there."""
        self._due(BODY_SECONDS + (self.length or MAX_REQUEST_BYTES) / 65_536.0)
        super().allHeadersReceived()

    def complete(self) -> None:
        """The request is complete."""
        self._undue()

    def close_soon(self, request: ApiRequest) -> None:
        """Close after this request's answer, even if its body goes on."""
        self.persistent = False
        request.setHeader(b"Connection", b"close")
        self._due(REFUSED_SECONDS)

    def hand_over(self) -> Callable[[], None] | None:
        """Let go of the connection; return how to tell that it has ended."""
        self.setTimeout(None)
        self._undue()
        self.transport.unregisterProducer()
        self.site.channels.discard(self)
        released, self.released = self.released, None
        return released

    def connectionLost(self, reason: Failure) -> None:
        """The connection has ended."""
        self._undue()
        super().connectionLost(reason)
        if self.released is not None:
            self.released()
            self.released = None

    def lineLengthExceeded(self, line: bytes) -> None:
        """A line of the head is too long."""
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """What came is no HTTP, or its head is too large."""
        body = to_json(
            Refusal("malformed", "expected HTTP/1.1 with a head within limits.header_bytes").body()
        )
        self.transport.writeSequence(
            (
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n",
                b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body),
                body,
            )
        )
        self.loseConnection()

    def _due(self, seconds: float) -> None:
        """Cut the connection unless something else is said within `seconds`."""
        self._undue()
        self._deadline = self.callLater(seconds, self._late)

    def _undue(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        self.forceAbortClient()


class ApiSite(_Factory):  # type: ignore[misc]
    """Makes the connections of one address.

    Args:
        answering: Who answers.
        reactor: The reactor.
        header_bytes: The largest head of a request.
        connections: The most connections at once.
        per_address: The most of them from one address.
    """

    noisy = False

    def __init__(
        self,
        answering: Answering,
        reactor: Any,
        header_bytes: int,
        connections: int,
        per_address: int,
    ) -> None:
        super().__init__(timeout=IDLE_SECONDS, reactor=reactor)
        self.answering = answering
        self.bodies_bytes = 0
        self.channels: set[ApiChannel] = set()
        self._header_bytes = header_bytes
        self._limits = (connections, per_address)
        self._open: Counter[str] = Counter()

    def buildProtocol(self, addr: IAddress) -> Any:
        """Return a connection, or None where there are too many."""
        local = isinstance(addr, UNIXAddress)
        address = "socket" if local else origin(str(getattr(addr, "host", "?")))
        most, per_address = self._limits
        if self._open.total() >= most or (not local and self._open[address] >= per_address):
            events.emit(
                "api.busy",
                reason="connections" if local or self._open.total() >= most else "address",
                address=address,
                connections=self._open.total(),
            )
            return None
        channel = ApiChannel()
        channel.site = self
        channel.factory = self
        channel.timeOut = self.timeOut
        channel.callLater = self.reactor.callLater
        channel.totalHeadersSize = self._header_bytes
        channel.MAX_LENGTH = self._header_bytes
        channel.maxHeaders = 100
        channel.abortTimeout = 3
        self._open[address] += 1
        self.channels.add(channel)
        channel.released = lambda: self._release(channel, address)
        return channel

    def _release(self, channel: ApiChannel, address: str) -> None:
        self.channels.discard(channel)
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]

    def refused(self, request: ApiRequest, refusal: Refusal) -> None:
        """Log what an operator should see: who is kept out, not who mistyped."""
        if refusal.status in (401, 403, 421, 429):
            caller = getattr(request.admitted, "caller", None)
            events.emit(
                "api.refused",
                reason=refusal.error,
                caller=caller.name if caller else origin(request.address),
                address=request.address,
                status=refusal.status,
                path=request.path.decode("ascii", "replace")[:200],
            )

    def log(self, request: http.Request) -> None:
        """No line a request."""

    def startFactory(self) -> None:
        """Nothing of Twisted's access log is wanted, nor its clock."""

    def stopFactory(self) -> None:
        """Nothing was started."""


def refused(refusal: Refusal) -> Answer:
    """Return a refusal as an answer."""
    return Answer(refusal.status, to_json(refusal.body()), headers=refusal.headers)


def bug(where: str, failure: Failure | None = None) -> Refusal:
    """Log a mistake of ours; return what the caller is told."""
    failure = failure or Failure()
    events.emit("node.bug", where=f"api {where}", detail=failure.getTraceback()[-2000:])
    return Refusal("internal", "linkd made a mistake; its log has the details")


def _too_large(size: int) -> Refusal:
    return Refusal(
        "body-too-large", f"expected at most {MAX_REQUEST_BYTES} bytes, got {size} or more"
    )
