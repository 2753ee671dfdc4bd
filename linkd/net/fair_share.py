"""One share of each iteration of the event loop for all connections of the API together.

A connection works in slices; where the share of an iteration is used up, or others wait, it queues.
So the links, whose work is not counted here, are served at least every 20 ms, however many clients
there are and whatever they send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred

from linkd import events
from linkd.net.timers import Clock

SHARE_SECONDS: Final = 0.020
"""For so long all connections of the API are worked on in an iteration of the event loop."""

SLICE_SECONDS: Final = 0.005
"""For so long one of them is, before the next has its turn."""


def serve_last(transport: object) -> None:
    """Have a client's socket read behind the links that are ready in the same iteration.

    See `linkd.reactor`.
    """
    socket: Any = getattr(transport, "transport", transport)  # below TLS
    with suppress(AttributeError):
        socket.serves_last = True


def drop_buffers(transport: object) -> None:
    """Free the unsent bytes of a lost connection.

    Its objects refer to each other, so the garbage collector would find them only much later.
    """
    socket: Any = getattr(transport, "transport", transport)  # below TLS
    if isinstance(socket, FileDescriptor):
        socket.dataBuffer, socket._tempDataBuffer, socket._tempDataLen = b"", [], 0


class FairShare:
    """Gives the connections of the API their turns.

    Args:
        clock: The reactor. Where it has no `at_turn_end`, iterations are not told apart, and only
            what queues is bounded.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at_turn_end: Callable[[Callable[[], None]], object] | None = getattr(
            clock, "at_turn_end", None
        )
        self._queue: deque[Callable[[], None]] = deque()
        self._until: float | None = None  # when this iteration's share ends; None: it is whole
        self._is_running = self._is_planned = False

    def seconds(self) -> float:
        """Return the reactor's clock."""
        return self._clock.seconds()

    def left(self) -> float:
        """Return for how many seconds the caller may work now; 0 where it must queue."""
        if self._queue and not self._is_running:
            return 0.0
        now = self._clock.seconds()
        if self._until is None:
            if self._at_turn_end is None and not self._is_running:
                return SLICE_SECONDS
            self._begin(now)
        return max(0.0, min(SLICE_SECONDS, (self._until or now) - now))

    def end(self) -> float:
        """Return when the caller's slice ends, on the reactor's clock."""
        return self._clock.seconds() + self.left()

    def queue(self, job: Callable[[], None]) -> None:
        """Have a job called in its turn: once, behind those that queue already."""
        self._queue.append(job)
        self._plan()

    def turn(self) -> Deferred[None]:
        """Return what fires when it is the caller's turn; cancel it to give that up."""
        turn: Deferred[None] = Deferred()
        self.queue(lambda: None if turn.called else turn.callback(None))
        return turn

    def _begin(self, now: float) -> None:
        self._until = now + SHARE_SECONDS
        if self._at_turn_end is not None:
            self._at_turn_end(self._over)

    def _over(self) -> None:
        """The iteration has ended."""
        self._until = None

    def _plan(self) -> None:
        if not (self._is_planned or self._is_running):
            self._is_planned = True
            self._clock.callLater(0, self._run)

    def _run(self) -> None:
        """Do what queues, one job at least, until the share is used up."""
        self._is_planned, self._is_running = False, True
        queue = self._queue
        if self._until is None:
            self._begin(self._clock.seconds())
        try:
            while queue:
                job = queue.popleft()
                try:
                    job()
                except Exception as error:  # noqa: BLE001 - the others have their turn
                    detail = f"{type(error).__name__}: {error}"
                    events.emit("node.bug", where="a turn of the api", detail=detail)
                if self._clock.seconds() >= (self._until or 0.0):
                    break
        finally:
            self._is_running = False
            if self._at_turn_end is None:
                self._over()
            if queue:
                self._plan()
