"""The default engine: append-only segment files, group commits, reads of what left the cache.

One thread commits in groups, another one reads. A sealed segment that a read finds corrupt is
repaired, and the read goes on.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from random import Random

import msgspec

from linkd.config.settings import LogSettings
from linkd.errors import Gap, LinkdError, LogClosed, LogDamaged, LogFull
from linkd.log.base import Log, new_token
from linkd.log.commit import Post, ignore
from linkd.log.files import (
    DiskFiles,
    Environment,
    explain_os_error,
    room,
)
from linkd.log.frame import HAS_IDS, HEAD, PREFIX_BYTES, NewFrame, encode_frame
from linkd.log.interface import OperatorNotice
from linkd.log.logclock import NOTE_SECONDS, save_note
from linkd.log.reader import CorruptSegment, Reader
from linkd.log.recovery import RecoveredLog, begin
from linkd.log.repair import PendingLossReports, SegmentRepairer
from linkd.log.segment import Index, read_head, scan, scan_sealed, seal, segment_path
from linkd.log.segment_set import Retention, SegmentRoller, SegmentSet, TailCache
from linkd.log.snapshot import Base, Sealed, Snapshots, remove_snapshots
from linkd.log.state import CursorSet, Snapshot, State
from linkd.log.writer import Idle, WriteFailed, WriteJob, Writer, Written, why
from linkd.protocol.records import Batch

Fetched = Callable[[list[Batch] | LinkdError], None]


class DiskReads:
    """Reads from segment files, and repairs the sealed ones that turn out to be corrupt.

    Args:
        log: The log.
        segment_set: Its segments.
        reader: The thread that reads.
        files: The disk.
        make_repairer: Returns a repairer for the log's folder.
        notify: Called with notices for the operator.
    """

    def __init__(
        self,
        log: DiskLog,
        segment_set: SegmentSet,
        reader: Reader,
        files: DiskFiles,
        make_repairer: Callable[[], SegmentRepairer],
        notify: Callable[[OperatorNotice], None],
    ) -> None:
        self._log = log
        self._segment_set = segment_set
        self._reader = reader
        self._files = files
        self._make_repairer = make_repairer
        self._notify = notify
        self._last_error = ""

    def fetch(self, position: int, max_bytes: int, done: Fetched, for_link: bool = False) -> None:
        """Read about `max_bytes` of batches from `position` on; links go before clients.

        `done` gets the batches, or Gap or LogDamaged.
        """
        log = self._log
        if position < log.first:
            done(Gap(position, log.first))
            return
        place = self._segment_set.place(position)
        if place is None:
            done(Gap(position, log.next) if position < log.next else [])
            return

        def again() -> None:
            self.fetch(position, max_bytes, done, for_link)

        def found(batches: list[Batch] | OSError | CorruptSegment) -> None:
            # Retention may have deleted the segment while the read waited for its turn.
            if position < log.first:
                done(Gap(position, log.first))
            elif isinstance(batches, FileNotFoundError):
                self._repair(CorruptSegment(place.path, 0), again, done)
            elif isinstance(batches, OSError):
                done(LogDamaged(explain_os_error(batches, place.path)))
            elif isinstance(batches, CorruptSegment):
                last = self._segment_set.last
                if last is not None and self._segment_set.path(last) == batches.path:
                    # The writer has this file open: only a start may put another in its place.
                    done(LogDamaged(f"{batches}; restart linkd to have it repaired"))
                else:
                    self._repair(batches, again, done)
            elif batches and batches[0].offset > position:
                done(Gap(position, batches[0].offset))
            else:
                done(batches)

        self._reader.fetch(place, position, max_bytes, found, for_link)

    def forbid_repair(self, why: str) -> None:
        """Answer reads of a damaged segment with `why` instead of repairing it."""

        def refuse() -> SegmentRepairer:
            raise LogDamaged(why)

        self._make_repairer = refuse

    def repair(self, damage: CorruptSegment) -> bool:
        """Repair a sealed segment that was found corrupt while no read waits for its records.

        Returns:
            False if the corrupt file is not a sealed segment.
        """
        segments = self._segment_set.segments[:-1]
        if all(self._segment_set.path(segment) != damage.path for segment in segments):
            return False
        self._repair(damage, _no_reader, ignore)
        return True

    def _repair(self, damage: CorruptSegment, again: Callable[[], None], done: Fetched) -> None:
        """Repair a sealed segment in the background, then read again.

        If the disk refuses, the reader gets LogDamaged rather than Gap: the readable records are
        not lost, and a later read gets them once the repair succeeds.
        """
        number, log = int(damage.path.stem), self._log
        before = next(segment for segment in self._segment_set.segments if segment.number == number)

        def job() -> None:
            notices: list[OperatorNotice] = []
            index: Index | LogDamaged
            try:
                index = self._repaired(damage, before, notices)
            except LogDamaged as error:
                index = error
            except (OSError, CorruptSegment) as error:
                index = LogDamaged(f"{damage.path} could not be repaired: {error}")
            self._reader.hints.clear()
            self._reader.post(lambda: repaired(index, notices))

        def repaired(index: Index | LogDamaged, notices: list[OperatorNotice]) -> None:
            for notice in notices:
                self._notify(notice)
            if notices:
                # Forget them only now: a crash before this line reports them at the next start.
                self._reader.work(
                    lambda: PendingLossReports(self._files, damage.path.parent).forget(notices)
                )
            if isinstance(index, LogDamaged):
                if str(index) != self._last_error:  # every read comes by here: log it once
                    self._last_error = str(index)
                    self._notify(OperatorNotice("error", "log.damaged", self._last_error))
                done(index)
                return
            self._segment_set.replace(index)
            log.make_room()
            again()

        self._reader.work(job)

    def _repaired(
        self, damage: CorruptSegment, before: Index, notices: list[OperatorNotice]
    ) -> Index:
        """Return the index of a segment once it is repaired; an empty one if the file is gone.

        Raises:
            OSError: The disk refuses.
            CorruptSegment: It can't be read after the repair either.
            LogDamaged: It can't be repaired; the message says what to do.
        """
        path, repairer = damage.path, self._make_repairer()
        if not path.exists():
            repairer.take_back_renamed()
            notices += repairer.notices
        if not path.exists():
            lost = f"offsets lost: {before.first} to {before.next - 1}"
            notices.append(OperatorNotice("error", "log.damaged", f"{path} is gone; {lost}"))
            return msgspec.structs.replace(before, next=before.first, blocks=[])
        try:
            # An earlier job may have repaired it already: two reads can find the same damage.
            head, _ = read_head(path)
            size = path.stat().st_size if head.salvaged else before.size
            return scan_sealed(path, head, size, not head.salvaged)[0]
        except CorruptSegment as worse:
            damage = worse
        repairer.repair(damage)
        notices[:] = repairer.notices
        head, _ = read_head(path)
        index, _ = scan(path, head, path.stat().st_size, None, sealed=True)
        seal(self._files, path.parent, index, ())
        return index


def _no_reader() -> None:
    """Do nothing: no read waits for this repair."""


MOST_UNDER_WAY = 3
SLOW_SECONDS = 1.0
"""A commit that takes longer is worth a line."""

SNAPSHOT_RETRY_SECONDS = 10.0
"""A snapshot that the disk refused is tried again so much later."""

SEGMENT_FRAMES = 32_768
"""A segment of so many frames is full, whatever its bytes: a start folds those of the last ones.

Measured: 6 to 12 µs a frame.
"""

MOST_BEHIND, FRAME_PAUSE, MOST_PAUSE = 6, 0.0002, 2.0
"""Segments behind the newest snapshot from which the writer pauses; seconds a frame; the most.

A start takes less than 5 s so, however fast records come while a large snapshot is made: that takes
4 s of the processor at the bounds of the state. Commits wait, and the reactor goes on.
"""

EAGER_BYTES = 256 * 1024
"""So much is sent behind the commit under way; less waits for its end."""


class Phase(Enum):
    """Whether groups go to the disk."""

    WRITING = "writing"
    PAUSED = "paused"
    """`max_bytes` are reached: received batches wait until a segment has gone."""
    FAILED = "failed"
    """The disk refused a write, or the file is gone. Publishes are refused, the rest waits."""
    RETRYING = "retrying"
    """A second later a group is tried; publishes are refused until it is on disk."""
    CLOSED = "closed"


_AFTER_IDLE = {Phase.PAUSED: Phase.WRITING, Phase.FAILED: Phase.RETRYING}


def refusal(settings: LogSettings, size: int, free: int) -> str | None:
    """Return why a log of `size` bytes, on a disk with `free` bytes left, refuses publishes."""
    if settings.when_full == "reject" and size >= settings.max_bytes * 9 // 10:
        return f"{size} bytes are 90 % of log.max_bytes ({settings.max_bytes})"
    if free < settings.min_free_bytes:
        least = settings.min_free_bytes
        return f"the disk has {free} bytes left, less than log.min_free_bytes ({least})"
    return None


class DiskLog(Log):
    """A log in the files of a folder.

    Args:
        folder: The folder; made where it is missing.
        node: This node's name.
        settings: Its bounds.
        post: Brings a call into the thread in which all methods are called.
        edges: What it touches of the world.

    Attributes:
        snapshot: What the newest snapshot found at start carries beside the state, or None.
        carried: Returns what each snapshot carries beside the state: peers' acks, consumers'
            cursors.

    Raises:
        LogDamaged: Another daemon has it, or a file can't be read.
        StateTooNew: It was written by a newer linkd.
    """

    _make_writer = Writer
    _encode = staticmethod(encode_frame)

    def __init__(
        self,
        folder: Path,
        node: str,
        settings: LogSettings,
        post: Post,
        edges: Environment | None = None,
    ) -> None:
        self._folder = folder
        self._settings = settings
        edges = edges or Environment()
        self._files = edges.files
        self._monotonic, self._wall = edges.monotonic, edges.wall
        self._lock = edges.files.lock(folder)
        try:
            found = begin(folder, settings, edges)
        except LinkdError:
            self._files.close(self._lock)
            raise
        except OSError as error:
            self._files.close(self._lock)
            raise LogDamaged(explain_os_error(error, folder)) from None
        self._take(node, found)
        self._make_parts(found, post, edges)
        path = None if self._writing is None else segment_path(folder, self._writing.number)
        try:
            self._writer.start(path, self._at)
        except OSError as error:
            self._files.close(self._lock)
            raise LogDamaged(explain_os_error(error, folder)) from None
        self._reader.thread.start()
        self._measure()
        self._start_epoch(edges.rng, found.first_of_epoch)
        self._pump()

    def _start_epoch(self, rng: Random, first: int) -> None:
        """Open the epoch of this run at offset `first`."""
        self.epoch = new_token(rng)
        self._open_epoch(self.epoch, first)

    def _take(self, node: str, found: RecoveredLog) -> None:
        """Take over the recovered state."""
        settings = self._settings
        tail = TailCache(settings.memory_bytes, found.state.next)
        super().__init__(node, found.state, found.ids, tail)
        self.first = found.first
        self.notices = self._unreported = found.notices
        self.max_bytes = settings.max_bytes
        self.snapshot = found.carried
        before = () if found.carried is None else (found.carried,)
        self.carried: Callable[[], Iterable[Snapshot]] = lambda: before
        self._clock, self._noted = found.clock, -math.inf
        self.clock = found.clock.now
        self._seed = found.identity.seed
        self._segment_set = found.segment_set
        last = self._segment_set.last
        goes_on = last is not None and last.node == node and found.goes_on
        self._writing = last if goes_on else None
        self._at = 0 if self._writing is None else self._writing.size

    def _make_parts(self, found: RecoveredLog, post: Post, edges: Environment) -> None:
        """Make what works on it; nothing is under way yet."""
        folder, settings = self._folder, self._settings
        self._free_bytes = room(self._files, folder)
        most = min(settings.max_bytes, self._free_bytes + self._segment_set.size)
        self._segment_bytes = min(settings.segment_bytes, max(1 << 20, most // 16))
        self._era = 0
        self._continues: Path | None = None  # the file that is written now, if not by this run
        self._call_at_iteration_end, self._due = edges.call_at_iteration_end, False
        self._under_way_bytes = 0
        self._retention = Retention(settings, self._segment_bytes)
        self._phase = Phase.WRITING
        self._rolls = self._rolled = self._near_limit = False
        self._frames = 0
        self._failure = ""  # why the phase is FAILED or RETRYING
        self._looked = self._monotonic()
        self._deleted_at = -math.inf  # by time.monotonic
        self._writer = self._make_writer(self._files, folder, self._seed, post, self._report)
        self._reader = Reader(self._seed, post)
        self._roller = SegmentRoller(
            folder, self._files, self._segment_set, self._reader, found.identity, found.held
        )
        identity = found.identity
        self._snapshots = Snapshots(
            folder, self._files, identity.log, identity.seed, post, found.bases
        )
        self._snapshot_failed, self._snapshot_said = -math.inf, ""
        repaired = set[str]()
        self._reads = DiskReads(
            self,
            self._segment_set,
            self._reader,
            self._files,
            lambda: SegmentRepairer(
                folder, self._files, self._roller.identity, self._wall, repaired
            ),
            self._notify,
        )

    def _note_clock(self) -> None:
        """Note in the background where the clock is."""
        if not self._failure:
            note = self._clock.note()
            self._reader.work(lambda: save_note(self._files, self._folder, note))

    # writing

    def _has_room(self) -> bool:
        """Return whether a commit may begin."""
        return self._phase in (Phase.WRITING, Phase.RETRYING)

    def _pump(self) -> None:
        """Send what waits on its way, if nothing is or it is much."""
        if not (self._waiting and self._has_room()):
            return
        under_way = len(self._under_way)
        if under_way and (under_way >= MOST_UNDER_WAY or self._waiting_bytes < EAGER_BYTES):
            return
        if self.size_bytes >= self.max_bytes and self._settings.when_full == "reject":
            self._phase = Phase.FAILED if self._failure else Phase.PAUSED
            return
        if self._call_at_iteration_end is None or self._waiting_bytes >= EAGER_BYTES:
            self._send()
        elif not self._due:
            self._due = True
            self._call_at_iteration_end(self._turned)

    def _turned(self) -> None:
        """All that came in one turn waits: one commit takes it."""
        self._due = False
        if self._waiting and self._has_room():
            self._send()

    def _send(self) -> None:
        """Make a group of what waits and give it to the writer."""
        parts: list[NewFrame] = []
        creates = begins = None
        full = self._at >= self._segment_bytes or self._frames >= SEGMENT_FRAMES
        if self._writing is None or self._rolls or full:
            opening, begins = self._begin_segment()
            parts.append(opening)
            creates = segment_path(self._folder, begins.number)
            self._writing, self._at, self._rolls = begins, 0, False
            self._frames = 0
        at = self._at
        group = self._make_group()
        parts.extend(map(self._encode, group.pieces))
        self._frames += len(group.pieces)
        for part in parts:
            self._at += PREFIX_BYTES + len(part[2]) + len(part[3])
        self._under_way_bytes += self._at - at
        is_late = self._snapshots.busy and self._snapshots.behind >= MOST_BEHIND
        pause = min(FRAME_PAUSE * len(parts), MOST_PAUSE) if is_late else 0.0
        continues, self._continues = self._continues, None
        job = WriteJob(self._era, group, parts, self._wall(), at, creates, begins, continues, pause)
        self._writer.queue.put(job)

    def _begin_segment(self) -> tuple[NewFrame, Index]:
        """Return what opens the next segment, with a snapshot of the state, and its index."""
        last, size = self._writing, self._at
        if last is None:
            last = self._segment_set.last
            size = 0 if last is None else last.size
        clock = self.clock()
        self._forget(self.state, clock)
        return self._roller.begin(self.node, self.state.next, last, size, clock)

    def _forget(self, state: State, clock: float) -> None:
        """Let a state forget what is too old."""
        settings, ago = self._settings, self._clock.ago
        state.producers.forget(ago(clock, settings.id_window))
        state.forget_channels(ago(clock, settings.max_age))
        state.origins.fold(2 * settings.max_age)

    def _report(self, outcome: Written | WriteFailed | Idle) -> None:
        """Take a report of the writer."""
        now = self._monotonic()
        if self._unreported:  # the opener of the log has read `notices` before a report can come
            heard, self._unreported = self._unreported, []
            self._reader.work(lambda: PendingLossReports(self._files, self._folder).forget(heard))
        if not isinstance(outcome, WriteFailed) and outcome.measured_at > self._deleted_at:
            self._free_bytes = outcome.free_bytes
        if isinstance(outcome, Written):
            if outcome.seconds >= SLOW_SECONDS:
                took = f"a commit took {outcome.seconds:.1f} s; publishers waited for it"
                self._notify(OperatorNotice("warn", "log.slow", took))
            self._call(self.on_written, outcome.seconds)
            for job in outcome.jobs:
                self._written(job)
        elif isinstance(outcome, WriteFailed):
            self._roll_back(outcome)
        elif outcome.gone:
            self._missing()
        else:
            self._phase = _AFTER_IDLE.get(self._phase, self._phase)
            if self._phase is Phase.RETRYING and not self._waiting:
                self._waiting.append((CursorSet("", None), ignore))
        self._measure()
        looks = isinstance(outcome, Idle) or now - self._looked >= 1.0
        if looks or self._rolled or self._retention.is_over(self._kept_bytes, self._soon_free):
            self._rolled = False
            self._retain()
            self._keep_snapshots()
            self._measure()
        if looks:
            self._looked = now
            if now - self._noted >= NOTE_SECONDS:
                self._noted = now
                self._note_clock()
        self._pump()
        self._raise_mistakes()

    def _written(self, job: WriteJob) -> None:
        """A job is on disk: count its frames in, and answer."""
        if job.begins is not None:
            self._begun(job.begins)
        segment, at = self._segment_set.segments[-1], job.at
        pieces, note = iter(job.group.pieces), self._snapshots.changes.note
        for part in job.parts:
            note(part, job.group.stamp)
            if part[0] != HEAD:
                batch = next(pieces).batch
                if batch is not None and batch.count:
                    has_ids = bool(part[1] & HAS_IDS)
                    segment.add(batch, len(part[3]), job.group.stamp, at, has_ids)
            at += PREFIX_BYTES + len(part[2]) + len(part[3])
        self._under_way_bytes -= at - job.at
        self._segment_set.grow(at, job.group.stamp)
        if self._phase is Phase.RETRYING:
            self._phase, self._failure = Phase.WRITING, ""
            self._measure()
        self._committed(job.group)

    def _roll_back(self, outcome: WriteFailed) -> None:
        """Roll back all that is under way, and try again in a second.

        The era makes the writer skip jobs that were queued behind the one that failed: their
        offsets assume that it was written.
        """
        last = self._segment_set.last
        self._era += 1
        self._under_way_bytes = 0
        self._writing = last if outcome.usable else None
        self._at = last.size if last is not None else 0
        if outcome.gone:
            self._missing()
        elif self._fail(why(outcome.error)) and outcome.error.errno != errno.ENOSPC:
            sentence = f"{self._folder}: {self._failure}; tried again every second"
            self._notify(OperatorNotice("error", "log.disk-failed", sentence))
        self._failed(self._failure)

    def _fail(self, failure: str) -> bool:
        """Stop writing; return whether the reason is a new one."""
        is_new = failure != self._failure
        self._failure = failure
        if self._phase is not Phase.CLOSED:
            self._phase = Phase.FAILED
        return is_new

    def _missing(self) -> None:
        """Refuse publishes: the file that is written has no name any more, so all of it is lost."""
        path = self._segment_set.path(self._segment_set.segments[-1])
        if self._fail(f"{path} is gone: it was deleted, or its directory was replaced"):
            sentence = (
                f"{self._failure} while linkd runs; publishes are refused. Put the directory back,"
                " or restart linkd: what it finds there then is all that is left"
            )
            self._notify(OperatorNotice("error", "log.gone", sentence))

    def _begun(self, begins: Index) -> None:
        """A segment has begun: the one before is finished."""
        last = self._segment_set.last
        ids = list(self._ids.since(last.first)) if last is not None and last.has_ids else []
        self._roller.begun(begins, ids)
        self._rolled = True
        self._snapshots.changes.begin(begins.number)
        if not self._snapshots.bases:
            self._snapshots.bases.append(Base(begins.number))

    def _measure(self) -> None:
        """Measure the log, and decide whether publishes are accepted."""
        settings, segment_set, held = self._settings, self._segment_set, self._roller.held_bytes
        # Of the log's bound, snapshots take at most half: the rest is for the records.
        snapshots = min(self._snapshots.size, self.max_bytes // 2)
        self._kept_bytes = (
            segment_set.size + segment_set.beside_bytes + self._under_way_bytes + snapshots
        )
        self.size_bytes = self._kept_bytes + held
        # What the disk has left once the files are gone that are dropped.
        self._soon_free = self._free_bytes + held + self._retention.freed_bytes
        self._room = 2**62
        if settings.when_full == "reject":
            self._room = max(0, settings.max_bytes * 9 // 10 - self.size_bytes)
        self.full = self._failure or refusal(settings, self.size_bytes, self._free_bytes)
        if self._near_limit and self.full is None:
            self.full = f"a publish did not fit into the {self._room} bytes left up to 90 %"

    def _no_room(self) -> LogFull:
        """Refuse a publish; near the bound all others too, until a segment has gone."""
        if self._room < self._segment_bytes:
            self._near_limit = True
            self._measure()
        return super()._no_room()

    # reading

    def read(self, position: int, max_bytes: int) -> list[Batch] | None:
        """Return the batches from `position` on; None where memory no longer has them."""
        if position >= self.next:
            return []
        if position < self.first:
            raise Gap(position, self.first)
        if position < self._tail.first:
            return None
        batches = self._tail.read(position, max_bytes)
        if not batches:
            raise Gap(position, self.next)
        return batches

    def fetch(
        self,
        position: int,
        max_bytes: int,
        done: Callable[[list[Batch] | LinkdError], None],
        for_link: bool = False,
    ) -> None:
        """Like `read`, from disk."""
        try:
            batches = self.read(position, max_bytes)
        except Gap as gap:
            done(gap)
            return
        if batches is None:
            self._reads.fetch(position, max_bytes, done, for_link)
        else:
            done(batches)

    def totals(self, position: int) -> Iterator[tuple[str, int, int]]:
        """Yield (channel, records, bytes of records) from `position` on, in short steps."""
        return self._segment_set.totals(position, self._tail)

    def behind(self, size: int) -> int:
        """Return from which offset on the segments occupy at most `size` bytes."""
        first = self.next
        for segment in reversed(self._segment_set.segments):
            size -= segment.size
            if size < 0:
                break
            first = segment.first
        return first

    def channels(self, first: int, next: int) -> Iterator[str]:
        """Yield the channels of the records in between, in short steps."""
        return self._segment_set.channels(first, next, self._tail)

    def stamp_at(self, position: int) -> float | None:
        """Return about when the first record at or after `position` was stored."""
        if position >= self._tail.first:
            batch = self._tail.at(position)
            return None if batch is None else batch.stamp
        return self._segment_set.stamp_at(position)

    # deleting

    def release(self, before: int) -> None:
        """Nothing below `before` is owed any more."""
        if before > self._retention.owed_from:
            self._retention.owed_from = before
            self.make_room()

    def trim(self, before: int) -> int:
        """Delete whole segments below `before`; return how many records go."""
        before = min(before, self.next)
        count = self._segment_set.records_below(before)
        self._retention.trim_to = max(self._retention.trim_to, before)
        last = self._segment_set.last
        if last is not None and last is self._writing and last.first < last.next <= before:
            self._roll_segment()
        self.make_room()
        return count

    def make_room(self) -> None:
        """Delete what may go, and go on with what waits for room."""
        self._measure()
        self._retain()
        self._measure()
        if self._phase is Phase.PAUSED and self.size_bytes < self.max_bytes:
            self._phase = Phase.WRITING
            self._pump()

    def _roll_segment(self) -> None:
        """Begin a segment, so that the last one can go."""
        last = self._segment_set.last
        can_write = self._phase not in (Phase.FAILED, Phase.CLOSED)
        if can_write and last is not None and self._at == last.size:
            self._rolls = True
            self._send()

    def _retain(self) -> None:
        """Delete the segments that may go, as last measured."""
        segments = self._segment_set.segments
        oldest = self._clock.ago(self.clock(), self._settings.max_age)
        count = self._retention.count(segments, self._kept_bytes, self._soon_free, oldest)
        if count:
            self._drop(count)
        elif segments == [self._writing] and (
            self._retention.outlived(segments[0], oldest) or self._fills_log(segments[0])
        ):
            self._roll_segment()

    def _fills_log(self, segment: Index) -> bool:
        """Return whether a record nearly as large as the log keeps it full, owed to nobody."""
        return (
            self._at >= self._segment_bytes
            and segment.next <= self._retention.owed_from
            and self._retention.is_over(self._kept_bytes, self._soon_free)
        )

    def _free(self) -> None:
        """Delete the files of dropped segments that no snapshot needs."""
        size = self._roller.free(self._snapshots.needed, self._measure_disk)
        self._retention.freed_bytes += size

    def _measure_disk(self) -> None:
        """Measure free space after a deletion; runs in the reader thread."""
        free, now = room(self._files, self._folder), time.monotonic()

        def measured() -> None:
            self._free_bytes, self._retention.freed_bytes = free, 0
            self._deleted_at = now
            if self._phase is not Phase.CLOSED:
                self.make_room()

        self._reader.post(measured)

    def _drop(self, count: int) -> None:
        """Drop the oldest segments, call `on_trim`, and delete the files that no snapshot needs."""
        self._roller.drop(count)
        self._free()
        self._keep_snapshots()
        self._near_limit = False
        first = self._segment_set.segments[0].first
        if first > self.first:
            self.first = first
            self._tail.forget(first)
            self._call(self.on_trim, first)

    # snapshots

    def _keep_snapshots(self) -> None:
        """Make a snapshot if the log has grown by the newest one's size since that was made.

        Or if files wait for one to be deleted: with the segment that is written now the newest one
        needs no other, and with the next one the older one neither.
        """
        snapshots, held = self._snapshots, self._roller.held
        last, retry = self._segment_set.last, self._snapshot_failed + SNAPSHOT_RETRY_SECONDS
        if (
            snapshots.busy
            or self._phase is Phase.CLOSED
            or last is None
            or self._monotonic() < retry
        ):
            return
        newest = snapshots.bases[-1]
        waits = bool(held) and any(segment.first < segment.next for segment in held)
        if last.number <= newest.number:
            if waits:
                self._roll_segment()
            return
        before = [*held, *self._segment_set.segments[:-1]]
        grown = sum(segment.size for segment in before if segment.number >= newest.number)
        if newest.is_outgrown(grown) or waits:
            needed = snapshots.needed
            sealed = [Sealed(one.number, one.size) for one in before if one.number >= needed]
            forget = partial(self._forget, clock=self.clock())
            snapshots.make(last.number, sealed, forget, self.carried(), self._snapshot_made)

    def _snapshot_made(self, error: OSError | CorruptSegment | None) -> None:
        """Let files go that no snapshot needs any more, or try again later."""
        if self._phase is Phase.CLOSED:
            return
        if error is not None:
            self._no_snapshot(error)
            return
        self._snapshot_said = ""
        self._free()
        needed = self._snapshots.needed
        self._reader.work(lambda: remove_snapshots(self._files, self._folder, needed))
        self.make_room()
        self._keep_snapshots()

    def _no_snapshot(self, error: OSError | CorruptSegment) -> None:
        """Report once why there is no newer snapshot; repair the segment that prevents it."""
        self._snapshot_failed = self._monotonic()
        if isinstance(error, CorruptSegment) and self._reads.repair(error):
            return
        why = str(error) if isinstance(error, CorruptSegment) else error.strerror
        sentence = (
            f"{self._folder}: no snapshot of the state could be made ({why}); it is tried again"
            f" every {SNAPSHOT_RETRY_SECONDS:.0f} s, and no segment is deleted until it is made"
        )
        if sentence != self._snapshot_said:
            self._snapshot_said = sentence
            self._notify(OperatorNotice("error", "log.disk-failed", sentence))

    def close(self, done: Callable[[], None]) -> None:
        """Commit what waits, settle it, end the threads, then call `done`."""
        while self._waiting and self._has_room():
            self._send()
        self._closed, self._phase = True, Phase.CLOSED
        self._snapshots.stop()
        self._note_clock()

        def ended() -> None:
            waiting, self._waiting = self._waiting, []
            for _, settled in waiting:
                settled(LogClosed("the node is stopping"))
            self._reader.stop()
            self._files.close(self._lock)
            done()

        self._writer.stop(ended)
