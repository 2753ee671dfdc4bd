"""Autobahn, as linkd uses it: the one module that names it. It is untyped: its classes are Any."""

from __future__ import annotations

from typing import Any

from autobahn.twisted import websocket
from autobahn.websocket import USES_NVX, protocol, types
from autobahn.websocket import xormasker as _xormasker
from twisted.logger import Logger

ServerProtocol: Any = websocket.WebSocketServerProtocol
ClientProtocol: Any = websocket.WebSocketClientProtocol
ServerFactory: Any = websocket.WebSocketServerFactory
ClientFactory: Any = websocket.WebSocketClientFactory

ConnectionDeny: Any = types.ConnectionDeny
ConnectingRequest: Any = types.ConnectingRequest

create_xor_masker: Any = vars(_xormasker)["create_xor_masker"]

FrameHeader: Any = vars(protocol)["FrameHeader"]

STATE_CLOSED: int = protocol.WebSocketProtocol.STATE_CLOSED
STATE_CLOSING: int = protocol.WebSocketProtocol.STATE_CLOSING
STATE_OPEN: int = protocol.WebSocketProtocol.STATE_OPEN

NATIVE: bool = bool(USES_NVX)
"""Masking runs as native code: without it large messages of a dialer cost a hundred times more."""


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
