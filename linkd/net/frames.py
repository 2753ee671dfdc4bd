"""WebSocket frames as linkd sends them: whole and binary (RFC 6455 section 5.2)."""

from __future__ import annotations

import random
from typing import Final

from linkd.net.websocket import apply_mask

TEXT: Final = 0x81
MESSAGE: Final = 0x82
PING: Final = 0x89
PONG: Final = 0x8A
SMALL_BYTES: Final = 1536
"""A payload below so many bytes is copied behind its head: one piece to write, not two."""

_VIEW_BYTES: Final = 4096
"""From so many bytes on a payload is unmasked without being cut out first (measured)."""

_WHOLE: Final = (MESSAGE, PING, PONG)

Found = tuple[int, bytes, int]
"""A frame: its first byte, its payload, and where the next one begins."""


def take(data: bytes, position: int, masked: int, most: int) -> Found | int:
    """Return the frame at `position`.

    Args:
        data: What was received.
        position: Where the frame begins.
        masked: 0x80 where frames must be masked, else 0.
        most: The longest payload, in bytes, that is not left to Autobahn.

    Returns:
        The frame; or how many bytes more must come first, at least; 0 where the frame is
        Autobahn's to take or to refuse.
    """
    size = len(data)
    if size - position < 2:
        return position + 2 - size
    first, second = data[position], data[position + 1]
    if first not in _WHOLE or second & 0x80 != masked:
        return 0
    length, start = second & 0x7F, position + 2
    if length >= 126:
        wide = 2 if length == 126 else 8
        if first != MESSAGE:
            return 0
        if start + wide > size:
            return start + wide - size
        length = int.from_bytes(data[start : start + wide], "big")
        if length > most or length < (126 if wide == 2 else 65_536):
            return 0
        start += wide
    if masked:
        start += 4
    end = start + length
    if end > size:
        return end - size
    if not masked:
        return first, data[start:end], end
    payload = memoryview(data)[start:end] if length >= _VIEW_BYTES else data[start:end]
    return first, apply_mask(payload, data[start - 4 : start]), end


def put(first: int, payload: bytes, masked: int) -> tuple[bytes, bytes]:
    """Return a frame's head and its payload, masked where `masked` is 0x80, not where it is 0."""
    length = len(payload)
    if length < 126:
        head = bytes((first, masked | length))
    elif length < 65_536:
        head = bytes((first, masked | 126, length >> 8, length & 0xFF))
    else:
        head = bytes((first, masked | 127)) + length.to_bytes(8, "big")
    if not masked:
        return head, payload
    mask = random.getrandbits(32).to_bytes(4, "big")
    return head + mask, apply_mask(payload, mask)
