"""Autobahn, as linkd uses it: the one module that names it. It is untyped: its classes are Any."""

from __future__ import annotations

from typing import Any

from autobahn.twisted import websocket
from autobahn.websocket import USES_NVX, protocol, types
from autobahn.websocket import xormasker as _xormasker

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
