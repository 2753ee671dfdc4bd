"""Receive a peer's log: what comes next, what is on its way to our disk, what to acknowledge.

A third node that relays a record could name any offset of its origin's log. An offset that the
origin cannot have reached yet would hide what the origin publishes next, so it is refused. The
origin's log grows after its hello, and what it publishes may come faster over another path than
over its own link: the bound therefore grows with time, faster than any node publishes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from linkd.core.session_effects import (
    Effect,
    FalseOrigin,
    ForwardVolatile,
    NotRelayed,
    OffsetsLost,
    RecordsRefused,
    Rewind,
    Send,
    SessionSettings,
    Store,
)
from linkd.errors import BadRecord, RemoteProtocolError
from linkd.protocol.channels import is_channel
from linkd.protocol.peer import (
    Ack,
    BatchMessage,
    Cursor,
    EpochEnd,
    EpochStart,
    GapNotice,
    Hello,
    Part,
    Resend,
    Volatile,
    encode,
)
from linkd.protocol.records import (
    BATCH_OVERHEAD_BYTES,
    MAX_BATCH_BYTES,
    NO_ORIGIN,
    Batch,
    Origin,
    SourcePosition,
    check_raw,
)

MIN_PART_BYTES = 4096
"""Size of each part but the last, at least: a part of one byte takes 300 bytes of memory."""

GROWTH_AT_ONCE = 1_000_000
GROWTH_PER_SECOND = 1_000_000
"""Records that a log may have grown by since its hello: several times what one node publishes."""

MAX_RUNS = 10_000
"""Runs of nodes whose last volatile message is remembered."""


class LogEnd(msgspec.Struct, frozen=True, gc=False):
    """What a peer's hello named: its newest epoch, the next offset, and when that was."""

    epoch: str
    next: int
    at: float


class KnownEnds:
    """The ends of the peers' logs and of their volatile sequences; seconds on one monotonic clock.

    What no peer has named itself is not bounded.

    Attributes:
        owner: Returns the configured node whose log this is, as far as that is known.
    """

    __slots__ = ("_logs", "_nodes", "_owners", "_runs", "owner")

    def __init__(self) -> None:
        self._logs: dict[str, LogEnd] = {}
        self._nodes: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        self.owner: Callable[[str], str | None] = self._owners.get
        self._runs: dict[tuple[str, str], tuple[int, float]] = {}

    def greeted(self, hello: Hello, now: float) -> None:
        """Note what a peer's hello names; it replaces the peer's older one."""
        self.own(hello.log, hello.node)
        self._logs[hello.log] = LogEnd(hello.epochs[-1].epoch, hello.next, now)

    def own(self, log: str, node: str) -> None:
        """Note that a log is the node's; an older one of its is nobody's any more."""
        if self._nodes.get(node) != log:
            self.disown(node)
        self._nodes[node] = log
        self._owners[log] = node

    def disown(self, node: str) -> None:
        """Forget whose the node's log is: it is configured no more, or under another name."""
        log = self._nodes.pop(node, None)
        if log is not None and self._owners.get(log) == node:
            del self._owners[log]
            self._logs.pop(log, None)

    def allows(self, origin: Origin, count: int, now: float) -> bool:
        """Return whether `count` records from `origin.first` on, behind `origin.after`, can exist.

        Only the epoch in which the origin publishes is bounded. An older one may have been longer
        than its node knows, whose disk was put back; a newer one may begin anywhere.
        """
        end = self._logs.get(origin.log)
        if end is None or end.epoch != origin.epoch:
            return True
        highest = max(origin.first + count - 1, origin.after or 0)
        return highest < end.next + _growth(now - end.at)

    def heard(self, message: Volatile, now: float) -> None:
        """Note a volatile message that came from its origin itself."""
        runs, key = self._runs, (message.node, message.run)
        runs.pop(key, None)
        if len(runs) >= MAX_RUNS:
            del runs[next(iter(runs))]
        runs[key] = (message.sequence, now)

    def allows_volatile(self, message: Volatile, now: float) -> bool:
        """Return whether the origin can have sent that many volatile messages in this run."""
        known = self._runs.get((message.node, message.run))
        return known is None or message.sequence < known[0] + _growth(now - known[1])


def _growth(seconds: float) -> float:
    """Return how much a log or a sequence may have grown in so many seconds."""
    return GROWTH_AT_ONCE + GROWTH_PER_SECOND * max(0.0, seconds)


_BARE_BYTES = 128
"""A step without records counts for so much: two a second, for days, must not end a connection."""

_NO_ORIGIN = "a batch with records needs an origin"


class Inbound:
    """The receiving half of a session.

    Args:
        settings: Names, patterns and bounds.
        unpack: Decompresses a batch of at most so many bytes, or None where that can't be done.
        ends: How far the logs of this node's peers can reach.

    Attributes:
        received: The next offset of the peer's log that we want; everything below has come, if not
            to disk.
        committed: Everything below is on our disk.
        discards: There was no room for the step at `received`: what comes is left out until the
            peer sends again from there.
        received_records: Records received, since the start.
        part_bytes: Bytes of a record that has come in part.
        takes: Returns whether we accept a channel; never one with a malformed name.
    """

    __slots__ = (
        "_acked",
        "_asked",
        "_connected",
        "_ends",
        "_epochs",
        "_last",
        "_log",
        "_parts",
        "_settings",
        "_step",
        "_unpack",
        "_waiting",
        "_waiting_bytes",
        "committed",
        "discards",
        "part_bytes",
        "received",
        "received_records",
        "takes",
    )

    def __init__(
        self,
        settings: SessionSettings,
        unpack: Callable[[bytes, int], bytes] | None = None,
        ends: KnownEnds | None = None,
    ) -> None:
        self._settings = settings
        self.takes = settings.receive.match
        self._ends = ends or KnownEnds()
        self._unpack = unpack
        self._connected = False
        self._log = ""
        self._epochs: tuple[EpochStart, ...] = ()
        self._step: BatchMessage | None = None
        self._parts: list[bytes | memoryview] = []
        self.part_bytes = 0
        self._last = (0, 0)  # where the last step began, and its records
        self._acked = 0
        self._waiting: deque[tuple[int, int]] = deque()  # steps on their way to disk: next, bytes
        self._waiting_bytes = 0
        self.discards = self._asked = False
        self.received: int | None = None
        self.committed = 0
        self.received_records = 0

    @property
    def partial(self) -> bool:
        """Whether a record has come in part."""
        return self._step is not None

    @property
    def behind(self) -> bool:
        """Whether something has come that is not on our disk."""
        return self.received is not None and self.committed < self.received

    def greeted(self, theirs: Hello, cursor: Cursor | None) -> None:
        """Begin on a new connection at our cursor.

        Without one, the first step names it; the epoch of that offset is noted with it, so
        that a copy of the peer's log as it was before has something in common with our cursor.
        """
        self.disconnected()
        self._connected = True
        self._log = theirs.log
        self._epochs = theirs.epochs
        self.received = None if cursor is None else cursor.next
        self.committed = 0 if cursor is None else cursor.committed
        self._acked = self.committed
        self._waiting.clear()
        self._waiting_bytes = 0

    def disconnected(self) -> None:
        """Forget a batch of which parts are missing, and what was left out: it comes again."""
        self._connected = self.discards = False
        self._forget_parts()

    def _forget_parts(self) -> None:
        self._step = None
        self._parts = []
        self.part_bytes = 0

    def leave_out(self) -> None:
        """Leave the last step out, or the one under way: there is no room for it, nor for more."""
        step, waiting = self._step, self._waiting
        if step is not None:
            self.received = step.previous
            self._forget_parts()
        else:
            self.received, records = self._last
            self.received_records -= records
            self._waiting_bytes -= waiting.pop()[1]
        self.discards, self._asked = True, False

    def ask_again(self) -> list[Effect]:
        """Have the peer send again what was left out: once, or it would come twice."""
        if not self.discards or self._asked or self.received is None:
            return []
        self._asked = True
        return [Send(encode(Resend(self.received)))]

    def _discarded(self, previous: int) -> bool:
        """Return whether a step is discarded: it does not begin at the requested offset."""
        if self.discards and previous == self.received:
            self.discards = False
        return self.discards

    def batch(self, step: BatchMessage, now: float) -> list[Effect]:
        """Take the next step of the peer's log.

        Raises:
            RemoteProtocolError: It does not begin at our cursor, or is malformed.
        """
        if self.discards and self._discarded(step.previous):
            return []
        begun = self._check_place(step.previous, step.next)
        if not step.count:
            if step.size or step.records:
                raise RemoteProtocolError("a step without records carries bytes")
            return [*begun, self._store(step, b"")]
        self._check_batch(step)
        if len(step.records) == step.size:
            whole = self._whole(step, step.records, now)
            return [*begun, *whole] if begun else whole
        self._step, self._parts, self.part_bytes = step, [step.records], len(step.records)
        return begun

    def part(self, part: Part, now: float) -> list[Effect]:
        """Take the next bytes of a large record.

        Raises:
            RemoteProtocolError: None is under way, or it is longer than announced.
        """
        step = self._step
        if step is None:
            if self.discards:
                return []
            raise RemoteProtocolError("a part, but no batch is under way")
        self.part_bytes = size = self.part_bytes + len(part.records)
        if not part.records or size > step.size:
            raise RemoteProtocolError(f"expected {step.size} bytes in parts, got {size}")
        if len(part.records) < MIN_PART_BYTES and size < step.size:
            raise RemoteProtocolError(f"a part of {len(part.records)} bytes that is not the last")
        self._parts.append(part.records)
        if size < step.size:
            return []
        records = b"".join(self._parts)
        self._forget_parts()
        return self._whole(step, records, now)

    def gap(self, gap: GapNotice) -> list[Effect]:
        """Move on over offsets that the peer no longer has."""
        if self.discards and self._discarded(gap.previous):
            return []
        first = gap.previous if self.received is None else self.received
        begun = self._check_place(gap.previous, gap.next)
        step = BatchMessage(gap.previous, gap.next, gap.epoch)
        return [*begun, OffsetsLost(first, gap.next, inbound=True), self._store(step, b"")]

    def volatile(self, message: Volatile, now: float) -> list[Effect]:
        """Take records that were never in a log."""
        channel, count = message.channel, message.count
        if not self.takes(channel):
            return [] if message.presence else [_refused(channel, count)]
        if message.node == self._settings.peer:
            self._ends.heard(message, now)
        elif not self._settings.relay:
            return [] if message.presence else [NotRelayed(channel, count, inbound=True)]
        elif not self._ends.allows_volatile(message, now):
            return [FalseOrigin(channel, count, _volatile_sentence(message))]
        _check_records(message.records, message.count)
        self.received_records += 0 if message.presence else message.count
        return [ForwardVolatile(message)]

    def stored(self, next: int) -> None:
        """Everything below `next` of the peer's log is on our disk."""
        self.committed = max(self.committed, next)
        waiting = self._waiting
        while waiting and waiting[0][0] <= next:
            self._waiting_bytes -= waiting.popleft()[1]

    def ack(self) -> list[Effect]:
        """Acknowledge what is on disk, where that is news."""
        if not self._connected or self.committed <= self._acked:
            return []
        self._acked = self.committed
        return [Send(encode(Ack(self.committed)))]

    def _check_place(self, previous: int, next: int) -> list[Effect]:
        """Compare a step with our cursor; the very first one sets it."""
        if self._step is not None:
            raise RemoteProtocolError("a new step while parts of the last one are missing")
        if next <= previous:
            raise RemoteProtocolError(f"a step from {previous} to {next}")
        if self.received is None:
            self.received = previous
            below = [start.epoch for start in self._epochs if start.first < previous]
            base = EpochEnd(below[-1] if below else self._epochs[0].epoch, previous)
            return [Rewind(Cursor(self._log, (base,), previous))]
        if previous != self.received:
            raise RemoteProtocolError(f"a step from {previous}, expected one from {self.received}")
        return []

    def _check_batch(self, step: BatchMessage) -> None:
        """Hold a batch's head against its bounds, before its bytes are kept."""
        origin = step.origin
        if origin is None or not (origin.node and origin.log and origin.epoch and origin.first):
            raise RemoteProtocolError(_NO_ORIGIN)
        if not step.channel:
            raise RemoteProtocolError(_NO_ORIGIN)
        if step.count > step.next - step.previous:
            raise RemoteProtocolError(f"{step.count} records from {step.previous} to {step.next}")
        if step.encoding and (step.encoding != "zstd" or self._unpack is None):
            raise RemoteProtocolError(f"records packed as {step.encoding!r}, which was not offered")
        limit = self._most_bytes(step.count)
        if not len(step.records) <= step.size <= limit:
            raise RemoteProtocolError(
                f"a batch of {step.size} bytes, expected at most {limit}", 1009
            )
        if len(step.records) < step.size and len(step.records) < MAX_BATCH_BYTES:
            raise RemoteProtocolError("a batch in parts begins with a full one")

    def _most_bytes(self, count: int) -> int:
        """Return how many bytes of records a batch may have."""
        return self._settings.max_records_bytes if count == 1 else MAX_BATCH_BYTES

    def _whole(self, step: BatchMessage, records: bytes, now: float) -> list[Effect]:
        """Store a batch that has come whole."""
        if step.encoding and self._unpack is not None:
            try:
                records = self._unpack(records, self._most_bytes(step.count))
            except ValueError as error:
                raise RemoteProtocolError(f"packed records: {error}", 1007) from None
        _check_records(records, step.count)
        if not self.takes(step.channel):
            return self._leave_out(step, _refused(step.channel, step.count))
        origin = step.origin
        assert origin is not None  # checked before its bytes were kept
        if origin.log == self._log:
            if origin.first + step.count > step.next:
                detail = f"{_sentence(origin)}, but its place there is below {step.next}"
                return self._leave_out(step, FalseOrigin(step.channel, step.count, detail))
            if origin.node != self._settings.peer and not self._settings.relay:
                # The name that it had before, or somebody's: it speaks for itself alone.
                step = msgspec.structs.replace(
                    step, origin=msgspec.structs.replace(origin, node=self._settings.peer)
                )
        elif not self._settings.relay:
            refused = NotRelayed(step.channel, step.count, inbound=True)
            return self._leave_out(step, refused)
        elif not self._ends.allows(origin, step.count, now):
            detail = f"{_sentence(origin)}, which {origin.node} itself has not reached"
            return self._leave_out(step, FalseOrigin(step.channel, step.count, detail))
        self.received_records += step.count
        return [self._store(step, records)]

    def _leave_out(self, step: BatchMessage, why: Effect) -> list[Effect]:
        """Move on over a batch that is not stored."""
        return [why, self._store(BatchMessage(step.previous, step.next, step.epoch), b"")]

    def _store(self, step: BatchMessage, records: bytes) -> Store:
        """Move on, and hand the step to the log."""
        self._last = step.previous, step.count
        self.received = step.next
        size = len(records) + (BATCH_OVERHEAD_BYTES if step.count else _BARE_BYTES)
        self._waiting.append((step.next, size))
        self._waiting_bytes += size
        if self._waiting_bytes > self._settings.max_waiting_bytes:
            raise RemoteProtocolError(
                f"{self._waiting_bytes} bytes came that were not acknowledged, expected at most"
                f" {self._settings.max_waiting_bytes}"
            )
        source = SourcePosition(
            self._settings.peer, self._log, step.epoch, step.previous, step.next
        )
        return Store(
            Batch(
                0,
                step.channel,
                step.count,
                records,
                step.time,
                step.origin or NO_ORIGIN,
                ttl=step.ttl,
                source=source,
            )
        )


def _refused(channel: str, count: int) -> RecordsRefused:
    """Return that records are left out; a malformed name of a channel goes no further."""
    return RecordsRefused(channel if is_channel(channel) else "", count)


def _check_records(records: bytes, count: int) -> None:
    """Check that there are as many records as announced."""
    try:
        check_raw(records, count)
    except BadRecord as error:
        raise RemoteProtocolError(str(error), 1007) from None


def _sentence(origin: Origin) -> str:
    """Name where a batch claims to begin."""
    return f"a batch claims offset {origin.first} behind {origin.after} in {origin.node}'s log"


def _volatile_sentence(message: Volatile) -> str:
    """Name what a volatile message claims."""
    return (
        f"a volatile message claims to be number {message.sequence} of {message.node}, which"
        f" {message.node} itself has not reached"
    )
