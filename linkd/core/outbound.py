"""Send our log to a peer: what goes next, what is in flight, what it has acknowledged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from linkd.core.session_effects import (
    Acked,
    Effect,
    NotRelayed,
    OffsetsLost,
    Read,
    RecordsExpired,
    Send,
    SessionSettings,
)
from linkd.errors import RemoteProtocolError
from linkd.protocol.channels import Patterns
from linkd.protocol.peer import BatchMessage, GapNotice, Hello, Part, encode, sendable
from linkd.protocol.records import BATCH_OVERHEAD_BYTES, MAX_BATCH_BYTES, Batch

_BURST_BYTES = 65_536
"""Bytes sent before the driver must check again whether the connection has room."""

_WHOLE_BYTES = MAX_BATCH_BYTES + 4096
"""Records up to this size are not cut: a body of 64 KiB is one message, not two."""

_PACK_FROM_BYTES = 512
"""Smaller batches gain nothing from compression."""


class Outbound:
    """The sending half of a session.

    Args:
        settings: Names, patterns and bounds.
        epoch_below: Returns the epoch of our log just below an offset.
        pack: Compresses a batch, or None.

    Attributes:
        position: The next offset of our log to send.
        acked: Everything below is on the peer's disk.
        sent_records: Records sent since the start.
        acked_records: Records acknowledged on the connection that sent them, since the start.
        flight_bytes: Bytes sent and not yet acknowledged, with BATCH_OVERHEAD_BYTES a batch.
        owed_records: Records of the log that the peer gets and has not acknowledged; at least 1
            while they are counted.
        owed_bytes: Bytes of these.
        counting: They are counted: of the records that the log had when that began nothing is in
            the two figures yet.
        wants: The channels that the peer takes, by its last hello; None before the first.
        relays: The peer takes records that a third node published, by its last hello.
    """

    __slots__ = (
        "_acked_uncounted",
        "_announced",
        "_connected",
        "_expired",
        "_flight",
        "_live_end",
        "_owed_end",
        "_pack",
        "_packing",
        "_pending",
        "_reading",
        "_rereads",
        "_rest",
        "_settings",
        "_writable",
        "acked",
        "acked_records",
        "counting",
        "deadline",
        "epoch_below",
        "flight_bytes",
        "log_next",
        "owed_bytes",
        "owed_records",
        "position",
        "relays",
        "sent_records",
        "wants",
    )

    def __init__(
        self,
        settings: SessionSettings,
        epoch_below: Callable[[int], str],
        pack: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._settings = settings
        self._pack = pack
        self._packing = False
        self.epoch_below = epoch_below
        self._connected = False
        self._writable = False
        self._reading = False
        self._rereads = False  # the read under way is outdated: read again
        self._pending: deque[Batch] = deque()
        self._flight: deque[tuple[int, int, int, float]] = deque()
        self._rest = memoryview(b"")  # the unsent part of a large record
        self._live_end = 0  # the log's end if `_pending` was offered, not read; else 0
        self._announced = 1  # the peer knows our position up to here
        self.position = 1
        self.acked = 1
        self.log_next = 1
        self.sent_records = 0
        self.acked_records = 0
        self.owed_records = 0
        self.owed_bytes = 0
        self._owed_end = 1
        self.counting = False
        self._acked_uncounted = (0, 0)  # records and bytes that left the backlog meanwhile
        self.flight_bytes = 0
        self.wants: Patterns | None = None
        self.relays = True
        self.deadline: float | None = None

    @property
    def compresses(self) -> bool:
        """Whether batches to this peer are compressed on the current connection."""
        return self._packing

    def begin(self, acked: int) -> None:
        """Set the peer's position from our own notes."""
        self.acked = self.position = self._announced = acked

    def owes(self, batch: Batch) -> bool:
        """Return whether the peer gets this batch: by its channel and its origin."""
        return self.takes_from(batch) and self._is_for_peer(batch)

    def takes_from(self, batch: Batch) -> bool:
        """Return whether the peer takes this batch from us: published here, or it lets us relay."""
        return self.relays or batch.source is None

    def _is_for_peer(self, batch: Batch) -> bool:
        """Return whether the peer gets this batch, if it takes what we relay."""
        return (
            not self.has(batch)
            and self._settings.send.match(batch.channel)
            and (self.wants is None or self.wants.match(batch.channel))
        )

    def has(self, batch: Batch) -> bool:
        """Return whether the peer published this batch, or sent it here."""
        peer, source = self._settings.peer, batch.source
        return batch.origin.node == peer or (source is not None and source.peer == peer)

    def add(self, batch: Batch) -> bool | None:
        """Add a committed batch on one of the peer's channels to its backlog.

        Returns:
            Whether the peer gets it; None where it takes nothing that this node relays.
        """
        if self.has(batch):
            return False
        if batch.source is not None and not self.relays:
            return None
        self.owed_records += batch.count
        self.owed_bytes += len(batch.records)
        self._owed_end = batch.offset + batch.count
        return True

    def add_backlog(self, records: int, size: int, end: int) -> None:
        """Add to the peer's backlog; all of it is below `end`."""
        self.owed_records += records
        self.owed_bytes += size
        self._owed_end = end

    def no_backlog(self) -> None:
        """Note that nothing is owed."""
        self.owed_records = self.owed_bytes = 0
        self.counting = False

    def begin_count(self, end: int) -> None:
        """Begin to count the backlog, all of which is below `end`.

        Until then one record counts, so that nobody takes the peer to be up to date.
        """
        self.owed_records, self.owed_bytes = 1, 0
        self.counting, self._acked_uncounted = True, (0, 0)
        self._owed_end = end

    def end_count(self, records: int, size: int) -> None:
        """Add what was counted, without what has left the backlog since the count began."""
        if self.counting:
            self.counting = False
            gone, gone_bytes = self._acked_uncounted
            self.owed_records = max(0, self.owed_records - 1 + records - gone)
            self.owed_bytes = max(0, self.owed_bytes + size - gone_bytes)

    def _settle(self, records: int, size: int) -> None:
        """Take from the peer's backlog."""
        if self.counting:
            gone, gone_bytes = self._acked_uncounted
            self._acked_uncounted = gone + records, gone_bytes + size
            return
        self.owed_records = max(0, self.owed_records - records)
        self.owed_bytes = max(0, self.owed_bytes - size)

    def oldest_stamp(self) -> float | None:
        """Return when the oldest batch in flight was stored, by the log's clock, or None."""
        return self._flight[0][3] if self._flight else None

    def greeted(self, theirs: Hello, start: int, acked: int, writable: bool) -> list[Effect]:
        """Begin on a new connection at `start`."""
        self.disconnected()
        self._connected = True
        self._writable = writable
        self.wants = Patterns(theirs.wants)
        self.relays = theirs.relays
        self._packing = self._pack is not None and "zstd" in theirs.compress
        self.position = self._announced = start
        self.acked = acked
        effects: list[Effect] = [Acked(acked)]
        effects += self._more()
        return effects

    def disconnected(self) -> None:
        """Drop what is in flight; what was not acknowledged is sent again."""
        self._connected = self._writable = self._reading = self._rereads = False
        self._pending.clear()
        self._rest = memoryview(b"")
        self._live_end = 0
        self._flight.clear()
        self.flight_bytes = 0
        self.deadline = None

    def offer(self, batches: list[Batch], next: int, clock: float, now: float) -> list[Effect]:
        """Take what our log has just committed: the peer's batches, and the log's new end.

        Spares a peer that keeps up from reading batches that are not for it. A peer that is behind
        must read: a batch sent now would skip those before it.
        """
        live = (
            self._connected
            and self._writable
            and not self._reading
            and not self._pending
            and not self._rest
            and self.position == self.log_next
            and self.flight_bytes < self._settings.window_bytes
        )
        self.log_next = next
        if not live:
            return self._more()
        if not batches:
            self._skip_to(next, now)
            return []
        self._pending.extend(batches)
        self._live_end = next
        return self._pump(clock, now)

    def _skip_to(self, next: int, now: float) -> None:
        """Skip what is not for the peer, to the end of what was offered."""
        self.position = next
        self._live_end = 0
        if self.deadline is None:
            self.deadline = now + self._settings.position_interval

    def writable(self, writable: bool, clock: float, now: float) -> list[Effect]:
        """Note whether the connection has room; if so, send.

        Each call sends about 64 KiB at most: the driver checks the connection, and calls again.
        """
        self._writable = writable
        return self._pump(clock, now) if writable else []

    @property
    def in_flight(self) -> bool:
        """Whether something complete was sent that is not acknowledged."""
        return bool(self._flight) and not self._rest

    @property
    def eager(self) -> bool:
        """Whether there is something to send at once, had the connection room."""
        return bool(self._rest) or (
            bool(self._pending) and self.flight_bytes < self._settings.window_bytes
        )

    def read(self, batches: list[Batch], clock: float, now: float) -> list[Effect]:
        """Take batches read from `position` on; `clock` is the log's own."""
        self._reading = False
        if not self._connected:
            return []
        if self._rereads:
            self._rereads = False
            return self._more()
        self._pending.extend(batches)
        return self._pump(clock, now) if self._writable else []

    def missing(self, first: int) -> list[Effect]:
        """Skip to `first`, where our log begins now: the records below are gone."""
        self._reading = False
        if self._rereads:
            self._rereads = False
            return self._more()
        if not self._connected or first <= self.position:
            return []
        wanted, self.position = self.position, first
        self._pending.clear()
        self._live_end = 0
        notice = GapNotice(self._announced, first, self.epoch_below(first))
        self._announced = first
        self._flight.append((first, 0, 0, 0.0))
        return [Send(encode(notice)), OffsetsLost(wanted, first, inbound=False), *self._more()]

    def acknowledged(self, next: int) -> list[Effect]:
        """Take the peer's acknowledgement of everything below `next`.

        Raises:
            RemoteProtocolError: It was never sent that.
        """
        if next > self._announced:
            raise RemoteProtocolError(
                f"acknowledged {next}, but was sent only what is below {self._announced}"
            )
        if next <= self.acked:
            return []
        self.acked = next
        flight, batches, all_records, all_bytes = self._flight, 0, 0, 0
        while flight and flight[0][0] <= next:
            _, records, size, _ = flight.popleft()
            batches += records > 0
            all_records += records
            all_bytes += size
        self.flight_bytes -= all_bytes + batches * BATCH_OVERHEAD_BYTES
        self.acked_records += all_records
        self._settle(all_records, all_bytes)
        if next >= self._owed_end:
            self.no_backlog()
        return [Acked(next), *self._more()]

    def resend(self, next: int) -> list[Effect]:
        """Send again from `next` on: the peer had no room for what followed.

        Raises:
            RemoteProtocolError: `next` is outside of what is in flight.
        """
        if not self.acked <= next <= self._announced:
            raise RemoteProtocolError(
                f"asked to send again from {next}, expected {self.acked} to {self._announced}"
            )
        while self._flight and self._flight[-1][0] > next:
            _, records, size, _ = self._flight.pop()
            self.flight_bytes -= size + BATCH_OVERHEAD_BYTES * (records > 0)
        self._pending.clear()
        self._rest = memoryview(b"")
        self._live_end = 0
        self._rereads = self._reading
        self.position = self._announced = next
        self.deadline = None
        return self._more()

    def on_deadline(self, now: float) -> list[Effect]:
        """Send the position if it moved over skipped records alone and the deadline has come."""
        if self.deadline is None or now < self.deadline:
            return []
        self.deadline = None
        return self._send_position()

    def _send_position(self) -> list[Effect]:
        """Send a step without records."""
        if not self._connected or self._rest or self.position <= self._announced:
            return []
        step = BatchMessage(self._announced, self.position, self.epoch_below(self.position))
        self._announced = self.position
        self._flight.append((self.position, 0, 0, 0.0))
        return [Send(encode(step))]

    def _more(self) -> list[Effect]:
        """Read on if the log has more and there is room for it."""
        self.log_next = max(self.log_next, self.position)
        if (
            self._reading
            or not self._writable
            or self._pending
            or self._rest
            or self.position >= self.log_next
            or self.flight_bytes >= self._settings.window_bytes
        ):
            return []
        self._reading = True
        return [Read(self.position, self._settings.read_bytes)]

    def _pump(self, clock: float, now: float) -> list[Effect]:
        """Send what was read while there is room; then read on."""
        effects: list[Effect] = []
        pending = self._pending
        window = self._settings.window_bytes
        room = _BURST_BYTES
        while room > 0:
            if self._rest:
                room -= self._part(effects)
            elif pending and self.flight_bytes < window:
                room -= self._one(pending.popleft(), clock, effects)
            else:
                break
        if self._live_end and not pending:
            self._skip_to(self._live_end, now)
        if self.position > self._announced and self.deadline is None:
            self.deadline = now + self._settings.position_interval
        elif self.position == self._announced:
            self.deadline = None
        effects += self._more()
        return effects

    def _part(self, effects: list[Effect]) -> int:
        """Send the next part of a large record; return its bytes."""
        size = len(self._rest)
        end = size if size <= _WHOLE_BYTES else MAX_BATCH_BYTES
        part, self._rest = self._rest[:end], self._rest[end:]
        effects.append(Send(encode(Part(part))))
        return len(part)

    def _one(self, batch: Batch, clock: float, effects: list[Effect]) -> int:
        """Send or skip one batch; return the bytes sent."""
        end = batch.offset + batch.count
        if end <= self.position:
            return 0
        if batch.offset < self.position:
            batch = batch.from_offset(self.position)
        if batch.offset > self.position and not self._live_end:
            self._skip_hole(batch, effects)
        owed = self._live_end > 0 or self.owes(batch)  # an offered batch was checked already
        self.position = end
        if not owed or (batch.ttl is not None and batch.expired(clock)):
            if owed:
                self._settle(batch.count, len(batch.records))
                effects.append(RecordsExpired(batch.channel, batch.count))
            elif not self.takes_from(batch) and self._is_for_peer(batch):
                effects.append(NotRelayed(batch.channel, batch.count, inbound=False))
            return 0
        return self._send(batch, clock, effects)

    def _skip_hole(self, batch: Batch, effects: list[Effect]) -> None:
        """Report offsets that no record has: damage, or the offset skip of a repaired log."""
        effects += self._send_position()
        effects.append(Send(encode(GapNotice(self._announced, batch.offset, batch.epoch))))
        effects.append(OffsetsLost(self._announced, batch.offset, inbound=False))
        self.position = self._announced = batch.offset
        self._flight.append((batch.offset, 0, 0, 0.0))

    def _send(self, batch: Batch, clock: float, effects: list[Effect]) -> int:
        """Send the batch that ends at `position`, or its beginning; return the bytes sent."""
        records, encoding = batch.records, ""
        if self._packing and self._pack is not None and len(records) >= _PACK_FROM_BYTES:
            packed = self._pack(records)
            if len(packed) < len(records):  # else it could exceed the largest batch
                records, encoding = packed, "zstd"
        size = len(records)
        end = size if size <= _WHOLE_BYTES else MAX_BATCH_BYTES
        step = BatchMessage(
            self._announced,
            self.position,
            batch.epoch,
            batch.channel,
            batch.count,
            size,
            records[:end],
            sendable(batch.time),
            batch.ttl if batch.ttl is None else batch.ttl_left(clock),
            batch.origin,
            encoding,
        )
        effects.append(Send(encode(step)))
        if end < size:
            self._rest = memoryview(records)[end:]
        self._announced = self.position
        self._flight.append((self.position, batch.count, len(batch.records), batch.stamp))
        self.flight_bytes += len(batch.records) + BATCH_OVERHEAD_BYTES
        self.sent_records += batch.count
        return end
