"""Finding a log again: its segments, its state from the last snapshot on, and where its last write broke off."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from linkd.errors import LogDamaged, StateTooNew
from linkd.log.engine import Told
from linkd.log.files import Files
from linkd.log.frame import (
    BATCH,
    CURSOR,
    EPOCH,
    HAS_IDS,
    HEAD,
    MAGIC,
    Frame,
    batch_of,
    change_of,
    frame_at,
    frame_size,
)
from linkd.log.group import EpochOpened
from linkd.log.index import FORMAT, Index, SegmentHead, index_path, segment_path
from linkd.log.reader import Damage, walk
from linkd.log.state import Snapshot, State

_HEAD_CHUNK = 65_536

_head = msgspec.msgpack.Decoder(SegmentHead)
_snapshot = msgspec.msgpack.Decoder(Snapshot)
_index = msgspec.msgpack.Decoder(Index)


class Found(msgspec.Struct):
    """A log as it was found.

    Attributes:
        state: None where there is no log yet.
        segments: Oldest first.
        stamp: The log's clock at the last frame.
        wall: Unix seconds then.
        told: What the operator must hear of.
        jump: The next epoch must open far above all that is known.
    """

    state: State | None
    snapshot: Snapshot | None
    segments: list[Index]
    stamp: float
    wall: float
    told: list[Told]
    jump: bool = False


def read_head(path: Path) -> tuple[SegmentHead, Frame]:
    """Return what opens a segment.

    Raises:
        Damage: Nothing readable does.
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
        raise Damage(path, 0)
    version, needs = msgspec.msgpack.decode(frame.head)[:2]
    if version > FORMAT:
        raise StateTooNew(
            f"{path} was written by a newer linkd (format {version}, this one reads {FORMAT}):"
            f" linkd {needs} or later is needed"
        )
    return _head.decode(frame.head), frame


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the segment files in a folder, in order."""
    return sorted(
        int(name[:-4])
        for name in os.listdir(folder)
        if name.endswith(".log") and len(name) == 16 and name[:-4].isdigit()
    )


def load_index(folder: Path, number: int, size: int) -> Index | None:
    """Return the index of a sealed segment of `size` bytes, or None if there is none that fits."""
    try:
        raw = index_path(folder, number).read_bytes()
    except OSError:
        return None
    frame = frame_at(raw, 0)
    if frame is None:
        return None
    try:
        index = _index.decode(frame.head)
    except msgspec.DecodeError:
        return None
    return index if index.number == number and index.size <= size else None


def scan(path: Path, head: SegmentHead, size: int, state: State | None) -> tuple[Index, Frame]:
    """Return the index of a segment's first `size` bytes and its last frame; fold the frames into `state`.

    Raises:
        Damage: At the first bad frame.
    """
    index = Index(head.number, head.log, head.node, head.first, head.first, 0, 0.0, False, [])
    last: Frame | None = None
    try:
        for frame in walk(path, 0, size):
            _fold(frame, index, state)
            index.size, last = frame.end, frame
    except Damage as damage:
        damage.index, damage.last = index, last
        raise
    if last is None:
        raise Damage(path, 0)
    return index, last


def _fold(frame: Frame, index: Index, state: State | None) -> None:
    """Count a frame in."""
    index.stamp = frame.stamp
    if frame.kind == BATCH:
        batch, _ = batch_of(frame, index.node, index.log)
        if batch.count:
            index.add(batch, frame.at, bool(frame.flags & HAS_IDS))
        if state is not None:
            state.replay(batch)
    elif state is not None and frame.kind in (CURSOR, EPOCH):
        change = change_of(frame)
        if isinstance(change, EpochOpened):
            state.open_epoch(change.epoch, change.first)
        else:
            state.put(change.peer, change.place)


def recover(folder: Path, files: Files) -> Found:
    """Find the log in `folder`, and heal the end of its last segment.

    Raises:
        LogDamaged: A file can't be read; the message says what to do.
        StateTooNew: It was written by a newer linkd.
    """
    present = numbers(folder)
    told: list[Told] = []
    segments: list[Index] = []
    found = Found(None, None, segments, 0.0, 0.0, told)
    heads: dict[int, tuple[SegmentHead, Frame]] = {}
    try:
        while present:
            try:
                heads[present[-1]] = read_head(segment_path(folder, present[-1]))
                break
            except Damage:
                path = segment_path(folder, present[-1])
                if not _settled_beyond(path, 0):
                    files.unlink(path)
                    present.pop()
                    continue
                raise
        if not present:
            return found
        for number in present[:-1]:
            heads[number] = read_head(segment_path(folder, number))
        for number, after in zip(present[:-1], present[1:], strict=True):
            size = heads[after][0].previous_size
            path = segment_path(folder, number)
            index = load_index(folder, number, size)
            if index is None:
                index, _ = scan(path, heads[number][0], size, None)
            segments.append(index)
        _last(folder, files, present[-1], heads[present[-1]], found)
    except Damage as damage:
        raise LogDamaged(str(damage)) from None
    except OSError as error:
        raise LogDamaged(f"{error.filename}: {error.strerror}") from None
    return found


def _last(
    folder: Path, files: Files, number: int, head: tuple[SegmentHead, Frame], found: Found
) -> None:
    """Fold the last segment, and cut what a crash left at its end."""
    path = segment_path(folder, number)
    size = path.stat().st_size
    found.snapshot = _snapshot.decode(head[1].records)
    state = State.restored(found.snapshot)
    try:
        index, last = scan(path, head[0], size, state)
    except Damage as damage:
        if damage.index is None or damage.last is None:
            raise
        index, last = damage.index, damage.last
        if _settled_beyond(path, index.size):
            raise
        fd = files.open(path)
        try:
            files.truncate(fd, index.size)
            files.sync(fd)
        finally:
            files.close(fd)
        found.told.append(
            Told(
                "warn",
                "log.repaired",
                f"{path}: the last {size - index.size} bytes were a write that a crash broke off and were cut;"
                f" offset {state.next} comes next",
            )
        )
    state.undo = []
    found.state = state
    found.segments.append(index)
    found.stamp, found.wall = last.stamp, last.wall


def _settled_beyond(path: Path, at: int) -> bool:
    """Tell whether a good frame behind `at` says that the file was durable beyond it."""
    buffer = path.read_bytes()
    view, bad = memoryview(buffer), at
    while (at := buffer.find(MAGIC, at)) >= 0:
        frame = frame_at(view, at)
        if frame is None:
            at += 1
        elif frame.synced > bad:
            return True
        else:
            at = frame.end
    return False
