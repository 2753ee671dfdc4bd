"""WebSocket frames as linkd takes them itself, ahead of Autobahn, whole and in pieces."""

from __future__ import annotations

from linkd.net import websocket
from linkd.protocol.peer import MAX_MESSAGE_BYTES as MOST


def one(content: bytes) -> None:
    """Take up to four frames; hold each against RFC 6455 section 5.2."""
    masked = 0x80 if content[:1] >= b"\x80" else 0
    data, position = content[1:], 0
    for _ in range(4):
        found = websocket.take(data, position, masked, MOST)
        if isinstance(found, int):
            assert 0 <= found <= MOST + 14
            break
        first, payload, end = found
        assert position + 2 <= end <= len(data)
        assert first == data[position]
        again = b"".join(websocket.put(first, payload, 0))
        assert websocket.take(again, 0, 0, MOST) == (first, payload, len(again))
        assert websocket.take(data[: end - 1], position, masked, MOST) == 1
        position = end
