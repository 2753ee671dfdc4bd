"""What an application asks of a daemon, as coroutines that run on any loop."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from linkd.client.address import Address
from linkd.client.arguments import check_next, check_start, check_ttl, check_wait, check_window
from linkd.client.bodies import batches, encoded, pack
from linkd.client.errors import ClientError, NoDaemon, stored_at
from linkd.client.flight import NO_TERMS, Terms
from linkd.client.handlers import Function, Handlers, Listening
from linkd.client.loop import Loop
from linkd.client.observable import Observable, Status
from linkd.client.options import PublishManyOptions, PublishOptions, Settings, SubscribeOptions
from linkd.client.reader import DEFAULT_WINDOW
from linkd.client.record import Reading, Record
from linkd.client.room import Room
from linkd.client.session import Session
from linkd.client.subscription import Inbox
from linkd.client.upkeep import Upkeep
from linkd.client.wire import Wire
from linkd.core.batch import HELD_BYTES, check_headers, check_words
from linkd.core.batch import Record as Encoded
from linkd.core.channels import check_channel
from linkd.core.stream import Published

WAIT_SECONDS: Final = 30.0
GUESSED_BYTES: Final = 256
"""What a value that is not encoded yet counts for where it waits for room."""

VALUE_BYTES: Final = 256
"""What each of many values counts for in a turn of the loop, beside its bytes: for its encoding."""

MAX_DELAY: Final = 15.0
LOCAL_DELAY: Final = 1.0
"""No delay between attempts is longer, where `max_delay` is not given: to `http`, to a socket."""

GRACE_SECONDS: Final = 1.0
"""How much longer than the daemon a client waits before it says itself that the time is over."""

DialAt = Callable[[Address, Settings, Session, Callable[[], None]], Awaitable[Wire]]
"""Opens one connection; the last argument is called after each piece of the daemon's."""


class Calls:
    """A daemon, over any number of connections to it.

    Args:
        loop: The event loop.
        dial: Opens a connection.
        where: The daemon.
        settings: What was asked of the connection.
        status: The connection's state and the links', kept right.
    """

    def __init__(
        self,
        loop: Loop,
        dial: DialAt,
        where: Address,
        settings: Settings,
        status: Observable[Status],
    ) -> None:
        self.session = Session(
            settings.producer or secrets.token_hex(16),
            settings.max_in_flight_bytes,
            secrets.token_hex(16) if settings.producer else "",
        )
        self.upkeep = Upkeep(
            loop,
            lambda changed: dial(where, settings, self.session, changed),
            settings,
            self.session,
            status,
            LOCAL_DELAY if where.socket else MAX_DELAY,
        )
        self._room = Room(loop, self.session.flight, settings.max_in_flight_bytes)
        self.upkeep.on_wake = self._admit
        self.upkeep.on_flush = self._room.turned
        self._loop = loop
        self._where = where
        self._settings = settings
        self._status = status
        self._handlers: Handlers | None = None
        self._expiry_off: Callable[[], None] | None = None
        self._expiry_at = 0.0

    # life

    async def until_open(self) -> None:
        """Return once the connection is up; raise why it never will be."""
        while not self.session.open:
            self.check()
            await self.upkeep.changed()

    def not_open(self, seconds: float) -> NoDaemon:
        """Return what to raise where it was not up in time."""
        reason = self._status.value.reason or "no answer"
        return NoDaemon(f"no daemon at {self._where} in {seconds:g} s: {reason}")

    async def until_settled(self) -> None:
        """Return once every publish under way is settled."""
        self.upkeep.flush()
        self.session.gatherer.seal()
        while len(self.session.flight):
            self.check()
            await self.upkeep.changed()

    async def close(self) -> None:
        """End the connection; what is under way fails with Closed."""
        self._loop.check()
        if self._handlers is not None:
            self._handlers.close()
        if self._expiry_off is not None:
            self._expiry_off()
        await self.upkeep.close()

    def check(self) -> None:
        """Raise why nothing can be asked."""
        if self.upkeep.failed is not None:
            raise self.upkeep.failed
        if not self.upkeep.started:
            raise ClientError("the node was not started: `start()`, or `async with`")

    # publishing

    async def publish(self, channel: str, value: Any, options: PublishOptions) -> int:
        """Publish one value; return its offset once it is on the daemon's disk."""
        type_, id_ = options.get("type", ""), options.get("id", "")
        terms = _terms(options, (id_,) if id_ else ())
        if not self._room.is_free:
            self._check_publish(channel, 0)
            await self._wait_for_room(
                channel, len(value) if isinstance(value, bytes | str) else GUESSED_BYTES
            )
        body, content_type = encoded(self._settings.encode, value)
        check_words(type_, id_, content_type)
        self._check_publish(channel, len(body))
        headers = options.get("headers")
        record = pack(
            [Encoded(body, type_, id_, content_type, check_headers(headers) if headers else None)]
        )
        self._room.passed += len(record) + HELD_BYTES
        if id_:
            offset = (await self._send(channel, 1, record, terms)).offset
        else:
            waiting, settle = self._loop.promise()
            self.session.gatherer.add(channel, record, terms, settle)
            self.upkeep.plan_flush()
            offset = await waiting
        if "wait" in options:
            await self.wait_as_asked(options, channel, offset)
        return offset

    async def send_many(
        self, channel: str, values: Iterable[Any], options: PublishManyOptions
    ) -> list[tuple[int, Awaitable[Published]]]:
        """Queue many values, in order, as there is room; return each batch's count and outcome."""
        self._check_publish(channel, 0)
        under_way: list[tuple[int, Awaitable[Published]]] = []
        terms = _terms(options)
        type_, headers = options.get("type", ""), check_headers(options.get("headers") or {})
        encode, check_body = self._settings.encode, self.session.check_body
        for count, records in batches(values, type_, encode, headers, check_body):
            if not self._room.is_free:
                await self._wait_for_room(channel, len(records))
            self._room.passed += len(records) + count * VALUE_BYTES
            under_way.append((count, self._send(channel, count, records, terms)))
        return under_way

    async def wait_as_asked(
        self, options: PublishOptions | PublishManyOptions, channel: str, last: int
    ) -> None:
        """Return once the peer in `wait`, if there is one, has all up to offset `last`.

        Raises:
            ClientError: Not in time, or never; all of it is stored, and the error has `last`.
        """
        if peer := options.get("wait"):
            timeout = options.get("timeout", WAIT_SECONDS)
            try:
                await self.wait_for(peer, channel, last + 1 if last else 0, timeout)
            except ClientError as error:
                raise stored_at(error, last) from None

    async def wait_for(self, peer: str, channel: str, next: int, seconds: float) -> None:
        """Return once `peer` has everything of `channel` below offset `next` on disk."""
        self.check()
        check_wait(peer, seconds)
        check_channel(channel)
        check_next(next)
        waiting, settle = self._loop.promise()
        self.session.wait(peer, channel, next, self._loop.time() + seconds, settle)
        self.upkeep.plan_flush()
        self._plan_expiry()
        await waiting

    def _send(self, channel: str, count: int, records: bytes, terms: Terms) -> Awaitable[Published]:
        """Queue one publish and return its outcome."""
        waiting, settle = self._loop.promise()
        self.session.gatherer.seal()
        self.session.flight.add(channel, count, records, settle, terms)
        self.upkeep.plan_flush()
        return waiting

    def _check_publish(self, channel: str, size: int) -> None:
        """Refuse at once what can only fail."""
        self.check()
        self.session.check_publish(channel, size, self._settings.when_down)

    async def _wait_for_room(self, channel: str, size: int) -> None:
        """Return once there is room for another publish; raise why there will be none."""
        self.upkeep.plan_flush()
        await self._room.wait(size)
        self._check_publish(channel, 0)

    def _admit(self) -> None:
        """Let publishes go on that wait for room, or that have nothing to wait for any more."""
        fails = self._settings.when_down == "fail" and not self.session.open
        self._room.admit(everyone=fails or self.upkeep.failed is not None)

    def _plan_expiry(self) -> None:
        """End the waits whose time is over, also while there is no connection."""
        now = self._loop.time()
        deadline = self.session.expire(now - GRACE_SECONDS)
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

    def inbox(self, patterns: tuple[str, ...], options: SubscribeOptions) -> Inbox:
        """Begin a subscription; raise ChannelRefused, ValueError or TypeError for what is none."""
        self.check()
        self._loop.check()
        check_start(options.get("start", "latest"))
        check_window(options.get("window", DEFAULT_WINDOW))
        reader = self.session.subscribe(
            patterns,
            options.get("start", "latest"),
            options.get("consumer", ""),
            options.get("window", DEFAULT_WINDOW),
        )
        inbox = Inbox(self._loop, self.session, reader, self.upkeep.plan_flush)
        on_gap = options.get("on_gap", self.upkeep.report)
        inbox.on_gap = lambda gap: self.upkeep.call(on_gap, gap)
        if self._settings.on_message is not None:
            inbox.on_message = self._message
            inbox.on_full = self._nobody_iterates
        reader.taker = inbox
        reader.reading = Reading(self._settings.decode, inbox.ack)
        self.upkeep.plan_flush()
        return inbox

    def on(self, node: Listening, type: str, function: Function, channel: str) -> None:
        """Call `function` with each record of a type on a channel; `node` gives subscriptions."""
        if self._handlers is None:
            self._handlers = Handlers(node, self._loop)
        self._handlers.on(type, function, channel)

    def off(self, type: str, function: Function | None) -> None:
        """Forget a function, or all functions of a type."""
        if self._handlers is not None:
            self._handlers.off(type, function)

    def _message(self, record: Record) -> None:
        self.upkeep.call(self._settings.on_message, record)

    def _nobody_iterates(self, patterns: tuple[str, ...]) -> None:
        """Report what would only look as if nothing more was published."""
        said = "its window is full: on_message hears of no more until somebody iterates over it"
        self.upkeep.report(ClientError(f"the subscription of {', '.join(patterns)[:200]}: {said}"))


def _terms(options: PublishOptions | PublishManyOptions, ids: tuple[str, ...] = ()) -> Terms:
    """Return what is asked for, once all of it was checked."""
    if not options:  # nearly always: a publish costs microseconds
        return NO_TERMS
    ttl, wait = check_ttl(options.get("ttl")), options.get("wait")
    check_wait(wait, options.get("timeout", WAIT_SECONDS))
    return Terms(ttl, ids, wait or "")
