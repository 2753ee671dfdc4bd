"""Autobahn's internals on which linkd relies: a version that moves one of them fails here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from autobahn.twisted import websocket
from autobahn.websocket import protocol

from linkd.api.websocket import ApiWebSocket
from linkd.net.connection import _HANDSHAKE_LEFTOVERS
from linkd.net.dialer import DialerConnection
from linkd.net.listener import ListenerConnection

SERVER: Any = websocket.WebSocketServerProtocol
CLIENT: Any = websocket.WebSocketClientProtocol

BOTH = {
    "CONFIG_ATTRS",
    "_connectionMade",
    "_sendAutoPing",
    "connectionLost",
    "consumeData",
    "dataReceived",
    "log",
    "onFrameBegin",
    "onMessage",
    "onOpen",
    "onPing",
    "onPong",
    "processData",
}
LINK = BOTH | {
    "_closeConnection",
    "_fail_connection",
    "_onOpen",
    "connectionMade",
    "failHandshake",
    "onAutoPong",
    "onClose",
    "processHandshake",
    "sendCloseFrame",
    "sendData",
    "sendFrame",
}
OVERRIDDEN = {
    ListenerConnection: (SERVER, LINK | {"onAutoPingTimeout", "onConnect"}),
    DialerConnection: (CLIENT, LINK | {"onConnecting"}),
    ApiWebSocket: (
        SERVER,
        BOTH | {"connectionMade", "dropConnection", "onAutoPingTimeout", "onConnect", "sendPing"},
    ),
}

CALLED = ("dropConnection", "processControlFrame", "sendCloseFrame", "sendPing")

ASSIGNED = (
    "_batched_timer",
    "_transport_details",
    "_wskey",
    "autoPingInterval",
    "autoPingPending",
    "autoPingPendingCall",
    "autoPingTimeout",
    "autoPingTimeoutCall",
    "closeHandshakeTimeoutCall",
    "control_frame_data",
    "current_frame",
    "data",
    "failedByMe",
    "frame_data",
    "inside_message",
    "maxFramePayloadSize",
    "message_data",
    "message_data_total_length",
    "remoteCloseCode",
    "remoteCloseReason",
    "state",
    "websocket_extensions",
    "websocket_protocols",
    "websocket_version",
)


@pytest.mark.parametrize("ours", OVERRIDDEN, ids=lambda ours: ours.__name__)
def test_each_method_that_linkd_overrides_is_still_autobahns(ours: type) -> None:
    base, expected = OVERRIDDEN[ours]
    names = {name for kind in ours.__mro__ if kind.__module__[:5] == "linkd" for name in vars(kind)}
    assert {name for name in names if hasattr(base, name) and name[:2] != "__"} == expected


@pytest.mark.parametrize("name", CALLED)
def test_each_method_that_linkd_calls_is_still_there(name: str) -> None:
    assert callable(getattr(SERVER, name))
    assert callable(getattr(CLIENT, name))


def test_the_answer_to_an_upgrade_is_still_made_apart() -> None:
    assert callable(SERVER.succeedHandshake)


def test_each_attribute_that_linkd_uses_is_still_assigned() -> None:
    source = "".join(Path(module.__file__ or "").read_text() for module in (protocol, websocket))
    missing = [
        name
        for name in (*ASSIGNED, *_HANDSHAKE_LEFTOVERS)
        if not re.search(rf"self\.{name}\b[^=\n]*=[^=]", source)
    ]
    assert missing == []
