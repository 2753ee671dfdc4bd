"""Speak to a linkd daemon from Twisted: the same words as `linkd.client`, with Deferreds.

async def main(reactor):
    async with linkd.client.twisted.connect(reactor) as node:
        await node.publish("orders", {"total": 12})

task.react(lambda reactor: ensureDeferred(main(reactor)))
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Unpack

from twisted.internet.defer import Deferred

from linkd.client.address import Address, address
from linkd.client.calls import Calls
from linkd.client.face import Face
from linkd.client.observable import Observable, Status
from linkd.client.options import (
    ConnectOptions,
    PublishManyOptions,
    PublishOptions,
    Settings,
    Stored,
    plus,
)
from linkd.client.subscription import Records
from linkd.client.twisted_edge import Dialer, TwistedLoop
from linkd.errors import LinkdError

__all__ = ["Node", "Subscription", "connect"]


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


class Subscription(Records):
    """An asynchronous iterator of records; over reconnects none comes twice, none is left out.

    It ends with `close`, or at the end of an `async with`. One at a time may iterate over it.
    """

    def close(self) -> None:
        """End it; the iteration ends once all that came was taken."""
        self._inbox.close()


class Node(Face[Observable[Status], Subscription]):
    """A daemon, over any number of connections to it."""

    def __init__(self, reactor: Any, where: Address, settings: Settings) -> None:
        self._reactor = reactor
        status = Observable(Status())
        loop, dial = TwistedLoop(reactor), Dialer(reactor).dial
        super().__init__(Calls(loop, dial, where, settings, status), status, Subscription)

    def opened(self, timeout: float | None = None) -> Deferred[None]:
        """Fire once the connection is up; NoDaemon if it isn't within `timeout` seconds."""
        waiting = Deferred.fromCoroutine(self._calls.until_open())
        if timeout is None:
            return waiting

        def late(_: object, seconds: float) -> None:
            raise self._calls.not_open(seconds)

        return waiting.addTimeout(timeout, self._reactor, late)

    def close(self) -> Deferred[None]:
        """End the connection; what is under way fails with Closed. Fires once all is ended."""
        return Deferred.fromCoroutine(self._calls.close())

    def publish(self, channel: str, value: Any, **options: Unpack[PublishOptions]) -> Deferred[int]:
        """Publish one value; fire with its offset once it is on the daemon's disk.

        See `linkd.client.node.Node.publish` for arguments and errors.
        """
        return Deferred.fromCoroutine(self._calls.publish(channel, value, options))

    def publish_many(
        self, channel: str, values: Iterable[Any], **options: Unpack[PublishManyOptions]
    ) -> Deferred[Stored]:
        """Publish many values in batches, in order; fire once all are on the daemon's disk."""
        return Deferred.fromCoroutine(self._publish_many(channel, values, options))

    def flush(self) -> Deferred[None]:
        """Fire once every publish under way is settled."""
        return Deferred.fromCoroutine(self._calls.until_settled())

    async def _publish_many(
        self, channel: str, values: Iterable[Any], options: PublishManyOptions
    ) -> Stored:
        total = Stored(0, 0, 0)
        error: LinkdError | None = None
        for count, outcome in await self._calls.send_many(channel, values, options):
            try:
                total = plus(total, count, await outcome)
            except LinkdError as failed:
                error = error or failed
        if error is not None:
            raise error
        await self._calls.wait_as_asked(options, channel, total.last)
        return total
