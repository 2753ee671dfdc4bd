"""What keeps an asyncio client connected: attempts, delays, silence, hooks, status."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from linkd.client.address import Address
from linkd.client.backoff import Backoff
from linkd.client.errors import Closed, NoDaemon, Refused, Replaced
from linkd.client.observable import Observable, State, Status
from linkd.client.options import REJECTED, Settings
from linkd.client.session import Session
from linkd.client.wire import Wire, dial
from linkd.errors import LinkdError

_log = logging.getLogger("linkd.client")

CLOSE_SECONDS = 1.0


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


class Upkeep:
    """Connects, and connects again, until closed or out of attempts.

    Attributes:
        status: The connection's state and the links'.
        failed: Why nothing more is to be expected, or None.
        started: Whether it was started.
    """

    def __init__(self, where: Address, settings: Settings, session: Session) -> None:
        self.status = Watched(Status())
        self.failed: LinkdError | None = None
        self._address = where
        self._settings = settings
        self._session = session
        self._backoff = Backoff(settings.min_delay, settings.max_delay)
        self._wire: Wire | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._flush_planned = False
        session.on_open = self._opened
        session.on_links = self._links_changed

    @property
    def started(self) -> bool:
        """Whether it was started."""
        return self._task is not None

    def start(self) -> None:
        """Begin to connect."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep_connected())

    async def close(self) -> None:
        """End the connection and the attempts; what is under way fails with Closed."""
        if self.failed is None:
            self.failed = Closed("the node was closed")
        self.flush()
        self._session.close(self.failed)
        if (wire := self._wire) is not None:
            wire.close()
            await asyncio.wait([wire.lost], timeout=CLOSE_SECONDS)
            wire.abort()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._set(state="stopped", retry_seconds=None, reason=str(self.failed))
        self.wake()

    def plan_flush(self) -> None:
        """Send once this turn of the loop is over, so that what comes together goes together."""
        if not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what the session wants sent."""
        self._flush_planned = False
        if self._wire is not None:
            self._wire.flush()

    async def changed(self) -> None:
        """Return when something may have changed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def wake(self) -> None:
        """Let go on who waits for a change."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def report(self, error: Exception) -> None:
        """Tell the application what went wrong: `on_error`, or the log where there is none."""
        if self._settings.on_error is None:
            _log.warning("%s", error, exc_info=None if isinstance(error, LinkdError) else error)
        else:
            self.call(self._settings.on_error, error)

    def call(self, hook: Callable[..., object] | None, *arguments: object) -> None:
        """Call a hook of the application; what it raises must not end the connection."""
        if hook is None:
            return
        try:
            hook(*arguments)
        except Exception as error:  # noqa: BLE001 - it belongs to the application
            if hook is self._settings.on_error:
                _log.exception("on_error failed")
            else:
                self.report(error)

    async def _keep_connected(self) -> None:
        while self.failed is None:
            self._set(state="connecting", retry_seconds=None)
            try:
                state, reason, delay = await self._one_connection()
            except LinkdError as error:
                state, reason, delay = self._attempt_failed(error)
            finally:
                self._wire = None
            if self.failed is None:
                failures = self._backoff.failures
                self._set(state=state, attempts=failures, retry_seconds=delay, reason=reason)
                await asyncio.sleep(delay)

    async def _one_connection(self) -> tuple[State, str, float]:
        """Connect and return, once the connection is gone, why, and when to connect again."""
        wire = await dial(self._address, self._settings, self._session, self._received)
        self._wire = wire
        wire.flush()
        began = time.monotonic()
        reason = await self._until_lost(wire)
        self.call(self._settings.on_close, reason)
        if self._session.displaced:
            self._give_up(Replaced(reason))
        return "waiting", reason, self._backoff.lost(time.monotonic() - began, random.random())

    def _attempt_failed(self, error: LinkdError) -> tuple[State, str, float]:
        """Tell of a refusal, and give up where that was asked for."""
        rejected = isinstance(error, Refused) and error.status in REJECTED
        if rejected:
            self.report(error)
        delay = self._backoff.failed(random.random())
        most = self._settings.max_attempts
        if most is not None and self._backoff.failures >= most:
            self._give_up(error)
        return "rejected" if rejected else "waiting", str(error), delay

    def _give_up(self, error: LinkdError) -> None:
        """Expect nothing more: all that is under way fails with `error`."""
        self.failed = error
        self._session.close(error)
        self._set(state="stopped", attempts=self._backoff.failures, reason=str(error))
        self.wake()

    async def _until_lost(self, wire: Wire) -> str:
        """Return why the connection is gone; end it when it falls silent."""
        silence = self._settings.silence_timeout
        loop = asyncio.get_running_loop()
        while not wire.lost.done():
            left = wire.heard + silence - loop.time()
            await asyncio.wait([wire.lost], timeout=max(left, 0.0))
            if wire.heard + silence <= loop.time():
                wire.abort(NoDaemon(f"nothing was heard for {silence:g} s"))
        return wire.reason

    def _opened(self) -> None:
        """Hear of the session that the daemon has answered."""
        self._set(state="up", attempts=0, retry_seconds=None, reason=None)
        self.call(self._settings.on_open)
        self.wake()

    def _links_changed(self, links: dict[str, str]) -> None:
        self._set(links=links)

    def _received(self) -> None:
        if self._waiters:
            self.wake()

    def _set(self, **changes: Any) -> None:
        self.status.set(msgspec.structs.replace(self.status.value, **changes))
