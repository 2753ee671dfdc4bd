"""The client API on any event loop: publish, subscribe, consumers, handlers by type."""

from __future__ import annotations

import inspect
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, Generic, Self, TypeVar, Unpack

from linkd.client.connection import Loop, Reconnector, Wire
from linkd.client.errors import ClientError, NoDaemon, stored_at
from linkd.client.options import (
    Address,
    ConnectSettings,
    Observable,
    PublishManyOptions,
    PublishOptions,
    Status,
    Stored,
    SubscribeOptions,
    check_next,
    check_start,
    check_ttl,
    check_wait,
    check_window,
    plus,
)
from linkd.client.publisher import NO_TERMS, InFlightPublishes, PublishTerms
from linkd.client.record import Record, RecordContext, batches, encoded, pack
from linkd.client.session import MAX_BODY_BYTES, DaemonSession
from linkd.client.subscription import DEFAULT_WINDOW, RecordIterator, RecordQueue
from linkd.errors import LinkdError
from linkd.protocol.channels import check_channel
from linkd.protocol.client import Published
from linkd.protocol.records import BATCH_OVERHEAD_BYTES, check_headers, check_words
from linkd.protocol.records import EncodedRecord as Encoded

TURN_BYTES: Final = 1024 * 1024
"""So much goes in one turn of the loop, which 10^5 publishes at once must not hold.

With HELD_BYTES for each publish.
"""


class PublishQueue:
    """The publishes that wait for room; strictly in order.

    An entry is one tuple: asyncio takes the first step of 10^5 coroutines in one iteration, and
    each further object costs that iteration a microsecond, most of it garbage collection.

    Attributes:
        passed: Bytes that started in this iteration of the loop.

    Args:
        loop: The event loop.
        flight: The publishes in flight.
        max_bytes: The most bytes in flight.
    """

    def __init__(self, loop: Loop, flight: InFlightPublishes, max_bytes: int) -> None:
        self.passed = 0
        self._loop = loop
        self._flight = flight
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[Any, ...]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_free(self) -> bool:
        """Whether a publish may start now: there is room, and none is queued."""
        return not self._waiting and self._has_room()

    def append(self, *entry: Any) -> None:
        """Add a function, a promise and further arguments for the function.

        It is called in its turn, unless the promise is settled before; what it raises settles it.
        """
        self._waiting.append(entry)

    def admit(self, everyone: bool = False) -> None:
        """Start publishes that there is room for, in order; or everyone, to fail."""
        while self._waiting and (everyone or self._has_room()):
            start, promise, *arguments = self._waiting.popleft()
            if self._loop.is_settled(promise):
                continue
            try:
                start(promise, *arguments)
            except (Exception, self._loop.cancelled) as error:  # noqa: BLE001 - it is the caller's
                self._loop.settle(promise, error)

    def _has_room(self) -> bool:
        return self.passed < TURN_BYTES and self._flight.bytes < self._max_bytes


Function = Callable[[Record], object]


class TypeHandlers:
    """The functions of one node: one subscription a pattern, however many functions there are.

    Args:
        subscribe: Starts a subscription at the present end of the log.
        report: Receives what a function or a subscription raises.
        loop: The event loop.
    """

    def __init__(
        self,
        subscribe: Callable[[str], RecordIterator],
        report: Callable[[Exception], None],
        loop: Loop,
    ) -> None:
        self._subscribe = subscribe
        self._report = report
        self._loop = loop
        self._functions: dict[str, dict[tuple[str, Function], None]] = {}
        self._records: dict[str, RecordIterator] = {}

    def on(self, type_: str, function: Function, pattern: str) -> None:
        """Call `function` for each record of that type; a repeated registration has no effect.

        Raises:
            TypeError: The type is not a string, or the function is not callable.
        """
        if not isinstance(type_, str):
            raise TypeError(f"expected a record's type, got {type_!r}")
        if not callable(function):
            raise TypeError(f"expected a function, got {function!r}")
        entry = (type_, function)
        hash(entry)  # before anything begins
        if pattern not in self._records:
            records = self._records[pattern] = self._subscribe(pattern)
            functions = self._functions[pattern] = {entry: None}
            self._loop.run(self._pump(pattern, functions, records))
        self._functions[pattern][entry] = None

    def off(self, type_: str, function: Function | None) -> None:
        """Remove a function, or all of a type; the last one of a pattern ends its subscription."""
        for pattern, functions in list(self._functions.items()):
            for known_type, known in list(functions):
                if known_type == type_ and function in (None, known):
                    del functions[known_type, known]
            if not functions:
                self._forget(pattern)

    def close(self) -> None:
        """Remove all; a running function is not interrupted: it may be the caller."""
        for pattern in list(self._functions):
            self._functions[pattern].clear()
            self._forget(pattern)

    def _forget(self, pattern: str) -> None:
        """End a pattern's subscription, which ends its pump once the current function returns."""
        del self._functions[pattern]
        self._records.pop(pattern).end()

    async def _pump(
        self, pattern: str, functions: dict[tuple[str, Function], None], records: RecordIterator
    ) -> None:
        """Call the functions for each record, one after the other, in order."""
        try:
            async for record in records:
                for type_, function in list(functions):
                    if type_ in ("*", record.type) and (type_, function) in functions:
                        await self._call(function, record)
        except self._loop.cancelled:
            raise
        except Exception as error:  # noqa: BLE001 - the subscription's end, or the application's
            self._report(error)
        finally:
            if self._records.get(pattern) is records:
                self._forget(pattern)

    async def _call(self, function: Function, record: Record) -> None:
        """Call one function; if what it awaits is cancelled, that is its own failure."""
        try:
            outcome = function(record)
            if inspect.isawaitable(outcome):
                await outcome
        except self._loop.cancelled as error:
            if self._loop.is_cancelled():
                raise
            self._report(ClientError(f"a function of `on` was cancelled: {error!r}"))
        except Exception as error:  # noqa: BLE001 - it belongs to the application
            self._report(error)


WAIT_SECONDS: Final = 30.0
VALUE_BYTES: Final = 256
"""Added to the size of each value of `publish_many`, for the cost of encoding it."""

MAX_DELAY: Final = 15.0
LOCAL_DELAY: Final = 1.0
"""The longest delay between attempts unless `max_delay` is given: to `http`, to a socket."""

GRACE_SECONDS: Final = 1.0
"""How much longer than the daemon a client waits before it reports the time-out itself."""

DialAt = Callable[[Address, ConnectSettings, DaemonSession, Callable[[], None]], Awaitable[Wire]]
"""Opens one connection; the last argument is called after each piece of data from the daemon."""


StatusType = TypeVar("StatusType", bound=Observable[Status])
SubscriptionType = TypeVar("SubscriptionType", bound=RecordIterator)


class NodeBase(Generic[StatusType, SubscriptionType]):
    """A client of one daemon, across reconnects; `async with` starts and closes it.

    Args:
        loop: The event loop.
        dial: Opens a connection.
        where: The daemon.
        settings: The options of the connection.
        status: The state of the connection and the links; kept up to date.
        make_subscription: Makes a subscription of a queue of records.
    """

    def __init__(
        self,
        loop: Loop,
        dial: DialAt,
        where: Address,
        settings: ConnectSettings,
        status: StatusType,
        make_subscription: Callable[[RecordQueue], SubscriptionType],
    ) -> None:
        self._session = DaemonSession(
            settings.producer or secrets.token_hex(16),
            settings.max_in_flight_bytes,
            secrets.token_hex(16) if settings.producer else "",
        )
        self._upkeep = Reconnector(
            loop,
            lambda changed: dial(where, settings, self._session, changed),
            settings,
            self._session,
            status,
            LOCAL_DELAY if where.socket else MAX_DELAY,
        )
        self._start = self._start_publish  # one bound method for all
        self._queue = PublishQueue(loop, self._session.flight, settings.max_in_flight_bytes)
        self._upkeep.on_wake = self._admit
        self._upkeep.on_flush = self._turned
        self._loop = loop
        self._where = where
        self._settings = settings
        self._status = status
        self._make_subscription = make_subscription
        self._handlers: TypeHandlers | None = None
        self._expiry_off: Callable[[], None] | None = None
        self._expiry_at = 0.0

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    @property
    def name(self) -> str:
        """The daemon's node name; empty before the first connection."""
        return self._session.node

    @property
    def max_body_bytes(self) -> int:
        """The largest body that can be published, as far as known."""
        return min(MAX_BODY_BYTES, self._session.max_body_bytes or MAX_BODY_BYTES)

    @property
    def status(self) -> StatusType:
        """The state of the connection and the links; observable."""
        return self._status

    def start(self) -> None:
        """Start connecting, and stay connected until `close`."""
        if not self._upkeep.started:
            self._loop.bind()
            self._upkeep.start()

    def subscribe(self, *patterns: str, **options: Unpack[SubscribeOptions]) -> SubscriptionType:
        """Subscribe to channels: an asynchronous iterator of records, which begins now.

        Args:
            *patterns: Channels; `*` matches one word, `>` at the end matches the rest.
            **options: See SubscribeOptions.

        Raises:
            ChannelRefused: A pattern is malformed. The iterator raises refusals by the daemon.
        """
        return self._make_subscription(self._open_queue(patterns, options))

    def on(self, type: str, function: Function, channel: str = ">") -> None:
        """Call `function` with each record of a type that arrives on a channel from now on.

        Records are handled one after the other, in order; a returned coroutine or Deferred is
        awaited. A repeated registration has no effect. Exceptions go to `on_error`.

        Args:
            type: The records' type; `*` for any.
            function: Called with a record.
            channel: A channel or pattern.
        """
        if self._handlers is None:
            self._handlers = TypeHandlers(self.subscribe, self._upkeep.report, self._loop)
        self._handlers.on(type, function, channel)

    def off(self, type: str, function: Function | None = None) -> None:
        """Remove a function, or all functions of a type."""
        if self._handlers is not None:
            self._handlers.off(type, function)

    # life

    async def _until_open(self) -> None:
        """Return once the connection is up; raise the final error if it never will be."""
        while not self._session.open:
            self._check()
            await self._upkeep.changed()

    def _not_open(self, seconds: float) -> NoDaemon:
        """Return the error for a connection that was not up in time."""
        reason = self._status.value.reason or "no answer"
        return NoDaemon(f"no daemon at {self._where} in {seconds:g} s: {reason}")

    async def _until_settled(self) -> None:
        """Return once every pending publish is settled."""
        self._upkeep.flush()
        self._session.gatherer.seal()
        while len(self._session.flight) or self._queue:
            self._check()
            await self._upkeep.changed()

    async def _close(self) -> None:
        """Close the connection; pending operations fail with Closed."""
        self._loop.check()
        if self._handlers is not None:
            self._handlers.close()
        if self._expiry_off is not None:
            self._expiry_off()
        await self._upkeep.close()

    def _check(self) -> None:
        """Raise an error if the node was not started, or has failed for good."""
        if self._upkeep.failed is not None:
            raise self._upkeep.failed
        if not self._upkeep.started:
            raise ClientError("the node was not started: `start()`, or `async with`")

    # publishing

    async def _publish(self, channel: str, value: Any, options: PublishOptions) -> int:
        """Publish one value; return its offset once it is on the daemon's disk."""
        terms = _terms(options)
        self._check()
        promise = self._loop.promise()
        if self._queue.is_free:
            self._start_publish(promise, channel, value, options, terms)
        else:
            self._queue.append(self._start, promise, channel, value, options, terms)
            self._upkeep.plan_flush()
        offset: int = await promise
        if "wait" in options:
            await self._wait_as_asked(options, channel, offset)
        return offset

    def _start_publish(
        self, promise: Any, channel: str, value: Any, options: PublishOptions, terms: PublishTerms
    ) -> None:
        """Encode one value and put it in flight."""
        body, content_type = encoded(self._settings.encode, value)
        type_, id_ = options.get("type", ""), options.get("id", "")
        check_words(type_, id_, content_type)
        self._check_publish(channel, len(body))
        headers = options.get("headers")
        record = pack(
            [Encoded(body, type_, id_, content_type, check_headers(headers) if headers else None)]
        )
        self._queue.passed += len(record) + BATCH_OVERHEAD_BYTES
        self._session.gatherer.add(channel, record, terms, partial(self._loop.settle, promise))
        self._upkeep.plan_flush()

    async def _send_many(
        self, channel: str, values: Iterable[Any], options: PublishManyOptions
    ) -> list[tuple[int, Awaitable[Published]]]:
        """Queue many values in order as room allows; return each batch's count and outcome."""
        self._check_publish(channel, 0)
        under_way: list[tuple[int, Awaitable[Published]]] = []
        terms = _terms(options)
        type_, headers = options.get("type", ""), check_headers(options.get("headers") or {})
        encode, check_body = self._settings.encode, self._session.check_body
        for count, records in batches(values, type_, encode, headers, check_body):
            started, outcome = self._loop.promise(), self._loop.promise()
            under_way.append((count, outcome))
            batch = (outcome, channel, count, records, terms)
            if self._queue.is_free:
                self._start_batch(started, *batch)
            else:
                self._queue.append(self._start_batch, started, *batch)
                self._upkeep.plan_flush()
                await started
        return under_way

    def _start_batch(
        self,
        started: Any,
        outcome: Any,
        channel: str,
        count: int,
        records: bytes,
        terms: PublishTerms,
    ) -> None:
        """Put one batch in flight."""
        self._check_publish(channel, 0)
        self._queue.passed += len(records) + count * VALUE_BYTES
        self._session.gatherer.seal()
        settle = partial(self._loop.settle, outcome)
        self._session.flight.add(channel, count, records, settle, terms)
        self._upkeep.plan_flush()
        self._loop.settle(started, None)

    async def _wait_as_asked(
        self, options: PublishOptions | PublishManyOptions, channel: str, last: int
    ) -> None:
        """Return once the peer in `wait`, if any, has everything up to offset `last`.

        Raises:
            ClientError: Not in time, or never; everything is stored, and the error has `last`.
        """
        if peer := options.get("wait"):
            timeout = options.get("timeout", WAIT_SECONDS)
            try:
                await self._wait_for(peer, channel, last + 1 if last else 0, timeout)
            except ClientError as error:
                raise stored_at(error, last) from None

    async def _wait_for(self, peer: str, channel: str, next: int, seconds: float) -> None:
        """Return once `peer` has everything of `channel` below offset `next` on disk."""
        self._check()
        check_wait(peer, seconds)
        check_channel(channel)
        check_next(next)
        promise = self._loop.promise()
        settle = partial(self._loop.settle, promise)
        self._session.wait(peer, channel, next, self._loop.time() + seconds, settle)
        self._upkeep.plan_flush()
        self._plan_expiry()
        await promise

    def _check_publish(self, channel: str, size: int) -> None:
        """Raise at once if the publish can only fail."""
        self._check()
        self._session.check_publish(channel, size, self._settings.when_down)

    def _turned(self) -> None:
        """Start another iteration of the loop."""
        self._queue.passed = 0
        self._admit()

    def _admit(self) -> None:
        """Admit publishes that wait for room; all of them if they can only fail."""
        if not self._queue:
            return
        fails = self._settings.when_down == "fail" and not self._session.open
        self._queue.admit(everyone=fails or self._upkeep.failed is not None)

    def _plan_expiry(self) -> None:
        """Expire waits at their deadline, with or without a connection."""
        now = self._loop.time()
        deadline = self._session.expire(now - GRACE_SECONDS)
        if deadline is None or (self._expiry_off is not None and self._expiry_at <= deadline):
            return
        if self._expiry_off is not None:
            self._expiry_off()
        self._expiry_at = deadline
        left = max(0.0, deadline + GRACE_SECONDS - now)
        self._expiry_off = self._loop.later(left, self._expire)

    def _expire(self) -> None:
        self._expiry_off = None
        self._plan_expiry()

    # reading

    def _open_queue(self, patterns: tuple[str, ...], options: SubscribeOptions) -> RecordQueue:
        """Start a subscription; raise ChannelRefused, ValueError or TypeError."""
        self._check()
        self._loop.check()
        check_start(options.get("start", "latest"))
        check_window(options.get("window", DEFAULT_WINDOW))
        reader = self._session.subscribe(
            patterns,
            options.get("start", "latest"),
            options.get("consumer", ""),
            options.get("window", DEFAULT_WINDOW),
        )
        inbox = RecordQueue(self._loop, self._session, reader, self._upkeep.plan_flush)
        on_gap = options.get("on_gap", self._upkeep.report)
        inbox.on_gap = lambda gap: self._upkeep.call(on_gap, gap)
        if self._settings.on_message is not None:
            inbox.on_message = self._message
            inbox.on_full = self._nobody_iterates
        reader.queue = inbox
        reader.reading = RecordContext(self._settings.decode, inbox.ack)
        self._upkeep.plan_flush()
        return inbox

    def _message(self, record: Record) -> None:
        self._upkeep.call(self._settings.on_message, record)

    def _nobody_iterates(self, patterns: tuple[str, ...]) -> None:
        """Report that the window is full, since it looks as if nothing more was published."""
        sentence = "its window is full: on_message gets no more until something iterates over it"
        self._upkeep.report(
            ClientError(f"the subscription of {', '.join(patterns)[:200]}: {sentence}")
        )


class PublishTotal:
    """What is stored of many values that were published in batches.

    Attributes:
        stored: The values known to be stored, even if others were refused.
        leading: How many values are stored before the first that was refused or is not settled.
    """

    def __init__(self) -> None:
        self.stored = Stored(0, 0, 0)
        self.leading = 0

    async def settle(self, under_way: list[tuple[int, Awaitable[Published]]]) -> Stored:
        """Return the total once all batches are settled; raise the first error among them."""
        error: LinkdError | None = None
        for count, outcome in under_way:
            try:
                self.stored = plus(self.stored, count, await outcome)
                if error is None:
                    self.leading += count
            except LinkdError as failed:
                error = error or failed
        if error is not None:
            raise error
        return self.stored


def _terms(options: PublishOptions | PublishManyOptions) -> PublishTerms:
    """Return the checked options of a publish."""
    if not options:  # nearly always: a publish costs microseconds
        return NO_TERMS
    ttl, wait = check_ttl(options.get("ttl")), options.get("wait")
    check_wait(wait, options.get("timeout", WAIT_SECONDS))
    id_: Any = options.get("id")
    return PublishTerms(ttl, (id_,) if id_ else (), wait or "")
