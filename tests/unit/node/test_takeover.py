"""Both ends dial: a connection takes over whose hello is older than what another one carried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from linkd.config import PeerSettings
from linkd.core.session_effects import Store
from linkd.protocol import peer
from linkd.protocol.records import NO_ORIGIN, Batch, SourcePosition
from tests.support.fake_net import FakeConnection, FakeNet, Kept, one_publish

EDGE = PeerSettings(name="edge", dial=("ws://edge/link",), send=("orders",), receive=("orders",))
HUB = PeerSettings(name="hub", dial=("ws://hub/link",), send=("orders",), receive=("orders",))

Told = list[tuple[str, str]]


@pytest.fixture
def net() -> FakeNet:
    """Two nodes that dial each other, joined by a connection that the greater name dialed."""
    net = FakeNet()
    net.open = False  # their dialers reach nobody: the tests join them
    net.node("hub", EDGE)
    net.node("edge", HUB)
    for node in net.nodes.values():
        node.start()
    net.join(net.nodes["hub"].link("edge"), peer.Generation("boot-hub", 1))
    net.run(0.1)
    assert states(net) == ["up", "up"]
    return net


@pytest.fixture
def told(net: FakeNet, monkeypatch: pytest.MonkeyPatch) -> Told:
    """Return what the nodes log from now on that is worse than usual."""
    lines: Told = []

    def listen(tell: Callable[..., None]) -> Callable[..., None]:
        def both(level: str, event: str, **fields: Any) -> None:
            if level != "info":
                lines.append((event, str(fields.get("detail"))))
            tell(level, event, **fields)

        return both

    for node in net.nodes.values():
        monkeypatch.setattr(node, "log_event", listen(node.log_event))
    return lines


def states(net: FakeNet) -> list[str]:
    return [node.status().links[0].state for node in net.nodes.values()]


def take_over(net: FakeNet) -> FakeConnection:
    """Let the lesser name's attempt open now: its hello takes half a second."""
    return net.join(net.nodes["edge"].link("hub"), peer.Generation("boot-edge", 1), delay=0.5)


def hellos(end: FakeConnection) -> int:
    return sum(isinstance(peer.decode(payload), peer.Hello) for payload in end.sent)


def read(net: FakeNet, name: str) -> list[bytes]:
    kept = Kept()
    net.nodes[name].subscriptions.subscribe(("orders",), "earliest", kept)
    net.run(0.01)
    return kept.bodies


def test_nothing_moved_in_between_and_one_hello_each_is_enough(net: FakeNet, told: Told) -> None:
    end = take_over(net)
    net.run(2.0)
    assert states(net) == ["up", "up"]
    assert net.nodes["hub"].link("edge").connection is end.other
    assert (hellos(end), hellos(end.other)) == (1, 1)
    assert told == []


@pytest.mark.parametrize("publishers", [("hub",), ("edge",), ("hub", "edge")])
def test_what_the_older_connection_carried_meanwhile_is_no_hole(
    net: FakeNet, told: Told, publishers: tuple[str, ...]
) -> None:
    end = take_over(net)
    for number in range(3):
        for name in publishers:
            one_publish(net.nodes[name], "orders", b"%s %d" % (name.encode(), number))
        net.run(0.1)
    net.run(2.5)
    assert states(net) == ["up", "up"]
    assert (hellos(end), hellos(end.other)) == (2, 2)
    for name in publishers:
        one_publish(net.nodes[name], "orders", b"behind it")
    net.run(2.0)
    assert told == []
    assert read(net, "hub") == read(net, "edge") or len(publishers) == 2
    assert sorted(read(net, "hub")) == sorted(read(net, "edge"))
    assert len(read(net, "hub")) == 4 * len(publishers)
    assert [node.status().links[0].backlog_records for node in net.nodes.values()] == [0, 0]


def test_a_peer_of_the_first_version_is_dialed_again(
    net: FakeNet, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "VERSION", 1)
    end = take_over(net)
    one_publish(net.nodes["hub"], "orders", b"in between")
    net.run(1.2)
    assert end.ended
    net.open = True
    net.run(5.0)
    assert states(net) == ["up", "up"]
    assert told == []
    assert read(net, "edge") == [b"in between"]


def test_the_end_of_the_older_one_does_not_end_the_attempt(net: FakeNet) -> None:
    edge = net.nodes["edge"]
    older = edge.link("hub").connection
    edge.link("hub").attempting("ws://hub/link", None)
    end = take_over(net)
    net.run(0.1)
    older.end("closed", "the peer let it go")
    assert edge.link("hub").dialer.next_attempt is None
    net.run(1.5)
    assert states(net) == ["up", "up"]
    assert edge.link("hub").connection is end


def test_nothing_but_volatile_messages_counts_before_the_second_hello(net: FakeNet) -> None:
    end = take_over(net)
    one_publish(net.nodes["hub"], "orders", b"in between")
    net.run(1.05)
    replicator = net.nodes["edge"].link("hub").replicator
    assert replicator.connection is end
    assert replicator.waits
    replicator.received(end, peer.Ack(1 << 40))
    passed = peer.Volatile("orders", 1, b"\x91\xc4\x01x", 0.0, None, "hub", "run", 1)
    kept = Kept()
    net.nodes["edge"].subscriptions.subscribe(("orders",), "latest", kept)
    replicator.received(end, passed)
    assert kept.volatiles == [b"x"]
    net.run(2.0)
    assert states(net) == ["up", "up"]


@pytest.mark.parametrize("change", [{}, {"log": "another"}, {"node": "another"}])
def test_a_second_hello_out_of_turn_ends_the_connection(
    net: FakeNet, change: dict[str, str]
) -> None:
    end = take_over(net)
    net.run(1.2)
    hello = net.nodes["edge"].link("hub")._hello(end.generation)
    end.send(peer.encode(msgspec.structs.replace(hello, **change)))
    net.run(0.55)
    assert end.other.ended == bool(change)
    end.send(peer.encode(hello))  # a third one
    net.run(0.55)
    assert end.ended or end.other.ended


def test_a_step_that_would_leave_a_hole_ends_the_connection_loudly(
    net: FakeNet, told: Told
) -> None:
    hub, edge = net.nodes["hub"], net.nodes["edge"]
    one_publish(hub, "orders", b"one")
    net.run(0.1)
    replicator, end = edge.link("hub").replicator, edge.link("hub").connection
    source = SourcePosition("hub", hub.log.id, hub.log.epoch, 7, 9)
    hole = Batch(0, "", 0, b"", 0.0, NO_ORIGIN, source=source)
    replicator.perform([Store(hole), Store(hole)])
    assert end.ended
    assert told == [
        (
            "link.out-of-step",
            "a step from offset 7 to 9 came, expected one from 2: storing it would leave a hole",
        )
    ]
    assert edge.log.cursor("hub").next == 2
    assert not edge.counts
