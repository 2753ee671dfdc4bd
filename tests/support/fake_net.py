"""Nodes on a test clock, joined by connections that are lists: no socket, no disk."""

from __future__ import annotations

from itertools import count
from random import Random

from twisted.internet.task import Clock

from linkd.config import Config, HeartbeatSettings, NodeSettings, PeerSettings
from linkd.errors import AttemptFailed, Reason
from linkd.log import CursorStore
from linkd.log.interface import Appended
from linkd.node import LinkDriver, Node, Stores
from linkd.node.outages import Outages
from linkd.protocol import peer
from linkd.protocol.records import Batch, EncodedRecord, NewRecords, decode_records, encode_records
from tests.support.memory_log import MemoryLog

_keys = count(1)


class FakeConnection:
    """One end of a connection."""

    def __init__(
        self, clock: Clock, driver: LinkDriver, dialed: bool, generation: peer.Generation
    ) -> None:
        self.key = next(_keys)
        self.dialed = dialed
        self.generation = generation
        self.address = "192.0.2.1:9443"
        self.writable = True
        self.rtt_seconds: float | None = 0.001
        self.certificate_expires: float | None = None
        self.return_spread: float | None = None
        self.driver = driver
        self.other: FakeConnection | None = None
        self.ended = self.greeted = False
        self.heard = self.began = clock.seconds()
        self.sent: list[bytes] = []
        self.delay = 0.001
        self.largest: int | None = None
        self.stuck = False
        self._clock = clock

    def send(self, payload: bytes) -> None:
        if not self.ended:
            self.sent.append(payload)
            largest = self.largest
            if self.stuck or (largest is not None and len(payload) > largest):
                self.stuck = True  # what follows in the stream does not arrive either
                return
            self._clock.callLater(self.delay, self._arrive, payload)

    def _arrive(self, payload: bytes) -> None:
        other = self.other
        if other is None or other.ended or self.ended:
            return
        other.heard = self._clock.seconds()
        message = peer.decode(payload)
        if isinstance(message, peer.Hello) and not other.greeted:
            other.greeted = True
            other.driver.greeted(other, message)
        else:
            other.driver.received(other, message)

    def answer(self, hello: peer.Hello) -> None:
        self.send(peer.encode(hello))

    silence_limit = 7.0

    def silence_seconds(self) -> float:
        return self._clock.seconds() - self.heard

    def abort(self, reason: Reason, detail: str) -> None:
        self.end(reason, detail)
        if self.other is not None:
            self._clock.callLater(self.delay, self.other.end, "closed", "reset")

    def fail(self, reason: Reason, detail: str, close_code: int) -> None:
        self.end(reason, detail)

    def goodbye(self, message: peer.Goodbye) -> None:
        self.send(peer.encode(message))
        self.end("stopped", message.detail)
        if self.other is not None:
            self.other.end("stopped", message.detail, message)

    def abandon(self) -> None:
        """Dialer: nobody wants it any more, before the listener's hello has come."""
        self.ended = True
        if self.other is not None:
            self._clock.callLater(self.delay, self.other.end, "closed", "reset")

    def end(self, reason: Reason, detail: str, goodbye: peer.Goodbye | None = None) -> None:
        if self.ended:
            return
        self.ended = True
        if self.greeted:
            self.driver.lost(self, reason, detail, goodbye)
        elif self.dialed:
            self.driver.failed(AttemptFailed("broken", "closed", detail))


class FakeDialer:
    """A dialer whose attempts succeed at once while `net.path` is open."""

    def __init__(self, net: FakeNet, driver: LinkDriver) -> None:
        self.attempts = 0
        self.deadline: float | None = None
        self.next_attempt: float | None = None
        self.segment_bytes = 0
        self.skipped = 0
        self._net = net
        self._driver = driver
        self._timer = None
        self._counter = 0
        self._under_way: FakeConnection | None = None

    def dial(self, after: float) -> None:
        self.stop()
        self.next_attempt = self._net.clock.seconds() + after
        self._timer = self._net.clock.callLater(after, self._attempt)

    def stop(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self.next_attempt = None
        under_way, self._under_way = self._under_way, None
        if under_way is not None and not (under_way.greeted or under_way.ended):
            under_way.abandon()

    def skip_url(self) -> None:
        self.skipped += 1

    def _attempt(self) -> None:
        self.next_attempt = None
        self.attempts += 1
        self._counter = next(_keys)
        self._driver.attempting("ws://fake", None)
        if not self._net.open:
            self._driver.failed(AttemptFailed("unreachable", "unreachable", "no path"))
            return
        self._driver.opening()
        generation = peer.Generation(self._net.boots[self._driver], self._counter)
        delay = self._net.delays.get(self._driver._node.name, 0.001)
        self._under_way = self._net.join(self._driver, generation, delay)


class FakeNet:
    """Some nodes and the path between them."""

    def __init__(self, seed: int = 1) -> None:
        self.clock = Clock()
        self.rng = Random(seed)
        self.open = True
        self.delays: dict[str, float] = {}  # each way, of what a node dials
        self.largest: int | None = None  # larger messages are lost on the way
        self.nodes: dict[str, Node] = {}
        self.boots: dict[LinkDriver, str] = {}
        self.ends: list[FakeConnection] = []

    @classmethod
    def linked(cls, edge: PeerSettings, hub: PeerSettings) -> FakeNet:
        """Return a hub with this edge and an edge with this hub, just linked."""
        net = cls()
        net.node("hub", edge)
        net.node("edge", hub)
        for node in net.nodes.values():
            node.start()
        net.run(0.1)
        return net

    def node(self, name: str, *peers: PeerSettings, **sections: object) -> Node:
        config = Config(
            node=NodeSettings(name=name), heartbeat=HeartbeatSettings(), peers=peers, **sections
        )  # type: ignore[arg-type]
        cursors = CursorStore()
        log = MemoryLog(name, self.rng, clock=self.clock.seconds)
        stores = Stores(log, cursors, Outages(cursors))

        def dialer(node: Node, driver: LinkDriver) -> FakeDialer:
            self.boots[driver] = f"boot-{node.name}"
            return FakeDialer(self, driver)

        made = Node(config, stores, self.clock, dialer, self.rng)
        self.nodes[name] = made
        return made

    def join(
        self, driver: LinkDriver, generation: peer.Generation, delay: float = 0.001
    ) -> FakeConnection:
        """Open a connection that `driver` dials; return its end of it."""
        near = self.nodes[driver._node.name]
        far = self.nodes[driver.peer].link(near.name)
        assert far is not None
        one = FakeConnection(self.clock, driver, True, generation)
        two = FakeConnection(self.clock, far, False, generation)
        one.other, two.other = two, one
        one.delay = two.delay = delay
        dialer = driver.dialer
        if dialer is None or not dialer.segment_bytes:
            one.largest = two.largest = self.largest
        self.ends += [one, two]
        one.send(peer.encode(driver.hello(generation)))
        return one

    def cut(self, reason: Reason = "silence") -> None:
        """Close the path; both ends notice at once."""
        self.open = False
        for end in self.ends:
            end.end(reason, "cut by the test")
        self.ends.clear()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(int(seconds * 1000)):
            self.clock.advance(0.001)

    def run_with_silence(self, seconds: float) -> None:
        """Let time pass, in which both ends give a connection up whose stream is stuck for 7 s."""
        since: dict[FakeConnection, float] = {}
        for _ in range(int(seconds * 10)):
            self.run(0.1)
            now = self.clock.seconds()
            for end in [end for end in self.ends if end.stuck and not end.ended]:
                if now - since.setdefault(end, now) >= 7.0:
                    end.end("ping-timeout", "nothing was heard")
                    if end.other is not None:
                        end.other.end("closed", "reset")


class Kept:
    """A sink that keeps what comes."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.bodies: list[bytes] = []
        self.offsets: list[int] = []
        self.volatiles: list[bytes] = []
        self.gaps: list[tuple[int, int]] = []
        self.ended: str | None = None
        self.room = room

    def has_room(self, size: int) -> bool:
        return True

    def hold(self, size: int) -> bool:
        return True

    def batch(self, batch: Batch) -> bool:
        self.bodies += bodies(batch)
        self.offsets += range(batch.offset, batch.next)
        self.room -= batch.count
        return self.room > 0

    def volatile(self, batch: Batch) -> None:
        self.volatiles += bodies(batch)

    def gap(self, first: int, next: int) -> None:
        self.gaps.append((first, next))

    def end(self, reason: str) -> None:
        self.ended = reason


def bodies(batch: Batch) -> list[bytes]:
    return [record.body for record in decode_records(batch.records, batch.count)]


def publish(node: Node, channel: str, *contents: bytes, ttl: float | None = None) -> list[object]:
    """Publish, and return the list that gets the outcome."""
    outcomes: list[object] = []
    records = encode_records([EncodedRecord(content) for content in contents])
    node.publish(NewRecords(channel, len(contents), records, 0.0, ttl), outcomes.append)
    return outcomes


def one_publish(node: Node, channel: str, body: bytes) -> int:
    """Publish one durable message and return its offset."""
    outcome = publish(node, channel, body)[0]
    assert isinstance(outcome, Appended)
    return outcome.offset
