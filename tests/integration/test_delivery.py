"""Two whole nodes on disk: an outage's backlog, large bodies, full logs, ids, rings, resyncs."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import msgspec
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from linkd.config import ChannelSettings, LogSettings
from linkd.errors import LogFull
from linkd.log.interface import Appended
from linkd.protocol.records import EncodedRecord, NewRecords, encode_records
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.fake_net import Kept
from tests.support.real_nodes import RealNode, peer, until


def publish(node: RealNode, channel: str, *bodies: bytes, **rest: object) -> list[object]:
    outcomes: list[object] = []
    records = encode_records([EncodedRecord(body) for body in bodies])
    node.node.publish(
        NewRecords(channel, len(bodies), records, time.time(), **rest), outcomes.append
    )
    return outcomes


async def settled(outcomes: list[object]) -> object:
    await until(lambda: bool(outcomes))
    return outcomes[0]


def pair(folder: Path, **sections: object) -> tuple[RealNode, RealNode]:
    hub = RealNode(
        folder,
        "hub",
        (peer(folder, "edge", send=(">",), receive=(">",)),),
        listens=True,
        **sections,
    )
    edge = RealNode(
        folder, "edge", (peer(folder, "hub", hub.port, send=(">",), receive=(">",)),), **sections
    )
    return hub, edge


async def stop(*nodes: RealNode) -> None:
    for node in nodes:
        await node.stop()


@pytest_twisted.ensureDeferred
async def test_the_backlog_of_an_outage_drains_at_speed_and_nothing_waits_behind_it(
    tmp_path: Path,
) -> None:
    count = 1_000_000 if CAMPAIGN else 200_000
    now = ChannelSettings(name="now", delivery="volatile")
    hub, edge = pair(tmp_path, channels=(now,))
    try:
        await until(lambda: edge.node.links.summary()[0] == 1)
        await hub.deafen("edge")
        await until(lambda: edge.node.links.summary()[0] == 0)
        outcomes: list[object] = []
        records = encode_records([EncodedRecord(b"x" * 100)] * 100)
        for _ in range(count // 100):
            edge.node.publish(NewRecords("orders", 100, records, 0.0), outcomes.append)
        await until(lambda: len(outcomes) == count // 100, 60.0)
        assert edge.node.status().links[0].backlog_records == count
        kept = Kept()
        hub.node.subscriptions.subscribe(("now",), "latest", kept)
        hub.listen()
        edge.node.kick("hub")
        await until(lambda: edge.node.links.summary()[0] == 1)
        began, crossed = time.monotonic(), []
        while edge.node.status().links[0].backlog_records:
            sent = time.monotonic()
            before = len(kept.volatiles)
            publish(edge, "now", b"tick")
            await until(lambda n=before: len(kept.volatiles) > n, 5.0)
            crossed.append(time.monotonic() - sent)
            assert time.monotonic() - began < 60.0
        seconds = time.monotonic() - began
        figures.tell(
            f"{count} records drained in {seconds:.2f} s: {count / seconds:,.0f} records/s,"
            f" {count * 100 / seconds / 1e6:.0f} MB/s; volatile crossed"
            f" in {max(crossed):.3f} s at most"
        )
        assert hub.log.next == edge.log.next == count + 1
        assert max(crossed) < 1.0
        outage = list(edge.node.outages("hub"))[-1]
        assert outage.replayed_records == count
        assert outage.drained_seconds is not None
    finally:
        await stop(edge, hub)


@pytest_twisted.ensureDeferred
async def test_bodies_from_nothing_to_sixteen_mebibytes(tmp_path: Path) -> None:
    hub, edge = pair(tmp_path)
    sizes = [0, 1, 100, 65_535, 65_536, 65_537, 1 << 20, (16 << 20) - 100]
    bodies = [bytes([n]) * size for n, size in enumerate(sizes)]
    kept = Kept()
    try:
        hub.node.subscriptions.subscribe((">",), "earliest", kept)
        for body in bodies:
            publish(edge, "blobs", body)
        await until(lambda: len(kept.bodies) == len(bodies))
        assert kept.bodies == bodies
    finally:
        await stop(edge, hub)


@pytest_twisted.ensureDeferred
async def test_an_id_stores_once_also_across_a_restart(tmp_path: Path) -> None:
    hub, edge = pair(tmp_path)
    records = encode_records([EncodedRecord(b"one", "", "id-1")])
    draft = NewRecords("orders", 1, records, 0.0, None, ("id-1",))
    try:
        first: list[object] = []
        edge.node.publish(draft, first.append)
        edge.node.publish(draft, first.append)
        await until(lambda: len(first) == 2)
        assert first == [Appended(1, 1), Appended(1, 0, True)]
        await edge.stop()
        edge = RealNode(tmp_path, "edge", (peer(tmp_path, "hub", hub.port, send=(">",)),))
        again: list[object] = []
        edge.node.publish(draft, again.append)
        assert await settled(again) == Appended(1, 0, True)
    finally:
        await stop(edge, hub)


@pytest_twisted.ensureDeferred
async def test_a_ring_of_three_keeps_each_record_once(tmp_path: Path) -> None:
    all_ = {"send": (">",), "receive": (">",)}
    a = RealNode(tmp_path, "a", (peer(tmp_path, "b", **all_), peer(tmp_path, "c", **all_)), True)
    b = RealNode(
        tmp_path, "b", (peer(tmp_path, "a", a.port, **all_), peer(tmp_path, "c", **all_)), True
    )
    c = RealNode(
        tmp_path, "c", (peer(tmp_path, "a", a.port, **all_), peer(tmp_path, "b", b.port, **all_))
    )
    nodes = (a, b, c)
    sinks = [Kept() for _ in nodes]
    try:
        for node, sink in zip(nodes, sinks, strict=True):
            node.node.subscriptions.subscribe((">",), "earliest", sink)
        await until(lambda: all(n.node.links.summary()[0] == 2 for n in nodes))
        for number in range(100):
            for node in nodes:
                publish(node, f"from.{node.node.name}", b"%d" % number)
        await until(lambda: all(len(sink.bodies) >= 300 for sink in sinks))
        await deferLater(reactor, 1.0)
        for sink in sinks:
            assert len(sink.bodies) == 300
        for node in nodes:
            assert node.log.next == 301
            assert any(what == "repeated" for what, _ in node.node.counts)
            assert not any(link.backlog_records for link in node.node.status().links)
    finally:
        await stop(*reversed(nodes))


@pytest_twisted.ensureDeferred
async def test_a_full_log_refuses_publishers_and_still_takes_from_peers(tmp_path: Path) -> None:
    small = LogSettings(max_bytes=16 << 20, segment_bytes=1 << 20)
    hub, edge = pair(tmp_path, log=small)
    body = b"x" * 60_000
    try:
        await until(lambda: edge.node.links.summary()[0] == 1)
        await hub.stop()
        last: object = None
        for _ in range(400):
            last = await settled(publish(edge, "orders", body))
            if isinstance(last, LogFull):
                break
        assert isinstance(last, LogFull), last
        stored = edge.log.next - 1
        assert stored * 60_000 >= 0.8 * (16 << 20)
        hub = RealNode(
            tmp_path, "hub", (peer(tmp_path, "edge", send=(">",), receive=(">",)),), True
        )
        edge.node.reload(
            msgspec.structs.replace(
                edge.node.config,
                peers=(peer(tmp_path, "hub", hub.port, send=(">",), receive=(">",)),),
            )
        )
        await until(lambda: hub.log.next == stored + 1)
        await until(lambda: edge.node.status().links[0].backlog_records == 0)
        await until(lambda: edge.log.full is None)
        assert isinstance(await settled(publish(edge, "orders", b"room again")), Appended)
    finally:
        await stop(edge, hub)


@pytest_twisted.ensureDeferred
async def test_drop_oldest_tells_the_gap_to_peer_and_consumer(tmp_path: Path) -> None:
    small = LogSettings(max_bytes=16 << 20, segment_bytes=1 << 20, when_full="drop-oldest")
    hub, edge = pair(tmp_path, log=small)
    body = b"x" * 60_000
    try:
        await until(lambda: edge.node.links.summary()[0] == 1)
        await hub.deafen("edge")
        edge.node.subscriptions.subscribe((">",), "earliest", Kept(), ("socket", "slow")).close()
        for _ in range(600):
            assert isinstance(await settled(publish(edge, "orders", body)), Appended)
        first = edge.log.first
        assert first > 1
        late = Kept()
        edge.node.subscriptions.subscribe((">",), "latest", late, ("socket", "slow"))
        await until(lambda: len(late.bodies) == edge.log.next - first)
        assert late.gaps == [(1, first)]
        there = Kept()
        hub.node.subscriptions.subscribe((">",), "earliest", there)
        hub.listen()
        edge.node.kick("hub")
        await until(lambda: len(there.bodies) == edge.log.next - first)
        assert hub.node.counts["gap", "edge"] == first - 1
        assert edge.node.counts["gap", "hub"] == first - 1
    finally:
        await stop(edge, hub)


@pytest_twisted.ensureDeferred
async def test_a_receiver_put_back_an_hour_gets_again_what_it_lost(tmp_path: Path) -> None:
    hub, edge = pair(tmp_path)
    try:
        for number in range(10):
            publish(edge, "orders", b"%d" % number)
        await until(lambda: hub.log.next == 11)
        await hub.stop()
        shutil.copytree(tmp_path / "hub", tmp_path / "copy")
        hub_peers = (peer(tmp_path, "edge", send=(">",), receive=(">",)),)
        hub = RealNode(tmp_path, "hub", hub_peers, True)
        back = (peer(tmp_path, "hub", hub.port, send=(">",), receive=(">",)),)
        edge.node.reload(msgspec.structs.replace(edge.node.config, peers=back))
        for number in range(10, 20):
            publish(edge, "orders", b"%d" % number)
        publish(hub, "commands", b"lost with the disk")
        await until(lambda: hub.log.next == 22 and edge.log.next == 22)
        await hub.stop()
        shutil.rmtree(tmp_path / "hub")
        shutil.copytree(tmp_path / "copy", tmp_path / "hub")
        hub = RealNode(tmp_path, "hub", hub_peers, True)
        back = (peer(tmp_path, "hub", hub.port, send=(">",), receive=(">",)),)
        edge.node.reload(msgspec.structs.replace(edge.node.config, peers=back))
        kept = Kept()
        hub.node.subscriptions.subscribe(("orders",), "earliest", kept)
        publish(hub, "commands", b"new")
        await until(lambda: len(kept.bodies) == 20)
        assert kept.bodies == [b"%d" % number for number in range(20)]
        here = Kept()
        edge.node.subscriptions.subscribe(("commands",), "earliest", here)
        await until(lambda: len(here.bodies) == 2)
        assert here.bodies == [b"lost with the disk", b"new"]
    finally:
        await stop(edge, hub)
