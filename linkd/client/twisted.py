"""The client for Twisted: the API of `linkd.client`, with Deferreds.

async def main(reactor):
    async with linkd.client.twisted.connect(reactor) as node:
        await node.publish("orders", {"total": 12})

task.react(lambda reactor: ensureDeferred(main(reactor)))
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Unpack

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from linkd.client.api import NodeBase, PublishTotal
from linkd.client.connection import Wire, bearer
from linkd.client.errors import NoDaemon
from linkd.client.options import (
    Address,
    ConnectOptions,
    ConnectSettings,
    Observable,
    PublishManyOptions,
    PublishOptions,
    Status,
    Stored,
    address,
)
from linkd.client.session import DaemonSession
from linkd.client.subscription import RecordIterator, RecordQueue
from linkd.errors import LinkdError

_log = Logger("linkd.client")


class TwistedLoop:
    """A reactor as `linkd.client.connection.Loop`."""

    cancelled: type[BaseException] = CancelledError

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def time(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def promise(self) -> Deferred[Any]:
        """Return a Deferred, which `settle` fires; awaiting it is optional."""
        return Deferred()

    def settle(self, promise: Deferred[Any], outcome: Any) -> None:
        """Fire the Deferred, unless it has fired."""
        if promise.called:
            return
        if isinstance(outcome, BaseException):
            # Twisted has no public way to mark an error as handled.
            is_awaited = bool(promise._callbacks)
            promise.errback(Failure(outcome))
            if not is_awaited and promise._debugInfo is not None:
                promise._debugInfo.failResult = None
        else:
            promise.callback(outcome)

    def is_settled(self, promise: Deferred[Any]) -> bool:
        """Return whether the Deferred has fired."""
        return bool(promise.called)

    def bind(self) -> None:
        """Nothing to do: the reactor was given."""

    def check(self) -> None:
        """Nothing to check: all callers run in the reactor's thread."""

    def soon(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call after this iteration of the loop."""
        return self.later(0.0, call)

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call after `seconds`."""
        due = self._reactor.callLater(seconds, call)

        def off() -> None:
            if due.active():
                due.cancel()

        return off

    def run(self, coroutine: Coroutine[Any, Any, None]) -> Callable[[], Awaitable[object]]:
        """Run a coroutine; it starts at once."""
        running = Deferred.fromCoroutine(coroutine)
        running.addErrback(lambda failure: failure.trap(CancelledError))

        def cancel() -> Awaitable[object]:
            running.cancel()
            return succeed(None)

        return cancel

    def is_cancelled(self) -> bool:
        """Return False: only the owner of a coroutine cancels it here."""
        return False

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await deferLater(self._reactor, seconds)

    def complain(self, message: str, error: Exception) -> None:
        """Log an error that no handler wants."""
        if isinstance(error, LinkdError):
            _log.warn("{message}", message=message)
        else:
            _log.warn("{message}", message=message, log_failure=Failure(error))


class Dialer:
    """Opens connections on a reactor."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    async def dial(
        self,
        where: Address,
        settings: ConnectSettings,
        session: DaemonSession,
        changed: Callable[[], None],
    ) -> Wire:
        """Open one connection, up to the daemon's answer; raise NoDaemon or Refused."""
        seconds = settings.connect_timeout
        late = NoDaemon(f"no daemon at {where}: no answer in {seconds:g} s")
        headers = await self._headers(settings, late)
        wire = TwistedWire(where, headers, session, changed, TwistedLoop(self._reactor))
        deadline = self._reactor.callLater(seconds, wire.abort, late)
        try:
            connecting = self._endpoint(where, settings).connect(Factory.forProtocol(lambda: wire))
            await connecting.addTimeout(seconds, self._reactor)
            await wire.opened
        except (OSError, ConnectError, TimeoutError) as error:
            raise NoDaemon(f"no daemon at {where}: {error}") from None
        except CancelledError:
            wire.abort()
            raise
        except LinkdError:
            raise
        except Exception as error:  # noqa: BLE001 - Twisted's look-up and TLS raise many kinds
            raise NoDaemon(f"no daemon at {where}: {error}") from None
        finally:
            if deadline.active():
                deadline.cancel()
        return wire

    def _headers(self, settings: ConnectSettings, late: NoDaemon) -> Deferred[dict[str, str]]:
        """Return the headers that authenticate us; fail with `late` if `key` takes too long."""

        def timed_out(_: object, __: float) -> Failure:
            return Failure(late)

        getting = Deferred.fromCoroutine(bearer(settings.key, TwistedLoop.cancelled))
        return getting.addTimeout(settings.connect_timeout, self._reactor, timed_out)

    def _endpoint(self, where: Address, settings: ConnectSettings) -> Any:
        if where.socket:
            return UNIXClientEndpoint(self._reactor, where.socket)
        endpoint: Any = HostnameEndpoint(self._reactor, where.host, where.port)
        if where.tls:
            endpoint = wrapClientTLS(settings.tls or optionsForClientTLS(where.host), endpoint)
        return endpoint


class TwistedWire(Wire, Protocol):
    """A connection whose bytes Twisted carries."""

    def connectionMade(self) -> None:
        """Send the upgrade's request."""
        self.flush()

    def dataReceived(self, data: bytes) -> None:
        """Process bytes from the daemon."""
        self.took(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """The connection was lost."""
        self.ended()

    def _writable(self) -> bool:
        return self.transport is not None and not self.gone

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def _abort(self) -> None:
        if self.transport is not None and not self.gone:
            self.transport.abortConnection()


def connect(
    reactor: Any, where: str | os.PathLike[str] | None = None, **options: Unpack[ConnectOptions]
) -> Node:
    """Return a node; `async with` starts and closes it, or `start` and `close`.

    Args:
        reactor: The application's.
        where: The daemon's socket, or `http://HOST:PORT`; None: `LINKD_SOCKET`, else the usual one.
        **options: See linkd.client.options.ConnectOptions.

    Raises:
        ValueError: `where` is a URL of another kind.
        TypeError: An option is unknown.
    """
    return Node(reactor, address(where), ConnectSettings(**options))


class Subscription(RecordIterator):
    """An asynchronous iterator of records; across reconnects none is repeated or skipped.

    It ends with `close`, or at the end of an `async with`. Only one task at a time may iterate.

    Attributes:
        close: Ends the subscription; the iteration ends after the records that have arrived.
    """

    def __init__(self, inbox: RecordQueue) -> None:
        super().__init__(inbox)
        self.close = self.end


class Node(NodeBase[Observable[Status], Subscription]):
    """A client of one daemon, across reconnects."""

    def __init__(self, reactor: Any, where: Address, settings: ConnectSettings) -> None:
        self._reactor = reactor
        status = Observable(Status())
        loop, dial = TwistedLoop(reactor), Dialer(reactor).dial
        super().__init__(loop, dial, where, settings, status, Subscription)

    def opened(self, timeout: float | None = None) -> Deferred[None]:
        """Fire once the connection is up; NoDaemon if it isn't within `timeout` seconds."""
        waiting = Deferred.fromCoroutine(self._until_open())
        if timeout is None:
            return waiting

        def late(_: object, seconds: float) -> None:
            raise self._not_open(seconds)

        return waiting.addTimeout(timeout, self._reactor, late)

    def close(self) -> Deferred[None]:
        """Close the connection; pending operations fail with Closed. Fires when all is closed."""
        return Deferred.fromCoroutine(self._close())

    def publish(self, channel: str, value: Any, **options: Unpack[PublishOptions]) -> Deferred[int]:
        """Publish one value; fire with its offset once it is on the daemon's disk.

        See `linkd.client.aio.Node.publish` for arguments and errors.
        """
        return Deferred.fromCoroutine(self._publish(channel, value, options))

    def publish_many(
        self, channel: str, values: Iterable[Any], **options: Unpack[PublishManyOptions]
    ) -> Deferred[Stored]:
        """Publish many values in batches, in order; fire once all are on the daemon's disk."""
        return Deferred.fromCoroutine(self._publish_many(channel, values, options))

    def flush(self) -> Deferred[None]:
        """Fire once every pending publish is settled."""
        return Deferred.fromCoroutine(self._until_settled())

    async def _publish_many(
        self, channel: str, values: Iterable[Any], options: PublishManyOptions
    ) -> Stored:
        total = await PublishTotal().settle(await self._send_many(channel, values, options))
        await self._wait_as_asked(options, channel, total.last)
        return total
