"""Who is there at any node: changes and snapshots, links that fall, nodes that begin again."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.task import Clock

from linkd.api import presence
from linkd.api.http import to_json
from linkd.api.presence import (
    GATHER_SECONDS,
    HOLD,
    MAX_CHANGES,
    REPEAT_SECONDS,
    Presence,
    PresenceChange,
)
from linkd.net.rate_limit import FairShare
from linkd.protocol.peer import Volatile
from linkd.protocol.records import EncodedRecord, encode_records
from linkd.status import Event


class Watcher:
    """One who watches."""

    def __init__(self) -> None:
        self.heard: list[PresenceChange] = []

    def changed(self, change: PresenceChange) -> None:
        self.heard.append(change)

    def take(self) -> list[str]:
        """Return what was heard since: `joined ann@edge 2`."""
        heard, self.heard = self.heard, []
        return [
            f"{one.kind} {one.member.name}@{one.node} {one.count}"
            if one.member
            else f"{one.kind} {one.count}"
            for one in heard
        ]


class Net:
    """Nodes in a row, each linked with the next; what one announces passes along."""

    def __init__(self, *names: str) -> None:
        self.clock = Clock()
        self.nodes = {name: Node(self, name) for name in names}
        self.up = set(pairwise(names))
        self.drop = False
        self.sent: list[str] = []
        for node in self.nodes.values():
            node.begin()

    def __getitem__(self, name: str) -> Presence:
        return self.nodes[name].presence

    def links(self, name: str) -> list[str]:
        """Return who is linked with a node."""
        return [a if b == name else b for a, b in self.up if name in (a, b)]

    def send(
        self, message: Volatile, at: str, source: str, only: Collection[str] | None = None
    ) -> None:
        for peer in self.links(at):
            if peer not in (source, message.node) and (only is None or peer in only):
                self.sent.append(f"{at} {peer}")
                for heard in () if self.drop else self.nodes[peer].on_presence:
                    heard(message, at)

    def cut(self, a: str, b: str) -> None:
        self.up.discard((a, b))
        self.nodes[a].link(b, "up", "waiting")
        self.nodes[b].link(a, "up", "waiting")
        self.settle(0.1)

    def join(self, a: str, b: str) -> None:
        self.up.add((a, b))
        self.nodes[a].link(b, "resuming", "up")
        self.nodes[b].link(a, "resuming", "up")
        self.settle()

    def names(self, name: str, channel: str = "chat") -> list[str]:
        """Return who is there as one node has it, after it asked."""
        self[name].want(channel)
        self.settle()
        return names(self[name], channel)

    def settle(self, seconds: float = 2.0) -> None:
        for _ in range(int(seconds * 100)):
            self.clock.advance(0.01)


class Node:
    """What presence needs of a node."""

    def __init__(self, net: Net, name: str) -> None:
        self.net = net
        self.name = name
        self.boots = 0
        self.events = self.dispatcher = self  # it is its own parts
        self.begin()

    def begin(self) -> None:
        """Start, or start again: nothing is known."""
        self.boots += 1
        self.sequence = 0
        self.on_presence: list[Callable[[Volatile, str], None]] = []
        self.on_sister: list[Any] = []
        self.bus: Any = None
        self.watchers: list[Callable[[Event], None]] = []
        node: Any = self
        self.presence = Presence(node, self.net.clock, FairShare(self.net.clock))

    def follow(self, call: Callable[[Event], None]) -> Callable[[], None]:
        self.watchers.append(call)
        return lambda: self.watchers.remove(call)

    def link(self, peer: str, old: str, new: str) -> None:
        for call in list(self.watchers):
            call(Event(1, "", f"link.{new}", peer, None, old, new, None, None))

    def peers(self) -> list[str]:
        return self.net.links(self.name)

    def one_way(self, channel: str) -> list[str]:
        return self.peers() if channel.startswith("out.") else []

    def volatile(
        self, message: Volatile, source: str, peers: Collection[str] | None = None
    ) -> None:
        self.net.send(message, self.name, source, peers)

    def announce(self, channel: str, body: bytes, peers: Collection[str] | None = None) -> None:
        self.sequence += 1
        records = encode_records([EncodedRecord(body, "", "", "application/json")])
        message = Volatile(
            channel, 1, records, 0.0, None, self.name, f"r{self.boots}", self.sequence, True
        )
        self.net.send(message, self.name, self.name, peers)


@pytest.fixture
def net() -> Net:
    return Net("edge", "hub", "far")


def names(there: Presence, channel: str = "chat") -> list[str]:
    return sorted(f"{one['name']}@{one['node']}" for one in there.members(channel))


def test_joins_and_leaves_are_reported_at_every_node(net: Net) -> None:
    watcher = Watcher()
    net["edge"].join("chat", "ann", "shop", watcher)
    number = net["far"].join("chat", "bob", "shop", None)
    net["far"].join("other", "eve", "shop", None)
    net.settle(1.0)
    assert watcher.take() == ["joined bob@far 2"]
    for each in ("edge", "hub", "far"):
        assert net.names(each) == ["ann@edge", "bob@far"]
    net["far"].leave("chat", number)
    net.settle(2 * GATHER_SECONDS)
    assert watcher.take() == ["left bob@far 1"]
    assert net.names("hub") == ["ann@edge"]


def test_member_ids_differ_between_nodes(net: Net) -> None:
    for name in ("edge", "hub", "far"):
        net[name].join("chat", "same", "shop", None)
    net.names("edge")
    ids = {one["id"] for one in net["edge"].members("chat")}
    assert ids == {"edge/1", "hub/1", "far/1"}


def test_members_behind_a_lost_link_are_removed(net: Net) -> None:
    watcher = Watcher()
    net["edge"].join("chat", "ann", "shop", watcher)
    net["far"].join("chat", "bob", "shop", None)
    net["hub"].join("chat", "cid", "shop", None)
    net.settle()
    watcher.take()
    net.cut("hub", "far")
    assert watcher.take() == ["left bob@far 2"]
    assert net.names("far") == ["bob@far"]
    net.cut("edge", "hub")
    assert watcher.take() == ["left cid@hub 1"]
    net.join("edge", "hub")
    assert watcher.take() == ["joined cid@hub 2"]
    net.join("hub", "far")
    assert watcher.take() == ["joined bob@far 3"]
    assert net.names("far") == net.names("edge") == ["ann@edge", "bob@far", "cid@hub"]


def test_members_of_a_node_are_removed_when_it_restarts(net: Net) -> None:
    watcher = Watcher()
    net["edge"].join("chat", "ann", "shop", watcher)
    net["hub"].join("chat", "bob", "shop", None)
    net.settle()
    watcher.take()
    net["hub"].stop()
    net.nodes["hub"].begin()  # faster than its links could be noticed to fall
    net["hub"].join("chat", "cid", "shop", None)
    net.settle(2 * REPEAT_SECONDS)
    assert watcher.take() == ["left bob@hub 1", "joined cid@hub 2"]


def test_a_client_of_a_new_node_gets_the_members_of_the_others(net: Net) -> None:
    net["far"].join("chat", "bob", "shop", None)
    net.settle()
    net["edge"].stop()
    net.nodes["edge"].begin()
    assert names(net["edge"]) == []
    watcher = Watcher()
    net["edge"].join("chat", "ann", "shop", watcher)
    net.settle()
    assert net.names("edge") == ["ann@edge", "bob@far"]
    assert watcher.take() == ["joined bob@far 2"]


def test_a_lost_announcement_is_repaired_by_the_next_query(net: Net) -> None:
    watcher = Watcher()
    net["edge"].join("chat", "ann", "shop", watcher)
    gone = net["far"].join("chat", "bob", "shop", None)
    net["far"].join("chat", "dan", "shop", None)
    net.settle()
    watcher.take()
    net.drop = True
    net["far"].leave("chat", gone)
    net["far"].join("chat", "cid", "shop", None)
    net.settle()
    net.drop = False
    assert watcher.take() == []
    net.settle(2 * REPEAT_SECONDS)
    assert watcher.take() == ["left bob@far 2", "joined cid@far 3"]


def test_many_members_are_announced_in_several_messages(net: Net) -> None:
    numbers = [net["far"].join("chat", f"n{n}", "shop", None) for n in range(1000)]
    assert len(net.names("edge")) == 1000
    net["far"].join("chat", "one more", "shop", None)
    net.settle()
    assert (len(net["edge"].members("chat")), net["edge"].count("chat")) == (1000, 1001)
    for number in numbers[:999]:
        net["far"].leave("chat", number)
    net.drop = True
    net.settle()
    net.drop = False
    net.settle(REPEAT_SECONDS)
    assert net.names("edge") == ["n999@far", "one more@far"]


def test_nothing_is_kept_of_members_that_left(net: Net) -> None:
    watcher = Watcher()
    number = net["edge"].join("chat", "ann", "shop", watcher)
    other = net["far"].join("chat", "bob", "shop", None)
    net.settle()
    net["far"].leave("chat", other)
    net.settle()
    net["edge"].leave("chat", number)
    net.settle((HOLD + 1) * REPEAT_SECONDS)
    assert watcher.take() == ["joined bob@far 2", "left bob@far 1"]
    for name in ("edge", "hub", "far"):
        assert not net[name]._channels
        net[name].stop()
    assert not net.clock.getDelayedCalls()


def test_presence_on_a_pattern_stays_within_its_node(net: Net) -> None:
    watcher = Watcher()
    net["edge"].join("chat.*", "ann", "shop", watcher)
    net["edge"].join("chat.*", "bob", "shop", None)
    net.settle()
    assert watcher.take() == ["joined bob@edge 2"]
    assert net.names("hub", "chat.*") == []


def test_announcements_of_a_peer_are_validated_and_bounded(net: Net) -> None:
    long = b'{"joined":[[1,"' + b"x" * 65 + b'","k"]]}'
    net.names("edge")
    net.names("hub")
    for body in (b"nonsense", long, b'{"joined":[[-1,"a","k"]]}', b'{"here":7}', b"\xff"):
        net.nodes["hub"].announce("chat", body)
    forged = b'{"ended":["far"]}'
    net["far"].join("chat", "bob", "shop", None)
    net.settle()
    net.nodes["edge"].announce("chat", forged)  # it never heard of far by the hub's link to far
    assert net.names("hub") == ["bob@far"]
    assert net.names("edge") == ["bob@far"]
    net.nodes["hub"].announce("chat", b'{"joined":[[1,"ann","k"],[2,"b\\u0007b","k"]]}')
    assert net.names("edge") == ["ann@hub", "bob@far"]
    many = [[number, "n", "k"] for number in range(MAX_CHANGES + 1)]
    net.nodes["hub"].announce("chat", to_json({"joined": many}))
    assert len(names(net["edge"])) == 2
    net.nodes["hub"].announce("chat", to_json({"joined": many[1:]}))
    assert len(names(net["edge"])) == 1 + MAX_CHANGES


class Slow:
    """One who watches; to send it something takes a millisecond."""

    sent = 0

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.last: PresenceChange | None = None

    def changed(self, change: PresenceChange) -> None:
        Slow.sent += 1
        self.last = change
        self.clock.rightNow += 0.001


def longest_turn(clock: Clock, turns: int = 6000) -> float:
    """Run what is due, and return for how long one turn of it took."""
    longest = 0.0
    for _ in range(turns):
        before = clock.seconds()
        for call in sorted(clock.getDelayedCalls(), key=lambda call: call.getTime()):
            if call.active() and call.getTime() <= before:
                clock.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)
        longest = max(longest, clock.seconds() - before)
        clock.rightNow += 0.01
    return longest


def announce_many(net: Net, many: int) -> None:
    for first in range(0, many, MAX_CHANGES):
        members = [[n, f"n{n}", "k"] for n in range(first, min(many, first + MAX_CHANGES))]
        net.nodes["hub"].announce("chat", to_json({"joined": members}))


def test_each_change_is_encoded_once_and_sent_in_slices(net: Net) -> None:
    watchers = [Slow(net.clock) for _ in range(500)]
    for watcher in watchers:
        net["edge"].join("chat", "w", "shop", watcher)
    assert longest_turn(net.clock) <= 0.010
    Slow.sent = 0
    announce_many(net, 10)
    assert Slow.sent == 0  # nothing in the turn of the link
    assert longest_turn(net.clock) <= 0.010
    assert Slow.sent == 10 * 500
    assert len({id(watcher.last) for watcher in watchers}) == 1
    last = watchers[0].last
    assert last is not None
    assert last.message is last.message
    assert last.count == 510


def test_too_many_changes_are_replaced_by_the_member_count(net: Net) -> None:
    watchers = [Slow(net.clock) for _ in range(500)]
    for watcher in watchers:
        net["edge"].join("chat", "w", "shop", watcher)
    longest_turn(net.clock)
    Slow.sent = 0
    announce_many(net, 2000)
    assert longest_turn(net.clock) <= 0.010
    assert Slow.sent <= 2 * 500
    assert {(w.last.kind, w.last.count) for w in watchers if w.last} == {("present", 2500)}
    Slow.sent = 0
    net.nodes["edge"].link("hub", "up", "waiting")
    assert Slow.sent == 0
    assert longest_turn(net.clock) <= 0.010
    assert Slow.sent <= 2 * 500
    assert {(w.last.kind, w.last.count) for w in watchers if w.last} == {("present", 500)}
    assert watchers[0].last is not None
    assert watchers[0].last.sentence == b'"500 are present"'


def test_one_link_cannot_fill_the_table_of_members(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "MAX_REMOTE", 2000)
    announce_many(net, 2000)
    assert len(names(net["far"])) < 1000
    assert net["edge"].count("chat") <= 1000  # a node has half of what its link may have
    for n in range(100):
        net["edge"].join("chat", f"e{n}", "shop", None)
        net["far"].join("chat", f"f{n}", "shop", None)
    net.settle()
    assert len([name for name in net.names("hub") if name.endswith("@far")]) == 100
    assert len([name for name in net.names("edge") if name.endswith("@far")]) == 100
    net.cut("edge", "hub")
    assert net["edge"]._remote == 0


def test_an_error_at_one_watcher_costs_the_others_one_change(net: Net) -> None:
    class Wrong:
        def changed(self, change: PresenceChange) -> None:
            raise RuntimeError("a mistake")

    watcher = Watcher()
    net["edge"].join("chat", "ann", "shop", watcher)
    number = net["edge"].join("chat", "eve", "shop", Wrong())
    net["edge"].join("chat", "bob", "shop", None)
    net.settle()
    net["edge"].leave("chat", number)
    net["edge"].join("chat", "cid", "shop", None)
    net.settle()
    assert watcher.take()[-2:] == ["left eve@edge 2", "joined cid@edge 3"]


def test_nothing_is_announced_without_a_watcher(net: Net) -> None:
    for name in ("edge", "hub", "far"):
        net[name].join("chat", name, "shop", None)
    net.settle(10 * REPEAT_SECONDS)
    assert net.sent == []
    net["edge"].join("chat", "ann", "shop", Watcher())
    net.settle()
    # The question goes everywhere, the answers back; neither of them to anybody else.
    assert sorted(net.sent) == ["edge hub", "far hub", "hub edge", "hub edge", "hub far"]
    net.sent.clear()
    net["edge"].join("chat", "bob", "shop", None)
    net.settle(1.0)
    assert net.sent == []
    net["far"].join("chat", "cid", "shop", None)
    net.settle(1.0)
    assert net.sent == ["far hub", "hub edge"]


def test_queries_are_spread_over_time(net: Net) -> None:
    for number in range(300):
        net["edge"].join(f"room.{number}", "ann", "shop", Watcher())
    net.settle(1.0)
    net.sent.clear()
    counts = []
    for _ in range(170):
        net.settle(0.3)
        counts.append(len(net.sent))
        net.sent.clear()
    assert sum(counts) >= 2 * 300
    assert max(counts) < 2 * 75


def test_a_peer_that_cannot_query_gets_the_members(net: Net) -> None:
    watcher = Watcher()
    number = net["edge"].join("out.a", "ann", "shop", None)
    net["hub"].join("out.a", "bob", "shop", watcher)
    net.settle(2 * REPEAT_SECONDS)
    assert watcher.take() == ["joined ann@edge 2"]
    net["edge"].leave("out.a", number)
    net.settle(1.0)
    assert watcher.take() == ["left ann@edge 1"]


def test_members_of_a_silent_node_expire(net: Net) -> None:
    watcher = Watcher()
    net["edge"].join("chat", "ann", "shop", watcher)
    number = net["far"].join("chat", "bob", "shop", None)
    net.settle()
    net.drop = True
    net["far"].leave("chat", number)
    net.settle()
    net.drop = False
    net.settle((HOLD + 1) * REPEAT_SECONDS)
    assert watcher.take() == ["joined bob@far 2", "left bob@far 1"]


def test_remembered_queries_are_bounded(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "MAX_REMOTE", 1000)
    for number in range(1000):
        net.nodes["edge"].announce(f"room.{number}", b'{"asks":90}')
        net.settle(0.01)
    assert 300 <= len(net["hub"]._channels) <= 400
    assert net["hub"].want("chat")
    monkeypatch.setattr(presence, "MAX_WANTED", 10)
    assert not net["hub"].want("other")
    net.settle((HOLD + 1) * REPEAT_SECONDS)
    assert not net["hub"]._channels
    assert net["hub"]._remote == 0


def test_querying_nodes_are_counted_by_link(net: Net) -> None:
    hub = net["hub"]
    hub.want("chat")
    for number in range(3000):
        message = Volatile("chat", 1, records({"asks": 90}), 0.0, None, f"n{number}", "r", 1, True)
        hub._heard(message, "edge")
    channel = hub._channels["chat"]
    channel.askers = Unlisted(channel.askers)
    joined = Volatile("chat", 1, records({"joined": [[1, "ann", ""]]}), 0.0, None, "far", "s", 1)
    hub._heard(joined, "far")
    assert channel.asking == {"edge": 3000}
    assert channel.count == 1
    channel.askers = dict(channel.askers)
    net.settle((HOLD + 1) * REPEAT_SECONDS)
    assert not channel.asking
    assert not channel.askers


class Unlisted(dict[str, Any]):
    """All who asked: to list them takes 5 ms a message where there are many."""

    def values(self) -> Any:
        """Fail."""
        raise AssertionError("each message listed all who asked")


def records(announced: dict[str, Any]) -> bytes:
    """Return what a node announces, as it travels."""
    return encode_records(
        [EncodedRecord(json.dumps(announced).encode(), "", "", "application/json")]
    )
