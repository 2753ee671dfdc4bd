"""The log in memory of a daemon (`log.engine = "memory"`): within bounds, as the durable one is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from linkd.clock import boottime
from linkd.core.batch import HELD_BYTES, Batch
from linkd.log.group import Group
from linkd.log.memory import MemoryLog
from linkd.log.settings import SegmentSettings, refusal

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
        settings: SegmentSettings,
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
        """Tell whether anything at all can be taken: what peers send has more room."""
        return self.size_bytes < self.max_bytes

    def _take(self, group: Group) -> None:
        """Keep a group's batches, tell whom it concerns, and look what there is room for."""
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
            self._state.producers.forget(now - self._settings.id_window)
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
        """Forget the oldest batches, and tell who follows."""
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
    return len(batch.records) + HELD_BYTES
