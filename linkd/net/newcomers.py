"""Connections before their first byte, and before the end of a balancer's PROXY header.

A dialer sends the first byte, and TLS and WebSocket are only built then: building and removing a
WebSocket protocol for each client that merely connects takes eight times as long (measured: 386 and
45 µs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Port
from twisted.python.failure import Failure

from linkd.errors import RemoteProtocolError
from linkd.net.admission import ACCEPT_SECONDS, ConnectionLimiter, PendingSlot
from linkd.net.linux import format_address, peer_of
from linkd.net.proxy_header import HEADER_SECONDS, begins_header, read_header
from linkd.net.timers import cancel

if TYPE_CHECKING:
    from linkd.net.listener import Listener

_Port: Any = Port
_Protocol: Any = Protocol
_Factory: Final[Any] = Factory


class Newcomers(_Factory):  # type: ignore[misc]
    """Accepts connections for a listener.

    Args:
        listener: Builds the WebSocket protocol of a connection at its first byte.

    Attributes:
        dropped: How many strangers were dropped when they were accepted.
    """

    noisy = False

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.dropped = 0

    def buildProtocol(self, addr: IAddress) -> Newcomer | None:
        """Accept a newcomer, or close it where strangers are shed.

        A balancer's connection is judged by the address in its header.
        """
        listener, host = self._listener, getattr(addr, "host", "")
        is_proxied = listener.is_balancer(host)
        if not is_proxied and listener.sheds(host):
            self.dropped += 1
            return None
        return Newcomer(listener, addr, is_proxied)


class PacedPort(_Port):  # type: ignore[misc]
    """A port that accepts in each iteration as many as the event loop can work on.

    The kernel queues the others: a crowd is not refused, and does not make the loop late.

    Args:
        admission: Decides how many.
        details: As of Twisted's port.
    """

    def __init__(self, admission: ConnectionLimiter, *details: Any) -> None:
        super().__init__(*details)
        self._admission = admission

    def doRead(self) -> None:
        """Accept some connections; look again a little later where no slot is free."""
        left, seconds = self._admission.accepts(), self.reactor.seconds
        if not left:
            self.stopReading()
            self.reactor.callLater(ACCEPT_SECONDS, self._go_on)
            return
        until = seconds() + ACCEPT_SECONDS
        while left and not self.disconnecting:
            self.numberAccepts, before = left, self.factory.dropped
            super().doRead()
            # More are accepted in place of strangers that were dropped: those cost next to nothing,
            # and peers would wait behind a flood of them in the kernel's queue.
            is_empty = self.numberAccepts <= left  # Twisted raises it where more may wait
            left = 0 if is_empty or seconds() >= until else self.factory.dropped - before

    def _go_on(self) -> None:
        if self.connected and not self.disconnecting:
            self.startReading()


class Newcomer(_Protocol):  # type: ignore[misc]
    """A connection before its first byte, or before the end of its PROXY header.

    It then leaves the transport to TLS and WebSocket: a header costs no later message anything.

    Attributes:
        host: The other end's address, or the one that its header names.
    """

    def __init__(self, listener: Listener, addr: IAddress, is_proxied: bool = False) -> None:
        self._listener = listener
        self._addr = addr
        self._is_proxied = is_proxied
        self._has_header = False
        self._head = b""
        self._slot: PendingSlot | None = None
        self._since = 0.0
        self._call: DelayedCall | None = None

    @property
    def address(self) -> str:
        """Address and port, for display."""
        return format_address(self.host, self._port_number)

    def connectionMade(self) -> None:
        """Take a slot, and start the hello time-out."""
        self.host, self._port_number = peer_of(self.transport)
        self._since = self._listener.clock.seconds()
        if self._is_proxied:
            # Each is an address of its own until its header has come: a crowd has one balancer.
            self._enter(self.address)
            why = f"no PROXY header came within {HEADER_SECONDS:g} s from a balancer"
            self._call = self._listener.clock.callLater(HEADER_SECONDS, self._refuse, why)
        else:
            self._enter(self.host)
            self._expect_first_byte()

    def dataReceived(self, data: bytes) -> None:
        """Continue as a WebSocket connection, in TLS where the listener has a certificate."""
        if self._is_proxied:
            data = self._after_header(data)
        if begins_header(data):
            self._refuse(
                "it sent a PROXY header behind the one of its balancer"
                if self._has_header
                else "it sent a PROXY header, and listen.proxy_protocol does not name its address"
            )
        elif data and self._listener.sheds(self.host, self._slot):
            self._abort()  # before TLS, which would cost most
        elif data:
            self._begin().dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:
        """Free the slot; log an incomplete header."""
        if self._head:
            self._count("it closed within its PROXY header")
        self._leave()

    def _after_header(self, data: bytes) -> bytes:
        """Return the bytes behind the header; none while it is incomplete or refused."""
        self._head += data
        try:
            header = read_header(self._head)
        except RemoteProtocolError as error:
            self._refuse(f"listen.proxy_protocol names its address, but {error}")
            return b""
        if header is None:
            return b""
        data, self._head = self._head[header.size :], b""
        self._is_proxied, self._has_header = False, True
        self._leave()
        if header.source is not None:
            self._adopt_address(*header.source)
            if self._listener.sheds(self.host):
                self._abort()
                return b""
        self._enter(self.host)
        self._expect_first_byte()
        return data

    def _adopt_address(self, host: str, port: int) -> None:
        """Let the transport report the address that the balancer has named."""
        self.host, self._port_number = host, port
        kind = IPv6Address if ":" in host else IPv4Address
        address = kind("TCP", host, port)
        transport: Any = self.transport
        transport.getPeer = lambda: address

    def _expect_first_byte(self) -> None:
        """Start what remains of the hello time-out."""
        clock, timeout = self._listener.clock, self._listener.config.limits.hello_timeout
        left = max(0.0, self._since + timeout - clock.seconds())
        self._call = clock.callLater(left, self._refuse, f"no hello came within {timeout:g} s")

    def _begin(self) -> Any:
        """Pass the transport to the WebSocket protocol or to TLS around it, and return that."""
        transport: Any = self.transport
        slot, self._slot = self._slot, None
        assert slot is not None
        cancel(self._call)
        connection, outer = self._listener.made(self._addr)
        connection.adopt(slot, self._since)
        transport.protocol = outer
        outer.makeConnection(transport)
        return outer

    def _push_out(self, detail: str) -> None:
        """Close the connection: another newcomer gets its slot."""
        self._listener.turned_away(detail)
        self._abort()

    def _refuse(self, detail: str) -> None:
        """Log why the connection is closed, and close it."""
        self._count(detail)
        self._abort()

    def _count(self, detail: str) -> None:
        balancer = self.host if self._is_proxied else None
        self._listener.refused(self, "protocol", detail, None, None, balancer)

    def _abort(self) -> None:
        self._head = b""
        self._leave()
        transport: Any = self.transport
        transport.abortConnection()

    def _enter(self, address: str) -> None:
        self._slot = self._listener.admission.enter(address, self._push_out)

    def _leave(self) -> None:
        cancel(self._call)
        slot, self._slot = self._slot, None
        if slot is not None:
            self._listener.admission.leave(slot)
