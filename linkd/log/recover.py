"""Finding a log again: its segments, its state from the last snapshot on.

And where its last write broke off.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec

from linkd.errors import LogDamaged
from linkd.log.damage import JUMP, Ward
from linkd.log.engine import Told
from linkd.log.files import Files
from linkd.log.frame import Frame
from linkd.log.identity import Identity, load_identity, save_identity
from linkd.log.index import Index, SegmentHead, segment_path
from linkd.log.lock import not_ours
from linkd.log.reader import Damage
from linkd.log.salvage import good_frames
from linkd.log.scan import ends_at, numbers, read_head, scan, scan_sealed
from linkd.log.seal import load_index, seal
from linkd.log.state import Snapshot, State, decode_snapshot
from linkd.log.untold import Untold
from linkd.log.writer import FILL_BYTES

_MOST_REPAIRS = 10_000

Heads = dict[int, tuple[SegmentHead, Frame]]


class Found(msgspec.Struct):
    """A log as it was found.

    Attributes:
        identity: Who it is; None where there is no log yet.
        state: As of its last frame.
        snapshot: What the last segment opens with; None where there is none.
        segments: Oldest first.
        stamp: The log's clock at the last frame.
        wall: Unix seconds then; None where there is none.
        told: What the operator must hear of.
    """

    identity: Identity | None
    state: State | None = None
    snapshot: Snapshot | None = None
    segments: list[Index] = msgspec.field(default_factory=list)
    stamp: float = 0.0
    wall: float | None = None
    told: list[Told] = msgspec.field(default_factory=list)


def recover(folder: Path, files: Files, wall: Callable[[], float]) -> Found:
    """Find the log in `folder`, heal the end of its last segment, and mend what is damaged.

    Raises:
        LogDamaged: A file can't be read or mended; the message says what to do.
        StateTooNew: It was written by a newer linkd.
    """
    try:
        identity = load_identity(folder) or _guess(folder)
        if identity is None:
            return Found(None)
        ward = Ward(folder, files, identity, wall)
        ward.told += Untold(files, folder).told()
        for _ in range(_MOST_REPAIRS):
            try:
                found = _find(folder, files, ward)
            except Damage as damage:
                ward.mend(damage)
            else:
                return _settled(folder, files, ward, found)
    except OSError as error:
        raise LogDamaged(not_ours(error, folder)) from None
    raise LogDamaged(f"{folder} could not be mended: move it away, and start with an empty log")


def _guess(folder: Path) -> Identity | None:
    """Return who the log is by its segments, where its own file says nothing."""
    votes: dict[tuple[str, int], int] = {}
    for number in numbers(folder):
        try:
            head, _ = read_head(segment_path(folder, number))
        except Damage:
            continue
        votes[head.log, head.seed] = votes.get((head.log, head.seed), 0) + 1
    if not votes:
        return None
    log, seed = max(votes, key=lambda key: votes[key])
    return Identity(log, seed, 0, 1)


def _find(folder: Path, files: Files, ward: Ward) -> Found:
    """Read all segments' heads and indexes, and the last one whole.

    Raises:
        Damage: Something must be mended first.
    """
    identity = ward.identity
    found = Found(identity, told=ward.told)
    heads = _heads(folder, files, ward)
    if not heads:
        return found
    order = sorted(heads)
    if 0 < identity.oldest < order[0]:
        ward.missing(identity.oldest - 1, order[0], identity.first, heads[order[0]][0].first)
    for number, after in pairwise(order):
        head, path = heads[number][0], segment_path(folder, number)
        size = path.stat().st_size
        counts = heads[after][0].previous_size  # 0 where a mended head no longer knows
        sure = counts > 0 and not head.salvaged and heads[after][0].previous == number
        if sure:
            if size < counts:
                raise Damage(path, size)
            size = counts
        index = load_index(folder, number, identity.log)
        if index is None or index.size != size:
            index, _ = scan_sealed(path, head, size, sure)
            seal(files, folder, index, ())  # the next start need not read it again
        found.segments.append(index)
        if heads[after][0].previous != number:
            ward.missing(number, after, index.next, heads[after][0].first)
    _last(folder, files, ward, heads[order[-1]], found)
    return found


def _heads(folder: Path, files: Files, ward: Ward) -> Heads:
    """Return what opens each segment.

    Raises:
        Damage: One has no head, or that of another.
    """
    ward.take_back_renamed()
    heads: Heads = {}
    present = numbers(folder)
    for number in present:
        path = segment_path(folder, number)
        try:
            head, frame = read_head(path)
        except Damage:
            begun = (
                number <= ward.identity.number
            )  # it was on disk: no write that a crash broke off
            if begun or number < present[-1] or good_frames(path, ward.identity.seed):
                raise
            files.unlink(path)
            continue
        if head.log != ward.identity.log or head.number != number:
            raise Damage(path, 0, foreign=True)
        heads[number] = (head, frame)
    return heads


def _last(
    folder: Path, files: Files, ward: Ward, opened: tuple[SegmentHead, Frame], found: Found
) -> None:
    """Fold the last segment, and cut what a crash left at its end."""
    head, frame = opened
    path = segment_path(folder, head.number)
    found.snapshot = decode_snapshot(frame.records, head.format)
    state = State.restored(found.snapshot)
    size = path.stat().st_size
    try:
        index, last = scan(path, head, size, state)
    except Damage as damage:
        at = damage.at
        if any(good.synced > at for good in good_frames(path, head.seed, at)):
            raise
        state = State.restored(found.snapshot)
        index, last = scan(path, head, at, state)
    torn = max(ends_at(path, index.size), size - 2 * FILL_BYTES) - index.size
    fd = files.open(path)
    try:
        if index.size < size:
            files.truncate(fd, index.size)
        files.sync(fd)  # what the page cache alone may have counts from here on
    finally:
        files.close(fd)
    if torn > 0:
        ward.told.append(
            Told(
                "warn",
                "log.repaired",
                f"{path}: the last {torn} bytes were a write that a crash broke off"
                f" and were cut; the next offset is {state.next}",
            )
        )
    elif index.size < size:
        ward.told.append(
            Told(
                "info",
                "log.unclosed",
                f"{path}: linkd was killed, or the machine went down; the {size - index.size} zeros"
                f" that were made ready for more were cut; the next offset is {state.next}",
            )
        )
    state.undo = []
    found.state, found.stamp, found.wall = state, last.stamp, last.wall
    found.segments.append(index)


def _settled(folder: Path, files: Files, ward: Ward, found: Found) -> Found:
    """Note durably from where on offsets may be given out; return what was found."""
    identity = ward.identity
    last = found.segments[-1].number if found.segments else 0
    known = max(identity.next, found.state.next if found.state is not None else 1)
    if last < identity.number:
        ward.missing(last, identity.number + 1, found.state.next if found.state else 1, None)
    first = known + JUMP if ward.jump else identity.next
    oldest = found.segments[0] if found.segments else None
    found.identity = Identity(
        identity.log,
        identity.seed,
        last,
        first,
        oldest.number if oldest else 0,
        oldest.first if oldest else first,
    )
    if found.state is None:
        found.state = State(identity.log)
    if found.identity != load_identity(folder):
        save_identity(files, folder, found.identity)
    return found
