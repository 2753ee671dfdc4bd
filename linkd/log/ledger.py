"""What all engines share.

The queue in front of the disk, groups under way, and who is told when one is there.

An engine says when a group goes (`_pump`) and calls `_committed` or `_failed` for each, in order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from linkd.core.batch import HELD_BYTES, MAX_BATCH_BYTES, Batch, Draft
from linkd.core.wire import Cursor, EpochStart
from linkd.errors import BadRecord, LinkdError, LogClosed, LogFull, OutOfStep, PublishError
from linkd.log.engine import Appended, Settled, Told
from linkd.log.group import CursorSet, EpochOpened, Group, Grouping, Stored, Waiting, ignore
from linkd.log.ids import Ids
from linkd.log.state import Place, State, follows, moved, placed
from linkd.log.tail import Tail

_Value = TypeVar("_Value")

GROUP_BYTES = 8 * 1024 * 1024
GROUP_ITEMS = 4096
"""About the most that one commit takes: what it leads to is one turn of the reactor."""

MOST_WAITING_BYTES = 256 * 1024 * 1024
"""What waits for a disk that stands still, in memory; beyond it publishes are refused."""

STALLED_SECONDS = 5.0
"""A disk that has not finished a commit after so long is said to be stalled."""

FORGOTTEN_SECONDS = 3600.0
"""Forgotten ids and producers are logged so often for each owner."""

MOST_TOLD = 100
"""So much of what was told is kept."""


def new_token(rng: Random) -> str:
    """Return a random id for a log or an epoch."""
    return f"{rng.getrandbits(64):016x}"


class Ledger(ABC):
    """The part of a log that knows no disk.

    `linkd.log.engine.Log` says what the methods promise.
    """

    def __init__(self, node: str, state: State, ids: Ids, tail: Tail) -> None:
        self.node = node
        self.id = state.log
        self.epoch = state.epoch
        self.first = tail.first
        self.next = state.next
        self.size_bytes = 0
        self.max_bytes = 0
        self.full: str | None = None
        self.told: Sequence[Told] = []
        self.on_told: list[Callable[[Told], None]] = []
        self.on_commit: list[Callable[[int], None]] = []
        self.on_written: list[Callable[[float], None]] = []
        self.on_trim: list[Callable[[int], None]] = []
        self._state = state
        self._ids = ids
        self._tail = tail
        self._grouping = Grouping(node, state, ids)
        self._waiting: list[Waiting] = []
        self._waiting_bytes = 0
        self._held: dict[str, int] = {}  # of received batches that are not on disk, by peer
        self._held_bytes = 0
        self._room = 2**62
        self._under_way: deque[Group] = deque()
        self._told_forgotten: dict[tuple[str, str], float] = {}
        self._finished = 0.0  # when a commit was finished, on the log's clock
        self._places: dict[str, Place | None] = {peer: state.place(peer) for peer in state.peers()}
        self._committed_places = dict(self._places)
        self._mistakes: list[Exception] = []  # raised by listeners
        self._closed = False

    @abstractmethod
    def clock(self) -> float:
        """Return the log's own clock."""

    @abstractmethod
    def _pump(self) -> None:
        """Something waits: send a group on its way, if it is time for one."""

    # what it knows

    def epochs(self) -> tuple[EpochStart, ...]:
        """Return the newest epochs, oldest first."""
        return self._state.epochs()

    def epoch_below(self, position: int) -> str:
        """Return the epoch in which the record just below `position` lies."""
        return self._state.epoch_below(position)

    def cursor(self, peer: str) -> Cursor | None:
        """Return how far this log has `peer`'s log."""
        place = self._places.get(peer)
        if place is None:
            return None
        durable = self._committed_places.get(peer)
        committed = 0
        if durable is not None and durable[0] == place[0]:
            committed = min(durable[1][-1].next, place[1][-1].next)
        return Cursor(place[0], place[1], committed)

    def origin_node(self, log: str) -> str | None:
        """Return the node whose log this is, as records of it that are here say."""
        return self._state.origins.node(log)

    def highest(self, owner: str, producer: str) -> int:
        """Return a producer's highest stored number, appends under way counted."""
        return self._state.producers.highest(owner, producer)

    @abstractmethod
    def _has_room(self) -> bool:
        """Tell whether anything at all can be taken: what peers send has more room."""

    def withholds(self) -> bool:
        """Tell whether what peers send must wait, for room or for a disk that is stalled."""
        return not self._has_room() or self.stalled() is not None

    def stalled(self) -> float | None:
        """Return for how long the disk has not finished a commit."""
        if not self._under_way:
            return None
        seconds = self.clock() - max(self._under_way[0].stamp, self._finished)
        return seconds if seconds >= STALLED_SECONDS else None

    # what comes in

    def append(self, draft: Draft, settled: Settled) -> None:
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
        waiting = self._waiting_bytes + HELD_BYTES * len(self._waiting)
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

    def refuse(self, draft: Draft, settled: Settled, error: LinkdError) -> None:
        """Refuse a draft; but of a repeat, answer where the first one is, once that is on disk."""
        repeat = None if _malformed(draft) else self._grouping.repeat(draft)
        if repeat is None:
            settled(error)
        elif isinstance(repeat, Appended) and self._under_way and repeat.offset >= self.next:
            self._under_way[-1].waiting.append((draft, settled))
            self._under_way[-1].outcomes.append((settled, repeat))
        else:
            settled(repeat)

    def _no_room(self) -> LogFull:
        """Return why a publish is refused that no longer fits."""
        return LogFull(f"the log has room for {self._room} bytes more")

    def _tell(self, told: Told) -> None:
        """Have the operator told; the newest are kept."""
        self.told = (*self.told[-MOST_TOLD:], told)
        self._call(self.on_told, told)

    def store(self, batch: Batch, settled: Settled) -> None:
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
        self._hold(source.peer, len(batch.records) + HELD_BYTES)
        self._queue(Stored(batch, place), settled)

    def held(self, peer: str | None = None) -> int:
        """Return the bytes of received batches that are not on disk: of one peer, or of all."""
        return self._held_bytes if peer is None else self._held.get(peer, 0)

    def _hold(self, peer: str, size: int) -> None:
        """Count what a peer has in memory."""
        self._held_bytes += size
        held = self._held.get(peer, 0) + size
        if held:
            self._held[peer] = held
        else:
            self._held.pop(peer, None)

    def set_cursor(self, peer: str, cursor: Cursor | None, settled: Settled) -> None:
        """Replace a peer's cursor, or forget it."""
        place = None if cursor is None else placed(cursor)
        self._places[peer] = place
        self._queue(CursorSet(peer, place), settled)

    def _queue(self, item: Stored | CursorSet | EpochOpened, settled: Settled) -> None:
        """Let something wait that must get through."""
        if self._closed:
            settled(LogClosed("the node is stopping"))
            return
        self._waiting.append((item, settled))
        self._pump()

    # groups

    def _make_group(self) -> Group:
        """Make a group of all that waits."""
        waiting, self._waiting = self._waiting, []
        if self._waiting_bytes > GROUP_BYTES or len(waiting) > GROUP_ITEMS:
            self._waiting_bytes -= self._put_off(waiting)
        else:
            self._waiting_bytes = 0
        group = self._grouping.make(waiting, self.clock())
        self._under_way.append(group)
        if self._ids.forgotten or self._state.producers.forgotten:
            self._tell_forgotten(group.stamp)
        return group

    def _tell_forgotten(self, now: float) -> None:
        """Log which ids and producers the bounds pushed out, once an hour for each owner."""
        for owner, ids in list(self._ids.forgotten.items()):
            if self._is_due("ids.forgotten", owner, now):
                del self._ids.forgotten[owner]
                said = (
                    f"{ids.count} ids of {owner or 'an older linkd'} were forgotten before"
                    f" log.id_window, the youngest {ids.age:.0f} s old or more: log.max_ids is"
                    " reached"
                )
                self._tell(Told("warn", "ids.forgotten", said))
        producers = self._state.producers.forgotten
        for owner, count in list(producers.items()):
            if self._is_due("producers.forgotten", owner, now):
                del producers[owner]
                said = f"{count} producers of {owner or 'an older linkd'} were forgotten, or part"
                self._tell(Told("warn", "producers.forgotten", f"{said} of their numbers"))

    def _is_due(self, event: str, owner: str, now: float) -> bool:
        """Return whether an hour has passed since this was logged of an owner."""
        last = self._told_forgotten.get((event, owner))
        if last is not None and now - last < FORGOTTEN_SECONDS:
            return False
        if len(self._told_forgotten) > MOST_TOLD:
            self._told_forgotten.clear()
        self._told_forgotten[event, owner] = now
        return True

    def _put_off(self, waiting: list[Waiting]) -> int:
        """Let what is too much for one group wait on; return the bytes that go."""
        size = number = 0
        most = min(GROUP_ITEMS, len(waiting))
        while size < GROUP_BYTES and number < most:
            item = waiting[number][0]
            if isinstance(item, Draft):
                size += len(item.records)
            elif isinstance(item, Stored):
                size += len(item.batch.records)
            number += 1
        self._waiting = waiting[number:]
        del waiting[number:]
        return size

    def _committed(self, group: Group) -> None:
        """The oldest group under way is on disk.

        Keep its batches at hand, answer, tell who follows.
        """
        assert group is self._under_way[0]
        self._under_way.popleft()
        self._finished = self.clock()
        for item, _ in group.waiting:
            if type(item) is Stored and item.batch.source is not None:
                self._hold(item.batch.source.peer, -len(item.batch.records) - HELD_BYTES)
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
        """Call all listeners, also where one of them raises; `_raise_mistakes` raises it later."""
        for listener in tuple(listeners):
            try:
                listener(value)
            except Exception as error:  # noqa: BLE001 - the others are called all the same
                self._mistakes.append(error)

    def _raise_mistakes(self) -> None:
        """Raise what a listener raised, once everything else is done."""
        mistakes, self._mistakes = self._mistakes, []
        if len(mistakes) == 1:
            raise mistakes[0]
        if mistakes:
            raise ExceptionGroup("listeners of the log", mistakes)

    def _failed(self, why: str) -> None:
        """No group under way got to the disk.

        Publishes are refused, all else waits on, in order.
        """
        waiting: list[Waiting] = []
        for group in reversed(self._under_way):
            self._grouping.take_back(group)
        for group in self._under_way:
            waiting.extend(group.waiting)
        self._under_way.clear()
        self.full = why
        waiting.extend(self._waiting)
        self._waiting = [entry for entry in waiting if not isinstance(entry[0], Draft)]
        self._waiting_bytes = sum(
            len(item.batch.records) for item, _ in self._waiting if isinstance(item, Stored)
        )
        error = LogFull(why)
        for item, settled in waiting:
            if isinstance(item, Draft):
                self._call((settled,), error)

    def _open_epoch(self, epoch: str, first: int) -> None:
        """Let the first group of this run begin with its epoch."""
        self._waiting.append((EpochOpened(epoch, first), ignore))


def _malformed(draft: Draft) -> LinkdError | None:
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
