"""A hub with twenty peers and fifty channels: each gets exactly its own, in order."""

from __future__ import annotations

import time
from pathlib import Path

import pytest_twisted

from linkd.protocol.records import Batch, EncodedRecord, NewRecords, decode_records, encode_records
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.real_nodes import RealNode, peer, until

PEERS = 20
CHANNELS = 50
EACH = 100_000 if CAMPAIGN else 2_000
BATCH = 100


class Tally:
    """A sink that holds each record against the one that must come next on its channel."""

    def __init__(self) -> None:
        self.next: dict[str, int] = {}
        self.wrong: list[str] = []

    def has_room(self, size: int) -> bool:
        return True

    def hold(self, size: int) -> bool:
        return True

    def batch(self, batch: Batch) -> bool:
        number = self.next.get(batch.channel, 0)
        for record in decode_records(batch.records, batch.count):
            if int(record.body) != number:
                self.wrong.append(f"{batch.channel}: {int(record.body)}, expected {number}")
            number += 1
        self.next[batch.channel] = number
        return True

    def volatile(self, batch: Batch) -> None:
        self.wrong.append("volatile")

    def gap(self, first: int, next: int) -> None:
        self.wrong.append(f"gap {first} {next}")

    def end(self, reason: str) -> None:
        pass


def wanted(number: int) -> tuple[str, ...]:
    """Return the patterns of one peer: five channels by name, or all that end in a digit."""
    if number % 2:
        return tuple(f"c.{(number * 5 + i) % CHANNELS}.x" for i in range(5))
    return (f"c.{number}.x", f"c.{number + 1}.*")


def channels(number: int) -> set[str]:
    """Return what these patterns select."""
    return {pattern.replace("*", "x") for pattern in wanted(number)}


@pytest_twisted.ensureDeferred
async def test_each_peer_gets_exactly_its_own(tmp_path: Path) -> None:
    hub_peers = tuple(peer(tmp_path, f"edge-{n}", send=wanted(n)) for n in range(PEERS))
    hub_peers += (peer(tmp_path, "source", receive=("c.>",)),)
    hub = RealNode(tmp_path, "hub", hub_peers, listens=True)
    nodes = [hub]
    tallies = []
    for number in range(PEERS):
        edge = RealNode(
            tmp_path, f"edge-{number}", (peer(tmp_path, "hub", hub.port, receive=(">",)),)
        )
        tally = Tally()
        edge.node.subscriptions.subscribe((">",), "earliest", tally)
        tallies.append(tally)
        nodes.append(edge)
    source = RealNode(tmp_path, "source", (peer(tmp_path, "hub", hub.port, send=(">",)),))
    nodes.append(source)
    began = time.monotonic()
    try:
        await until(lambda: all(n.node.links.summary()[1] == [] for n in nodes))
        settled: list[object] = []
        for start in range(0, EACH, BATCH):
            bodies = [EncodedRecord(b"%d" % number) for number in range(start, start + BATCH)]
            records = encode_records(bodies)
            for channel in range(CHANNELS):
                source.node.publish(
                    NewRecords(f"c.{channel}.x", BATCH, records, 0.0), settled.append
                )
            await until(lambda s=start: len(settled) >= (s // BATCH - 20) * CHANNELS, 120.0)
        wants = [dict.fromkeys(channels(n), EACH) for n in range(PEERS)]
        await until(lambda: [t.next for t in tallies] == wants, 600.0)
        assert [t.wrong for t in tallies] == [[]] * PEERS
        for number, edge in enumerate(nodes[1:-1]):
            assert edge.log.next - 1 == len(channels(number)) * EACH
        links = {link.peer: link for link in hub.node.status().links}
        await until(lambda: not any(link.backlog_records for link in hub.node.status().links))
        assert links["source"].received_records == EACH * CHANNELS
    finally:
        for node in reversed(nodes):
            await node.stop()
    seconds = time.monotonic() - began
    total = EACH * CHANNELS
    out = sum(len(channels(n)) for n in range(PEERS)) * EACH
    figures.tell(f"hub: {total} records in, {out} out to {PEERS} peers in {seconds:.1f} s")
