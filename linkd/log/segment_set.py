"""All segments of a log: find records, roll, retain, delete; and the newest batches in memory."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from linkd.config.settings import LogSettings
from linkd.errors import Gap
from linkd.log.files import DiskFiles
from linkd.log.frame import BATCH, HEAD, NewFrame, batch_of
from linkd.log.reader import CorruptSegment, FilePosition, Reader, walk
from linkd.log.segment import (
    FORMAT,
    NEEDS,
    Identity,
    Index,
    SegmentHead,
    bytes_beside,
    ids_path,
    index_path,
    save_identity,
    seal,
    segment_path,
)
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


class SegmentSet:
    """The segments of a log.

    Args:
        folder: The folder of their files.
        seed: The log's, for CRCs.
        segments: Oldest first.

    Attributes:
        segments: Oldest first, to read; change their sizes through the methods here only.
        size: Bytes in all; a running sum, for each commit reads it.
        beside_bytes: Bytes of the index and id files beside them, as far as noted.
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

    def place(self, position: int) -> FilePosition | None:
        """Return where to read on from `position`, or None if there is nothing at or behind it."""
        for segment in self._behind(position):
            block = segment.blocks[segment.block_of(position)]
            return FilePosition(
                self.path(segment), segment.node, segment.log, block.at, segment.size
            )
        return None

    def totals(self, position: int, tail: TailCache) -> Iterator[tuple[str, int, int]]:
        """Yield (channel, records, bytes of records) from `position` on.

        What is stored after the first step is not counted: only the newest block grows.
        """
        behind = self._behind(position)
        newest = behind[-1].blocks[-1] if behind else None
        grows = () if newest is None else tuple(newest.totals.items())
        blocks = [(segment, tuple(segment.blocks)) for segment in behind]
        for segment, its_blocks in blocks:
            number = segment.block_of(position)
            if its_blocks[number].offset < position:
                with suppress(CorruptSegment, OSError):
                    yield from self._part(segment, number, position, tail)
                number += 1
            for block in its_blocks[number:]:
                totals = grows if block is newest else tuple(block.totals.items())
                for channel, (records, size) in totals:
                    yield channel, records, size

    def channels(self, first: int, next: int, tail: TailCache) -> Iterator[str]:
        """Yield the channels of the records from `first` to `next` - 1.

        Where `next` is not the beginning of a segment, some records behind it count too.
        """
        for segment in self._behind(first):
            if segment.first >= next:
                break
            number = segment.block_of(first)
            if segment.blocks[number].offset < first:
                try:
                    part = self._part(segment, number, first, tail)
                    yield from (channel for channel, records, _ in part if records)
                    number += 1
                except (CorruptSegment, OSError):
                    pass  # all of the block counts: too few channels would cost records
            for block in segment.blocks[number:]:
                yield from tuple(block.totals)

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
        """Replace the index of a repaired segment, if the segment is still there."""
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

    def _part(
        self, segment: Index, number: int, position: int, tail: TailCache
    ) -> Iterator[tuple[str, int, int]]:
        """Yield (channel, records, bytes) of each batch of a block, 0 below `position`.

        Raises:
            CorruptSegment, OSError: It can't be read.
        """
        for batch in self._block(segment, number, tail):
            count, size = batch.count, len(batch.records)
            if batch.offset < position:
                count = max(0, batch.next - position)
                size = size * count // batch.count
            yield batch.channel, count, size

    def _block(self, segment: Index, number: int, tail: TailCache) -> Iterator[Batch]:
        """Yield the batches of a block.

        Raises:
            CorruptSegment, OSError: It can't be read.
        """
        block = segment.blocks[number]
        end = segment.blocks[number + 1] if number + 1 < len(segment.blocks) else None
        if block.offset >= tail.first:
            stop = segment.next if end is None else end.offset
            yield from tail.behind(block.offset, stop)
            return
        stop = segment.size if end is None else end.at
        batches = (
            batch_of(frame, segment.node, segment.log)[0]
            for frame in walk(self.path(segment), block.at, stop, self._seed)
            if frame.kind == BATCH
        )
        yield from (batch for batch in batches if batch.count)


def _first(segment: Index) -> int:
    return segment.first


SPARE_SEGMENTS = 4
"""A disk is kept free for so many more, so that room is made before publishes are refused."""


class Retention:
    """How far a log's segments are needed.

    Args:
        settings: The log's bounds.
        segment_bytes: About the bytes of a segment.

    Attributes:
        owed_from: Nothing below it is owed to anybody.
        trim_to: Everything below it was trimmed.
        freed_bytes: Bytes of files that are being deleted: the disk does not show their room yet.
    """

    def __init__(self, settings: LogSettings, segment_bytes: int) -> None:
        self._settings = settings
        self._most = settings.max_bytes * 9 // 10 - segment_bytes
        self._wanted = settings.min_free_bytes + SPARE_SEGMENTS * segment_bytes
        self.freed_bytes = 0
        self.owed_from = 1
        self.trim_to = 1

    def is_over(self, size: int, free: int) -> bool:
        """Return whether old segments go that nobody is owed.

        Args:
            size: Bytes of all segments.
            free: Bytes that the disk has left, or soon will have.
        """
        return size > self._most or free < self._wanted

    def count(self, segments: Sequence[Index], size: int, free: int, oldest: float) -> int:
        """Return how many of the oldest segments may go; the last one never does.

        A disk with less room than `max_bytes` counts only for what nobody is owed.

        Args:
            segments: All of them, oldest first.
            size: Bytes of all, and of what is under way.
            free: Bytes that the disk has left, or soon will have.
            oldest: Records stored before this time of the log's clock go, if no peer is owed them.
        """
        count = 0
        for segment in segments[:-1]:
            over = self.is_over(size, free)
            unowed = segment.next <= self.owed_from and (over or segment.stamp < oldest)
            dropped = size > self._most and self._settings.when_full == "drop-oldest"
            if not (unowed or dropped or segment.next <= self.trim_to):
                break
            size -= segment.size
            free += segment.size
            count += 1
        return count

    def outlived(self, segment: Index, oldest: float) -> bool:
        """Whether a segment has records, all of which are owed to nobody and too old."""
        return segment.first < segment.next <= self.owed_from and segment.stamp < oldest


def remove(files: DiskFiles, folder: Path, numbers: Sequence[int]) -> None:
    """Delete segments and their index files, as far as the disk permits."""
    for number in numbers:
        for path in (index_path, ids_path, segment_path):
            with suppress(OSError):
                files.unlink(path(folder, number))


class SegmentRoller:
    """Begins, seals and deletes a log's segments.

    Args:
        folder: The folder of their files.
        files: The disk.
        segment_set: The segments.
        reader: The thread that does slow work.
        identity: The log's identity.
        held: Deleted segments whose files a snapshot still needs.

    Attributes:
        identity: The same, with the newest range of segments.
        held: The same, oldest first.
        held_bytes: The size of their files.
    """

    def __init__(
        self,
        folder: Path,
        files: DiskFiles,
        segment_set: SegmentSet,
        reader: Reader,
        identity: Identity,
        held: Sequence[Index] = (),
    ) -> None:
        self.held = list(held)
        self.held_bytes = sum(index.size for index in held)
        self._deleted = 0  # the newest segment whose file is deleted
        self._is_noting = False  # a job that saves the identity waits
        self._is_refused = False  # the disk refused the last one
        self._folder = folder
        self._files = files
        self._segment_set = segment_set
        self._reader = reader
        self.identity = identity

    def begin(
        self, node: str, first: int, last: Index | None, size: int, clock: float
    ) -> tuple[NewFrame, Index]:
        """Return what opens the segment behind `last`, and what is known of it before its commit.

        Args:
            node: This node's name.
            first: The offset that its first record gets at least.
            last: The segment before; it may be under way itself.
            size: How much of that one will count.
            clock: The log's own time, in seconds.
        """
        log, seed = self.identity.log, self.identity.seed
        previous = 0 if last is None else last.number
        number = previous + 1
        head = SegmentHead(FORMAT, NEEDS, number, log, node, first, previous, size, seed)
        part = (HEAD, 0, msgspec.msgpack.encode(head), b"")
        return part, Index(number, log, node, first, first, 0, clock, False, [])

    def begun(self, begins: Index, ids: Sequence[tuple[str, bytes, int]]) -> None:
        """A segment is on disk: write the index and `ids` of the one before, and that it is there.

        Both come behind what the reader has to do.
        """
        last = self._segment_set.last
        self._segment_set.add(begins)
        if last is not None:
            self._reader.work(lambda: self._seal(last, ids))
        self._note(number=begins.number, next=max(self.identity.next, begins.first))

    def _seal(self, last: Index, ids: Sequence[tuple[str, bytes, int]]) -> None:
        """Write the index files of a segment that is still there; runs in the reader thread."""
        if last.number <= self._deleted:
            return
        seal(self._files, self._folder, last, ids)
        size = bytes_beside(self._folder, last.number)

        def sealed() -> None:
            if last.number > self._deleted:
                self._segment_set.note_beside(last.number, size)

        self._reader.post(sealed)

    def drop(self, count: int) -> None:
        """Take the oldest segments off, and note that; `free` deletes their files."""
        self.forget(count)
        self._note()

    def forget(self, count: int) -> None:
        """Take the oldest segments off; a snapshot may need their files."""
        gone = self._segment_set.drop(count)
        self.held += gone
        self.held_bytes += sum(index.size for index in gone)

    def free(self, needed: int, deleted: Callable[[], None]) -> int:
        """Delete the files of dropped segments before number `needed`, in the background.

        That is ahead of the other work of the reader thread: a disk that is nearly full refuses
        publishes until it is done.

        Args:
            needed: A snapshot needs this segment and those behind it.
            deleted: Called in the reader thread afterwards.

        Returns:
            Their bytes.
        """
        gone = [index for index in self.held if index.number < needed]
        size = sum(index.size for index in gone)
        if gone:
            del self.held[: len(gone)]
            self.held_bytes -= size
            numbers = [index.number for index in gone]
            self._deleted = numbers[-1]
            for number in numbers:
                self._segment_set.note_beside(number, 0)

            def job() -> None:
                self._save()  # else a start would look for them
                remove(self._files, self._folder, numbers)
                if self._is_refused:  # the disk was full: now it has room
                    self._is_noting = True
                    self._save()
                deleted()

            self._reader.work(job, is_urgent=True)
        return size

    def note_again(self) -> None:
        """Save which segments there are once more: it may have been refused."""
        if self._segment_set.segments:
            self._note()

    def _note(self, **changes: int) -> None:
        """Note in the background which segments there are."""
        oldest = self._segment_set.segments[0]
        self.identity = msgspec.structs.replace(
            self.identity, oldest=oldest.number, first=oldest.first, **changes
        )
        if not self._is_noting:
            self._is_noting = True
            self._reader.work(self._save)

    def _save(self) -> None:
        """Save the newest identity, unless that was done; runs in the reader thread."""
        if self._is_noting:
            self._is_noting = False  # before the read: a later change makes another job
            try:
                save_identity(self._files, self._folder, self.identity)
                self._is_refused = False
            except OSError:
                self._is_refused = True
