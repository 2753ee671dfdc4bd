"""Keep a client connected on any event loop: connect, retry, notice silence."""

from __future__ import annotations

import inspect
import random
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec

from linkd.client.errors import ClientError, Closed, NoDaemon, Refused, Replaced
from linkd.client.options import REJECTED, Address, ConnectSettings, Key, Observable, State, Status
from linkd.client.session import DaemonSession, nothing
from linkd.client.websocket import WebSocket
from linkd.errors import LinkdError
from linkd.protocol.client import SUBPROTOCOL
from linkd.version import VERSION


class Loop(Protocol):
    """An event loop.

    Attributes:
        cancelled: The exception that a cancelled coroutine gets.
    """

    cancelled: type[BaseException]

    def bind(self) -> None:
        """Bind to the running loop."""

    def check(self) -> None:
        """Raise ClientError if the caller runs outside this loop."""

    def time(self) -> float:
        """Return monotonic seconds."""

    def promise(self) -> Any:
        """Return an awaitable for one use, which `settle` settles; awaiting it is optional."""

    def settle(self, promise: Any, outcome: Any) -> None:
        """Have the await raise an exception, or return anything else.

        Settling it again, or after it was cancelled, has no effect.
        """

    def is_settled(self, promise: Any) -> bool:
        """Return whether a promise is settled or cancelled."""

    def soon(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call after this iteration of the loop; return a function that cancels the call."""

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call after `seconds`; return a function that cancels the call unless it was made."""

    def run(self, coroutine: Coroutine[Any, Any, None]) -> Callable[[], Awaitable[object]]:
        """Run a coroutine; return a function that cancels it, and can be awaited for its end."""

    def is_cancelled(self) -> bool:
        """Return whether the running coroutine itself is being cancelled.

        False if only what it awaits was cancelled, or if the loop cannot know.
        """

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""

    def complain(self, message: str, error: Exception) -> None:
        """Log an error that no handler wants."""


MAX_DOUBLINGS: Final = 30


class RetryDelays:
    """The delays between attempts.

    Args:
        min_delay: Seconds; the first delay is below it.
        max_delay: Seconds; no delay exceeds it.
        stable_after: A connection that was up this many seconds resets the delays.
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
        """Return the seconds until the next attempt, after a connection of that duration."""
        if held_seconds >= self._stable_after:
            self.failures = 0
        return self.failed(random)


async def bearer(key: Key | None, cancelled: type[BaseException]) -> dict[str, str]:
    """Return the authentication header; `cancelled` passes through.

    Raises:
        NoDaemon: The application's function raised, or did not return a key.
    """
    headers = {"User-Agent": f"linkd-python/{VERSION}"}
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
    """The bytes of one connection; subclasses add the transport.

    Attributes:
        opened: Awaitable: the daemon has answered, or the connection was lost before.
        lost: Awaitable: the connection was lost.
        gone: Whether the connection was lost.
        last_received: The loop's time of the last byte.
        failure: Why we ended it, if we did.
        transport: What writes the bytes, once there is one.

    Args:
        where: The daemon.
        headers: Further headers of the upgrade.
        session: The session that the connection serves.
        changed: Called after each piece of data from the daemon.
        loop: The event loop.
    """

    transport: Any = None

    def __init__(
        self,
        where: Address,
        headers: dict[str, str],
        session: DaemonSession,
        changed: Callable[[], None],
        loop: Loop,
    ) -> None:
        self.opened: Awaitable[None]
        self.lost: Awaitable[None]
        self.opened, self.lost = loop.promise(), loop.promise()
        self._settle = loop.settle
        self.gone = False
        self.last_received = loop.time()
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
        """Return whether there is a transport that is not closing."""

    @abstractmethod
    def _close(self) -> None:
        """Close once all is sent."""

    @abstractmethod
    def _abort(self) -> None:
        """Abort the transport, if there is one."""

    # For the owner

    @property
    def reason(self) -> str:
        """Why the connection was lost, in a few words."""
        failure = self.failure or self._session.last_failure
        return str(failure) if failure is not None else self._websocket.farewell

    def flush(self) -> None:
        """Send the session's pending messages."""
        if not self._writable():
            return
        if self._begun and not self._websocket.closing:
            for message in self._session.take(self._time()):
                self._websocket.send_binary(message)
        if pieces := self._websocket.to_send():
            self.transport.write(pieces)

    def close(self) -> None:
        """Send pending messages, then begin the closing handshake."""
        self.flush()
        self._websocket.close()
        self.flush()

    def abort(self, failure: LinkdError | None = None) -> None:
        """Close the connection at once."""
        self.failure = self.failure or failure
        self._abort()

    # From the transport

    def took(self, data: bytes) -> None:
        """Process bytes from the daemon."""
        self.last_received = self._time()
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
            self._settle(self.opened, None)
        self.flush()
        self._changed()
        if self._websocket.closing:
            self._close()

    def ended(self) -> None:
        """Notify the session, which keeps pending operations for the next connection."""
        self._websocket.receive_eof()
        if self._begun:
            self._session.lost()
        self.gone = True
        failure = self.failure or self._session.last_failure
        self._settle(self.opened, failure or NoDaemon(f"{self._where}: {self.reason}"))
        self._settle(self.lost, None)
        self._changed()


CLOSE_SECONDS: Final = 1.0
REPORT_SECONDS: Final = 60.0
"""While the daemon cannot be reached, the same reason is reported this often."""

Dial = Callable[[Callable[[], None]], Awaitable[Wire]]
"""Opens one connection, up to the daemon's answer; raises NoDaemon or Refused. Its argument is
called after each piece of data from the daemon."""


class Reconnector:
    """Connects and reconnects until closed or out of attempts.

    Attributes:
        failed: The final error, or None.
        started: Whether it was started.
        on_wake: Called whenever something may have changed.
        on_flush: Called after each flush, with or without a connection.

    Args:
        loop: The event loop.
        dial: Opens a connection.
        settings: Delays, time-outs and hooks.
        session: The session that the connections serve.
        status: The state of the connection and the links; updated from here.
        max_delay: The longest delay if the settings have none.
    """

    def __init__(
        self,
        loop: Loop,
        dial: Dial,
        settings: ConnectSettings,
        session: DaemonSession,
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
        self._backoff = RetryDelays(settings.min_delay, settings.max_delay or max_delay)
        self._wire: Wire | None = None
        self._cancel: Callable[[], Awaitable[object]] | None = None
        self._waiters: list[Awaitable[None]] = []
        self._flush_off: Callable[[], None] | None = None
        self.on_wake: Callable[[], None] = nothing
        self.on_flush: Callable[[], None] = nothing
        self._reported: tuple[str, float] | None = None
        status.call = self.call
        session.on_open = self._opened
        session.on_links = self._links_changed

    def start(self) -> None:
        """Start connecting."""
        self.started = True
        self._cancel = self._loop.run(self._keep_connected())

    async def close(self) -> None:
        """Close the connection and end the attempts; pending operations fail with Closed."""
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
        """Flush after this iteration of the loop, so that concurrent messages are sent together."""
        if self._flush_off is None and self.failed is None:
            self._flush_off = self._loop.soon(self.flush)

    def flush(self) -> None:
        """Send the session's pending messages."""
        if self._flush_off is not None:
            self._flush_off()
            self._flush_off = None
        if self._wire is not None:
            self._wire.flush()
        self.on_flush()

    def changed(self) -> Awaitable[None]:
        """Return an awaitable that fires when something may have changed."""
        promise: Awaitable[None] = self._loop.promise()
        self._waiters.append(promise)
        return promise

    def wake(self) -> None:
        """Wake all waiters for a change."""
        self.on_wake()
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for promise in waiters:
                self._loop.settle(promise, None)

    def report(self, error: Exception) -> None:
        """Report an error to the application: to `on_error`, or the log if there is none."""
        if self._settings.on_error is None:
            self._loop.complain(str(error), error)
        else:
            self.call(self._settings.on_error, error)

    def call(self, hook: Callable[..., object] | None, *arguments: object) -> None:
        """Call a function of the application; its exceptions must not end the connection.

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
        """Connect; once the connection is lost return why, and when to reconnect."""
        self._wire = wire = await self._dial(self.wake)
        wire.flush()
        began = self._loop.time()
        reason = await self._until_lost(wire)
        self.call(self._settings.on_close, reason)
        if self._session.displaced:
            self._give_up(Replaced(reason))
        return "waiting", reason, self._backoff.lost(self._loop.time() - began, random.random())

    def _attempt_failed(self, error: LinkdError) -> tuple[State, str, float]:
        """Report a failed attempt, and give up if the settings ask for it."""
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
        """Stop reconnecting: all pending operations fail with `error`."""
        self.failed = error
        self._session.close(error)
        self._set(state="stopped", attempts=self._backoff.failures, reason=str(error))
        self.wake()

    async def _until_lost(self, wire: Wire) -> str:
        """Return why the connection was lost; abort it when it falls silent."""
        silence = self._settings.silence_timeout
        off: list[Callable[[], None]] = []

        def check() -> None:
            left = wire.last_received + silence - self._loop.time()
            if left > 0:
                off[:] = [self._loop.later(left, check)]
            else:
                wire.abort(NoDaemon(f"no data from the daemon for {silence:g} s"))

        check()
        try:
            await wire.lost
        finally:
            for each in off:
                each()
        return wire.reason

    def _opened(self) -> None:
        """Note that the daemon has answered."""
        self._reported = None
        self._set(state="up", attempts=0, retry_seconds=None, reason=None)
        self.call(self._settings.on_open)
        self.wake()

    def _links_changed(self, links: dict[str, str]) -> None:
        self._set(links=links)

    def _set(self, **changes: Any) -> None:
        self._status.set(msgspec.structs.replace(self._status.value, **changes))
