"""A node that must not be worn down: bugs in a tick, waits given up, long runs owed to nobody."""

from __future__ import annotations

import msgspec

from linkd.config import PeerSettings
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
    edge.wait_for("hub", off + 1).addBoth(fired.append)
    edge.reload(
        msgspec.structs.replace(
            edge.config, peers=(msgspec.structs.replace(HUB, required=not HUB.required),)
        )
    )
    net.open = True
    net.run(5.0)
    assert edge.link("hub").carrier.session.outbound.acked > off
    assert fired


def test_removed_peer_ends_waits():
    net = make()
    edge = net.nodes["edge"]
    net.cut()
    off = one_publish(edge, "orders", b"x")
    fired = []
    edge.wait_for("hub", off + 1).addBoth(fired.append)
    edge.reload(msgspec.structs.replace(edge.config, peers=()))
    net.run(5.0)
    assert fired


def test_cancelled_waits_are_forgotten():
    net = make()
    edge = net.nodes["edge"]
    net.cut()
    off = one_publish(edge, "orders", b"x")
    for _ in range(1000):
        d = edge.wait_for("hub", off + 1)
        d.addErrback(lambda _: None)
        d.cancel()
    assert len(edge._links._waits["hub"]._heap) < 200


def test_tick_survives_a_bug():
    net = make()
    edge = net.nodes["edge"]
    real = edge._spread.tick

    def bad():
        edge._spread.tick = real
        raise RuntimeError("bug")

    edge._spread.tick = bad
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
    assert edge.link("hub").carrier.session.outbound.position == edge.log.next
