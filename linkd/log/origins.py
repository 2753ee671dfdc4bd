"""Record which records of other logs this log holds, in tables with fair shares: pure.

Finding that owner is cheap: at the bound, at most 1,024 owners can have more than a 1,024th.

A key is (origin's log, epoch, channel). Its records have offsets with holes, so a highest offset
proves nothing about lower ones. Each batch names the offset `after` of the record before it on its
channel. A batch therefore covers the offsets `after + 1` to its last one, and intervals that touch
have nothing between them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterator, MutableSequence
from itertools import chain, islice
from sys import intern
from typing import Any

import msgspec

from linkd.protocol.records import Origin

_PARTS = 1024


class Usage:
    """How many entries each owner has.

    Args:
        most: The bound of all together; callers keep to it.

    Attributes:
        most: The same.
        total: Entries of all owners.
    """

    __slots__ = ("_heavy", "_of", "most", "total")

    def __init__(self, most: int) -> None:
        self.most = most
        self.total = 0
        self._of: dict[str, int] = {}
        self._heavy: dict[str, None] = {}  # each that had more than its part at some time

    def add(self, owner: str, more: int) -> None:
        """Count entries that came or, where `more` is negative, went."""
        self.total += more
        entries = self._of.get(owner, 0) + more
        if entries > 0:
            self._of[owner] = entries
            if entries * _PARTS > self.most:
                self._heavy[owner] = None
        else:
            self._of.pop(owner, None)

    def largest(self) -> str:
        """Return the owner with the most entries.

        Where none has more than a 1,024th of the bound: the largest of 1,024 owners.

        Raises:
            ValueError: Nobody has any.
        """
        of, part = self._of, self.most // _PARTS
        for owner in [owner for owner in self._heavy if of.get(owner, 0) <= part]:
            del self._heavy[owner]
        return max(self._heavy or islice(of, _PARTS), key=lambda owner: of[owner])


class FairSet:
    """Keys of owners; at the bound the owner with the most loses the oldest eighth of its keys.

    Args:
        most: The bound of all owners together.

    Attributes:
        owners: The owner of each key, to read.
    """

    __slots__ = ("_keys", "_usage", "owners")

    def __init__(self, most: int) -> None:
        self.owners: dict[Any, str] = {}
        self._keys: dict[str, dict[Hashable, None]] = {}
        self._usage = Usage(most)

    def __len__(self) -> int:
        return len(self.owners)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.owners

    def tables(self) -> Iterator[dict[Any, Any]]:
        """Yield its tables."""
        yield self.owners
        yield from self._keys.values()

    def add(self, owner: str, key: Hashable) -> None:
        """Add a key, unless it is there."""
        if key in self.owners:
            return
        if len(self.owners) >= self._usage.most:
            keys = self._keys[self._usage.largest()]
            for old in list(islice(keys, max(1, len(keys) // 8))):
                self.pop(old)
        self.owners[key] = owner
        self._keys.setdefault(owner, {})[key] = None
        self._usage.add(owner, 1)

    def pop(self, key: Hashable, default: None = None) -> None:
        """Remove a key, if it is there."""
        owner = self.owners.pop(key, default)
        if owner is not None:
            keys = self._keys[owner]
            del keys[key]
            if not keys:
                del self._keys[owner]
            self._usage.add(owner, -1)


MAX_INTERVALS = 64
"""Intervals of one key. Beyond that the lowest one is forgotten."""

MAX_ENTRIES = 1_000_000
"""Intervals and epochs of all logs. Beyond that the node with the most loses its oldest."""

MAX_LOGS = 100_000
"""Logs of other nodes. Beyond that a node with several loses its oldest."""

MAX_EPOCHS = 1024
"""Epochs of one log. Beyond that the longest unused one is folded."""

MAX_FOLDED = 10_000
"""Epochs that are remembered only as folded."""

MAX_DOUBTED = 65_536
"""Late and unproven batches that are remembered one by one: no interval may hold them."""

FOLD_SECONDS = 14 * 86_400.0
"""An epoch is folded at the earliest when this node has run so long since its last record."""

_MOST_IDLE_SECONDS = 3600.0
"""A longer time between two commits counts only so much: the node may have been off."""

_SHARES, _MOST_IN_ONE = 256, 4096
"""An epoch of more channels has so many tables for them."""

ABSENT: Any = object()

Undo = MutableSequence[tuple[Any, Any, Any]]
"""For each change: the table, the key, and the value before it."""

Intervals = tuple[int, ...]
"""Low and last offset of each interval, in ascending order; between two of them may be a hole."""


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What is new of a received batch.

    Args:
        fresh: (records to skip, number of records) of each part that is new, in order.
        is_proven: This node knows that it did not have them before.
        late: New records of which a later one of the same origin and channel is already here.
    """

    fresh: tuple[tuple[int, int], ...]
    is_proven: bool = True
    late: int = 0


class KnownEpoch(msgspec.Struct, array_like=True):
    """What is known of one epoch of an origin's log, or a slice of it.

    Args:
        channels: The intervals of each channel.
        top: The highest offset.
        floor: Intervals of any channel that reached up to here were forgotten; 0 if none were.
        used: Running seconds (`Origins.running`) at its last record.
        floors: The same as `floor`, of single channels.
    """

    channels: dict[str, Intervals] = msgspec.field(default_factory=dict)
    top: int = 0
    floor: int = 0
    used: float = 0.0
    floors: dict[str, int] = msgspec.field(default_factory=dict)


class KnownLog(msgspec.Struct, array_like=True):
    """What is known of an origin's log.

    Args:
        epochs: Its epochs.
        top: The highest offset in any of them.
        node: The name of its node, as in its first record.
    """

    epochs: dict[str, KnownEpoch] = msgspec.field(default_factory=dict)
    top: int = 0
    node: str = ""


class Channels:
    """The intervals of each channel of an epoch, in many tables once there are many.

    One with a million entries that grows holds the interpreter for 40 ms.

    Args:
        usage: Counts the intervals.
        node: Whose they are.
    """

    __slots__ = ("_node", "_usage", "shares")

    def __init__(self, usage: Usage, node: str) -> None:
        self.shares: list[dict[str, Intervals]] = [{}]
        self._usage: Usage | None = usage
        self._node = node

    def _share(self, channel: str) -> dict[str, Intervals]:
        shares = self.shares
        return shares[(hash(channel) >> 32) & (len(shares) - 1)]

    def get(self, channel: str) -> Intervals | None:
        """Return the intervals of a channel, None if there are none."""
        return self._share(channel).get(channel)

    def pop(self, channel: str, default: None = None) -> None:
        """Forget a channel."""
        held = self._share(channel).pop(channel, default)
        if held is not None:
            self._count(-len(held))

    def __setitem__(self, channel: str, held: Intervals) -> None:
        share = self._share(channel)
        old = share.get(channel, ())
        share[channel] = held
        if len(held) != len(old):
            self._count(len(held) - len(old))
        if len(share) > _MOST_IN_ONE and len(self.shares) == 1:
            self._split(share)

    def _split(self, share: dict[str, Intervals]) -> None:
        """Go on with many tables."""
        shares = self.shares = [{} for _ in range(_SHARES)]
        for name, one in share.items():
            shares[(hash(name) >> 32) & (_SHARES - 1)][name] = one

    def update(self, channels: dict[str, Intervals]) -> None:
        """Set the intervals of many channels."""
        if len(self.shares) == 1 and len(self.shares[0]) + len(channels) > _MOST_IN_ONE:
            self._split(self.shares[0])
        shares, bounds = self.shares, 0
        last = len(shares) - 1
        for channel, held in channels.items():
            share = shares[(hash(channel) >> 32) & last]
            bounds += len(held) - len(share.get(channel, ()))
            share[intern(channel)] = held
        self._count(bounds)

    def _count(self, bounds: int) -> None:
        if self._usage is not None:
            self._usage.add(self._node, bounds // 2)

    def uncount(self) -> None:
        """Stop counting: the epoch is forgotten, though a change may still be taken back."""
        self._count(-sum(map(len, self.values())))
        self._usage = None

    def drop_oldest(self) -> dict[str, Intervals]:
        """Forget the older half of the channels in the largest table; return them."""
        share = max(self.shares, key=len)
        order = sorted(share.items(), key=_last)
        gone = dict(order[: (len(order) + 1) // 2])
        for channel in gone:
            self.pop(channel)
        return gone

    def items(self) -> Iterator[tuple[str, Intervals]]:
        """Return an iterator over channels and their intervals."""
        return chain.from_iterable(share.items() for share in self.shares)

    def values(self) -> Iterator[Intervals]:
        """Return an iterator over the intervals."""
        return chain.from_iterable(share.values() for share in self.shares)


class LiveEpoch:
    """An epoch in memory; like `KnownEpoch`."""

    __slots__ = ("channels", "floor", "floors", "top", "used")

    def __init__(self, usage: Usage, node: str, used: float = 0.0, top: int = 0) -> None:
        self.channels = Channels(usage, node)
        self.top = top
        self.floor = 0
        self.used = used
        self.floors: dict[str, int] = {}

    def shell(self) -> KnownEpoch:
        """Return it without its channels."""
        return KnownEpoch({}, self.top, self.floor, self.used)

    def shed(self) -> bool:
        """Forget the oldest channels of many, and that they reached so far; False: it has none."""
        gone = self.channels.drop_oldest()
        for channel, held in gone.items():
            self.floors.pop(channel, None)
            self.floor = max(self.floor, held[-1])
        return bool(gone)


class LiveLog:
    """A log in memory; like `KnownLog`.

    Args:
        usage: Counts its entries.
        owner: For whom: its node, or the log itself where that is not known.
        node: Its node.
    """

    __slots__ = ("_usage", "epochs", "node", "owner", "top")

    def __init__(self, usage: Usage, owner: str, node: str = "") -> None:
        self._usage = usage
        self.epochs: dict[str, LiveEpoch] = {}
        self.owner = owner
        self.node = node
        self.top = 0

    def enter(self, name: str, used: float = 0.0, top: int = 0) -> LiveEpoch:
        """Add an epoch."""
        epoch = self.epochs[name] = LiveEpoch(self._usage, self.owner, used, top)
        self._usage.add(self.owner, 1)
        return epoch

    def lowest(self, spared: LiveEpoch | None) -> str:
        """Return the epoch with the lowest offsets, `spared` only if there is no other."""
        epochs = self.epochs
        return min(epochs, key=lambda name: (epochs[name] is spared, epochs[name].top), default="")

    def leave(self, name: str) -> None:
        """Remove an epoch, if it is there."""
        epoch = self.epochs.pop(name, None)
        if epoch is not None:
            epoch.channels.uncount()
            self._usage.add(self.owner, -1)


class OriginsSnapshot(msgspec.Struct, array_like=True, frozen=True):
    """A slice of it, for a snapshot; `folded` holds (log, epoch, the log's node)."""

    logs: dict[str, KnownLog] = msgspec.field(default_factory=dict)
    folded: tuple[tuple[str, ...], ...] = ()
    running: float = 0.0


class Origins:
    """The records of other logs that are here.

    Admitting a batch twice is the same as admitting it once, so a snapshot may be older than the
    frames that are folded on top of it.

    Attributes:
        running: Seconds that this node has run, by the stamps of its commits.
    """

    __slots__ = ("_doubted", "_folded", "_logs", "_of_node", "_stamp", "_usage", "running")

    def __init__(self) -> None:
        self._logs: dict[str, LiveLog] = {}
        self._of_node: dict[str, dict[str, LiveLog]] = {}
        self._usage = Usage(MAX_ENTRIES)
        self._folded = FairSet(MAX_FOLDED)
        self._doubted = FairSet(MAX_DOUBTED)
        self._stamp: float | None = None
        self.running = 0.0

    @property
    def entries(self) -> int:
        """Intervals and epochs in memory."""
        return self._usage.total

    def node(self, log: str) -> str | None:
        """Return the name of a log's node, as its records here name it; None if there are none."""
        known = self._logs.get(log)
        return (known.node or None) if known is not None else None

    def intervals(self, log: str, epoch: str, channel: str) -> Intervals:
        """Return the intervals of one key."""
        known = self._logs.get(log)
        found = None if known is None else known.epochs.get(epoch)
        return () if found is None else found.channels.get(channel) or ()

    def admit(
        self, origin: Origin, channel: str, count: int, stamp: float, undo: Undo
    ) -> Verdict | None:
        """Return what is new of a batch, and remember all of it.

        Args:
            origin: Where its first record was published.
            channel: Its channel.
            count: Number of its records, at least 1.
            stamp: The log's clock.
            undo: Gets how to take back what changes.

        Returns:
            None where all of it is new, proven and in order, as nearly always.
        """
        if stamp != self._stamp:
            self._advance(stamp)
        log = self._logs.get(origin.log)
        epoch = None if log is None else log.epochs.get(origin.epoch)
        if log is not None and epoch is not None:
            first, after = origin.first, origin.after
            last = first + count - 1
            channels = epoch.channels
            shares = channels.shares
            share = shares[(hash(channel) >> 32) & (len(shares) - 1)]
            held = share.get(channel)
            if (
                held is not None
                and after is not None
                and after <= held[-1] < first
                and last > log.top
                and first > epoch.floor
                and not epoch.floors
            ):  # the next batch of its channel and of its log, as nearly always
                undo.append((channels, channel, held))
                share[channel] = (held[0], last) if len(held) == 2 else (*held[:-1], last)
                epoch.used = self.running
                epoch.top = log.top = last
                return None
        verdict = self._judge(log, epoch, origin, channel, count, undo)
        if verdict is None or not verdict.fresh:
            return verdict
        # Stored once only: nodes in a circle would hand each other for ever what none can prove.
        doubted, key = self._doubted, (origin.log, origin.epoch, channel, origin.first, count)
        if key in doubted and not verdict.is_proven:
            return Verdict(())
        undo.append((doubted, key, ABSENT))
        doubted.add(origin.node, key)
        return verdict

    def _judge(
        self,
        log: LiveLog | None,
        epoch: LiveEpoch | None,
        origin: Origin,
        channel: str,
        count: int,
        undo: Undo,
    ) -> Verdict | None:
        """Return what is new of a batch by the intervals, and put it into them."""
        if log is None or epoch is None:
            if (origin.log, origin.epoch) in self._folded or not self._has_room(origin, log):
                return Verdict(((0, count),), is_proven=False)
            log, epoch = self._enter(origin, undo)
        first, after = origin.first, origin.after
        last = first + count - 1
        low = first if after is None or after >= first else after + 1
        held = epoch.channels.get(channel)
        fresh: tuple[tuple[int, int], ...] | None = None
        late = 0
        if held is None:
            changed: Intervals = (low, last)
            channel = intern(channel)
        elif first > held[-1]:
            changed = (*held[:-1], last) if low <= held[-1] + 1 else (*held, low, last)
        else:
            fresh = _outside(held, first, last)
            late = sum(some for skip, some in fresh if first + skip < held[-1])
            changed = _joined(held, low, last)
        is_proven = fresh == () or first > epoch.floor
        if epoch.floors and is_proven and fresh != ():
            is_proven = first > epoch.floors.get(channel, 0)
        if changed != held:
            is_proven &= self._keep(epoch, channel, held, changed, undo)
        epoch.used = self.running
        epoch.top = max(epoch.top, last)
        if last > log.top:
            log.top = last
        elif epoch.top < log.top and fresh != () and _is_passed(log, channel, last):
            late = count if fresh is None else sum(some for _, some in fresh)
        if fresh is None:
            if is_proven and not late:
                return None
            fresh = ((0, count),)
        return Verdict(fresh, is_proven, late)

    def _keep(
        self,
        epoch: LiveEpoch,
        channel: str,
        held: Intervals | None,
        changed: Intervals,
        undo: Undo,
    ) -> bool:
        """Set the intervals of a key; return False if there was no room for them."""
        if len(changed) > 2 * MAX_INTERVALS:
            epoch.floors[channel] = max(epoch.floors.get(channel, 0), changed[1])
            changed = changed[2:]
        undo.append((epoch.channels, channel, ABSENT if held is None else held))
        if len(changed) > len(held or ()) and not self._make_room(epoch):
            epoch.floor = max(epoch.floor, changed[-1])
            return False
        epoch.channels[channel] = changed
        return True

    def _enter(self, origin: Origin, undo: Undo) -> tuple[LiveLog, LiveEpoch]:
        """Begin an epoch; the others of its log stay, but for the longest unused of too many."""
        log = self._logs.get(origin.log)
        if log is None:
            log = self._begin(origin.log, origin.node)
        epochs = log.epochs
        if len(epochs) >= MAX_EPOCHS:
            self._fold(origin.log, min(epochs, key=lambda name: epochs[name].used))
        undo.append((self, (origin.log, origin.epoch), ABSENT))
        return log, log.enter(origin.epoch, self.running)

    def _begin(self, name: str, node: str) -> LiveLog:
        """Begin a log."""
        log = self._logs[name] = LiveLog(self._usage, node or name, node)
        self._of_node.setdefault(log.owner, {})[name] = log
        return log

    def _advance(self, stamp: float) -> None:
        """Count the time up to a commit as running time."""
        if self._stamp is not None:
            self.running += min(max(0.0, stamp - self._stamp), _MOST_IDLE_SECONDS)
        self._stamp = stamp

    # folding

    def fold(self, seconds: float) -> int:
        """Fold the epochs that were left and whose last record came so long ago; return how many.

        What arrives of a folded epoch is stored, since nothing proves that it was here.

        Args:
            seconds: Running seconds; 14 days if less.
        """
        before = self.running - max(seconds, FOLD_SECONDS)
        gone = [
            (log, name)
            for log, known in self._logs.items()
            for name, epoch in known.epochs.items()
            if epoch.top < known.top and epoch.used < before  # a newer one has higher offsets
        ]
        for key in gone:
            self._fold(*key)
        return len(gone)

    def _has_room(self, origin: Origin, log: LiveLog | None) -> bool:
        """Make room for an epoch, and for its log where `log` is None; return False if none is."""
        if log is None and len(self._logs) >= MAX_LOGS:
            logs = self._of_node.get(origin.node) or self._of_node[self._usage.largest()]
            if len(logs) == 1 and origin.node not in self._of_node:
                return False
            oldest = next(iter(logs))
            for name in list(logs[oldest].epochs):
                self._fold(oldest, name)
        return self._make_room()

    def _make_room(self, spared: LiveEpoch | None = None) -> bool:
        """Make room for one more entry; return False if there is none.

        At the bound the node with the most entries loses its oldest ones: in its oldest log, half
        of a table of the epoch with the lowest offsets. The entries of other nodes stay.

        Args:
            spared: This epoch is not folded.
        """
        if self._usage.total < self._usage.most:
            return True
        for log, known in self._of_node[self._usage.largest()].items():
            name = known.lowest(spared)
            epoch = known.epochs.get(name)
            if epoch is not None and epoch.shed():
                return True
            if epoch is not None and epoch is not spared:
                self._fold(log, name)
                return True
        return False

    def _fold(self, log: str, epoch: str) -> None:
        """Forget an epoch's intervals, and remember that they are forgotten."""
        self._folded.add(self._logs[log].owner, (log, epoch))
        self.pop((log, epoch))

    def pop(self, key: tuple[str, str], default: None = None) -> None:
        """Remove an epoch, given by log and name, and its log with the last one."""
        log, epoch = key
        known = self._logs.get(log)
        if known is None:
            return
        known.leave(epoch)
        if not known.epochs:
            del self._logs[log]
            logs = self._of_node[known.owner]
            del logs[log]
            if not logs:
                del self._of_node[known.owner]

    # snapshots

    def slices(self, size: int) -> Iterator[OriginsSnapshot]:
        """Yield all of it in slices of about `size` entries; it must not change meanwhile."""
        part: dict[str, KnownLog] = {}
        room = size
        for log, name, epoch, channels, floors in self._rows(size):
            known = self._logs[log]
            into = part.setdefault(log, KnownLog(top=known.top, node=known.node)).epochs
            if epoch is not None:
                shell = into.setdefault(name, epoch.shell())
                shell.channels |= channels
                shell.floors |= floors
            room -= 1 + len(channels) + len(floors)
            if room <= 0:
                yield OriginsSnapshot(part, (), self.running)
                part, room = {}, size
        yield OriginsSnapshot(part, (), self.running)
        folded = iter(self._folded.owners.items())
        while some := tuple((*key, node) for key, node in islice(folded, size)):
            yield OriginsSnapshot({}, some, self.running)

    def _rows(
        self, size: int
    ) -> Iterator[tuple[str, str, LiveEpoch | None, dict[str, Intervals], dict[str, int]]]:
        """Yield each log, and of each of its epochs at most `size` channels or floors at a time."""
        for log, known in self._logs.items():
            yield log, "", None, {}, {}
            for name, epoch in known.epochs.items():
                yield log, name, epoch, {}, {}
                channels = epoch.channels.items()
                while some := dict(islice(channels, size)):
                    yield log, name, epoch, some, {}
                floors = iter(epoch.floors.items())
                while few := dict(islice(floors, size)):
                    yield log, name, epoch, {}, few

    def tables(self) -> Iterator[dict[Any, Any]]:
        """Yield the tables that may be large, inner ones first."""
        for log in self._logs.values():
            for epoch in log.epochs.values():
                yield from epoch.channels.shares
                yield epoch.floors
            yield log.epochs
        yield from (self._logs, *self._of_node.values())
        yield from (*self._folded.tables(), *self._doubted.tables())

    def add(self, part: OriginsSnapshot) -> None:
        """Add a slice."""
        for log, known in part.logs.items():
            into = self._logs.get(log) or self._begin(log, known.node)
            into.top = max(into.top, known.top)
            for name, epoch in known.epochs.items():
                one = into.epochs.get(name)
                if one is None:
                    one = into.enter(name, epoch.used, epoch.top)
                one.floor = max(one.floor, epoch.floor)
                one.floors |= epoch.floors
                one.channels.update(epoch.channels)
        for name, epoch_name, *node in part.folded:
            self._folded.add(node[0] if node else name, (name, epoch_name))
        self.running = max(self.running, part.running)

    def adopt(self, origin: Origin, channel: str, held: Intervals) -> None:
        """Take over the intervals of a channel of which nothing is known yet, unless folded.

        `origin` has the node, the log and the epoch.
        """
        if (origin.log, origin.epoch) in self._folded:
            return
        log = self._logs.get(origin.log) or self._begin(origin.log, origin.node)
        log.node = log.node or origin.node
        one = log.epochs.get(origin.epoch) or log.enter(origin.epoch)
        if len(held) > 2 * MAX_INTERVALS:
            one.floors[channel] = held[-2 * MAX_INTERVALS - 1]
            held = held[-2 * MAX_INTERVALS :]
        one.channels.update({channel: held})
        one.top = max(one.top, held[-1])
        log.top = max(log.top, held[-1])

    def adopt_highest(self, log: str, epoch: str, high: int, older: tuple[str, ...]) -> None:
        """Take over what older versions kept of a channel; nothing is proven up to `high`."""
        known = self._logs.get(log) or self._begin(log, "")
        one = known.epochs.get(epoch) or known.enter(epoch)
        one.top = one.floor = max(one.floor, high)
        known.top = max(known.top, high)
        for name in older:
            self._folded.add(log, (log, name))


def _last(item: tuple[str, Intervals]) -> int:
    """Return where a channel's newest interval ends."""
    return item[1][-1]


def _outside(held: Intervals, first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Return (skip, count) of each part of `first` to `last` that is in no interval."""
    found = []
    at = first
    place = bisect_left(held, first) & ~1  # the first interval that ends at or behind `first`
    while at <= last and place < len(held):
        low, end = held[place], held[place + 1]
        if at < low:
            found.append((at - first, min(low - 1, last) - at + 1))
        at = max(at, end + 1)
        place += 2
    if at <= last:
        found.append((at - first, last - at + 1))
    return tuple(found)


def _joined(held: Intervals, low: int, last: int) -> Intervals:
    """Return the intervals with `low` to `last` among them; those that touch become one."""
    begin = bisect_left(held, low - 1) & ~1  # the first interval that ends at `low` - 1 or behind
    end = begin
    while end < len(held) and held[end] <= last + 1:
        low, last = min(low, held[end]), max(last, held[end + 1])
        end += 2
    return (*held[:begin], low, last, *held[end:])


def _is_passed(log: LiveLog, channel: str, last: int) -> bool:
    """Return whether another epoch of the log has a later record of the channel."""
    return any(
        held is not None and held[-1] > last
        for held in (epoch.channels.get(channel) for epoch in reversed(log.epochs.values()))
    )
