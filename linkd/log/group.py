"""Groups: what one commit takes to the disk, made of all that waits, in order.

A publish is judged here (a repeat? how much is new?), gets its offset and goes into a batch;
adjacent drafts without ids and producer share one. A group that can't be written is taken back
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from linkd.core.batch import (
    MAX_BATCH_BYTES,
    Batch,
    Draft,
    Origin,
    Producer,
    join_raw,
    runs_of,
    split_raw,
)
from linkd.errors import BadRecord, LinkdError, SequenceUnproven
from linkd.log.engine import Appended, Settled
from linkd.log.ids import Ids, digest
from linkd.log.origins import Undo
from linkd.log.state import Place, State, take_back


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A received batch that waits, and the cursor behind it."""

    batch: Batch
    place: Place


class CursorSet(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A cursor to be replaced, or forgotten."""

    peer: str
    place: Place | None


class EpochOpened(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A new epoch, from `first` on."""

    epoch: str
    first: int


Waiting = tuple[Draft | Stored | CursorSet | EpochOpened, Settled]


class Publish(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The whole of a publish that was too large for one batch: its first offset and count."""

    first: int
    count: int
    last: bool


class Piece(msgspec.Struct, gc=False):
    """One frame to be: a batch (of a step without records: count 0), or a change without one.

    Args:
        batch: The batch, its offset and epoch set; None for a change.
        change: What changes where there is no batch.
        has_ids: Its records' ids count for repeats.
        publish: Where it is part of a larger publish.
        counts: The records of each sequence of a producer that it holds.
        owner: Whose its records' ids are.
    """

    batch: Batch | None
    change: CursorSet | EpochOpened | None = None
    has_ids: bool = False
    publish: Publish | None = None
    counts: tuple[int, ...] = ()
    owner: str = ""


class Group(msgspec.Struct):
    """What one commit writes and whom it answers.

    Attributes:
        waiting: What it was made of.
        pieces: The frames, in order.
        outcomes: Whom to answer once it is on disk, with what; an error answers at once with that
            error.
        size: About its bytes.
        next: The log's next offset behind it.
        undo: How to take it back.
        before: The log's next offset before it.
    """

    waiting: list[Waiting]
    stamp: float
    before: int
    pieces: list[Piece] = msgspec.field(default_factory=list)
    outcomes: list[tuple[Settled, Appended | LinkdError]] = msgspec.field(default_factory=list)
    size: int = 0
    next: int = 0
    undo: Undo = msgspec.field(default_factory=list)


class Grouping:
    """Makes groups of what waits.

    Args:
        node: This node's name.
        state: The log's state, frames under way counted.
        ids: The ids published here.
    """

    __slots__ = ("_epoch", "_group", "_ids", "_node", "_state")

    def __init__(self, node: str, state: State, ids: Ids) -> None:
        self._node = node
        self._state = state
        self._ids = ids

    def make(self, waiting: list[Waiting], stamp: float) -> Group:
        """Return the group of all of `waiting`, and count it in."""
        state = self._state
        group = self._group = Group(waiting, stamp, state.next)
        state.undo = group.undo
        index, end = 0, len(waiting)
        while index < end:
            item, settled = waiting[index]
            if type(item) is Draft:
                if item.ids or len(item.records) > MAX_BATCH_BYTES:
                    self._single(item, settled)
                elif item.producer is not None:
                    index = self._produced(waiting, index, item)
                    continue
                else:
                    index = self._run(waiting, index, item)
                    continue
            elif type(item) is Stored:
                self._stored(item, settled)
            else:
                assert isinstance(item, CursorSet | EpochOpened)
                self._change(item, settled)
            index += 1
        group.next = state.next
        return group

    def take_back(self, group: Group) -> None:
        """Undo the newest group that still counts."""
        take_back(group.undo)
        self._state.next = group.before

    def _run(self, waiting: Sequence[Waiting], index: int, first: Draft) -> int:
        """Put drafts from `index` on into one batch, as many as may share it.

        Return where the next begins.
        """
        channel, ttl = first.channel, first.ttl
        offset = start = self._state.next
        parts: list[bytes] = []
        size = 0
        outcome = self._group.outcomes.append
        for place in range(index, len(waiting)):  # islice would walk up to `index` each time
            item, settled = waiting[place]
            if (
                type(item) is not Draft
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

    def _produced(self, waiting: Sequence[Waiting], index: int, first: Draft) -> int:
        """Put a producer's drafts from `index` on, one sequence after the other, into one batch.

        Returns:
            Where the next begins.
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
            if type(item) is not Draft or item.channel != channel or item.ttl != ttl or item.ids:
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
        """Return the number from which on, from that of `producer`, one may be stored already."""
        try:
            new = self._state.producers.stored(producer) is None
        except LookupError:
            new = False
        return self._state.producers.new_until(producer) if new else producer.sequence

    def _repeated(self, draft: Draft, settled: Settled) -> None:
        """Answer a draft with a number that may be stored already."""
        if len(draft.counts) < 2:
            self._single(draft, settled)
            return
        error = BadRecord("expected numbers none of which is stored in a draft of several")
        self._group.outcomes.append((settled, error))

    def _put(
        self, draft: Draft, count: int, records: bytes, publish: Publish | None = None
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
        group.pieces.append(Piece(batch, None, bool(draft.ids), publish, (), owner))
        group.size += len(records) + 256
        state.next = offset + count

    def _single(self, draft: Draft, settled: Settled) -> None:
        """Put a draft that shares no batch into the group, but for what of it is a repeat."""
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

    def repeat(self, draft: Draft) -> Appended | LinkdError | None:
        """Return the answer to a draft if all of it is a repeat, None if it is not."""
        found = None if len(draft.counts) > 1 else self._repeated_number(draft.producer)
        if found is None and draft.ids:
            count, _, _, known = self._new_of(draft)
            if not count:
                found = Appended(known, 0, True)
        return found

    def _repeated_number(self, producer: Producer | None) -> Appended | LinkdError | None:
        """Return the answer to a number that is stored, or of which nothing proves either."""
        if producer is None:
            return None
        try:
            stored = self._state.producers.stored(producer)
        except LookupError:
            return _unproven(producer)
        return None if stored is None else Appended(stored[0], 0, True)

    def _new_of(self, draft: Draft) -> tuple[int, bytes, list[tuple[int, bytes]], int]:
        """Return what of a draft with ids is new: count, records, (place, digest) of its ids.

        And where the
        first of the others lies.
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

    def _split(self, draft: Draft, count: int, records: bytes) -> None:
        """Put a draft that is too large for one batch into several.

        All or none of which will be there.
        """
        first, runs = self._state.next, runs_of(records, count, MAX_BATCH_BYTES)
        for number, (run, piece) in enumerate(runs, 1):
            self._put(draft, run, piece, Publish(first, count, number == len(runs)))

    def _stored(self, item: Stored, settled: Settled) -> None:
        """Put what is new of a received batch into the group; the cursor moves in any case.

        Where it is new in several parts, only the last one moves the cursor.
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
        group.pieces.append(Piece(stored))
        group.size += len(batch.records) + 256
        state.next += batch.count

    def _change(self, item: CursorSet | EpochOpened, settled: Settled) -> None:
        """Put a change without records into the group."""
        state, group = self._state, self._group
        if isinstance(item, CursorSet):
            state.put(item.peer, item.place)
        else:
            state.open_epoch(item.epoch, item.first)
        group.pieces.append(Piece(None, item))
        group.size += 256
        group.outcomes.append((settled, Appended(state.next, 0)))


def _unproven(producer: Producer) -> SequenceUnproven:
    """Return why a number is neither stored nor called a repeat."""
    return SequenceUnproven(
        f"{producer.sequence} of producer {producer.name} lies so far back that nothing proves"
        " whether it is stored: look in the channel, then publish it under a new number or leave it"
    )


def ignore(outcome: object) -> None:
    """Settle nothing: nobody waits for it."""


Post = Callable[[Callable[[], None]], None]
"""Calls a function soon, in the reactor's thread."""
