"""Records as they come, for Twisted: an asynchronous iterator, and functions by type."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Protocol, Self

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from linkd.client.reader import Reader
from linkd.client.record import Record
from linkd.client.session import Session
from linkd.errors import Gap, LinkdError

Function = Callable[[Record], object]


class Inbox:
    """Where a reader's records wait for the application; bounded by the reader's window."""

    def __init__(self, session: Session, reader: Reader, flush: Callable[[], None]) -> None:
        self.session = session
        self.reader = reader
        self.flush = flush
        self.on_message: Callable[[Record], object] | None = None
        self.on_gap: Callable[[Gap], object] | None = None
        self.error: LinkdError | None = None
        self.over = False
        self.lost_volatile = 0
        self.waiter: Deferred[None] | None = None
        self.chunks: deque[tuple[list[Record], int]] = deque()

    def records(self, records: list[Record], size: int) -> None:
        """Take records."""
        self.chunks.append((records, size))
        self.wake()
        if self.on_message is not None:
            for record in records:
                self.on_message(record)

    def gap(self, gap: Gap) -> None:
        """Pass a gap on."""
        if self.on_gap is not None:
            self.on_gap(gap)

    def dropped(self, count: int) -> None:
        """Count volatile records that there was no room for."""
        self.lost_volatile += count

    def ended(self, error: LinkdError | None) -> None:
        """Have the iteration end once all that came was taken."""
        self.over, self.error = True, error
        self.wake()

    def wake(self) -> None:
        """Go on with whoever waits."""
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.called:
            waiter.callback(None)

    async def chunk(self) -> tuple[list[Record], int] | None:
        """Return the next records and their size; None at the end; raise why it ended."""
        while not self.chunks:
            if self.over:
                if self.error is not None:
                    raise self.error
                return None
            self.waiter = Deferred()
            await self.waiter
        return self.chunks.popleft()

    def used(self, size: int) -> None:
        """Give room back to the daemon."""
        self.reader.consumed(size)
        self.flush()

    def ack(self, next: int) -> Awaitable[None]:
        """Set the consumer's cursor; a Deferred."""
        deferred: Deferred[None] = Deferred()

        def done(error: LinkdError | None) -> None:
            if deferred.called:
                return
            if error is None:
                deferred.callback(None)
            else:
                deferred.errback(Failure(error))

        self.reader.ack(next, done)
        self.flush()
        return deferred

    def close(self) -> None:
        """End the subscription."""
        self.session.unsubscribe(self.reader)
        self.flush()


class Subscription:
    """An asynchronous iterator of records; over reconnects none comes twice, none is left out.

    It ends with `close`, or at the end of an `async with`. One at a time may iterate over it.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._current: list[Record] = []
        self._at = 0
        self._size = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        if self._at >= len(self._current):
            await self._fetch()
        self._at += 1
        return self._current[self._at - 1]

    async def batches(self) -> AsyncIterator[list[Record]]:
        """Yield the records in the runs in which they came: faster where there are many."""
        while True:
            try:
                await self._fetch()
            except StopAsyncIteration:
                return
            self._at = len(self._current)
            yield self._current

    async def _fetch(self) -> None:
        """Make the next run of records the current one; raise StopAsyncIteration at the end."""
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
        """The offset behind the last record that arrived; None until it has begun."""
        return self._inbox.reader.next

    @property
    def lost_volatile(self) -> int:
        """How many volatile records were dropped because they weren't taken fast enough."""
        return self._inbox.lost_volatile

    def ack(self, next: int) -> Awaitable[None]:
        """Say that all below `next` is done; wait for it to know that it is on disk."""
        return self._inbox.ack(next)

    def close(self) -> None:
        """End it; the iteration ends once all that came was taken."""
        self._inbox.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Listening(Protocol):
    """What a node gives to its functions by type."""

    def listen(self, pattern: str) -> Subscription:
        """Begin a subscription from now on."""

    def report(self, error: Exception) -> None:
        """Tell the application what went wrong in one of its functions."""


class Handlers:
    """The functions of one node: one subscription a pattern, however many functions there are."""

    def __init__(self, node: Listening) -> None:
        self._node = node
        self._functions: dict[str, dict[tuple[str, Function], None]] = {}
        self._pumps: dict[str, Deferred[None]] = {}

    def on(self, type_: str, function: Function, pattern: str) -> None:
        """Call `function` for each record of that type; registered twice it is called once."""
        functions = self._functions.setdefault(pattern, {})
        functions[type_, function] = None
        if pattern not in self._pumps:
            pump = self._pump(functions, self._node.listen(pattern))
            self._pumps[pattern] = Deferred.fromCoroutine(pump)

    def off(self, type_: str, function: Function | None) -> None:
        """Forget a function, or all of a type; the last one of a pattern ends its subscription."""
        for pattern, functions in list(self._functions.items()):
            for known_type, known in list(functions):
                if known_type == type_ and function in (None, known):
                    del functions[known_type, known]
            if not functions:
                del self._functions[pattern]
                self._pumps.pop(pattern).cancel()

    def close(self) -> None:
        """Forget all."""
        self._functions.clear()
        pumps, self._pumps = self._pumps, {}
        for pump in pumps.values():
            pump.cancel()

    async def _pump(
        self, functions: dict[tuple[str, Function], None], subscription: Subscription
    ) -> None:
        """Call the functions of each record in the order of the records, one after the other."""
        try:
            async with subscription:
                async for record in subscription:
                    for type_, function in list(functions):
                        if type_ in ("*", record.type):
                            await self._call(function, record)
        except CancelledError:
            return
        except Exception as error:  # noqa: BLE001 - it belongs to the application
            self._node.report(error)

    async def _call(self, function: Function, record: Record) -> None:
        try:
            outcome = function(record)
            if inspect.isawaitable(outcome):
                await outcome
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - it belongs to the application
            self._node.report(error)
