"""Full logs: two that are full of what each owes the other, and a peer that may be left behind."""

from __future__ import annotations

from pathlib import Path

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from linkd.config import LogSettings
from linkd.errors import LogFull
from linkd.log.interface import Appended
from linkd.protocol.records import EncodedRecord, NewRecords, encode_records
from tests.support import figures
from tests.support.fake_net import Kept
from tests.support.real_nodes import RealNode, peer, until

SMALL = LogSettings(max_bytes=16 << 20, segment_bytes=1 << 20)
SIZE = 20_000


async def publish(node: RealNode, number: int) -> object:
    """Publish one record; return what came of it."""
    settled: Deferred[object] = Deferred()
    body = b"%06d" % number + bytes(SIZE)
    draft = NewRecords("orders", 1, encode_records([EncodedRecord(body)]), 0.0)
    node.node.publish(draft, settled.callback)
    return await settled.addTimeout(10.0, reactor)


async def fill(node: RealNode) -> int:
    """Publish until it is refused; return how many were taken."""
    for number in range(2000):
        if isinstance(await publish(node, number), LogFull):
            return number
    raise AssertionError("it is never full")


def numbers(kept: Kept) -> list[int]:
    return [int(body[:6]) for body in kept.bodies]


@pytest_twisted.ensureDeferred
async def test_two_full_nodes_do_not_block_each_other(tmp_path: Path) -> None:
    both = {"send": (">",), "receive": (">",)}
    hub = RealNode(tmp_path, "hub", (peer(tmp_path, "edge", **both),), True, log=SMALL)
    edge = RealNode(tmp_path, "edge", (peer(tmp_path, "hub", hub.port, **both),), log=SMALL)
    kept = {node: Kept() for node in (hub, edge)}
    for node, sink in kept.items():
        node.node.subscriptions.subscribe((">",), "latest", sink)
    try:
        await until(lambda: edge.node.links.summary()[0] == 1)
        await hub.deafen("edge")
        await until(lambda: edge.node.links.summary()[0] == 0)
        taken = {node: await fill(node) for node in (hub, edge)}
        full = {node: node.log.size_bytes / node.log.max_bytes for node in (hub, edge)}
        hub.listen()
        began = reactor.seconds()
        edge.node.kick("hub")
        for node, other in ((hub, edge), (edge, hub)):
            await until(lambda n=node: not n.node.status().links[0].backlog_records, 60.0)
            assert sorted(numbers(kept[other])) == sorted([*range(taken[hub]), *range(taken[edge])])
        seconds = reactor.seconds() - began
        for node in (hub, edge):
            await until(lambda n=node: n.log.full is None)
            assert isinstance(await publish(node, 999), Appended)
        figures.tell(
            f"two logs, {full[hub]:.0%} and {full[edge]:.0%} full of what each owes the other:"
            f" {taken[hub]} and {taken[edge]} records crossed in {seconds:.2f} s"
        )
    finally:
        await edge.stop()
        await hub.stop()


@pytest_twisted.ensureDeferred
async def test_one_peer_may_be_left_behind_while_another_gets_all(tmp_path: Path) -> None:
    hub = RealNode(
        tmp_path,
        "hub",
        (
            peer(tmp_path, "east", send=(">",), when_full="drop-oldest"),
            peer(tmp_path, "west", send=(">",)),
        ),
        True,
        log=SMALL,
    )
    west = RealNode(tmp_path, "west", (peer(tmp_path, "hub", hub.port, receive=(">",)),))
    kept = Kept()
    west.node.subscriptions.subscribe((">",), "latest", kept)
    east = None
    refused = 0
    try:
        await until(lambda: west.node.links.summary()[0] == 1)
        for number in range(2000):
            while not isinstance(await publish(hub, number), Appended):
                refused += 1
                await deferLater(reactor, 0.1)
        await until(lambda: len(kept.bodies) == 2000)
        assert numbers(kept) == list(range(2000))
        await deferLater(reactor, 1.5)  # what is too much goes within a second
        east = RealNode(tmp_path, "east", (peer(tmp_path, "hub", hub.port, receive=(">",)),))
        late = Kept()
        east.node.subscriptions.subscribe((">",), "latest", late)
        await until(lambda: numbers(late)[-1:] == [1999])
        missed = 2000 - len(late.bodies)
        assert missed > 1000
        assert numbers(late) == list(range(missed, 2000))
        assert east.node.counts["gap", "hub"] == missed
        assert hub.node.counts["gap", "east"] == missed
        assert ("gap", "west") not in hub.node.counts
        losses = hub.node.status().log.losses
        assert any("link.gap" in loss and f"1 to {missed} " in loss for loss in losses)
        assert any("log.dropped" in loss and "east" in loss for loss in losses)
        figures.tell(
            f"drop-oldest for one peer: it got {len(late.bodies)} of 2000 and was told of the gap"
            f" 1 to {missed}; the other got 2000; publishes refused for a moment: {refused}"
        )
    finally:
        for node in (east, west, hub):
            if node is not None:
                await node.stop()


@pytest_twisted.ensureDeferred
async def test_a_trim_is_told_to_the_peer_it_takes_from(tmp_path: Path) -> None:
    hub = RealNode(tmp_path, "hub", (peer(tmp_path, "edge", receive=(">",)),), True)
    edge = RealNode(tmp_path, "edge", (peer(tmp_path, "hub", hub.port, send=(">",)),), log=SMALL)
    try:
        await until(lambda: edge.node.links.summary()[0] == 1)
        await hub.deafen("edge")
        await until(lambda: edge.node.links.summary()[0] == 0)
        for number in range(200):
            await publish(edge, number)
        assert edge.node.trim(150, confirmed=False) == (149, 149)
        records, owed = edge.node.trim(150, confirmed=True)
        first = edge.log.first
        assert (records, owed) == (first - 1, 149)
        assert 100 < first <= 150
        names = [event.event for event in edge.node.events.after(0)]
        assert "log.dropped" in names
        assert names[-1] == "log.trimmed"
        kept = Kept()
        hub.node.subscriptions.subscribe((">",), "earliest", kept)
        hub.listen()
        edge.node.kick("hub")
        await until(lambda: len(kept.bodies) == 201 - first)
        assert numbers(kept) == list(range(first - 1, 200))
        assert hub.node.counts["gap", "edge"] == first - 1
    finally:
        await edge.stop()
        await hub.stop()
