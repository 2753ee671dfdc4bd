"""Open a log: recover segments and state after a crash, or create a new log."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import msgspec

from linkd.config.settings import LogSettings
from linkd.errors import LogDamaged
from linkd.log.base import new_token
from linkd.log.files import DiskFiles, Environment, explain_os_error
from linkd.log.interface import OperatorNotice
from linkd.log.logclock import LogClock, load_note, save_note
from linkd.log.reader import CorruptSegment
from linkd.log.repair import OFFSET_SKIP, PendingLossReports, SegmentRepairer
from linkd.log.segment import (
    CARRYING,
    FORMAT,
    Identity,
    Index,
    SegmentHead,
    bytes_beside,
    ends_at,
    good_frames,
    load_identity,
    load_ids,
    load_index,
    numbers,
    read_head,
    save_identity,
    scan_sealed,
    scan_to,
    seal,
    segment_path,
)
from linkd.log.segment_set import SegmentSet
from linkd.log.snapshot import (
    Base,
    fold_segments,
    read_state,
    snapshot_numbers,
    snapshot_path,
    turn,
    write_at_start,
)
from linkd.log.state import RecentIds, Snapshot, State
from linkd.log.writer import FILL_BYTES

_MOST_REPAIRS = 10_000

UPGRADE_BYTES = 2 << 30
"""The most of format 1 that is read again when a newer linkd first starts: about 10 s."""


class Found(msgspec.Struct):
    """A log as recovered from its folder.

    Attributes:
        identity: Its identity; None if there is no log yet.
        state: The state after its last frame.
        carried: The cursors in the newest snapshot, beside the state; None without a segment.
        bases: The places from which the state can be read, oldest first.
        segments: Its segments, oldest first.
        held: Older segments that are deleted from the log while their files are still needed.
        goes_on: The last segment has the newest format: the writer may append to it.
        upgrades: The newest snapshot is in the head of a segment of format 1.
        stamp: The log's clock at the last frame.
        wall: Unix seconds then; None if there is no frame.
        notices: For the operator.
    """

    identity: Identity | None
    state: State | None = None
    carried: Snapshot | None = None
    bases: list[Base] = msgspec.field(default_factory=list)
    segments: list[Index] = msgspec.field(default_factory=list)
    held: list[Index] = msgspec.field(default_factory=list)
    goes_on: bool = False
    upgrades: bool = False
    stamp: float = 0.0
    wall: float | None = None
    notices: list[OperatorNotice] = msgspec.field(default_factory=list)


def recover(folder: Path, files: DiskFiles, wall: Callable[[], float]) -> Found:
    """Recover the log in `folder`: cut a torn end off its last segment, repair damaged ones.

    Raises:
        LogDamaged: A file can't be read or repaired; the message says what to do.
        StateTooNew: It was written by a newer linkd.
    """
    try:
        identity = load_identity(folder) or _guess(folder)
        if identity is None:
            return Found(None)
        repairer = SegmentRepairer(folder, files, identity, wall)
        repairer.notices += PendingLossReports(files, folder).notices()
        for _ in range(_MOST_REPAIRS):
            try:
                found = _find(folder, files, repairer)
            except CorruptSegment as damage:
                # Start over after each repair: a rebuilt segment changes what its neighbours imply.
                repairer.repair(damage)
            else:
                return _persist_identity(folder, files, repairer, found)
    except OSError as error:
        raise LogDamaged(explain_os_error(error, folder)) from None
    raise LogDamaged(f"{folder} could not be repaired: move it away, and start with an empty log")


def _guess(folder: Path) -> Identity | None:
    """Return the identity that most segments name, for a log whose own file is unreadable."""
    votes: dict[tuple[str, int], int] = {}
    for number in numbers(folder):
        try:
            head, _ = read_head(segment_path(folder, number))
        except CorruptSegment:
            continue
        votes[head.log, head.seed] = votes.get((head.log, head.seed), 0) + 1
    if not votes:
        return None
    log, seed = max(votes, key=lambda key: votes[key])
    return Identity(log, seed, 0, 1)


def _find(folder: Path, files: DiskFiles, repairer: SegmentRepairer) -> Found:
    """Read all segments' heads and indexes, and the last segment in full.

    Raises:
        CorruptSegment: A segment must be repaired first.
    """
    identity = repairer.identity
    found = Found(identity, notices=repairer.notices)
    heads = _read_headers(folder, files, repairer)
    order = sorted(heads)
    if not order:
        _state(folder, files, repairer, heads, found)
        return found
    kept = [number for number in order if number >= identity.oldest] or order
    if 0 < identity.oldest < kept[0]:
        repairer.missing(identity.oldest - 1, kept[0], identity.first, heads[kept[0]].first)
    state = _state(folder, files, repairer, heads, found)
    behind, end = list[tuple[SegmentHead, int]](), state.next
    for number, after in pairwise(order):
        head = heads[number]
        index = _sealed(folder, files, head, heads[after])
        if number >= found.bases[-1].number:
            behind.append((head, index.size))
            end = max(end, index.next)
        (found.segments if number >= kept[0] else found.held).append(index)
        if number >= kept[0] and heads[after].previous != number:
            repairer.missing(number, after, index.next, heads[after].first)
    for _ in fold_segments(folder, behind, state):
        pass
    state.next = max(state.next, end)
    turn(state, heads[order[-1]].format)
    _recover_tail(folder, files, repairer, heads[order[-1]], state, found)
    turn(state, FORMAT)
    return found


def _sealed(folder: Path, files: DiskFiles, head: SegmentHead, after: SegmentHead) -> Index:
    """Return the index of a sealed segment; `after` is the head of the next one.

    Raises:
        CorruptSegment: It must be repaired first.
    """
    path = segment_path(folder, head.number)
    size = path.stat().st_size
    # The next head, written after this segment was synced, names its size: a shorter file has lost
    # bytes, a longer one has only preallocated zeros behind it. 0: a repaired head doesn't know.
    counts = after.previous_size
    sure = counts > 0 and not head.salvaged and after.previous == head.number
    if sure:
        if size < counts:
            raise CorruptSegment(path, size)
        size = counts
    index = load_index(folder, head.number, head.log)
    if index is None or index.size != size:
        index, _ = scan_sealed(path, head, size, sure)
        seal(files, folder, index, ())  # spares the next start from scanning it
    return index


def _state(
    folder: Path,
    files: DiskFiles,
    repairer: SegmentRepairer,
    heads: dict[int, SegmentHead],
    found: Found,
) -> State:
    """Return the state at the newest readable snapshot, note its place, and delete the others.

    A snapshot ahead of the segments knows records that are gone, and is not used: with its cursors
    peers would not send those records again.
    """
    log, seed = repairer.identity.log, repairer.identity.seed
    bases = _bases(folder, files, heads)
    state, carried = State(log), Snapshot()
    while bases:
        try:
            state, carried, weight = read_state(folder, bases[-1], log, seed, _no_pause)
            bases[-1] = msgspec.structs.replace(bases[-1], weight=weight)
            break
        except CorruptSegment:
            bad = bases.pop()
            path_of = segment_path if bad.size is None else snapshot_path
            repairer.unreadable(path_of(folder, bad.number))
    for base in bases[:-2]:
        if base.size is not None:
            files.unlink(snapshot_path(folder, base.number))
    if not heads:
        return state
    if bases and bases[-1].size is None:
        state, bases = _older_state(folder, repairer, heads, state, bases)
        found.upgrades = True
    first = heads[min(heads)]
    if not bases:
        state.next = first.first
        if first.previous:
            repairer.state_lost()
    found.carried = carried
    found.bases = bases[-2:]
    if len(bases) < 2 and (not bases or bases[0].number > first.number):
        found.bases.insert(0, Base(first.number))
    return state


def _older_state(
    folder: Path,
    repairer: SegmentRepairer,
    heads: dict[int, SegmentHead],
    state: State,
    bases: list[Base],
) -> tuple[State, list[Base]]:
    """Return the state at the oldest segment of format 1, and its place.

    A head of format 1 has the highest offset of each channel only; reading the frames gives every
    offset. If they are too many to read at a start, the state of the newest head is used.
    """
    identity = repairer.identity
    for base in bases[:-1]:
        behind = [segment_path(folder, number) for number in heads if number >= base.number]
        if sum(path.stat().st_size for path in behind) <= UPGRADE_BYTES:
            with suppress(CorruptSegment):
                older, _, _ = read_state(folder, base, identity.log, identity.seed, _no_pause)
                return older, [base]
    return state, bases


def _bases(folder: Path, files: DiskFiles, heads: dict[int, SegmentHead]) -> list[Base]:
    """Return the places from which the state can be read, oldest first; delete unusable files."""
    bases = [Base(number) for number, head in heads.items() if head.format <= CARRYING]
    for part in list(folder.iterdir()):
        if part.name.endswith(".state.part"):
            files.unlink(part)
    for number in snapshot_numbers(folder):
        path = snapshot_path(folder, number)
        if heads and number <= max(heads) + 1:
            bases.append(Base(number, path.stat().st_size))
        else:
            files.unlink(path)
    return sorted(bases, key=_number)


def _number(base: Base) -> int:
    return base.number


def _no_pause() -> None:
    """Do nothing: the reactor does not run yet, so a start need not yield to it."""


def _read_headers(
    folder: Path, files: DiskFiles, repairer: SegmentRepairer
) -> dict[int, SegmentHead]:
    """Return the head of each segment.

    Raises:
        CorruptSegment: A segment has no head, or that of another log.
    """
    repairer.take_back_renamed()
    heads: dict[int, SegmentHead] = {}
    present = numbers(folder)
    for number in present:
        path = segment_path(folder, number)
        try:
            head, _ = read_head(path)
        except CorruptSegment:
            # The identity names segments only once they are on disk. A last file beyond it, without
            # one intact frame, is a creation that a crash cut off: nothing in it was acknowledged.
            begun = number <= repairer.identity.number
            if begun or number < present[-1] or good_frames(path, repairer.identity.seed):
                raise
            files.unlink(path)
            continue
        if head.log != repairer.identity.log or head.number != number:
            raise CorruptSegment(path, 0, foreign=True)
        heads[number] = head
    return heads


def _recover_tail(
    folder: Path,
    files: DiskFiles,
    repairer: SegmentRepairer,
    head: SegmentHead,
    state: State,
    found: Found,
) -> None:
    """Apply the last segment to the state, and cut off what a crash left at its end.

    A torn write and damage look alike at the first bad frame. Each frame carries how much of the
    file was synced when it was written (`synced`): a later intact frame with `synced` beyond the
    bad one proves that the bad one had been on disk, so it is damage. Otherwise it was never
    synced, nor acknowledged.
    """
    path = segment_path(folder, head.number)
    size = path.stat().st_size
    index, last, damage = scan_to(path, head, size, state)
    if last is None or (
        damage is not None
        and any(good.synced > damage.at for good in good_frames(path, head.seed, damage.at))
    ):
        raise damage or CorruptSegment(path, 0)
    torn = max(ends_at(path, index.size), size - 2 * FILL_BYTES) - index.size
    fd = files.open(path)
    try:
        if index.size < size:
            files.truncate(fd, index.size)
        # A killed daemon may have left frames in the page cache alone. They count from here on, so
        # they must survive a power cut too.
        files.sync(fd)
    finally:
        files.close(fd)
    if torn > 0:
        repairer.notices.append(
            OperatorNotice(
                "warn",
                "log.repaired",
                f"{path}: the last {torn} bytes were a write that a crash cut"
                f" short and were removed; the next offset is {state.next}",
            )
        )
    elif index.size < size:
        repairer.notices.append(
            OperatorNotice(
                "info",
                "log.unclean-shutdown",
                f"{path}: linkd was killed, or the machine went down; the {size - index.size}"
                f" preallocated zeros were removed; the next offset is {state.next}",
            )
        )
    found.state, found.stamp, found.wall = state, last.stamp, last.wall
    found.goes_on = head.format == FORMAT
    found.segments.append(index)


def _persist_identity(
    folder: Path, files: DiskFiles, repairer: SegmentRepairer, found: Found
) -> Found:
    """Store durably from which offset on appends may go; return the recovered log.

    After a lost tail the log skips OFFSET_SKIP offsets: peers may hold the lost records, and no
    offset may ever name two records.
    """
    identity = repairer.identity
    last = found.segments[-1].number if found.segments else 0
    known = max(identity.next, found.state.next if found.state is not None else 1)
    if last < identity.number:
        repairer.missing(last, identity.number + 1, found.state.next if found.state else 1, None)
    first = known + OFFSET_SKIP if repairer.jump else identity.next
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


MOST_FOLDED = 6
"""A start that applied more segments than this to a snapshot writes a new one."""


class RecoveredLog(msgspec.Struct, frozen=True):
    """All that `DiskLog` starts from.

    Attributes:
        identity: The log's identity, on disk.
        state: The state after its last frame.
        segment_set: Its segments.
        ids: The ids published within `log.id_window`.
        first: Its oldest offset; in an empty log the next epoch's first.
        first_of_epoch: The first offset of the next epoch.
        clock: The log's clock, resumed.
        carried: The cursors in the newest snapshot, beside the state; None in a new log.
        bases: The places from which the state can be read, oldest first.
        held: Segments that are deleted from the log while their files are still needed.
        goes_on: The last segment has the newest format: the writer may append to it.
        notices: For the operator.
    """

    identity: Identity
    state: State
    segment_set: SegmentSet
    ids: RecentIds
    first: int
    first_of_epoch: int
    clock: LogClock
    carried: Snapshot | None
    bases: Sequence[Base]
    held: Sequence[Index]
    goes_on: bool
    notices: Sequence[OperatorNotice]


def begin(folder: Path, settings: LogSettings, edges: Environment) -> RecoveredLog:
    """Recover the log in `folder`, or create one.

    Raises:
        LogDamaged: A file can't be read or repaired; the message says what to do.
        StateTooNew: It was written by a newer linkd.
        OSError: The disk refuses.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # a million objects are made and none is freed: collecting finds nothing
    try:
        return _begin(folder, settings, edges)
    finally:
        if was_enabled:
            gc.enable()


def _begin(folder: Path, settings: LogSettings, edges: Environment) -> RecoveredLog:
    found = recover(folder, edges.files, edges.wall)
    identity = found.identity
    if identity is None:
        identity = Identity(new_token(edges.rng), edges.rng.getrandbits(32), 0, 1)
        save_identity(edges.files, folder, identity)
    state = found.state or State(identity.log)
    _catch_up(folder, edges, found)
    first_of_epoch = max(state.next, identity.next)
    clock = LogClock(edges.monotonic, edges.wall, edges.synchronised, edges.boot)
    clock.resume(found.stamp, found.wall, load_note(folder))
    save_note(edges.files, folder, clock.note())
    segment_set = SegmentSet(folder, identity.seed, found.segments)
    for segment in (*found.held, *found.segments):
        segment_set.note_beside(segment.number, bytes_beside(folder, segment.number))
    return RecoveredLog(
        identity,
        state,
        segment_set,
        _ids(folder, settings, found, identity.seed, clock),
        found.segments[0].first if found.segments else first_of_epoch,
        first_of_epoch,
        clock,
        found.carried,
        found.bases,
        found.held,
        found.goes_on,
        found.notices if clock.notices is None else [*found.notices, clock.notices],
    )


def _catch_up(folder: Path, edges: Environment, found: Found) -> None:
    """Write a snapshot if so many segments had to be applied that the next start would be slow.

    A daemon that restarts again and again under load never finishes one while it runs. The next
    segment begins after it. After an upgrade it is always written: format 1 is read only once.
    """
    if found.state is None or found.identity is None or found.carried is None or not found.segments:
        return
    newest, last = found.bases[-1], found.segments[-1]
    if newest.number > last.number:  # the last start was ended before its first commit
        found.goes_on = False
        return
    behind = [one.size for one in (*found.held, *found.segments) if one.number >= newest.number]
    few = len(behind) <= MOST_FOLDED or not newest.is_outgrown(sum(behind))
    if (few and not found.upgrades) or edges.files.is_shared:
        return
    with suppress(OSError):
        seed, number = found.identity.seed, last.number + 1
        base = write_at_start(edges.files, folder, number, seed, found.state, found.carried)
        found.bases = [newest, base]
        found.goes_on = False


def _ids(
    folder: Path, settings: LogSettings, found: Found, seed: int, clock: LogClock
) -> RecentIds:
    """Return the ids of the segments that the window still reaches."""
    ids = RecentIds(settings.id_window, settings.max_ids, clock.ago)
    before = clock.ago(clock.now(), settings.id_window)
    for segment in found.segments:
        if segment.has_ids and segment.stamp >= before:
            load_ids(folder, segment, seed, ids)
    return ids
