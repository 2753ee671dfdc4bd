"""A log apart from its disk: the queue ahead of it, the groups under way, and their answers.

An engine decides when a group goes (`_pump`) and calls `_committed` or `_failed` for each, in
order. tests/unit/log/test_conformance.py checks what each engine promises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TypeVar

from linkd.errors import BadRecord, LinkdError, LogClosed, LogFull, OutOfStep, PublishError
from linkd.log.commit import CommitBuilder, CommitGroup, PendingItem, ReceivedBatch, ignore
from linkd.log.interface import Appended, OnDurable, OperatorNotice
from linkd.log.segment_set import TailCache
from linkd.log.state import (
    Change,
    CursorSet,
    EpochOpened,
    PeerPosition,
    RecentIds,
    State,
    follows,
    moved,
    placed,
)
from linkd.protocol.peer import Cursor
from linkd.protocol.records import BATCH_OVERHEAD_BYTES, MAX_BATCH_BYTES, Batch, NewRecords

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


class Log(ABC):
    """A node's durable, append-only sequence of records: what is independent of the disk.

    All methods are called, and all callbacks come, in one thread (the reactor's); an engine does
    its disk work elsewhere and comes back through the `post` that it was given.

    Three positions: what waits, what is under way to the disk, and what is committed. `state`,
    `_ids` and `_places` include all three; `next`, the cache and `_committed_places` only the last.

    Attributes:
        clock: Returns the log's own clock: seconds that only grow, monotonic while it is open,
            never back over a restart.
        state: Epochs, cursors, origins and producers, with the appends under way; to read.
        id: A random id that this log keeps for good.
        epoch: A random id, new at every start, of the epoch that appends belong to.
        first: The oldest offset still there (== `next` in an empty log).
        next: The offset that the next committed record gets; everything below is on disk.
        size_bytes: What it occupies on disk.
        max_bytes: Its bound.
        full: Why local publishes are refused now, or None.
        unavailable: That the engine does not answer, as a sentence; None while it does.
        notices: What was found at start, for the operator, and the newest notices since.
        on_notice: Called with each notice for the operator while it runs.
        on_commit: Called with the new `next` after each commit that moved it, after the appends
            were settled.
        on_written: Called with the seconds that each commit took to reach the disk.
        on_trim: Called with the new `first` when records were deleted; peers and consumers that
            were owed some get a gap.
        on_taken: Called with the peer that another instance of the node has taken over.
        on_epoch: Called when a new epoch was opened while the log is open: links must be joined
            again.
        is_keeper: Of several instances this one deletes what is not needed any more.
    """

    clock: Callable[[], float]

    def __init__(self, node: str, state: State, ids: RecentIds, tail: TailCache) -> None:
        self.node = node
        self.id = state.log
        self.epoch = state.epoch
        self.first = tail.first
        self.next = state.next
        self.size_bytes = 0
        self.max_bytes = 0
        self.full: str | None = None
        self.unavailable: str | None = None
        self.notices: Sequence[OperatorNotice] = []
        self.on_notice: list[Callable[[OperatorNotice], None]] = []
        self.on_commit: list[Callable[[int], None]] = []
        self.on_written: list[Callable[[float], None]] = []
        self.on_trim: list[Callable[[int], None]] = []
        self.on_taken: list[Callable[[str], None]] = []
        self.on_epoch: list[Callable[[], None]] = []
        self.is_keeper = True
        self.state = state
        self._ids = ids
        self._tail = tail
        self._builder = CommitBuilder(node, state, ids)
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
    def _pump(self) -> None:
        """Send a group to the disk if one is due; called whenever an item starts to wait."""

    # what it knows

    def cursor(self, peer: str) -> Cursor | None:
        """Return this log's cursor in `peer`'s log, None if it has none.

        `next` includes appends under way, `committed` does not.
        """
        place = self._places.get(peer)
        if place is None:
            return None
        durable = self._committed_places.get(peer)
        committed = 0
        if durable is not None and durable[0] == place[0]:
            committed = min(durable[1][-1].next, place[1][-1].next)
        return Cursor(place[0], place[1], committed)

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

    def look(self) -> None:  # noqa: B027 - an engine that always answers has nothing to look at
        """Look whether the engine answers; called about once a second."""

    # what comes in

    def append(self, draft: NewRecords, settled: OnDurable) -> None:
        """Append a publish.

        `settled` is called once it is on disk, or with the error (LogFull, LogClosed,
        BadRecord).

        Publishes that wait together are committed together; adjacent ones without ids and producer
        of the same channel and ttl may become one batch, but of at most MAX_BATCH_BYTES.
        """
        if self.full is not None:
            self.refuse(draft, settled, self._refusal())
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

    def _refusal(self) -> LinkdError:
        """Return why a publish is refused; called while `full` names a reason."""
        return LogFull(self.full or "")

    def refuse(self, draft: NewRecords, settled: OnDurable, error: LinkdError) -> None:
        """Answer a draft that may not be stored with `error`, unless it is a repeat.

        A repeat is answered with the offset of the first one, once that is on disk. The draft
        itself is never stored; its records are not examined.
        """
        repeat = None if _malformed(draft) else self._builder.repeat(draft)
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
        """Append a received batch: `source` set, `offset` ignored; `count` 0 only moves the cursor.

        Batch and cursor become one atomic write, in the order of the calls. A batch whose
        `source.previous` is not the peer's cursor (appends under way included) changes nothing: it
        is settled at once, as a duplicate if all of it is below the cursor, else with OutOfStep.
        Records that are already here, by their origin, are left out; the cursor moves all the
        same. Without room the batch waits, for as long as it takes.
        """
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

    def hold(self, peer: str, boot: str, counter: int, settled: OnDurable) -> None:
        """Take a peer over from other instances: `store` is for peers that are held here.

        Once settled, `cursor` includes all that others stored.

        Args:
            peer: The peer.
            boot: The generation of its connection: the dialer's boot,
            counter: and its number in that.
            settled: Called once it is held, or with PeerMoved where a newer connection is known.
        """
        settled(Appended(self.next, 0))

    def holder(self, peer: str) -> str | None:
        """Return the instance's run that has a peer's connection, or had the last one, if known."""
        held = self.state.holders.get(peer)
        return None if held is None else held.holder

    def holds(self, peer: str) -> bool:
        """Return whether no other instance of this node has taken a peer over."""
        return True

    def wake(self) -> None:  # noqa: B027 - alone there is nothing to look for
        """Look now for what other instances of this node wrote."""

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
        """Replace a peer's cursor, or forget it.

        Used when its log was put back to an older copy, or by an operator (`linkd resync`). Takes
        effect at once for the `store` calls that follow; durable once settled.
        """
        place = None if cursor is None else placed(cursor)
        self._places[peer] = place
        self._queue(CursorSet(peer, place), settled)

    def _queue(self, item: ReceivedBatch | Change, settled: OnDurable) -> None:
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
        group = self._builder.make(waiting, self.clock())
        self._under_way.append(group)
        if self._ids.forgotten or self.state.producers.forgotten:
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
        producers = self.state.producers.forgotten
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
            self._builder.take_back(group)
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

    # what an engine does

    @abstractmethod
    def behind(self, size: int) -> int:
        """Return from which offset on the log occupies at most `size` bytes, in whole files."""

    @abstractmethod
    def channels(self, first: int, next: int) -> Iterator[str]:
        """Yield the channels of the records from `first` to `next` - 1.

        As with `totals`, one may come many times, and the log may change between two steps.
        """

    @abstractmethod
    def totals(self, position: int) -> Iterator[tuple[str, int, int]]:
        """Yield (channel, records, bytes of records) from `position` to the log's end.

        A channel may come many times, also with no records. Between two steps the log may change:
        what is stored then is not counted, what is deleted then may be.
        """

    @abstractmethod
    def stamp_at(self, position: int) -> float | None:
        """Return about when (the log's clock) the first record at or after `position` was stored.

        None if none was.
        """

    @abstractmethod
    def read(self, position: int, max_bytes: int) -> list[Batch] | None:
        """Return the batches from `position` on, in order.

        At least one if there is any, about `max_bytes` in all.

        The first may begin before `position` (`Batch.from_offset`). Empty at the log's end. None:
        not in memory, `fetch`.

        Raises:
            Gap: `position` is below `first`.
        """

    @abstractmethod
    def fetch(
        self,
        position: int,
        max_bytes: int,
        done: Callable[[list[Batch] | LinkdError], None],
        for_link: bool = False,
    ) -> None:
        """Like `read`, from disk, off this thread.

        `done` gets the batches, or Gap or LogDamaged. Reads for links come before others.
        """

    @abstractmethod
    def release(self, before: int) -> None:
        """Note that nothing below `before` is owed to any peer or consumer."""

    @abstractmethod
    def trim(self, before: int) -> int:
        """Delete records below `before`, owed or not, in whole segments; return how many go."""

    @abstractmethod
    def close(self, done: Callable[[], None]) -> None:
        """Commit what waits, settle it, end the threads, then call `done`."""


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
