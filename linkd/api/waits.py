"""The waits of one stream client: until a peer has on its disk what the client names."""

from __future__ import annotations

from functools import partial
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from linkd.api.errors import ApiError
from linkd.api.stream_publisher import check_wait
from linkd.net.timers import cancel
from linkd.protocol import client

if TYPE_CHECKING:
    from linkd.api.stream import StreamSession

MAX_WAITS = 10_000
WAIT_BYTES = 2048
"""About what one takes in memory (measured)."""

MAX_WAIT_SECONDS = 3600.0

_TIDY_FROM = 64


class PeerWaits:
    """The waits of one client, of which each is answered once; one timer serves them all.

    Args:
        session: The client's stream.
    """

    def __init__(self, session: StreamSession) -> None:
        self._session = session
        self._api = session.api
        self._budget = session.api.budget.for_caller(session.caller.name)
        self._waits: dict[int, tuple[float, client.WaitForPeer, Deferred[None]]] = {}
        self._ends: list[tuple[float, int]] = []  # of those, and of some that were answered
        self._timer: Any = None

    def begin(self, frame: client.WaitForPeer) -> None:
        """Answer once the peer has it, or after the time that the client gave."""
        refusal = self._refusal(frame)
        if refusal is not None:
            self._session.send(client.WaitResult(frame.id, refusal.error, refusal.message))
            return
        links, log = self._api.node.links, self._api.node.log
        waiting = links.wait_for(frame.peer, frame.next or log.next)
        if waiting.called:
            self._budget.release(WAIT_BYTES)
            self._session.send(client.WaitResult(frame.id))
            return
        end = self._api.reactor.seconds() + min(frame.timeout, MAX_WAIT_SECONDS)
        self._waits[frame.id] = (end, frame, waiting)
        waiting.addCallbacks(partial(self._answer, frame.id), partial(self._removed, frame))
        if len(self._ends) >= _TIDY_FROM and len(self._ends) >= 2 * len(self._waits):
            self._ends = [(end, number) for number, (end, *_) in self._waits.items()]
            heapify(self._ends)
        else:
            heappush(self._ends, (end, frame.id))
        self._plan()

    def _refusal(self, frame: client.WaitForPeer) -> ApiError | None:
        """Return why a wait may not begin; None: it may, and its memory counts."""
        if frame.id in self._waits or len(self._waits) >= MAX_WAITS:
            return ApiError("too-many", f"at most {MAX_WAITS}, each its own id")
        try:
            self._session.caller.check_publish(frame.channel)
            check_wait(self._api.node, frame.peer, frame.channel)
        except ApiError as refusal:
            return refusal
        if not self._budget.reserve(WAIT_BYTES):
            return ApiError("too-many", "too many waits of this caller")
        return None

    def _plan(self) -> None:
        """Set the timer for the first end."""
        first = self._ends[0][0]
        if self._timer is None:
            after = max(0.0, first - self._api.reactor.seconds())
            self._timer = self._api.reactor.callLater(after, self._on_time)
        elif first < self._timer.getTime():
            self._timer.reset(max(0.0, first - self._api.reactor.seconds()))

    def _on_time(self) -> None:
        self._timer = None
        self._api.share.queue(self._expire, self._session.caller.name)

    def _expire(self) -> None:
        """Answer those whose time is over, in slices."""
        clock, until = self._api.reactor, self._api.share.end()
        while self._ends and self._ends[0][0] <= clock.seconds():
            end, number = heappop(self._ends)
            known = self._waits.get(number)
            if known is not None and known[0] == end:
                frame = known[1]
                late = f"{frame.peer} did not have it within {frame.timeout:g} s; it stays owed"
                self._end(number, "timeout", late)
            if clock.seconds() >= until:
                self._api.share.queue(self._expire, self._session.caller.name)
                return
        if self._ends:
            self._plan()

    def _end(self, number: int, error: str, message: str) -> None:
        """Answer a wait that the peer has not met."""
        waiting = self._waits.pop(number)[2]
        self._budget.release(WAIT_BYTES)
        waiting.cancel()
        self._session.send(client.WaitResult(number, error, message))

    def _answer(self, number: int, _: None) -> None:
        """Answer a wait: the peer has it."""
        if self._waits.pop(number, None) is not None:
            self._budget.release(WAIT_BYTES)
            self._session.send(client.WaitResult(number))

    def _removed(self, frame: client.WaitForPeer, _: object) -> None:
        """Answer a wait for a peer that was removed, unless it was given up here."""
        known = self._waits.get(frame.id)
        if known is not None and known[1] is frame:
            message = f"{frame.peer} was removed from the configuration meanwhile"
            self._end(frame.id, "not-found", message)

    def close(self) -> None:
        """Give up all waits, in slices."""
        self._ends.clear()
        cancel(self._timer)
        self._give_up()

    def _give_up(self) -> None:
        clock, until = self._api.reactor, self._api.share.end()
        while self._waits:
            waiting = self._waits.popitem()[1][2]
            self._budget.release(WAIT_BYTES)
            waiting.cancel()
            if clock.seconds() >= until:
                self._api.share.queue(self._give_up, self._session.caller.name)
                break
