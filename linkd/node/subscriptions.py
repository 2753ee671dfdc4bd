"""Subscriptions to this node's log, and named consumers with durable cursors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from heapq import nsmallest
from math import inf
from operator import itemgetter
from secrets import token_hex
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
from twisted.internet.defer import Deferred

from linkd.config import Config
from linkd.errors import Gap, LinkdError, PublishError
from linkd.log.base import Log
from linkd.log.cursor_store import CursorStore, joined
from linkd.log.interface import RESUME_SECONDS, UNOWNED, Consumer, Owned
from linkd.protocol.channels import PatternIndex, Patterns
from linkd.protocol.records import BATCH_OVERHEAD_BYTES, Batch
from linkd.status import ConsumerStatus

if TYPE_CHECKING:
    from linkd.node.node import Node

_READ_BYTES = 512 * 1024

Start = int | Literal["earliest", "latest"]


class Sink(Protocol):
    """The receiver of a subscription's records; all calls are made in order."""

    def has_room(self, size: int) -> bool:
        """Return whether there is room for records of `size` bytes.

        Where there is none, the sink calls `Follower.resume` once there is.
        """

    def hold(self, size: int) -> bool:
        """Count bytes that are buffered for the sink; negative where they are released.

        Return whether there is room; without room they must not be buffered.
        """

    def batch(self, batch: Batch) -> bool:
        """Receive records of the log.

        The first record is the next one wanted. Return whether there is room for more: after False
        nothing follows until `Follower.resume`.
        """

    def volatile(self, batch: Batch) -> None:
        """Receive volatile records, whose offset is 0; drop them where there is no room."""

    def gap(self, first: int, next: int) -> None:
        """Note that offsets `first` to `next` - 1 are lost; some of them may have been wanted."""

    def end(self, reason: str) -> None:
        """Note the end of the subscription.

        The reason is `replaced` (another client took the consumer's name), `stopped`, or an error.
        """


class Follower:
    """A subscription that follows the log's end.

    While it keeps up it receives committed batches, and buffers a few while its sink has no room.
    When it lags it reads from the log, including batches for others.

    Args:
        log: The log.
        patterns: The channels that it wants.
        start: The first offset that it wants.
        sink: Where the records go.
        owner: Receives acks and the end.
        consumer: Its owner and durable name, or None.
    """

    __slots__ = (
        "_bytes",
        "_closed",
        "_end",
        "_held",
        "_live",
        "_log",
        "_owner",
        "_paused",
        "_pending",
        "_pumping",
        "_reading",
        "_sink",
        "consumer",
        "known",
        "next",
        "patterns",
    )

    def __init__(
        self,
        log: Log,
        patterns: Patterns,
        start: int,
        sink: Sink,
        owner: Subscriptions,
        consumer: Owned | None = None,
    ) -> None:
        self._log = log
        self._sink = sink
        self._owner = owner
        self._pending: deque[Batch] = deque()
        self._live = self._paused = self._reading = self._closed = self._pumping = False
        self._bytes = 0  # of the pending batches
        self._held = 0  # of these, counted by the sink
        self._end = start  # while live: nothing between the pending batches and this is for it
        self.patterns = patterns
        self.next = start
        self.known: Deferred[None] | None = None  # until it is known where it begins
        self.consumer = consumer

    def position(self) -> int:
        """Return the offset below which all wanted records were passed to the sink."""
        if self._live and not (self._pending or self._closed):
            self.next = max(self.next, self._owner.offered)
        return self.next

    def resume(self) -> None:
        """Deliver more: the sink has room again."""
        self._paused = False
        self.pump()

    def ack(self, next: int, done: Callable[[Exception | None], None]) -> None:
        """Set the named consumer's cursor."""
        self._owner.acked(self, next, done)

    def close(self) -> None:
        """End the subscription at the client's request."""
        if not self._closed:
            self._closed = True
            self._pending.clear()
            self._bytes = 0
            if self._held:
                self._count_kept()
            self._owner.closed(self)

    def end(self, reason: str) -> None:
        """End the subscription from this node's side."""
        if not self._closed:
            self.position()  # the sink may ask for it at its end
            self.close()
            self._sink.end(reason)

    def volatile(self, batch: Batch) -> None:
        """Pass volatile records to the sink."""
        if not self._closed:
            self._sink.volatile(batch)

    def offer(self, batches: list[Batch], next: int) -> None:
        """Process a commit: the subscription's batches, and the log's new end."""
        if not self._live or self._closed:
            self.pump()
            return
        if batches and not self._pending:
            self.next = max(self.next, batches[0].offset)  # earlier batches were for others
        self._keep(batches)
        self._end = next
        if not self._paused:
            self._deliver()
        if self._bytes != self._held:
            self._count_kept()

    def wait(self) -> None:
        """Deliver nothing until `go_on`, which fires `known`."""
        self._pumping, self.known = True, Deferred()

    def go_on(self, position: int) -> None:
        """Begin to deliver, at `position`."""
        assert self.known is not None
        self.next, self._pumping = position, False
        known, self.known = self.known, None
        known.callback(None)
        self.pump()

    def pump(self) -> None:
        """Deliver records as long as there is room."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while not (self._closed or self._paused or self._reading):
                if not self._pending:
                    if not (self._live or self._sink.has_room(0)):
                        self._paused = True
                        break
                    if not self._read():
                        break
                self._deliver()
        finally:
            self._pumping = False
            self._count_kept()

    def _count_kept(self) -> None:
        """Account for buffered batches; drop those beyond the limit, which the log still has.

        It is read again when there is room.
        """
        more = self._bytes - self._held
        if more > 0:
            little = self._bytes <= _READ_BYTES or not self._live
            if not (little and self._sink.hold(more)):
                self._pending.clear()
                self._bytes, self._live = 0, False
                more = -self._held
        if more < 0:
            self._sink.hold(more)
        self._held = self._bytes

    def _keep(self, batches: list[Batch]) -> None:
        self._pending.extend(batches)
        for batch in batches:
            self._bytes += len(batch.records) + BATCH_OVERHEAD_BYTES

    def _read(self) -> bool:
        """Read more of the log; return False if nothing is available now."""
        if self._live:
            return False  # later batches will be offered
        if self.next >= self._log.next:
            self._live = True
            self._end = self.next
            return False
        try:
            batches = self._log.read(self.next, _READ_BYTES)
        except Gap as gap:
            self._gap(gap.first)
            return True
        if batches is None:
            self._reading = True
            self._log.fetch(self.next, _READ_BYTES, self._fetched)
            return False
        self._keep(batches)
        return bool(batches)

    def _fetched(self, batches: list[Batch] | LinkdError) -> None:
        """Process batches read from disk."""
        self._reading = False
        if self._closed:
            return
        if isinstance(batches, Gap):
            self._gap(batches.first)
        elif isinstance(batches, LinkdError):
            self.end(str(batches))
            return
        else:
            self._keep(batches)
        self.pump()

    def _gap(self, first: int) -> None:
        """Advance over lost offsets."""
        wanted, self.next = self.next, first
        self._owner.gone(self, wanted, first)
        self._sink.gap(wanted, first)

    def _deliver(self) -> None:
        """Deliver pending batches until there is no room."""
        pending = self._pending
        known: dict[str, bool] = {}  # a log has many batches of few channels
        while pending and not self._paused and not self._closed:
            batch = pending[0]
            end = batch.offset + batch.count
            if end <= self.next:
                self._bytes -= len(pending.popleft().records) + BATCH_OVERHEAD_BYTES
                continue
            wanted = self._live or known.get(batch.channel)
            if wanted is None:
                wanted = known[batch.channel] = self.patterns.match(batch.channel)
            if not self._sink.has_room(len(batch.records) if wanted else 0):
                self._paused = True
                break
            self._bytes -= len(pending.popleft().records) + BATCH_OVERHEAD_BYTES
            if batch.offset < self.next:
                batch = batch.from_offset(self.next)
            elif batch.offset > self.next and not self._live:
                self._gap(batch.offset)
            self.next = end
            if not wanted:
                continue
            if batch.ttl is not None and batch.expired(self._log.clock()):
                self._owner.expired(batch)
                continue
            self._paused = True  # a sink may call `resume` from within
            if self._sink.batch(batch):
                self._paused = False
        if self._live and not (self._closed or pending):
            self.next = max(self.next, self._end)


_CHANNELS_KNOWN = 10_000

AGING_SECONDS = 60.0
"""Interval of counting and storing the absence of named consumers."""


PATTERNS_BYTES = 16 * 1024 * 1024
KEY_PATTERNS_BYTES = 1024 * 1024
"""Maximum total size of the patterns of all named consumers, and of those of one key."""

AGED_AT_ONCE = 250
"""Consumers aged in one iteration, which takes about 2 ms."""

READER = "reader"
"""Kind of shared values: who holds a consumer's name, of all instances."""

LOOKS = 4
"""Maximum number of lagging consumers that are compared with the log at a time."""

LOOK_SECONDS = 0.005
"""Seconds a call spends on comparing lagging consumers with the log; the next one continues."""


class Subscriptions:
    """All followers of the log, and the named consumers among them.

    Args:
        node: The node.
        log: Its log.
        store: Where the consumers' cursors lie.

    Attributes:
        offered: Followers that keep up were offered everything below.
    """

    def __init__(self, node: Node, log: Log, store: CursorStore) -> None:
        self._node = node
        self._log = log
        self._store = store
        self.offered = log.next
        self._followers: dict[Follower, None] = {}
        self._held: dict[Owned, Follower] = {}
        self._looked: dict[Owned, int] = {}
        self._look: tuple[Consumer, int, Iterator[bool]] | None = None  # it is under way
        self._passed_over: set[Owned] = set()
        self._left_at: dict[Owned, float] = {}  # when the client of a temporary consumer left
        self._bounds: tuple[Config, dict[str, int | None]] | None = None
        self._aged_at = node.clock.seconds()
        self._passed = 0.0
        self._to_age: list[Owned] = []
        self._run = token_hex(8)
        self._taken = 0
        store.watch(READER, self._taken_elsewhere)
        store.on_removed.append(self._removed_elsewhere)
        self._wanted: PatternIndex[Follower] = PatternIndex()
        self._known: dict[str, tuple[Follower, ...]] = {}

    def subscribe(
        self, patterns: Sequence[str], start: Start, sink: Sink, consumer: Owned | None = None
    ) -> Follower:
        """Follow the log from `start`, or from the position of `consumer`, if it is known.

        The sink is never called from within. Volatile records come as they pass.

        Raises:
            PublishError: There are as many named consumers as may be.
        """
        position = self._position(start)
        if consumer is not None:
            position = self._take_name(consumer, position, tuple(patterns))
        follower = Follower(self._log, Patterns(patterns), position, sink, self, consumer)
        self._followers[follower] = None
        self._wanted.add(follower.patterns.patterns, follower)
        self._known.clear()
        if consumer is not None:
            self._held[consumer] = follower
        if consumer is None or self._node.config.cluster is None:
            self._node.clock.callLater(0, follower.pump)
        else:
            self._take_elsewhere(follower, consumer)
        return follower

    def _take_elsewhere(self, follower: Follower, consumer: Owned) -> None:
        """End the holder of a consumer's name at another instance, and go on behind its acks."""
        self._taken += 1

        def known() -> None:
            found = self._store.consumers().get(consumer)
            # It may be beyond what this instance has of the log by now.
            follower.go_on(follower.next if found is None else found.next)

        follower.wait()
        word = f"{self._run}:{self._taken}".encode()
        self._store.share(READER, joined(consumer), word, lambda _: self._store.refresh(known))

    def _taken_elsewhere(self, key: str, word: bytes | None) -> None:
        """End the holder of a consumer's name that a client has taken at another instance."""
        owner, _, name = key.partition("/")
        holder = self._held.pop((owner, name), None) if word is not None else None
        if holder is not None:
            self._log_event("warn", "consumer.replaced", (owner, name))
            holder.end("replaced")

    def _removed_elsewhere(self, key: Owned) -> None:
        """End the holder of a consumer that was deleted at another instance."""
        holder = self._held.pop(key, None)
        self._let_go(key)
        if holder is not None:
            holder.end("deleted")

    def _position(self, start: Start) -> int:
        """Return the current offset of a start position."""
        if start == "earliest":
            return self._log.first
        if start == "latest":
            return self._log.next
        return max(1, min(start, self._log.next))

    def _take_name(self, key: Owned, start: int, patterns: tuple[str, ...]) -> int:
        """Give a consumer's name to a new holder; return its position."""
        holder = self._held.pop(key, None)
        owner, name = key
        if holder is not None:
            self._log_event("warn", "consumer.replaced", key)
            holder.end("replaced")
        known = self._store.consumers().get(key)
        wanted = Consumer(owner, name, start, patterns)
        if known is None or known.patterns != patterns:  # thousands may come back unchanged
            self._make_room_for_patterns(wanted)
        if known is None:
            self._make_room(wanted)
            self._log_event("info", "consumer.created", key, next=start)
            self._store.create_consumer(wanted)
            return start
        start = known.next
        if self._node.config.cluster is None:  # else another instance has more of the log by now
            start = min(start, self._log.next)  # the log may have been restored from a backup
        self._store.set_consumer(Consumer(owner, name, start, patterns))
        return start

    def _make_room(self, new: Consumer) -> None:
        """Raise PublishError where an owner may have no further consumer.

        Passing ones are counted apart; the one that is absent longest makes room.
        """
        config, owner, passing = self._node.config, new.owner, new.is_passing
        consumers = list(self._store.consumers().values())
        mine = [one for one in consumers if one.owner == owner]
        alike = [one for one in mine if one.is_passing == passing]
        most = config.limits.consumers
        share = most - most // 10
        setting, bound = "limits.consumers", share
        for key in config.api.keys:
            if key.name == owner and key.consumers < bound:
                setting, bound = f"`consumers` of the key {owner}", key.consumers
        if len(alike) >= bound:
            full = alike
        elif len(mine) >= share:
            full = mine
        elif len(consumers) >= most:
            full = consumers
        else:
            return
        absent = self._absent(full)
        if not absent:
            raise PublishError(
                f"{owner} has {len(alike)} {'connected' if passing else 'named'} consumers"
                f"{' with `resume`' if passing else ''} and may have no more: delete some"
                f" (`linkd consumers --delete {owner}/NAME`) or raise {setting}"
            )
        self._displace(absent[0])

    def _make_room_for_patterns(self, new: Consumer) -> None:
        """Raise PublishError where the patterns of all consumers would be too long together.

        As in `_make_room`, passing ones make room.
        """
        owner, passing = new.owner, new.is_passing
        size = mine = total = new.pattern_bytes
        others = [one for one in self._store.consumers().values() if one.key != new.key]
        for one in others:
            total += one.pattern_bytes
            if one.owner == owner and one.is_passing == passing:
                mine += one.pattern_bytes
        is_key = any(one.name == owner for one in self._node.config.api.keys)
        bound = KEY_PATTERNS_BYTES if is_key else PATTERNS_BYTES - PATTERNS_BYTES // 10
        if mine <= bound and total <= PATTERNS_BYTES:
            return
        for one in self._absent(others):
            if mine > bound and passing and one.owner == owner:
                mine -= one.pattern_bytes
            elif mine > bound or total <= PATTERNS_BYTES:
                continue
            total -= one.pattern_bytes
            self._displace(one)
        if mine > bound or total > PATTERNS_BYTES:
            raise PublishError(
                f"the patterns of the consumers of {owner} have {mine - size} bytes; with"
                f" {size} more they are above {bound}, or those of all above {PATTERNS_BYTES}:"
                " delete some, or use patterns with > or *"
            )

    def _absent(self, among: Sequence[Consumer]) -> list[Consumer]:
        """Return temporary consumers without a client, the longest absent first."""
        gone = [one for one in among if one.is_passing and one.key not in self._held]
        return sorted(gone, key=lambda one: (self._left_at.get(one.key, -inf), -one.idle))

    def _displace(self, consumer: Consumer) -> None:
        """Remove a consumer to make room for another."""
        self._remove(consumer, "its room was needed for another consumer")

    def interested(self, channel: str) -> tuple[Follower, ...]:
        """Return the followers that want `channel`."""
        found = self._known.get(channel)
        if found is None:
            if len(self._known) >= _CHANNELS_KNOWN:
                self._known.clear()
            found = self._known[channel] = tuple(self._wanted.match(channel))
        return found

    def age(self) -> None:
        """Count the absence of named consumers; remove those that are absent too long.

        Called about once a second: a round begins every minute and takes a few at a time. Only the
        time in which this is called counts, at most two minutes a round: a daemon that is off or
        frozen, or a clock that steps, makes no consumer older.
        """
        if not self._to_age and self._node.clock.seconds() - self._aged_at >= AGING_SECONDS:
            self._begin_aging()
        self._age(AGED_AT_ONCE)

    def _begin_aging(self) -> None:
        now = self._node.clock.seconds()
        self._passed = min(now - self._aged_at, 2 * AGING_SECONDS)
        self._aged_at = now
        self._to_age = list(self._store.consumers())

    def _age(self, most: int) -> None:
        longest = self._node.config.log.consumer_max_idle
        keys, self._to_age = self._to_age[:most], self._to_age[most:]
        for key in keys:
            consumer = self._store.consumers().get(key)
            if consumer is None or not (self._log.is_keeper or key in self._held):
                continue  # the instance that keeps the log counts the absence of the others
            idle = 0.0 if key in self._held else consumer.idle + self._passed
            # A round counts a whole minute, even for a consumer that was connected a second ago.
            most_idle = RESUME_SECONDS if consumer.is_passing else longest
            if idle > most_idle + 2 * AGING_SECONDS:
                days = f"{idle / 86_400.0:.1f} days of running time"
                aged = msgspec.structs.replace(consumer, idle=idle)
                self._remove(aged, f"it was absent for {days}")
            elif idle != consumer.idle:
                self._store.set_consumer(msgspec.structs.replace(consumer, idle=idle))

    def _remove(self, consumer: Consumer, why: str) -> None:
        """Remove a consumer without its request, and log it."""
        self._store.remove_consumer(consumer.key)
        self._removed(consumer.key)
        self._log_event(
            "info" if consumer.is_passing else "error",
            "consumer.removed",
            consumer.key,
            next=consumer.next,
            idle_seconds=round(consumer.idle, 1),
            detail=f"{consumer.owner}/{consumer.name} is no longer owed anything from offset"
            f" {consumer.next} on: {why}",
        )

    def log_orphans(self) -> None:
        """Log keys that are no longer configured, and what their consumers hold."""
        config, end = self._node.config, self._log.next
        known = {key.name for key in config.api.keys} | {"socket", UNOWNED}
        if not config.api.require_key:
            known.add("anyone")
        left: dict[str, list[Consumer]] = {}
        for consumer in self.consumers():
            if consumer.owner not in known:
                left.setdefault(consumer.owner, []).append(consumer)
        for owner, mine in left.items():
            names = ", ".join(one.name for one in mine[:10]) + (" and more" * (len(mine) > 10))
            records = end - min(one.next for one in mine)
            days = config.log.consumer_max_idle / 86_400.0
            self._node.log_event(
                "error",
                "consumer.orphaned",
                owner=owner,
                consumers=len(mine),
                records=records,
                detail=f"the key {owner} is not configured any more; its consumers ({names}) keep"
                f" {records} records for up to {days:g} days of running time",
            )

    def consumers(self) -> list[Consumer]:
        """Return the named consumers, by owner and name."""
        return sorted(self._store.consumers().values(), key=lambda consumer: consumer.key)

    def consumer(self, key: Owned) -> Consumer | None:
        """Return a named consumer, if there is one."""
        return self._store.consumers().get(key)

    def statuses(self, owner: str | None = None) -> list[ConsumerStatus]:
        """Return the position of each named consumer, or of each of one owner."""
        end = self._log.next
        return [
            ConsumerStatus(one.owner, one.name, one.next, max(0, end - one.next))
            for one in self.consumers()
            if owner in (None, one.owner)
        ]

    def low_water(self) -> int:
        """Return the offset below which no named consumer needs records."""
        floors = self._floors()
        lowest = self._log.next
        for (owner, _), consumer in self._store.consumers().items():
            if consumer.next < lowest:
                lowest = min(lowest, max(consumer.next, floors[owner]))
        return lowest

    def _floors(self) -> dict[str, int]:
        """Return for each owner the offset below which its consumers need nothing."""
        bounds, log = self._kept_bytes(), self._log
        behind: dict[int | None, int] = {None: log.first}
        floors: dict[str, int] = {}
        for owner, _ in self._store.consumers():
            if owner not in floors:
                bound = bounds.get(owner, log.max_bytes // 2)
                if bound not in behind:
                    assert bound is not None
                    behind[bound] = log.first if log.size_bytes <= bound else log.behind(bound)
                floors[owner] = behind[bound]
        return floors

    def _kept_bytes(self) -> dict[str, int | None]:
        """Return for each owner how much of the log its consumers keep; None: all of it."""
        config = self._node.config
        if self._bounds is None or self._bounds[0] is not config:
            bounds: dict[str, int | None] = {"socket": None, "anyone": None, UNOWNED: None}
            for key in config.api.keys:
                if key.kept_bytes is not None or key.is_for_everything:
                    bounds[key.name] = key.kept_bytes
            self._bounds = (config, bounds)
        return self._bounds[1]

    def move_on(self) -> None:
        """Advance consumers over records that are not for them, and log those that fall behind.

        Only those that would keep more than half of the log, or more than their key may: a reader
        of a quiet channel must not keep the others' records. A few each time, for it costs a look
        at the log.
        """
        log = self._log
        most = log.max_bytes // 2
        half = log.behind(most) if log.size_bytes > most else log.first
        floors = self._floors()
        lagging: list[tuple[int, int, Consumer]] = []
        for consumer in self._store.consumers().values():
            to = max(half, floors[consumer.owner])
            if consumer.next >= floors[consumer.owner]:
                self._passed_over.discard(consumer.key)
            if consumer.next < to and self._looked.get(consumer.key) != to:
                lagging.append((consumer.next, to, consumer))
        until = log.clock() + LOOK_SECONDS
        for first, to, consumer in nsmallest(LOOKS, lagging, key=itemgetter(0)):
            if not self._finish_look(floors, until):
                return
            if self._looked.get(consumer.key) != to:
                matches = map(Patterns(consumer.patterns).match, log.channels(first, to))
                self._look = (consumer, to, matches)
        self._finish_look(floors, until)

    def _finish_look(self, floors: dict[str, int], until: float) -> bool:
        """Go on comparing a consumer with the log; return whether that is over."""
        if self._look is None:
            return True
        consumer, to, matches = self._look
        for found in matches:
            if found:
                break
            if self._log.clock() >= until:
                return False
        else:
            found = False
        self._look, key = None, consumer.key
        known = self._store.consumers().get(key)
        if known is None or (known.next, known.patterns) != (consumer.next, consumer.patterns):
            return True
        self._looked[key] = to
        if not found:
            self._store.set_consumer(msgspec.structs.replace(known, next=to))
        elif known.next < floors[known.owner] and key not in self._passed_over:
            self._passed_over.add(key)
            self._log_passed_over(known, floors[known.owner])
        return True

    def _log_event(
        self, level: str, event: str, key: Owned, **fields: str | int | float | None
    ) -> None:
        """Log an event of one consumer."""
        fields["owner"], fields["consumer"] = key
        self._node.log_event(level, event, **fields)

    def _let_go(self, key: Owned) -> None:
        self._looked.pop(key, None)
        self._passed_over.discard(key)
        self._left_at.pop(key, None)

    def _removed(self, key: Owned) -> None:
        """Forget what there is of a consumer that was removed here."""
        self._let_go(key)
        self._store.share(READER, joined(key), None)

    def _log_passed_over(self, consumer: Consumer, floor: int) -> None:
        first, whose = max(consumer.next, self._log.first), "/".join(consumer.key)
        self._log_event(
            "error",
            "consumer.passed-over",
            consumer.key,
            first=first,
            next=floor,
            detail=f"{whose} has not acknowledged what its key may keep; offsets {first} to"
            f" {floor - 1} are no longer kept for it",
        )

    def ack(self, key: Owned, next: int, done: Callable[[Exception | None], None]) -> None:
        """Set a consumer's cursor; it never moves back, nor beyond the log's end.

        Raises:
            KeyError: There is no such consumer.
        """
        known = self._store.consumers()[key]
        moved = max(known.next, min(next, self._log.next))
        self._store.set_consumer(msgspec.structs.replace(known, next=moved, idle=0.0), done)

    def forget(self, key: Owned, done: Callable[[Exception | None], None]) -> bool:
        """Remove a consumer; return whether there was one."""
        known = self._store.consumers().get(key)
        if known is None:
            return False
        holder = self._held.pop(key, None)
        if holder is not None:
            holder.end("deleted")
        self._store.remove_consumer(key, done)
        self._removed(key)
        self._log_event("info", "consumer.deleted", key, next=known.next)
        return True

    def move(self, old: Owned, new: Owned, done: Callable[[Exception | None], None]) -> None:
        """Give a consumer another owner and name; its current subscription ends.

        Raises:
            KeyError: There is no such consumer.
            PublishError: The new name is in use, or its owner may have no further consumer.
        """
        known = self._store.consumers()[old]
        if new in self._store.consumers():
            raise PublishError(f"there is a consumer {'/'.join(new)} already: delete it first")
        owner, name = new
        moved = msgspec.structs.replace(known, owner=owner, name=name, idle=0.0)
        if owner != old[0] or moved.is_passing != known.is_passing:
            self._make_room(moved)
        holder = self._held.pop(old, None)
        if holder is not None:
            holder.end("replaced")
        self._store.create_consumer(moved)
        self._removed(old)
        self._store.remove_consumer(old, done)
        detail = f"{'/'.join(old)} is {'/'.join(new)} now"
        self._log_event("info", "consumer.moved", new, next=known.next, detail=detail)

    def stop(self) -> None:
        """End all subscriptions; count the absence of consumers up to now."""
        self._age(len(self._to_age))
        self._begin_aging()
        self._age(len(self._to_age))
        for follower in list(self._followers):
            follower.end("stopped")

    # -- called by followers ------------------------------------------------------------------

    def acked(
        self, follower: Follower, next: int, done: Callable[[Exception | None], None]
    ) -> None:
        """Set the cursor of a named consumer that acknowledged through its subscription."""
        key = follower.consumer
        if key is None or self._held.get(key) is not follower:
            done(LookupError("this subscription holds no consumer's name"))
            return
        self.ack(key, next, done)

    def closed(self, follower: Follower) -> None:
        """Remove a follower that has ended."""
        if self._followers.pop(follower, follower) is None:
            self._wanted.remove(follower.patterns.patterns, follower)
            self._known.clear()
        if follower.consumer is not None and self._held.get(follower.consumer) is follower:
            del self._held[follower.consumer]
            known = self._store.consumers().get(follower.consumer)
            if known is not None and known.is_passing:
                self._left_at[follower.consumer] = self._node.clock.seconds()

    def expired(self, batch: Batch) -> None:
        """Count records that expired before a reader reached them."""
        self._node.count("expired", "", batch.count)

    def gone(self, follower: Follower, first: int, next: int) -> None:
        """Log offsets that were lost before a named consumer reached them."""
        if follower.consumer is not None:
            whose = "/".join(follower.consumer)
            self._log_event(
                "error",
                "consumer.gap",
                follower.consumer,
                first=first,
                next=next,
                records=next - first,
                detail=f"offsets {first} to {next - 1}, which {whose} wanted, are gone",
            )
