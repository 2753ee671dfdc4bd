"""The options of a factory are those of its connections, and no list of them is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
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
