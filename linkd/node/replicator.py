"""Replicate records over one link: perform the effects of the session, pace acks, compress.

Append comes before send, and commit before ack: both follow from the order in which effects are
performed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Literal

import zstandard
from twisted.internet.base import DelayedCall, ReactorBase

from linkd.clock import wall
from linkd.config import PeerSettings
from linkd.core import session_effects as sessions
from linkd.core.liveness import Path
from linkd.core.session import Handshake, Session
from linkd.errors import Gap, LinkdError, LogClosed, OutOfStep, RemoteProtocolError
from linkd.log.commit import ignore
from linkd.log.interface import Appended
from linkd.net.connection import Connection
from linkd.node.backlog import Total, count
from linkd.protocol import peer as wire
from linkd.protocol.channels import Patterns
from linkd.protocol.records import Batch

if TYPE_CHECKING:
    from linkd.node.link_driver import LinkDriver
    from linkd.node.node import Node

Measure = Literal["round trip", "age"]
"""`age`: of a received batch, by the wall clocks of its origin and of this host."""

_packer = zstandard.ZstdCompressor(level=3)
_unpacker = zstandard.ZstdDecompressor()


def pack(records: bytes) -> bytes:
    """Compress one batch; its size is in the frame."""
    return _packer.compress(records)


def unpack(packed: bytes, max_bytes: int) -> bytes:
    """Decompress one batch of at most `max_bytes`.

    Raises:
        ValueError: It is malformed, or larger.
    """
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= max_bytes:
            raise ValueError(f"{size} bytes once unpacked, expected at most {max_bytes}")
        return _unpacker.decompress(packed, max_output_size=max_bytes)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


ACK_SECONDS = 0.02
ACK_BYTES = 1 << 20
"""Minimum interval between two acks, and the stored bytes that cause one earlier.

Acks 5 ms apart took a tenth of the time of a hub with 50 peers.
"""


class AckScheduler:
    """Paces the acks of one link: the first ack after a pause is sent in the same iteration.

    Args:
        clock: The reactor.
        send: Acknowledges everything on disk, unless it is acknowledged already.
    """

    __slots__ = ("_bytes", "_clock", "_due", "_send", "_sent_at")

    def __init__(self, clock: ReactorBase, send: Callable[[], None]) -> None:
        self._clock = clock
        self._send = send
        self._due = False
        self._sent_at = -ACK_SECONDS
        self._bytes = 0

    def stored(self, size: int) -> None:
        """Count `size` more bytes of records on disk, and schedule an ack."""
        self._bytes += size
        if self._bytes >= ACK_BYTES:
            self._acknowledge()  # a scheduled call stays, for later records
        elif not self._due:
            self._due = True
            wait = self._sent_at + ACK_SECONDS - self._clock.seconds()
            self._clock.callLater(max(0.0, wait), self._flush)

    def _flush(self) -> None:
        self._due = False
        self._acknowledge()

    def _acknowledge(self) -> None:
        self._bytes = 0
        self._sent_at = self._clock.seconds()
        self._send()


ACK_WAIT_SECONDS = 30.0
"""A peer that could acknowledge and has not for this long is out of step: the link rejoins.

The wait doubles up to MOST_ACK_WAIT_SECONDS while no record is acknowledged, so that records get
through even where one takes longer.
"""
MOST_ACK_WAIT_SECONDS = 480.0

ACK_REPEAT_SECONDS = 10.0
"""Interval at which a receiver that cannot acknowledge yet repeats its last ack as keepalive."""

PROBE_SECONDS = 0.1
"""Delay of the first probe after the hello: in one segment with it, it would not be small."""

RESEND_SECONDS = 0.2
RESENDS_AT_ONCE = 10
"""Rate and burst of a peer's resend requests: each costs a scan of everything that it is owed.

A node whose disk has room again asks each of its peers every 0.25 s.
"""

HELLO_WAIT_SECONDS = 10.0
"""Maximum time that a connection waits for its second hello."""

_MOST_NAMES = 8
"""Maximum number of refused channels that a log line names."""

_VOLATILE_BYTES = 262_144
"""Bytes of volatile messages that a full connection buffers; more are dropped."""


class Replicator:
    """Replicates records over one link; outlives its connections.

    Args:
        node: The node.
        settings: The peer's.
        link: The link that it works for.

    Attributes:
        session: The core's state of both directions.
        connection: The live connection, or None.
        path: What is known about the network path.
        waits: The connection waits for its second hello: only volatile messages count before.
        not_relayed_records: Records that one end sends and the other's `relay` leaves out, since
            the start.
    """

    def __init__(self, node: Node, settings: PeerSettings, link: LinkDriver) -> None:
        self.peer = settings.name
        self.settings = settings
        self._node = node
        self._link = link
        self._log = node.log
        self._clock = node.clock
        self._sends = Patterns(settings.send)
        bounds = sessions.SessionSettings(
            node=node.name,
            peer=settings.name,
            send=self._sends,
            receive=Patterns(settings.receive),
            relay=settings.relay,
        )
        epoch_below = node.log.state.epoch_below
        packs = pack if settings.compress else None
        self.session = Session(bounds, epoch_below, packs, unpack, node.ends)
        self.session.outbound.begin(node.links.acked_by(settings.name))
        self.session.outbound.log_next = self._log.next
        self.connection: Connection | None = None
        self.waits = False
        self.path = Path()
        self._probe: wire.Probe | None = None
        self._ack_wait = ACK_WAIT_SECONDS
        self._ack_heard = self._ack_sent = self._began = 0.0
        self._resend_at = -math.inf  # when the peer may ask for another resend, bursts aside
        self._unwanted: dict[str, None] = {}
        self._acked_before = 0  # records acknowledged when the connection began
        self._begun: list[sessions.Effect] = []
        self._acks = AckScheduler(self._clock, self.acknowledge)
        self._read_effects: list[sessions.Effect] = []  # what a read at once has led to
        self._version = 0  # of the protocol, as the peer speaks it
        self._part_bytes = 0  # of a record that has come in part, as the account has it
        self._unproved = False  # up, but nothing of what was owed has been acknowledged yet
        self._waiting_bytes = 0
        self._stamp: tuple[int, float | None] = (0, None)  # when what is at an offset was stored
        self._relay_logged = False  # that records were not relayed, on this connection
        self._late_logged = False  # that records came late, on this link
        self._trimmed: tuple[int, int, int | None] | None = None
        """Where the peer was and the log began when records of it were deleted, and what it was
        owed before, while it is counted how many they were."""
        self.not_relayed_records = 0
        self._deadline_timer: DelayedCall | None = None
        self._performers: dict[type, Callable[..., None]] = {
            sessions.Send: self._send,
            sessions.Read: self._read,
            sessions.Store: self._store,
            sessions.Rewind: self._rewind,
            sessions.Acked: self._acked,
            sessions.ForwardVolatile: self._pass,
            sessions.LogEvent: self._log_effect,
            sessions.RecordsRefused: self._refused,
            sessions.NotRelayed: self.not_relayed,
            sessions.FalseOrigin: self._false_origin,
            sessions.RecordsExpired: self._expired,
            sessions.OffsetsLost: self._gone,
            sessions.EpochsDiverged: self._diverged,
        }
        self.recount()

    # -- connections --------------------------------------------------------------------------

    def begin(self, connection: Connection, ours: wire.Hello, theirs: wire.Hello) -> bool:
        """Start on a new connection; return whether both ends agree on their positions."""
        self.drop()
        self.connection = connection
        self._waiting_bytes = 0
        self._relay_logged = False
        now = self._clock.seconds()
        outbound = self.session.outbound
        self._version = theirs.version
        self._acked_before = outbound.acked_records
        self._ack_heard = self._ack_sent = self._began = now
        self._probe = self.path.began(theirs.version, now)
        before = (outbound.acked, outbound.wants, outbound.relays)
        outbound.log_next = self._log.next
        writable = connection.writable and not self.path.probing
        greeting = Handshake(ours, theirs, self._node.links.acked_by(self.peer), writable)
        self._begun = self.session.greeted(greeting, now)
        if (outbound.acked, outbound.wants, outbound.relays) != before:
            self.recount()
        return not any(isinstance(effect, sessions.EpochsDiverged) for effect in self._begun)

    def follow(self, acked: int) -> None:
        """Note how far the peer is, which is connected to another instance of this node."""
        outbound = self.session.outbound
        outbound.begin(acked)
        outbound.log_next = self._log.next
        if acked >= self._log.next:
            self._node.links.counts.give_up(self)
            outbound.no_backlog()

    def wait_for_hello(self, connection: Connection) -> None:
        """Start on a new connection whose first hellos are out of date already."""
        self.drop()
        self.connection = connection
        self.waits = True
        self._began = self._clock.seconds()

    def go_on(self) -> None:
        """Perform the effects of the new connection's hellos.

        Acknowledgments in the hellos do not prove that the connection works; only an ack does.
        """
        effects, self._begun = self._begun, []
        self._unproved = False
        self.perform(effects)
        self._unproved = self.session.outbound.owed_records > 0
        if self._probe is not None:
            self._clock.callLater(PROBE_SECONDS, self._send_probe, self.connection, self._probe)

    def _send_probe(self, connection: Connection | None, probe: wire.Probe) -> None:
        if connection is not None and connection is self.connection:
            connection.send(wire.encode(probe))

    def drop(self) -> None:
        """Detach from the live connection."""
        self.waits = False
        if self.connection is not None:
            self.connection = None
            outbound, now = self.session.outbound, self._clock.seconds()
            progress = outbound.acked_records > self._acked_before
            narrow = self.path.ended(outbound.flight_bytes > 0, progress, now)
            self.session.disconnected()
            self._hold(0)
            self._node.held.forget(self)
            if narrow:
                self._link.narrowed()

    def stop(self) -> None:
        """Cancel the timer: the link has ended."""
        if self._deadline_timer is not None and self._deadline_timer.active():
            self._deadline_timer.cancel()
        self._deadline_timer = None
        self._node.links.counts.give_up(self)
        self._report_trimmed(None)

    def received(self, connection: Connection, message: wire.Message) -> None:
        """Process a message; a late one of an older connection is dropped here."""
        if connection is not self.connection:
            return
        kind = type(message)
        if kind is wire.Probe:
            connection.send(wire.encode(wire.Probed(len(message.padding))))  # type: ignore[union-attr]
            return
        if kind is wire.Probed:
            self._probed(connection, message.size)  # type: ignore[union-attr]
            return
        if self.waits and kind is not wire.Volatile:
            return
        if kind is wire.Ack:
            self._ack_heard = self._clock.seconds()
        elif kind is wire.Resend and not self._may_ask_again():
            connection.fail("protocol", "it asks to be sent again too often", 1008)
            return
        try:
            effects = self.session.received(message, self._clock.seconds())
        except RemoteProtocolError as error:
            self._link.log_event("warn", "connection.protocol", detail=str(error))
            connection.fail("protocol", str(error), error.close_code)
            return
        if effects:
            self.perform(effects)
        if kind is wire.Resend:
            self.recount()
        part_bytes = self.session.inbound.part_bytes
        if part_bytes != self._part_bytes:
            self._hold(part_bytes)

    def _may_ask_again(self) -> bool:
        """Count a resend request of the peer; return whether the rate limit admits it."""
        now = self._clock.seconds()
        earliest = now - RESENDS_AT_ONCE * RESEND_SECONDS
        self._resend_at = max(self._resend_at, earliest) + RESEND_SECONDS
        return self._resend_at < now + RESEND_SECONDS / 2

    def _probed(self, connection: Connection, size: int) -> None:
        """Send the next probe, or owed records: the peer has received a probe."""
        if self.path.probing:
            probe = self.path.answered(size, self._clock.seconds())
            if probe is not None:
                self._send_probe(connection, probe)
            elif connection.writable:
                self.writable(connection)

    def writable(self, connection: Connection) -> None:
        """Send more: the connection has room."""
        if connection is self.connection and not self.path.probing:
            self._waiting_bytes = 0
            now = self._clock.seconds()
            self.perform(self.session.outbound.writable(True, self._log.clock(), now))

    # -- called by the node -------------------------------------------------------------------

    def offer(self, batches: list[Batch], next: int) -> None:
        """Process a commit: the peer's batches, and the log's new end."""
        outbound = self.session.outbound
        effects = outbound.offer(batches, next, self._log.clock(), self._clock.seconds())
        if effects or outbound.deadline is not None:
            self.perform(effects)

    def trimmed(self, first: int) -> None:
        """Note the log's new first offset; the peer gets a gap when its position reaches it."""
        outbound = self.session.outbound
        before = outbound.owed_records
        if outbound.acked >= first or not before:
            return
        self._trimmed = (outbound.acked, first, None if outbound.counting else before)
        self._count()

    def _report_trimmed(self, owed: int | None) -> None:
        """Log how many owed records were deleted: at most all, where that was not counted."""
        trimmed, self._trimmed = self._trimmed, None
        if trimmed is None:
            return
        acked, first, before = trimmed
        lost, most = first - acked, "up to "
        if before is not None and owed is not None:
            lost, most = before - owed, ""
        if lost > 0:
            self._link.log_event(
                "warn",
                "log.dropped",
                first=acked,
                next=first,
                records=lost,
                detail=f"{most}{lost} records that {self.peer} was owed, among the offsets"
                f" {acked} to {first - 1}, were deleted",
            )

    def volatile(self, payload: bytes) -> bool:
        """Send volatile records; return False where they were dropped."""
        connection = self.connection
        if connection is None:
            return False
        if connection.writable:
            self._waiting_bytes = 0
        elif self._waiting_bytes + len(payload) > _VOLATILE_BYTES:
            return False
        else:
            self._waiting_bytes += len(payload)
        connection.send(payload)
        return True

    def owes(self, channel: str) -> bool:
        """Return whether the peer receives `channel`."""
        wants = self.session.outbound.wants
        return self._sends.match(channel) and (wants is None or wants.match(channel))

    def recount(self) -> None:
        """Recount the owed records after the peer's position has jumped."""
        if self._trimmed is not None:  # what it was owed before is not known any more
            self._trimmed = (*self._trimmed[:2], None)
        self._count()

    def _count(self) -> None:
        outbound, log = self.session.outbound, self._log
        outbound.begin_count(log.next)
        steps = count(log, outbound.acked, self.owes)
        self._node.links.counts.begin(self, steps, self._counted)

    def _counted(self, total: Total) -> None:
        """Note how much is owed."""
        outbound = self.session.outbound
        outbound.end_count(*total)
        self._report_trimmed(total[0])
        if self._unproved and not outbound.owed_records:
            self._unproved = False
            self._link.acknowledged()

    def backlog_age(self) -> float | None:
        """Return the age in seconds of the oldest record owed, or None."""
        outbound = self.session.outbound
        if not outbound.owed_records:
            return None
        stamp = outbound.oldest_stamp()
        if stamp is None:
            stamp = self._stamp_at(max(outbound.acked, self._log.first))
        return None if stamp is None else max(0.0, self._log.clock() - stamp)

    def _stamp_at(self, position: int) -> float | None:
        """Return when the first record at or after `position` was stored.

        What has left the memory is known by the sparse index at once, which may be hours too early
        in a log of few records, and exactly a moment later, from the disk.
        """
        known, stamp = self._stamp
        if known == position:
            return stamp
        stamp = self._log.stamp_at(position)
        if stamp is None:
            return None
        self._stamp = (position, stamp)
        with suppress(LinkdError):
            if self._log.read(position, 1) is None:
                self._log.fetch(position, 1, partial(self._stamp_found, position))
        return stamp

    def _stamp_found(self, position: int, found: list[Batch] | LinkdError) -> None:
        """Keep the time stamp that was read from disk."""
        if isinstance(found, list) and found and self._stamp[0] == position:
            self._stamp = (position, found[0].stamp)

    # -- performing ---------------------------------------------------------------------------

    def perform(self, effects: list[sessions.Effect]) -> None:
        """Perform a session's effects; request more as long as the connection has room."""
        outbound, performers = self.session.outbound, self._performers
        while True:
            for effect in effects:
                performers[type(effect)](effect)
            if self._read_effects:
                effects, self._read_effects = self._read_effects, []
                continue
            connection = self.connection
            if connection is None or not outbound.eager:
                break
            if not connection.writable:
                outbound.writable(False, 0.0, 0.0)
                break
            effects = outbound.writable(True, self._log.clock(), self._clock.seconds())
            if not effects:
                break
        if outbound.deadline is not None and self._deadline_timer is None:
            after = max(0.0, outbound.deadline - self._clock.seconds())
            self._deadline_timer = self._clock.callLater(after, self._on_deadline)

    def _on_deadline(self) -> None:
        """Handle the session's deadline."""
        self._deadline_timer = None
        self.perform(self.session.outbound.on_deadline(self._clock.seconds()))

    def _send(self, effect: sessions.Send) -> None:
        if self.connection is not None:
            self.connection.send(effect.payload)

    def _read(self, effect: sessions.Read) -> None:
        """Read from the log; `perform` loops over immediate results instead of recursing."""
        outbound = self.session.outbound
        try:
            batches = self._log.read(effect.position, effect.max_bytes)
        except Gap as gap:
            self._read_effects = outbound.missing(gap.first)
            return
        if batches is None:
            done = partial(self._fetched, self.connection)
            self._log.fetch(effect.position, effect.max_bytes, done, for_link=True)
            return
        self._read_effects = outbound.read(batches, self._log.clock(), self._clock.seconds())

    def _fetched(self, connection: Connection | None, batches: list[Batch] | LinkdError) -> None:
        """Process batches read from disk, unless they are for an older connection."""
        if connection is not self.connection or connection is None:
            return
        outbound = self.session.outbound
        if isinstance(batches, Gap):
            self.perform(outbound.missing(batches.first))
        elif isinstance(batches, LinkdError):
            self._link.log_event("error", "log.damaged", detail=str(batches))
            connection.abort("closed", str(batches))
        else:
            self.perform(outbound.read(batches, self._log.clock(), self._clock.seconds()))

    def _store(self, effect: sessions.Store) -> None:
        source = effect.batch.source
        assert source is not None  # a received batch has one
        if effect.batch.count:
            self._node.observe("age", self.peer, max(0.0, wall() - effect.batch.time))
        if not self._node.held.admits(self.peer, len(effect.batch.records)):
            self._leave_out()
            return
        self._log.store(effect.batch, partial(self._stored, effect.batch, source.next))

    def _hold(self, part_bytes: int) -> None:
        """Account for a partially received record; drop it where there is no room."""
        held = self._node.held
        more = part_bytes - self._part_bytes
        self._part_bytes = part_bytes
        held.part_bytes += more
        if more > 0 and not held.admits(self.peer, 0, part_bytes):
            self._leave_out()
            self._hold(0)

    def _leave_out(self) -> None:
        """Drop a batch for which memory has no room; it is requested again once there is some."""
        held, inbound = self._node.held, self.session.inbound
        inbound.leave_out()
        if self not in held:
            held.refuse(self)
            self._link.log_event(
                "warn",
                "link.left-out",
                detail=f"what {self.peer} sends from offset {inbound.received} of its log on is"
                " not kept, as too much waits for this node's disk; it is asked for again once"
                " there is room",
            )

    def ask_again(self) -> None:
        """Ask the peer to send dropped batches again."""
        if self._version < wire.RESEND_VERSION:
            self._link.rejoin("there is room again for what was left out")
        else:
            self.perform(self.session.inbound.ask_again())

    def _stored(self, batch: Batch, next: int, outcome: Appended | LinkdError) -> None:
        """Handle the outcome of storing a received batch."""
        if isinstance(outcome, LogClosed):
            return  # the peer sends it again after our restart
        if isinstance(outcome, OutOfStep):
            if self.connection is None:
                return  # it was out of step already
            self._link.log_event("error", "link.out-of-step", detail=str(outcome))
            self._link.rejoin(f"{outcome}; the link begins again from what is on disk")
            return
        if isinstance(outcome, LinkdError):
            self._link.log_event("error", "log.disk-failed", detail=str(outcome))
            return
        if outcome.duplicate:
            self.catch_up()  # the step may still be in flight: acknowledge only what is on disk
        else:
            self.session.inbound.stored(next)
        if outcome.unproven or outcome.late:
            self._out_of_order(batch, outcome)
        if outcome.count < batch.count:
            self._repeated(batch.channel, batch.count - outcome.count)
        self._acks.stored(len(batch.records))

    def catch_up(self) -> None:
        """Take over what the batches of an older connection have brought to disk meanwhile."""
        inbound = self.session.inbound
        if self.connection is None or inbound.received is None:
            return
        if inbound.committed < inbound.received:
            cursor = self._log.cursor(self.peer)
            if cursor is not None:
                inbound.stored(min(cursor.committed, inbound.received))
                self.perform(inbound.ack())

    def watch(self, now: float) -> None:
        """Repeat a delayed ack, and rejoin where the peer's ack is overdue; call it once a second.

        A peer without room for what it gets repeats its last ack, as does one that has only part
        of a record: a peer that sends nothing at all has lost its position.
        """
        connection, inbound = self.connection, self.session.inbound
        if connection is None:
            return
        if self.waits:
            if now - self._began >= HELLO_WAIT_SECONDS:
                self._link.rejoin("the second hello did not come")
            return
        waits = inbound.behind and self._log.held(self.peer) > 0
        withheld = waits or self in self._node.held
        if (withheld or inbound.partial) and now - self._ack_sent >= ACK_REPEAT_SECONDS:
            self._ack_sent = now
            connection.send(wire.encode(wire.Ack(inbound.committed)))
        if self.path.probing or not self.session.outbound.in_flight:
            self._ack_heard = now
        elif now - self._ack_heard >= self._ack_wait:
            self._overdue(now - self._ack_heard)

    def _overdue(self, seconds: float) -> None:
        """Rejoin: the peer has not acknowledged records for too long."""
        outbound = self.session.outbound
        self._ack_wait = min(2 * self._ack_wait, MOST_ACK_WAIT_SECONDS)
        detail = (
            f"{self.peer} has acknowledged nothing for {seconds:.0f} s, though"
            f" {outbound.owed_records} records are owed and sent: the link rejoins"
        )
        self._link.log_event("error", "link.ack-overdue", detail=detail)
        self._link.rejoin(detail)

    def _repeated(self, channel: str, records: int) -> None:
        """Count and log records that arrived twice, or in a loop; they were dropped."""
        self._node.count("repeated", self.peer, records)
        self._link.log_event(
            "info",
            "link.duplicate-records",
            channel=channel,
            records=records,
            detail=f"{self.peer} sent {channel}, which is stored already: dropped",
        )

    def _out_of_order(self, batch: Batch, outcome: Appended) -> None:
        """Count received records that are late, or that may be duplicates."""
        origin, log_event = batch.origin, self._link.log_event
        places: dict[str, str | int | float | None] = {
            "channel": batch.channel,
            "origin": origin.node,
            "first": origin.first,
        }
        if outcome.late:
            self._node.count("late", self.peer, outcome.late)
            if not self._late_logged:
                self._late_logged = True
                detail = (
                    f"{self.peer} brought {batch.channel} of {origin.node} from offset"
                    f" {origin.first} on behind later records, which came over another path;"
                    " they are stored"
                )
                log_event("warn", "link.late-records", **places, detail=detail)
        if outcome.unproven:
            self._node.count("unproven", self.peer, outcome.unproven)
            stored = "stored, perhaps a second time" if outcome.count else "left out"
            detail = (
                f"nothing here proves whether offsets {origin.first} to"
                f" {origin.first + batch.count - 1} of {origin.node} came before: {stored}"
            )
            places["records"] = outcome.unproven
            log_event("error", "link.unproven-records", **places, detail=detail)

    def acknowledge(self) -> None:
        """Acknowledge all committed records in one message."""
        self.perform(self.session.inbound.ack())

    def _rewind(self, effect: sessions.Rewind) -> None:
        self._log.set_cursor(self.peer, effect.cursor, ignore)

    def _acked(self, effect: sessions.Acked) -> None:
        self._node.links.acked(self.peer, effect.next)
        outbound = self.session.outbound
        progress = outbound.acked_records > self._acked_before
        if progress:
            self._ack_wait = ACK_WAIT_SECONDS
        if self._unproved and (progress or not outbound.owed_records):
            self._unproved = False
            self._link.acknowledged()

    def _pass(self, effect: sessions.ForwardVolatile) -> None:
        self._node.passed(effect.message, self.peer)

    def _log_effect(self, effect: sessions.LogEvent) -> None:
        self._link.log_event(effect.level, effect.event, detail=effect.detail)

    def _refused(self, effect: sessions.RecordsRefused) -> None:
        self._node.count("refused", self.peer, effect.count)
        self._link.log_event(
            "warn",
            "link.unwanted-records",
            channel=effect.channel,
            records=effect.count,
            detail=f"{self.peer} sent {self._name(effect.channel)}, which"
            " `receive` does not have: left out",
        )

    def _name(self, channel: str) -> str:
        """Return the first few refused channels, for a log line."""
        names = self._unwanted
        if len(names) < _MOST_NAMES:
            names[channel or "a malformed channel name"] = None
        more = " and others" if len(names) == _MOST_NAMES else ""
        return ", ".join(names) + more

    def not_relayed(self, effect: sessions.NotRelayed) -> None:
        """Count records of a third node that `relay = false` excludes."""
        self.not_relayed_records += effect.count
        self._node.count("not-relayed", self.peer, effect.count)
        if self._relay_logged:
            return
        self._relay_logged = True
        if effect.inbound:
            detail = (
                f"{self.peer} sent records of {effect.channel} that began at another node: left"
                f" out, since [[peer]] {self.peer} has relay = false here"
            )
        else:
            detail = (
                f"{self.peer} takes from this node only what is published here: records of"
                f" {effect.channel} that began elsewhere are not sent; set relay = true in"
                f" {self.peer}'s [[peer]] {self._node.name}, or narrow `send` here"
            )
        self._link.log_event(
            "error",
            "link.relay-refused",
            channel=effect.channel,
            records=effect.count,
            detail=detail,
        )

    def _false_origin(self, effect: sessions.FalseOrigin) -> None:
        self._node.count("false-origin", self.peer, effect.count)
        self._link.log_event(
            "error",
            "link.false-origin",
            channel=effect.channel,
            records=effect.count,
            detail=f"{self.peer} sent {effect.channel}: {effect.detail}; left out",
        )

    def _expired(self, effect: sessions.RecordsExpired) -> None:
        self._node.count("expired", self.peer, effect.count)

    def _gone(self, effect: sessions.OffsetsLost) -> None:
        whose = f"{self.peer}'s log" if effect.inbound else "this node's log"
        detail = f"offsets {effect.first} to {effect.next - 1} of {whose} are gone"
        self._node.count("gap", self.peer, effect.next - effect.first)
        self._link.log_event(
            "error", "link.gap", first=effect.first, next=effect.next, detail=detail
        )

    def _diverged(self, effect: sessions.EpochsDiverged) -> None:
        self._link.diverged(effect.detail)
