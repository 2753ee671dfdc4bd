"""Publishers who wait until a peer has their records on disk."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from twisted.internet.defer import CancelledError, Deferred

_TIDY_FROM = 64


class Waits:
    """Those who wait for one peer; who gives up is forgotten."""

    __slots__ = ("_given_up", "_heap", "_number")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Deferred[None]]] = []
        self._number = 0
        self._given_up = 0

    def until(self, next: int) -> Deferred[None]:
        """Fire once the peer has everything below `next`; cancelled if the peer is removed."""
        waiting: Deferred[None] = Deferred(self._gave_up)
        self._number += 1
        heappush(self._heap, (next, self._number, waiting))
        return waiting

    def _gave_up(self, waiting: Deferred[None]) -> None:
        """Forget those who have given up, once they are the greater part."""
        self._given_up += 1
        if self._given_up >= _TIDY_FROM and self._given_up * 2 > len(self._heap):
            self._heap = [row for row in self._heap if not row[2].called and row[2] is not waiting]
            heapify(self._heap)
            self._given_up = 0

    def acked(self, next: int) -> None:
        """The peer has everything below `next`."""
        while self._heap and self._heap[0][0] <= next:
            waiting = heappop(self._heap)[2]
            if not waiting.called:
                waiting.callback(None)

    def end(self) -> None:
        """The peer was removed: nobody waits any more."""
        rows, self._heap = self._heap, []
        for _, _, waiting in rows:
            if not waiting.called:
                waiting.errback(CancelledError())
