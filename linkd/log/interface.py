"""What every log engine provides; tests/unit/log/test_conformance.py checks each.

All methods are called, and all callbacks come, in one thread (the reactor's); an engine does its
disk work elsewhere and comes back through the `post` that it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from linkd.errors import LinkdError
from linkd.protocol.peer import Cursor, EpochStart
from linkd.protocol.records import Batch, NewRecords


class Appended(msgspec.Struct, frozen=True, gc=False):
    """A publish is on disk.

    Args:
        offset: The first record's offset; of the first publish, where it was a repeat.
        count: Records stored by this publish: 0 if all were repeats.
        duplicate: It was a repeat (same id, or same producer and sequence).
        unproven: Received records that were stored without proof that they are new, or left out
            (`count` 0) without proof that they are here.
        late: Received records that were stored after later ones of their origin and channel.
    """

    offset: int
    count: int
    duplicate: bool = False
    unproven: int = 0
    late: int = 0


OnDurable = Callable[[Appended | LinkdError], None]
"""Called once for each append: it is on disk, or nothing of it is and this is why."""


class OperatorNotice(msgspec.Struct, frozen=True):
    """A report for the operator: damage found, what was kept, what is lost.

    Args:
        level: `warn` or `error`.
        event: A name in linkd.events.
        detail: One sentence with file, offsets and what to do.
    """

    level: str
    event: str
    detail: str


class Log(Protocol):
    """A node's durable, append-only sequence of records.

    Attributes:
        id: A random id that this log keeps for good.
        epoch: A random id, new at every start, of the epoch that appends belong to.
        first: The oldest offset still there (== `next` in an empty log).
        next: The offset that the next committed record gets; everything below is on disk.
        size_bytes: What it occupies on disk.
        max_bytes: Its bound.
        full: Why local publishes are refused now, or None.
        notices: What was found at start, for the operator, and the newest notices since.
        on_notice: Called with each notice for the operator while it runs.
        on_commit: Called with the new `next` after each commit that moved it, after the appends
            were settled.
        on_written: Called with the seconds that each commit took to reach the disk.
        on_trim: Called with the new `first` when records were deleted; peers and consumers that
            were owed some get a gap.
    """

    id: str
    epoch: str
    first: int
    next: int
    size_bytes: int
    max_bytes: int
    full: str | None
    notices: Sequence[OperatorNotice]
    on_notice: list[Callable[[OperatorNotice], None]]
    on_commit: list[Callable[[int], None]]
    on_written: list[Callable[[float], None]]
    on_trim: list[Callable[[int], None]]

    def clock(self) -> float:
        """Return the log's own clock.

        Seconds that only grow, monotonic while running, never back over a restart.
        """

    def epochs(self) -> tuple[EpochStart, ...]:
        """Return the newest epochs, oldest first, at most 1,024.

        Empty ones are forgotten first: a daemon that restarts all night must not evict the epoch
        that a peer's cursor names.
        """

    def epoch_below(self, position: int) -> str:
        """Return the epoch of the record just below `position`; at the start the first epoch."""

    def append(self, draft: NewRecords, settled: OnDurable) -> None:
        """Append a publish.

        `settled` is called once it is on disk, or with the error (LogFull, LogClosed,
        BadRecord).

        Publishes that wait together are committed together; adjacent ones without ids and producer
        of the same channel and ttl may become one batch, but of at most MAX_BATCH_BYTES.
        """

    def refuse(self, draft: NewRecords, settled: OnDurable, error: LinkdError) -> None:
        """Answer a draft that may not be stored with `error`, unless it is a repeat.

        A repeat is answered with the offset of the first one, once that is on disk. The draft
        itself is never stored; its records are not examined.
        """

    def store(self, batch: Batch, settled: OnDurable) -> None:
        """Append a received batch: `source` set, `offset` ignored; `count` 0 only moves the cursor.

        Batch and cursor become one atomic write, in the order of the calls. A batch whose
        `source.previous` is not the peer's cursor (appends under way included) changes nothing: it
        is settled at once, as a duplicate if all of it is below the cursor, else with OutOfStep.
        Records that are already here, by their origin, are left out; the cursor moves all the
        same. Without room the batch waits, for as long as it takes.
        """

    def cursor(self, peer: str) -> Cursor | None:
        """Return this log's cursor in `peer`'s log, None if it has none.

        `next` includes appends under way, `committed` does not.
        """

    def origin_node(self, log: str) -> str | None:
        """Return the node whose log this is, by the records of it that are here, or None."""

    def set_cursor(self, peer: str, cursor: Cursor | None, settled: OnDurable) -> None:
        """Replace a peer's cursor, or forget it.

        Used when its log was put back to an older copy, or by an operator (`linkd resync`). Takes
        effect at once for the `store` calls that follow; durable once settled.
        """

    def behind(self, size: int) -> int:
        """Return from which offset on the log occupies at most `size` bytes, in whole files."""

    def holds(self, first: int, next: int, wants: Callable[[str], bool]) -> bool:
        """Return whether a record from `first` to `next` - 1 is on a channel in `wants`."""

    def highest(self, owner: str, producer: str) -> int:
        """Return the highest stored sequence of a producer, appends under way included; 0: none."""

    def owed(self, position: int) -> dict[str, tuple[int, int]]:
        """Return (records, bytes of records) by channel from `position` to the log's end.

        Called seldom (at start and when a position moves back); sealed segments keep their totals.
        """

    def held(self, peer: str | None = None) -> int:
        """Return the bytes of received batches that are not on disk: of one peer, or of all."""

    def withholds(self) -> bool:
        """Return whether received batches must wait, for room or for a stalled disk."""

    def stalled(self) -> float | None:
        """Return for how many seconds the disk has not finished a commit; None below 5 s."""

    def stamp_at(self, position: int) -> float | None:
        """Return about when (the log's clock) the first record at or after `position` was stored.

        None if none was.
        """

    def read(self, position: int, max_bytes: int) -> list[Batch] | None:
        """Return the batches from `position` on, in order.

        At least one if there is any, about `max_bytes` in all.

        The first may begin before `position` (`Batch.from_offset`). Empty at the log's end. None:
        not in memory, `fetch`.

        Raises:
            Gap: `position` is below `first`.
        """

    def fetch(
        self,
        position: int,
        max_bytes: int,
        done: Callable[[list[Batch] | LinkdError], None],
        for_link: bool = False,
    ) -> None:
        """Like `read`, from disk, off this thread.

        `done` gets the batches, or Gap or LogDamaged. Reads for links come before others.
        """

    def locate(self, time: float) -> int:
        """Return the first offset of a batch published at or after `time`, Unix seconds.

        `next` if none.
        """

    def release(self, before: int) -> None:
        """Note that nothing below `before` is owed to any peer or consumer."""

    def trim(self, before: int) -> int:
        """Delete records below `before`, owed or not, in whole segments; return how many go."""

    def close(self, done: Callable[[], None]) -> None:
        """Commit what waits, settle it, end the threads, then call `done`."""


Owned = tuple[str, str]
"""The key of a named consumer: its owner, and its name among the owner's."""

UNOWNED = "unowned"
"""The owner of consumers that an older linkd made, until a caller claims them."""


RESUME_PREFIX = "resume."
"""Names of the consumers of `/ws` clients that ask for a short resume only: `?resume=ID`."""

RESUME_SECONDS = 600.0
"""Seconds for which such a consumer is kept after its client has gone."""


class Consumer(msgspec.Struct, frozen=True):
    """A named consumer.

    Args:
        owner: The key that has the name, `socket`, `anyone` or `unowned`.
        name: Its name, one of its owner's.
        next: Its durable cursor.
        patterns: The channels that it reads.
        idle: Seconds of absence while the daemon ran.
    """

    owner: str
    name: str
    next: int
    patterns: tuple[str, ...]
    idle: float = 0.0

    @property
    def key(self) -> Owned:
        """Owner and name."""
        return (self.owner, self.name)

    @property
    def is_passing(self) -> bool:
        """Whether it is kept for RESUME_SECONDS only."""
        return self.name.startswith(RESUME_PREFIX)

    @property
    def pattern_bytes(self) -> int:
        """The total length of its patterns."""
        return sum(map(len, self.patterns))


class PeerCursor(msgspec.Struct, frozen=True):
    """A peer's cursor in our log: it has everything from `made`, where it began, to below `acked`.

    `absent_seconds`: running time since it left the configuration; None while it is configured.
    """

    peer: str
    made: int
    acked: int
    absent_seconds: float | None = None


class CursorStore(Protocol):
    """Small values that change in place, in one file beside the log. Reads are from memory.

    A `done` is called in the reactor's thread once the change is on disk: with None, or with the
    error.
    """

    def peers(self) -> dict[str, PeerCursor]:
        """Return each peer's cursor in our log."""

    def peer(self, name: str) -> PeerCursor | None:
        """Return one peer's cursor, None if it is unknown."""

    def set_peer(self, cursor: PeerCursor) -> None:
        """Note a peer's progress; soon durable."""

    def remove_peer(self, peer: str) -> None:
        """Forget a peer."""

    def consumers(self) -> Mapping[Owned, Consumer]:
        """Return the named consumers, by owner and name."""

    def set_consumer(
        self, consumer: Consumer, done: Callable[[Exception | None], None] | None = None
    ) -> None:
        """Note a consumer's cursor."""

    def remove_consumer(
        self, key: Owned, done: Callable[[Exception | None], None] | None = None
    ) -> None:
        """Forget a consumer."""

    def events(self) -> list[tuple[int, bytes]]:
        """Return the rows of events, by number."""

    def set_event(self, number: int, row: bytes) -> None:
        """Add or replace the row of an event; soon durable."""

    def remove_event(self, number: int) -> None:
        """Forget the row of an event, if it is there."""

    def close(self, done: Callable[[], None]) -> None:
        """Write what waits, end the thread, then call `done`; before the log is closed."""
