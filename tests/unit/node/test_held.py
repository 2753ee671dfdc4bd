"""What peers sent and the disk has no room for is bounded over all of them, and comes again."""

from __future__ import annotations

from typing import Any

import pytest

from linkd.config import PeerSettings
from linkd.node import links, replicator
from linkd.protocol import peer
from tests.support.fake_net import FakeNet, Kept, one_publish

EDGES = ("a", "b", "c", "d")
HUB = PeerSettings(name="hub", dial=("ws://hub/link",), send=(">",))


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MOST_HELD_BYTES", 100_000)
    monkeypatch.setattr(links, "WINDOW_BYTES", 20_000)


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> FakeNet:
    """A hub whose log is full, and four edges."""
    net = FakeNet()
    net.node("hub", *(PeerSettings(name=name, receive=(">",)) for name in EDGES))
    for name in EDGES:
        net.node(name, HUB)
    for node in net.nodes.values():
        node.start()
    net.run(0.1)
    net.nodes["hub"].log.fill("no room")
    return net


@pytest.fixture
def told(net: FakeNet, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    tell = net.nodes["hub"].log_event

    def listen(level: str, event: str, **fields: Any) -> None:
        if level != "info":
            lines.append(f"{event} {fields['peer']}")
        tell(level, event, **fields)

    monkeypatch.setattr(net.nodes["hub"], "log_event", listen)
    return lines


def send_all(net: FakeNet, size: int = 10_000, count: int = 20) -> None:
    for number in range(count):
        for name in EDGES:
            one_publish(net.nodes[name], name, b"%03d" % number + bytes(size))
        net.run(0.05)


def numbers(net: FakeNet, name: str) -> list[int]:
    kept = Kept()
    net.nodes["hub"].subscriptions.subscribe((name,), "earliest", kept)
    net.run(0.01)
    return [int(body[:3]) for body in kept.bodies]


def test_it_is_bounded_and_nothing_is_lost(net: FakeNet, told: list[str]) -> None:
    hub = net.nodes["hub"]
    send_all(net)
    assert hub.log.held() <= 2 * 100_000
    assert all(hub.log.held(name) >= 100_000 // 4 - 12_000 for name in EDGES)
    assert sorted(set(told)) == [f"link.left-out {name}" for name in EDGES]
    assert len(told) == 4
    net.run(100.0)
    assert [link.state for link in hub.status().links] == ["up"] * 4
    hub.log.drain()
    net.run(10.0)
    for name in EDGES:
        assert numbers(net, name) == list(range(20))
        assert net.nodes[name].status().links[0].backlog_records == 0
        one_publish(net.nodes[name], name, b"020")
    net.run(1.0)
    assert [numbers(net, name)[-1] for name in EDGES] == [20] * 4
    assert hub.log.held() == hub.held.part_bytes == 0
    assert len(told) == 4, "no link fell, and no ack was overdue"


def test_a_peer_of_the_first_version_is_reconnected(
    net: FakeNet, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in EDGES:
        net.nodes["hub"].link(name).replicator._version = 1
    send_all(net)
    net.nodes["hub"].log.drain()
    net.run(20.0)
    assert [numbers(net, name) for name in EDGES] == [list(range(20))] * 4


def test_records_that_come_in_parts_count(net: FakeNet, told: list[str]) -> None:
    hub = net.nodes["hub"]
    hub.log.drain()
    net.run(0.1)
    for name in EDGES:
        end = hub.link(name).replicator
        connection = end.connection
        place = end.session.inbound.received or 1
        step = peer.BatchMessage(
            place, place + 1, "e", name, 1, 200_000, bytes(65_536),
            origin=peer.Origin(name, net.nodes[name].log.id, "e", place),
        )  # fmt: skip
        end.received(connection, step)
        end.received(connection, peer.Part(bytes(20_000)))
    assert hub.held.part_bytes == 85_536
    assert set(told) == {"link.left-out b", "link.left-out c", "link.left-out d"}
    end.received(connection, peer.Part(bytes(20_000)))  # what was under way is ignored
    hub.link("a").rejoin("to see that it is given back")
    assert hub.held.part_bytes == 0
    net.run(20.0)
    send_all(net, 10, 3)
    net.run(5.0)
    assert [numbers(net, name) for name in EDGES] == [[0, 1, 2]] * 4


def test_those_who_wait_longest_are_asked_first_and_no_more_than_there_is_room(
    net: FakeNet,
) -> None:
    asked: list[str] = []

    class Sender:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask_again(self) -> None:
            asked.append(self.name)

    account = net.nodes["hub"].held
    senders = [Sender(name) for name in "pqrst"]
    for sender in senders:
        account.refuse(sender)
    account.forget(senders[0])
    account.forget(senders[0])
    assert senders[0] not in account
    account.tick()
    assert asked == [], "there is no room"
    net.nodes["hub"].log.drain()
    account.tick()
    assert asked == ["q", "r", "s"]
    account.tick()
    assert asked == ["q", "r", "s", "t"]


def test_a_peer_that_asks_again_and_again_is_closed(net: FakeNet) -> None:
    connection = net.nodes["hub"].link("a").connection
    assert connection is not None
    other = connection.other
    for _ in range(replicator.RESENDS_AT_ONCE):
        other.send(peer.encode(peer.Resend(1)))
    net.run(0.1)
    assert not connection.ended
    for _ in range(3):
        other.send(peer.encode(peer.Resend(1)))
    net.run(0.1)
    assert connection.ended
