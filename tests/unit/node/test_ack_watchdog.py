"""A peer that could acknowledge and does not: the link rejoins, and nothing else makes it."""

from __future__ import annotations

from typing import Any

import pytest

from linkd.config import PeerSettings
from linkd.protocol import peer
from linkd.protocol.records import NO_ORIGIN
from tests.support.fake_net import FakeNet, Kept, one_publish

EDGE = PeerSettings(name="edge", receive=("up",))
HUB = PeerSettings(name="hub", dial=("ws://hub/link",), send=("up",))


@pytest.fixture
def net() -> FakeNet:
    return FakeNet.linked(EDGE, HUB)


@pytest.fixture
def overdue(net: FakeNet, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return when the edge says that an ack is overdue."""
    times: list[float] = []

    def tell(level: str, event: str, **fields: Any) -> None:
        if event == "link.ack-overdue":
            assert level == "error"
            times.append(net.clock.seconds())

    monkeypatch.setattr(net.nodes["edge"], "log_event", tell)
    return times


def mute(net: FakeNet, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let the hub lose its place: it stores and never acknowledges."""
    inbound = net.nodes["hub"].link("edge").replicator.session.inbound
    monkeypatch.setattr(type(inbound), "ack", lambda self: [])
    return monkeypatch


def test_it_rejoins_after_30_seconds_and_the_wait_doubles(
    net: FakeNet, overdue: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        mute(net, patch)
        one_publish(net.nodes["edge"], "up", b"x")
        net.run(29.0)
        assert overdue == []
        net.run(3.0)
        assert len(overdue) == 1
    net.run(5.0)
    assert net.nodes["edge"].status().links[0].backlog_records == 0
    assert net.nodes["edge"].status().links[0].state == "up"
    net.run(40.0)
    assert len(overdue) == 1, "nothing is owed"


def test_the_wait_doubles_while_nothing_is_acknowledged(
    net: FakeNet, overdue: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    replicator = net.nodes["edge"].link("hub").replicator
    for wait in (30.0, 60.0, 120.0, 240.0, 480.0, 480.0):
        assert replicator._ack_wait == wait
        replicator._overdue(wait)
        net.run(16.0)
    one_publish(net.nodes["edge"], "up", b"x")
    net.run(1.0)
    assert replicator._ack_wait == 30.0
    assert len(overdue) == 6


def test_a_peer_that_has_no_room_repeats_its_last_ack(net: FakeNet, overdue: list[float]) -> None:
    log = net.nodes["hub"].log
    log.fill("no room")
    one_publish(net.nodes["edge"], "up", b"x")
    net.run(65.0)
    assert overdue == []
    acks = [
        message.next
        for end in net.ends
        for message in map(peer.decode, end.sent)
        if isinstance(message, peer.Ack)
    ]
    assert acks == [0] * 6
    log.drain()
    net.run(1.0)
    assert net.nodes["edge"].status().links[0].backlog_records == 0


def test_a_record_that_comes_slowly_in_parts_is_no_reason(
    net: FakeNet, overdue: list[float]
) -> None:
    edge, hub = net.nodes["edge"].link("hub"), net.nodes["hub"].link("edge")
    step = peer.BatchMessage(1, 2, "e", "up", 1, 70_000, bytes(65_536), origin=NO_ORIGIN)
    hub.replicator.session.inbound._step = step
    edge.replicator.session.outbound._flight.append((2, 1, 70_000, 0.0))
    net.run(65.0)
    assert overdue == []


def test_a_second_hello_that_does_not_come_ends_the_connection(net: FakeNet) -> None:
    driver = net.nodes["edge"].link("hub")
    end = driver.connection
    driver.replicator.wait_for_hello(end)
    net.run(9.0)
    assert not end.ended
    net.run(3.0)
    assert end.ended
    kept = Kept()
    net.nodes["hub"].subscriptions.subscribe(("up",), "earliest", kept)
    one_publish(net.nodes["edge"], "up", b"x")
    net.run(5.0)
    assert kept.bodies == [b"x"]
