"""The options of a factory are those of its connections, and no list of them is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from autobahn.twisted import websocket
from autobahn.websocket import protocol

from tests.unit.net.test_timers import Pair


def test_each_connection_takes_all_options_of_its_factory_without_a_pretty_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[Any] = []
    monkeypatch.setattr(protocol, "pformat", printed.append)
    pair = Pair(tmp_path)
    assert printed[:2] == [[], []]
    for end, kind in (
        (pair.far, protocol.WebSocketServerProtocol),
        (pair.near, protocol.WebSocketClientProtocol),
    ):
        assert len(kind.CONFIG_ATTRS) > 20
        for name in kind.CONFIG_ATTRS:
            assert getattr(end, name) == getattr(end.factory, name), name
    assert (pair.far.autoPingInterval, pair.far.autoPingTimeout) == (5.0, 2.0)


def test_connections_keep_the_options_with_which_they_began(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    listener = pair.far.factory
    assert not set(protocol.WebSocketServerProtocol.CONFIG_ATTRS) & vars(pair.far).keys()
    listener.setProtocolOptions(autoPingInterval=9.0)
    listener.protocol = type(pair.far).__mro__[1].with_options(listener)
    later = listener.buildProtocol(None)
    assert (pair.far.autoPingInterval, later.autoPingInterval) == (5.0, 9.0)


@pytest.mark.parametrize("name", ["hltype", "hlval"])
def test_autobahn_colors_nothing_for_its_log(name: str) -> None:
    for module in (protocol, websocket):
        assert getattr(module, name)("value") == "value"
