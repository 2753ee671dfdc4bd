"""Received records as an asynchronous iterator, on any event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Self

import msgspec

from linkd.client.connection import Loop
from linkd.client.options import check_next
from linkd.client.record import Record
from linkd.client.session import DaemonSession
from linkd.client.subscription import SubscriptionState
from linkd.errors import Gap, LinkdError


class RecordQueue:
    """The records that wait for the application; bounded by the subscription's window.

    Args:
        loop: The event loop.
        session: The session of the subscription.
        reader: The subscription.
        flush: Sends the session's pending messages soon.
    """

    def __init__(
        self,
        loop: Loop,
        session: DaemonSession,
        reader: SubscriptionState,
        flush: Callable[[], None],
    ) -> None:
        self.session = session
        self.reader = reader
        self.flush = flush
        self.on_message: Callable[[Record], object] | None = None
        self.on_full: Callable[[tuple[str, ...]], object] | None = None
        self.on_gap: Callable[[Gap], object] | None = None
        self.error: LinkdError | None = None
        self.over = False
        self.lost_volatile = 0
        self.chunks: deque[tuple[list[Record], int]] = deque()
        self._loop = loop
        self._arrived: Any = None

    def records(self, records: list[Record], size: int) -> None:
        """Queue records; `used` releases their `size`."""
        self.chunks.append((records, size))
        self.wake()
        if self.on_message is not None:
            for record in records:
                self.on_message(record)
            if self.on_full is not None and self.reader.is_full:
                full, self.on_full = self.on_full, None
                full(self.reader.patterns)

    def gap(self, gap: Gap) -> None:
        """Report a gap."""
        if self.on_gap is not None:
            self.on_gap(gap)

    def dropped(self, count: int) -> None:
        """Count dropped volatile records."""
        self.lost_volatile += count

    def ended(self, error: LinkdError | None) -> None:
        """End the iteration after the queued records."""
        self.over, self.error = True, error
        self.wake()

    def wake(self) -> None:
        """Wake the iterator."""
        if self._arrived is not None:
            self._loop.settle(self._arrived, None)

    async def chunk(self) -> tuple[list[Record], int] | None:
        """Return the next records and their size; None at the end; raise why it ended."""
        self.on_full = None
        while not self.chunks:
            if self.over:
                if self.error is not None:
                    raise self.error
                return None
            self._arrived = self._loop.promise()
            await self._arrived
        return self.chunks.popleft()

    def used(self, size: int) -> None:
        """Grant the daemon room for `size` more bytes."""
        self.reader.consumed(size)
        self.flush()

    def ack(self, next: int, era: int | None = None) -> Awaitable[None]:
        """Set the consumer's cursor; await it to know that it is on disk."""
        durable: Awaitable[None] = self._loop.promise()
        self.reader.ack(next, partial(self._loop.settle, durable), era)
        self.flush()
        return durable

    def close(self) -> None:
        """End the subscription."""
        self.session.unsubscribe(self.reader)
        self.flush()

    def abandon(self) -> None:
        """Drop the queued records and all later ones: no iterator is left."""
        self.chunks.clear()
        self.reader.reading = None

    def hold(self, owner: object) -> None:
        """Have each record keep `owner` alive."""
        if self.reader.reading is not None:
            self.reader.reading = msgspec.structs.replace(self.reader.reading, owner=owner)


class RecordIterator:
    """An asynchronous iterator of records; across reconnects none is repeated or skipped.

    Only one task at a time may iterate over it. It ends when its queue is closed, at the latest at
    the end of an `async with`.

    Attributes:
        end: Ends the subscription; the iteration ends after the records that have arrived.
    """

    def __init__(self, inbox: RecordQueue) -> None:
        self.end = inbox.close
        self._inbox = inbox
        self._current: list[Record] = []
        self._at = 0
        self._size = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        at = self._at
        if at >= len(self._current):
            await self._fetch()
            at = 0
        self._at = at + 1
        return self._current[at]

    async def batches(self) -> AsyncIterator[list[Record]]:
        """Yield the records in batches as they arrive: faster for many records."""
        while True:
            try:
                await self._fetch()
            except StopAsyncIteration:
                return
            self._at = len(self._current)
            yield self._current

    async def _fetch(self) -> None:
        """Fetch the next batch of records; raise StopAsyncIteration at the end."""
        if self._size:
            self._inbox.used(self._size)
            self._size = 0
        chunk = await self._inbox.chunk()
        if chunk is None:
            raise StopAsyncIteration
        self._current, self._size = chunk
        self._at = 0

    @property
    def next(self) -> int | None:
        """One more than the offset of the last record that arrived; None until it has begun."""
        return self._inbox.reader.next

    @property
    def lost_volatile(self) -> int:
        """How many volatile records were dropped because the iterator was too slow."""
        return self._inbox.lost_volatile

    def ack(self, next: int) -> Awaitable[None]:
        """Acknowledge all records below `next`; await it to know that the ack is on disk.

        Raises:
            TypeError: `next` is no integer.
            ValueError: It is no offset.
        """
        check_next(next)
        return self._inbox.ack(next)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()
