"""What nodes announce of their clients goes where the channel goes, and to no reader."""

from __future__ import annotations

from typing import Any

import pytest

from linkd.api.presence import Presence
from linkd.config import ChannelSettings, PeerSettings
from linkd.net.rate_limit import FairShare
from linkd.protocol.peer import Volatile
from tests.support.fake_net import FakeNet, Kept, publish

EDGE = PeerSettings(name="edge", receive=("orders", "now"))
HUB = PeerSettings(name="hub", dial=("ws://hub/link",), send=("orders", "now"), receive=("back",))
HERE = b'{"joined":[[1,"ann","shop"]]}'


@pytest.fixture
def net() -> FakeNet:
    net = FakeNet()
    volatile = (ChannelSettings(name="now", delivery="volatile"),)
    net.node("hub", EDGE, channels=volatile)
    net.node("edge", HUB, channels=volatile)
    for node in net.nodes.values():
        node.start()
    net.run(0.1)
    return net


def heard_at(net: FakeNet, name: str) -> list[tuple[str, str]]:
    heard: list[tuple[str, str]] = []

    def note(message: Volatile, peer: str) -> None:
        heard.append((message.channel, peer))

    net.nodes[name].on_presence.append(note)
    return heard


def test_it_reaches_the_node_and_no_reader(net: FakeNet) -> None:
    edge, hub = net.nodes["edge"], net.nodes["hub"]
    kept = [Kept(), Kept()]
    for node, sink in zip((edge, hub), kept, strict=True):
        node.subscriptions.subscribe((">",), "earliest", sink)
    heard = heard_at(net, "hub")
    edge.announce("now", HERE)
    edge.announce("orders", HERE, "hub")
    edge.announce("orders", HERE, "another")
    edge.announce("private", HERE)
    hub.announce("now", HERE)
    net.run(0.1)
    assert heard == [("now", "edge"), ("orders", "edge")]
    assert [sink.volatiles + sink.bodies for sink in kept] == [[], []]
    assert hub.status().links[0].received_records == 0
    net.cut()
    edge.announce("now", HERE)
    assert not edge.counts


def test_nobody_can_publish_it(net: FakeNet) -> None:
    heard = heard_at(net, "hub")
    for channel in ("now", "orders"):
        publish(net.nodes["edge"], channel, HERE)
    net.run(0.1)
    assert heard == []


def test_those_at_two_nodes_hear_of_each_other_over_a_cut(net: FakeNet) -> None:
    heard: list[str] = []

    class Watcher:
        def changed(self, change: Any) -> None:
            heard.append(f"{change.kind} {change.member.name}")

    there = Presence(net.nodes["hub"], net.clock, FairShare(net.clock))
    here = Presence(net.nodes["edge"], net.clock, FairShare(net.clock))
    there.join("orders", "bob", "shop", Watcher())
    here.join("orders", "ann", "shop", None)
    net.run(1.0)
    assert heard == ["joined ann"]
    net.cut()
    net.run(0.1)
    assert heard == ["joined ann", "left ann"]
    net.open = True
    net.run(5.0)
    assert heard == ["joined ann", "left ann", "joined ann"]
    assert [one["name"] for one in here.members("orders")] == ["ann"]  # the hub sends it nothing
    for presence in (here, there):
        presence.stop()


def test_the_question_and_its_answer_pass_a_node_between() -> None:
    net = FakeNet()
    chat = ("chat",)
    names = ("left", "right", "other")
    net.node("hub", *[PeerSettings(name=name, send=chat, receive=chat) for name in names])
    for name in names:
        net.node(name, PeerSettings(name="hub", dial=("ws://hub/link",), send=chat, receive=chat))
    for node in net.nodes.values():
        node.start()
    net.run(0.2)
    there = {
        name: Presence(node, net.clock, FairShare(net.clock)) for name, node in net.nodes.items()
    }
    heard: list[str] = []

    class Watcher:
        def changed(self, change: Any) -> None:
            heard.append(f"{change.kind} {change.member.name}@{change.node}")

    number = there["right"].join("chat", "ann", "shop", None)
    net.run(0.5)
    at_other = heard_at(net, "other")
    there["left"].join("chat", "bob", "shop", Watcher())
    net.run(0.5)
    assert heard == ["joined ann@right"]
    there["right"].leave("chat", number)
    net.run(0.5)
    assert heard == ["joined ann@right", "left ann@right"]
    assert at_other == [("chat", "hub")]  # the question alone
    net.cut()
    net.open = True
    net.run(5.0)
    there["right"].join("chat", "cid", "shop", None)
    net.run(0.5)
    assert heard[2:] == ["joined cid@right"]
    for presence in there.values():
        presence.stop()
