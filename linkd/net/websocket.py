"""Autobahn, as linkd uses it: the one module that names it. It is untyped: its classes are Any.

Beside it the masking of frames, which another library does in one pass (measured: 64 KiB in 3.5 µs,
by Autobahn's 16 to 22 µs; 1 KiB 0.2 and 3 µs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from autobahn.twisted import websocket
from autobahn.websocket import protocol, types
from twisted.logger import Logger

try:
    from websockets.speedups import apply_mask as _apply_mask
except ImportError:  # it was built without its native code
    from websockets.utils import apply_mask as _apply_mask

_Server: Any = websocket.WebSocketServerProtocol
_Client: Any = websocket.WebSocketClientProtocol
ServerFactory: Any = websocket.WebSocketServerFactory
ClientFactory: Any = websocket.WebSocketClientFactory

ConnectionDeny: Any = types.ConnectionDeny
ConnectingRequest: Any = types.ConnectingRequest

FrameHeader: Any = vars(protocol)["FrameHeader"]

STATE_CLOSED: int = protocol.WebSocketProtocol.STATE_CLOSED
STATE_CLOSING: int = protocol.WebSocketProtocol.STATE_CLOSING
STATE_OPEN: int = protocol.WebSocketProtocol.STATE_OPEN


apply_mask: Callable[[bytes | memoryview, bytes], bytes] = _apply_mask
"""Masks or unmasks a payload, its first argument, by four bytes."""


class Quiet:
    """Takes what Autobahn logs: linkd says itself what happened, in one line; only errors go on."""

    _log = Logger(namespace="linkd.net.autobahn")

    def debug(self, *_: object, **__: object) -> None:
        """Say nothing."""

    info = warn = trace = debug

    def error(self, format: str | None = None, **fields: object) -> None:
        """Say it at debug level: the connection's end says it for people."""
        self._log.debug(format or "", **fields)

    critical = failure = error


class _Options:
    """Takes a protocol's options from its factory, mixed in before Autobahn's.

    Autobahn does it too, and makes a pretty list of them for its log each time: of 350 µs of a new
    connection that was 250 (measured), and it is paid for each that is sent away too.
    """

    CONFIG_ATTRS: ClassVar[tuple[str, ...]] = ()  # none are left for Autobahn to take
    options: ClassVar[tuple[str, ...]]
    factory: Any

    def _connectionMade(self) -> None:
        for name in self.options:
            if not hasattr(self, name):
                setattr(self, name, getattr(self.factory, name))
        super()._connectionMade()  # type: ignore[misc]


class ServerProtocol(_Options, _Server):  # type: ignore[misc]
    """Autobahn's protocol of the end that accepts."""

    options = tuple(_Server.CONFIG_ATTRS)


class ClientProtocol(_Options, _Client):  # type: ignore[misc]
    """Autobahn's protocol of the end that dials."""

    options = tuple(_Client.CONFIG_ATTRS)
