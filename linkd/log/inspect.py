"""Inspect a log's files without opening the log.

Nothing is changed, and a daemon may be at work on them.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from linkd.errors import LogDamaged
from linkd.log.files import explain_os_error
from linkd.log.reader import CorruptSegment
from linkd.log.segment import (
    Identity,
    Index,
    SegmentHead,
    ends_at,
    good_frames,
    load_identity,
    load_index,
    numbers,
    read_head,
    scan,
    scan_sealed,
    segment_path,
)
from linkd.log.snapshot import read_snapshot, snapshot_numbers, snapshot_path

_LOOKS = 3
"""Looks at a bad place in a file that grows before it counts as damage."""


class Stat(msgspec.Struct, frozen=True):
    """The contents of a log.

    Args:
        id: Its id; empty where there is no log.
        node: Its node's name.
        first: The oldest offset.
        next: The next offset.
        records: How many there are.
        bytes: What its segments occupy.
        segments: How many there are.
        channels: Records by channel.
    """

    id: str
    node: str
    first: int
    next: int
    records: int
    bytes: int
    segments: int
    channels: dict[str, int]


class Verified(msgspec.Struct, frozen=True):
    """What reading every file has shown.

    Args:
        sound: Nothing is damaged.
        segments: How many were read.
        records: How many whole records they hold.
        bytes: How much was read.
        damage: What is wrong, a sentence each.
        notes: What is worth knowing and needs nothing done.
    """

    sound: bool
    segments: int
    records: int
    bytes: int
    damage: list[str]
    notes: list[str]


def stat(path: Path) -> Stat:
    """Return the contents of the log in the folder `path`.

    Raises:
        LogDamaged: A file can't be read.
        StateTooNew: It was written by a newer linkd.
    """
    identity = load_identity(path)
    indexes, size, node = [], 0, ""
    try:
        for number in _kept(path, identity):
            file = segment_path(path, number)
            head, _ = read_head(file)
            index = load_index(path, number, head.log)
            indexes.append(index or _partly(file, head))
            size += file.stat().st_size
            node = head.node
    except CorruptSegment as damage:
        raise LogDamaged(f"{damage}; `linkd log verify` tells more") from None
    except OSError as error:
        raise LogDamaged(explain_os_error(error, path)) from None
    channels: dict[str, int] = {}
    for index in indexes:
        for block in index.blocks:
            for channel, (records, _) in block.totals.items():
                channels[channel] = channels.get(channel, 0) + records
    known = identity.next if identity is not None else 1
    return Stat(
        identity.log if identity is not None else (indexes[0].log if indexes else ""),
        node,
        indexes[0].first if indexes else known,
        max(known, indexes[-1].next) if indexes else known,
        sum(channels.values()),
        size,
        len(indexes),
        channels,
    )


def verify(path: Path) -> Verified:
    """Read every segment of the log in the folder `path` and return what is damaged.

    Raises:
        LogDamaged: A file can't be read at all.
        StateTooNew: It was written by a newer linkd.
    """
    damage: list[str] = []
    notes: list[str] = []
    records = size = expected = 0
    identity = load_identity(path)
    if identity is None:
        damage.append(f"{path}/identity is missing or damaged; the segments have the rest")
    try:
        present = _kept(path, identity)
        for number in present:
            file = segment_path(path, number)
            size += file.stat().st_size
            last = number == present[-1]
            index = _checked(file, None if last else _counts(path, present, number), damage, notes)
            if index is None:
                continue
            if identity is not None and index.log != identity.log:
                damage.append(f"{file} belongs to another log")
            if expected and index.first > expected:
                damage.append(f"{file}: offsets {expected} to {index.first - 1} are not there")
            expected = index.next
            records += sum(n for block in index.blocks for n, _ in block.totals.values())
        if identity is not None:
            damage += _bad_snapshots(path, identity)
    except OSError as error:
        raise LogDamaged(explain_os_error(error, path)) from None
    damage += _gone(path, identity, present)
    return Verified(not damage, len(present), records, size, damage, notes)


def verify_segment(file: Path) -> Verified:
    """Read one segment, wherever it is, and return what is damaged.

    `scripts/install` asks so whether a segment holds records, of this release or of another one.

    Raises:
        LogDamaged: It can't be read at all.
        StateTooNew: It was written by a newer linkd.
    """
    damage: list[str] = []
    notes: list[str] = []
    try:
        index = _checked(file, None, damage, notes)
        size = file.stat().st_size
    except OSError as error:
        raise LogDamaged(explain_os_error(error, file.parent)) from None
    blocks = [] if index is None else index.blocks
    records = sum(n for block in blocks for n, _ in block.totals.values())
    return Verified(not damage, 1, records, size, damage, notes)


def _kept(path: Path, identity: Identity | None) -> list[int]:
    """Return the numbers of the segments whose records are still in the log.

    DiskFiles of older ones may be there, for a snapshot of the state.
    """
    present = numbers(path)
    oldest = 0 if identity is None else identity.oldest
    return [number for number in present if number >= oldest] or present


def _bad_snapshots(path: Path, identity: Identity) -> list[str]:
    """Return a sentence for each damaged snapshot of the state."""
    bad = []
    for number in snapshot_numbers(path):
        try:
            for _ in read_snapshot(path, number, identity.log, identity.seed):
                pass
        except FileNotFoundError:
            continue  # a daemon at work has deleted it
        except CorruptSegment:
            bad.append(f"{snapshot_path(path, number)}: this snapshot of the state is damaged")
    return bad


def _gone(path: Path, identity: Identity | None, present: list[int]) -> list[str]:
    """Return a sentence for each range of segments that is missing at either end."""
    now = load_identity(path)  # a daemon at work notes what it deletes before it does
    if identity is None or now is None:
        return []
    gone = []
    last = present[-1] if present else max(0, now.oldest - 1)
    if present and 0 < now.oldest < present[0]:
        gone.append(f"{path}: the segments from {now.oldest} to {present[0] - 1} are gone")
    if last < identity.number:
        gone.append(f"{path}: the segments from {last + 1} to {identity.number} are gone")
    return gone


def _counts(path: Path, present: list[int], number: int) -> int:
    """Return the valid size of a segment, as recorded in the next one."""
    size = segment_path(path, number).stat().st_size
    after = present[present.index(number) + 1]
    try:
        own, _ = read_head(segment_path(path, number))
        head, _ = read_head(segment_path(path, after))
    except CorruptSegment:
        return size
    noted = head.previous_size if head.previous == number and not own.salvaged else 0
    return noted or size


def _checked(file: Path, counts: int | None, damage: list[str], notes: list[str]) -> Index | None:
    """Read what counts of a segment (None: the last one, all of it) and add what is wrong with it.

    Returns:
        What is readable up to there; None where it does not open.
    """
    try:
        head, _ = read_head(file)
    except CorruptSegment:
        damage.append(f"{file}: it does not open as a segment")
        return None
    try:
        size = file.stat().st_size
        if counts is not None and size < counts:
            raise CorruptSegment(file, size)
        if counts is None:
            return scan(file, head, size, None)[0]
        return scan_sealed(file, head, counts, sure=counts < size or not head.salvaged)[0]
    except CorruptSegment as found:
        if counts is None:
            _judge_end(file, head, found.at, damage, notes)
        else:
            good = good_frames(file, head.seed, found.at)
            damage.append(f"{file}: damaged at byte {found.at}; {len(good)} good frames follow")
        return _partly(file, head)


def _judge_end(file: Path, head: SegmentHead, at: int, damage: list[str], notes: list[str]) -> None:
    """Add what is wrong, or worth knowing, at the first place of the last segment without a frame.

    A daemon may be at work on it: what was found there while later frames were not written yet is
    looked at again once they are.
    """
    for _ in range(_LOOKS):
        good = good_frames(file, head.seed, at)
        if good and good[0].at == at:
            return  # written meanwhile
        if not any(frame.synced > at for frame in good):
            end = ends_at(file, at)
            if end > at:
                notes.append(f"{file}: a write broke off, or is under way, at byte {at}")
            else:
                notes.append(f"{file}: from byte {at} on zeros, made ready for more")
            return
    damage.append(f"{file}: damaged at byte {at}; {len(good)} good frames follow")


def _partly(file: Path, head: SegmentHead) -> Index:
    """Return the index of a segment up to its first bad frame."""
    try:
        return scan(file, head, file.stat().st_size, None)[0]
    except CorruptSegment as damage:
        return scan(file, head, damage.at, None)[0]
