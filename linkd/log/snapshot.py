"""Snapshots of the log's state, one file each, and the state of format 1 read once.

Format 1 kept the highest offset of each channel, and no batch named the one before it. So only its
frames prove which offsets are here. An offset belongs to one channel: where records
of other channels of the same epoch fill the hole between two batches, the two follow each other.

A snapshot is made of what is on disk: the one before, and the frames behind it, or what memory
keeps of those (`Changes`). So it holds nothing that a crash could take back, and the reactor has
nothing to do with it. A start reads the newest intact one and folds the frames behind it. Two are
kept, and the segments that the older one needs.

    frame (SnapshotHead) | frame (a slice, `Snapshot`, deflated) ... | frame (`SnapshotEnd`), LAST

Deflated, for most of a state are names that resemble each other, and the bytes of all snapshots
must stay below those of the log.
"""

from __future__ import annotations

import threading
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from errno import EIO
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from linkd.errors import StateTooNew
from linkd.log.commit import Post
from linkd.log.files import DiskFiles
from linkd.log.frame import CHANGES, CURSOR, EPOCH, PREFIX_BYTES, STATE, NewFrame, frame_prefix
from linkd.log.origins import Origins, Undo, Verdict
from linkd.log.reader import Change, CorruptSegment, walk
from linkd.log.segment import CARRYING, SegmentHead, fold_sealed, read_head, segment_path
from linkd.log.segment import FORMAT as INDEX_FORMAT
from linkd.log.state import Snapshot, State, decode_carried, in_parts
from linkd.protocol.records import Origin

_Spans = list[tuple[int, int]]
"""First and last offset of runs of records, in any order."""


class OldOrigins(Origins):
    """Replaces a state's origins while segments of format 1 are folded.

    Args:
        known: The origins that get what was found.
    """

    __slots__ = ("_known", "_nodes", "_spans")

    def __init__(self, known: Origins) -> None:
        super().__init__()
        self._known = known
        self._nodes: dict[str, str] = {}
        self._spans: dict[tuple[str, str], dict[str, _Spans]] = {}

    def admit(
        self, origin: Origin, channel: str, count: int, stamp: float, undo: Undo
    ) -> Verdict | None:
        """Note a batch that is stored."""
        self._nodes.setdefault(origin.log, origin.node)
        spans = self._spans.setdefault((origin.log, origin.epoch), {}).setdefault(channel, [])
        first, last = origin.first, origin.first + count - 1
        if spans and spans[-1][1] + 1 == first:
            first = spans.pop()[0]
        spans.append((first, last))
        return None

    def finish(self) -> Origins:
        """Return the origins with all that was noted."""
        for (log, epoch), channels in self._spans.items():
            runs = _joined(span for spans in channels.values() for span in spans)
            begins = [first for first, _ in runs]
            for channel, spans in channels.items():
                held = list[int]()
                for first, last in _joined(spans):
                    if held and _is_filled(runs, begins, held[-1] + 1, first - 1):
                        held[-1] = last
                    else:
                        held += (first, last)
                origin = Origin(self._nodes[log], log, epoch, held[0])
                self._known.adopt(origin, channel, tuple(held))
        return self._known


def fold_segments(
    folder: Path,
    segments: Iterable[tuple[SegmentHead, int]],
    state: State,
    kept: Mapping[int, Sequence[Change]] | None = None,
) -> Iterator[None]:
    """Fold what changes the state in finished segments, oldest first; yield now and then.

    Args:
        folder: Where they are.
        segments: What opens each, and how many of its bytes count.
        state: Gets what they change. `turn` it to the newest format in the end.
        kept: What some of them change, by number: their files are not read.

    Raises:
        CorruptSegment: There is no frame where one should be.
        OSError: A file can't be read.
    """
    for head, size in segments:
        turn(state, head.format)
        path, known = segment_path(folder, head.number), (kept or {}).get(head.number)
        yield from fold_sealed(path, head, size, state, known)


def turn(state: State, version: int) -> None:
    """Prepare a state for the frames of a segment of that format, which follow."""
    origins = state.origins
    if isinstance(origins, OldOrigins):
        if version > CARRYING:
            state.origins = origins.finish()
    elif version <= CARRYING:
        state.origins = OldOrigins(origins)


def _joined(spans: Iterable[tuple[int, int]]) -> _Spans:
    """Return spans in order, those that touch as one."""
    joined: _Spans = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def _is_filled(runs: _Spans, begins: list[int], first: int, last: int) -> bool:
    """Return whether `runs` hold all offsets from `first` to `last`; `begins` are their firsts."""
    place = bisect_right(begins, first) - 1
    return place >= 0 and runs[place][1] >= last


FORMAT = 1
NEEDS = "0.2"
"""The linkd version that reads this format."""

LAST = 1
WRITE_BYTES = 1 << 20
WORK_SECONDS, PAUSE_SECONDS = 0.002, 0.001
"""So long a snapshot is worked on, and so long the reactor has the interpreter to itself."""

HURRY_SEGMENTS, HURRY_SECONDS = 3, 0.004
"""Behind more segments the thread works so long and does not pause: a start has to fold them all.

It releases the interpreter all the same, and a busy reactor keeps it for 5 ms then
(`sys.getswitchinterval`): with 2 ms of work the thread had a quarter of the time.
"""

MOST_BYTES = 1 << 20
"""So much is kept of a segment: frames of less than some 10 KiB change more, and are read again."""

CHANGE_BYTES = 128
"""What each takes in memory beside its head, about."""

MOST_SEGMENTS = 8

_SUFFIX = ".state"
_ENTRIES_AT_ONCE = 32
"""Entries that are freed between two pauses: a producer has up to 272 runs."""

_encode = msgspec.msgpack.Encoder().encode
_snapshot = msgspec.msgpack.Decoder(Snapshot)


class SnapshotHead(msgspec.Struct, array_like=True, frozen=True):
    """What opens a snapshot: format and needed version, the log, the segment that begins there."""

    format: int
    needs: str
    log: str
    number: int


class SnapshotEnd(msgspec.Struct, array_like=True, frozen=True):
    """What ends a snapshot: how many slices came before, and how many bytes they are, inflated."""

    slices: int
    weight: int


class Base(msgspec.Struct, frozen=True):
    """Where the state can be read: as segment `number` begins.

    `size` is that of the snapshot's file; None where the head of an old segment carries the state,
    or where the log begins and there is none. `weight`: bytes of all slices, where they are known.
    """

    number: int
    size: int | None = None
    weight: int = 0

    def is_outgrown(self, grown: int) -> bool:
        """Return whether the log has grown by so much since that another one is due.

        By its size, so that snapshots never take more than the log; and by a third of what that is
        inflated, which is what one costs.
        """
        return grown >= max(self.size or 0, self.weight // 3)


class Sealed(msgspec.Struct, frozen=True):
    """A finished segment, and how much of it counts."""

    number: int
    size: int


class Changes:
    """What the segments written by this run change of the state, kept in memory while it is little.

    Such a segment is not read again for a snapshot: where records are large, that would take as
    much of the disk as writing them did.

    Attributes:
        number: The newest segment that this run began; 0 before the first.
    """

    def __init__(self) -> None:
        self._kept: dict[int, list[Change]] = {}
        self.number, self._bytes = 0, 0

    def begin(self, number: int) -> None:
        """Take what follows as of this segment, from its first frame on."""
        self.number, self._bytes, self._kept[number] = number, 0, []
        if len(self._kept) > MOST_SEGMENTS:
            del self._kept[min(self._kept)]

    def note(self, part: NewFrame, stamp: float) -> None:
        """Keep a frame that is on disk, if it changes the state."""
        kind, flags, head, _ = part
        if not (flags & CHANGES or kind in (CURSOR, EPOCH)):
            return
        kept = self._kept.get(self.number)
        if kept is not None:
            kept.append((kind, stamp, head))
            self._bytes += len(head) + CHANGE_BYTES
            if self._bytes > MOST_BYTES:
                del self._kept[self.number]

    def before(self, number: int) -> dict[int, list[Change]]:
        """Return what is kept of the finished segments, all of them below `number`."""
        return {one: kept for one, kept in self._kept.items() if one < number}

    def forget(self, number: int) -> None:
        """Forget the segments below `number`."""
        for one in [one for one in self._kept if one < number]:
            del self._kept[one]


class Stopped(Exception):
    """The log is closed: no snapshot is made any more."""


def snapshot_path(folder: Path, number: int) -> Path:
    """Return the file of the state as segment `number` begins."""
    return folder / f"{number:012d}{_SUFFIX}"


def snapshot_numbers(folder: Path) -> list[int]:
    """Return the numbers of the snapshots in a folder, in order."""
    names = [path for path in folder.iterdir() if path.suffix == _SUFFIX]
    return sorted(int(path.stem) for path in names if path.stem.isdigit())


def read_snapshot(folder: Path, number: int, log: str, seed: int) -> Iterator[tuple[Snapshot, int]]:
    """Yield the slices of a snapshot and their bytes; they count only once all have come.

    Raises:
        CorruptSegment: It is not whole, or that of another log.
        StateTooNew: It was written by a newer linkd.
        OSError: It can't be read.
    """
    path = snapshot_path(folder, number)
    size, count, weight = path.stat().st_size, -1, 0
    try:
        for frame in walk(path, 0, size, seed):
            if frame.flags & LAST:
                end = msgspec.msgpack.decode(frame.head, type=SnapshotEnd)
                if frame.end == size and end == SnapshotEnd(count, weight):
                    return
                break
            if count < 0:
                _check_head(path, frame.head, log, number)
            else:
                content = zlib.decompress(frame.head)
                weight += len(content)
                yield _snapshot.decode(content), len(content)
            count += 1
    except (msgspec.DecodeError, zlib.error):
        raise CorruptSegment(path, 0) from None
    raise CorruptSegment(path, size)


def _check_head(path: Path, head: bytes, log: str, number: int) -> None:
    """Raise StateTooNew or CorruptSegment if a snapshot with that head is unusable."""
    version, needs = msgspec.msgpack.decode(head)[:2]
    if version > FORMAT:
        raise StateTooNew(
            f"{path} was written by a newer linkd (format {version}, this one reads {FORMAT}):"
            f" linkd {needs} or later is needed"
        )
    found = msgspec.msgpack.decode(head, type=SnapshotHead)
    if (found.log, found.number) != (log, number):
        raise CorruptSegment(path, 0, foreign=True)


def write_snapshot(
    files: DiskFiles,
    folder: Path,
    head: SnapshotHead,
    seed: int,
    slices: Iterable[Snapshot],
    pause: Callable[[], None],
) -> Base:
    """Write a snapshot whole, or not at all.

    Raises:
        OSError: The disk refuses.
    """
    path = snapshot_path(folder, head.number)
    part = path.with_name(path.name + ".part")
    with suppress(FileNotFoundError):
        files.unlink(part)
    fd = files.open(part, create=True)
    try:
        try:
            base = _write_slices(files, fd, seed, head, slices, pause)
        finally:
            files.close(fd)
        files.rename(part, path)
        files.sync_dir(folder)
    except BaseException:
        with suppress(OSError):
            files.unlink(part)
        raise
    return base


def _write_slices(
    files: DiskFiles,
    fd: int,
    seed: int,
    head: SnapshotHead,
    slices: Iterable[Snapshot],
    pause: Callable[[], None],
) -> Base:
    """Write all frames of a snapshot, about a MiB at once."""
    written, held, buffers, count, weight = 0, 0, list[bytes](), 0, 0

    def add(content: bytes, flags: int = 0) -> None:
        nonlocal held
        buffers.append(frame_prefix((STATE, flags, content, b""), 0, 0.0, 0.0, seed))
        buffers.append(content)
        held += PREFIX_BYTES + len(content)

    add(_encode(head))
    for part in slices:
        content = _encode(part)
        add(zlib.compress(content, 1))
        count += 1
        weight += len(content)
        if held >= WRITE_BYTES:
            files.write(fd, written, buffers)
            written, held = written + held, 0
            buffers.clear()
        pause()
    add(_encode(SnapshotEnd(count, weight)), LAST)
    files.write(fd, written, buffers)
    return Base(head.number, written + held, weight)


def read_state(
    folder: Path, base: Base, log: str, seed: int, pause: Callable[[], None]
) -> tuple[State, Snapshot, int]:
    """Return the state at `base`, what is carried beside it, and the bytes of both.

    Raises:
        CorruptSegment: It can't be read.
        StateTooNew: It was written by a newer linkd.
        OSError: The disk refuses.
    """
    state, acks, consumers, weight = State(log), list[Any](), list[Any](), 0
    for part, size in _slices_at(folder, base, log, seed):
        state.add(part)
        acks += part.acks
        consumers += part.consumers
        weight += size
        pause()
    return state, Snapshot(acks=tuple(acks), consumers=tuple(consumers)), weight


def _slices_at(folder: Path, base: Base, log: str, seed: int) -> Iterator[tuple[Snapshot, int]]:
    """Yield the slices of the state at `base`, and their bytes."""
    if base.size is not None:
        yield from read_snapshot(folder, base.number, log, seed)
        return
    path = segment_path(folder, base.number)
    head, frame = read_head(path)
    if head.format <= CARRYING:
        try:
            yield decode_carried(frame.records), len(frame.records)
        except msgspec.DecodeError:
            raise CorruptSegment(path, 0) from None
    yield Snapshot(next=head.first), 0


def write_at_start(
    files: DiskFiles, folder: Path, number: int, seed: int, state: State, carried: Snapshot
) -> Base:
    """Write a snapshot at a start: nobody else has work to do, and the state is at hand.

    Raises:
        OSError: The disk refuses.
    """
    head = SnapshotHead(FORMAT, NEEDS, state.log, number)
    acks = (Snapshot(acks=tuple(some)) for some in in_parts(carried.acks))
    consumers = (Snapshot(consumers=tuple(few)) for few in in_parts(carried.consumers, 32))
    slices = chain(state.slices(), acks, consumers)
    return write_snapshot(files, folder, head, seed, slices, lambda: None)


def remove_snapshots(files: DiskFiles, folder: Path, before: int) -> None:
    """Delete the snapshots before number `before`, as far as the disk lets us."""
    for number in snapshot_numbers(folder):
        if number < before:
            with suppress(OSError):
                files.unlink(snapshot_path(folder, number))


def _bytes_of(bases: Iterable[Base]) -> int:
    return sum(base.size or 0 for base in bases)


class Snapshots:
    """Makes snapshots in a thread of its own, one at a time.

    Args:
        folder: Where the segments lie.
        files: The disk.
        log: The log's id.
        seed: The log's, for CRCs.
        post: Brings a call into the reactor's thread.
        bases: Where the state can be read now, oldest first: one or two.

    Attributes:
        bases: The same with the newest.
        size: Bytes of their files.
        busy: One is being made.
        changes: What need not be read again.
    """

    def __init__(
        self, folder: Path, files: DiskFiles, log: str, seed: int, post: Post, bases: Sequence[Base]
    ) -> None:
        self.bases = list(bases)
        self.size = _bytes_of(bases)
        self.busy = False
        self.changes = Changes()
        self._folder = folder
        self._files = files
        self._log = log
        self._seed = seed
        self._post = post
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._paused = 0.0

    def set_bases(self, bases: Sequence[Base]) -> None:
        """Go on from snapshots that another instance made."""
        self.bases, self.size = list(bases), _bytes_of(bases)

    @property
    def behind(self) -> int:
        """How many segments this run has begun since the newest snapshot."""
        return max(0, self.changes.number - self.bases[-1].number) if self.bases else 0

    @property
    def needed(self) -> int:
        """The oldest segment that is needed to find the state again."""
        return self.bases[0].number if self.bases else 0

    def make(
        self,
        number: int,
        segments: Sequence[Sealed],
        forget: Callable[[State], object],
        carried: Iterable[Snapshot],
        done: Callable[[OSError | CorruptSegment | None], None],
    ) -> None:
        """Make the snapshot of the state as segment `number` begins, and keep it.

        Args:
            number: That segment is on disk.
            segments: Those before it, from the older base on.
            forget: Called in the thread with the state, to forget what is too old.
            carried: What goes into it beside the state.
            done: Called in the reactor, with what went wrong; not after `stop`.
        """
        self.busy = True
        kept = self.changes.before(number)

        def job() -> None:
            outcome: Base | OSError | CorruptSegment
            try:
                outcome = self._make(number, segments, kept, forget, carried)
            except Stopped:
                return
            except (OSError, CorruptSegment) as error:
                outcome = error
            except Exception as error:  # noqa: BLE001 - who waits must hear
                outcome = OSError(EIO, f"{type(error).__name__}: {error}", str(self._folder))
            self._post(lambda: made(outcome))

        def made(outcome: Base | OSError | CorruptSegment) -> None:
            self.busy = False
            if isinstance(outcome, Base):
                self.bases = [*self.bases[-1:], outcome]
                self.size = _bytes_of(self.bases)
                self.changes.forget(outcome.number)
                done(None)
            else:
                done(outcome)

        self._thread = threading.Thread(target=job, name="linkd-log-snapshot", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave what is under way undone, and wait until its thread has ended."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _make(
        self,
        number: int,
        segments: Sequence[Sealed],
        kept: Mapping[int, Sequence[Change]],
        forget: Callable[[State], object],
        carried: Iterable[Snapshot],
    ) -> Base:
        """Fold the frames behind a base, and write the state."""
        state = self._fold(number, segments, kept)
        forget(state)
        head = SnapshotHead(FORMAT, NEEDS, self._log, number)
        slices = chain(state.slices(), carried)
        base = write_snapshot(self._files, self._folder, head, self._seed, slices, self._pause)
        dissolve(state, self._pause)
        return base

    def _fold(
        self, number: int, segments: Sequence[Sealed], kept: Mapping[int, Sequence[Change]]
    ) -> State:
        """Return the state as segment `number` begins, from the newest base that can be read."""
        bases = list(self.bases)
        while True:
            base = bases.pop()
            try:
                state, _, _ = read_state(self._folder, base, self._log, self._seed, self._pause)
                break
            except (CorruptSegment, FileNotFoundError):
                if not bases:
                    raise
        behind = (
            (read_head(segment_path(self._folder, segment.number))[0], segment.size)
            for segment in segments
            if base.number <= segment.number < number
        )
        for _ in fold_segments(self._folder, behind, state, kept):
            self._pause()
        turn(state, INDEX_FORMAT)
        state.next = max(state.next, read_head(segment_path(self._folder, number))[0].first)
        return state

    def _pause(self) -> None:
        """Let the reactor work for a moment, once this thread has worked long enough."""
        hurries = self.behind > HURRY_SEGMENTS
        if time.monotonic() - self._paused < (HURRY_SECONDS if hurries else WORK_SECONDS):
            return
        if self._stopping.wait(0.0 if hurries else PAUSE_SECONDS):
            raise Stopped
        self._paused = time.monotonic()


def dissolve(state: State, pause: Callable[[], None]) -> None:
    """Empty a state's tables piece by piece: freed at once they would hold the interpreter."""
    for table in state.tables():
        while table:
            for _ in range(min(len(table), _ENTRIES_AT_ONCE)):
                table.popitem()
            pause()
