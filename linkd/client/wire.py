"""One connection to a daemon: it carries bytes between a transport and the session."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from linkd import __version__
from linkd.client.address import Address
from linkd.client.errors import NoDaemon
from linkd.client.loop import Loop
from linkd.client.options import Key
from linkd.client.session import Session
from linkd.client.websocket import WebSocket
from linkd.core.stream import SUBPROTOCOL
from linkd.errors import LinkdError


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
