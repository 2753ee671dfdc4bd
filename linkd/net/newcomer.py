"""Connections that have sent nothing yet: they cost a place and a timer, and no WebSocket.

A dialer speaks first. So strangers who only connect can't make the listener build and tear down a
protocol for each of them, which takes eight times as long (measured: 386 and 45 µs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from linkd.net.admission import Place
from linkd.net.sockets import peer_of
from linkd.net.timers import Call, cancel

if TYPE_CHECKING:
    from linkd.net.accepted import AcceptedConnection
    from linkd.net.listener import Listener

_Protocol: Any = Protocol
_Factory: Final[Any] = Factory


class Newcomers(_Factory):  # type: ignore[misc]
    """Accepts connections for a listener.

    Args:
        listener: Which builds a connection's WebSocket once its first byte has come.
    """

    noisy = False

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def buildProtocol(self, addr: IAddress) -> Newcomer | None:
        """Take a newcomer, or close it at once where only peers have not said hello."""
        full = self._listener.admission.full()
        if full is not None:
            self._listener.turned_away(full)
            return None
        return Newcomer(self._listener, addr)


class Newcomer(_Protocol):  # type: ignore[misc]
    """One connection until its first byte."""

    def __init__(self, listener: Listener, addr: IAddress) -> None:
        self._listener = listener
        self._addr = addr
        self._place: Place | None = None
        self._since = 0.0
        self._call: Call | None = None

    def connectionMade(self) -> None:
        """Take a place, and give it its time."""
        listener = self._listener
        host, _ = peer_of(self.transport)
        self._since = listener.clock.seconds()
        self._place = listener.admission.enter(host, self._push_out)
        timeout = listener.config.limits.hello_timeout
        self._call = listener.clock.callLater(timeout, self._begin)

    def dataReceived(self, data: bytes) -> None:
        """Go on as a WebSocket's connection."""
        self._begin().dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:
        """Free the place; where TLS was the reason, the log has it."""
        tls = self._listener.tls
        explained = None if tls is None else tls.explain(self.transport, reason)
        if explained is not None and self._place is not None:
            self._made().never_began(self.transport, reason)
            return
        self._leave()

    def _begin(self) -> AcceptedConnection:
        """Hand the transport over to a connection, which is late if its time is up."""
        transport: Any = self.transport
        connection = self._made()
        if hasattr(transport, "wrappedProtocol"):
            transport.wrappedProtocol = connection
        else:
            transport.protocol = connection
        connection.makeConnection(transport)
        return connection

    def _made(self) -> AcceptedConnection:
        """Return the connection that takes this one's place."""
        cancel(self._call)
        place, self._place = self._place, None
        assert place is not None
        connection = self._listener.made(self._addr)
        connection.adopt(place, self._since)
        return connection

    def _push_out(self, detail: str) -> None:
        """End it: another newcomer has its place."""
        self._leave()
        self._listener.turned_away(detail)
        transport: Any = self.transport
        transport.abortConnection()

    def _leave(self) -> None:
        cancel(self._call)
        place, self._place = self._place, None
        if place is not None:
            self._listener.admission.leave(place)
