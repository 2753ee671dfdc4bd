"""Linux interfaces: socket options, descriptor limits, notices of network changes.

A process without free descriptors can neither accept nor dial nor open a file. Twisted then accepts
and closes each connection immediately: a client sees a reset, and the log shows nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from twisted.internet import error
from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from linkd.events import emit
from linkd.net.timers import cancel

TCP_USER_TIMEOUT: Final = 18
TCP_NOTSENT_LOWAT: Final = 25
"""Linux's option numbers; Python 3.11 does not name the second one."""

NOTSENT_BYTES: Final = 65_536
"""Maximum unsent bytes in the kernel ahead of a ping."""

_TCP_INFO_BYTES: Final = 128
_MAX_PROBES: Final = 127

BACKSTOP_SECONDS: Final = 3.0
"""The kernel's time-out exceeds the silence limit by this many seconds."""


def tune(transport: object, limit: float, probe_after: float | None = None) -> None:
    """Set keepalive, user timeout and a small unsent queue, where there is a socket.

    Args:
        transport: Of a protocol, with or without TLS.
        limit: Seconds of silence at which the connection is given up.
        probe_after: Seconds of silence after which the kernel probes the other host, and again
            after each third of them; None: only behind the limit.

    Source: tcp(7).
    """
    found = _socket(transport)
    if found is None:
        return
    seconds = limit + BACKSTOP_SECONDS
    idle = seconds if probe_after is None else probe_after
    tcp = socket.IPPROTO_TCP
    with suppress(OSError):
        found.setsockopt(tcp, socket.TCP_NODELAY, 1)
        found.setsockopt(tcp, TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        found.setsockopt(tcp, TCP_USER_TIMEOUT, int(seconds * 1000))
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.setsockopt(tcp, socket.TCP_KEEPIDLE, max(1, int(idle)))
        found.setsockopt(tcp, socket.TCP_KEEPINTVL, max(1, int(idle / 3)))
        found.setsockopt(tcp, socket.TCP_KEEPCNT, _MAX_PROBES)  # the user timeout ends it


def reset_at_exit(transport: object, resets: bool = True) -> None:
    """Let the kernel reset a connection that its process leaves open, or close it in order again.

    A process that is killed while its host is unplugged then leaves nothing behind that answers
    probes: the FIN of a connection that is closed in order is sent again at ever longer intervals.
    A reset discards what is not sent yet, so it must be off before a connection is closed in order.

    Args:
        transport: Of a protocol, with or without TLS.
        resets: Whether it does.

    Source: socket(7), SO_LINGER.
    """
    found = _socket(transport)
    if found is not None:
        with suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", resets, 0))


def keep_unsent_small(transport: object, unsent_bytes: int = NOTSENT_BYTES) -> None:
    """Keep the kernel's unsent queue short, where there is a socket, so that pings are not delayed.

    Args:
        transport: Of a protocol, with or without TLS.
        unsent_bytes: As much may wait.

    Source: tcp(7).
    """
    found = _socket(transport)
    if found is not None:
        with suppress(OSError):
            found.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, unsent_bytes)


def path_of(transport: object) -> tuple[float, int, int] | None:
    """Return what the kernel knows of a connection's path, or None without a TCP socket.

    Returns:
        Seconds since the other host's kernel last acknowledged anything, the bytes of ours that it
        has acknowledged in all, and the segments that are sent and not acknowledged: they prove the
        path and the host, not the program.

    Source: struct tcp_info in linux/tcp.h (`tcpi_last_ack_recv`, `tcpi_bytes_acked`,
    `tcpi_unacked`).
    """
    found = _socket(transport)
    if found is None:
        return None
    try:
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _TCP_INFO_BYTES:
        return None
    (milliseconds,) = struct.unpack_from("=I", info, 56)
    (acked,) = struct.unpack_from("=Q", info, 120)
    (under_way,) = struct.unpack_from("=I", info, 24)
    return milliseconds / 1000.0, acked, under_way


def limit_segment(transport: object, segment_bytes: int) -> None:
    """Limit the size of TCP segments in both directions; 0 changes nothing.

    Args:
        transport: Of a connection that has not begun: the SYN announces the size to the other end.
        segment_bytes: Bytes of data in a segment, TCP's options among them.

    Source: tcp(7).
    """
    found = _socket(transport) if segment_bytes else None
    if found is not None:
        with suppress(OSError):
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)


def ended(reason: Failure) -> str:
    """Return how a connection ended, as the beginning of a sentence about the peer."""
    if reason.check(error.ConnectionDone):
        return "the other end closed the connection"
    if reason.check(error.ConnectionAborted):
        return "this end aborted the connection"
    return "the connection was cut or reset"


def _socket(transport: object) -> socket.socket | None:
    """Return the TCP socket below a transport."""
    for _ in range(3):
        get = getattr(transport, "getHandle", None)
        handle = None if get is None else get()
        if isinstance(handle, socket.socket):
            return handle if handle.family in (socket.AF_INET, socket.AF_INET6) else None
        transport = getattr(transport, "transport", None)
    return None


def every_address() -> str:
    """Return the address that listens on all: `::` for both families, `0.0.0.0` without IPv6.

    A kernel without AF_INET6 can't make such a socket at all. Where IPv6 is only switched off
    (`disable_ipv6`), `::` still takes IPv4.
    """
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return "0.0.0.0"  # noqa: S104 -- what an empty host in the configuration asks for
    return "::"


def format_address(host: str, port: int) -> str:
    """Return an address for display: `192.0.2.7:9443`, `[2001:db8::7]:9443`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def peer_of(transport: object) -> tuple[str, int]:
    """Return host and port of a transport's other end."""
    get = getattr(transport, "getPeer", None)
    address = None if get is None else get()
    host = str(getattr(address, "host", "")).removeprefix("::ffff:")
    return host, int(getattr(address, "port", 0))


LEAST: Final = 4
"""Minimum connections of the API and of newcomers, however low the limit is."""

_WARNING: Final = "descriptors"


class Shares(NamedTuple):
    """Maximum numbers of connections.

    Attributes:
        api: Of the API, its socket included.
        newcomers: At the listener, without a hello.
    """

    api: int
    newcomers: int


class Descriptors:
    """Divides the file descriptors of this process, and monitors how many are left.

    Args:
        limit: As many may be open, RLIMIT_NOFILE.
        warnings: The node's standing warnings.
        lowest_free: Returns the lowest number that is free; raises OSError where none is.

    Attributes:
        shortages: How often descriptors have run short since the start.
    """

    def __init__(
        self,
        limit: int,
        warnings: MutableMapping[str, str],
        lowest_free: Callable[[], int] | None = None,
    ) -> None:
        self.limit = limit
        self.shortages = 0
        self._warnings = warnings
        self._lowest_free = lowest_free or _lowest_free
        self._margin = max(8, min(64, limit // 16))
        self._is_short = False
        self._used = 0

    def started(self) -> None:
        """Count the daemon's own descriptors: all sockets listen, and no connection is open yet."""
        try:
            self._used = self._lowest_free()
        except OSError:
            self._used = self.limit

    def divide(self, peers: int) -> Shares:
        """Return the shares for a number of peers with one link each.

        Half of what the daemon and its links leave is the API's and a quarter the newcomers', so
        that a quarter stays for redials, segments and look-ups whatever others do.
        """
        free = max(0, self.limit - self._used - peers)
        return Shares(max(LEAST, free // 2), max(LEAST, free // 4))

    def look(self) -> None:
        """Check how many are left; called once a second.

        The kernel gives the lowest free number: where that is near the limit, nearly all below it
        are in use.
        """
        try:
            left, reason = self.limit - self._lowest_free(), "limit"
        except OSError as error:
            left, reason = 0, error.strerror or "limit"
        if left <= self._margin and not self._is_short:
            self._is_short = True
            self.shortages += 1
            detail = f"fewer than {self._margin} of {self.limit} descriptors are left: {reason}"
            self._warnings[_WARNING] = detail
            emit("node.descriptors-short", limit=self.limit, detail=detail)
        elif left > 2 * self._margin and self._is_short:
            self._is_short = False
            self._warnings.pop(_WARNING, None)
            emit("node.descriptors-enough", limit=self.limit)


def _lowest_free() -> int:
    """Return the lowest free descriptor.

    Raises:
        OSError: There is none, in this process or on this host.
    """
    free = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.close(free)
    return free


SETTLE: Final = 0.25
"""Quiet seconds before a change is reported: one unplugged cable causes dozens of messages."""

MAX_SETTLE: Final = 2.0
"""Maximum seconds between the first message of a change and its report."""

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


@implementer(IReadDescriptor)
class NetworkMonitor:
    """Calls back when the network of this host has changed; quiet where that can't be known.

    Args:
        reactor: Reads the socket, and waits for changes to settle.
        changed: Called in the reactor's thread, once for a burst of changes.
    """

    def __init__(self, reactor: Any, changed: Callable[[], object]) -> None:
        self._reactor = reactor
        self._changed = changed
        self._socket: socket.socket | None = None
        self._call: DelayedCall | None = None
        self._first = 0.0

    def start(self) -> bool:
        """Start listening; return whether the kernel permits it."""
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
        """Stop listening."""
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
        """Return the prefix of Twisted's log lines."""
        return "netlink"

    def connectionLost(self, reason: object) -> None:
        """Do nothing: the reactor has dropped the socket."""

    def doRead(self) -> None:
        """Read the messages, whose content does not matter, and schedule a report."""
        if self._socket is None:
            return
        with suppress(OSError):  # also ENOBUFS: messages were lost, which is a change as well
            for _ in range(_MAX_READS):
                self._socket.recv(65_536)
        self.noticed()

    def noticed(self) -> None:
        """Report the change, once no more messages arrive."""
        now = self._reactor.seconds()
        if self._call is None or not self._call.active():
            self._first = now
            self._call = self._reactor.callLater(SETTLE, self._tell)
        elif now + SETTLE <= self._first + MAX_SETTLE:
            self._call.reset(SETTLE)

    def _tell(self) -> None:
        self._call = None
        self._changed()
