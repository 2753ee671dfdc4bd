"""Nodes of pure sessions over logs in memory, joined by pipes that a test cuts where it likes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, ClassVar

from linkd.core import session as resume
from linkd.core import session_effects as types
from linkd.core.outbound import Outbound
from linkd.core.session import Handshake, Session
from linkd.errors import Gap, LinkdError
from linkd.log.interface import Appended
from linkd.protocol import peer as wire
from linkd.protocol.channels import Patterns
from linkd.protocol.records import Batch, EncodedRecord, NewRecords, decode_records, encode_records
from tests.support.memory_log import MemoryLog


def check_order(outbound: Outbound) -> None:
    """Assert that the peer acknowledged no more than was announced, nor that more than sent."""
    order = (outbound.acked, outbound._announced, outbound.position)
    assert list(order) == sorted(order), f"acked, announced, position: {order}"


class Pipe:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()


class Dialing:
    """A connection whose hellos are on their way, beside an older one that may still live.

    Attributes:
        said: The dialer's hello, as it was when the connection opened.
        answer: The listener's; None before it has the dialer's.
    """

    def __init__(self, said: wire.Hello) -> None:
        self.said = said
        self.answer: wire.Hello | None = None
        self.ended = False
        self.there, self.back = Pipe(), Pipe()


class Link:
    """One node's end of a link: a session, and the pipes of its connection."""

    def __init__(self, node: ModelNode, peer: str, settings: types.SessionSettings) -> None:
        self.node = node
        self.peer = peer
        self.settings = settings
        self.session = self.make()
        self.out: Pipe | None = None
        self.inward: Pipe | None = None
        self.other: Link | None = None
        self.acked = 1
        self.dialing: Dialing | None = None  # what we dial
        self.incoming: Dialing | None = None  # what the other end dials
        self.dialed: wire.Hello | None = None  # our hello, where we dialed
        self.waits = False

    def make(self) -> Session:
        return Session(self.settings, self._epoch_below)

    def _epoch_below(self, position: int) -> str:
        return self.node.log.state.epoch_below(position)

    def hello(self) -> wire.Hello:
        log = self.node.log
        return wire.Hello(
            1,
            self.node.name,
            "model",
            wire.Generation("b", 1),
            log.id,
            log.state.epochs(),
            log.next,
            log.cursor(self.peer),
            self.settings.receive.patterns,
            5.0,
        )

    def greeted(self, ours: wire.Hello, theirs: wire.Hello) -> None:
        self.session.outbound.log_next = self.node.log.next
        self.perform(self.session.greeted(Handshake(ours, theirs, self.acked, True), 0.0))

    def cut(self) -> None:
        if self.other is not None:
            self.other.drop()
            self.other.other = None
            self.other = None
        self.drop()

    def drop(self) -> None:
        """Let go of the connection at this end alone: the other hears of it later, or never."""
        if self.incoming is not None and self.inward is self.incoming.there:
            self.incoming.ended = True
        self.out = self.inward = None
        self.waits = False
        self.session.disconnected()

    def deliver(self, count: int) -> None:
        """Take up to `count` messages that lie in the pipe."""
        for _ in range(count):
            if self.inward is None or not self.inward.messages:
                return
            message = wire.decode(self.inward.messages.popleft())
            if isinstance(message, wire.Hello):
                self.hello_again(message)
            elif not self.waits:
                self.perform(self.session.received(message, 0.0))

    def hello_again(self, theirs: wire.Hello) -> None:
        """Take a second hello; the listener answers it."""
        ours = self.dialed
        if ours is None:
            ours = self.hello()
            assert self.out is not None
            self.out.messages.append(wire.encode(ours))
        self.waits = False
        self.greeted(ours, theirs)

    def ask_again(self) -> None:
        """Have the other end send again what found no room."""
        if self.out is not None:
            self.perform(self.session.inbound.ask_again())

    def catch_up(self) -> None:
        """Learn what came to disk of an older connection's steps, as a node does each second."""
        inbound, cursor = self.session.inbound, self.node.log.cursor(self.peer)
        if inbound.received is not None and cursor is not None:
            inbound.stored(min(cursor.committed, inbound.received))

    def pump(self) -> None:
        self.catch_up()
        outbound = self.session.outbound
        if self.out is not None:
            self.perform(outbound.writable(True, self.node.log.clock(), 0.0))
            self.perform(self.session.outbound.on_deadline(1e9))
            self.perform(self.session.inbound.ack())

    def perform(self, effects: list[types.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, types.Send):
                if self.out is not None:
                    self.out.messages.append(effect.payload)
            elif isinstance(effect, types.Read):
                self.read(effect)
            elif isinstance(effect, types.Store):
                self.store(effect.batch)
            elif isinstance(effect, types.Rewind):
                self.node.log.set_cursor(self.peer, effect.cursor, lambda outcome: None)
            elif isinstance(effect, types.Acked):
                self.acked = effect.next
            else:
                self.node.hear(effect)
        check_order(self.session.outbound)

    def read(self, effect: types.Read) -> None:
        outbound, log = self.session.outbound, self.node.log
        try:
            batches = log.read(effect.position, effect.max_bytes)
        except Gap as gap:
            self.perform(outbound.missing(gap.first))
        else:
            assert batches is not None
            self.perform(outbound.read(batches, log.clock(), 0.0))

    def store(self, batch: Batch) -> None:
        source = batch.source
        assert source is not None
        session = self.session
        if self.node.full:
            session.inbound.leave_out()
            return

        def settled(outcome: Appended | LinkdError) -> None:
            assert isinstance(outcome, Appended)
            session.inbound.stored(source.next)

        self.node.log.store(batch, settled)


def in_memory(name: str, rng: Random) -> Any:
    """Return a node's log."""
    return MemoryLog(name, rng, delayed=True, clock=lambda: 0.0)


class ModelNode:
    """A node: a log whose commits come by hand, and its links.

    Attributes:
        make_log: Makes a log; tests.support.stored_log has others than those in memory.
    """

    make_log: ClassVar[Callable[[str, Random], Any]] = staticmethod(in_memory)

    def __init__(self, name: str, rng: Random) -> None:
        self.name = name
        self.log = self.make_log(name, rng)
        self.links: dict[str, Link] = {}
        self.acked: dict[str, list[bytes]] = {}
        self.told: list[types.LogEvent] = []
        self.gone: list[types.OffsetsLost] = []
        self.kept: dict[tuple[str, str], list[bytes]] = {}
        self.kept_to = 0
        self.full = False
        self.log.on_commit.append(self.committed)

    def link(self, peer: str, send: tuple[str, ...], receive: tuple[str, ...], window: int) -> Link:
        settings = types.SessionSettings(
            self.name, peer, Patterns(send), Patterns(receive), window_bytes=window, read_bytes=4000
        )
        self.links[peer] = Link(self, peer, settings)
        return self.links[peer]

    def hear(self, effect: types.Effect) -> None:
        """Remember what was said."""
        if isinstance(effect, types.LogEvent):
            self.told.append(effect)
        elif isinstance(effect, types.OffsetsLost):
            self.gone.append(effect)

    def committed(self, next: int) -> None:
        for link in self.links.values():
            position = link.session.outbound.log_next
            batches = self.log.read(max(position, self.log.first), 1 << 60) or []
            mine = [b for b in batches if link.session.outbound.owes(b) and b.offset >= position]
            link.perform(link.session.outbound.offer(mine, next, 0.0, 0.0))

    def publish(self, channel: str, bodies: list[bytes]) -> None:
        records = encode_records([EncodedRecord(body) for body in bodies])
        kept = self.acked.setdefault(channel, [])

        def settled(outcome: Appended | LinkdError) -> None:
            assert isinstance(outcome, Appended)
            kept.extend(bodies)

        self.log.append(NewRecords(channel, len(bodies), records, 0.0), settled)

    def make_room(self) -> None:
        """Take what comes again, and ask for what was left out."""
        self.full = False
        for link in self.links.values():
            link.ask_again()

    def crash(self) -> None:
        """Kill it: what was not committed is lost, all connections end, a new process begins."""
        for link in self.links.values():
            link.cut()
            for dialing in (link.dialing, link.incoming):
                if dialing is not None:
                    dialing.ended = True
        self.log = self.log.crash()
        self.log.on_commit.append(self.committed)
        for link in self.links.values():
            link.session = link.make()
            link.session.outbound.begin(min(link.acked, self.log.next))
            link.session.outbound.log_next = self.log.next

    def backup(self) -> list[object]:
        """Return a copy of the disk as it is now."""
        return [self.log.backup(), {peer: link.acked for peer, link in self.links.items()}]

    def restore(self, copy: list[object]) -> None:
        """Put the disk back to an older copy, and start on it."""
        disk, acked = copy
        self.log.put_back(disk)
        for peer, link in self.links.items():
            link.acked = acked[peer]  # type: ignore[index]
        self.crash()

    def trim(self, before: int) -> None:
        """Delete what lies below; the model remembers it."""
        self.keep()
        self.log.trim(before)

    def keep(self) -> None:
        """Remember all that lies in the log."""
        position = max(self.log.first, self.kept_to)
        while position < self.log.next:
            batches = self.log.read(position, 1 << 60)
            assert batches
            for batch in batches:
                if batch.offset >= position:
                    bodies = [r.body for r in decode_records(batch.records, batch.count)]
                    key = (batch.origin.node, batch.channel)
                    self.kept.setdefault(key, []).extend(bodies)
            position = batches[-1].next
        self.kept_to = self.log.next

    def all_bodies(self, origin: str, channel: str) -> list[bytes]:
        """Return the bodies of one origin and channel, also those that were trimmed."""
        self.keep()
        return self.kept.get((origin, channel), [])

    def bodies(self, origin: str, channel: str) -> list[bytes]:
        """Return the bodies of one origin and channel as they lie in this log."""
        found: list[bytes] = []
        position = self.log.first
        while position < self.log.next:
            batches = self.log.read(position, 1 << 60)
            assert batches
            for batch in batches:
                if batch.origin.node == origin and batch.channel == channel:
                    found += [r.body for r in decode_records(batch.records, batch.count)]
            position = batches[-1].next
        return found


def connect(one: Link, two: Link) -> None:
    """Join two ends by a new connection, which takes the place of any older one."""
    for end in (one, two):
        end.cut()
    one.dialing = two.dialing = None
    dial(one, two)
    finish(one, two)


def dial(one: Link, two: Link) -> None:
    """Begin a connection beside the one that lives: our hello leaves now, and may age."""
    one.dialing = two.incoming = Dialing(one.hello())


def accept(one: Link, two: Link) -> None:
    """Let the dialer's hello arrive: the listener lets its older connection go, and answers."""
    dialing = one.dialing
    if dialing is None or dialing.ended or dialing.answer is not None:
        return
    two.drop()
    two.out, two.inward, two.dialed, two.dialing = dialing.back, dialing.there, None, None
    one.other, two.other = two, one
    ours = dialing.answer = two.hello()
    if resume.outdated(dialing.said, ours.cursor):
        two.waits = True
    else:
        two.greeted(ours, dialing.said)


def answered(one: Link) -> None:
    """Let the listener's hello arrive: the dialer lets its older connection go."""
    dialing = one.dialing
    if dialing is None or dialing.ended or dialing.answer is None:
        return
    one.dialing = None
    one.drop()
    one.out, one.inward, one.dialed = dialing.there, dialing.back, dialing.said
    true = one.hello()
    if resume.repeats(dialing.said, true, dialing.answer):
        one.waits, one.dialed = True, true
        one.out.messages.append(wire.encode(true))
    else:
        one.greeted(dialing.said, dialing.answer)


def finish(one: Link, two: Link) -> None:
    """Let a connection that was begun become the live one of both ends."""
    accept(one, two)
    answered(one)


def flow(nodes: list[ModelNode], rounds: int = 1) -> None:
    """Let each commit, take all that has come, and send what it may."""
    for _ in range(rounds):
        for node in nodes:
            node.log.commit()
            for link in node.links.values():
                link.deliver(1000)
                link.pump()


def settle(nodes: list[ModelNode], rounds: int = 2000) -> None:
    """Let all that is under way come to its end.

    Raises:
        AssertionError: It does not within `rounds`.
    """
    still = 0
    for _ in range(rounds):
        before = [(n.log.next, [link.acked for link in n.links.values()]) for n in nodes]
        flow(nodes)
        after = [(n.log.next, [link.acked for link in n.links.values()]) for n in nodes]
        quiet = all(not e.inward or not e.inward.messages for n in nodes for e in n.links.values())
        still = still + 1 if before == after and quiet else 0
        if still == 3:
            return
    raise AssertionError("no end")
