"""One segment file: index, scan, sealed files, intact frames, and the log's identity.

The index has an entry about every half MiB: where it begins, and totals by channel.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from linkd.errors import BadRecord, StateTooNew
from linkd.log.files import DiskFiles
from linkd.log.frame import (
    BATCH,
    HAS_IDS,
    HEAD,
    MAGIC,
    SMALL,
    Frame,
    FrameCandidate,
    Head,
    PublishPart,
    batch_of,
    candidate_at,
    change_of,
    crc32,
    decode_head,
    frame_at,
    frame_prefix,
    frame_size,
    head_of,
)
from linkd.log.reader import Change, CorruptSegment, walk, walk_changes
from linkd.log.state import RecentIds, State, digest
from linkd.protocol.records import Batch, SourcePosition, decode_records

BLOCK_BYTES = 512 * 1024
FORMAT = 2
NEEDS = "0.2"
"""The linkd version that reads this format."""

CARRYING = 1
"""The newest format whose heads carry the state, as format 2 has it in files of its own."""


class IndexEntry(msgspec.Struct, array_like=True, gc=False):
    """A run of frames.

    Attributes:
        offset: The first record's offset in it.
        at: Where it begins in the file.
        stamp: The log's clock at its first frame.
        time: The newest publishing time in it, Unix seconds.
        totals: (records, bytes of records) by channel.
    """

    offset: int
    at: int
    stamp: float
    time: float
    totals: dict[str, tuple[int, int]]


class SegmentHead(msgspec.Struct, array_like=True, frozen=True):
    """What opens a segment.

    Args:
        format: The format's version.
        needs: The linkd version that reads it.
        number: Its place among the segments; its file is named after it.
        log: The log's id.
        node: The node's name.
        first: The offset that its first record gets at least.
        previous: The number of the segment before, 0 if none.
        previous_size: How much of that one counts.
        seed: The log's secret start of CRCs.
        salvaged: It was put together from what was readable; all of it counts.
    """

    format: int
    needs: str
    number: int
    log: str
    node: str
    first: int
    previous: int
    previous_size: int
    seed: int
    salvaged: bool = False


class Index(msgspec.Struct, array_like=True):
    """A segment as far as it is committed.

    Attributes:
        number: As in its head; so are `log`, `node` and `first`.
        next: The offset behind its last record; `first` if it has none.
        size: Bytes that count.
        stamp: The log's clock at its last frame.
        has_ids: It has records whose ids count for repeats.
        blocks: In order.
    """

    number: int
    log: str
    node: str
    first: int
    next: int
    size: int
    stamp: float
    has_ids: bool
    blocks: list[IndexEntry]

    def add(self, batch: Batch | Head, size: int, stamp: float, at: int, has_ids: bool) -> None:
        """Count in a batch behind all others.

        Args:
            batch: The batch, or the head of its frame.
            size: Bytes of its records.
            stamp: The log's clock.
            at: Where its frame begins.
            has_ids: Its records' ids count for repeats.
        """
        blocks = self.blocks
        if not blocks or at - blocks[-1].at >= BLOCK_BYTES:
            totals = {batch.channel: (batch.count, size)}
            blocks.append(IndexEntry(batch.offset, at, stamp, batch.time, totals))
        else:
            block = blocks[-1]
            old = block.totals.get(batch.channel)
            block.totals[batch.channel] = (
                (batch.count, size) if old is None else (old[0] + batch.count, old[1] + size)
            )
            block.time = max(block.time, batch.time)
        self.next = batch.offset + batch.count
        self.stamp = stamp
        if has_ids:
            self.has_ids = True

    def block_of(self, position: int) -> int:
        """Return which block holds `position`, or the first where all lie behind it."""
        return max(0, bisect_right(self.blocks, position, key=_offset) - 1)


def _offset(block: IndexEntry) -> int:
    return block.offset


def segment_path(folder: Path, number: int) -> Path:
    """Return the file of a segment."""
    return folder / f"{number:012d}.log"


def index_path(folder: Path, number: int) -> Path:
    """Return the file of a sealed segment's index."""
    return folder / f"{number:012d}.idx"


_DEFLATED = b"\x78"
"""What a deflated index begins with; those of segments of format 1 are not."""

_index = msgspec.msgpack.Decoder(Index)
_ids = msgspec.msgpack.Decoder(dict[str, list[tuple[bytes, int]]] | list[tuple[bytes, int]])


def ids_path(folder: Path, number: int) -> Path:
    """Return the file of the ids of a sealed segment."""
    return folder / f"{number:012d}.ids"


def seal(
    files: DiskFiles, folder: Path, index: Index, ids: Sequence[tuple[str, bytes, int]]
) -> None:
    """Write a segment's index and ids; where that fails the next start makes them again."""
    encode = msgspec.msgpack.encode
    with suppress(OSError):
        if ids:
            mine: dict[str, list[tuple[bytes, int]]] = {}
            for owner, key, offset in ids:
                mine.setdefault(owner, []).append((key, offset))
            write_small(files, ids_path(folder, index.number), encode(mine), index.stamp)
        content = zlib.compress(encode(index), 1)  # mostly names of channels, again and again
        write_small(files, index_path(folder, index.number), content, index.stamp)


def bytes_beside(folder: Path, number: int) -> int:
    """Return what the files beside a sealed segment occupy."""
    size = 0
    for path in (index_path(folder, number), ids_path(folder, number)):
        with suppress(OSError):
            size += path.stat().st_size
    return size


def load_index(folder: Path, number: int, log: str) -> Index | None:
    """Return the index of a sealed segment, or None where there is none that can be read."""
    head = read_small(index_path(folder, number))
    try:
        if head is not None and head[:1] == _DEFLATED:
            head = zlib.decompress(head)
        index = None if head is None else _index.decode(head)
    except (msgspec.DecodeError, zlib.error):
        return None
    return index if index is not None and (index.number, index.log) == (number, log) else None


def load_ids(folder: Path, index: Index, seed: int, ids: RecentIds) -> None:
    """Remember the ids of a segment."""
    head = read_small(ids_path(folder, index.number))
    if head is not None:
        found = _ids.decode(head)
        for owner, mine in (found if isinstance(found, dict) else {"": found}).items():
            for key, offset in mine:
                ids.add(owner, key, offset, index.stamp)
        return
    try:
        for frame in walk(segment_path(folder, index.number), 0, index.size, seed):
            if frame.kind == BATCH and frame.flags & HAS_IDS:
                batch, opened = batch_of(frame, index.node, index.log)
                add_ids(ids, batch, opened.owner)
    except (CorruptSegment, OSError, BadRecord):
        return


def add_ids(ids: RecentIds, batch: Batch, owner: str) -> None:
    """Remember the ids of a batch's records, which belong to `owner`.

    Raises:
        BadRecord: A record can't be decoded.
    """
    for place, record in enumerate(decode_records(batch.records, batch.count)):
        if record.id:
            key = digest(batch.channel, record.id)
            ids.add(owner, key, batch.offset + place, batch.stamp)


def write_small(files: DiskFiles, path: Path, content: bytes, stamp: float) -> None:
    """Write a small file whole, or not at all.

    Raises:
        OSError: The disk refuses.
    """
    part = path.with_name(path.name + ".part")
    prefix = frame_prefix((SMALL, 0, content, b""), 0, stamp, 0.0)
    with suppress(FileNotFoundError):
        files.unlink(part)
    fd = files.open(part, create=True)
    try:
        files.write(fd, 0, [prefix, content])
    finally:
        files.close(fd)
    files.rename(part, path)


def read_small(path: Path) -> bytes | None:
    """Return what a small file holds, or None where it is missing or damaged."""
    try:
        frame = frame_at(path.read_bytes(), 0)
    except OSError:
        return None
    return None if frame is None else frame.head


_NAME = "identity"


class Identity(msgspec.Struct, array_like=True, frozen=True):
    """Who a log is.

    Args:
        log: Its id.
        seed: The secret start of its CRCs.
        number: A segment that there was; where none reaches it, some are gone.
        next: No offset below may be given out again.
        oldest: The oldest segment that was not deleted on purpose; 0 before the first.
        first: The first offset in it.
    """

    log: str
    seed: int
    number: int
    next: int
    oldest: int = 0
    first: int = 1


def load_identity(folder: Path) -> Identity | None:
    """Return who the log in `folder` is, or None where the file is missing or damaged."""
    raw = read_small(folder / _NAME)
    try:
        return None if raw is None else msgspec.msgpack.decode(raw, type=Identity)
    except msgspec.DecodeError:
        return None


def save_identity(files: DiskFiles, folder: Path, identity: Identity) -> None:
    """Write who the log is.

    Raises:
        OSError: The disk refuses.
    """
    write_small(files, folder / _NAME, msgspec.msgpack.encode(identity), 0.0)
    files.sync_dir(folder)


_HEAD_CHUNK = 65_536
_NAME_LENGTH = 16
_FRAMES_AT_ONCE = 128
"""Frames that are folded between two pauses: one to two milliseconds."""

_head = msgspec.msgpack.Decoder(SegmentHead)


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the segment files in a folder, in order."""
    return sorted(
        int(path.stem)
        for path in folder.iterdir()
        if path.suffix == ".log" and len(path.name) == _NAME_LENGTH and path.stem.isdigit()
    )


def read_head(path: Path) -> tuple[SegmentHead, Frame]:
    """Return what opens a segment.

    Raises:
        CorruptSegment: Nothing readable does.
        StateTooNew: It was written by a newer linkd.
        OSError: It can't be read.
    """
    with path.open("rb") as file:
        buffer = file.read(_HEAD_CHUNK)
        size = frame_size(buffer, 0)
        if size is not None and len(buffer) < size <= path.stat().st_size:
            buffer += file.read(size - len(buffer))
    frame = frame_at(buffer, 0)
    if frame is None or frame.kind != HEAD:
        raise CorruptSegment(path, 0)
    version, needs = msgspec.msgpack.decode(frame.head)[:2]
    if version > FORMAT:
        raise StateTooNew(
            f"{path} was written by a newer linkd (format {version}, this one reads {FORMAT}):"
            f" linkd {needs} or later is needed"
        )
    return _head.decode(frame.head), frame


def scan(
    path: Path, head: SegmentHead, size: int, state: State | None, sealed: bool = False
) -> tuple[Index, Frame]:
    """Like `scan_to`, where no frame may be bad.

    Raises:
        CorruptSegment: At the first bad frame.
    """
    index, last, damage = scan_to(path, head, size, state, sealed)
    if damage is not None or last is None:
        raise damage or CorruptSegment(path, 0)
    return index, last


def scan_to(
    path: Path, head: SegmentHead, size: int, state: State | None, sealed: bool = False
) -> tuple[Index, Frame | None, CorruptSegment | None]:
    """Return the index of a segment's first `size` bytes, its last frame and the first bad one.

    Fold the frames up to there into `state`.

    An incomplete publish of several frames does not count, nor what follows it: its publisher got
    no answer. In a `sealed` segment it was acknowledged, so its readable frames count.
    """
    index = empty_index(head)
    last: Frame | None = None
    found: CorruptSegment | None = None
    held: list[tuple[Frame, Head | None]] = []
    try:
        for frame in walk(path, 0, size, head.seed):
            read = head_of(frame) if frame.kind == BATCH else None
            held.append((frame, read))
            if read is not None and read.publish is not None and not read.publish.last:
                continue
            for ready in held:
                fold(*ready, index, state)
            index.size, last = frame.end, frame
            held.clear()
    except CorruptSegment as damage:
        found = damage
    if sealed and held and found is None:
        for ready in held:
            fold(*ready, index, state)
        last = held[-1][0]
        index.size = last.end
    return index, last, found


def scan_sealed(path: Path, head: SegmentHead, size: int, sure: bool) -> tuple[Index, Frame]:
    """Like `scan`, of a finished segment.

    Args:
        path: The file.
        head: What opens it.
        size: Bytes that count.
        sure: All of them count; else zeros behind the last frame are left out.

    Raises:
        CorruptSegment: At the first bad frame.
    """
    try:
        return scan(path, head, size, None, sealed=True)
    except CorruptSegment as damage:
        if sure or ends_at(path, damage.at) > damage.at:
            raise
        return scan(path, head, damage.at, None, sealed=True)


def ends_at(path: Path, at: int) -> int:
    """Return where the data from `at` on ends: the zeros behind it are preallocated.

    Raises:
        OSError: It can't be read.
    """
    with path.open("rb") as file:
        file.seek(at)
        return at + len(file.read().rstrip(b"\0"))


def empty_index(head: SegmentHead) -> Index:
    """Return the index of a segment before anything of it is counted in."""
    return Index(head.number, head.log, head.node, head.first, head.first, 0, 0.0, False, [])


def fold(frame: Frame, head: Head | None, index: Index, state: State | None) -> None:
    """Count a frame in, whose head is `head` where it is a batch's."""
    index.stamp = frame.stamp
    if head is not None:
        if head.count:
            has_ids = bool(frame.flags & HAS_IDS)
            index.add(head, len(frame.records), frame.stamp, frame.at, has_ids)
        if state is not None:
            state.replay(head, frame.stamp, whole_of(head.publish), head.counts)
    elif state is not None:
        fold_change(frame.kind, frame.head, state)


def fold_change(kind: int, head: bytes | memoryview, state: State) -> None:
    """Fold a frame without a batch."""
    change = change_of(kind, head)
    if change is not None:
        state.change(change)


def fold_sealed(
    path: Path,
    head: SegmentHead,
    size: int,
    state: State,
    kept: Sequence[Change] | None = None,
) -> Iterator[None]:
    """Fold what changes the state in a finished segment of `size` bytes; yield now and then.

    Args:
        path: The file.
        head: What opens it.
        size: Bytes that count.
        state: Gets what changes.
        kept: That, where it is in memory: then the file is not read.

    Raises:
        CorruptSegment: There is no frame where one should be.
        OSError: The file can't be read.
    """
    count = 0
    ends: dict[str, SourcePosition] = {}  # of each peer's steps: only the last one counts
    every = head.format <= CARRYING
    for change in walk_changes(path, size, head.seed, every) if kept is None else kept:
        if change is None:
            yield
            continue
        kind, stamp, encoded = change
        if kind == BATCH:
            read = decode_head(encoded)
            source = read.source
            if source is not None:
                end = ends.get(source.peer)
                if end is not None and (end.epoch != source.epoch or end.log != source.log):
                    state.follow(end)
                ends[source.peer] = source
            state.replay_records(read, stamp, whole_of(read.publish), read.counts)
        else:
            for end in ends.values():
                state.follow(end)
            ends.clear()
            fold_change(kind, encoded, state)
        count += 1
        if count % _FRAMES_AT_ONCE == 0:
            yield
    for end in ends.values():
        state.follow(end)


def whole_of(publish: PublishPart | None) -> tuple[int, int] | None:
    """Return (first, count) of the publish that a frame is part of."""
    return None if publish is None else (publish.first, publish.count)


_PATIENCE = 4
"""Multiples of the file's length that are summed as frames claim before sums are kept."""

_STEP_BYTES = 1024
"""From one kept sum to the next."""

_ONES = 0xFFFFFFFF


def good_frames(path: Path, seed: int, at: int = 0) -> list[Frame]:
    """Return all frames of a file from `at` on that are whole, whatever is between them.

    A segment head counts only at offset 0, and frames of other kinds of files never: their
    CRCs have no secret in them, so that a published body could hold some.

    The time it takes grows with the file's length, also where each of its bytes claims to begin
    a frame.
    """
    return list(_good_frames(path.read_bytes(), seed, at))


def _good_frames(buffer: bytes, seed: int, at: int) -> Iterator[Frame]:
    view, sieve = memoryview(buffer), _Sieve(buffer, seed)
    while (at := buffer.find(MAGIC, at)) >= 0:
        frame = frame_at(view, at, 0, seed) if sieve.passes(at) else None
        if frame is None:
            at += 1
        else:
            yield frame
            at = frame.end


class _Sieve:
    """Rejects false frames without reading all the bytes that they claim.

    Args:
        buffer: All of the file.
        seed: The log's, for CRCs.
    """

    def __init__(self, buffer: bytes, seed: int) -> None:
        self._buffer = buffer
        self._seed = seed
        self._left = _PATIENCE * len(buffer)
        self._sums: CrcIndex | None = None

    def passes(self, at: int) -> bool:
        """Return whether there may be a frame at `at`; its CRC decides."""
        claim = candidate_at(self._buffer, at)
        if claim is None or claim.kind == SMALL or (claim.kind == HEAD and at > 0):
            return False
        self._left -= claim.end - at
        return self._left >= 0 or claim.kind == HEAD or self._adds_up(claim)

    def _adds_up(self, claim: FrameCandidate) -> bool:
        """Return whether a claim's CRC is right."""
        if self._sums is None:
            self._sums = CrcIndex(self._buffer)
        return self._sums.crc(claim.begin, claim.end, self._seed) == claim.crc


class CrcIndex:
    """The CRC of any stretch of a buffer, in a time that hardly depends on its length.

    A CRC is linear: that of a stretch is the difference of those of what ends with it and of what
    ends before it, the latter moved on over as many zeros as the stretch is long.

    Args:
        buffer: The bytes, less than 4 GiB.
    """

    def __init__(self, buffer: bytes) -> None:
        self._view = memoryview(buffer)
        self._marks = [0]
        for at in range(0, len(buffer), _STEP_BYTES):
            self._marks.append(crc32(self._view[at : at + _STEP_BYTES], self._marks[-1]))
        self._moves = _moves(len(buffer).bit_length())

    def crc(self, begin: int, end: int, seed: int) -> int:
        """Return `crc32(buffer[begin:end], seed)`."""
        return self._until(end) ^ self._moved(self._until(begin) ^ seed, end - begin)

    def _until(self, at: int) -> int:
        """Return the CRC of all before `at`."""
        mark = at // _STEP_BYTES
        return crc32(self._view[mark * _STEP_BYTES : at], self._marks[mark])

    def _moved(self, value: int, count: int) -> int:
        """Return a difference of CRCs moved on over `count` zeros."""
        level = 0
        while count:
            if count & 1:
                value = _move(self._moves[level], value)
            count >>= 1
            level += 1
        return value


_Move = tuple[list[int], list[int], list[int], list[int]]
"""What moving on makes of each value of each of the four bytes, the lowest first."""


def _move(move: _Move, value: int) -> int:
    """Return what a move makes of a value."""
    low, second, third, high = move
    return (
        low[value & 255] ^ second[value >> 8 & 255] ^ third[value >> 16 & 255] ^ high[value >> 24]
    )


def _moves(levels: int) -> list[_Move]:
    """Return the moves over 1, 2, 4 and so on zeros, as many as `levels`."""
    one = [
        [crc32(b"\0", byte << at ^ _ONES) ^ _ONES for byte in range(256)] for at in (0, 8, 16, 24)
    ]
    moves: list[_Move] = [(one[0], one[1], one[2], one[3])]
    while len(moves) < levels:
        last = moves[-1]
        twice = [[_move(last, value) for value in values] for values in last]
        moves.append((twice[0], twice[1], twice[2], twice[3]))
    return moves
