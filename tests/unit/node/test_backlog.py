"""What a peer is owed is counted a few milliseconds at a time, and is right at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from linkd.config import PeerSettings
from linkd.node.backlog import COUNT_SECONDS, BacklogCounts, Total
from linkd.node.node import Node
from tests.support.fake_net import FakeNet, publish
from tests.support.step_clock import StepClock

EDGE = PeerSettings(name="edge", receive=("orders",))
HUB = PeerSettings(name="hub", dial=("ws://hub/link",), send=("orders",))
STEP_SECONDS = 0.0001


@pytest.fixture
def net() -> FakeNet:
    """An edge that owes its hub ten records and one that it does not get."""
    net = FakeNet()
    net.open = False
    net.node("hub", EDGE)
    edge = net.node("edge", HUB)
    for node in net.nodes.values():
        node.start()
    for number in range(10):
        publish(edge, "orders", b"%d" % number)
    publish(edge, "private", b"not for the hub")
    return net


@pytest.fixture
def logged(net: FakeNet, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the fields of each loss that the edge logs."""
    lines: list[dict[str, Any]] = []

    def log_event(level: str, event: str, **fields: Any) -> None:
        if event == "log.dropped":
            lines.append(fields)

    monkeypatch.setattr(net.nodes["edge"].links.drivers["hub"], "log_event", log_event)
    return lines


def outbound(node: Node) -> Any:
    return node.links.drivers["hub"].replicator.session.outbound


def slow(net: FakeNet, monkeypatch: pytest.MonkeyPatch, channels: int = 4000) -> None:
    """Have the edge's log take 0.1 ms for each channel, of which its own are the last."""
    log = net.nodes["edge"].log
    whole = log.totals

    def totals(position: int) -> Iterator[tuple[str, int, int]]:
        last = list(whole(position))
        for number in range(channels):
            net.clock.rightNow += STEP_SECONDS
            yield f"private.{number}", 1, 3
        yield from last

    monkeypatch.setattr(log, "totals", totals)


def test_counts_share_a_few_milliseconds_of_an_iteration() -> None:
    loop = StepClock()
    counts = BacklogCounts(loop)
    steps, done = 0, list[Total]()

    def count(number: int) -> Iterator[Total]:
        nonlocal steps
        for step in range(number):
            steps, loop.rightNow = steps + 1, loop.rightNow + COUNT_SECONDS / 10
            yield step, number

    counts.begin("a", count(25), done.append)
    assert steps == 10
    counts.begin("b", count(5), done.append)
    counts.begin("given up", count(5), done.append)
    counts.begin("short", count(1), done.append)
    counts.give_up("given up")
    assert steps == 10
    for expected in (20, 30, 31):
        loop.advance(0)
        assert steps == expected
    assert done == [(24, 25), (4, 5), (0, 1)]
    counts.begin("later", count(1), done.append)
    assert done[3:] == [(0, 1)]
    assert not loop.getDelayedCalls()


def test_a_backlog_is_counted_in_slices_while_records_come(
    net: FakeNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = net.nodes["edge"]
    owed = outbound(edge)
    size = owed.owed_bytes
    slow(net, monkeypatch)
    began = net.clock.seconds()
    edge.links.drivers["hub"].replicator.recount()
    assert net.clock.seconds() - began <= COUNT_SECONDS + 64 * STEP_SECONDS
    assert owed.counting
    assert owed.owed_records == 1
    publish(edge, "orders", b"more")
    net.clock.advance(0)
    assert not owed.counting
    assert owed.owed_records == 11
    assert owed.owed_bytes > size


def test_what_a_trim_takes_is_logged_once_it_is_counted(
    net: FakeNet, logged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = net.nodes["edge"]
    slow(net, monkeypatch)
    edge.trim(5, confirmed=True)
    assert logged == []
    publish(edge, "orders", b"more")
    net.clock.advance(0)
    assert [(line["first"], line["next"], line["records"]) for line in logged] == [(1, 5, 4)]
    assert outbound(edge).owed_records == 7


def test_a_trim_during_a_count_is_logged_with_the_most_that_it_may_have_taken(
    net: FakeNet, logged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = net.nodes["edge"]
    slow(net, monkeypatch)
    edge.trim(5, confirmed=True)
    edge.links.drivers["hub"].replicator.recount()
    net.clock.advance(0)
    assert [(line["first"], line["next"], line["records"]) for line in logged] == [(1, 5, 4)]
    assert "up to 4 records" in logged[0]["detail"]
    edge.links.drivers["hub"].replicator.recount()
    edge.trim(7, confirmed=True)
    edge.links.drivers["hub"].stop("the peer was removed from the configuration")
    net.clock.advance(0)
    assert [line["detail"] for line in logged[1:]] == [
        "up to 6 records that hub was owed, among the offsets 1 to 6, were deleted"
    ]
