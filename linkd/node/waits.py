"""Publishers who wait until a peer has their records on disk."""

from __future__ import annotations

from heapq import heappop, heappush

from twisted.internet.defer import Deferred


class Waits:
    """Those who wait for one peer."""

    __slots__ = ("_heap", "_number")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Deferred[None]]] = []
        self._number = 0

    def until(self, next: int) -> Deferred[None]:
        """Fire once the peer has everything below `next`."""
        waiting: Deferred[None] = Deferred()
        self._number += 1
        heappush(self._heap, (next, self._number, waiting))
        return waiting

    def acked(self, next: int) -> None:
        """The peer has everything below `next`."""
        heap = self._heap
        while heap and heap[0][0] <= next:
            waiting = heappop(heap)[2]
            if not waiting.called:
                waiting.callback(None)
