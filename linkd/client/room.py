"""Room for publishes under way: first come, first served, and only so many in one turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from linkd.client.flight import Flight
from linkd.client.loop import Loop
from linkd.core.batch import HELD_BYTES

TURN_BYTES: Final = 1024 * 1024
"""So much goes in one turn of the loop, which 10^5 publishes at once must not hold.

With HELD_BYTES for each publish.
"""


class _Waiter(msgspec.Struct):
    """A publish that waits for room."""

    size: int
    go_on: Callable[[None], None]
    is_admitted: bool = False
    is_gone: bool = False


class Room:
    """The queue for room: nobody passes while somebody waits, so publishes keep their order.

    Attributes:
        passed: Bytes that went in this turn.

    Args:
        loop: The event loop.
        flight: What is under way.
        max_bytes: So many bytes may be.
    """

    def __init__(self, loop: Loop, flight: Flight, max_bytes: int) -> None:
        self._loop = loop
        self._flight = flight
        self._max_bytes = max_bytes
        self._waiting: deque[_Waiter] = deque()
        self.passed = 0
        self._admitted = 0  # how many were admitted and have not gone on yet
        self._admitted_bytes = 0

    @property
    def is_free(self) -> bool:
        """Whether a publish may go now."""
        return (
            self.passed < TURN_BYTES
            and not self._waiting
            and not self._admitted
            and self._flight.bytes < self._max_bytes
        )

    async def wait(self, size: int) -> None:
        """Return when it is this publish's turn; it must then be queued at once.

        Args:
            size: About its bytes.
        """
        waiting, go_on = self._loop.promise()
        waiter = _Waiter(size + HELD_BYTES, go_on)
        self._waiting.append(waiter)
        try:
            await waiting
        except BaseException:
            waiter.is_gone = True
            self._leave(waiter)
            self.admit()
            raise
        self._leave(waiter)

    def admit(self, everyone: bool = False) -> None:
        """Let those go on for whom there is room, in order; or everyone, to see why not."""
        while self._waiting:
            if self._waiting[0].is_gone:
                self._waiting.popleft()
                continue
            under_way = self._flight.bytes + self._admitted_bytes
            if not everyone and (
                under_way >= self._max_bytes or self.passed + self._admitted_bytes >= TURN_BYTES
            ):
                return
            waiter = self._waiting.popleft()
            waiter.is_admitted = True
            self._admitted += 1
            self._admitted_bytes += waiter.size
            waiter.go_on(None)

    def turned(self) -> None:
        """Begin another turn, with more of those who wait."""
        self.passed = 0
        if self._waiting:
            self.admit()

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.is_admitted:
            waiter.is_admitted = False
            self._admitted -= 1
            self._admitted_bytes -= waiter.size
