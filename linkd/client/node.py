"""A daemon as asyncio applications see it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from linkd.client.address import Address
from linkd.client.bodies import batches, check_words, pack
from linkd.client.errors import ClientError, NoDaemon
from linkd.client.handlers import Function, Handlers
from linkd.client.options import (
    PublishManyOptions,
    PublishOptions,
    Settings,
    Stored,
    SubscribeOptions,
    plus,
)
from linkd.client.reader import DEFAULT_WINDOW
from linkd.client.record import Reading, Record
from linkd.client.session import Session
from linkd.client.subscription import Inbox, Subscription
from linkd.client.upkeep import Upkeep, Watched
from linkd.core.batch import Record as Encoded
from linkd.core.stream import Published
from linkd.errors import LinkdError

WAIT_SECONDS: Final = 30.0
GRACE_SECONDS: Final = 1.0
"""How much longer than the daemon a client waits before it says itself that the time is over."""

T = TypeVar("T")


class Node:
    """A daemon, over any number of connections to it.

    Made by `linkd.client.connect`; `async with` starts and closes it.
    """

    def __init__(self, where: Address, settings: Settings) -> None:
        self._address = where
        self._settings = settings
        self._session = Session(
            settings.producer or secrets.token_hex(16), settings.max_in_flight_bytes
        )
        self._upkeep = Upkeep(where, settings, self._session)
        self._handlers = Handlers(self)
        self._expiry: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def name(self) -> str:
        """The daemon's node name; empty until it was reached."""
        return self._session.node

    @property
    def status(self) -> Watched:
        """The connection's state and the links', to be watched."""
        return self._upkeep.status

    def start(self) -> None:
        """Begin to connect, and keep connected until `close`."""
        self._upkeep.start()

    async def opened(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Return once the connection is up.

        Args:
            timeout: Seconds; None waits for ever.

        Raises:
            NoDaemon: It isn't in time; or the last attempt allowed has failed.
            Closed: The node was closed.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self._session.open:
                    self._check()
                    await self._upkeep.changed()
        except TimeoutError:
            reason = self.status.value.reason or "no answer"
            raise NoDaemon(f"no daemon at {self._address} in {timeout:g} s: {reason}") from None

    async def close(self) -> None:
        """End the connection; what is under way fails with Closed."""
        self._handlers.close()
        if self._expiry is not None:
            self._expiry.cancel()
        await self._upkeep.close()

    async def publish(self, channel: str, value: Any, **options: Unpack[PublishOptions]) -> int:
        """Publish one value; return its offset once it is on the daemon's disk.

        Publishes that are under way together are sent and stored together.

        Args:
            channel: A channel's name.
            value: Bytes, text, or what JSON can say; or whatever `encode` takes.
            **options: See PublishOptions.

        Returns:
            The offset; of the first publish where the id was published before; 0 if volatile.

        Raises:
            PublishError: It was refused: ChannelRefused, BodyTooLarge, LogFull, BadRecord.
            Refused: It was refused for another reason, or the peer does not get that channel.
            TimedOut: It is stored, but the peer did not have it in time.
            NoDaemon: There is no connection, and `when_down` is `fail`.
        """
        type_, id_ = options.get("type", ""), options.get("id", "")
        check_words(type_, id_)
        body, content_type = self._settings.encode(value)
        self._check_publish(channel, len(body))
        await self._room()
        record = Encoded(body, type_, id_, content_type)
        ttl = options.get("ttl")
        if id_:
            offset = (await self._send(channel, 1, pack([record]), ttl, (id_,))).offset
        else:
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._session.gatherer.add(channel, record, ttl, _settle(future))
            self._upkeep.plan_flush()
            offset = await future
        if peer := options.get("wait"):
            timeout = options.get("timeout", WAIT_SECONDS)
            await self.wait_for(peer, channel, offset + 1 if offset else 0, timeout)
        return offset

    async def publish_many(
        self, channel: str, values: Iterable[Any], **options: Unpack[PublishManyOptions]
    ) -> Stored:
        """Publish many values in batches, in order; return once all are on the daemon's disk.

        Raises:
            PublishError: As `publish`; other batches than the one refused may be stored.
        """
        total = await (await self.enqueue(channel, values, **options))
        if peer := options.get("wait"):
            timeout = options.get("timeout", WAIT_SECONDS)
            await self.wait_for(peer, channel, total.last + 1 if total.last else 0, timeout)
        return total

    async def enqueue(
        self, channel: str, values: Iterable[Any], **options: Unpack[PublishManyOptions]
    ) -> asyncio.Future[Stored]:
        """Take many values; return once there was room for all, with what to await for the rest.

        What is enqueued first is stored first. `wait` and `timeout` do not count here.
        """
        self._check_publish(channel, 0)
        counts: list[int] = []
        under_way: list[asyncio.Future[Published]] = []
        for count, records in batches(values, options.get("type", ""), self._settings.encode):
            await self._room()
            counts.append(count)
            under_way.append(self._send(channel, count, records, options.get("ttl")))

        async def settled() -> Stored:
            total = Stored(0, 0, 0)
            for count, one in zip(counts, await asyncio.gather(*under_way), strict=True):
                total = plus(total, count, one)
            return total

        return asyncio.ensure_future(settled())

    async def wait_for(
        self,
        peer: str,
        channel: str,
        next: int,
        timeout: float = WAIT_SECONDS,  # noqa: ASYNC109
    ) -> None:
        """Return once `peer` has everything of `channel` below offset `next` on disk.

        Args:
            peer: Its name.
            channel: One that it gets.
            next: One more than the last offset concerned; 0 for all that there is now.
            timeout: Seconds.

        Raises:
            TimedOut: Not in time.
            Refused: It does not get that channel, or there is no such peer.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: LinkdError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        deadline = time.monotonic() + timeout
        self._session.wait(peer, channel, next, deadline, done)
        self._upkeep.plan_flush()
        self._plan_expiry()
        await future

    async def flush(self) -> None:
        """Return once every publish under way is settled."""
        self._upkeep.flush()
        self._session.gatherer.seal()
        while len(self._session.flight):
            self._check()
            await self._upkeep.changed()

    def subscribe(self, *patterns: str, **options: Unpack[SubscribeOptions]) -> Subscription:
        """Follow channels: an asynchronous iterator of records, which begins now.

        Args:
            *patterns: Channels; `*` stands for one word, `>` last for the rest.
            **options: See SubscribeOptions.

        Raises:
            ChannelRefused: A pattern is malformed. What the daemon refuses, the iterator raises.
        """
        self._check()
        reader = self._session.subscribe(
            patterns,
            options.get("start", "latest"),
            options.get("consumer", ""),
            options.get("window", DEFAULT_WINDOW),
        )
        inbox = Inbox(self._session, reader, self._upkeep.plan_flush)
        inbox.on_gap = options.get("on_gap", self.report)
        if self._settings.on_message is not None:
            inbox.on_message = self._message
        reader.taker = inbox
        reader.reading = Reading(self._settings.decode, inbox.ack)
        self._upkeep.plan_flush()
        return Subscription(inbox)

    def on(self, type: str, function: Function, channel: str = ">") -> None:
        """Call `function` with each record of a type that arrives on a channel from now on.

        Records come one after the other, in order; a coroutine function is awaited. Registered
        twice it is called once, also after reconnects. What it raises goes to `on_error`.

        Args:
            type: The records' type; `*` for every one.
            function: Takes a record.
            channel: A channel or pattern.
        """
        self._handlers.on(type, function, channel)

    def off(self, type: str, function: Function | None = None) -> None:
        """Forget a function, or all functions of a type."""
        self._handlers.off(type, function)

    def listen(self, pattern: str) -> Subscription:
        """Begin the subscription of `on`'s functions."""
        return self.subscribe(pattern)

    def report(self, error: Exception) -> None:
        """Tell the application what went wrong: `on_error`, or the log where there is none."""
        self._upkeep.report(error)

    def _message(self, record: Record) -> None:
        self._upkeep.call(self._settings.on_message, record)

    def _send(
        self,
        channel: str,
        count: int,
        records: bytes,
        ttl: float | None,
        ids: tuple[str, ...] = (),
    ) -> asyncio.Future[Published]:
        """Queue one publish and return its outcome."""
        future: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        self._session.gatherer.seal()
        self._session.flight.add(channel, count, records, _settle(future), ttl, ids)
        self._upkeep.plan_flush()
        return future

    def _check_publish(self, channel: str, size: int) -> None:
        """Refuse at once what can only fail."""
        self._check()
        self._session.check_publish(channel, size, self._settings.when_down)

    def _check(self) -> None:
        if self._upkeep.failed is not None:
            raise self._upkeep.failed
        if not self._upkeep.started:
            raise ClientError("the node was not started: `async with connect() as node`")

    async def _room(self) -> None:
        """Return once there is room for another publish."""
        while self._session.flight.bytes >= self._settings.max_in_flight_bytes:
            self._upkeep.flush()
            self._check()
            await self._upkeep.changed()

    def _plan_expiry(self) -> None:
        """End the waits whose time is over, also while there is no connection."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        now = time.monotonic()
        deadline = self._session.expire(now - GRACE_SECONDS)
        if deadline is not None:
            later = asyncio.get_running_loop().call_later
            self._expiry = later(deadline + GRACE_SECONDS - now, self._plan_expiry)


def _settle(future: asyncio.Future[T]) -> Callable[[T | LinkdError], None]:
    """Return what settles a future; one that was cancelled is left alone."""

    def settled(outcome: T | LinkdError) -> None:
        if future.done():
            return
        if isinstance(outcome, LinkdError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    return settled
