"""The default engine: append-only files of CRC-framed batches, committed in groups by one thread."""

from __future__ import annotations

import fcntl
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random, SystemRandom

import msgspec

from linkd.core.batch import Batch
from linkd.errors import Gap, LinkdError, LogDamaged, LogFull
from linkd.log.files import Files, RealFiles
from linkd.log.frame import BATCH, HAS_IDS, HEAD, PREFIX_BYTES, batch_of, frame_prefix, piece_head
from linkd.log.group import Post
from linkd.log.ids import Ids
from linkd.log.index import FORMAT, Index, SegmentHead, index_path, segment_path
from linkd.log.ledger import Ledger, new_token
from linkd.log.reader import Damage, Place, Reader, walk
from linkd.log.recover import recover
from linkd.log.state import Snapshot, State
from linkd.log.tail import Tail
from linkd.log.writer import Failed, Job, Part, Writer, Written, why

NEEDS = "0.1"
"""The linkd version that reads this format."""

MOST_UNDER_WAY = 3
EAGER_BYTES = 256 * 1024
"""So much waits for no commit to end before it is sent after it."""


class SegmentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of a log; as in `linkd.config` where the names are the same."""

    max_bytes: int = 10_737_418_240
    max_age: float = 604_800.0
    min_free_bytes: int = 67_108_864
    when_full: str = "reject"
    segment_bytes: int = 67_108_864
    memory_bytes: int = 33_554_432
    id_window: float = 86_400.0
    max_ids: int = 1_000_000


class SegmentLog(Ledger):
    """A log in the files of a folder.

    Args:
        folder: The folder; made where it is missing.
        node: This node's name.
        settings: Its bounds.
        post: Brings a call into the thread in which all methods are called.
        files: The disk.
        rng: Where ids and epochs come from.
        monotonic: Seconds that only grow.
        wall: Unix seconds.

    Attributes:
        snapshot: The newest one found at start, or None.
        carried: Puts into each snapshot what it carries beside the state: peers' acks, consumers' cursors.

    Raises:
        LogDamaged: Another daemon has it, or a file can't be read.
        StateTooNew: It was written by a newer linkd.
    """

    def __init__(
        self,
        folder: Path,
        node: str,
        settings: SegmentSettings,
        post: Post,
        *,
        files: Files | None = None,
        rng: Random | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._files = files or RealFiles()
        self._wall = wall
        self.carried: Callable[[Snapshot], Snapshot] = lambda snapshot: snapshot
        rng = rng or SystemRandom()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _lock(folder)
        found = recover(folder, self._files)
        state = found.state or State(new_token(rng))
        self.snapshot = found.snapshot
        self._segments = found.segments
        first = self._segments[0].first if self._segments else state.next
        ids = Ids(settings.id_window, settings.max_ids)
        super().__init__(node, state, ids, Tail(settings.memory_bytes, state.next))
        self.first = first
        self.told = found.told
        self.max_bytes = settings.max_bytes
        self._segment_bytes = min(settings.segment_bytes, max(1 << 20, settings.max_bytes // 16))
        self._monotonic = monotonic
        passed = max(0.0, wall() - found.wall) if found.state is not None else 0.0
        self._clock_offset = found.stamp + passed - monotonic()
        self._era = 0
        self._writing = self._segments[-1] if self._segments else None
        if self._writing is not None and self._writing.node != node:
            self._writing = None
        self._at = self._writing.size if self._writing is not None else 0
        self._owed_from = 1
        self._free_bytes = 2**62
        self._stuck = False
        self._measure()
        self._load_ids()
        self._writer = Writer(self._files, folder, post, self._report)
        self._reader = Reader(post)
        if self._writing is None:
            self._writer.start(None, 0)
        else:
            self._writer.start(segment_path(folder, self._writing.number), self._at)
        self._reader.start()
        self.epoch = new_token(rng)
        self._open_epoch(self.epoch, state.next + (1_000_000 if found.jump else 0))
        self._pump()

    def clock(self) -> float:
        """Return the log's own clock."""
        return self._monotonic() + self._clock_offset

    # writing

    def _pump(self) -> None:
        """Send what waits on its way, if nothing is or it is much."""
        under_way = len(self._under_way)
        if not self._waiting or self._stuck:
            return
        if under_way and (under_way >= MOST_UNDER_WAY or self._waiting_bytes < EAGER_BYTES):
            return
        if self._settings.when_full == "reject" and self.size_bytes >= self.max_bytes:
            self._stuck = True
            return
        self._send()

    def _send(self) -> None:
        """Make a group of what waits and give it to the writer."""
        parts: list[Part] = []
        creates = begins = None
        if self._writing is None or self._at >= self._segment_bytes:
            begins = self._writing = self._begin_segment(parts)
            creates = segment_path(self._folder, begins.number)
            self._at = 0
        at = self._at
        group = self._make_group()
        parts += [piece_head(piece) for piece in group.pieces]
        size = sum([PREFIX_BYTES + len(part[2]) + len(part[3]) for part in parts])
        self._at += size
        self.size_bytes += size
        self._writer.put(Job(self._era, group, parts, self._wall(), at, creates, begins))

    def _begin_segment(self, parts: list[Part]) -> Index:
        """Begin the next segment with a snapshot."""
        state = self._state
        last = self._writing or (self._segments[-1] if self._segments else None)
        number = last.number + 1 if last else 1
        state.forget_producers(self.clock() - self._settings.id_window)
        first = state.next
        head = SegmentHead(
            FORMAT,
            NEEDS,
            number,
            self.id,
            self.node,
            first,
            last.number if last else 0,
            (last.size if self._writing is None else self._at) if last else 0,
        )
        encode = msgspec.msgpack.encode
        parts.append((HEAD, 0, encode(head), encode(self.carried(state.snapshot()))))
        return Index(number, self.id, self.node, first, first, 0, self.clock(), False, [])

    def _written(self, job: Job) -> None:
        """A job is on disk: count its frames in."""
        if job.begins is not None:
            if self._segments:
                self._seal(self._segments[-1])
            self._segments.append(job.begins)
        segment, at = self._segments[-1], job.at
        pieces = iter(job.group.pieces)
        for kind, flags, head, records in job.parts:
            if kind != HEAD:
                batch = next(pieces).batch
                if batch is not None and batch.count:
                    segment.add(batch, at, bool(flags & HAS_IDS))
            at += PREFIX_BYTES + len(head) + len(records)
        segment.size, segment.stamp = at, job.group.stamp
        self._committed(job.group)

    def _seal(self, index: Index) -> None:
        """Write the index of a segment to which nothing is added any more."""
        head = msgspec.msgpack.encode(index)
        path = index_path(self._folder, index.number)
        prefix = frame_prefix(HEAD, 0, head, b"", 0, index.stamp, 0.0)
        self._reader.work(lambda: _write_file(self._files, path, prefix + head))

    def _report(self, outcome: Written | Failed | None) -> None:
        """Take what the writer says."""
        if isinstance(outcome, Written):
            self._free_bytes = outcome.free_bytes
            for job in outcome.jobs:
                self._written(job)
        elif isinstance(outcome, Failed):
            self._back(outcome)
        else:
            self._tick()
        self._measure()
        self._pump()

    def _back(self, outcome: Failed) -> None:
        """Nothing under way was written: forget it, and try again in a second."""
        self._era += 1
        self._stuck = True
        self._writing = self._segments[-1] if outcome.usable and self._segments else None
        self._at = self._segments[-1].size if self._segments else 0
        self._failed(why(outcome.error))

    def _tick(self) -> None:
        """A second without work: look whether there is room, and what may go."""
        self._stuck = False

    def _measure(self) -> None:
        """Sum up what it occupies, and say whether publishes are taken."""
        self.size_bytes = sum([segment.size for segment in self._segments])
        if self._stuck:
            return
        limit = self.max_bytes * 9 // 10
        if self.size_bytes >= limit:
            self.full = (
                f"the log holds {self.size_bytes} bytes, 90 % of max_bytes ({self.max_bytes})"
            )
        elif self._free_bytes < self._settings.min_free_bytes:
            self.full = (
                f"the disk has {self._free_bytes} bytes left, min_free_bytes is"
                f" {self._settings.min_free_bytes}"
            )
        else:
            self.full = None

    def _load_ids(self) -> None:
        """Remember the ids of records published within the window."""

    # reading

    def read(self, position: int, max_bytes: int) -> list[Batch] | None:
        """Return the batches from `position` on; None where memory no longer has them."""
        if position < self.first:
            raise Gap(position, self.first)
        if position >= self.next:
            return []
        if position < self._tail.first:
            return None
        batches = self._tail.read(position, max_bytes)
        if not batches:
            raise Gap(position, self.next)
        return batches

    def fetch(
        self, position: int, max_bytes: int, done: Callable[[list[Batch] | LinkdError], None]
    ) -> None:
        """Like `read`, from disk."""
        try:
            batches = self.read(position, max_bytes)
        except Gap as gap:
            done(gap)
            return
        if batches is not None:
            done(batches)
            return
        number = self._segment_of(position)
        while number < len(self._segments) and self._segments[number].next <= position:
            number += 1
        if number == len(self._segments):
            done([])
            return
        segment = self._segments[number]

        def found(batches: list[Batch] | OSError | Damage) -> None:
            if isinstance(batches, list):
                if batches and batches[0].offset > position:
                    done(Gap(position, batches[0].offset))
                else:
                    done([batch for batch in batches if batch.offset < self.next])
            elif position < self.first:
                done(Gap(position, self.first))
            else:
                done(LogDamaged(str(batches)))

        block = segment.blocks[segment.block_of(position)]
        place = Place(
            segment_path(self._folder, segment.number),
            segment.node,
            segment.log,
            block.at,
            segment.size,
        )
        self._reader.fetch(place, position, max_bytes, found)

    def _segment_of(self, position: int) -> int:
        """Return which segment begins at or below `position` last."""
        return max(0, bisect_right(self._segments, position, key=_first) - 1)

    def owed(self, position: int) -> dict[str, tuple[int, int]]:
        """Return (records, bytes of records) by channel from `position` on."""
        owed: dict[str, tuple[int, int]] = {}
        for segment in self._segments[self._segment_of(position) :]:
            if segment.next <= position:
                continue
            number = segment.block_of(position)
            if segment.blocks[number].offset < position:
                _add_owed(owed, self._rest_of_block(segment, number), position)
                number += 1
            for block in segment.blocks[number:]:
                for channel, (records, size) in block.totals.items():
                    old = owed.get(channel, (0, 0))
                    owed[channel] = (old[0] + records, old[1] + size)
        return owed

    def _rest_of_block(self, segment: Index, number: int) -> Sequence[Batch]:
        """Return the batches of a block."""
        at, end = segment.blocks[number].at, segment.block_end(number)
        if segment.blocks[number].offset >= self._tail.first:
            begin = segment.blocks[number].offset
            stop = (
                segment.blocks[number + 1].offset
                if number + 1 < len(segment.blocks)
                else segment.next
            )
            return [batch for batch in self._tail.behind(begin) if batch.offset < stop]
        try:
            frames = list(walk(segment_path(self._folder, segment.number), at, end))
        except (Damage, OSError):
            return []
        return [
            batch_of(frame, segment.node, segment.log)[0] for frame in frames if frame.kind == BATCH
        ]

    def stamp_at(self, position: int) -> float | None:
        """Return about when the first record at or after `position` was stored."""
        if position >= self._tail.first:
            batch = self._tail.at(position)
            return None if batch is None else batch.stamp
        for segment in self._segments[self._segment_of(position) :]:
            if segment.next > position:
                return segment.blocks[segment.block_of(position)].stamp
        return None

    def locate(self, time: float) -> int:
        """Return the first offset of a batch published at or after `time`."""
        for segment in self._segments:
            for number, block in enumerate(segment.blocks):
                if block.time >= time:
                    for batch in self._rest_of_block(segment, number):
                        if batch.count and batch.time >= time:
                            return batch.offset
        return self.next

    # deleting

    def release(self, before: int) -> None:
        """Nothing below `before` is owed any more."""
        self._owed_from = max(self._owed_from, before)

    def trim(self, before: int) -> int:
        """Delete whole segments below `before`; return how many records go."""
        return 0

    def close(self, done: Callable[[], None]) -> None:
        """Commit what waits, settle it, end the threads, then call `done`."""
        if self._waiting and not self._stuck:
            self._send()
        self._closed = True

        def ended() -> None:
            waiting, self._waiting = self._waiting, []
            for _, settled in waiting:
                settled(LogFull("the log is closed"))
            self._reader.stop()
            os.close(self._lock)
            done()

        self._writer.stop(ended)


def _first(segment: Index) -> int:
    return segment.first


def _add_owed(owed: dict[str, tuple[int, int]], batches: Sequence[Batch], position: int) -> None:
    """Add what of `batches` lies at or after `position`."""
    for batch in batches:
        count, size = batch.count, len(batch.records)
        if batch.next <= position or not count:
            continue
        if batch.offset < position:
            count, size = batch.next - position, size * (batch.next - position) // batch.count
        records, total = owed.get(batch.channel, (0, 0))
        owed[batch.channel] = (records + count, total + size)


def _write_file(files: Files, path: Path, content: bytes) -> None:
    """Write a small file whole, or not at all."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    try:
        fd = files.open(part, create=True)
        try:
            files.write(fd, 0, [content])
            files.sync(fd)
        finally:
            files.close(fd)
        files.rename(part, path)
    except OSError:
        part.unlink(missing_ok=True)


def _lock(folder: Path) -> int:
    """Keep other daemons out.

    Raises:
        LogDamaged: One is in already.
    """
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise LogDamaged(
            f"{folder} is in use by another linkd: stop it, or set another node.state_dir"
        ) from None
    return fd
