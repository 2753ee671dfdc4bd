"""Word from the kernel when addresses, routes or interfaces of this host change."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

from linkd.net.timers import Call, cancel

SETTLE: Final = 0.25
"""Seconds without another change before it is told: one cable pulled is dozens of messages."""

MAX_SETTLE: Final = 2.0
"""A change is told so many seconds after its first message at the latest."""

_RTMGRP_LINK: Final = 0x1
_RTMGRP_IPV4_IFADDR: Final = 0x10
_RTMGRP_IPV4_ROUTE: Final = 0x40
_RTMGRP_IPV6_IFADDR: Final = 0x100
_RTMGRP_IPV6_ROUTE: Final = 0x400
_GROUPS: Final = (
    _RTMGRP_LINK
    | _RTMGRP_IPV4_IFADDR
    | _RTMGRP_IPV4_ROUTE
    | _RTMGRP_IPV6_IFADDR
    | _RTMGRP_IPV6_ROUTE
)
_MAX_READS: Final = 64

__all__ = ["NetworkWatch"]


@implementer(IReadDescriptor)
class NetworkWatch:
    """Calls back when the network of this host has changed; quiet where that can't be known.

    Args:
        reactor: Reads the socket, and waits for changes to settle.
        changed: Called in the reactor's thread, once for a burst of changes.
    """

    def __init__(self, reactor: Any, changed: Callable[[], object]) -> None:
        self._reactor = reactor
        self._changed = changed
        self._socket: socket.socket | None = None
        self._call: Call | None = None
        self._first = 0.0

    def start(self) -> bool:
        """Begin to listen; tell whether the kernel lets us."""
        try:
            found = socket.socket(
                socket.AF_NETLINK,
                socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
                socket.NETLINK_ROUTE,
            )
        except (OSError, AttributeError):
            return False
        try:
            found.bind((0, _GROUPS))
        except OSError:
            found.close()
            return False
        self._socket = found
        self._reactor.addReader(self)
        return True

    def stop(self) -> None:
        """Listen no more."""
        cancel(self._call)
        self._call = None
        found, self._socket = self._socket, None
        if found is not None:
            self._reactor.removeReader(self)
            found.close()

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """Return what Twisted's own lines begin with."""
        return "netlink"

    def connectionLost(self, reason: object) -> None:
        """The reactor lets go of the socket."""

    def doRead(self) -> None:
        """Something has changed; what exactly does not matter."""
        if self._socket is None:
            return
        with suppress(OSError):  # also ENOBUFS: messages were lost, which is a change as well
            for _ in range(_MAX_READS):
                self._socket.recv(65_536)
        self.noticed()

    def noticed(self) -> None:
        """Wait until no more changes come, then say so."""
        now = self._reactor.seconds()
        if self._call is None or not self._call.active():
            self._first = now
            self._call = self._reactor.callLater(SETTLE, self._tell)
        elif now + SETTLE <= self._first + MAX_SETTLE:
            self._call.reset(SETTLE)

    def _tell(self) -> None:
        self._call = None
        self._changed()
