"""One subscription across connections: its position, its queued records and their iterator."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from linkd.client.errors import ClientError, Refused, Replaced
from linkd.client.options import check_next
from linkd.client.record import Record, RecordContext, unpack
from linkd.errors import Gap, LinkdError
from linkd.protocol.client import (
    AckFailed,
    ConsumerAck,
    ConsumerAcked,
    Credit,
    Deliver,
    DeliverVolatile,
    Ended,
    FromClient,
    Position,
    Start,
    Subscribe,
    Subscribed,
    SubscriptionGap,
)

if TYPE_CHECKING:
    from linkd.client.connection import Loop
    from linkd.client.session import DaemonSession

DEFAULT_WINDOW: Final = 1024 * 1024

_OTHER_LOG: Final = "the daemon has another log than when this was delivered: it may come again"

Done = Callable[[LinkdError | None], None]


class SubscriptionState:
    """The state of one subscription.

    Attributes:
        id: Its number on the stream.
        patterns: The channels that it wants.
        next: The next offset wanted; None until the daemon has reported where it begins.
        era: How often the daemon's log was replaced, or restored from an older copy.
        is_asked: Whether the daemon of this connection has yet to confirm it.

    Args:
        id: See above.
        patterns: The channels that it wants.
        start: Where it begins, unless a consumer's cursor decides.
        consumer: A consumer's name, or empty.
        window: The most unused bytes at the client; the daemon sends no further ahead.
    """

    def __init__(
        self,
        id: int,
        patterns: tuple[str, ...],
        start: Start,
        consumer: str = "",
        window: int = DEFAULT_WINDOW,
    ) -> None:
        self.id = id
        self.next: int | None = None
        self.queue: RecordQueue | None = None
        self.reading: RecordContext | None = None
        self.over = False
        self.era = 0
        self.is_asked = False
        self._is_stopped = False
        self.patterns = patterns
        self._start: Start = start
        self._consumer = consumer
        self._window = window
        self._held = 0
        self._owed_credit = 0
        self._acked = 0
        self._ack_wanted = 0
        self._ack_sent = 0
        self._acking: list[tuple[int, int, Done]] = []  # a heap
        self._acks = 0
        self._valid: list[int] = []  # up to where acks of each earlier era count

    @property
    def is_full(self) -> bool:
        """Whether the window is full, so that the daemon waits until records are used."""
        return self._held >= self._window

    # From the application

    def consumed(self, size: int) -> None:
        """Note that `size` bytes of records were used; the daemon may send as many more."""
        self._held -= size
        self._owed_credit += size

    def ack(self, next: int, done: Done, era: int | None = None) -> None:
        """Set the consumer's cursor; `done(None)` once it is on disk. Cumulative.

        Args:
            next: One more than the last offset that is done.
            done: Called once.
            era: The era of the record; an earlier one counts as far as the log has not changed
                since.
        """
        if era is not None and era < self.era and next > self._valid[era]:
            done(ClientError(_OTHER_LOG))
        elif not self._consumer:
            done(ClientError("only a subscription with a consumer's name is acknowledged"))
        elif next <= self._acked:
            done(None)
        elif self.over:
            done(ClientError(f"the subscription of {self._consumer} has ended"))
        else:
            self._ack_wanted = max(self._ack_wanted, next)
            self._acks += 1
            heappush(self._acking, (next, self._acks, done))

    # From the session

    def restore(self, agreed: int) -> Subscribe:
        """Return the frame that resumes the subscription on a new connection.

        Args:
            agreed: Below this offset the daemon's log is the same as on the last connection; 0
                for another log, which is read from its start.
        """
        if self.next is not None and self.next > agreed:
            self._begin_era(agreed)
            self._start, self.next = "earliest", agreed or None
        self._ack_sent = self._owed_credit = 0
        self.is_asked, self._is_stopped = True, False
        start = self._start if self.next is None else self.next
        return Subscribe(
            self.id, self.patterns, start, self._consumer, max(0, self._window - self._held)
        )

    def _begin_era(self, agreed: int) -> None:
        """Forget acks from `agreed` on: the log was replaced or restored.

        These offsets are other records now: acks of the earlier ones must not count.
        """
        self._valid = [*[min(each, agreed) for each in self._valid], agreed]
        self.era += 1
        self._acked, self._ack_wanted = 0, min(self._ack_wanted, agreed)
        kept = sorted(entry for entry in self._acking if entry[0] <= agreed)
        void, self._acking = [entry for entry in self._acking if entry[0] > agreed], kept
        for _, _, done in void:
            done(ClientError(_OTHER_LOG))
        if self.reading is not None:
            self.reading = msgspec.structs.replace(self.reading, era=self.era)

    def to_send(self) -> list[FromClient]:
        """Return the credit and the ack that are due."""
        frames: list[FromClient] = []
        if self._is_stopped:
            return frames
        if self._owed_credit * 4 >= self._window:
            frames.append(Credit(self.id, self._owed_credit))
            self._owed_credit = 0
        if self._ack_wanted > self._ack_sent:
            self._ack_sent = self._ack_wanted
            frames.append(ConsumerAck(self.id, self._ack_wanted))
        return frames

    def begun(self, frame: Subscribed) -> None:
        """Note where the daemon begins; a consumer's cursor may be below our acks."""
        self.is_asked = False
        self._acked = min(self._acked, frame.next)
        if self.next is None:
            self.next = frame.next

    def deliver(self, frame: Deliver) -> None:
        """Queue records, except those already queued before a reconnect."""
        size = len(frame.records)
        behind = frame.offset + frame.count
        skip = 0 if self.next is None else max(0, self.next - frame.offset)
        if skip >= frame.count:
            self._owed_credit += size
            return
        if self.queue is None or self.reading is None:
            return
        records = unpack(frame, self.reading, skip)
        self.next = behind
        self._held += size
        self.queue.records(records, size)

    def deliver_volatile(self, frame: DeliverVolatile) -> None:
        """Queue volatile records, which have no offset."""
        size = len(frame.records)
        if self.queue is None or self.reading is None:
            return
        if frame.dropped:
            self.queue.dropped(frame.dropped)
        if frame.count:
            records = unpack(frame, self.reading)
            self._held += size
            self.queue.records(records, size)

    def gap(self, frame: SubscriptionGap) -> None:
        """Report a gap, unless its records were already queued."""
        first = frame.first if self.next is None else max(frame.first, self.next)
        if first >= frame.next:
            return
        self.next = frame.next
        if self.queue is not None:
            self.queue.gap(Gap(first, frame.next))

    def position(self, frame: Position) -> None:
        """Skip offsets of other channels: a gap there does not concern this subscription."""
        if self.next is not None:
            self.next = max(self.next, frame.next)

    def acked(self, frame: ConsumerAcked) -> None:
        """Settle the acks that are on disk."""
        self._acked = max(self._acked, frame.next)
        self._settle_acks(frame.next, None)

    def ack_failed(self, frame: AckFailed) -> None:
        """Fail the acks that were refused; later ones are sent again.

        A stopping daemon refuses acks in transit: the next one gets them again.
        """
        if self._is_stopped or frame.error == "unavailable":
            return
        self._ack_sent = self._acked
        if self._ack_wanted <= frame.next:
            self._ack_wanted = self._acked
        self._settle_acks(frame.next, Refused(frame.error, frame.message))

    def end(self, frame: Ended) -> None:
        """End the subscription, unless the daemon only restarts."""
        if frame.reason == "stopped":
            self._is_stopped = True
            return
        error: LinkdError | None = None
        if frame.reason == "replaced":
            error = Replaced(frame.message or f"another subscriber took {self._consumer}")
        elif frame.reason != "unsubscribed":
            error = Refused(frame.reason, frame.message)
        self.finish(error)

    def finish(self, error: LinkdError | None) -> None:
        """End the subscription for good."""
        if self.over:
            return
        self.over = True
        self._settle_acks(None, error or ClientError("the subscription has ended"))
        if self.queue is not None:
            self.queue.ended(error)

    def _settle_acks(self, below: int | None, error: LinkdError | None) -> None:
        """Settle the acks up to `below`, or all of them for None."""
        settled: list[Done] = []
        while self._acking and (below is None or self._acking[0][0] <= below):
            settled.append(heappop(self._acking)[2])
        for done in settled:
            done(error)


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
