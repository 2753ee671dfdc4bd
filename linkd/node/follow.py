"""Followers of the log: every subscription of an application is one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from linkd.api.port import Sink
from linkd.core.batch import Batch
from linkd.core.channels import Patterns
from linkd.errors import Gap, LinkdError
from linkd.log.engine import Log

_READ_BYTES = 512 * 1024


class Follower:
    """A reader that follows the log's end; `linkd.api.port.Subscription`.

    While it keeps up it is handed what was committed; behind that it reads.

    Args:
        log: The log.
        patterns: The channels that it wants.
        start: The first offset that it wants.
        sink: Where the records go.
        owner: Told of acks and of the end.
        consumer: Its durable name, or None.
    """

    __slots__ = (
        "_closed",
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
        consumer: str | None = None,
    ) -> None:
        self._log = log
        self._sink = sink
        self._owner = owner
        self._pending: deque[Batch] = deque()
        self._live = self._paused = self._reading = self._closed = self._pumping = False
        self.patterns = patterns
        self.next = start
        self.consumer = consumer

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
            self._owner.closed(self)

    def end(self, reason: str) -> None:
        """End it from our side."""
        if not self._closed:
            self.close()
            self._sink.end(reason)

    def volatile(self, batch: Batch) -> None:
        """Hand on records that have no offset."""
        if not self._closed:
            self._sink.volatile(batch)

    def offer(self, batches: list[Batch], next: int) -> None:
        """Take what was just committed: its own batches of it, and the log's new end."""
        if self._live and not self._paused and not self._pending:
            self._pending.extend(batches)
            self._deliver()
            if not self._pending and not self._closed:
                self.next = next
            else:
                self._live = False
                self._pending.clear()
            return
        self._live = False
        self.pump()

    def pump(self) -> None:
        """Deliver what there is, as long as there is room."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while not (self._closed or self._paused or self._reading):
                if not self._pending and not self._read():
                    break
                self._deliver()
        finally:
            self._pumping = False

    def _read(self) -> bool:
        """Get more of the log; False if there is none at hand."""
        if self.next >= self._log.next:
            self._live = True
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
        self._pending.extend(batches)
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
            self._pending.extend(batches)
        self.pump()

    def _gap(self, first: int) -> None:
        """Move on over what is gone."""
        wanted, self.next = self.next, first
        self._owner.gone(self, wanted, first)
        self._sink.gap(wanted, first)

    def _deliver(self) -> None:
        """Hand out what was read; what is left stays pending."""
        pending, clock = self._pending, self._log.clock()
        while pending and not self._paused and not self._closed:
            batch = pending.popleft()
            if batch.next <= self.next:
                continue
            if batch.offset < self.next:
                batch = batch.from_offset(self.next)
            elif batch.offset > self.next and not self._live:
                self._gap(batch.offset)
            self.next = batch.next
            if not self.patterns.match(batch.channel):
                continue
            if batch.expired(clock):
                self._owner.expired(batch)
                continue
            self._paused = True  # a sink may ask to go on from within
            if self._sink.batch(batch):
                self._paused = False


class FollowerOwner(Protocol):
    """What a follower tells its owner."""

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
