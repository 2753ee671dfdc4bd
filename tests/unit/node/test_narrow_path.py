"""A path that loses large messages: the cause is found, and the next dial passes."""

from __future__ import annotations

from typing import Any

import pytest

from linkd.cli.status import check_line
from linkd.config import PeerSettings
from linkd.core.liveness import LEAST_SEGMENT_BYTES, SEGMENT_BYTES
from linkd.node import Node
from tests.support.fake_net import FakeNet, one_publish

EDGE = PeerSettings(name="edge", send=("down",), receive=("up",))
HUB = PeerSettings(name="hub", dial=("ws://hub/link",), send=("up",), receive=("down",))


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> FakeNet:
    net = FakeNet()
    # The wall clocks of both go as fast as the clock of the test.
    monkeypatch.setattr("linkd.node.link_driver.wall", lambda: 1e9 + net.clock.seconds())
    net.node("hub", EDGE)
    net.node("edge", HUB)
    for node in net.nodes.values():
        node.start()
    net.run(0.1)
    net.largest = 1300
    for end in net.ends:
        end.largest = 1300
    return net


def told(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    tell = node.log_event

    def listen(level: str, event: str, **fields: Any) -> None:
        if event == "link.large-messages-lost":
            lines.append(str(fields["detail"]))
        tell(level, event, **fields)

    monkeypatch.setattr(node, "log_event", listen)
    return lines


@pytest.mark.parametrize(("name", "channel"), [("edge", "up"), ("hub", "down")])
def test_the_cause_is_found_and_the_next_dial_passes(
    net: FakeNet, monkeypatch: pytest.MonkeyPatch, name: str, channel: str
) -> None:
    owes, edge = net.nodes[name], net.nodes["edge"]
    other = "hub" if name == "edge" else "edge"
    lines = told(owes, monkeypatch)
    one_publish(owes, channel, bytes(20_000))
    net.run_with_silence(20.0)
    assert lines == []
    assert owes.status().links[0].backlog_records == 1
    net.run_with_silence(60.0)
    assert lines == [
        f"small messages pass to {other}, large ones do not: MTU? The next connection is dialed"
        " with smaller TCP segments"
    ]
    assert edge.link("hub").dialer.segment_bytes == SEGMENT_BYTES
    assert owes.status().links[0].backlog_records == 0
    assert owes.status().links[0].state == "up"
    assert (
        f"small messages pass to {other}, large ones do not: MTU?" in check_line(owes.status())[1]
    )
    assert check_line(edge.status())[0] == 1


def test_a_connection_that_acknowledged_nothing_new_is_not_proved(net: FakeNet) -> None:
    edge = net.nodes["edge"]
    one_publish(edge, "private", b"moves the position, which is acknowledged")
    one_publish(edge, "up", bytes(20_000))
    proved: list[bool] = []
    edge.link("hub").acknowledged = lambda: proved.append(True)  # type: ignore[method-assign]
    net.run_with_silence(20.0)
    assert proved == []
    net.largest = None
    net.run_with_silence(20.0)
    assert proved == [True]


def test_a_path_that_carries_the_probes_is_used(net: FakeNet) -> None:
    edge = net.nodes["edge"]
    one_publish(edge, "up", bytes(20_000))
    net.run_with_silence(22.0)
    net.largest = None
    net.run_with_silence(20.0)
    assert edge.status().links[0].backlog_records == 0
    assert edge.link("hub").dialer.segment_bytes == 0
    assert check_line(edge.status())[0] == 0


def test_no_peer_can_ask_for_tiny_segments(net: FakeNet) -> None:
    driver = net.nodes["edge"].link("hub")
    assert driver._narrow(1)
    assert driver.dialer.segment_bytes == LEAST_SEGMENT_BYTES
    assert not driver._narrow(LEAST_SEGMENT_BYTES)
    assert not driver._narrow(1), "it would dial anew for each hello"
    assert not driver._narrow(0)
    assert not net.nodes["hub"].link("edge")._narrow(1200)
