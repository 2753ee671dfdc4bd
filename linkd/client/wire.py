"""One connection to a daemon on asyncio: it carries bytes between a transport and the session."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

from linkd import __version__
from linkd.client.address import Address
from linkd.client.errors import ClientError, NoDaemon
from linkd.client.options import Key, Settings
from linkd.client.session import Session
from linkd.client.websocket import WebSocket
from linkd.core.stream import SUBPROTOCOL
from linkd.errors import LinkdError


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
    wire: Wire | None = None
    try:
        async with asyncio.timeout(settings.connect_timeout):
            wire = Wire(where, await bearer(settings.key), session, changed)
            await _connect(where, settings, wire)
            await asyncio.wait([wire.lost, wire.opened], return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError:
        if wire is not None:
            wire.abort()
        raise NoDaemon(
            f"no daemon at {where}: no answer in {settings.connect_timeout:g} s"
        ) from None
    except OSError as error:
        raise NoDaemon(f"no daemon at {where}: {error.strerror or error}") from None
    except asyncio.CancelledError:
        if wire is not None:
            wire.abort()
        raise
    if not wire.opened.done():
        raise wire.failure or session.last_failure or NoDaemon(f"{where}: {wire.reason}")
    return wire


async def bearer(key: Key | None) -> dict[str, str]:
    """Return the header that says who we are."""
    given = key() if callable(key) else key
    if inspect.isawaitable(given):
        given = await given
    headers = {"User-Agent": f"linkd-python/{__version__}"}
    if given:
        headers["Authorization"] = f"Bearer {given.strip()}"
    return headers


async def _connect(where: Address, settings: Settings, wire: Wire) -> None:
    loop = asyncio.get_running_loop()
    if where.socket:
        await loop.create_unix_connection(lambda: wire, where.socket)
    else:
        tls = (settings.tls or True) if where.tls else None
        await loop.create_connection(lambda: wire, where.host, where.port, ssl=tls)


class Wire(asyncio.Protocol):
    """The bytes of one connection.

    Attributes:
        opened: Done when the daemon has answered.
        lost: Done when the connection is gone.
        heard: The loop's time of the last byte.
        failure: Why we ended it, if we did.
    """

    def __init__(
        self,
        where: Address,
        headers: dict[str, str],
        session: Session,
        changed: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.heard = self._loop.time()
        self.failure: LinkdError | None = None
        self._session = session
        self._changed = changed
        self._begun = False
        self._transport: asyncio.Transport | None = None
        self._websocket = WebSocket(where.url, SUBPROTOCOL, headers)

    @property
    def reason(self) -> str:
        """Why it is gone, in a few words."""
        failure = self.failure or self._session.last_failure
        return str(failure) if failure is not None else self._websocket.farewell

    def flush(self) -> None:
        """Send what the session wants sent."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._begun and not self._websocket.closing:
            for message in self._session.take(self._loop.time()):
                self._websocket.send(message)
        if pieces := self._websocket.to_send():
            self._transport.write(pieces)

    def close(self) -> None:
        """Begin the closing handshake, once what is due was sent."""
        self.flush()
        self._websocket.close()
        self.flush()
        if self._transport is not None and not self._websocket.opened:
            self._transport.abort()

    def abort(self, failure: LinkdError | None = None) -> None:
        """End it at once."""
        self.failure = self.failure or failure
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the upgrade's request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Take bytes of the daemon."""
        self.heard = self._loop.time()
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
        if self._session.open and not self.opened.done():
            self.opened.set_result(None)
        self.flush()
        self._changed()
        if self._websocket.closing and self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the session, which keeps what is under way for the next connection."""
        self._websocket.lost()
        if exc is not None and self.failure is None:
            self.failure = ClientError(str(exc))
        if self._begun:
            self._session.lost()
        if not self.lost.done():
            self.lost.set_result(None)
        self._changed()
