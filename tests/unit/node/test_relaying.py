"""Three hubs that all hand on to each other: what none of them can prove goes round once."""

from __future__ import annotations

import pytest

from linkd.config import PeerSettings
from linkd.log.base import Log
from linkd.log.origins import MAX_INTERVALS
from linkd.protocol.records import Origin
from tests.support.fake_net import FakeNet, one_publish

HUBS = ("h1", "h2", "h3")


def peer(name: str, dials: bool = False) -> PeerSettings:
    urls = (f"ws://{name}/link",) if dials else ()
    return PeerSettings(name=name, dial=urls, send=(">",), receive=(">",))


def origin(log: Log, first: int) -> Origin:
    return Origin("edge", log.id, log.epoch, first, None)


@pytest.fixture
def net() -> FakeNet:
    """Three hubs, and an edge at the first one."""
    net = FakeNet()
    net.node("h1", peer("h2"), peer("h3"), peer("edge"))
    net.node("h2", peer("h1", True), peer("h3"))
    net.node("h3", peer("h1", True), peer("h2", True))
    net.node("edge", peer("h1", True))
    for node in net.nodes.values():
        node.start()
    net.run(1.0)
    return net


def test_a_record_of_a_folded_epoch_does_not_go_round_for_ever(net: FakeNet) -> None:
    edge = net.nodes["edge"].log
    for name in HUBS:
        net.nodes[name].log.state.origins._folded.add("edge", (edge.id, edge.epoch))
    one_publish(net.nodes["edge"], "orders", b"one")
    net.run(1.0)
    assert [net.nodes[name].log.next for name in HUBS] == [2, 2, 2]


def test_a_record_below_all_intervals_does_not_go_round_for_ever(net: FakeNet) -> None:
    edge = net.nodes["edge"].log
    for name in HUBS:
        origins = net.nodes[name].log.state.origins
        origins.admit(origin(edge, 1000), "orders", 1, 0.0, [])
        for place in range(MAX_INTERVALS):
            origins.admit(origin(edge, 1001 + 2 * place), "orders", 1, 0.0, [])
    one_publish(net.nodes["edge"], "orders", b"one")
    net.run(1.0)
    assert [net.nodes[name].log.next for name in HUBS] == [2, 2, 2]
