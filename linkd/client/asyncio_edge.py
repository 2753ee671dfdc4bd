"""The asyncio edge of the client: its loop, its connections, a status to iterate over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, cast

from linkd.client.address import Address
from linkd.client.errors import ClientError, NoDaemon
from linkd.client.observable import Observable, Status
from linkd.client.options import Settings
from linkd.client.session import Session
from linkd.client.wire import Wire, bearer
from linkd.errors import LinkdError

_log = logging.getLogger("linkd.client")


class AsyncioLoop:
    """The running loop as `linkd.client.loop.Loop`."""

    cancelled: type[BaseException] = asyncio.CancelledError

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds them weakly
        self._bound: asyncio.AbstractEventLoop | None = None

    def bind(self) -> None:
        """Belong to the loop that runs now."""
        self._bound = asyncio.get_running_loop()

    def check(self) -> None:
        """Raise ClientError where another loop runs than the one that it belongs to."""
        self._running()

    def _running(self) -> asyncio.AbstractEventLoop:
        """Return the loop that runs."""
        loop = asyncio.get_running_loop()
        if loop is not self._bound and self._bound is not None:
            raise ClientError(
                "the node belongs to another event loop, in which it was started: connect in each"
            )
        return loop

    def time(self) -> float:
        """Return monotonic seconds."""
        return asyncio.get_running_loop().time()

    def promise(self) -> tuple[Awaitable[Any], Callable[[Any], None]]:
        """Return a future, and what settles it; nobody has to await it."""
        future: asyncio.Future[Any] = self._running().create_future()

        def settle(outcome: Any) -> None:
            if future.done():
                return
            if isinstance(outcome, LinkdError):
                future.set_exception(outcome)
                future.exception()  # it counts as seen
            else:
                future.set_result(outcome)

        return future, settle

    def soon(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call once this turn is over."""
        return asyncio.get_running_loop().call_soon(call).cancel

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call after so many seconds."""
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
        """Return whether the task that runs is being cancelled."""
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        await asyncio.sleep(seconds)

    def complain(self, said: str, error: Exception) -> None:
        """Log what nobody has asked to be told."""
        _log.warning("%s", said, exc_info=None if isinstance(error, LinkdError) else error)


class Watched(Observable[Status]):
    """The status, which can also be iterated over as it changes."""

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
    where: Address, settings: Settings, session: Session, changed: Callable[[], None]
) -> Wire:
    """Open one connection, up to the daemon's answer.

    Args:
        where: The daemon.
        settings: Key, TLS and time-out of the attempt.
        session: What the connection serves.
        changed: Called after each piece of the daemon's that was taken.

    Raises:
        NoDaemon: Nobody answers there, or not in time.
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


async def _connect(where: Address, settings: Settings, wire: AsyncioWire) -> None:
    loop = asyncio.get_running_loop()
    if where.socket:
        await loop.create_unix_connection(lambda: wire, where.socket)
    else:
        tls = (settings.tls or True) if where.tls else None
        await loop.create_connection(lambda: wire, where.host, where.port, ssl=tls)


class AsyncioWire(Wire, asyncio.Protocol):
    """A connection whose bytes asyncio carries."""

    _transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the upgrade's request."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Take bytes of the daemon."""
        self.took(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        if exc is not None and self.failure is None:
            self.failure = ClientError(str(exc))
        self.ended()

    def _writable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def _write(self, pieces: Any) -> None:
        if self._transport is not None:
            self._transport.write(pieces)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
