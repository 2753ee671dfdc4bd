"""Two transports joined in memory, on a Clock: one writes, the other hears when told to."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure


class Transport:
    """One end of a pipe.

    Attributes:
        written: What has not been taken over to the other end.
        writes: Moments of writing, in seconds on the clock.
        aborted: It was aborted.
        connector: Hears of the end too, where it is set.
    """

    def __init__(self, clock: Clock, host: str, port: int) -> None:
        self.clock = clock
        self.address = IPv4Address("TCP", host, port)
        self.protocol: Any = None
        self.connector: Any = None
        self.other: Transport | None = None
        self.producer: Any = None
        self.written = b""
        self.writes: list[float] = []
        self.aborted = False
        self.gone = False

    def write(self, data: bytes) -> None:
        """Keep bytes for the other end."""
        if not self.gone:
            self.written += data
            self.writes.append(self.clock.seconds())

    def writeSequence(self, parts: Any) -> None:
        """Keep several."""
        self.write(b"".join(parts))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Remember who writes."""
        self.producer = producer

    def unregisterProducer(self) -> None:
        """Forget who writes."""
        self.producer = None

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Do nothing."""

    def getPeer(self) -> IPv4Address:
        """Return the other end's address."""
        return self.address if self.other is None else self.other.address

    def getHost(self) -> IPv4Address:
        """Return this end's address."""
        return self.address

    def loseConnection(self) -> None:
        """Close; the other end is told when it takes what was written."""
        self.clock.callLater(0, self.end, ConnectionDone())

    def abortConnection(self) -> None:
        """Close at once."""
        if not self.aborted:
            self.aborted = True
            self.clock.callLater(0, self.end, ConnectionAborted())

    def end(self, why: Exception) -> None:
        """Tell the protocol that the connection has gone."""
        if not self.gone:
            self.gone = True
            self.protocol.connectionLost(Failure(why))
            if self.connector is not None:
                self.connector.connectionLost(Failure(why))


class Pipe:
    """Two protocols that hear each other while `cut` is False."""

    def __init__(
        self, clock: Clock, near: Any, far: Any, connector: Any = None, port: int = 40_000
    ) -> None:
        self.clock = clock
        self.near = Transport(clock, "192.0.2.1", port)
        self.near.connector = connector
        self.far = Transport(clock, "192.0.2.2", 9443)
        self.near.other, self.far.other = self.far, self.near
        self.cut = False
        for transport, protocol in ((self.far, far), (self.near, near)):
            transport.protocol = protocol
            protocol.makeConnection(transport)

    def flow(self) -> None:
        """Take over what was written, until both are quiet."""
        for _ in range(100):
            moved = False
            for end, other in ((self.near, self.far), (self.far, self.near)):
                taken, end.written = end.written, b""
                if taken and not self.cut and not other.gone:
                    moved = True
                    other.protocol.dataReceived(taken)
                if end.gone and not other.gone and not self.cut:
                    other.end(ConnectionLost())
            self.clock.advance(0)
            if not moved:
                return
        raise AssertionError("the pipe does not come to rest")

    def run(self, seconds: float, step: float = 0.001) -> None:
        """Let time pass, in small steps."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() + step / 2 < end:
            self.clock.advance(step)
            self.flow()
