"""The newest batches of a log in memory, ordered by offset."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from linkd.errors import Gap
from linkd.protocol.records import NO_ORIGIN, Batch

_OVERHEAD = 400
_NOTHING = Batch(0, "", 0, b"", 0.0, NO_ORIGIN)


class TailCache:
    """Committed batches from `first` up to the log's end.

    Args:
        max_bytes: About how much it keeps; None keeps all.
        first: The offset at which it begins.

    Attributes:
        first: Everything from here on is in memory.
    """

    __slots__ = ("_batches", "_max_bytes", "_offsets", "_size", "_start", "first")

    def __init__(self, max_bytes: int | None, first: int) -> None:
        self._max_bytes = max_bytes
        self._offsets: list[int] = []
        self._batches: list[Batch] = []
        self._start = 0
        self._size = 0
        self.first = first

    def add(self, batch: Batch) -> None:
        """Put a committed batch behind the others, and forget the oldest where it is too much."""
        self._offsets.append(batch.offset)
        self._batches.append(batch)
        if self._max_bytes is None:
            return
        self._size += len(batch.records) + _OVERHEAD
        while self._size > self._max_bytes and self._start < len(self._batches) - 1:
            self._drop()
        if self._start > 1024 and self._start * 2 > len(self._batches):
            self._compact()

    def forget(self, before: int) -> None:
        """Forget batches that lie below `before` as a whole."""
        while self._start < len(self._batches) and self._batches[self._start].next <= before:
            self._drop()
        self._compact()
        self.first = max(self.first, before)

    def read(self, position: int, max_bytes: int) -> list[Batch]:
        """Return about `max_bytes` of batches from `position` (at or above `first`) on.

        At least one if there is any, and up to the first hole.

        Raises:
            Gap: There is a hole at `position`.
        """
        batches = self._batches
        index = bisect_right(self._offsets, position, self._start) - 1
        if index < self._start or self._offsets[index] + batches[index].count <= position:
            index += 1
            if index < len(batches) and self._offsets[index] > position:
                raise Gap(position, self._offsets[index])
        taken: list[Batch] = []
        size, expected = 0, position
        while index < len(batches):
            batch = batches[index]
            if taken and (size >= max_bytes or batch.offset != expected):
                break
            taken.append(batch)
            size += len(batch.records)
            expected = batch.offset + batch.count
            index += 1
        return taken

    def at(self, position: int) -> Batch | None:
        """Return the batch that contains `position`, or the first behind it."""
        index = max(self._start, bisect_right(self._offsets, position, self._start) - 1)
        while index < len(self._batches) and self._batches[index].next <= position:
            index += 1
        return self._batches[index] if index < len(self._batches) else None

    def behind(self, position: int, before: int | None = None) -> Sequence[Batch]:
        """Return all batches with a record at or after `position`, that begin below `before`."""
        index = max(self._start, bisect_right(self._offsets, position, self._start) - 1)
        end = None if before is None else bisect_left(self._offsets, before, self._start)
        return [batch for batch in self._batches[index:end] if batch.next > position]

    def _drop(self) -> None:
        """Forget the oldest batch."""
        batch = self._batches[self._start]
        self._size -= len(batch.records) + _OVERHEAD
        self.first = batch.next
        self._batches[self._start] = _NOTHING
        self._start += 1

    def _compact(self) -> None:
        """Free the room of what was forgotten."""
        del self._offsets[: self._start], self._batches[: self._start]
        self._start = 0
