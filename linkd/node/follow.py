"""Followers of the log: every subscription of an application is one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from linkd.api.port import Sink
from linkd.core.batch import HELD_BYTES, Batch
from linkd.core.channels import Patterns
from linkd.errors import Gap, LinkdError
from linkd.log.engine import Log, Owned

_READ_BYTES = 512 * 1024


class Follower:
    """A reader that follows the log's end; `linkd.api.port.Subscription`.

    While it keeps up it is handed what was committed; of that it keeps a little while its sink has
    no room. Behind it reads, what is for others too.

    Args:
        log: The log.
        patterns: The channels that it wants.
        start: The first offset that it wants.
        sink: Where the records go.
        owner: Told of acks and of the end.
        consumer: Its owner and durable name, or None.
    """

    __slots__ = (
        "_bytes",
        "_closed",
        "_end",
        "_held",
        "_live",
        "_log",
        "_owner",
        "_paused",
        "_pending",
        "_pumping",
        "_reading",
        "_sink",
        "consumer",
        "next",
        "patterns",
    )

    def __init__(
        self,
        log: Log,
        patterns: Patterns,
        start: int,
        sink: Sink,
        owner: FollowerOwner,
        consumer: Owned | None = None,
    ) -> None:
        self._log = log
        self._sink = sink
        self._owner = owner
        self._pending: deque[Batch] = deque()
        self._live = self._paused = self._reading = self._closed = self._pumping = False
        self._bytes = 0  # of what is pending
        self._held = 0  # of these, what the sink has counted
        self._end = start  # while live: behind what is pending nothing below is for it
        self.patterns = patterns
        self.next = start
        self.consumer = consumer

    def position(self) -> int:
        """Return the offset below which everything that it wants was handed to its sink."""
        if self._live and not (self._pending or self._closed):
            self.next = max(self.next, self._owner.offered)
        return self.next

    def resume(self) -> None:
        """There is room again."""
        self._paused = False
        self.pump()

    def ack(self, next: int, done: Callable[[Exception | None], None]) -> None:
        """Set the named consumer's cursor."""
        self._owner.acked(self, next, done)

    def close(self) -> None:
        """Nothing more is wanted."""
        if not self._closed:
            self._closed = True
            self._pending.clear()
            self._bytes = 0
            self._count_kept()
            self._owner.closed(self)

    def end(self, reason: str) -> None:
        """End it from our side."""
        if not self._closed:
            self.position()  # the sink may ask for it at its end
            self.close()
            self._sink.end(reason)

    def volatile(self, batch: Batch) -> None:
        """Hand on records that have no offset."""
        if not self._closed:
            self._sink.volatile(batch)

    def offer(self, batches: list[Batch], next: int) -> None:
        """Take what was just committed: its own batches of it, and the log's new end."""
        if not self._live or self._closed:
            self.pump()
            return
        if batches and not self._pending:
            self.next = max(self.next, batches[0].offset)  # what was before was for others
        self._keep(batches)
        self._end = next
        if not self._paused:
            self._deliver()
        self._count_kept()

    def pump(self) -> None:
        """Deliver what there is, as long as there is room."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while not (self._closed or self._paused or self._reading):
                if not self._pending:
                    if not (self._live or self._sink.has_room(0)):
                        self._paused = True
                        break
                    if not self._read():
                        break
                self._deliver()
        finally:
            self._pumping = False
            self._count_kept()

    def _count_kept(self) -> None:
        """Have what waits for room counted; let go of what is too much: the log keeps it for all.

        It is read again when there is room.
        """
        more = self._bytes - self._held
        if more > 0:
            little = self._bytes <= _READ_BYTES or not self._live
            if not (little and self._sink.hold(more)):
                self._pending.clear()
                self._bytes, self._live = 0, False
                more = -self._held
        if more < 0:
            self._sink.hold(more)
        self._held = self._bytes

    def _keep(self, batches: list[Batch]) -> None:
        self._pending.extend(batches)
        self._bytes += _bytes_of(batches)

    def _read(self) -> bool:
        """Get more of the log; False if there is none at hand."""
        if self._live:
            return False  # what is more for it will be offered
        if self.next >= self._log.next:
            self._live = True
            self._end = self.next
            return False
        try:
            batches = self._log.read(self.next, _READ_BYTES)
        except Gap as gap:
            self._gap(gap.first)
            return True
        if batches is None:
            self._reading = True
            self._log.fetch(self.next, _READ_BYTES, self._fetched)
            return False
        self._keep(batches)
        return bool(batches)

    def _fetched(self, batches: list[Batch] | LinkdError) -> None:
        """Take what was read from disk."""
        self._reading = False
        if self._closed:
            return
        if isinstance(batches, Gap):
            self._gap(batches.first)
        elif isinstance(batches, LinkdError):
            self.end(str(batches))
            return
        else:
            self._keep(batches)
        self.pump()

    def _gap(self, first: int) -> None:
        """Move on over what is gone."""
        wanted, self.next = self.next, first
        self._owner.gone(self, wanted, first)
        self._sink.gap(wanted, first)

    def _deliver(self) -> None:
        """Hand out what is pending, until there is no room."""
        pending, clock = self._pending, self._log.clock()
        known: dict[str, bool] = {}  # a log has many batches of few channels
        while pending and not self._paused and not self._closed:
            batch = pending[0]
            if batch.next <= self.next:
                self._bytes -= len(pending.popleft().records) + HELD_BYTES
                continue
            wanted = self._live or known.get(batch.channel)
            if wanted is None:
                wanted = known[batch.channel] = self.patterns.match(batch.channel)
            if not self._sink.has_room(len(batch.records) if wanted else 0):
                self._paused = True
                break
            self._bytes -= len(pending.popleft().records) + HELD_BYTES
            if batch.offset < self.next:
                batch = batch.from_offset(self.next)
            elif batch.offset > self.next and not self._live:
                self._gap(batch.offset)
            self.next = batch.next
            if not wanted:
                continue
            if batch.expired(clock):
                self._owner.expired(batch)
                continue
            self._paused = True  # a sink may ask to go on from within
            if self._sink.batch(batch):
                self._paused = False
        if self._live and not (self._closed or pending):
            self.next = max(self.next, self._end)


def _bytes_of(batches: Iterable[Batch]) -> int:
    """Return what batches take in memory."""
    return sum([len(batch.records) + HELD_BYTES for batch in batches])


class FollowerOwner(Protocol):
    """What a follower tells its owner.

    Attributes:
        offered: Followers that keep up were offered everything below.
    """

    offered: int

    def acked(
        self, follower: Follower, next: int, done: Callable[[Exception | None], None]
    ) -> None:
        """A named consumer acknowledged."""

    def closed(self, follower: Follower) -> None:
        """It has ended."""

    def expired(self, batch: Batch) -> None:
        """Records outlived their ttl and were skipped."""

    def gone(self, follower: Follower, first: int, next: int) -> None:
        """Offsets [first, next) that it wanted are gone from the log."""
