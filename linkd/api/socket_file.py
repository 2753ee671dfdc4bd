"""The API's unix socket: its file, made again within a second where something removes it."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError

from linkd import events

MODE = 0o660
_BACKLOG = 50
_PROBE_SECONDS = 0.1
"""The event loop waits so long at most for another daemon that has taken the path."""

_Base: Any = unix.Port  # it has no types

Identity = tuple[int, int]


class _Port(_Base):  # type: ignore[misc]
    """A listening socket that removes its file at its end only where the file is its own."""

    def __init__(self, path: Path, factory: Any, reactor: Any) -> None:
        super().__init__(str(path), factory, _BACKLOG, MODE, reactor)
        self._path = path
        self._identity: Identity | None = None

    def startListening(self) -> None:
        """Bind and listen; raises CannotListenError."""
        super().startListening()
        self._identity = _identity(self._path)

    def has_its_file(self) -> bool:
        """Return whether callers who open the path reach this socket."""
        return _identity(self._path) == self._identity

    def connectionLost(self, reason: Any) -> None:
        """End; the file of another one stays."""
        if self.has_its_file():
            super().connectionLost(reason)
        else:
            tcp.Port.connectionLost(self, reason)


class SocketFile:
    """Listens at a path, and makes the file again where a cleaner has removed it.

    Args:
        reactor: Twisted's.
        path: Of the socket.
        factory: Of the connections.
    """

    def __init__(self, reactor: Any, path: Path, factory: Any) -> None:
        self._reactor = reactor
        self._path = path
        self._factory = factory
        self._port = self._listen()
        self._complaint: str | None = None

    def check(self) -> None:
        """Listen again if the file is missing or another one; connections stay.

        What can't be done is logged once and tried again at the next call.
        """
        if self._port.has_its_file():
            self._complaint = None
            return
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            fresh = self._listen()
        except (OSError, CannotListenError) as error:
            complaint = str(getattr(error, "socketError", error))
            if complaint != self._complaint:
                self._complaint = complaint
                where = str(self._path)
                events.emit("api.socket-lost", "error", address=where, detail=complaint)
            return
        self._complaint = None
        old, self._port = self._port, fresh
        old.stopListening()
        events.emit("api.socket-lost", address=str(self._path), detail="it was made again")

    def stopListening(self) -> Deferred[Any]:
        """Listen no more, and remove the file."""
        return maybeDeferred(self._port.stopListening)

    def _listen(self) -> _Port:
        """Listen, mode 0660; what a daemon that is gone has left there is replaced."""
        if self._path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(_PROBE_SECONDS)
                try:
                    probe.connect(str(self._path))
                except (ConnectionRefusedError, FileNotFoundError):
                    with suppress(FileNotFoundError):
                        self._path.unlink()
                else:
                    raise OSError(f"another daemon answers at {self._path}")
        port = _Port(self._path, self._factory, self._reactor)
        port.startListening()
        return port


def _identity(path: Path) -> Identity | None:
    """Return what tells a file from one that replaces it; None where there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
