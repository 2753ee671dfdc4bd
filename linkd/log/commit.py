"""Group commit: queue publishes, drop repeats, assign offsets, build batches.

`CommitBuilder` decides whether a publish is a repeat and how much of it is new, gives it its
offset and puts it into a batch; adjacent drafts without ids and producer share one. A group that
can't be written is rolled back as a whole.

`LogBase` holds the queue in front of the disk and the groups under way, and answers their
publishers. An engine decides when a group goes (`_pump`) and calls `_committed` or `_failed` for
each, in order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

import msgspec

from linkd.errors import (
    BadRecord,
    LinkdError,
    LogClosed,
    LogFull,
    OutOfStep,
    PublishError,
    SequenceUnproven,
)
from linkd.log.cache import TailCache
from linkd.log.frame import CursorSet, EpochOpened, PendingFrame, Publish
from linkd.log.interface import Appended, OnDurable, OperatorNotice
from linkd.log.origins import Undo
from linkd.log.state import (
    PeerPosition,
    RecentIds,
    State,
    digest,
    follows,
    moved,
    placed,
    take_back,
)
from linkd.protocol.peer import Cursor, EpochStart
from linkd.protocol.records import (
    BATCH_OVERHEAD_BYTES,
    MAX_BATCH_BYTES,
    Batch,
    NewRecords,
    Origin,
    Producer,
    join_raw,
    runs_of,
    split_raw,
)


class ReceivedBatch(msgspec.Struct, frozen=True, gc=False):
    """A received batch that waits, and the peer's cursor after it."""

    batch: Batch
    place: PeerPosition


PendingItem = tuple[NewRecords | ReceivedBatch | CursorSet | EpochOpened, OnDurable]


class CommitGroup(msgspec.Struct):
    """What one commit writes, and the answers that it gives.

    Attributes:
        waiting: The items that it was made of.
        stamp: The log's clock.
        pieces: The frames, in order.
        outcomes: Callbacks with their answers, for when it is on disk.
        size: About its bytes.
        next: The log's next offset after it.
        undo: The changes to roll back if it can't be written.
        before: The log's next offset before it.
    """

    waiting: list[PendingItem]
    stamp: float
    before: int
    pieces: list[PendingFrame] = msgspec.field(default_factory=list)
    outcomes: list[tuple[OnDurable, Appended | LinkdError]] = msgspec.field(default_factory=list)
    size: int = 0
    next: int = 0
    undo: Undo = msgspec.field(default_factory=list)


class CommitBuilder:
    """Builds commit groups.

    Args:
        node: This node's name.
        state: The log's state, with the frames under way.
        ids: The ids of records published here.
    """

    __slots__ = ("_epoch", "_group", "_ids", "_node", "_state")

    def __init__(self, node: str, state: State, ids: RecentIds) -> None:
        self._node = node
        self._state = state
        self._ids = ids

    def make(self, waiting: list[PendingItem], stamp: float) -> CommitGroup:
        """Return the group of all of `waiting`, and apply it to the state.

        The state is ahead of the disk from here on: the next group must already see this one's
        ids, sequences and offsets. `take_back` undoes that if the disk refuses.
        """
        state = self._state
        group = self._group = CommitGroup(waiting, stamp, state.next)
        state.undo = group.undo
        index, end = 0, len(waiting)
        while index < end:
            item, settled = waiting[index]
            if type(item) is NewRecords:
                if item.ids or len(item.records) > MAX_BATCH_BYTES:
                    self._single(item, settled)
                elif item.producer is not None:
                    index = self._produced(waiting, index, item)
                    continue
                else:
                    index = self._run(waiting, index, item)
                    continue
            elif type(item) is ReceivedBatch:
                self._stored(item, settled)
            else:
                assert isinstance(item, CursorSet | EpochOpened)
                self._change(item, settled)
            index += 1
        group.next = state.next
        return group

    def take_back(self, group: CommitGroup) -> None:
        """Roll back the newest group; called newest first, for each undo restores older values."""
        take_back(group.undo)
        self._state.next = group.before

    def _run(self, waiting: Sequence[PendingItem], index: int, first: NewRecords) -> int:
        """Put as many drafts from `index` on into one batch as may share it.

        Returns:
            The index of the next draft.
        """
        channel, ttl = first.channel, first.ttl
        offset = start = self._state.next
        parts: list[bytes] = []
        size = 0
        outcome = self._group.outcomes.append
        for place in range(index, len(waiting)):  # islice would walk up to `index` each time
            item, settled = waiting[place]
            if (
                type(item) is not NewRecords
                or item.channel != channel
                or item.ttl != ttl
                or item.ids
                or item.producer is not None
            ):
                break
            records = item.records
            size += len(records)
            if size > MAX_BATCH_BYTES:
                size -= len(records)
                break
            parts.append(records)
            count = item.count
            outcome((settled, Appended(offset, count)))
            offset += count
        records = parts[0] if len(parts) == 1 else b"".join(parts)
        self._put(first, offset - start, records)
        return index + len(parts)

    def _produced(self, waiting: Sequence[PendingItem], index: int, first: NewRecords) -> int:
        """Put a producer's drafts of consecutive sequences, from `index` on, into one batch.

        Returns:
            The index of the next draft.
        """
        channel, ttl, producer = first.channel, first.ttl, first.producer
        assert producer is not None
        sequence = producer.sequence - (len(first.counts) or 1) + 1
        name, owner = producer.name, producer.owner
        until = self._new_until(Producer(name, sequence, owner))
        if producer.sequence >= until:
            self._repeated(first, waiting[index][1])
            return index + 1
        offset = start = self._state.next
        parts: list[bytes] = []
        counts: list[int] = []
        size = 0
        outcome = self._group.outcomes.append
        for place in range(index, len(waiting)):  # islice would walk up to `index` each time
            item, settled = waiting[place]
            if (
                type(item) is not NewRecords
                or item.channel != channel
                or item.ttl != ttl
                or item.ids
            ):
                break
            number, records = item.producer, item.records
            size += len(records)
            if (
                size > MAX_BATCH_BYTES
                or number is None
                or number.sequence >= until
                or number.name != name
                or number.owner != owner
                or number.sequence != sequence + (len(item.counts) or 1) - 1
            ):
                break
            producer, sequence = number, number.sequence + 1
            parts.append(records)
            count = item.count
            counts += item.counts or (count,)
            outcome((settled, Appended(offset, count)))
            offset += count
        records = parts[0] if len(parts) == 1 else b"".join(parts)
        group = self._group
        self._state.producers.note(producer, start, counts, group.stamp, group.undo)
        if len(counts) > 1:
            first = msgspec.structs.replace(first, producer=producer)
        self._put(first, offset - start, records)
        self._group.pieces[-1].counts = tuple(counts)
        return index + len(parts)

    def _new_until(self, producer: Producer) -> int:
        """Return the lowest sequence, from that of `producer` on, that may be stored already."""
        try:
            new = self._state.producers.stored(producer) is None
        except LookupError:
            new = False
        return self._state.producers.new_until(producer) if new else producer.sequence

    def _repeated(self, draft: NewRecords, settled: OnDurable) -> None:
        """Answer a draft whose sequence may be stored already."""
        if len(draft.counts) < 2:
            self._single(draft, settled)
            return
        error = BadRecord("expected numbers none of which is stored in a draft of several")
        self._group.outcomes.append((settled, error))

    def _put(
        self, draft: NewRecords, count: int, records: bytes, publish: Publish | None = None
    ) -> None:
        """Give `count` of a draft's records their offsets and put them into the group."""
        state, group = self._state, self._group
        offset, epoch = state.next, state.epoch
        after = state.follow_on(draft.channel, offset + count - 1, group.stamp)
        batch = Batch(
            offset,
            draft.channel,
            count,
            records,
            draft.time,
            Origin(self._node, state.log, epoch, offset, after),
            epoch,
            draft.ttl,
            group.stamp,
            None,
            draft.producer,
        )
        owner = draft.owner if draft.ids else ""
        group.pieces.append(PendingFrame(batch, None, bool(draft.ids), publish, (), owner))
        group.size += len(records) + 256
        state.next = offset + count

    def _single(self, draft: NewRecords, settled: OnDurable) -> None:
        """Put a draft that shares no batch into the group, without its repeated records."""
        state, group = self._state, self._group
        producer = draft.producer
        repeat = self._repeated_number(producer)
        if repeat is not None:
            group.outcomes.append((settled, repeat))
            return
        count, records = draft.count, draft.records
        keys: list[tuple[int, bytes]] = []
        first = state.next
        if draft.ids:
            count, records, keys, known = self._new_of(draft)
            if not count:
                group.outcomes.append((settled, Appended(known, 0, True)))
                if producer is not None:
                    state.producers.note(producer, known, (0,), group.stamp, group.undo)
                return
        if count > 1 and len(records) > MAX_BATCH_BYTES:
            self._split(draft, count, records)
        else:
            self._put(draft, count, records)
        for place, key in keys:
            self._ids.add(draft.owner, key, first + place, group.stamp, group.undo)
        if producer is not None:
            state.producers.note(producer, first, (count,), group.stamp, group.undo)
        group.outcomes.append((settled, Appended(first, count)))

    def repeat(self, draft: NewRecords) -> Appended | LinkdError | None:
        """Return the answer to a draft if all of it is a repeat, else None."""
        found = None if len(draft.counts) > 1 else self._repeated_number(draft.producer)
        if found is None and draft.ids:
            count, _, _, known = self._new_of(draft)
            if not count:
                found = Appended(known, 0, True)
        return found

    def _repeated_number(self, producer: Producer | None) -> Appended | LinkdError | None:
        """Return the answer to a sequence that is stored or can't be proved new, else None."""
        if producer is None:
            return None
        try:
            stored = self._state.producers.stored(producer)
        except LookupError:
            return _unproven(producer)
        return None if stored is None else Appended(stored[0], 0, True)

    def _new_of(self, draft: NewRecords) -> tuple[int, bytes, list[tuple[int, bytes]], int]:
        """Return the new part of a draft with ids.

        Returns:
            Count, records, (place, digest) of each new id, and the offset of the first repeat.
        """
        find, channel = self._ids.find, draft.channel
        kept: list[int] = []
        keys: list[tuple[int, bytes]] = []
        here: set[bytes] = set()
        known = 0
        for place, name in enumerate(draft.ids):
            if name:
                key = digest(channel, name)
                if key in here:
                    continue
                offset = find(draft.owner, key)
                if offset is not None:
                    known = known or offset
                    continue
                here.add(key)
                keys.append((len(kept), key))
            kept.append(place)
        if len(kept) == draft.count:
            return draft.count, draft.records, keys, known
        if not kept:
            return 0, b"", [], known
        raws = split_raw(draft.records, draft.count)
        return len(kept), join_raw([raws[place] for place in kept]), keys, known

    def _split(self, draft: NewRecords, count: int, records: bytes) -> None:
        """Put a draft that is too large for one batch into several.

        A start ignores them all if the last one is missing: a publish is stored whole or not.
        """
        first, runs = self._state.next, runs_of(records, count, MAX_BATCH_BYTES)
        for number, (run, piece) in enumerate(runs, 1):
            self._put(draft, run, piece, Publish(first, count, number == len(runs)))

    def _stored(self, item: ReceivedBatch, settled: OnDurable) -> None:
        """Put the new part of a received batch into the group; the cursor moves in any case.

        If several parts are new, only the last frame moves the cursor: a crash between two frames
        must not leave the cursor past records that were not stored.
        """
        state, group, batch = self._state, self._group, item.batch
        source, offset = batch.source, state.next
        assert source is not None
        verdict = state.admit(batch, group.stamp) if batch.count else None
        state.put(source.peer, item.place)
        if verdict is None:
            self._put_received(batch)
            group.outcomes.append((settled, Appended(offset, batch.count)))
            return
        before = msgspec.structs.replace(source, next=source.previous)
        for skip, count in verdict.fresh[:-1]:
            self._put_received(msgspec.structs.replace(batch.part(skip, count), source=before))
        if verdict.fresh:
            self._put_received(batch.part(*verdict.fresh[-1]))
        else:
            self._put_received(msgspec.structs.replace(batch, count=0, records=b""))
        count = state.next - offset
        unproven = 0 if verdict.is_proven else count or batch.count
        appended = Appended(offset, count, not count, unproven, verdict.late)
        group.outcomes.append((settled, appended))

    def _put_received(self, batch: Batch) -> None:
        """Give a received batch its offset and put it into the group."""
        state, group = self._state, self._group
        stored = msgspec.structs.replace(
            batch, offset=state.next, epoch=state.epoch, stamp=group.stamp
        )
        group.pieces.append(PendingFrame(stored))
        group.size += len(batch.records) + 256
        state.next += batch.count

    def _change(self, item: CursorSet | EpochOpened, settled: OnDurable) -> None:
        """Put a change without records into the group."""
        state, group = self._state, self._group
        if isinstance(item, CursorSet):
            state.put(item.peer, item.place)
        else:
            state.open_epoch(item.epoch, item.first)
        group.pieces.append(PendingFrame(None, item))
        group.size += 256
        group.outcomes.append((settled, Appended(state.next, 0)))


def _unproven(producer: Producer) -> SequenceUnproven:
    """Return why a publish is neither stored nor answered as a repeat."""
    return SequenceUnproven(
        f"{producer.sequence} of producer {producer.name} lies so far back that nothing proves"
        " whether it is stored: look in the channel, then publish it under a new number or leave it"
    )


def ignore(outcome: object) -> None:
    """Ignore an outcome: no caller waits for it."""


Post = Callable[[Callable[[], None]], None]
"""Calls a function soon, in the reactor's thread."""


_Value = TypeVar("_Value")

GROUP_BYTES = 8 * 1024 * 1024
GROUP_ITEMS = 4096
"""About the most that one commit takes: all its answers come in one reactor iteration."""

MOST_WAITING_BYTES = 256 * 1024 * 1024
"""Bytes that may wait in memory for a stalled disk; beyond it publishes are refused."""

STALLED_SECONDS = 5.0
"""A disk that has not finished a commit after this long counts as stalled."""

FORGOTTEN_SECONDS = 3600.0
"""Forgotten ids and producers are logged at most this often for each owner."""

MAX_NOTICES = 100
"""Notices for the operator that are kept."""


def new_token(rng: Random) -> str:
    """Return a random id for a log or an epoch."""
    return f"{rng.getrandbits(64):016x}"


class LogBase(ABC):
    """The part of a log that is independent of the disk; `interface.Log` has the contract.

    Three positions: what waits, what is under way to the disk, and what is committed. `_state`,
    `_ids` and `_places` include all three; `next`, the cache and `_committed_places` only the last.
    """

    def __init__(self, node: str, state: State, ids: RecentIds, tail: TailCache) -> None:
        self.node = node
        self.id = state.log
        self.epoch = state.epoch
        self.first = tail.first
        self.next = state.next
        self.size_bytes = 0
        self.max_bytes = 0
        self.full: str | None = None
        self.notices: Sequence[OperatorNotice] = []
        self.on_notice: list[Callable[[OperatorNotice], None]] = []
        self.on_commit: list[Callable[[int], None]] = []
        self.on_written: list[Callable[[float], None]] = []
        self.on_trim: list[Callable[[int], None]] = []
        self._state = state
        self._ids = ids
        self._tail = tail
        self._grouping = CommitBuilder(node, state, ids)
        self._waiting: list[PendingItem] = []
        self._waiting_bytes = 0
        self._held: dict[str, int] = {}  # bytes of received batches not on disk, by peer
        self._held_bytes = 0
        self._room = 2**62
        self._under_way: deque[CommitGroup] = deque()
        self._notified_forgotten: dict[tuple[str, str], float] = {}
        self._finished = 0.0  # when a commit was finished, on the log's clock
        self._places: dict[str, PeerPosition | None] = dict(state.cursors)
        self._committed_places = dict(self._places)
        self._mistakes: list[Exception] = []  # raised by listeners
        self._closed = False

    @abstractmethod
    def clock(self) -> float:
        """Return the log's own clock."""

    @abstractmethod
    def _pump(self) -> None:
        """Send a group to the disk if one is due; called whenever an item starts to wait."""

    # what it knows

    def epochs(self) -> tuple[EpochStart, ...]:
        """Return the newest epochs, oldest first."""
        return self._state.epochs()

    def epoch_below(self, position: int) -> str:
        """Return the epoch of the record just below `position`."""
        return self._state.epoch_below(position)

    def cursor(self, peer: str) -> Cursor | None:
        """Return this log's cursor in `peer`'s log."""
        place = self._places.get(peer)
        if place is None:
            return None
        durable = self._committed_places.get(peer)
        committed = 0
        if durable is not None and durable[0] == place[0]:
            committed = min(durable[1][-1].next, place[1][-1].next)
        return Cursor(place[0], place[1], committed)

    def origin_node(self, log: str) -> str | None:
        """Return the node whose log this is, by the records of it that are here."""
        return self._state.origins.node(log)

    def highest(self, owner: str, producer: str) -> int:
        """Return a producer's highest stored sequence, appends under way included."""
        return self._state.producers.highest(owner, producer)

    @abstractmethod
    def _has_room(self) -> bool:
        """Return whether anything at all can be stored: received batches have more room."""

    def withholds(self) -> bool:
        """Return whether received batches must wait, for room or for a stalled disk."""
        return not self._has_room() or self.stalled() is not None

    def stalled(self) -> float | None:
        """Return for how many seconds the disk has not finished a commit; None below 5 s."""
        if not self._under_way:
            return None
        seconds = self.clock() - max(self._under_way[0].stamp, self._finished)
        return seconds if seconds >= STALLED_SECONDS else None

    # what comes in

    def append(self, draft: NewRecords, settled: OnDurable) -> None:
        """Append a publish."""
        if self.full is not None:
            self.refuse(draft, settled, LogFull(self.full))
            return
        if draft.ids or draft.producer is not None or draft.count < 1:
            error = _malformed(draft)
            if error is not None:
                settled(error)
                return
        if self._closed:
            settled(LogClosed("the node is stopping"))
            return
        waiting = self._waiting_bytes + BATCH_OVERHEAD_BYTES * len(self._waiting)
        if waiting > MOST_WAITING_BYTES:
            settled(PublishError("too much waits for the disk"))
            return
        self._waiting_bytes += len(draft.records)
        if self._waiting_bytes > self._room:
            self._waiting_bytes -= len(draft.records)
            self.refuse(draft, settled, self._no_room())
            return
        self._waiting.append((draft, settled))
        self._pump()

    def refuse(self, draft: NewRecords, settled: OnDurable, error: LinkdError) -> None:
        """Refuse a draft; a repeat gets the offset of the first one, once that is on disk."""
        repeat = None if _malformed(draft) else self._grouping.repeat(draft)
        if repeat is None:
            settled(error)
        elif isinstance(repeat, Appended) and self._under_way and repeat.offset >= self.next:
            # The first one is not on disk yet: answer with the newest group, behind it.
            self._under_way[-1].waiting.append((draft, settled))
            self._under_way[-1].outcomes.append((settled, repeat))
        else:
            settled(repeat)

    def _no_room(self) -> LogFull:
        """Return why a publish that no longer fits is refused."""
        return LogFull(f"the log has room for {self._room} bytes more")

    def _notify(self, notice: OperatorNotice) -> None:
        """Report to the operator, and keep the newest notices."""
        self.notices = (*self.notices[-MAX_NOTICES:], notice)
        self._call(self.on_notice, notice)

    def store(self, batch: Batch, settled: OnDurable) -> None:
        """Append a received batch."""
        source = batch.source
        assert source is not None
        place = self._places.get(source.peer)
        if not follows(place, source):
            expected = place[1][-1].next  # type: ignore[index] # without a place, all follow
            if source.next > expected:
                settled(OutOfStep(expected, source.previous, source.next))
            else:
                settled(Appended(self.next, 0, True))
            return
        place = self._places[source.peer] = moved(place, source)
        self._waiting_bytes += len(batch.records)
        self._hold(source.peer, len(batch.records) + BATCH_OVERHEAD_BYTES)
        self._queue(ReceivedBatch(batch, place), settled)

    def held(self, peer: str | None = None) -> int:
        """Return the bytes of received batches that are not on disk: of one peer, or of all."""
        return self._held_bytes if peer is None else self._held.get(peer, 0)

    def _hold(self, peer: str, size: int) -> None:
        """Count bytes of a peer's batches that wait in memory; a negative size takes some off."""
        self._held_bytes += size
        held = self._held.get(peer, 0) + size
        if held:
            self._held[peer] = held
        else:
            self._held.pop(peer, None)

    def set_cursor(self, peer: str, cursor: Cursor | None, settled: OnDurable) -> None:
        """Replace a peer's cursor, or forget it."""
        place = None if cursor is None else placed(cursor)
        self._places[peer] = place
        self._queue(CursorSet(peer, place), settled)

    def _queue(self, item: ReceivedBatch | CursorSet | EpochOpened, settled: OnDurable) -> None:
        """Queue an item that is never refused for lack of room."""
        if self._closed:
            settled(LogClosed("the node is stopping"))
            return
        self._waiting.append((item, settled))
        self._pump()

    # groups

    def _make_group(self) -> CommitGroup:
        """Make a group of what waits, up to the bounds of one commit."""
        waiting, self._waiting = self._waiting, []
        if self._waiting_bytes > GROUP_BYTES or len(waiting) > GROUP_ITEMS:
            self._waiting_bytes -= self._put_off(waiting)
        else:
            self._waiting_bytes = 0
        group = self._grouping.make(waiting, self.clock())
        self._under_way.append(group)
        if self._ids.forgotten or self._state.producers.forgotten:
            self._notify_forgotten(group.stamp)
        return group

    def _notify_forgotten(self, now: float) -> None:
        """Log which ids and producers were evicted at the bounds, once an hour for each owner."""
        for owner, ids in list(self._ids.forgotten.items()):
            if self._is_due("ids.forgotten", owner, now):
                del self._ids.forgotten[owner]
                sentence = (
                    f"{ids.count} ids of {owner or 'an older linkd'} were forgotten before"
                    f" log.id_window, the youngest {ids.age:.0f} s old or more: log.max_ids is"
                    " reached"
                )
                self._notify(OperatorNotice("warn", "ids.forgotten", sentence))
        producers = self._state.producers.forgotten
        for owner, count in list(producers.items()):
            if self._is_due("producers.forgotten", owner, now):
                del producers[owner]
                sentence = (
                    f"{count} producers of {owner or 'an older linkd'} were forgotten, or part"
                )
                self._notify(
                    OperatorNotice("warn", "producers.forgotten", f"{sentence} of their numbers")
                )

    def _is_due(self, event: str, owner: str, now: float) -> bool:
        """Return whether an hour has passed since this event was logged for an owner."""
        last = self._notified_forgotten.get((event, owner))
        if last is not None and now - last < FORGOTTEN_SECONDS:
            return False
        if len(self._notified_forgotten) > MAX_NOTICES:
            self._notified_forgotten.clear()
        self._notified_forgotten[event, owner] = now
        return True

    def _put_off(self, waiting: list[PendingItem]) -> int:
        """Put what exceeds one group back into the queue; return the bytes of the rest."""
        size = number = 0
        most = min(GROUP_ITEMS, len(waiting))
        while size < GROUP_BYTES and number < most:
            item = waiting[number][0]
            if isinstance(item, NewRecords):
                size += len(item.records)
            elif isinstance(item, ReceivedBatch):
                size += len(item.batch.records)
            number += 1
        self._waiting = waiting[number:]
        del waiting[number:]
        return size

    def _committed(self, group: CommitGroup) -> None:
        """Cache the batches of the oldest group, which is on disk, and answer its publishers.

        The order counts: cache and positions first, then the answers, then `on_commit`. A callback
        may read or append, and must find the log as it is on disk.
        """
        assert group is self._under_way[0]
        self._under_way.popleft()
        self._finished = self.clock()
        for item, _ in group.waiting:
            if type(item) is ReceivedBatch and item.batch.source is not None:
                self._hold(item.batch.source.peer, -len(item.batch.records) - BATCH_OVERHEAD_BYTES)
        add, places = self._tail.add, self._committed_places
        for piece in group.pieces:
            batch = piece.batch
            if batch is not None:
                if batch.count:
                    add(batch)
                if batch.source is not None:
                    source = batch.source
                    places[source.peer] = moved(places.get(source.peer), source)
            elif isinstance(piece.change, CursorSet):
                places[piece.change.peer] = piece.change.place
        before, self.next = self.next, group.next
        mistakes = self._mistakes
        for settled, appended in group.outcomes:
            try:
                settled(appended)
            except Exception as error:  # noqa: BLE001 - the others get their answers
                mistakes.append(error)
        if group.next != before:
            self._call(self.on_commit, group.next)

    def _call(self, listeners: Sequence[Callable[[_Value], None]], value: _Value) -> None:
        """Call all listeners even if one raises; `_raise_mistakes` raises that error later."""
        for listener in tuple(listeners):
            try:
                listener(value)
            except Exception as error:  # noqa: BLE001 - the others are called all the same
                self._mistakes.append(error)

    def _raise_mistakes(self) -> None:
        """Raise the errors of listeners, once everything else is done."""
        mistakes, self._mistakes = self._mistakes, []
        if len(mistakes) == 1:
            raise mistakes[0]
        if mistakes:
            raise ExceptionGroup("listeners of the log", mistakes)

    def _failed(self, why: str) -> None:
        """Roll back all groups under way, which the disk refused.

        Publishes are refused: their callers decide what to do. Received batches, cursors and
        epochs wait again, in order: a peer sends nothing twice on one connection.
        """
        waiting: list[PendingItem] = []
        for group in reversed(self._under_way):  # newest first, as the undos nest
            self._grouping.take_back(group)
        for group in self._under_way:
            waiting.extend(group.waiting)
        self._under_way.clear()
        self.full = why
        waiting.extend(self._waiting)
        self._waiting = [entry for entry in waiting if not isinstance(entry[0], NewRecords)]
        self._waiting_bytes = sum(
            len(item.batch.records) for item, _ in self._waiting if isinstance(item, ReceivedBatch)
        )
        error = LogFull(why)
        for item, settled in waiting:
            if isinstance(item, NewRecords):
                self._call((settled,), error)

    def _open_epoch(self, epoch: str, first: int) -> None:
        """Queue this run's epoch, ahead of all publishes."""
        self._waiting.append((EpochOpened(epoch, first), ignore))


def _malformed(draft: NewRecords) -> LinkdError | None:
    """Return what is wrong with a draft, or None."""
    if draft.count < 1:
        return BadRecord(f"expected at least one record, got {draft.count}")
    if draft.ids and len(draft.ids) != draft.count:
        return BadRecord(f"expected no ids or {draft.count}, got {len(draft.ids)}")
    if draft.producer is not None and draft.producer.sequence < 1:
        return BadRecord(f"expected a sequence from 1 on, got {draft.producer.sequence}")
    if draft.counts and (
        draft.ids or len(draft.records) > MAX_BATCH_BYTES or sum(draft.counts) != draft.count
    ):
        return BadRecord("expected several numbers of a producer only in one batch, without ids")
    return None
