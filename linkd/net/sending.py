"""What one end of a connection sends: whole frames, written at once, and whether there is room."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from linkd.core.liveness import Liveness
from linkd.net.frames import MESSAGE, SMALL_BYTES, put
from linkd.net.pace import Pace
from linkd.net.ports import LinkPort
from linkd.net.timers import Clock
from linkd.net.websocket import STATE_OPEN


class Sending(ABC):
    """The sending half of `linkd.net.connection.Connection`; also the transport's producer."""

    dialed: ClassVar[bool]
    transport: Any
    state: int
    life: Liveness
    clock: Clock
    pace: Pace | None

    writable = True
    port: LinkPort | None = None

    def send(self, payload: bytes) -> None:
        """Send one binary message."""
        if self.state == STATE_OPEN:
            self._frame(MESSAGE, payload)

    def sendFrame(self, opcode: int, payload: bytes = b"", **_: Any) -> None:
        """Send what Autobahn wants sent: pings, pongs, closes; all of them whole."""
        self._frame(0x80 | opcode, payload)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Send what Autobahn has to say in the opening handshake."""
        self.life.sent_at = self.clock.seconds()
        self.transport.write(data)

    def _frame(self, first: int, payload: bytes) -> None:
        head, body = put(first, payload, 0x80 if self.dialed else 0)
        self.life.sent_at = self.clock.seconds()
        if len(body) < SMALL_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.writeSequence((head, body))

    def pauseProducing(self) -> None:
        """The transport has enough."""
        if self.writable and self.pace is not None:  # each write says it again
            self.pace.paused(self.clock.seconds())
        self.writable = False

    def resumeProducing(self) -> None:
        """The transport has room again."""
        self.writable = True
        if self.pace is not None:
            self.pace.resumed(self.clock.seconds())
        if self.port is not None and self.state == STATE_OPEN:
            try:
                self.port.writable(self)  # type: ignore[arg-type]
            except Exception:  # noqa: BLE001 - as above
                self._bug("no more could be sent")

    def stopProducing(self) -> None:
        """The transport has gone."""
        self.writable = False

    @abstractmethod
    def _bug(self, what: str) -> None:
        """Say a bug, and end the connection."""
