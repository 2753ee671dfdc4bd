"""Group commit: queue publishes, drop repeats, assign offsets, build batches.

`CommitBuilder` decides whether a publish is a repeat and how much of it is new, gives it its
offset and puts it into a batch; adjacent drafts without ids and producer share one. A group that
can't be written is rolled back as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from linkd.errors import (
    BadRecord,
    LinkdError,
    SequenceUnproven,
)
from linkd.log.frame import PendingFrame, PublishPart
from linkd.log.interface import Appended, OnDurable
from linkd.log.origins import Undo
from linkd.log.state import (
    Change,
    PeerPosition,
    RecentIds,
    State,
    digest,
    take_back,
)
from linkd.protocol.records import (
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


PendingItem = tuple[NewRecords | ReceivedBatch | Change, OnDurable]


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
                assert isinstance(item, Change)
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
        self, draft: NewRecords, count: int, records: bytes, publish: PublishPart | None = None
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
            self._put(draft, run, piece, PublishPart(first, count, number == len(runs)))

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

    def _change(self, item: Change, settled: OnDurable) -> None:
        """Put a change without records into the group."""
        state, group = self._state, self._group
        state.change(item)
        group.pieces.append(PendingFrame(None, item))
        group.size += 256
        group.outcomes.append((settled, Appended(state.next, 0)))


def _unproven(producer: Producer) -> SequenceUnproven:
    """Return why a publish is neither stored nor answered as a repeat."""
    return SequenceUnproven(
        f"{producer.sequence} of producer {producer.name} is so old that nothing proves"
        " whether it is stored: look in the channel, then publish it under a new number or leave it"
    )


def ignore(outcome: object) -> None:
    """Ignore an outcome: no caller waits for it."""


Post = Callable[[Callable[[], None]], None]
"""Calls a function soon, in the reactor's thread."""
