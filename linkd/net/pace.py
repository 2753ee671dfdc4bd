"""How much is read of a connection at once, and may wait to be sent: more while it is quick."""

from __future__ import annotations

from typing import Final

from twisted.internet.abstract import FileDescriptor

from linkd.net.sockets import NOTSENT_BYTES, keep_unsent_small

LEAST_BYTES: Final = 65_536
"""Twisted's own measure, at which every connection begins."""

MOST_BYTES: Final = 262_144
"""Four times as much costs a fifth less processor time a record of 64 KiB (measured)."""

QUICK_SECONDS: Final = 0.008
"""`LEAST_BYTES` that pass within this time are quick: so `MOST_BYTES` hold up a ping by 32 ms."""

QUICK_TIMES: Final = 4
"""So often in a row: the first find the kernel's own buffers empty, whatever the line."""

LARGE_BYTES: Final = 1024
"""Frames that are smaller cost by their number: a wide read of them would make a long turn."""

PAGE_BYTES: Final = 8192
"""As much may wait here, and again in the kernel, for a browser until its line proves quick: at
50 kB/s a small message then waits 0.5 s behind parts of a large one, not 4."""

_SEND_BYTES: Final = 1 << 20
"""What is handed to the kernel in one call; it takes what it has room for."""


class Pace:
    """Widens a transport's buffers while what goes through them passes quickly.

    On a slow line more that waits would only be more ahead of a ping or an ack. Twisted has one
    measure for both directions, so what is read whole widens nothing while sending is slow; nor
    does it once a full read was of small frames.

    Args:
        transport: Of a protocol. Nothing is done where it is no socket's own: TLS hands on what was
            read in pieces of its own, and how small its frames are shows too late.
        is_page: A browser may be at the other end. Then little waits from the start, in the kernel
            too and also below TLS, and only what is sent widens it.
    """

    __slots__ = ("_is_page", "_paused_at", "_quick", "_resumed_at", "_slow", "_small", "_stream")

    def __init__(self, transport: object, is_page: bool = False) -> None:
        if is_page:
            transport = getattr(transport, "transport", transport)
        self._stream = transport if isinstance(transport, FileDescriptor) else None
        self._is_page = is_page
        self._paused_at = self._resumed_at = 0.0
        self._quick = 0
        self._slow = self._small = False
        if self._stream is not None:
            self._stream.SEND_LIMIT = _SEND_BYTES
        if is_page:
            self._set(PAGE_BYTES)

    def filled(self, size: int, frames: int) -> None:
        """As much was read as fits, so many bytes: there is more; it ended so many frames."""
        if self._is_page:
            return
        if frames * LARGE_BYTES > size:
            self._small = True
            self._set(LEAST_BYTES)
        elif not (self._slow or self._small):
            self._set(MOST_BYTES)

    def paused(self, now: float) -> None:
        """What waits to be sent is as much as may; monotonic seconds."""
        if self._is_page and now - self._resumed_at > QUICK_SECONDS:
            self._quick = 0  # the kernel's own buffers have emptied meanwhile
        self._paused_at = now

    def resumed(self, now: float) -> None:
        """The kernel has taken all that waited."""
        stream, self._resumed_at = self._stream, now
        if stream is None:
            return
        if now - self._paused_at > QUICK_SECONDS * stream.bufferSize / LEAST_BYTES:
            self._slow, self._quick = True, 0
            self._set(PAGE_BYTES if self._is_page else LEAST_BYTES)
            return
        self._quick += 1
        if self._quick >= QUICK_TIMES:
            self._slow = False
            if not self._small:
                self._set(MOST_BYTES)

    def _set(self, size: int) -> None:
        if self._stream is not None and self._stream.bufferSize != size:
            self._stream.bufferSize = size
            if self._is_page:
                keep_unsent_small(self._stream, min(size, NOTSENT_BYTES))
