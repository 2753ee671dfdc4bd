"""What a log begins with: what was found in its folder, or what a new one is made of."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from linkd.log.engine import Told
from linkd.log.identity import Identity, save_identity
from linkd.log.ids import Ids
from linkd.log.index import Index
from linkd.log.ledger import new_token
from linkd.log.logclock import LogClock, load_note, save_note
from linkd.log.recover import Found, recover
from linkd.log.seal import bytes_beside, load_ids
from linkd.log.settings import Edges, SegmentSettings
from linkd.log.shelf import Shelf
from linkd.log.snapshot import Base, write_at_start
from linkd.log.state import Snapshot, State

MOST_FOLDED = 3
"""A start that has folded more segments writes a snapshot."""


class Beginning(msgspec.Struct, frozen=True):
    """What a log begins with.

    Attributes:
        identity: Who it is, on disk.
        state: As of its last frame.
        shelf: Its segments.
        ids: What was published within the window.
        first: Its oldest offset; what the next epoch begins with where it is empty.
        first_of_epoch: What the next epoch begins with.
        clock: The log's, which goes on from where it was.
        carried: What the newest snapshot carries beside the state; None in a new log.
        bases: Where the state can be read, oldest first.
        held: Segments that are dropped, and whose files are still there.
        goes_on: The last segment is of the newest format: it can be added to.
        told: What the operator must hear of.
    """

    identity: Identity
    state: State
    shelf: Shelf
    ids: Ids
    first: int
    first_of_epoch: int
    clock: LogClock
    carried: Snapshot | None
    bases: Sequence[Base]
    held: Sequence[Index]
    goes_on: bool
    told: Sequence[Told]


def begin(folder: Path, settings: SegmentSettings, edges: Edges) -> Beginning:
    """Find the log in `folder`, or make a new one.

    Raises:
        LogDamaged: A file can't be read or mended; the message says what to do.
        StateTooNew: It was written by a newer linkd.
        OSError: The disk refuses.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # a million entries come and none goes: looking through them finds nothing
    try:
        return _begin(folder, settings, edges)
    finally:
        if was_enabled:
            gc.enable()


def _begin(folder: Path, settings: SegmentSettings, edges: Edges) -> Beginning:
    """Find the log, or make one, and what belongs to it."""
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
    shelf = Shelf(folder, identity.seed, found.segments)
    for segment in (*found.held, *found.segments):
        shelf.note_beside(segment.number, bytes_beside(folder, segment.number))
    return Beginning(
        identity,
        state,
        shelf,
        _ids(folder, settings, found, identity.seed, clock),
        found.segments[0].first if found.segments else first_of_epoch,
        first_of_epoch,
        clock,
        found.carried,
        found.bases,
        found.held,
        found.goes_on,
        found.told if clock.told is None else [*found.told, clock.told],
    )


def _catch_up(folder: Path, edges: Edges, found: Found) -> None:
    """Write a snapshot where so many segments had to be folded that the next start would last.

    A daemon that is restarted again and again under load never comes to the end of one. The next
    segment begins behind it. That of format 1 is written as well: its segments are folded once.
    """
    if found.state is None or found.identity is None or found.carried is None or not found.segments:
        return
    newest, last = found.bases[-1], found.segments[-1]
    behind = [one.size for one in (*found.held, *found.segments) if one.number >= newest.number]
    few = len(behind) <= MOST_FOLDED or not newest.is_outgrown(sum(behind))
    if few and not found.upgrades:
        return
    with suppress(OSError):
        seed, number = found.identity.seed, last.number + 1
        base = write_at_start(edges.files, folder, number, seed, found.state, found.carried)
        found.bases = [newest, base]
        found.goes_on = False


def _ids(folder: Path, settings: SegmentSettings, found: Found, seed: int, clock: LogClock) -> Ids:
    """Return the ids of the segments that the window still reaches."""
    ids = Ids(settings.id_window, settings.max_ids, clock.ago)
    before = clock.ago(clock.now(), settings.id_window)
    for segment in found.segments:
        if segment.has_ids and segment.stamp >= before:
            load_ids(folder, segment, seed, ids)
    return ids
