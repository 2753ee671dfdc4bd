"""Keep a client connected on any event loop: connect, retry, notice silence."""

from __future__ import annotations

import inspect
import random
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec

from linkd import __version__
from linkd.client.errors import ClientError, Closed, NoDaemon, Refused, Replaced
from linkd.client.options import REJECTED, Address, Key, Observable, Settings, State, Status
from linkd.client.session import Session
from linkd.client.websocket import WebSocket
from linkd.errors import LinkdError
from linkd.protocol.client import SUBPROTOCOL


class Loop(Protocol):
    """An event loop.

    Attributes:
        cancelled: What a coroutine that is cancelled is raised.
    """

    cancelled: type[BaseException]

    def bind(self) -> None:
        """Belong to what runs now."""

    def check(self) -> None:
        """Raise ClientError where the caller runs elsewhere than in this loop."""

    def time(self) -> float:
        """Return monotonic seconds."""

    def promise(self) -> tuple[Awaitable[Any], Callable[[Any], None]]:
        """Return what can be awaited once, and what settles it.

        A LinkdError is raised by the await, anything else returned. What is settled or cancelled
        already is left alone.
        """

    def soon(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call once this turn is over; return how to call it off."""

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call after so many seconds; return how to call it off, which may be too late."""

    def run(self, coroutine: Coroutine[Any, Any, None]) -> Callable[[], Awaitable[object]]:
        """Run a coroutine; return how to cancel it. Who awaits that goes on once it has ended."""

    def is_cancelled(self) -> bool:
        """Return whether the coroutine that runs is being cancelled itself.

        False where a cancellation only came out of what it awaits, or where nobody can know.
        """

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""

    def complain(self, said: str, error: Exception) -> None:
        """Log what nobody has asked to be told."""


MAX_DOUBLINGS: Final = 30


class Backoff:
    """The delays between attempts.

    Args:
        min_delay: Seconds; the first delay lies below it.
        max_delay: Seconds; no delay is above it.
        stable_after: A connection that held so many seconds starts the series anew.
    """

    def __init__(
        self, min_delay: float = 0.2, max_delay: float = 15.0, stable_after: float = 5.0
    ) -> None:
        self.failures = 0
        self._min_delay = min_delay
        self._max_delay = max_delay
        self._stable_after = stable_after

    def failed(self, random: float) -> float:
        """Return the seconds until the next attempt, after one more failure in a row.

        Args:
            random: Out of [0, 1).
        """
        ceiling = min(self._max_delay, self._min_delay * 2.0 ** min(self.failures, MAX_DOUBLINGS))
        self.failures += 1
        return float(ceiling * random)

    def lost(self, held_seconds: float, random: float) -> float:
        """Return the seconds until the next attempt, after a connection that held so long."""
        if held_seconds >= self._stable_after:
            self.failures = 0
        return self.failed(random)


async def bearer(key: Key | None, cancelled: type[BaseException]) -> dict[str, str]:
    """Return the header that says who we are; `cancelled` passes through.

    Raises:
        NoDaemon: The application's function raised, or returned what is no key.
    """
    headers = {"User-Agent": f"linkd-python/{__version__}"}
    try:
        given = key() if callable(key) else key
        if inspect.isawaitable(given):
            given = await given
        if given:
            headers["Authorization"] = f"Bearer {given.strip()}"
    except Exception as error:
        if isinstance(error, cancelled | LinkdError):
            raise
        raise NoDaemon(f"there is no key: {error!r}") from error
    return headers


class Wire:
    """The bytes of one connection; an edge adds the transport.

    Attributes:
        opened: To be awaited: the daemon has answered, or the connection was lost before.
        lost: To be awaited: the connection is gone.
        gone: Whether it is.
        heard: The loop's time of the last byte.
        failure: Why we ended it, if we did.

    Args:
        where: The daemon.
        headers: Further headers of the upgrade.
        session: What the connection serves.
        changed: Called after each piece of the daemon's that was taken.
        loop: The event loop.
    """

    def __init__(
        self,
        where: Address,
        headers: dict[str, str],
        session: Session,
        changed: Callable[[], None],
        loop: Loop,
    ) -> None:
        self.opened: Awaitable[None]
        self.lost: Awaitable[None]
        self.opened, self._answered = loop.promise()
        self.lost, self._ended = loop.promise()
        self.gone = False
        self.heard = loop.time()
        self.failure: LinkdError | None = None
        self._where = where
        self._session = session
        self._changed = changed
        self._time = loop.time
        self._begun = False
        self._websocket = WebSocket(where.url, SUBPROTOCOL, headers)

    # The transport's

    @abstractmethod
    def _writable(self) -> bool:
        """Tell whether there is a transport that is not closing."""

    @abstractmethod
    def _write(self, pieces: Any) -> None:
        """Send bytes."""

    @abstractmethod
    def _close(self) -> None:
        """Close once all is sent."""

    @abstractmethod
    def _abort(self) -> None:
        """Cut it, where there is something to cut."""

    # For who keeps it

    @property
    def reason(self) -> str:
        """Why it is gone, in a few words."""
        failure = self.failure or self._session.last_failure
        return str(failure) if failure is not None else self._websocket.farewell

    def flush(self) -> None:
        """Send what the session wants sent."""
        if not self._writable():
            return
        if self._begun and not self._websocket.closing:
            for message in self._session.take(self._time()):
                self._websocket.send(message)
        if pieces := self._websocket.to_send():
            self._write(pieces)

    def close(self) -> None:
        """Begin the closing handshake, once what is due was sent."""
        self.flush()
        self._websocket.close()
        self.flush()

    def abort(self, failure: LinkdError | None = None) -> None:
        """End it at once."""
        self.failure = self.failure or failure
        self._abort()

    # From the transport

    def took(self, data: bytes) -> None:
        """Take bytes of the daemon."""
        self.heard = self._time()
        try:
            messages = self._websocket.receive(data)
            if self._websocket.opened and not self._begun:
                self._begun = True
                self._session.connected()
            for message in messages:
                self._session.received(message)
        except LinkdError as error:
            self.abort(error)
            return
        if self._session.open:
            self._answered(None)
        self.flush()
        self._changed()
        if self._websocket.closing:
            self._close()

    def ended(self) -> None:
        """Tell the session, which keeps what is under way for the next connection."""
        self._websocket.lost()
        if self._begun:
            self._session.lost()
        self.gone = True
        failure = self.failure or self._session.last_failure
        self._answered(failure or NoDaemon(f"{self._where}: {self.reason}"))
        self._ended(None)
        self._changed()


CLOSE_SECONDS: Final = 1.0
REPORT_SECONDS: Final = 60.0
"""While the daemon cannot be reached, the same reason is reported so often."""

Dial = Callable[[Callable[[], None]], Awaitable[Wire]]
"""Opens one connection, up to the daemon's answer; raises NoDaemon or Refused. What it is given is
called after each piece of the daemon's."""


class Reconnector:
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
