"""Autobahn, as linkd uses it: the one module that names it. It is untyped: its classes are Any.

Beside it the masking of frames, which another library does in one pass (measured: 64 KiB in 3.5 µs,
by Autobahn's 16 to 22 µs; 1 KiB 0.2 and 3 µs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autobahn.twisted import websocket
from autobahn.websocket import USES_NVX, protocol, types
from twisted.logger import Logger

try:
    from websockets.speedups import apply_mask as _apply_mask
except ImportError:  # it was built without its native code
    from websockets.utils import apply_mask as _apply_mask

ServerProtocol: Any = websocket.WebSocketServerProtocol
ClientProtocol: Any = websocket.WebSocketClientProtocol
ServerFactory: Any = websocket.WebSocketServerFactory
ClientFactory: Any = websocket.WebSocketClientFactory

ConnectionDeny: Any = types.ConnectionDeny
ConnectingRequest: Any = types.ConnectingRequest

FrameHeader: Any = vars(protocol)["FrameHeader"]

STATE_CLOSED: int = protocol.WebSocketProtocol.STATE_CLOSED
STATE_CLOSING: int = protocol.WebSocketProtocol.STATE_CLOSING
STATE_OPEN: int = protocol.WebSocketProtocol.STATE_OPEN

NATIVE: bool = bool(USES_NVX)
"""Autobahn's masking runs as native code: without it fragments cost a hundred times more."""

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
