"""Whole binary messages of an API's WebSocket, taken and written here; all else is Autobahn's.

Autobahn takes about 15 µs a message and copies it four times; a stream has many.
"""

from __future__ import annotations

from typing import Any, Final

from linkd.net.frames import MESSAGE, SMALL_BYTES, put, take
from linkd.net.websocket import STATE_CLOSING, STATE_OPEN, ServerProtocol

_MASKED: Final = 0x80
_OPEN: Final = STATE_OPEN
_LIVING: Final = (STATE_OPEN, STATE_CLOSING)


class WholeMessages(ServerProtocol):  # type: ignore[misc]  # Autobahn has no types
    """A server's end of a WebSocket.

    Attributes:
        open: Messages may be sent and are told.
    """

    data: bytes
    open: bool

    def consumeData(self) -> None:
        """Work on what has come."""
        while self.state in _LIVING:
            if self.current_frame is None and not self.inside_message and self._take():
                return
            if not self.processData():
                return
        if self.data:
            super().consumeData()

    def _take(self) -> bool:
        """Take whole messages off the front; tell whether nothing more can be done for now."""
        data, position = self.data, 0
        found: Any = False
        while self.open and self.state == _OPEN:
            found = take(data, position, _MASKED)
            if found is True or found is False or found[0] != MESSAGE:
                break
            position = found[2]
            if self.autoPingTimeoutCall:
                self._cancelAutoPingTimeoutCall()
            self.onMessage(found[1], True)
        if position:
            self.data = data[position:]
        return found is True or not self.data

    def send_binary(self, payload: bytes) -> None:
        """Send one binary message; nothing once the other end has begun to close."""
        if self.state != _OPEN:
            return
        head, _ = put(MESSAGE, payload, 0)
        if len(payload) < SMALL_BYTES:
            self.transport.write(head + payload)
        else:
            self.transport.writeSequence((head, payload))
