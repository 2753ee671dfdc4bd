"""Speak to a linkd daemon from Twisted: the same words as `linkd.client`, with Deferreds.

async def main(reactor):
    async with linkd.client.twisted.connect(reactor) as node:
        await node.publish("orders", {"total": 12})

task.react(lambda reactor: ensureDeferred(main(reactor)))
"""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from linkd.client.address import Address, address
from linkd.client.bodies import batches, check_words, pack
from linkd.client.errors import ClientError, NoDaemon
from linkd.client.observable import Observable, Status
from linkd.client.options import (
    ConnectOptions,
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
from linkd.client.twisted_subscription import Function, Handlers, Inbox, Subscription
from linkd.client.twisted_upkeep import Upkeep
from linkd.core.batch import Record as Encoded
from linkd.core.stream import Published
from linkd.errors import LinkdError

__all__ = ["Node", "Subscription", "connect"]

WAIT_SECONDS: Final = 30.0
GRACE_SECONDS: Final = 1.0

T = TypeVar("T")


def connect(
    reactor: Any, where: str | os.PathLike[str] | None = None, **options: Unpack[ConnectOptions]
) -> Node:
    """Return a daemon to speak to; `async with` starts and closes it, or `start` and `close`.

    Args:
        reactor: The application's.
        where: The daemon's socket, or `http://HOST:PORT`; None: `LINKD_SOCKET`, else the usual one.
        **options: See linkd.client.options.ConnectOptions.

    Raises:
        ValueError: `where` is a URL of another kind.
        TypeError: An option is unknown.
    """
    return Node(reactor, address(where), Settings(**options))


class Node:
    """A daemon, over any number of connections to it."""

    def __init__(self, reactor: Any, where: Address, settings: Settings) -> None:
        self._reactor = reactor
        self._address = where
        self._settings = settings
        self._session = Session(
            settings.producer or secrets.token_hex(16), settings.max_in_flight_bytes
        )
        self._upkeep = Upkeep(reactor, where, settings, self._session)
        self._handlers = Handlers(self)
        self._expiry: DelayedCall | None = None

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
    def status(self) -> Observable[Status]:
        """The connection's state and the links', to be watched."""
        return self._upkeep.status

    def start(self) -> None:
        """Begin to connect, and keep connected until `close`."""
        self._upkeep.start()

    def opened(self, timeout: float | None = None) -> Deferred[None]:
        """Fire once the connection is up; NoDaemon if it isn't within `timeout` seconds."""
        waiting = Deferred.fromCoroutine(self._until_open())
        if timeout is None:
            return waiting

        def late(_: object, seconds: float) -> None:
            reason = self.status.value.reason or "no answer"
            raise NoDaemon(f"no daemon at {self._address} in {seconds:g} s: {reason}")

        return waiting.addTimeout(timeout, self._reactor, late)

    def close(self) -> Deferred[None]:
        """End the connection; what is under way fails with Closed. Fires once all is ended."""
        self._handlers.close()
        if self._expiry is not None and self._expiry.active():
            self._expiry.cancel()
        return Deferred.fromCoroutine(self._upkeep.close())

    def publish(self, channel: str, value: Any, **options: Unpack[PublishOptions]) -> Deferred[int]:
        """Publish one value; fire with its offset once it is on the daemon's disk.

        See `linkd.client.node.Node.publish` for arguments and errors.
        """
        return Deferred.fromCoroutine(self._publish(channel, value, options))

    def publish_many(
        self, channel: str, values: Iterable[Any], **options: Unpack[PublishManyOptions]
    ) -> Deferred[Stored]:
        """Publish many values in batches, in order; fire once all are on the daemon's disk."""
        return Deferred.fromCoroutine(self._publish_many(channel, values, options))

    def flush(self) -> Deferred[None]:
        """Fire once every publish under way is settled."""
        return Deferred.fromCoroutine(self._until_settled())

    def subscribe(self, *patterns: str, **options: Unpack[SubscribeOptions]) -> Subscription:
        """Follow channels: an asynchronous iterator of records, which begins now.

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
        """Call `function` with each record of a type (`*`: any) that arrives from now on.

        Records come one after the other, in order; a Deferred that it returns is waited for.
        Registered twice it is called once. What it raises goes to `on_error`.
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

    async def _until_open(self) -> None:
        while not self._session.open:
            self._check()
            await self._upkeep.changed()

    async def _until_settled(self) -> None:
        self._session.gatherer.seal()
        self._upkeep.flush()
        while len(self._session.flight):
            self._check()
            await self._upkeep.changed()

    async def _publish(self, channel: str, value: Any, options: PublishOptions) -> int:
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
            settled: Deferred[int] = Deferred()
            self._session.gatherer.add(channel, record, ttl, _settle(settled))
            self._upkeep.plan_flush()
            offset = await settled
        await self._wait_for_peer(options, channel, offset + 1 if offset else 0)
        return offset

    async def _publish_many(
        self, channel: str, values: Iterable[Any], options: PublishManyOptions
    ) -> Stored:
        self._check_publish(channel, 0)
        under_way: deque[tuple[int, Deferred[Published]]] = deque()
        for count, records in batches(values, options.get("type", ""), self._settings.encode):
            await self._room()
            under_way.append((count, self._send(channel, count, records, options.get("ttl"))))
        total = Stored(0, 0, 0)
        error: LinkdError | None = None
        for count, settled in under_way:
            try:
                total = plus(total, count, await settled)
            except LinkdError as failed:
                error = error or failed
        if error is not None:
            raise error
        await self._wait_for_peer(options, channel, total.last + 1 if total.last else 0)
        return total

    def _message(self, record: Record) -> None:
        self._upkeep.call(self._settings.on_message, record)

    def _send(
        self,
        channel: str,
        count: int,
        records: bytes,
        ttl: float | None,
        ids: tuple[str, ...] = (),
    ) -> Deferred[Published]:
        """Queue one publish and return its outcome."""
        settled: Deferred[Published] = Deferred()
        self._session.gatherer.seal()
        self._session.flight.add(channel, count, records, _settle(settled), ttl, ids)
        self._upkeep.plan_flush()
        return settled

    def _check_publish(self, channel: str, size: int) -> None:
        """Refuse at once what can only fail."""
        self._check()
        self._session.check_publish(channel, size, self._settings.when_down)

    def _check(self) -> None:
        if self._upkeep.failed is not None:
            raise self._upkeep.failed
        if not self._upkeep.started:
            raise ClientError("the node was not started: `start()`, or `async with`")

    async def _room(self) -> None:
        """Return once there is room for another publish."""
        while self._session.flight.bytes >= self._settings.max_in_flight_bytes:
            self._upkeep.flush()
            self._check()
            await self._upkeep.changed()

    async def _wait_for_peer(
        self, options: PublishOptions | PublishManyOptions, channel: str, next: int
    ) -> None:
        """Return once the peer in `wait` has all below `next`."""
        peer = options.get("wait")
        if not peer:
            return
        waiting: Deferred[None] = Deferred()
        deadline = time.monotonic() + options.get("timeout", WAIT_SECONDS)
        self._session.wait(peer, channel, next, deadline, _settle(waiting))
        self._upkeep.plan_flush()
        self._plan_expiry()
        await waiting

    def _plan_expiry(self) -> None:
        """End the waits whose time is over, also while there is no connection."""
        if self._expiry is not None and self._expiry.active():
            self._expiry.cancel()
        self._expiry = None
        now = time.monotonic()
        deadline = self._session.expire(now - GRACE_SECONDS)
        if deadline is not None:
            left = max(0.0, deadline + GRACE_SECONDS - now)
            self._expiry = self._reactor.callLater(left, self._plan_expiry)


def _settle(deferred: Deferred[T]) -> Callable[[T | LinkdError], None]:
    """Return what settles a Deferred; one that was cancelled is left alone."""

    def settled(outcome: T | LinkdError) -> None:
        if deferred.called:
            return
        if isinstance(outcome, LinkdError):
            deferred.errback(Failure(outcome))
        else:
            deferred.callback(outcome)

    return settled
