"""A session fed with whatever a peer may say, in any order, with breaks, commits and reads between.

Only RemoteProtocolError may come of it; our cursor never passes what was stored, and what we sent
stays consistent (`Outbound.check`).
"""

from __future__ import annotations

from linkd.core import session_effects as types
from linkd.core.session import Handshake, Session
from linkd.errors import RemoteProtocolError
from linkd.node.replicator import pack, unpack
from linkd.protocol import peer
from linkd.protocol.channels import Patterns
from linkd.protocol.records import Batch, EncodedRecord, Origin, encode_records
from tests.fuzz.reading import Input
from tests.support.session_model import check_order

EPOCHS = (peer.EpochStart("e1", 1), peer.EpochStart("e2", 9), peer.EpochStart("e3", 30))
SETTINGS = types.SessionSettings(
    "edge", "hub", Patterns(("orders", "big.>")), Patterns(("orders", "news.*")), 4000, 2000
)
_CHANNELS = ("orders", "news.a", "private", "", "big.one", "x" * 255, "x" * 256, "*.>")
_TOKENS = ("e1", "e2", "e3", "p1", "p2", "", "log-of-edge", "log-of-hub", "t" * 65)
_RECORDS = tuple(encode_records([EncodedRecord(b"x" * size)] * count) for size, count in
                 ((0, 1), (3, 2), (700, 3), (70_000, 1)))  # fmt: skip


def _log() -> list[Batch]:
    """Return our log: batches of some channels, holes, one that is large, one that has expired."""
    found, offset = [], 3
    for place, (channel, size, count) in enumerate(
        (("orders", 5, 3), ("private", 9, 4), ("orders", 900, 4), ("big.one", 150_000, 1)) * 3
    ):
        records = encode_records([EncodedRecord(b"y" * size)] * count)
        epoch = "e1" if offset < 9 else "e2" if offset < 30 else "e3"
        origin = Origin("edge" if place % 3 else "hub", "log-of-edge", epoch, offset)
        ttl = 1.0 if place == 4 else None
        found.append(Batch(offset, channel, count, records, 1.0, origin, epoch, ttl, 1.0))
        offset += count + (place == 5) * 2
    return found


LOG = _log()
NEXT = LOG[-1].next


class Driven:
    """A session, its disk, and its peer."""

    def __init__(self, given: Input) -> None:
        self.given = given
        self.session = Session(SETTINGS, _epoch_below, pack, unpack)
        self.cursor: peer.Cursor | None = None
        self.waiting: list[Batch] = []
        self.reads: list[types.Read] = []
        self.acked = 1
        self.now = 0.0
        self.connected = False
        self.session.outbound.log_next = NEXT

    def hello(self) -> peer.Hello:
        """Return a peer's hello, mostly a proper one."""
        given = self.given
        epochs = tuple(
            peer.EpochStart(given.choice(_TOKENS), max(0, given.signed()))
            for _ in range(1 + given.byte() % 3)
        )
        ends = tuple(
            peer.EpochEnd(given.choice(_TOKENS), max(0, given.signed()))
            for _ in range(given.byte() % 3)
        )
        cursor = peer.Cursor(given.choice(_TOKENS), ends, max(0, given.signed())) if ends else None
        wants = tuple(given.choice(_CHANNELS) for _ in range(given.byte() % 3))
        return peer.Hello(
            1, "hub", "fuzz", peer.Generation("b", 1), given.choice(_TOKENS), epochs,
            max(0, given.signed()), cursor, wants, 5.0, "", ("zstd",) if given.byte() & 1 else (),
        )  # fmt: skip

    def connect(self) -> None:
        """Greet; a hello that can't be sent breaks the connection like any other."""
        theirs = peer.decode(peer.encode(self.hello()))
        if not isinstance(theirs, peer.Hello):
            raise AssertionError("no hello")
        ours = peer.Hello(
            1, "edge", "fuzz", peer.Generation("a", 1), "log-of-edge", EPOCHS, NEXT, self.cursor,
            SETTINGS.receive.patterns, 5.0,
        )  # fmt: skip
        self.connected = True
        effects = self.session.greeted(Handshake(ours, theirs, self.acked, True), self.now)
        if any(isinstance(effect, types.EpochsDiverged) for effect in effects):
            self.cut()
            return
        self.perform(effects)

    def cut(self) -> None:
        """Lose the connection."""
        self.connected = False
        self.reads.clear()
        self.session.disconnected()

    def turn(self) -> None:
        """Let one thing happen."""
        outbound = self.session.outbound
        what = self.given.byte() % 13
        if what == 0:
            self.cut()
        elif what == 1:
            self.commit()
        elif what == 2:
            self.read()
        elif what == 3:
            self.perform(outbound.writable(bool(self.given.byte() & 1), 3.0, self.now))
        elif what == 4:
            self.now += self.given.byte() / 8
            self.perform(self.session.outbound.on_deadline(self.now))
        elif what == 5:
            self.perform(self.session.inbound.ack())
        elif self.connected:
            message = self.given.piece() if what == 6 else peer.encode(self.message(what))
            self.perform(self.session.received(peer.decode(message), self.now))
        else:
            self.connect()

    def message(self, what: int) -> peer.Message:
        """Return a message that is near to what fits just now."""
        given, session = self.given, self.session
        here = session.inbound.received or 0
        if what == 7:
            return peer.Ack(session.outbound.acked + given.signed())
        if what == 12:
            return peer.Resend(max(0, session.outbound.acked + given.signed()))
        if what == 8:
            return peer.GapNotice(here + given.byte() % 3, here + given.signed(), "p1")
        if what == 9:
            return peer.Part(b"z" * given.number(65_535))
        count, records = given.choice((0, 1, 2, 3, 4, 2**32, 2**62)), given.choice(_RECORDS)
        if what == 10:
            return peer.Volatile(
                given.choice(_CHANNELS), count, records, 1.0, None, "far", "run", given.byte()
            )
        packed = pack is not None and given.byte() % 4 == 0
        if packed and pack is not None:
            records = pack(records)
        size = len(records) + given.choice((0, 0, 0, 1, 70_000, 2**30))
        return peer.BatchMessage(
            here + given.choice((0, 0, 0, 1, 7)), here + given.signed(), given.choice(_TOKENS),
            given.choice(_CHANNELS), count, size if count else 0,
            records[:66_000] if count else b"",
            1.0, None, Origin("far", "l", "e", 1) if given.byte() % 8 else None,
            "zstd" if packed else given.choice(("", "", "", "gzip")),
        )  # fmt: skip

    def commit(self) -> None:
        """Let what was stored be on disk."""
        waiting, self.waiting = self.waiting, []
        for batch in waiting:
            assert batch.source is not None
            source = batch.source
            epochs = (peer.EpochEnd(source.epoch or "p1", source.next),)
            self.cursor = peer.Cursor(source.log or "l", epochs, source.next)
            self.session.inbound.stored(source.next)

    def read(self) -> None:
        """Answer what was read of our log."""
        if not self.reads:
            return
        asked, outbound = self.reads.pop(0), self.session.outbound
        if asked.position < LOG[0].offset:
            self.perform(outbound.missing(LOG[0].offset))
            return
        batches = [batch for batch in LOG if batch.next > asked.position][: self.given.byte() % 4]
        self.perform(outbound.read(batches, 3.0, self.now))

    def perform(self, effects: list[types.Effect]) -> None:
        """Do what the session asks for."""
        for effect in effects:
            if isinstance(effect, types.Send):
                peer.decode(effect.payload)
            elif isinstance(effect, types.Read):
                self.reads.append(effect)
            elif isinstance(effect, types.Store):
                self.waiting.append(effect.batch)
            elif isinstance(effect, types.Rewind):
                self.cursor = effect.cursor
            elif isinstance(effect, types.Acked):
                self.acked = effect.next
        check_order(self.session.outbound)


def _epoch_below(position: int) -> str:
    return next((one.epoch for one in reversed(EPOCHS) if one.first < position), EPOCHS[0].epoch)


def one(content: bytes) -> None:
    """Run one course of events, of at most 64 turns."""
    given = Input(content)
    driven = Driven(given)
    for _ in range(64):
        if not given:
            return
        try:
            driven.turn()
        except RemoteProtocolError:
            driven.cut()
