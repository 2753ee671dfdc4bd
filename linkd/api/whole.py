"""Whole binary messages of an API's WebSocket, taken and written here; all else is Autobahn's."""

from __future__ import annotations

from typing import ClassVar

from linkd.net.frames import MESSAGE, SMALL_BYTES, put
from linkd.net.websocket import STATE_OPEN, ServerProtocol
from linkd.net.whole import WholeFrames


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
        if self.autoPingTimeoutCall:
            self._cancelAutoPingTimeoutCall()
        self.onMessage(payload, True)
        return True

    def send_binary(self, payload: bytes) -> None:
        """Send one binary message; nothing once the other end has begun to close."""
        if self.state != STATE_OPEN:
            return
        head, _ = put(MESSAGE, payload, 0)
        if len(payload) < SMALL_BYTES:
            self.transport.write(head + payload)
        else:
            self.transport.writeSequence((head, payload))
