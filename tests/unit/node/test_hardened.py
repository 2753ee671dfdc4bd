"""A node that must not be worn down: bugs in a tick, waits given up, long runs owed to nobody."""

from __future__ import annotations

import msgspec
import pytest

from linkd.config import PeerSettings
from linkd.events.observers import RepeatFilter
from linkd.protocol import peer
from tests.support.fake_net import FakeNet, one_publish, publish

EDGE = PeerSettings(name="edge", receive=("orders",))
HUB = PeerSettings(name="hub", dial=("ws://hub/link",), send=("orders",), receive=(">",))


def make():
    net = FakeNet()
    net.node("hub", EDGE)
    net.node("edge", HUB)
    for n in net.nodes.values():
        n.start()
    net.run(0.1)
    return net


def test_wait_survives_reload():
    net = make()
    edge = net.nodes["edge"]
    net.cut()
    off = one_publish(edge, "orders", b"x")
    fired = []
    edge.links.wait_for("hub", off + 1).addBoth(fired.append)
    edge.reload(
        msgspec.structs.replace(
            edge.config, peers=(msgspec.structs.replace(HUB, required=not HUB.required),)
        )
    )
    net.open = True
    net.run(5.0)
    assert edge.link("hub").replicator.session.outbound.acked > off
    assert fired


def test_removed_peer_ends_waits():
    net = make()
    edge = net.nodes["edge"]
    net.cut()
    off = one_publish(edge, "orders", b"x")
    fired = []
    edge.links.wait_for("hub", off + 1).addBoth(fired.append)
    edge.reload(msgspec.structs.replace(edge.config, peers=()))
    net.run(5.0)
    assert fired


def test_cancelled_waits_are_forgotten():
    net = make()
    edge = net.nodes["edge"]
    net.cut()
    off = one_publish(edge, "orders", b"x")
    for _ in range(1000):
        d = edge.links.wait_for("hub", off + 1)
        d.addErrback(lambda _: None)
        d.cancel()
    assert len(edge.links._waits["hub"]._heap) < 200


def test_tick_survives_a_bug():
    net = make()
    edge = net.nodes["edge"]
    real = edge.dispatcher.tick

    def bad():
        edge.dispatcher.tick = real
        raise RuntimeError("bug")

    edge.dispatcher.tick = bad
    net.run(1.0)
    assert edge._tick.running


def test_long_unowed_backlog_in_memory():
    net = make()
    edge = net.nodes["edge"]
    net.cut()
    for _ in range(2600):
        publish(edge, "private", b"x" * 250_000)
    net.open = True
    net.run(5.0)
    assert edge.link("hub").link.state == "up"
    assert edge.link("hub").replicator.session.outbound.position == edge.log.next


def test_what_a_peer_sends_in_vain_takes_no_memory_and_few_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = FakeNet()
    hub = net.node("hub", PeerSettings(name="edge"))
    net.node("edge", PeerSettings(name="hub", dial=("ws://hub/link",)))
    for node in net.nodes.values():
        node.start()
    net.run(0.1)
    folding, lines = RepeatFilter(), []

    def emit(event: str, level: str | None = None, **fields: object) -> None:
        lines.extend(folding.take(event, fields, net.clock.seconds()))

    monkeypatch.setattr("linkd.events.emit", emit)
    driver = hub.link("edge")
    for number in range(5000):
        message = peer.Volatile(f"c{number}", 1, b"\x91\xc4\x01x", 0.0, None, "edge", "r", number)
        driver.received(driver.connection, message)
    driver.received(driver.connection, peer.Volatile("\x1b", 1, b"\xc0", 0.0, None, "e", "r", 1))
    assert hub.counts == {("refused", "edge"): 5001}
    lines += folding.flush(net.clock.seconds(), all=True)
    assert len(lines) == 2
    assert lines[1][1]["repeats"] == 5000
    assert lines[1][1]["detail"] == (
        "edge sent c0, c1, c2, c3, c4, c5, c6, c7 and others, which `receive` does not have:"
        " left out"
    )
