"""What keeps a client connected, on any loop: attempts, delays, silence, hooks, status."""

from __future__ import annotations

import inspect
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from linkd.client.backoff import Backoff
from linkd.client.errors import ClientError, Closed, NoDaemon, Refused, Replaced
from linkd.client.loop import Loop
from linkd.client.observable import Observable, State, Status
from linkd.client.options import REJECTED, Settings
from linkd.client.session import Session
from linkd.client.wire import Wire
from linkd.errors import LinkdError

CLOSE_SECONDS: Final = 1.0
REPORT_SECONDS: Final = 60.0
"""While the daemon cannot be reached, the same reason is reported so often."""

Dial = Callable[[Callable[[], None]], Awaitable[Wire]]
"""Opens one connection, up to the daemon's answer; raises NoDaemon or Refused. What it is given is
called after each piece of the daemon's."""


class Upkeep:
    """Connects, and connects again, until closed or out of attempts.

    Attributes:
        failed: Why nothing more is to be expected, or None.
        started: Whether it was started.
        on_wake: Called whenever something may have changed.
        on_flush: Called whenever what the session wants sent was sent, if there is a connection.

    Args:
        loop: The event loop.
        dial: Opens a connection.
        settings: Delays, time-outs and hooks.
        session: What the connections serve.
        status: The connection's state and the links', kept right from here on.
        max_delay: The longest delay where the settings have none.
    """

    def __init__(
        self,
        loop: Loop,
        dial: Dial,
        settings: Settings,
        session: Session,
        status: Observable[Status],
        max_delay: float,
    ) -> None:
        self.failed: LinkdError | None = None
        self.started = False
        self._loop = loop
        self._dial = dial
        self._settings = settings
        self._session = session
        self._status = status
        self._backoff = Backoff(settings.min_delay, settings.max_delay or max_delay)
        self._wire: Wire | None = None
        self._cancel: Callable[[], Awaitable[object]] | None = None
        self._waiters: list[Callable[[None], None]] = []
        self._flush_off: Callable[[], None] | None = None
        self.on_wake: Callable[[], None] = _nothing
        self.on_flush: Callable[[], None] = _nothing
        self._reported: tuple[str, float] | None = None
        status.call = self.call
        session.on_open = self._opened
        session.on_links = self._links_changed

    def start(self) -> None:
        """Begin to connect."""
        if not self.started:
            self._loop.bind()
            self.started = True
            self._cancel = self._loop.run(self._keep_connected())

    async def close(self) -> None:
        """End the connection and the attempts; what is under way fails with Closed."""
        if self.failed is None:
            self.failed = Closed("the node was closed")
        self.flush()
        self._session.close(self.failed)
        if (wire := self._wire) is not None:
            wire.close()
            off = self._loop.later(CLOSE_SECONDS, wire.abort)
            while not wire.gone:
                await self.changed()
            off()
        if self._cancel is not None:
            await self._cancel()
        self._set(state="stopped", retry_seconds=None, reason=str(self.failed))
        self.wake()

    def plan_flush(self) -> None:
        """Send once this turn of the loop is over, so that what comes together goes together."""
        if self._flush_off is None and self.failed is None:
            self._flush_off = self._loop.soon(self.flush)

    def flush(self) -> None:
        """Send what the session wants sent."""
        if self._flush_off is not None:
            self._flush_off()
            self._flush_off = None
        if self._wire is not None:
            self._wire.flush()
        self.on_flush()

    def changed(self) -> Awaitable[None]:
        """Return what to await until something may have changed."""
        waiting, go_on = self._loop.promise()
        self._waiters.append(go_on)
        return waiting

    def wake(self) -> None:
        """Let go on who waits for a change."""
        self.on_wake()
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for go_on in waiters:
                go_on(None)

    def report(self, error: Exception) -> None:
        """Tell the application what went wrong: `on_error`, or the log where there is none."""
        if self._settings.on_error is None:
            self._loop.complain(str(error), error)
        else:
            self.call(self._settings.on_error, error)

    def call(self, hook: Callable[..., object] | None, *arguments: object) -> None:
        """Call a function of the application; what it raises must not end the connection.

        A coroutine that it returns is run.
        """
        if hook is None:
            return
        try:
            outcome = hook(*arguments)
        except (Exception, self._loop.cancelled) as error:  # noqa: BLE001 - the application's
            self._failed(hook, error)
        else:
            if inspect.isawaitable(outcome):
                self._loop.run(self._finish(hook, outcome))

    async def _finish(self, hook: Callable[..., object], outcome: Awaitable[object]) -> None:
        """Await what a hook returned."""
        try:
            await outcome
        except (Exception, self._loop.cancelled) as error:
            if self._loop.is_cancelled():
                raise
            self._failed(hook, error)

    def _failed(self, hook: Callable[..., object], error: BaseException) -> None:
        """Report that a function of the application failed."""
        failure: Exception = ClientError(f"cancelled: {error!r}")
        if isinstance(error, Exception) and not isinstance(error, self._loop.cancelled):
            failure = error
        if hook is self._settings.on_error:
            self._loop.complain("on_error failed", failure)
        else:
            self.report(failure)

    async def _keep_connected(self) -> None:
        while self.failed is None:
            self._set(state="connecting", retry_seconds=None)
            try:
                state, reason, delay = await self._one_connection()
            except LinkdError as error:
                state, reason, delay = self._attempt_failed(error)
            except self._loop.cancelled:
                if self.failed is not None or self._loop.is_cancelled():
                    raise
                cancelled = NoDaemon("the attempt was cancelled by what it awaited, such as `key`")
                state, reason, delay = self._attempt_failed(cancelled)
            except Exception as error:  # noqa: BLE001 - TLS contexts and transports of others
                state, reason, delay = self._attempt_failed(
                    NoDaemon(f"the attempt failed: {error!r}")
                )
            finally:
                self._wire = None
            if self.failed is None:
                failures = self._backoff.failures
                self._set(state=state, attempts=failures, retry_seconds=delay, reason=reason)
                await self._loop.sleep(delay)

    async def _one_connection(self) -> tuple[State, str, float]:
        """Connect and return, once the connection is gone, why, and when to connect again."""
        self._wire = wire = await self._dial(self.wake)
        wire.flush()
        began = self._loop.time()
        reason = await self._until_lost(wire)
        self.call(self._settings.on_close, reason)
        if self._session.displaced:
            self._give_up(Replaced(reason))
        return "waiting", reason, self._backoff.lost(self._loop.time() - began, random.random())

    def _attempt_failed(self, error: LinkdError) -> tuple[State, str, float]:
        """Report a failed attempt, and give up where that was asked for."""
        rejected = isinstance(error, Refused) and error.status in REJECTED
        self._report_attempt(error)
        delay = self._backoff.failed(random.random())
        most = self._settings.max_attempts
        if most is not None and self._backoff.failures >= most:
            self._give_up(error)
        return "rejected" if rejected else "waiting", str(error), delay

    def _report_attempt(self, error: LinkdError) -> None:
        """Report why there is no connection: once for each reason, and again every minute."""
        reason, now = str(error), self._loop.time()
        if self._reported is not None:
            before, at = self._reported
            if reason == before and now - at < REPORT_SECONDS:
                return
        self._reported = (reason, now)
        if self._settings.on_error is not None:
            self._loop.complain(f"not connected: {reason}", error)
        self.report(error)

    def _give_up(self, error: LinkdError) -> None:
        """Expect nothing more: all that is under way fails with `error`."""
        self.failed = error
        self._session.close(error)
        self._set(state="stopped", attempts=self._backoff.failures, reason=str(error))
        self.wake()

    async def _until_lost(self, wire: Wire) -> str:
        """Return why the connection is gone; end it when it falls silent."""
        silence = self._settings.silence_timeout
        off: list[Callable[[], None]] = []

        def check() -> None:
            left = wire.heard + silence - self._loop.time()
            if left > 0:
                off[:] = [self._loop.later(left, check)]
            else:
                wire.abort(NoDaemon(f"nothing was heard for {silence:g} s"))

        check()
        try:
            await wire.lost
        finally:
            for each in off:
                each()
        return wire.reason

    def _opened(self) -> None:
        """Hear of the session that the daemon has answered."""
        self._reported = None
        self._set(state="up", attempts=0, retry_seconds=None, reason=None)
        self.call(self._settings.on_open)
        self.wake()

    def _links_changed(self, links: dict[str, str]) -> None:
        self._set(links=links)

    def _set(self, **changes: Any) -> None:
        self._status.set(msgspec.structs.replace(self._status.value, **changes))


def _nothing() -> None:
    """Stand in for a hook that nobody set."""
