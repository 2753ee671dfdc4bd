"""When the peer is told what is on disk here: each ack costs as much as a small batch."""

from __future__ import annotations

from collections.abc import Callable

from linkd.clock import Clock

ACK_SECONDS = 0.02
ACK_BYTES = 1 << 20
"""An ack follows another so late, or once so much is on disk.

At 50 peers of one hub acks 5 ms apart were a tenth of its time.
"""


class Acks:
    """Paces the acks of one link: the first after a pause goes in the same turn.

    Args:
        clock: The reactor.
        send: Acknowledges all that is on disk, where that is news.
    """

    __slots__ = ("_bytes", "_clock", "_due", "_send", "_sent_at")

    def __init__(self, clock: Clock, send: Callable[[], None]) -> None:
        self._clock = clock
        self._send = send
        self._due = False
        self._sent_at = -ACK_SECONDS
        self._bytes = 0

    def stored(self, size: int) -> None:
        """So many bytes of records more are on disk."""
        self._bytes += size
        if self._bytes >= ACK_BYTES:
            self._acknowledge()  # a call that is due stays, for what comes behind
        elif not self._due:
            self._due = True
            wait = self._sent_at + ACK_SECONDS - self._clock.seconds()
            self._clock.callLater(max(0.0, wait), self._flush)

    def _flush(self) -> None:
        """The call that was due."""
        self._due = False
        self._acknowledge()

    def _acknowledge(self) -> None:
        self._bytes = 0
        self._sent_at = self._clock.seconds()
        self._send()
