"""Nodes whose links come, go and widen while records flow, and what the promise is then.

The promise, for each link from X to Y: what is in X's log, from the offset on at which the link
began to carry a channel, is in Y's log, once. Each record behind a later one of its origin and
channel is counted as late; where no path was changed there is none.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

import msgspec

from linkd.core import session_effects as types
from linkd.core.inbound import KnownEnds
from linkd.core.session import Session
from linkd.errors import LinkdError
from linkd.log.interface import Appended
from linkd.protocol import peer as wire
from linkd.protocol.channels import Patterns
from linkd.protocol.records import Batch, EncodedRecord, NewRecords, decode_records, encode_records
from tests.support.memory_log import MemoryLog
from tests.support.session_model import (
    Link,
    ModelNode,
    accept,
    answered,
    connect,
    dial,
    finish,
    settle,
)

CHANNELS = ("a", "b", "c")
NARROW, WIDE = ("a", "b"), (">",)
DAYS = 86_400.0


class PathLink(Link):
    """One node's end of a link that may be taken away and put back.

    Attributes:
        carries: For each channel the offset of this node's log from which on the peer gets it.
    """

    node: PathNode

    def __init__(self, node: PathNode, peer: str, settings: types.SessionSettings) -> None:
        super().__init__(node, peer, settings)
        self.carries: dict[str, int] = {}
        self.acked = node.log.next  # a cursor is made at the log's end
        self.begin()

    def begin(self) -> None:
        """Make the session of a link that is new, changed or back."""
        self.session = self.make()
        self.session.outbound.begin(min(self.acked, self.node.log.next))
        self.session.outbound.log_next = self.node.log.next

    def end(self) -> None:
        """End all connections, also those that have just begun."""
        self.cut()
        for dialing in (self.dialing, self.incoming):
            if dialing is not None:
                dialing.ended = True

    def make(self) -> Session:
        return Session(self.settings, self._epoch_below, ends=self.node.ends)

    def hello(self) -> wire.Hello:
        return msgspec.structs.replace(super().hello(), version=2, relays=self.settings.relay)

    def store(self, batch: Batch) -> None:
        source = batch.source
        assert source is not None
        session, node = self.session, self.node

        def settled(outcome: Appended | LinkdError) -> None:
            if not isinstance(outcome, Appended):  # a hole: the link rejoins
                node.out_of_step += 1
                self.cut()
                return
            node.late += outcome.late
            node.unproven += outcome.unproven
            session.inbound.stored(source.next)

        node.log.store(batch, settled)


class PathNode(ModelNode):
    """A node with links that come and go, and a clock that jumps.

    Attributes:
        away: The ends of links that are taken away for now, by peer.
        late: Records that were stored behind later ones, as the log counted them.
    """

    def __init__(self, name: str, rng: Random) -> None:
        self.ends = KnownEnds()
        super().__init__(name, rng)
        self.now = self.wall = 1e9
        self.log = MemoryLog(name, rng, delayed=True, clock=lambda: self.now)
        self.log.on_commit.append(self.committed)
        self.away: dict[str, PathLink] = {}
        self.late = self.unproven = self.out_of_step = 0
        self.refused: list[types.Effect] = []

    def hear(self, effect: types.Effect) -> None:
        super().hear(effect)
        if isinstance(effect, types.FalseOrigin | types.RecordsRefused):
            self.refused.append(effect)

    def publish(self, channel: str, bodies: list[bytes]) -> None:
        records = encode_records([EncodedRecord(body) for body in bodies])
        kept = self.acked.setdefault(channel, [])

        def settled(outcome: Appended | LinkdError) -> None:
            assert isinstance(outcome, Appended)
            kept.extend(bodies)

        self.log.append(NewRecords(channel, len(bodies), records, max(0.0, self.wall)), settled)

    def jump(self, days: int) -> None:
        """Step the wall clock, and let the log's clock pass as much, if that is forward."""
        self.wall += days * DAYS
        self.now += max(0, days) * DAYS
        state = self.log.state
        state.forget_channels(self.now - 7 * DAYS)
        state.origins.fold(14 * DAYS)

    def crash(self) -> None:
        self.ends = KnownEnds()
        super().crash()

    def stored(self) -> list[tuple[Batch, int, bytes]]:
        """Return each record in the log: its batch, its offset here, its body."""
        found = []
        for batch in self.log._tail.behind(1):
            bodies = [record.body for record in decode_records(batch.records, batch.count)]
            found += [(batch, batch.offset + place, body) for place, body in enumerate(bodies)]
        return found


class Topology:
    """Some nodes, and what may happen to them.

    Attributes:
        changes: How often a path was added, put back or widened, or a node forgot its channels.
    """

    def __init__(self, count: int, rng: Random) -> None:
        self.nodes = [PathNode(f"n{number}", rng) for number in range(count)]
        self.changes = 0
        self.number = 0
        self.dialed: list[tuple[PathLink, PathLink]] = []  # whose hellos may still be on their way

    def ends(self, one: int, two: int) -> tuple[PathLink, PathLink] | None:
        """Return the two ends of a link, the dialing one first; None where there is none now."""
        low, high = sorted((self.nodes[one], self.nodes[two]), key=lambda node: node.name)
        if high.name not in low.links:
            return None
        found = low.links[high.name], high.links[low.name]
        assert isinstance(found[0], PathLink)
        assert isinstance(found[1], PathLink)
        return found

    def publish(self, one: int, channel: int, count: int) -> None:
        """Publish some records on a channel."""
        self.number += count
        bodies = [b"%d" % (self.number - place) for place in range(count, 0, -1)]
        self.nodes[one].publish(CHANNELS[channel % 3], bodies)

    def add(self, one: int, two: int, narrow: bool = False, relay: bool = True) -> None:
        """Add a link, or put one back that was taken away."""
        low, high = self.nodes[one], self.nodes[two]
        if low is high or high.name in low.links:
            return
        self.changes += 1
        patterns = Patterns(NARROW if narrow else WIDE)
        for node, other in ((low, high), (high, low)):
            link = node.away.pop(other.name, None)
            if link is None:
                settings = types.SessionSettings(
                    node.name, other.name, patterns, patterns, 3000, 2000, relay=relay
                )
                link = PathLink(node, other.name, settings)
                channels = NARROW if narrow else CHANNELS
                link.carries = dict.fromkeys(channels, node.log.next)
            else:
                link.begin()
            node.links[other.name] = link

    def remove(self, one: int, two: int) -> None:
        """Take a link away at both ends; the cursors stay."""
        for link in self.ends(one, two) or ():
            link.end()
            link.node.away[link.peer] = link
            del link.node.links[link.peer]

    def widen(self, one: int, two: int) -> None:
        """Let both ends send and take everything."""
        ends = self.ends(one, two)
        if ends is None or ends[0].settings.send.patterns == WIDE:
            return
        self.changes += 1
        for link in ends:
            link.end()
            everything = Patterns(WIDE)
            link.settings = msgspec.structs.replace(
                link.settings, send=everything, receive=everything
            )
            link.carries = {
                channel: link.carries.get(channel, link.node.log.next) for channel in CHANNELS
            }
            link.begin()

    def jump(self, one: int, days: int) -> None:
        """Step a node's clock."""
        self.changes += days > 0
        self.nodes[one].jump(days)

    def act(self, what: str, one: int, two: int, count: int) -> None:
        """Do what happens to a node, or to a link."""
        count_nodes = len(self.nodes)
        one, two = one % count_nodes, two % count_nodes
        if what == "publish":
            self.publish(one, two + count, count)
        elif what == "add":
            self.add(one, two, narrow=count == 2, relay=count != 3)
        elif what == "remove":
            self.remove(one, two)
        elif what == "widen":
            self.widen(one, two)
        elif what == "jump":
            self.jump(one, (-18_250, -8, 8, 18_250)[count % 4])
        elif what == "crash":
            self.nodes[one].crash()
        elif what == "commit":
            self.nodes[one].log.commit()
        else:
            self._on_link(what, one, two, count)

    def flow(self, ends: tuple[PathLink, PathLink], count: int) -> None:
        """Let both ends commit, take some messages, and send what they may."""
        for link in ends:
            link.node.log.commit()
            link.deliver(count * 3)
            link.pump()

    def _on_link(self, what: str, one: int, two: int, count: int) -> None:
        """Do what happens to a connection."""
        if what in ("accept", "answered"):
            if self.dialed:
                low, high = self.dialed[count % len(self.dialed)]
                accept(low, high)
                if what == "answered":
                    answered(low)
                    self.dialed.remove((low, high))
            return
        ends = self.ends(one, two)
        if ends is None:
            return
        low, high = ends
        if what == "connect":
            connect(low, high)
        elif what == "flow":
            self.flow(ends, count)
        elif what == "takeover":  # the older connection carries on while the hello travels
            dial(low, high)
            self.publish(one, two, count)
            self.flow(ends, 3)
            self.flow(ends, count)
            accept(low, high)
            self.flow(ends, count - 1)
            answered(low)
        elif what == "cut":
            low.cut()
        elif what == "drop":
            ends[count % 2].drop()
        else:
            dial(low, high)
            self.dialed.append((low, high))

    def finish(self) -> None:
        """Put all links back, let all be up, and let everything come to its end."""
        for node in self.nodes:
            for peer in list(node.away):
                self.add(self.nodes.index(node), int(peer[1:]))
        for node in self.nodes:
            for peer, link in node.links.items():
                if node.name < peer:
                    other = self.nodes[int(peer[1:])].links[node.name]
                    if link.dialing is None or link.dialing.ended:
                        connect(link, other)
                    else:
                        finish(link, other)  # a takeover, with a hello that may be old
        settle(list(self.nodes))

    def check(self, strict: bool) -> None:
        """Hold all nodes to the promise.

        Args:
            strict: No path was changed since the first record: nothing may be late.

        Raises:
            AssertionError: It is broken.
        """
        for node in self.nodes:
            mine = {body for batch, _, body in node.stored() if batch.origin.node == node.name}
            for acked in node.acked.values():
                assert mine.issuperset(acked), "acknowledged, but not in its own log"
            self._check_log(node)
            assert not node.refused
            assert not node.unproven
            assert not node.gone
            assert not node.told
            assert not node.out_of_step
            if strict:
                assert not node.late

    def _check_log(self, node: PathNode) -> None:
        """Hold one log to the promise."""
        stored = node.stored()
        bodies = [body for _, _, body in stored]
        assert len(set(bodies)) == len(bodies), "stored twice"
        for peer, link in node.links.items():
            assert isinstance(link, PathLink)
            there = {body for _, _, body in self.nodes[int(peer[1:])].stored()}
            relays = self.nodes[int(peer[1:])].links[node.name].settings.relay
            for batch, offset, body in stored:
                if (relays or batch.source is None) and offset >= link.carries.get(
                    batch.channel, 1 << 62
                ):
                    assert body in there, f"{node.name} owes {peer} {body!r}: lost"
        places: dict[tuple[str, str], list[int]] = {}
        for batch, offset, _ in stored:
            at = batch.origin.first + offset - batch.offset
            places.setdefault((batch.origin.node, batch.channel), []).append(at)
        late = 0
        for row in places.values():
            highest = 0
            for at in row:
                late += at < highest
                highest = max(highest, at)
        assert node.late == late, "steps back that were not counted"
        self._check_intervals(node)

    def _check_intervals(self, node: PathNode) -> None:
        """Hold what it knows of origins to what is there, and to the number of holes."""
        for known in node.log.state.origins._logs.values():
            for epoch in known.epochs.values():
                for held in epoch.channels.values():
                    assert all(low < high for low, high in pairwise(held[1::2]))
                    assert len(held) // 2 <= 1 + self.changes, "more intervals than holes"
