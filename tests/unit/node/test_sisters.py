"""Volatile messages and presence between instances of one node, and the peers of each."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import pytest

from linkd.api.presence import Presence
from linkd.config import ChannelSettings, PeerSettings
from linkd.config.settings import ClusterSettings
from linkd.net.rate_limit import FairShare
from linkd.node import Node
from linkd.node.bus import Bus
from linkd.protocol.records import EncodedRecord, NewRecords, encode_records
from tests.support.fake_net import FakeNet, Kept, publish
from tests.support.fake_redis import FakeEnd, FakeRedis, SharedStores

CHAT = ("chat",)
VOLATILE = (ChannelSettings(name="chat", delivery="volatile"),)


class Watcher:
    """A client that watches who is there."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def changed(self, change: Any) -> None:
        who = "" if change.member is None else f" {change.member.name}@{change.node}"
        self.heard.append(f"{change.kind}{who} {change.count}")


class Cluster:
    """Two instances of `hub` with an edge each: `left` is at `a`, `right` at `b`.

    Args:
        relay: What the edges say of each other goes on to them.
    """

    def __init__(self, relay: bool = True) -> None:
        self.net = FakeNet()
        self.clock = self.net.clock
        self.redis = FakeRedis(self.clock)
        stores = SharedStores()
        peers = [
            PeerSettings(name=name, send=CHAT, receive=CHAT, relay=relay)
            for name in ("left", "right")
        ]
        self.hubs: list[Node] = []
        self.ends: list[FakeEnd] = []
        self.edges: list[Node] = []
        for letter, edge in zip("ab", ("left", "right"), strict=True):
            cluster = ClusterSettings(instance=letter)
            hub = self.net.node("hub", *peers, channels=VOLATILE, cluster=cluster)
            post = partial(self.clock.callLater, 0)
            bus = Bus("hub", "log", stores.store(), self.clock, post)
            hub.take_bus(bus)
            bus.holds = lambda peer, edge=edge: peer == edge  # type: ignore[misc]
            self.hubs.append(hub)
            self.ends.append(FakeEnd(self.redis, bus))
            there = PeerSettings(
                name="hub", dial=("ws://hub/link",), send=CHAT, receive=CHAT, relay=relay
            )
            self.edges.append(self.net.node(edge, there, channels=VOLATILE))
            hub.start()
            self.edges[-1].start()
            self.net.run(0.2)
            bus.start(self.ends[-1])
            self.net.run(0.2)
        self.net.run(1.0)
        self.presences: list[Presence] = []

    def presence(self, node: Node, number: int = 0) -> Presence:
        """Return the presence of one of the nodes."""
        one = Presence(node, self.clock, FairShare(self.clock), number)
        self.presences.append(one)
        return one

    def close(self) -> None:
        """End what would go on."""
        for presence in self.presences:
            presence.stop()


def follow(node: Node) -> Kept:
    kept = Kept()
    node.subscriptions.subscribe(("chat",), "latest", kept)
    return kept


def test_a_volatile_message_reaches_all_readers_and_peers_of_all_instances_once() -> None:
    cluster = Cluster()
    a, b = cluster.hubs
    left, right = cluster.edges
    readers = [follow(node) for node in (a, b, left, right)]
    publish(a, "chat", b'"of a"')
    publish(b, "chat", b'"of b"')
    publish(left, "chat", b'"of left"')
    cluster.net.run(0.5)
    for kept in readers:
        assert sorted(kept.volatiles) == [b'"of a"', b'"of b"', b'"of left"']
    assert not {what: count for what, count in a.counts.items() if what[0] == "dropped"}
    assert not b.counts


def test_an_edge_gets_nothing_of_another_one_where_relaying_is_off() -> None:
    cluster = Cluster(relay=False)
    right = follow(cluster.edges[1])
    publish(cluster.edges[0], "chat", b'"of left"')
    publish(cluster.hubs[0], "chat", b'"of a"')
    cluster.net.run(0.5)
    assert right.volatiles == [b'"of a"']


def test_a_message_that_comes_over_two_ways_is_taken_once_and_ours_never() -> None:
    cluster = Cluster()
    a, b = cluster.hubs
    kept = follow(b)
    sent: list[Any] = []
    a.bus.send = sent.append  # type: ignore[method-assign, union-attr]
    publish(a, "chat", b"1")
    [message] = sent
    for peer in ("left", "/sister", "/sister"):
        b.passed(message, peer)
    a.passed(message, "left")
    assert kept.volatiles == [b"1"]
    assert not b.counts
    assert a.counts["repeated", "left"] == 1
    b.passed(message, "right")
    assert b.counts["repeated", "right"] == 1


def test_alone_a_message_with_our_name_never_comes_from_another() -> None:
    net = FakeNet()
    hub = net.node("hub", PeerSettings(name="left", send=CHAT), channels=VOLATILE)
    message = hub._volatile.make(one())
    kept = follow(hub)
    hub.passed(msgspec.structs.replace(message, run="another"), "left")
    assert kept.volatiles == []


def one() -> Any:
    return NewRecords("chat", 1, encode_records((EncodedRecord(b"1", "", "", "text/plain"),)), 0.0)


def test_members_at_all_instances_and_behind_them_know_of_each_other() -> None:
    cluster = Cluster()
    a, b = (cluster.presence(hub, n << 20) for n, hub in enumerate(cluster.hubs))
    left, right = (cluster.presence(edge) for edge in cluster.edges)
    watchers = [Watcher() for _ in range(4)]
    for presence, name, watcher in zip(
        (a, b, left, right), ("ann", "bob", "lea", "roy"), watchers, strict=True
    ):
        presence.join("chat", name, "key", watcher)  # type: ignore[arg-type]
        cluster.net.run(2.0)
    names = {"ann@hub", "bob@hub", "lea@left", "roy@right"}
    for presence in (a, b, left, right):
        assert {f"{one['name']}@{one['node']}" for one in presence.members("chat")} == names
        assert presence.count("chat") == 4
        assert len({one["id"] for one in presence.members("chat")}) == 4
    assert "joined roy@right 4" in watchers[2].heard
    assert "joined bob@hub 2" in watchers[0].heard
    cluster.close()


def test_members_that_leave_leave_everywhere() -> None:
    cluster = Cluster()
    a, b = (cluster.presence(hub, n << 20) for n, hub in enumerate(cluster.hubs))
    left, right = (cluster.presence(edge) for edge in cluster.edges)
    watcher = Watcher()
    a.join("chat", "ann", "key", None)
    left.join("chat", "lea", "key", watcher)  # type: ignore[arg-type]
    number = b.join("chat", "bob", "key", None)
    far = right.join("chat", "roy", "key", None)
    cluster.net.run(2.0)
    assert left.count("chat") == 4
    b.leave("chat", number)
    right.leave("chat", far)
    cluster.net.run(2.0)
    assert left.count("chat") == 2
    assert watcher.heard[-2:] in (
        ["left bob@hub 3", "left roy@right 2"],
        ["left roy@right 3", "left bob@hub 2"],
    )
    cluster.close()


def test_members_at_an_instance_that_dies_and_behind_it_are_gone_and_come_back() -> None:
    cluster = Cluster()
    a, b = (cluster.presence(hub, n << 20) for n, hub in enumerate(cluster.hubs))
    left, right = (cluster.presence(edge) for edge in cluster.edges)
    watcher = Watcher()
    a.join("chat", "ann", "key", watcher)  # type: ignore[arg-type]
    left.join("chat", "lea", "key", Watcher())  # type: ignore[arg-type]
    b.join("chat", "bob", "key", None)
    right.join("chat", "roy", "key", None)
    cluster.net.run(2.0)
    assert (a.count("chat"), left.count("chat")) == (4, 4)
    cluster.ends[1].open = False
    cluster.net.run(4.0)
    assert a.count("chat") == 4
    cluster.net.run(4.0)
    assert (a.count("chat"), left.count("chat")) == (2, 2)
    assert set(watcher.heard[-2:]) in (
        {"left bob@hub 3", "left roy@right 2"},
        {"left roy@right 3", "left bob@hub 2"},
    )
    cluster.ends[1].open = True
    cluster.net.run(4.0)
    assert (a.count("chat"), left.count("chat")) == (4, 4)
    cluster.close()


@pytest.mark.parametrize("which", [0, 1])
def test_who_asks_later_hears_of_those_at_both_instances(which: int) -> None:
    cluster = Cluster()
    a, b = (cluster.presence(hub, n << 20) for n, hub in enumerate(cluster.hubs))
    edge = cluster.presence(cluster.edges[which])
    a.join("chat", "ann", "key", None)
    b.join("chat", "bob", "key", None)
    cluster.net.run(1.0)
    assert edge.want("chat")
    cluster.net.run(2.0)
    assert {one["name"] for one in edge.members("chat")} == {"ann", "bob"}
    cluster.close()


def test_what_an_instance_announces_of_itself_over_a_peer_is_not_taken() -> None:
    cluster = Cluster()
    a = cluster.presence(cluster.hubs[0])
    a.join("chat", "ann", "key", Watcher())  # type: ignore[arg-type]
    cluster.net.run(1.0)
    message = cluster.hubs[1]._volatile.make(one(), presence=True)
    a._heard(msgspec.structs.replace(message, records=joined("eve")), "left")
    cluster.net.run(1.0)
    assert a.count("chat") == 1
    a.stop()
    a._sister_changed("/x", is_up=True)
    assert not a._sisters


def joined(name: str) -> bytes:
    body = msgspec.json.encode({"joined": [[7, name, "key"]]})
    return encode_records((EncodedRecord(body, "", "", "application/json"),))
