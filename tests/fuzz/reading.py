"""Numbers and choices out of an input's bytes; an input that has ended gives zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_Item = TypeVar("_Item")

_SPECIAL = (
    b"\xc0", b"\xc2", b"\xff", b"\x80", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\0" * 7,
    b"\xcb\x7f\xf8" + b"\0" * 6, b"\xcb\x7f\xf0" + b"\0" * 6, b"\xdb\xff\xff\xff\xff",
    b"\xc6\x7f\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x01\x00\x00", b"\x90", b"\xa1\xff",
    b"\x91" * 600, b"\xc7\x05\x01", b"\xd9\xff", b"\xc1",
)  # fmt: skip
"""Heads of msgpack values that are often out of bounds: nil, NaN, huge, deep, reserved."""


class Input:
    """An input that is read from its beginning.

    Args:
        content: Its bytes.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def __bool__(self) -> bool:
        """Tell whether anything is left."""
        return self._at < len(self._content)

    def byte(self) -> int:
        """Return the next byte."""
        at = self._at
        self._at = at + 1
        return self._content[at] if at < len(self._content) else 0

    def number(self, most: int) -> int:
        """Return a number from 0 to `most`, of one byte where that is enough."""
        value = self.byte()
        while most > 255:
            most >>= 8
            value = value << 8 | self.byte()
        return value % (most + 1) if most < 256 else value

    def signed(self) -> int:
        """Return a small number, mostly; sometimes one of the large ones that bounds speak of."""
        value = self.byte()
        if value >= 240:
            return (2**16, 2**31, 2**32, 2**62, 2**62 - 1, 2**62 + 1, 2**63, -1)[value & 7]
        return value - 8

    def choice(self, items: Sequence[_Item]) -> _Item:
        """Return one of `items`."""
        return items[self.byte() % len(items)]

    def piece(self) -> bytes:
        """Return the next up to 65,535 bytes, their length before them in one or three bytes."""
        size = self.byte()
        if size == 255:
            size = self.byte() << 8 | self.byte()
        at = self._at
        self._at = min(at + size, len(self._content))
        return self._content[at : at + size]

    def rest(self) -> bytes:
        """Return all that is left."""
        at, self._at = self._at, len(self._content)
        return self._content[at:]

    def near(self, templates: Sequence[bytes]) -> bytes:
        """Return one of `templates` with up to four changes: decoders in C show no way to go."""
        content = self.choice(templates)
        for _ in range(self.byte() % 5):
            at = self.number(len(content)) if len(content) < 65_536 else 0
            what = self.byte() % 4
            if what == 0:
                content = content[:at] + bytes((self.byte(),)) + content[at + 1 :]
            elif what == 1:
                content = content[:at] + self.piece() + content[at:]
            elif what == 2:
                content = content[:at] + content[at + 1 + self.byte() % 8 :]
            else:
                content = content[:at] + self.choice(_SPECIAL) + content[at + 1 :]
        return content
