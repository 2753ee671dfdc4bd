"""A daemon as asyncio applications see it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine, Generator, Iterable
from typing import Any, Unpack

from linkd.client.address import Address
from linkd.client.asyncio_edge import AsyncioLoop, Watched, dial
from linkd.client.calls import WAIT_SECONDS, Calls
from linkd.client.face import Face
from linkd.client.observable import Status
from linkd.client.options import PublishManyOptions, PublishOptions, Settings, Stored, plus
from linkd.client.subscription import Inbox, Records
from linkd.core.stream import Published
from linkd.errors import LinkdError

__all__ = ["Enqueued", "Node", "Subscription"]


class _Hold:
    """Ends a subscription once neither the iterator nor a record of it is held any more."""

    def __init__(self, inbox: Inbox, loop: asyncio.AbstractEventLoop) -> None:
        self._inbox = inbox
        self._loop = loop

    def ack(self, next: int, era: int) -> Awaitable[None]:
        return self._inbox.ack(next, era)

    def __del__(self) -> None:
        if not self._inbox.over:
            with contextlib.suppress(RuntimeError):  # The loop is closed: so is the connection.
                self._loop.call_soon_threadsafe(self._inbox.close)


class Subscription(Records):
    """An asynchronous iterator of records; over reconnects none comes twice, none is left out.

    It ends with `close`, at the end of an `async with`, or when nobody holds it or a record of it
    any more. One at a time may iterate over it.
    """

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(inbox)
        self._loop = asyncio.get_running_loop()
        self._hold = _Hold(inbox, self._loop)
        inbox.hold(self._hold.ack)

    async def close(self) -> None:
        """End it; the iteration ends once all that came was taken."""
        self._inbox.close()

    def __del__(self) -> None:
        if not self._inbox.over:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._inbox.abandon)


class Enqueued:
    """Many values on their way: await it to know where they are stored.

    They go on where such an await is cancelled.

    Attributes:
        stored: Where those are of which it is known, also where others were refused.
    """

    def __init__(self, under_way: list[tuple[int, Awaitable[Published]]]) -> None:
        self.stored = Stored(0, 0, 0)
        self._task = asyncio.ensure_future(self._settle(under_way))
        self._task.add_done_callback(_seen)

    def __await__(self) -> Generator[Any, None, Stored]:
        return asyncio.shield(self._task).__await__()

    def done(self) -> bool:
        """Return whether all of it is settled."""
        return self._task.done()

    async def _settle(self, under_way: list[tuple[int, Awaitable[Published]]]) -> Stored:
        error: LinkdError | None = None
        for count, outcome in under_way:
            try:
                self.stored = plus(self.stored, count, await outcome)
            except LinkdError as failed:
                error = error or failed
        if error is not None:
            raise error
        return self.stored


class Node(Face[Watched, Subscription]):
    """A daemon, over any number of connections to it.

    Made by `linkd.client.connect`; `async with` starts and closes it.
    """

    def __init__(self, where: Address, settings: Settings) -> None:
        status = Watched(Status())
        calls = Calls(AsyncioLoop(), dial, where, settings, status)
        super().__init__(calls, status, Subscription)

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
                await self._calls.until_open()
        except TimeoutError:
            raise self._calls.not_open(timeout or 0.0) from None

    async def close(self) -> None:
        """End the connection; what is under way fails with Closed."""
        await self._calls.close()

    def publish(
        self, channel: str, value: Any, **options: Unpack[PublishOptions]
    ) -> Coroutine[Any, Any, int]:
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
            OffsetUnknown: It is stored, but the daemon no longer knows where.
            NoDaemon: There is no connection, and `when_down` is `fail`.
        """
        # the coroutine itself: another around it would cost each publish a microsecond
        return self._calls.publish(channel, value, options)

    async def publish_many(
        self, channel: str, values: Iterable[Any], **options: Unpack[PublishManyOptions]
    ) -> Stored:
        """Publish many values in batches, in order; return once all are on the daemon's disk.

        Raises:
            PublishError: As `publish`; other batches than the one refused may be stored.
        """
        total = await (await self.enqueue(channel, values, **options))
        await self._calls.wait_as_asked(options, channel, total.last)
        return total

    async def enqueue(
        self, channel: str, values: Iterable[Any], **options: Unpack[PublishManyOptions]
    ) -> Enqueued:
        """Take many values; return once there was room for all, with what to await for the rest.

        What is enqueued first is stored first. Nothing waits for the peer in `wait` here.
        """
        return Enqueued(await self._calls.send_many(channel, values, options))

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
        await self._calls.wait_for(peer, channel, next, timeout)

    async def flush(self) -> None:
        """Return once every publish under way is settled."""
        await self._calls.until_settled()


def _seen(task: asyncio.Future[Stored]) -> None:
    """Take note of a failure: nobody has to await what was enqueued."""
    if not task.cancelled():
        task.exception()
