"""What linkd asks of the kernel for a connection."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from typing import Final

from twisted.internet import error
from twisted.python.failure import Failure

TCP_USER_TIMEOUT: Final = 18
TCP_NOTSENT_LOWAT: Final = 25
"""Linux's option numbers; Python 3.11 does not name the second one."""

NOTSENT_BYTES: Final = 65_536
"""So little waits in the kernel, unsent, ahead of a ping."""

_TCP_INFO_BYTES: Final = 128

BACKSTOP_SECONDS: Final = 3.0
"""The kernel gives up so long after silence should have been noticed here."""


def tune(transport: object, limit: float) -> None:
    """Set keepalive, user timeout and a small unsent queue, where there is a socket.

    Args:
        transport: Of a protocol, with or without TLS.
        limit: Seconds of silence at which the connection is given up.

    Source: tcp(7).
    """
    found = _socket(transport)
    if found is None:
        return
    seconds = limit + BACKSTOP_SECONDS
    tcp = socket.IPPROTO_TCP
    with suppress(OSError):
        found.setsockopt(tcp, socket.TCP_NODELAY, 1)
        found.setsockopt(tcp, TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        found.setsockopt(tcp, TCP_USER_TIMEOUT, int(seconds * 1000))
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.setsockopt(tcp, socket.TCP_KEEPIDLE, max(1, int(seconds)))
        found.setsockopt(tcp, socket.TCP_KEEPINTVL, max(1, int(seconds / 3)))
        found.setsockopt(tcp, socket.TCP_KEEPCNT, 3)


def keep_unsent_small(transport: object, unsent_bytes: int = NOTSENT_BYTES) -> None:
    """Let little wait in the kernel, unsent, where there is a socket: ahead of what is urgent.

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
    """Return what the kernel knows of a connection's path; None where it is no TCP socket.

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
    """Let TCP use segments of at most so many bytes, both ways; 0 leaves it as it is.

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
    """Return how a connection ended, to begin a sentence with: the peer, not Twisted, in it."""
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


def show(host: str, port: int) -> str:
    """Return an address for people: `192.0.2.7:9443`, `[2001:db8::7]:9443`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def peer_of(transport: object) -> tuple[str, int]:
    """Return host and port of a transport's other end."""
    get = getattr(transport, "getPeer", None)
    address = None if get is None else get()
    host = str(getattr(address, "host", "")).removeprefix("::ffff:")
    return host, int(getattr(address, "port", 0))
