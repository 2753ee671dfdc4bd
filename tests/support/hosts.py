"""Hosts behind one name, each with a temper of its own, on a Clock: no socket, no waiting."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

from twisted.internet import error
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.base import BaseConnector
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from linkd.config import PeerSettings
from linkd.net.connect import Resolver
from linkd.net.dialer import DialerContext, LinkDialer
from linkd.net.listener import Listener
from tests.support.net_lab import Link, Nodes, secret_file, settings
from tests.support.pipe import Pipe

Temper = Literal["silent", "refusing", "mute", "bad-gateway", "foreign", "closing", "good", "proxy"]
"""How a host answers: not at all, with a reset, with TCP alone, with 502, with a 404 that is not
linkd's, by closing, as a linkd, as a proxy."""

STEP: Final = 0.005
ROUND_TRIP: Final = 0.002
URL: Final = "ws://hub.test:9443/link"


class _Answering(Protocol):
    """A host that is no linkd."""

    def __init__(self, temper: Temper) -> None:
        self._temper = temper

    def dataReceived(self, data: bytes) -> None:
        """Answer by its temper."""
        transport: Any = self.transport
        if self._temper == "closing":
            transport.abortConnection()
        elif self._temper != "mute":
            status = b"404 Not Found" if self._temper == "foreign" else b"502 Bad Gateway"
            transport.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")


class _Line(BaseConnector):
    """A TCP connector to one address; stopping it reports a failure at once, as Twisted's does."""

    def __init__(self, hosts: Hosts, address: str, factory: Any, timeout: float) -> None:
        super().__init__(factory, timeout, hosts)  # type: ignore[arg-type]
        self._hosts = hosts
        self._address = address
        self._pipe: Pipe | None = None

    def getDestination(self) -> Any:
        """Return the address."""
        return self._hosts.place(self._address)

    def _makeTransport(self) -> Any:
        temper = self._hosts.tempers[self._address]
        if temper == "refusing":
            self._hosts.callLater(
                ROUND_TRIP, self.failIfNotConnected, error.ConnectionRefusedError()
            )
        elif temper != "silent":
            self._hosts.callLater(ROUND_TRIP, self._connected, temper)
        return self

    def failIfNotConnected(self, why: Exception) -> None:
        """TCP did not come about, or was stopped."""
        if self.state != "connected":
            self.connectionFailed(Failure(why))

    def _connected(self, temper: Temper) -> None:
        if self.state != "connecting":
            return
        near = self.buildProtocol(self._hosts.place(self._address))
        if near is None:
            return
        self._pipe = Pipe(self._hosts, near, self._hosts.far_end(temper), self)
        self._hosts.pipes.append(self._pipe)

    def abortConnection(self) -> None:
        """End the connection, as a transport does."""
        if self._pipe is None:
            self._hosts.callLater(0, self.connectionLost, Failure(error.ConnectionAborted()))
        else:
            self._pipe.near.abortConnection()


class _Proxying(Protocol):
    """A proxy that gives one answer to all that a client sends; behind a good one is the hub."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def dataReceived(self, data: bytes) -> None:
        """Answer."""
        transport: Any = self.transport
        hosts = self._hosts
        hosts.asked.append(data)
        answer, opens = hosts.answers[min(len(hosts.asked), len(hosts.answers)) - 1]
        transport.write(answer)
        if opens:
            transport.protocol = hosts.far_end("good")
            transport.protocol.makeConnection(transport)


class Hosts(Clock):
    """A clock, the addresses of `hub.test` and a dialer of that name.

    Args:
        directory: For the secret.
        tempers: Of each address, in the order of the look-up.
        connect_timeout: Of the dialer.
        changes: Of the dialer's settings.

    Attributes:
        answers: Of a proxy, one after the other, and whether the tunnel is open behind it.
        asked: What a proxy got.
        looked_up: Names.
        tempers: By address; may change.
        dialed: Addresses in the order of their TCP attempts.
        link: The dialer's.
    """

    def __init__(
        self,
        directory: Path,
        tempers: Iterable[Temper],
        connect_timeout: float = 5.0,
        **changes: Any,
    ) -> None:
        super().__init__()
        self.advance(1000.25)
        self.tempers = {address(index): temper for index, temper in enumerate(tempers)}
        self.answers: list[tuple[bytes, bool]] = []
        self.asked: list[bytes] = []
        self.looked_up: list[str] = []
        self.dialed: list[str] = []
        self.pipes: list[Pipe] = []
        secret = secret_file(directory)
        at_hub = Link("hub", "edge", 5.0)
        nodes = Nodes("hub", {"edge": (PeerSettings(name="edge", secret_file=secret), at_hub)})
        self.listener = Listener(nodes, settings(), self)
        self.link = Link("edge", "hub")
        resolver = Resolver(self, self._look_up)
        peer = PeerSettings(**{"name": "hub", "dial": (URL,), "secret_file": secret, **changes})
        origin = DialerContext("edge", "boot", self, resolver)
        self.dialer = LinkDialer(self.link, peer, origin, connect_timeout)

    def _look_up(self, name: str) -> Deferred[list[str]]:
        self.looked_up.append(name)
        return succeed(list(self.tempers))

    def far_end(self, temper: Temper) -> Any:
        """Return the protocol of a host."""
        if temper == "good":
            return self.listener.buildProtocol(IPv4Address("TCP", "192.0.2.1", 40_000))
        return _Proxying(self) if temper == "proxy" else _Answering(temper)

    def place(self, address: str) -> Any:
        """Return an address as Twisted has it."""
        return (IPv6Address if ":" in address else IPv4Address)("TCP", address, 9443)

    def connectTCP(self, address: str, port: int, factory: Any, timeout: float) -> _Line:
        """Begin a TCP connection; the reactor's method of that name."""
        self.dialed.append(address)
        line = _Line(self, address, factory, timeout)
        line.connect()
        return line

    def run(self, seconds: float, until: str = "") -> float:
        """Let time pass until the link is told `until`; return the seconds that took."""
        began, already = self.seconds(), self.link.told.count(until)
        while self.seconds() - began < seconds:
            if until and self.link.told.count(until) > already:
                break
            self.advance(STEP)
            for pipe in list(self.pipes):
                pipe.flow()
        return self.seconds() - began


def address(index: int) -> str:
    """Return the address of a host by its number: IPv6 and IPv4 in turn."""
    return f"192.0.2.{10 + index}" if index % 2 else f"2001:db8::{10 + index:x}"
