"""A log in PostgreSQL that several instances of a node write and follow.

Each instance folds all of the log into its own state. What another one wrote first takes back what
is under way here; that is built again behind it. So every decision (offsets, repeats, what of a
received batch is new) is made with all of the log before it known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import EPERM
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from psycopg import sql

from linkd.config.settings import ClusterSettings, LogSettings, PostgresqlSettings
from linkd.errors import OutOfStep, PeerMoved
from linkd.log.base import new_token
from linkd.log.commit import CommitBuilder, CommitGroup, PendingItem, Post, ReceivedBatch, ignore
from linkd.log.disk_log import SNAPSHOT_RETRY_SECONDS
from linkd.log.files import Environment
from linkd.log.frame import (
    BATCH,
    CHANGES,
    HAS_IDS,
    HEAD,
    Frame,
    NewFrame,
    PendingFrame,
    batch_of,
    change_of,
    encode_frame,
    frame_at,
)
from linkd.log.interface import OnDurable, OperatorNotice
from linkd.log.postgresql.files import PostgresqlFiles
from linkd.log.postgresql.log import PostgresqlLog
from linkd.log.postgresql.shared_database import (
    Follower,
    Kept,
    KeptRow,
    Overtaken,
    Place,
    Reincarnated,
    Row,
    SharedDatabase,
    SharedFiles,
    segment_name,
)
from linkd.log.reader import CorruptSegment
from linkd.log.segment import Index, SegmentHead, add_ids, segment_path, whole_of
from linkd.log.snapshot import Base, snapshot_numbers, snapshot_path
from linkd.log.state import (
    Change,
    CursorSet,
    EpochOpened,
    PeerHeld,
    State,
    moved,
)
from linkd.log.writer import WriteFailed, WriteJob, Writer
from linkd.protocol.records import Batch, NewRecords


class _Epochs(dict[str, object]):
    """Restores a state's epochs where an undo sets an item.

    Args:
        state: The state.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state

    def __setitem__(self, key: str, saved: Any) -> None:
        self._state.restore_epochs(saved)


class SharedBuilder(CommitBuilder):
    """Builds commit groups that may have to be taken back, also those with a new epoch."""

    __slots__ = ()

    def _change(self, item: Change, settled: OnDurable) -> None:
        state = self._state
        if isinstance(item, EpochOpened):
            state.undo.append((_Epochs(state), "", state.saved_epochs()))
        elif isinstance(item, PeerHeld):
            known = state.holders.get(item.peer)
            if known is not None and known.boot == item.boot and known.counter > item.counter:
                error = PeerMoved(f"{item.peer} has a newer connection, to {known.holder}")
                self._group.outcomes.append((settled, error))
                return
        super()._change(item, settled)


class SharedWriter(Writer):
    """Writes jobs in order, behind what other instances have written."""

    def _write(self, jobs: list[WriteJob]) -> int:
        if jobs[0].continues is not None and jobs[0].creates is None:
            self._path = jobs[0].continues
            self._fd = self._files.open(self._path)
            self._size = self._filled = self._uncached = jobs[0].at
        return super()._write(jobs)

    def _create(self, path: Path) -> None:
        self._size = self._filled = self._uncached = 0
        self._fd, self._path = self._files.open(path, create=True), path

    def _put_back(self) -> bool:
        return True


class SharedLog(PostgresqlLog):
    """A log in the database of `log.postgresql`, one of whose instances this is.

    Args:
        node: The node's name.
        settings: Its bounds, and where the database is.
        cluster: This instance.
        post: Brings a call into the thread in which all methods are called.
        edges: What it touches of the world, but for the disk.

    Attributes:
        on_values: Called with small values that an instance has changed.

    Raises:
        LogDamaged: Another daemon has it for itself, or is this instance, or it can't be read.
        StateTooNew: It was written by a newer linkd.
        Unavailable: The database can't be reached.
    """

    database: SharedDatabase
    _make_writer = SharedWriter

    def __init__(
        self,
        node: str,
        settings: LogSettings,
        cluster: ClusterSettings,
        post: Post,
        edges: Environment | None = None,
    ) -> None:
        self._cluster = cluster
        self._post = post
        self.on_values: list[Callable[[list[KeptRow]], None]] = []
        self._must_roll = False  # a snapshot begins with the next segment
        super().__init__(node, settings, post, edges)

    def _make_files(self, settings: PostgresqlSettings, node: str) -> PostgresqlFiles:
        self.database = SharedDatabase(settings, node, self._cluster.instance)
        self._shared = SharedFiles(self.database)
        return self._shared

    def _start_epoch(self, rng: Random, first: int) -> None:
        """Begin to follow; open an epoch if the server was started since the newest one."""
        self._rng = rng
        self._must_roll = self._writing is None and self._segment_set.last is not None
        self.is_keeper = False
        self._builder = SharedBuilder(self.node, self.state, self._ids)
        self._reads.forbid_repair("it is damaged in the database: restore that from a backup")
        place = self._place()
        if place.file is not None:
            place = self.database.run(partial(_last_row, place))
        self.database.started(place)
        self._follower = Follower(
            self._shared, self._post, self._follow, self._take_kept, self._values_changed
        )
        self._follower.start(place)
        self._require_epoch()

    def _place(self) -> Place:
        """Return where the log ends, as committed."""
        last = self._segment_set.last
        if last is None:
            return Place()
        return Place(last.number, self._shared.find(segment_name(last.number)), last.size)

    # what is written here

    @staticmethod
    def _encode(piece: PendingFrame) -> NewFrame:
        """Return the frame of a piece; snapshots need all of them, for the last of each channel."""
        kind, flags, head, records = encode_frame(piece)
        return kind, flags | CHANGES, head, records

    def store(self, batch: Batch, settled: OnDurable) -> None:
        """Append a received batch, if its peer is held here."""
        source = batch.source
        assert source is not None
        if not self.holds(source.peer):
            place = self._committed_places.get(source.peer)
            at = 1 if place is None else place[1][-1].next
            settled(OutOfStep(at, source.previous, source.next))
        else:
            super().store(batch, settled)

    def holds(self, peer: str) -> bool:
        """Return whether a peer is held here."""
        holder = self.state.holders.get(peer)
        return holder is not None and holder.holder == self.database.run_id

    def hold(self, peer: str, boot: str, counter: int, settled: OnDurable) -> None:
        """Take a peer over, whose connection of that generation is here."""
        self._queue(PeerHeld(peer, self.database.run_id, boot, counter), settled)

    def _require_epoch(self) -> None:
        """Open an epoch if the server was started since the newest one."""
        database = self.database
        if database.opened == database.incarnation or database.opens or self._under_way:
            return
        database.opens = True
        epoch = EpochOpened(new_token(self._rng), self.state.next, shared=True)
        self._waiting.insert(0, (epoch, ignore))
        self._pump()

    def look(self) -> None:
        """Look whether the database answers, and whether it was started again."""
        super().look()
        self._follower.watch(self._engine_timeout)
        if not self._is_lost:
            self._require_epoch()

    def refresh(self, done: Callable[[], None]) -> None:
        """Call `done` once all small values are known that were changed until now."""
        self._follower.refresh(done)

    def wake(self) -> None:
        """Look now for what other instances wrote."""
        self._follower.wake()

    def _committed(self, group: CommitGroup) -> None:
        for piece in group.pieces:
            if isinstance(piece.change, EpochOpened):
                self._note_epoch(piece.change)
        if group.pieces:
            self._must_roll = False
        super()._committed(group)
        self._follower.place = self.database.place
        if group.pieces:
            self._follower.announce()

    def _note_epoch(self, change: EpochOpened) -> None:
        self.epoch = change.epoch
        sentence = (
            f"a new epoch begins at offset {change.first}: the database or all instances were"
            " started again"
        )
        self._notify(OperatorNotice("info", "log.epoch", sentence))
        self._post(self._tell_of_epoch)

    def _tell_of_epoch(self) -> None:
        """Let all links be joined again, behind all that was committed with the epoch."""
        for call in tuple(self.on_epoch):
            call()

    def _roll_back(self, outcome: WriteFailed) -> None:
        if isinstance(outcome.error, Overtaken):
            self._put_behind(outcome.error.rows, outcome.error.incarnation)
        elif isinstance(outcome.error, Reincarnated):
            self._put_behind((), None)
        else:
            super()._roll_back(outcome)

    def _put_behind(self, rows: Sequence[Row], opened: str | None) -> None:
        """Take back what is under way, apply what others wrote, and build ours again behind it."""
        self._era += 1
        self._under_way_bytes = 0
        waiting: list[PendingItem] = []
        for group in reversed(self._under_way):
            self._builder.take_back(group)
        for group in self._under_way:
            waiting += group.waiting
        self._under_way.clear()
        waiting += self._waiting
        database = self.database
        database.opens = False
        self._waiting = [entry for entry in waiting if not isinstance(entry[0], EpochOpened)]
        self._continue(rows, opened)
        if self._closed:
            return
        if database.opened == database.incarnation:
            self._send()  # also without anything to write: that ends our turn
        else:
            self._require_epoch()

    # what others write

    def _follow(self, place: Place, rows: list[Row], opened: str) -> None:
        """Apply what the follower read behind `place`, if the log still ends there."""
        if self._under_way or place is not self._follower.place or self._closed:
            self._follower.place = msgspec.structs.replace(self._follower.place)
            return
        self._continue(rows, opened)
        self._measure()
        self._pump()
        self._raise_mistakes()

    def _continue(self, rows: Sequence[Row], opened: str | None) -> None:
        """Apply what others wrote; what is written next comes behind it."""
        before = self.next
        taken: list[str] = []
        self.state.undo = deque(maxlen=0)
        for row in rows:
            self._apply(row, taken)
        if rows:
            self._must_roll = False
        last = self._segment_set.last
        self._writing = None if self._must_roll else last
        self._at = 0 if last is None else last.size
        self._continues = segment_path(self._folder, 0 if last is None else last.number)
        self.next = self.state.next
        place = rows[-1].place if rows else self.database.place
        self.database.advance(len(rows), place, opened)
        self._follower.place = place
        self._waiting_bytes = self._bytes_waiting()
        for peer in taken:
            self._call(self.on_taken, peer)
        if self.next != before:
            self._call(self.on_commit, self.next)

    def _bytes_waiting(self) -> int:
        size = 0
        for item, _ in self._waiting:
            if isinstance(item, NewRecords):
                size += len(item.records)
            elif isinstance(item, ReceivedBatch):
                size += len(item.batch.records)
        return size

    def _apply(self, row: Row, taken: list[str]) -> None:
        """Apply a commit of another instance."""
        view, inside, stamp = memoryview(row.body), 0, 0.0
        while inside < len(view):
            frame = frame_at(view, inside, row.at, self._seed)
            assert frame is not None, f"{segment_name(row.number)}: no frame at {row.at + inside}"
            self._apply_frame(frame, taken)
            inside, stamp = frame.end - row.at, frame.stamp
        self._segment_set.grow(row.at + len(view), stamp)
        self._clock.follow(stamp)

    def _apply_frame(self, frame: Frame, taken: list[str]) -> None:
        if frame.kind == HEAD:
            head = msgspec.msgpack.decode(frame.head, type=SegmentHead)
            first = head.first
            self._begun(
                Index(head.number, head.log, head.node, first, first, 0, frame.stamp, False, [])
            )
            self._frames = 0
            self._forget(self.state, self.clock())
            return
        self._frames += 1
        self._snapshots.changes.note((frame.kind, frame.flags, frame.head, b""), frame.stamp)
        if frame.kind != BATCH:
            change = change_of(frame.kind, frame.head)
            assert change is not None
            self._apply_change(change, taken)
            return
        segment = self._segment_set.segments[-1]
        batch, opened = batch_of(frame, segment.node, segment.log)
        self.state.replay(opened, frame.stamp, whole_of(opened.publish), opened.counts)
        if batch.source is not None:
            peer = batch.source.peer
            place = moved(self._committed_places.get(peer), batch.source)
            self._places[peer] = self._committed_places[peer] = place
        if batch.count:
            has_ids = bool(frame.flags & HAS_IDS)
            segment.add(batch, len(batch.records), frame.stamp, frame.at, has_ids)
            self._tail.add(batch)
            if has_ids:
                add_ids(self._ids, batch, opened.owner)

    def _apply_change(self, change: Change, taken: list[str]) -> None:
        """Apply a change that another instance made."""
        if isinstance(change, PeerHeld):
            before = self.state.holders.get(change.peer)
            if before is not None and before.holder == self.database.run_id:
                self._release_peer(change.peer)
                taken.append(change.peer)
        self.state.change(change)
        if isinstance(change, EpochOpened):
            self._note_epoch(change)
        elif isinstance(change, CursorSet):
            self._places[change.peer] = self._committed_places[change.peer] = change.place

    def _release_peer(self, peer: str) -> None:
        """Drop what waits of a peer that another instance has taken."""
        kept: list[PendingItem] = []
        for entry in self._waiting:
            item = entry[0]
            source = item.batch.source if isinstance(item, ReceivedBatch) else None
            if source is None or source.peer != peer:
                kept.append(entry)
        self._waiting = kept
        self._hold(peer, -self.held(peer))
        self._places[peer] = self._committed_places.get(peer)

    def _values_changed(self, rows: list[KeptRow]) -> None:
        for call in tuple(self.on_values):
            call(rows)

    # the keeper

    def _take_kept(self, kept: Kept) -> None:
        """Note what the keeper deleted; become the keeper, or cease to be."""
        if self._closed:
            return
        before, self.database.fence = self.database.fence, kept.fence
        if kept.fence and kept.fence != before:
            self._roller.note_again()  # an instance that started had the files meanwhile
        self._retention.trim_to = max(self._retention.trim_to, kept.trim_to)
        identity = kept.identity
        if not kept.fence and identity is not None:
            self._drop_before(identity.oldest)
        if bool(kept.fence) != self.is_keeper:
            self.is_keeper = bool(kept.fence)
            if self.is_keeper:
                self._reader.work(self._find_bases)
        if not self.is_keeper:
            super().make_room()
        self._raise_mistakes()

    def _drop_before(self, number: int) -> None:
        """Take off the segments that the keeper has deleted."""
        gone = sum(segment.number < number for segment in self._segment_set.segments[:-1])
        if gone:
            self._roller.forget(gone)
            self._near_limit = False
            self.first = self._segment_set.segments[0].first
            self._tail.forget(self.first)
            self._call(self.on_trim, self.first)

    def _find_bases(self) -> None:
        """Find the snapshots that the last keeper left; runs in the reader's thread."""
        folder, bases = self._folder, list[Base]()
        with suppress(OSError):  # without them the next snapshot is made from older ones
            for number in snapshot_numbers(folder)[-2:]:
                bases.append(Base(number, snapshot_path(folder, number).stat().st_size))

        def found() -> None:
            if bases and not self._snapshots.busy:
                self._snapshots.set_bases(bases)

        self._post(found)

    def trim(self, before: int) -> int:
        """Delete whole segments below `before`: the keeper does it within about a second."""
        if not self.is_keeper:
            self._reader.work(partial(self.database.run, partial(_trim, str(before).encode())))
        return super().trim(before)

    def _retain(self) -> None:
        if self.is_keeper:
            super()._retain()

    def _keep_snapshots(self) -> None:
        if self.is_keeper:
            super()._keep_snapshots()

    def _no_snapshot(self, error: OSError | CorruptSegment) -> None:
        if isinstance(error, OSError) and error.errno == EPERM:
            # An instance has started, or has become the keeper: that is known in a second.
            self._snapshot_failed = self._monotonic() - SNAPSHOT_RETRY_SECONDS + 1.0
        else:
            super()._no_snapshot(error)

    def _note_clock(self) -> None:
        if self.is_keeper:
            super()._note_clock()

    def close(self, done: Callable[[], None]) -> None:
        """Commit what waits, settle it, end the threads, then call `done`."""
        self._follower.stop()
        super().close(done)


def _last_row(place: Place, connection: Any) -> Place:
    """Return `place` with the log's last row."""
    assert place.file is not None
    at, token = connection.execute(
        sql.SQL("select at, token from {} where file = %s order by at desc limit 1").format(
            place.file.table
        ),
        (place.file.id,),
    ).fetchone()
    return msgspec.structs.replace(place, last=at, token=token)


def _trim(before: bytes, connection: Any) -> None:
    """Let the keeper trim."""
    connection.execute(
        "insert into linkd.kept (kind, key, value) values ('cluster', 'trim', %s)"
        " on conflict (kind, key) do update set value = excluded.value",
        (before,),
    )
