"""All segments of a log, oldest first, as far as they are committed.

Where what lies, and what may go.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

from linkd.core.batch import Batch
from linkd.log.frame import BATCH, batch_of
from linkd.log.index import Block, Index, segment_path
from linkd.log.reader import Damage, Place, walk
from linkd.log.tail import Tail


class Shelf:
    """The segments.

    Args:
        folder: Where their files lie.
        seed: The log's, for CRCs.
        segments: Oldest first.

    Attributes:
        segments: They, to look at; what changes one of their sizes goes through the methods here.
        size: Bytes in all; a running sum, for it is asked at each commit.
        beside_bytes: What the files beside them occupy, as far as that was noted.
    """

    def __init__(self, folder: Path, seed: int, segments: list[Index]) -> None:
        self._folder = folder
        self._seed = seed
        self.segments = segments
        self.size = sum(segment.size for segment in segments)
        self.beside_bytes = 0
        self._beside: dict[int, int] = {}

    @property
    def last(self) -> Index | None:
        """The newest segment."""
        return self.segments[-1] if self.segments else None

    def path(self, segment: Index) -> Path:
        """Return a segment's file."""
        return segment_path(self._folder, segment.number)

    def place(self, position: int) -> Place | None:
        """Return where to read on from `position`, or None if nothing lies at or behind it."""
        for segment in self._behind(position):
            block = segment.blocks[segment.block_of(position)]
            return Place(self.path(segment), segment.node, segment.log, block.at, segment.size)
        return None

    def owed(self, position: int, tail: Tail) -> dict[str, tuple[int, int]]:
        """Return (records, bytes of records) by channel from `position` on."""
        owed: dict[str, tuple[int, int]] = {}
        for segment in self._behind(position):
            number = segment.block_of(position)
            if segment.blocks[number].offset < position:
                add_owed(owed, self._block(segment, number, tail), position)
                number += 1
            for block in segment.blocks[number:]:
                for channel, (records, size) in block.totals.items():
                    old = owed.get(channel, (0, 0))
                    owed[channel] = (old[0] + records, old[1] + size)
        return owed

    def holds(self, first: int, next: int, wants: Callable[[str], bool], tail: Tail) -> bool:
        """Return whether a record from `first` to `next` - 1 is on a channel that `wants` takes.

        Where `next` is not the beginning of a segment, some records behind it count too.
        """
        for segment in self._behind(first):
            if segment.first >= next:
                break
            number = segment.block_of(first)
            if segment.blocks[number].offset < first:
                batches = self._block(segment, number, tail)
                if any(batch.next > first and wants(batch.channel) for batch in batches):
                    return True
                number += 1
            if any(wants(channel) for block in segment.blocks[number:] for channel in block.totals):
                return True
        return False

    def records_below(self, position: int) -> int:
        """Return how many records the segments hold that lie below `position` as a whole."""
        return sum(
            records
            for segment in self.segments
            if segment.first < segment.next <= position
            for block in segment.blocks
            for records, _ in block.totals.values()
        )

    def stamp_at(self, position: int) -> float | None:
        """Return about when the first record at or after `position` was stored."""
        for segment in self._behind(position):
            return segment.blocks[segment.block_of(position)].stamp
        return None

    def locate(self, time: float, tail: Tail) -> int | None:
        """Return the first offset of a batch published at or after `time`, or None."""
        for segment in self.segments:
            for number, block in enumerate(segment.blocks):
                if block.time >= time:
                    for batch in self._block(segment, number, tail):
                        if batch.time >= time:
                            return batch.offset
        return None

    def add(self, index: Index) -> None:
        """Put a segment behind all others."""
        self.segments.append(index)
        self.size += index.size

    def grow(self, size: int, stamp: float) -> None:
        """Note how much of the newest segment counts now, and the log's clock at its end."""
        last = self.segments[-1]
        self.size += size - last.size
        last.size, last.stamp = size, stamp

    def replace(self, index: Index) -> None:
        """Put a mended segment's index in place of the one it had, if that is still there."""
        for place, segment in enumerate(self.segments):
            if segment.number == index.number:
                self.segments[place] = index
                self.size += index.size - segment.size

    def drop(self, count: int) -> list[Index]:
        """Take the oldest segments off; return them."""
        gone = self.segments[:count]
        del self.segments[:count]
        self.size -= sum(segment.size for segment in gone)
        return gone

    def note_beside(self, number: int, size: int) -> None:
        """Note what the files beside a segment occupy; 0 once they are deleted."""
        self.beside_bytes += size - self._beside.pop(number, 0)
        if size:
            self._beside[number] = size

    def _behind(self, position: int) -> Sequence[Index]:
        """Return the segments with records at or behind `position`."""
        number = max(0, bisect_right(self.segments, position, key=_first) - 1)
        behind = [segment for segment in self.segments[number:] if segment.next > position]
        return [segment for segment in behind if segment.blocks]

    def _block(self, segment: Index, number: int, tail: Tail) -> Sequence[Batch]:
        """Return the batches of a block, none where they can't be read."""
        block = segment.blocks[number]
        end = segment.blocks[number + 1] if number + 1 < len(segment.blocks) else None
        if block.offset >= tail.first:
            stop = segment.next if end is None else end.offset
            return [batch for batch in tail.behind(block.offset) if batch.offset < stop]
        try:
            return self._read(segment, block, segment.size if end is None else end.at)
        except (Damage, OSError):
            return []

    def _read(self, segment: Index, block: Block, end: int) -> Sequence[Batch]:
        """Return the batches of a block from its file."""
        batches = [
            batch_of(frame, segment.node, segment.log)[0]
            for frame in walk(self.path(segment), block.at, end, self._seed)
            if frame.kind == BATCH
        ]
        return [batch for batch in batches if batch.count]


def add_owed(owed: dict[str, tuple[int, int]], batches: Sequence[Batch], position: int) -> None:
    """Add (records, bytes) by channel of what of `batches` lies at or after `position`."""
    for batch in batches:
        count, size = batch.count, len(batch.records)
        if batch.next <= position:
            continue
        if batch.offset < position:
            count, size = batch.next - position, size * (batch.next - position) // batch.count
        records, total = owed.get(batch.channel, (0, 0))
        owed[batch.channel] = (records + count, total + size)


def _first(segment: Index) -> int:
    return segment.first
