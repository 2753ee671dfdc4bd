"""A peer that calls another node's log its own: it would decide what of that counts as here."""

from __future__ import annotations

import msgspec

from linkd.config import PeerSettings
from linkd.node.node import Node
from tests.support.fake_net import FakeNet, Kept, one_publish

ALL = {"send": (">",), "receive": (">",)}


def dialed(name: str) -> PeerSettings:
    return PeerSettings(name=name, dial=(f"ws://{name}/link",), **ALL)


def dials(name: str, relay: bool = True) -> PeerSettings:
    return PeerSettings(name=name, relay=relay, **ALL)


def start(net: FakeNet, *names: str) -> None:
    for name in names:
        net.nodes[name].start()
        net.run(0.5)


def state(node: Node, peer: str) -> str:
    return next(link.state for link in node.status().links if link.peer == peer)


def read(net: FakeNet, node: Node) -> list[bytes]:
    kept = Kept()
    node.subscriptions.subscribe((">",), "earliest", kept)
    net.run(0.01)
    return kept.bodies


def two_edges(relay: bool = False) -> tuple[FakeNet, Node, Node, Node]:
    net = FakeNet()
    hub = net.node("hub", dials("mallory", relay), dials("victim"))
    victim, mallory = net.node("victim", dialed("hub")), net.node("mallory", dialed("hub"))
    return net, hub, victim, mallory


def test_a_peer_cannot_call_the_log_of_another_one_its_own() -> None:
    for relay in (False, True):
        net, hub, victim, mallory = two_edges(relay)
        start(net, "hub", "victim")
        mallory.log.id = victim.log.id
        start(net, "mallory")
        assert (state(hub, "victim"), state(hub, "mallory")) == ("up", "waiting")
        assert any("calls victim's log" in str(event) for event in hub.events.after(0))


def test_not_before_the_other_one_is_back_either() -> None:
    net, hub, victim, mallory = two_edges()
    start(net, "hub", "victim")
    one_publish(victim, "orders", b"one")
    net.run(0.5)
    hub.ends.disown("victim")  # as after a restart: what is known of it is in the log
    settings = hub.config
    without = msgspec.structs.replace(settings, peers=(settings.peers[0],))
    hub.reload(without)
    hub.reload(settings)
    mallory.log.id = victim.log.id
    start(net, "mallory")
    assert state(hub, "mallory") == "waiting"
    assert read(net, hub) == [b"one"]


def test_a_peer_cannot_call_the_hubs_log_its_own() -> None:
    net, hub, _, mallory = two_edges()
    start(net, "hub")
    mallory.log.id = hub.log.id
    start(net, "mallory")
    assert state(hub, "mallory") == "waiting"


def test_an_edge_cannot_call_the_log_of_a_node_behind_another_hub_its_own() -> None:
    for relay, expected in ((False, "waiting"), (True, "up")):
        net = FakeNet()
        hub = net.node("hub", dials("mallory", relay), dials("other"))
        net.node("other", dialed("hub"), dials("third"))
        third, mallory = net.node("third", dialed("other")), net.node("mallory", dialed("hub"))
        start(net, "hub", "other", "third")
        one_publish(third, "orders", b"one")
        net.run(0.5)
        assert read(net, hub) == [b"one"]
        mallory.log.id = third.log.id
        start(net, "mallory")
        assert state(hub, "mallory") == expected


def test_a_node_may_come_itself_whose_records_others_brought() -> None:
    net = FakeNet()
    hub = net.node("hub", dials("third", relay=False), dials("other"))
    net.node("other", dialed("hub"), dials("third"))
    third = net.node("third", dialed("other"), dialed("hub"))
    start(net, "hub", "other")
    net.open = True
    start(net, "third")
    one_publish(third, "orders", b"one")
    net.run(0.5)
    assert state(hub, "third") == "up"
    assert read(net, hub) == [b"one"]


def test_a_renamed_node_keeps_its_log() -> None:
    net, hub, victim, mallory = two_edges()
    start(net, "hub", "victim")
    one_publish(victim, "orders", b"one")
    net.run(0.5)
    victim.stop("it is renamed")
    hub.reload(msgspec.structs.replace(hub.config, peers=(dials("mallory", relay=False),)))
    mallory.log.id = victim.log.id
    start(net, "mallory")
    assert state(hub, "mallory") == "up"
