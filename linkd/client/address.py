"""Where a daemon is reached: its unix socket, or its `http` address."""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import urlsplit

import msgspec

DEFAULT_SOCKET: Final = "/run/linkd/linkd.sock"
STREAM_PATH: Final = "/v1/stream"
_HOST_PORT: Final = re.compile(r"(localhost|[^/:]+\.[^/:]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}")
"""What is plainly no path: a name or address with a port behind it."""


class Address(msgspec.Struct, frozen=True):
    """One daemon's address.

    Args:
        socket: Path of its unix socket; empty if it is reached over TCP.
        host: Host name or address; empty over the unix socket.
        port: TCP port; 0 over the unix socket.
        tls: Whether TLS is spoken.
        url: The stream's WebSocket URL.
    """

    socket: str
    host: str
    port: int
    tls: bool
    url: str

    def __str__(self) -> str:
        return self.socket or self.url


def address(where: str | os.PathLike[str] | None = None) -> Address:
    """Return the address that a user means.

    Args:
        where: A path, or `http:`, `https:`, `ws:` or `wss:` with host and port; None:
            `LINKD_SOCKET`, else the default socket.

    Raises:
        ValueError: It is empty, a URL of another kind, or HOST:PORT without `http://`.
    """
    default = os.environ.get("LINKD_SOCKET") or DEFAULT_SOCKET
    text = default if where is None else os.fspath(where)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"expected a socket's path or http://HOST:PORT, got {text!r}")
    if "://" not in text:
        if _HOST_PORT.fullmatch(text):
            raise ValueError(f"expected a socket's path or http://HOST:PORT: http://{text}?")
        return Address(text, "", 0, False, f"ws://localhost{STREAM_PATH}")
    parts = urlsplit(text)
    if parts.scheme == "unix":
        return Address(parts.path, "", 0, False, f"ws://localhost{STREAM_PATH}")
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
        raise ValueError(f"expected a socket's path or http://HOST:PORT, got {text!r}")
    tls = parts.scheme in ("https", "wss")
    port = parts.port or (443 if tls else 80)
    base = f"{'wss' if tls else 'ws'}://{parts.netloc.rpartition('@')[2]}"
    return Address("", parts.hostname, port, tls, f"{base}{parts.path.rstrip('/')}{STREAM_PATH}")
