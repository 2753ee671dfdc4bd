"""Reading a segment from one end to the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from linkd.core.batch import Source
from linkd.errors import StateTooNew
from linkd.log.frame import (
    BATCH,
    CURSOR,
    EPOCH,
    HAS_IDS,
    HEAD,
    Frame,
    Head,
    change_of,
    decode_head,
    frame_at,
    frame_size,
    head_of,
)
from linkd.log.group import EpochOpened, Publish
from linkd.log.index import CARRYING, FORMAT, Index, SegmentHead
from linkd.log.origins import Ignored
from linkd.log.reader import Change, Damage, walk, walk_changes
from linkd.log.state import State

_HEAD_CHUNK = 65_536
_NAME_LENGTH = 16
_FRAMES_AT_ONCE = 128
"""So many are folded between two pauses: one to two milliseconds."""

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
        Damage: Nothing readable does.
        StateTooNew: It was written by a newer linkd.
        OSError: It can't be read.
    """
    with path.open("rb") as file:
        buffer = file.read(_HEAD_CHUNK)
        size = frame_size(buffer, 0)
        if size is not None and len(buffer) < size <= os.fstat(file.fileno()).st_size:
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


def scan(
    path: Path, head: SegmentHead, size: int, state: State | None, sealed: bool = False
) -> tuple[Index, Frame]:
    """Like `scan_to`, where no frame may be bad.

    Raises:
        Damage: At the first bad frame.
    """
    index, last, damage = scan_to(path, head, size, state, sealed)
    if damage is not None or last is None:
        raise damage or Damage(path, 0)
    return index, last


def scan_to(
    path: Path, head: SegmentHead, size: int, state: State | None, sealed: bool = False
) -> tuple[Index, Frame | None, Damage | None]:
    """Return the index of a segment's first `size` bytes, its last frame and the first bad one.

    Fold the frames up to there into `state`.

    A publish of several frames whose last is not there does not count, nor what follows it: nobody
    was told that it was stored. In a `sealed` segment it was stored: what is readable counts.
    """
    index = empty_index(head)
    last: Frame | None = None
    found: Damage | None = None
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
    except Damage as damage:
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
        sure: So many do count; else zeros behind the last frame are none of it.

    Raises:
        Damage: At the first bad frame.
    """
    try:
        return scan(path, head, size, None, sealed=True)
    except Damage as damage:
        if sure or ends_at(path, damage.at) > damage.at:
            raise
        return scan(path, head, damage.at, None, sealed=True)


def ends_at(path: Path, at: int) -> int:
    """Return where what lies from `at` on in a file ends: the zeros behind it are room made ready.

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
            state.replay(head, frame.stamp, _whole(head.publish), head.counts)
    elif state is not None:
        fold_change(frame.kind, frame.head, state)


def fold_change(kind: int, head: bytes | memoryview, state: State) -> None:
    """Fold a frame without a batch."""
    if kind in (CURSOR, EPOCH):
        change = change_of(kind, head)
        if isinstance(change, EpochOpened):
            state.open_epoch(change.epoch, change.first)
        else:
            state.put(change.peer, change.place)


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
        Damage: There is no frame where one should be.
        OSError: The file can't be read.
    """
    count = 0
    ends: dict[str, Source] = {}  # of each peer's steps: where a cursor was in between is nothing
    state.undo = Ignored()
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
            state.replay_records(read, stamp, _whole(read.publish), read.counts)
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
    state.undo = []


def _whole(publish: Publish | None) -> tuple[int, int] | None:
    """Return (first, count) of the publish that a frame is part of."""
    return None if publish is None else (publish.first, publish.count)
