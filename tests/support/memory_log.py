"""A log in memory, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from linkd.clock import boottime
from linkd.config.settings import LogSettings
from linkd.errors import Gap, LinkdError
from linkd.log.base import Log, new_token
from linkd.log.commit import CommitGroup, ignore
from linkd.log.disk_log import refusal
from linkd.log.segment_set import TailCache
from linkd.log.state import EpochOpened, RecentIds, State
from linkd.protocol.records import BATCH_OVERHEAD_BYTES, Batch


class MemoryLog(Log):
    """A log whose disk is a list; all is kept.

    Args:
        node: This node's name.
        rng: Where ids and epochs come from.
        delayed: Commits wait for `commit`; else each append is committed before the call returns.
        clock: The log's clock; seconds that only grow.
        id_window: Seconds in which a repeated id is recognised.
        max_ids: The most ids remembered.
    """

    def __init__(
        self,
        node: str,
        rng: Random | None = None,
        *,
        delayed: bool = False,
        clock: Callable[[], float] = boottime,
        id_window: float = 86_400.0,
        max_ids: int = 1_000_000,
    ) -> None:
        self.rng = rng or Random()
        state = State(new_token(self.rng))
        self._disk: list[CommitGroup] = []
        self._delayed = delayed
        self.clock = clock
        self._pumping = False
        self._id_window = id_window
        super().__init__(node, state, RecentIds(id_window, max_ids), TailCache(None, 1))
        self.max_bytes = 2**40
        self._start(new_token(self.rng), 1)

    def _start(self, epoch: str, first: int) -> None:
        """Open this run's epoch, durable at once."""
        self.epoch = epoch
        self._waiting.append((EpochOpened(epoch, first), ignore))
        self._commit_all()

    def _pump(self) -> None:
        if not self._delayed and not self._pumping:
            self._commit_all()

    def commit(self) -> None:
        """Commit all that waits, and answer."""
        self._commit_all()

    def _commit_all(self) -> None:
        """Commit until nothing waits."""
        self._pumping = True
        try:
            while self._waiting and self._has_room():
                self._take(self._make_group())
        finally:
            self._pumping = False
        self._raise_mistakes()

    def _has_room(self) -> bool:
        """Return whether another group is accepted."""
        return self.full is None

    def _take(self, group: CommitGroup) -> None:
        """Store a group, and answer its publishers."""
        self._disk.append(group)
        self.size_bytes += group.size
        self._committed(group)

    def crash(self) -> MemoryLog:
        """Return the log as it is found after a crash now.

        What waited is lost and never settled.
        """
        self._closed = True
        found = MemoryLog.__new__(MemoryLog)
        found.rng, found._delayed, found.clock = self.rng, self._delayed, self.clock
        found._disk, found._pumping, found._id_window = list(self._disk), False, self._id_window
        state, ids = State(self.id), self._ids
        tail = TailCache(None, self.first)
        for group in self._disk:
            for piece in group.pieces:
                if piece.batch is not None:
                    whole = piece.publish
                    part = (whole.first, whole.count) if whole else None
                    state.replay(piece.batch, piece.batch.stamp, part, piece.counts)
                    if piece.batch.count and piece.batch.next > self.first:
                        tail.add(piece.batch)
                else:
                    assert piece.change is not None  # a piece is a batch or a change
                    state.change(piece.change)
        Log.__init__(found, self.node, state, ids, tail)
        found.size_bytes, found.max_bytes = self.size_bytes, self.max_bytes
        found._start(new_token(self.rng), state.next)
        return found

    def backup(self) -> list[CommitGroup]:
        """Return a copy of its disk."""
        return list(self._disk)

    def put_back(self, disk: list[CommitGroup]) -> None:
        """Let the disk be an older copy, which the next crash finds."""
        self._disk = list(disk)

    def fill(self, why: str) -> None:
        """Let the log be full: publishes are refused, what peers send waits."""
        self._failed(why)

    def drain(self) -> None:
        """Let there be room again."""
        self.full = None
        self._pump()

    # reading

    def read(self, position: int, max_bytes: int) -> list[Batch] | None:
        """Return the batches from `position` on."""
        if position < self.first:
            raise Gap(position, self.first)
        if position >= self.next:
            return []
        return self._tail.read(position, max_bytes)

    def fetch(
        self,
        position: int,
        max_bytes: int,
        done: Callable[[list[Batch] | LinkdError], None],
        for_link: bool = False,
    ) -> None:
        """Like `read`; `done` is called before this returns."""
        try:
            found = self.read(position, max_bytes)
        except Gap as gap:
            done(gap)
        else:
            done(found or [])

    def totals(self, position: int) -> Iterator[tuple[str, int, int]]:
        """Yield (channel, records, bytes of records) from `position` on."""
        for batch in self._tail.behind(position):
            part = batch.from_offset(max(position, batch.offset))
            yield part.channel, part.count, len(part.records)

    def behind(self, size: int) -> int:
        """Return from which offset on the batches occupy at most `size` bytes."""
        first = self.next
        for batch in reversed(self._tail.behind(self.first)):
            size -= len(batch.records) + BATCH_OVERHEAD_BYTES
            if size < 0:
                break
            first = batch.offset
        return first

    def channels(self, first: int, next: int) -> Iterator[str]:
        """Yield the channels of the records in between."""
        return (batch.channel for batch in self._tail.behind(first) if batch.offset < next)

    def stamp_at(self, position: int) -> float | None:
        """Return when the first record at or after `position` was stored."""
        batch = self._tail.at(position)
        return None if batch is None else batch.stamp

    def release(self, before: int) -> None:
        """Nothing below `before` is owed; it is kept all the same."""

    def trim(self, before: int) -> int:
        """Delete the batches that lie below `before` as a whole; return how many records go."""
        old, batches = self.first, self._tail.behind(self.first)
        self._forget([batch for batch in batches if batch.next <= before])
        return self.first - old

    def _forget(self, gone: Sequence[Batch]) -> None:
        """Forget the oldest batches, and call `on_trim`."""
        if not gone:
            return
        self.first = gone[-1].next
        self._tail.forget(self.first)
        self._call(self.on_trim, self.first)

    def close(self, done: Callable[[], None]) -> None:
        """Commit what waits, then call `done`."""
        self._commit_all()
        self._closed = True
        done()


_FORGET_SECONDS = 60.0
"""So often producers that were not heard of for long are looked for."""


class BoundedMemoryLog(MemoryLog):
    """A log whose disk is memory, as much of it as its settings allow.

    What nobody is owed goes beyond `memory_bytes`, or half of `max_bytes` where that is less.
    Publishes are refused from 90 % of `max_bytes` on; what peers send waits from 100 % on: two full
    logs that owe each other still make room for each other.

    Args:
        node: This node's name.
        settings: Its bounds.
        rng: Where ids and epochs come from.
        clock: The log's clock; seconds that only grow.
    """

    def __init__(
        self,
        node: str,
        settings: LogSettings,
        rng: Random | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._settings = settings
        self._owed_from = 1
        self._keep = min(settings.memory_bytes, settings.max_bytes // 2)
        self._refuse_from = settings.max_bytes * 9 // 10
        self._forgot_at = clock()
        super().__init__(
            node, rng, clock=clock, id_window=settings.id_window, max_ids=settings.max_ids
        )
        self.max_bytes = settings.max_bytes
        self._measure()

    def _has_room(self) -> bool:
        """Return whether anything is accepted; batches of peers have a higher bound."""
        return self.size_bytes < self.max_bytes

    def _take(self, group: CommitGroup) -> None:
        """Store a group's batches, answer its publishers, and measure the room left."""
        kept = (piece.batch for piece in group.pieces)
        self.size_bytes += sum(_size(batch) for batch in kept if batch and batch.count)
        self._committed(group)
        if self.size_bytes >= self._refuse_from:
            self._retain()
        self._measure()

    def release(self, before: int) -> None:
        """Nothing below `before` is owed any more."""
        self._owed_from = max(self._owed_from, before)
        now = self.clock()
        if now - self._forgot_at >= _FORGET_SECONDS:
            self._forgot_at = now
            self.state.producers.forget(now - self._settings.id_window)
        if self.size_bytes > self._keep:
            self._retain()
            self._go_on()

    def trim(self, before: int) -> int:
        """Delete the batches that lie below `before` as a whole; return how many records go."""
        count = super().trim(before)
        self._go_on()
        return count

    def _go_on(self) -> None:
        """There may be room for what waits."""
        self._measure()
        if self._waiting:
            self._pump()

    def _retain(self) -> None:
        """Forget the oldest, as far as it may go; what is owed only where that is to be dropped."""
        size, position = self.size_bytes, self.first
        drops = self._settings.when_full == "drop-oldest" and size >= self.max_bytes
        enough = self.max_bytes * 15 // 16 if drops else size
        gone: list[Batch] = []
        while size > self._keep and (batch := self._tail.at(position)) is not None:
            if batch.next > self._owed_from and size <= enough:
                break
            gone.append(batch)
            size -= _size(batch)
            position = batch.next
        self._forget(gone)

    def _forget(self, gone: Sequence[Batch]) -> None:
        """Forget the oldest batches, and call `on_trim`."""
        self.size_bytes -= sum(map(_size, gone))
        super()._forget(gone)

    def _measure(self) -> None:
        """Work out what there is room for."""
        settings = self._settings
        if settings.when_full == "reject":
            self._room = max(0, self._refuse_from - self.size_bytes)
            self.full = refusal(settings, self.size_bytes, settings.min_free_bytes)


def _size(batch: Batch) -> int:
    """Return about what a batch takes in memory."""
    return len(batch.records) + BATCH_OVERHEAD_BYTES
