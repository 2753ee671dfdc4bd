"""Whole binary messages of an API's WebSocket, taken and written here; all else is Autobahn's."""

from __future__ import annotations

from typing import ClassVar

from linkd.net.websocket import (
    MESSAGE,
    SMALL_BYTES,
    STATE_OPEN,
    TEXT,
    ServerProtocol,
    WholeFrames,
    put,
)


class WholeMessages(WholeFrames, ServerProtocol):
    """A server's end of a WebSocket.

    Attributes:
        open: Messages may be sent and are told.
    """

    masked: ClassVar[int] = 0x80
    most_whole: int = 0
    """Set once the handshake is over: the longest message that is taken at all."""

    open: bool

    def whole(self, first: int, payload: bytes) -> bool:
        """Take a message that came in one frame."""
        if first != MESSAGE or not self.open:
            return False
        self.onMessage(payload, True)
        return True

    def send_message(self, payload: bytes, binary: bool) -> None:
        """Send one message; nothing once the other end has begun to close.

        Autobahn would refuse one that is larger than those that are taken here.
        """
        if self.state != STATE_OPEN:
            return
        head, _ = put(MESSAGE if binary else TEXT, payload, 0)
        if len(payload) < SMALL_BYTES:
            self.transport.write(head + payload)
        else:
            self.transport.writeSequence((head, payload))
