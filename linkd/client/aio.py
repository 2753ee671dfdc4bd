"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable
from typing import Any, Unpack

from linkd.client.api import WAIT_SECONDS, NodeBase, PublishTotal
from linkd.client.connection import Wire, bearer
from linkd.client.errors import ClientError, NoDaemon
from linkd.client.options import (
    Address,
    ConnectSettings,
    Observable,
    PublishManyOptions,
    PublishOptions,
    Status,
    Stored,
)
from linkd.client.session import DaemonSession
from linkd.client.subscription import RecordIterator, RecordQueue
from linkd.errors import LinkdError
from linkd.protocol.client import Published

_log = logging.getLogger("linkd.client")


class AsyncioLoop:
    """The running loop as `linkd.client.connection.Loop`."""

    cancelled: type[BaseException] = asyncio.CancelledError

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds them weakly
        self._bound: asyncio.AbstractEventLoop | None = None

    def bind(self) -> None:
        """Bind to the running loop."""
        self._bound = asyncio.get_running_loop()

    def check(self) -> None:
        """Raise ClientError if another loop runs than the one it is bound to."""
        if self._bound is not None and asyncio.get_running_loop() is not self._bound:
            raise ClientError(
                "the node belongs to another event loop, in which it was started: connect in each"
            )

    def time(self) -> float:
        """Return monotonic seconds."""
        return asyncio.get_running_loop().time()

    def promise(self) -> asyncio.Future[Any]:
        """Return a future, which `settle` settles; awaiting it is optional."""
        loop = asyncio.get_running_loop()
        if loop is not self._bound:
            self.check()
        return loop.create_future()

    def settle(self, promise: asyncio.Future[Any], outcome: Any) -> None:
        """Set the future's result or exception, unless it is done."""
        if promise.done():
            return
        if isinstance(outcome, BaseException):
            promise.set_exception(outcome)
            promise.exception()  # it counts as seen
        else:
            promise.set_result(outcome)

    def is_settled(self, promise: asyncio.Future[Any]) -> bool:
        """Return whether the future is done."""
        return promise.done()

    def soon(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call after this iteration of the loop."""
        return asyncio.get_running_loop().call_soon(call).cancel

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call after `seconds`."""
        return asyncio.get_running_loop().call_later(seconds, call).cancel

    def run(self, coroutine: Coroutine[Any, Any, None]) -> Callable[[], Awaitable[object]]:
        """Run a coroutine as a task."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def cancel() -> Awaitable[object]:
            task.cancel()
            return asyncio.gather(task, return_exceptions=True)

        return cancel

    def is_cancelled(self) -> bool:
        """Return whether the running task is being cancelled."""
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)

    def complain(self, message: str, error: Exception) -> None:
        """Log an error that no handler wants."""
        _log.warning("%s", message, exc_info=None if isinstance(error, LinkdError) else error)


class StatusWatcher(Observable[Status]):
    """The status; iterating over it yields its changes."""

    async def __aiter__(self) -> AsyncIterator[Status]:
        """Yield the present status and each later one, until it is `stopped` by a close."""
        changes: asyncio.Queue[Status] = asyncio.Queue()
        unsubscribe = self.subscribe(changes.put_nowait)
        try:
            while True:
                status = await changes.get()
                yield status
                if status.state == "stopped" and status.reason is not None:
                    return
        finally:
            unsubscribe()


async def dial(
    where: Address, settings: ConnectSettings, session: DaemonSession, changed: Callable[[], None]
) -> Wire:
    """Open one connection, up to the daemon's answer.

    Args:
        where: The daemon.
        settings: Key, TLS and time-out of the attempt.
        session: What the connection serves.
        changed: Called after each piece of the daemon's that was taken.

    Raises:
        NoDaemon: Nothing answers there, or not in time.
        Refused: The daemon refused the connection.
    """
    seconds = settings.connect_timeout
    wire: AsyncioWire | None = None
    try:
        async with asyncio.timeout(seconds):
            headers = await bearer(settings.key, AsyncioLoop.cancelled)
            wire = AsyncioWire(where, headers, session, changed, AsyncioLoop())
            await _connect(where, settings, wire)
            await wire.opened
    except TimeoutError:
        if wire is not None:
            wire.abort()
        raise NoDaemon(f"no daemon at {where}: no answer in {seconds:g} s") from None
    except OSError as error:
        raise NoDaemon(f"no daemon at {where}: {error.strerror or error}") from None
    except asyncio.CancelledError:
        if wire is not None:
            wire.abort()
        raise
    return wire


async def _connect(where: Address, settings: ConnectSettings, wire: AsyncioWire) -> None:
    loop = asyncio.get_running_loop()
    if where.socket:
        await loop.create_unix_connection(lambda: wire, where.socket)
    else:
        tls = (settings.tls or True) if where.tls else None
        await loop.create_connection(lambda: wire, where.host, where.port, ssl=tls)


class AsyncioWire(Wire, asyncio.Protocol):
    """A connection whose bytes asyncio carries."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the upgrade's request."""
        self.transport = transport
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Process bytes from the daemon."""
        self.took(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection was lost."""
        if exc is not None and self.failure is None:
            self.failure = ClientError(str(exc))
        self.ended()

    def _writable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _Hold:
    """Ends a subscription once neither its iterator nor a record, which refer to it, remains."""

    def __init__(self, inbox: RecordQueue, loop: asyncio.AbstractEventLoop) -> None:
        self._inbox = inbox
        self._loop = loop

    def __del__(self) -> None:
        if not self._inbox.over:
            with contextlib.suppress(RuntimeError):  # The loop is closed: so is the connection.
                self._loop.call_soon_threadsafe(self._inbox.close)


class Subscription(RecordIterator):
    """An asynchronous iterator of records; across reconnects none is repeated or skipped.

    It ends with `close`, at the end of an `async with`, or when neither it nor a record of it is
    referenced any more. Only one task at a time may iterate over it.
    """

    def __init__(self, inbox: RecordQueue) -> None:
        super().__init__(inbox)
        self._loop = asyncio.get_running_loop()
        self._hold = _Hold(inbox, self._loop)
        inbox.hold(self._hold)

    async def close(self) -> None:
        """End the subscription; the iteration ends after the records that have arrived."""
        self.end()

    def __del__(self) -> None:
        if not self._inbox.over:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._inbox.abandon)


class Enqueued(PublishTotal):
    """Many values that are being published: await it for their offsets.

    Cancelling the await does not cancel the publishes.

    Attributes:
        done: Returns whether all values are settled.
    """

    def __init__(self, under_way: list[tuple[int, Awaitable[Published]]]) -> None:
        super().__init__()
        self._task = asyncio.ensure_future(self.settle(under_way))
        self._task.add_done_callback(_seen)
        self.done = self._task.done

    def __await__(self) -> Generator[Any, None, Stored]:
        return asyncio.shield(self._task).__await__()


class Node(NodeBase[StatusWatcher, Subscription]):
    """A client of one daemon, across reconnects.

    Made by `linkd.client.connect`; `async with` starts and closes it.
    """

    def __init__(self, where: Address, settings: ConnectSettings) -> None:
        status = StatusWatcher(Status())
        super().__init__(AsyncioLoop(), dial, where, settings, status, Subscription)

    async def opened(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Return once the connection is up.

        Args:
            timeout: Seconds; None waits forever.

        Raises:
            NoDaemon: It was not up in time, or the last allowed attempt failed.
            Closed: The node was closed.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._until_open()
        except TimeoutError:
            raise self._not_open(timeout or 0.0) from None

    async def close(self) -> None:
        """Close the connection; pending operations fail with Closed."""
        await self._close()

    def publish(
        self, channel: str, value: Any, **options: Unpack[PublishOptions]
    ) -> Coroutine[Any, Any, int]:
        """Publish one value; return its offset once it is on the daemon's disk.

        Concurrent publishes are sent and stored in batches.

        Args:
            channel: A channel's name.
            value: Bytes, text or a JSON value; or whatever `encode` accepts.
            **options: See PublishOptions.

        Returns:
            The offset; that of the first publish if the id was published before; 0 if volatile.

        Raises:
            PublishError: It was refused: ChannelRefused, BodyTooLarge, LogFull, BadRecord.
            Refused: It was refused for another reason, or the peer does not get that channel.
            TimedOut: It is stored, but the peer did not receive it in time.
            OffsetUnknown: It is stored, but the daemon no longer knows where.
            NoDaemon: There is no connection, and `when_down` is `fail`.
        """
        # the coroutine itself: another around it would cost each publish a microsecond
        return self._publish(channel, value, options)

    async def publish_many(
        self, channel: str, values: Iterable[Any], **options: Unpack[PublishManyOptions]
    ) -> Stored:
        """Publish many values in batches, in order; return once all are on the daemon's disk.

        Raises:
            PublishError: As `publish`; other batches than the one refused may be stored.
        """
        total = await (await self.enqueue(channel, values, **options))
        await self._wait_as_asked(options, channel, total.last)
        return total

    async def enqueue(
        self, channel: str, values: Iterable[Any], **options: Unpack[PublishManyOptions]
    ) -> Enqueued:
        """Enqueue many values; return once there is room for all, with the pending result.

        Values are stored in the order of the calls. The option `wait` has no effect here.
        """
        return Enqueued(await self._send_many(channel, values, options))

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
            channel: A channel that it receives.
            next: One more than the last offset concerned; 0 for everything published so far.
            timeout: Seconds.

        Raises:
            TimedOut: Not in time.
            Refused: The peer does not receive that channel, or there is no such peer.
        """
        await self._wait_for(peer, channel, next, timeout)

    async def flush(self) -> None:
        """Return once every pending publish is settled."""
        await self._until_settled()


def _seen(task: asyncio.Future[Stored]) -> None:
    """Mark a failure as handled: awaiting what was enqueued is optional."""
    if not task.cancelled():
        task.exception()
