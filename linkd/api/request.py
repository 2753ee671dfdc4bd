"""One HTTP request of the API: judged by its head, read within bounds, answered once."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, Protocol

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web import http

from linkd import events
from linkd.api.account import SMALL_BYTES, Account, Part
from linkd.api.answer import Answer
from linkd.api.bodies import to_json
from linkd.api.refusals import Refusal
from linkd.net.rate_limit import FairShare

MAX_REQUEST_BYTES = 17_825_792
"""No request is larger: 16 MiB and its frame."""

_Request: Any = http.Request

_EVERY_ANSWER = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
)


_PHRASES = {421: b"Misdirected Request"}
"""What Twisted does not know."""


class Answering(Protocol):
    """Who judges and answers requests.

    Attributes:
        share: Gives all connections of the API their turns.
        account: Counts what is held for callers.
    """

    share: FairShare
    account: Account

    def admit(self, request: ApiRequest) -> None:
        """Judge a request by its head; raise Refusal before its body is read."""

    def serve(self, request: ApiRequest) -> Deferred[Answer | None]:
        """Answer a complete request; None: it sees to its answer itself."""


class Site(Protocol):
    """What all connections of one address share.

    Attributes:
        answering: Who answers.
        account: Counts what is held for callers.
    """

    answering: Answering
    account: Account

    def refused(self, request: ApiRequest, refusal: Refusal) -> None:
        """A request was refused."""


class Carrying(Protocol):
    """The connection under a request.

    Attributes:
        site: What it shares with others.
        refusal: Why no request of it is answered, if so.
    """

    site: Site
    refusal: Refusal | None

    def first_line(self) -> tuple[bytes, bytes, bytes]:
        """Return method, target and version of the request whose head has come."""

    def came(self, size: int) -> None:
        """So many bytes of the body have come."""

    def complete(self) -> None:
        """The request is complete."""

    def hold_answer(self, part: Part, size: int) -> None:
        """Give bytes of an answer back to their part once the other end has read them."""

    def close_soon(self, request: ApiRequest) -> None:
        """Close after this request's answer, even if its body goes on."""

    def hand_over(self) -> Callable[[], None] | None:
        """Let go of the connection; return how to tell that it has ended."""


class ApiRequest(_Request):  # type: ignore[misc]  # Twisted's HTTP has no types
    """One request.

    Attributes:
        local: It came over the unix socket.
        address: Where it came from, for the log.
        gone: The connection was lost, or the request was handed over.
        admitted: What `Answering.admit` noted.
    """

    channel: Carrying

    def __init__(self, channel: Carrying, *_: Any) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)
        self.local = isinstance(self.host, UNIXAddress)
        self.address = "socket" if self.local else str(getattr(self.client, "host", "?"))
        self.gone = False
        self.admitted: Any = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._refused = False
        self._part: Part | None = None
        self._held = 0
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
            channel.site.answering.admit(self)
            self._expect_body(length)
        except Refusal as refusal:
            self._refuse(refusal)
        except Exception:  # noqa: BLE001 - a bug of ours must not look like a lost connection
            self._refuse(bug("admit"))

    def _expect_body(self, length: int | None) -> None:
        """Raise Refusal where the route takes no body, or there is no room for one like that."""
        admitted = self.admitted
        if length != 0 and (
            admitted is None or admitted.match.route.access in ("open", "optional")
        ):
            raise Refusal("body-too-large", "this call takes no body")
        if length:
            self.hold(length)

    @property
    def part(self) -> Part:
        """The caller's part of the account."""
        if self._part is None:
            caller = getattr(self.admitted, "caller", None)
            name = "" if caller is None else caller.name
            self._part = self.channel.site.account.part(name)
        return self._part

    def hold(self, size: int) -> None:
        """Count bytes that are held until the request is answered; raise Refusal without room."""
        if not self.part.take(size):
            raise Refusal(
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
        except Refusal as refusal:
            self._refuse(refusal)
        else:
            self.channel.came(self._size)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer at once; what of the body still comes is read for a moment and thrown away."""
        self._refused = True
        self._drop_body()
        self.requestHeaders.removeHeader(b"expect")
        if self._length != 0 or refusal is self.channel.refusal:
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

    def headers_after(self, prefix: str) -> dict[str, str]:
        """Return the headers that begin with `prefix`, without it; raise Refusal as `header`."""
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
            self.part.give(held)
        self._chunks, self._size = [], 0

    # going out

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Write an answer's head."""
        self.setResponseCode(status, _PHRASES.get(status))
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
        body = result.body if result.status not in (204, 304) else b""
        if len(body) > SMALL_BYTES:
            self.part.add(len(body))
            self.write(body)
            self.channel.hold_answer(self.part, len(body))
        else:
            self.write(body)

    def hand_over(self) -> Any:
        """Give the connection away, to a WebSocket; return how to tell that it has ended."""
        self._drop_body()
        self.gone = True
        return self.channel.hand_over()


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
