"""HTTP/1.1 under the API: its connections, their deadlines, and how many there may be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure
from twisted.web import http

from linkd import events
from linkd.api.access import wants_websocket
from linkd.api.auth import ANYONE, STRANGER
from linkd.api.errors import ApiError
from linkd.api.http import (
    BODY_BYTES,
    REFUSAL_SLOTS,
    SOCKET,
    ApiRequest,
    CallerBudget,
    ConnectionSlots,
    to_json_line,
)
from linkd.net.rate_limit import drop_buffers, origin, serve_last
from linkd.net.timers import cancel

if TYPE_CHECKING:
    from linkd.api.server import ApiServer

HEAD_SECONDS = 10.0
"""A request's head must be there so soon after its first byte."""

BODY_SECONDS = 30.0
"""And its body so soon after that, with another second for every 64 KiB that have come."""

IDLE_SECONDS = 75.0
REFUSED_SECONDS = 2.0
"""A refused request whose body still comes is cut after that, so that the answer can be read."""

_Channel: Any = http.HTTPChannel
_Factory: Any = http.HTTPFactory


class ApiChannel(_Channel):  # type: ignore[misc]
    """One connection.

    One request is worked on in a turn, in the share of all connections of the API. Nothing is read,
    and no other request begun, while an answer waits for the other end to read it: at most one is
    queued.
    """

    site: ApiSite
    caller = ""
    """Whose turns it takes: an address until a request of it has named a caller."""

    refusal: ApiError | None = None
    """The refusal of all its requests, or None."""

    def __init__(self) -> None:
        super().__init__()
        self._queues = self._lost = False
        self._unread: list[tuple[CallerBudget, int]] = []  # of answers that wait for the other end
        self._body_began = 0.0
        self._body_seen = 0
        self.requestFactory = ApiRequest
        self.released: Callable[[], None] | None = None
        self._deadline: Any = None
        self._deadline_left: float | None = None  # seconds; it stops during the wait
        self._waits_since = 0.0
        self._turned_away: Any = None

    def connectionMade(self) -> None:
        """Start the connection."""
        serve_last(self.transport)
        super().connectionMade()
        if self.refusal is not None:
            self._turned_away = self.callLater(REFUSED_SECONDS, self.forceAbortClient)

    def dataReceived(self, data: bytes) -> None:
        """Process received bytes; a request that has begun must be complete in time."""
        if self._deadline is None and not (self._handlingRequest or self._queues):
            self._start_deadline(HEAD_SECONDS)
        if not (self._handlingRequest or self._queues or self.site.share.left()):
            self._wait()
        super().dataReceived(data)

    def requestDone(self, request: ApiRequest) -> None:
        """Finish a request; the next one that has arrived waits for its turn."""
        self.paused = True  # of LineReceiver: received bytes stay in its buffer
        super().requestDone(request)
        caller = getattr(request.admitted, "caller", None)
        if caller not in (None, ANYONE, STRANGER):
            self.caller = caller.name
        if self._buffer and self.persistent:
            self._wait()
        else:
            self.paused = False
        if self._waitingForTransport and self.persistent:
            self._networkProducer.pauseProducing()

    def _wait(self) -> None:
        """Start no request and read nothing until this connection's turn.

        Its deadline stops: the other end is not the one that is late.
        """
        self.paused = self._queues = True
        self._networkProducer.pauseProducing()
        self._waits_since = self.site.reactor.seconds()
        if self._deadline is not None:
            self._deadline_left = self._deadline.getTime() - self._waits_since
            self.stop_deadline()
        if not self._waitingForTransport:
            self.site.share.queue(self._go_on, self.caller, is_request=True)

    def _go_on(self) -> None:
        """Continue in this connection's turn."""
        if self._lost or not self._queues:
            return
        if self._waitingForTransport:
            return  # `resumeProducing` queues again
        self.paused = self._queues = False
        self._body_began += self.site.reactor.seconds() - self._waits_since
        if self._deadline_left is not None:
            self._start_deadline(self._deadline_left)
            self._deadline_left = None
        self._networkProducer.resumeProducing()
        self.dataReceived(b"")

    def resumeProducing(self) -> None:
        """Continue: the other end has read the sent bytes."""
        super().resumeProducing()
        self._release_unread()
        if self._queues:
            self._networkProducer.pauseProducing()
            self.site.share.queue(self._go_on, self.caller, is_request=True)

    def allHeadersReceived(self) -> None:
        """Start the deadline of the body: the head is complete."""
        request = self.requests[-1]
        request.method, request.uri = self._command, self._path
        request.clientproto = self._version
        self._body_began = self.site.reactor.seconds()
        self._body_seen = 0
        self._start_deadline(BODY_SECONDS)
        super().allHeadersReceived()

    def came(self, size: int) -> None:
        """Extend the deadline: `size` bytes of the body are here, and more must follow in time."""
        if size - self._body_seen >= BODY_BYTES and self._deadline is not None:
            self._body_seen = size
            since = self.site.reactor.seconds() - self._body_began
            self._start_deadline(min(BODY_SECONDS, BODY_SECONDS + size / BODY_BYTES - since))

    def hold_answer(self, budget: CallerBudget, size: int) -> None:
        """Give bytes of an answer back to their budget once the other end has read them."""
        if self._waitingForTransport and not self._lost:
            self._unread.append((budget, size))
        else:
            budget.release(size)

    def _release_unread(self) -> None:
        unread, self._unread = self._unread, []
        for budget, size in unread:
            budget.release(size)

    def close_soon(self, request: ApiRequest) -> None:
        """Close after this request's answer, even if its body goes on."""
        self.persistent = False
        request.setHeader(b"Connection", b"close")
        self._start_deadline(REFUSED_SECONDS)

    def hand_over(self) -> Callable[[], None] | None:
        """Let go of the connection; return the callback for its end."""
        self.setTimeout(None)
        self.stop_deadline()
        cancel(self._turned_away)
        self.transport.unregisterProducer()
        self.site.channels.discard(self)
        released, self.released = self.released, None
        return released

    def connectionLost(self, reason: Failure) -> None:
        """Release everything that the connection held."""
        self.stop_deadline()
        cancel(self._turned_away)
        self._lost = True
        drop_buffers(self.transport)
        super().connectionLost(reason)
        self._buffer = b""
        self._dataBuffer.clear()
        if self._unread:
            self._release_unread()
        if self.released is not None:
            self.released()
            self.released = None

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a line of the head that is too long."""
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Answer 400: the input is not HTTP, or its head is too large."""
        body = to_json_line(
            ApiError("malformed", "expected HTTP/1.1 with a head within limits.header_bytes").body()
        )
        self.transport.writeSequence(
            (
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n",
                b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body),
                body,
            )
        )
        self.loseConnection()

    def _start_deadline(self, seconds: float) -> None:
        """Cut the connection after `seconds`, unless another deadline is set before."""
        cancel(self._deadline)
        # After a freeze the deadline may be past although its timer has not run yet.
        self._deadline = self.callLater(max(0.0, seconds), self._late)

    def stop_deadline(self) -> None:
        """Let the connection take its time."""
        cancel(self._deadline)
        self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        self.forceAbortClient()


class ApiSite(_Factory):  # type: ignore[misc]
    """Makes the connections of one address.

    Args:
        answering: The API server.
        reactor: The reactor.
        header_bytes: The largest head of a request.
        slots: The slots of all connections, those of other addresses included.

    """

    noisy = False

    def __init__(
        self,
        answering: ApiServer,
        reactor: Any,
        header_bytes: int,
        slots: ConnectionSlots,
    ) -> None:
        super().__init__(timeout=IDLE_SECONDS, reactor=reactor)
        self.answering = answering
        self.share = answering.share
        self.budget = answering.budget
        self.channels: set[ApiChannel] = set()
        self._header_bytes = header_bytes
        self._slots = slots

    def buildProtocol(self, addr: IAddress) -> Any:
        """Return a connection, or None where there are too many."""
        local = isinstance(addr, UNIXAddress)
        address = SOCKET if local else origin(str(getattr(addr, "host", "?")))
        refusal = None
        if not self._slots.acquire(address):
            if not self._slots.acquire_to_refuse(address):
                return None
            address = REFUSAL_SLOTS
            message = "too many connections from this address (limits.api_connections_per_address)"
            refusal = ApiError("too-many", message, {"Retry-After": "5"})
        channel = ApiChannel()
        channel.refusal = refusal
        channel.caller = address
        channel.site = self
        channel.factory = self
        channel.timeOut = self.timeOut
        channel.callLater = self.reactor.callLater
        channel.totalHeadersSize = self._header_bytes
        channel.MAX_LENGTH = self._header_bytes
        channel.maxHeaders = 100
        channel.abortTimeout = 3
        self.channels.add(channel)
        channel.released = partial(self._release, channel, address)
        return channel

    def _release(self, channel: ApiChannel, address: str) -> None:
        self.channels.discard(channel)
        self._slots.release(address)

    def refused(self, request: ApiRequest, refusal: ApiError) -> None:
        """Log what an operator should see: who is kept out, not who mistyped.

        Every refused WebSocket is logged, since a browser may hide the reason from its page.
        `api.busy` has been logged.
        """
        if refusal is request.channel.refusal:
            return
        if refusal.status in (401, 403, 421, 429) or (
            refusal.status < 500 and wants_websocket(request)
        ):
            caller: Any = getattr(request.admitted, "caller", None)
            is_nobody = caller is None or caller is STRANGER
            events.emit(
                "api.refused",
                reason=refusal.error,
                caller=origin(request.address) if is_nobody else caller.name,
                address=request.address,
                status=refusal.status,
                path=request.path.decode("ascii", "replace")[:200],
                detail=refusal.message[:200],
            )

    def startFactory(self) -> None:
        """Start neither Twisted's access log nor its clock."""

    def stopFactory(self) -> None:
        """Do nothing: nothing was started."""
