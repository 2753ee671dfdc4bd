"""What keeps a Twisted client connected: one protocol a connection, attempts, delays, silence."""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.base import DelayedCall
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from linkd import __version__
from linkd.client.address import Address
from linkd.client.backoff import Backoff
from linkd.client.errors import Closed, NoDaemon, Refused, Replaced
from linkd.client.observable import Observable, Status
from linkd.client.options import REJECTED, Settings
from linkd.client.session import Session
from linkd.client.websocket import WebSocket
from linkd.core.stream import SUBPROTOCOL
from linkd.errors import LinkdError

CLOSE_SECONDS = 1.0


class Wire(Protocol):
    """The bytes of one connection.

    Attributes:
        opened: Fires when the daemon has answered, or fails.
        lost: Fires with the reason when the connection is gone.
        heard: Monotonic seconds of the last byte.
    """

    transport: Any

    def __init__(
        self,
        where: Address,
        headers: dict[str, str],
        session: Session,
        changed: Callable[[], None],
    ) -> None:
        self.opened: Deferred[None] = Deferred()
        self.lost: Deferred[str] = Deferred()
        self.heard = time.monotonic()
        self.failure: LinkdError | None = None
        self._session = session
        self._changed = changed
        self._begun = False
        self._websocket = WebSocket(where.url, SUBPROTOCOL, headers)

    def flush(self) -> None:
        """Send what the session wants sent."""
        if self.transport is None or self.lost.called:
            return
        if self._begun and not self._websocket.closing:
            for message in self._session.take(time.monotonic()):
                self._websocket.send(message)
        if pieces := self._websocket.to_send():
            self.transport.write(pieces)

    def close(self) -> None:
        """Begin the closing handshake, once what is due was sent."""
        self.flush()
        self._websocket.close()
        self.flush()

    def abort(self, failure: LinkdError | None = None) -> None:
        """End it at once."""
        self.failure = self.failure or failure
        if self.transport is not None and not self.lost.called:
            self.transport.abortConnection()

    def connectionMade(self) -> None:
        """Send the upgrade's request."""
        self.flush()

    def dataReceived(self, data: bytes) -> None:
        """Take bytes of the daemon."""
        self.heard = time.monotonic()
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
        if self._session.open and not self.opened.called:
            self.opened.callback(None)
        self.flush()
        self._changed()
        if self._websocket.closing and self.transport is not None:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Tell the session, which keeps what is under way for the next connection."""
        self._websocket.lost()
        if self._begun:
            self._session.lost()
        failure = self.failure or self._session.last_failure
        why = str(failure) if failure is not None else self._websocket.farewell
        self.lost.callback(why)
        if not self.opened.called:
            self.opened.errback(Failure(failure or NoDaemon(f"the daemon closed: {why}")))
        self._changed()


class Upkeep:
    """Connects, and connects again, until closed or out of attempts.

    Attributes:
        status: The connection's state and the links'.
        failed: Why nothing more is to be expected, or None.
        started: Whether it was started.
    """

    def __init__(self, reactor: Any, where: Address, settings: Settings, session: Session) -> None:
        self.status = Observable(Status())
        self.failed: LinkdError | None = None
        self.started = False
        self._reactor = reactor
        self._address = where
        self._settings = settings
        self._session = session
        self._backoff = Backoff(settings.min_delay, settings.max_delay)
        self._wire: Wire | None = None
        self._running: Deferred[None] = succeed(None)
        self._flush_planned: DelayedCall | None = None
        self._waiters: list[Deferred[None]] = []
        self._log = Logger("linkd.client")
        session.on_open = self._opened
        session.on_links = self._links_changed

    def start(self) -> None:
        """Begin to connect."""
        if not self.started:
            self.started = True
            self._running = Deferred.fromCoroutine(self._keep_connected())

    async def close(self) -> None:
        """End the connection and the attempts; what is under way fails with Closed."""
        if self.failed is None:
            self.failed = Closed("the node was closed")
        self.flush()
        self._session.close(self.failed)
        if (wire := self._wire) is not None:
            wire.close()
            rescue = self._reactor.callLater(CLOSE_SECONDS, wire.abort)
            while not wire.lost.called:
                await self.changed()
            if rescue.active():
                rescue.cancel()
        self._running.cancel()
        if self._flush_planned is not None and self._flush_planned.active():
            self._flush_planned.cancel()
        self._set(state="stopped", retry_seconds=None, reason=str(self.failed))
        self.wake()

    def plan_flush(self) -> None:
        """Send once this turn of the reactor is over: what comes together goes together."""
        if self._flush_planned is None and self.failed is None:
            self._flush_planned = self._reactor.callLater(0, self.flush)

    def flush(self) -> None:
        """Send what the session wants sent."""
        if self._flush_planned is not None and self._flush_planned.active():
            self._flush_planned.cancel()
        self._flush_planned = None
        if self._wire is not None:
            self._wire.flush()

    def changed(self) -> Deferred[None]:
        """Fire when something may have changed."""
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        return waiter

    def wake(self) -> None:
        """Let go on who waits for a change."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(None)

    def report(self, error: Exception) -> None:
        """Tell the application what went wrong: `on_error`, or the log where there is none."""
        if self._settings.on_error is None:
            self._log.warn("{error}", error=str(error), log_failure=Failure(error))
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
                self._log.failure("on_error failed")
            else:
                self.report(error)

    async def _keep_connected(self) -> None:
        while self.failed is None:
            self._set(state="connecting", retry_seconds=None)
            rejected = False
            try:
                reason, delay = await self._one_connection()
            except CancelledError:
                return
            except LinkdError as error:
                rejected = isinstance(error, Refused) and error.status in REJECTED
                reason, delay = str(error), self._backoff.failed(random.random())
                self._attempt_failed(error, rejected)
            finally:
                self._wire = None
            if self.failed is None:
                self._set(
                    state="rejected" if rejected else "waiting",
                    attempts=self._backoff.failures,
                    retry_seconds=delay,
                    reason=reason,
                )
                try:
                    await deferLater(self._reactor, delay)
                except CancelledError:
                    return

    async def _one_connection(self) -> tuple[str, float]:
        """Connect and return, once the connection is gone, why, and when to connect again."""
        wire = await self._dial()
        began = time.monotonic()
        reason = await self._until_lost(wire)
        self.call(self._settings.on_close, reason)
        if self._session.displaced:
            self._give_up(Replaced(reason))
        return reason, self._backoff.lost(time.monotonic() - began, random.random())

    async def _dial(self) -> Wire:
        """Open one connection, up to the daemon's answer; raise NoDaemon or Refused."""
        seconds = self._settings.connect_timeout
        wire = Wire(self._address, await self._headers(), self._session, self.wake)
        deadline = self._reactor.callLater(
            seconds,
            wire.abort,
            NoDaemon(f"no daemon at {self._address}: no answer in {seconds:g} s"),
        )
        try:
            connecting = self._endpoint().connect(Factory.forProtocol(lambda: wire))
            await connecting.addTimeout(seconds, self._reactor)
            self._wire = wire
            await wire.opened
        except (OSError, ConnectError, TimeoutError) as error:
            raise NoDaemon(f"no daemon at {self._address}: {error}") from None
        except CancelledError:
            wire.abort()
            raise
        except LinkdError:
            raise
        except Exception as error:  # noqa: BLE001 - Twisted's look-up and TLS raise many kinds
            raise NoDaemon(f"no daemon at {self._address}: {error}") from None
        finally:
            if deadline.active():
                deadline.cancel()
        return wire

    async def _headers(self) -> dict[str, str]:
        """Return the header that says who we are."""
        given = self._settings.key() if callable(self._settings.key) else self._settings.key
        if inspect.isawaitable(given):
            given = await given
        headers = {"User-Agent": f"linkd-python/{__version__}"}
        if given:
            headers["Authorization"] = f"Bearer {given.strip()}"
        return headers

    def _endpoint(self) -> Any:
        where = self._address
        if where.socket:
            return UNIXClientEndpoint(self._reactor, where.socket)
        endpoint: Any = HostnameEndpoint(self._reactor, where.host, where.port)
        if where.tls:
            tls = self._settings.tls or optionsForClientTLS(where.host)
            endpoint = wrapClientTLS(tls, endpoint)
        return endpoint

    async def _until_lost(self, wire: Wire) -> str:
        """Return why the connection is gone; end it when it falls silent."""
        silence = self._settings.silence_timeout

        watch: list[DelayedCall] = []

        def check() -> None:
            left = wire.heard + silence - time.monotonic()
            if left > 0:
                watch[:] = [self._reactor.callLater(left, check)]
            else:
                wire.abort(NoDaemon(f"nothing was heard for {silence:g} s"))

        check()
        try:
            return await wire.lost
        finally:
            for each in watch:
                if each.active():
                    each.cancel()

    def _attempt_failed(self, error: LinkdError, rejected: bool) -> None:
        """Tell of a refusal, and give up where that was asked for."""
        if rejected:
            self.report(error)
        most = self._settings.max_attempts
        if most is not None and self._backoff.failures >= most:
            self._give_up(error)

    def _give_up(self, error: LinkdError) -> None:
        """Expect nothing more: all that is under way fails with `error`."""
        self.failed = error
        self._session.close(error)
        self._set(state="stopped", attempts=self._backoff.failures, reason=str(error))
        self.wake()

    def _opened(self) -> None:
        self._set(state="up", attempts=0, retry_seconds=None, reason=None)
        self.call(self._settings.on_open)
        self.wake()

    def _links_changed(self, links: dict[str, str]) -> None:
        self._set(links=links)

    def _set(self, **changes: Any) -> None:
        self.status.set(msgspec.structs.replace(self.status.value, **changes))
