"""The log's state besides its records, folded from its frames; recent record ids.

Epochs, how far it has each peer's log, what it knows of each origin, and producers' numbers
(`linkd.log.producers`). Every change is noted in `undo`, so that a group of frames that never
reached the disk can be taken back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from operator import sub
from typing import TYPE_CHECKING, Any, TypeVar
from zlib import crc32

import msgspec

from linkd.log.interface import UNOWNED
from linkd.log.origins import ABSENT, Origins, OriginsSnapshot, Undo, Verdict
from linkd.log.producers import Produced, Producers
from linkd.protocol.peer import Cursor, EpochEnd, EpochStart
from linkd.protocol.records import Batch, SourcePosition

if TYPE_CHECKING:
    from linkd.log.frame import Head


_SPANS = 8
_SHARES = 64
"""Channels are spread over so many shares of their owner's ids."""

_MOST = 4096
"""Ids of one generation, which goes as a whole; and so often the bound is looked at."""


def digest(channel: str, id: str) -> bytes:
    """Return the 16 bytes that represent an id on a channel; the first is the channel's share.

    Two ids never have the same ones in practice.
    """
    key = blake2b(f"{channel}\0{id}".encode(), digest_size=16).digest()
    return bytes((crc32(channel.encode()) % _SHARES,)) + key[1:]


class Forgotten:
    """Ids that went before their time.

    Attributes:
        count: How many.
        age: Seconds since the youngest of them was published, at least.
    """

    __slots__ = ("age", "count")

    def __init__(self) -> None:
        self.count = 0
        self.age = float("inf")


class _Generation:
    """Ids that were published one after the other."""

    __slots__ = ("began", "first", "keys")

    def __init__(self, began: float, first: int) -> None:
        self.began = began
        self.first = first
        self.keys: list[bytes] = []


class _Share:
    """The ids of one owner on some channels."""

    __slots__ = ("generations", "offsets")

    def __init__(self) -> None:
        self.offsets: dict[bytes, int] = {}
        self.generations: deque[_Generation] = deque()

    def forget_oldest(self) -> int:
        """Forget the oldest generation; return how many ids that were."""
        before, offsets = len(self.offsets), self.offsets
        gone = self.generations.popleft()
        end = self.generations[0].first if self.generations else None
        for key in gone.keys:
            if end is None or offsets.get(key, end) < end:  # else taken back, and given again
                offsets.pop(key, None)
        return before - len(offsets)

    def expire(self, before: float) -> None:
        """Forget what was published before that time as a whole."""
        while len(self.generations) > 1 and self.generations[1].began <= before:
            self.forget_oldest()


class RecentIds:
    """Ids by owner and channel, forgotten in whole generations once older than `window`.

    Each owner has its own. Beyond the bound the owner with the most ids loses the oldest of the
    channels on which it has the most; the ids of all others stay.

    Args:
        window: Seconds on the log's clock for which an id is remembered at least; up to 1/8 more.
        limit: The most ids remembered, about.

        ago: Returns what the log's clock was so many seconds before a stamp.

    Attributes:
        forgotten: What the bound made it forget, by owner, since the caller last cleared it.
    """

    __slots__ = ("_ago", "_limit", "_notes", "_shares", "_span", "forgotten", "window")

    def __init__(
        self, window: float, limit: int, ago: Callable[[float, float], float] = sub
    ) -> None:
        self.window = window
        self._ago = ago
        self.forgotten: dict[str, Forgotten] = {}
        self._limit = limit
        self._span = window / _SPANS
        self._shares: dict[tuple[str, int], _Share] = {}
        self._notes = 0

    def __len__(self) -> int:
        return sum(len(share.offsets) for share in self._shares.values())

    def find(self, owner: str, key: bytes) -> int | None:
        """Return the offset of the owner's record with that digest, or None.

        Ids that a version without owners stored are every owner's.
        """
        share = self._shares.get((owner, key[0]))
        offset = None if share is None else share.offsets.get(key)
        if offset is None and (share := self._shares.get(("", 0))) is not None:
            offset = share.offsets.get(b"\0" + key[1:])
        return offset

    def add(
        self, owner: str, key: bytes, offset: int, stamp: float, undo: Undo | None = None
    ) -> None:
        """Remember a record's digest and offset; `undo` is noted how to take it back."""
        if not owner:
            key = b"\0" + key[1:]
        share = self._shares.get((owner, key[0]))
        if share is None:
            share = self._shares[owner, key[0]] = _Share()
        generations = share.generations
        newest = generations[-1] if generations else None
        if newest is None or len(newest.keys) >= _MOST or stamp - newest.began >= self._span:
            newest = _Generation(stamp, offset)
            generations.append(newest)
            share.expire(self._ago(stamp, self.window))
        newest.keys.append(key)
        share.offsets[key] = offset
        if undo is not None:
            undo.append((share.offsets, key, ABSENT))
        self._notes += 1
        if not self._notes % min(_MOST, self._limit):
            self._bound(stamp)

    def _bound(self, stamp: float) -> None:
        """Forget what is older than the window, then what is too much."""
        sizes: dict[str, dict[int, int]] = {}
        before = self._ago(stamp, self.window + self._span)
        for (owner, number), share in list(self._shares.items()):
            share.expire(self._ago(stamp, self.window))
            if share.generations[-1].began < before:
                del self._shares[owner, number]
            else:
                sizes.setdefault(owner, {})[number] = len(share.offsets)
        excess = sum(sum(mine.values()) for mine in sizes.values()) - self._limit
        while excess > 0:
            owner = max(sizes, key=lambda owner: sum(sizes[owner].values()))
            number = max(sizes[owner], key=sizes[owner].__getitem__)
            share = self._shares[owner, number]
            gone = share.forget_oldest()
            young = share.generations[0].began if share.generations else stamp
            if not share.generations:
                del self._shares[owner, number]
            excess -= gone
            sizes[owner][number] -= gone
            noted = self.forgotten.setdefault(owner, Forgotten())
            noted.count += gone
            noted.age = min(noted.age, max(0.0, stamp - young))

    def since(self, offset: int) -> Iterator[tuple[str, bytes, int]]:
        """Yield owner, digest and offset of what is known of records at or after `offset`."""
        for (owner, _), share in self._shares.items():
            for generation in reversed(share.generations):
                for key in generation.keys:
                    at = share.offsets.get(key, 0)
                    if at >= offset:
                        yield owner, key, at
                if generation.first < offset:
                    break


MAX_EPOCHS = 1024
MAX_CURSOR_EPOCHS = 64
MAX_CHANNELS = 1_000_000
"""Own channels whose last offset is remembered."""

SLICE_ITEMS = 256
"""Entries of one slice of a snapshot: half a millisecond of work.

With 1,024 reading one held the interpreter for 13 ms on a busy machine.
"""

_SLICE_PRODUCERS = 16
"""Each has up to a few hundred runs."""

_Item = TypeVar("_Item")


PeerPosition = tuple[str, tuple[EpochEnd, ...]]
"""How far a peer's log is stored here.

Its id, and the end in each epoch, oldest first, at most 64.
"""


class CursorSet(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A peer's cursor to replace, or with None to forget."""

    peer: str
    place: PeerPosition | None


class EpochOpened(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A new epoch, from `first` on; `shared`: several instances may write in it."""

    epoch: str
    first: int
    shared: bool = False


class PeerHeld(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An instance has a peer's connection: only it stores what comes from there, until another has.

    Args:
        peer: The peer.
        holder: The instance's run.
        boot: The generation of the connection, as the dialer chose it: its boot,
        counter: and its number in that.
    """

    peer: str
    holder: str
    boot: str
    counter: int


Change = CursorSet | EpochOpened | PeerHeld


def follows(place: PeerPosition | None, source: SourcePosition) -> bool:
    """Return whether a step begins at its peer's cursor.

    A first step, or one of a new log, always does.
    """
    return place is None or place[0] != source.log or place[1][-1].next == source.previous


def moved(place: PeerPosition | None, source: SourcePosition) -> PeerPosition:
    """Return the cursor at the end of a step that follows it."""
    end = EpochEnd(source.epoch, source.next)
    if place is None or place[0] != source.log:
        return (source.log, (end,))
    epochs = place[1]
    if epochs[-1].next == source.next:  # the first pieces of a step that is stored in several
        return place
    if epochs[-1].epoch == source.epoch:
        return (source.log, (*epochs[:-1], end))
    return (source.log, (*epochs[1 - MAX_CURSOR_EPOCHS :], end))


def placed(cursor: Cursor) -> PeerPosition:
    """Return a cursor without what is known of its durability."""
    return (cursor.log, cursor.epochs[-MAX_CURSOR_EPOCHS:])


class OriginHigh(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What older versions kept of a channel of another log: one highest offset."""

    epoch: str
    high: int
    older: tuple[str, ...] = ()


class Snapshot(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """A slice of a state, and of what is carried beside it: each field holds some of the entries.

    A snapshot file holds slices of about `SLICE_ITEMS` small entries, so that neither writing nor
    reading one holds the interpreter for long. The union of all slices is the state. `highs` is
    what older versions knew of origins. `lasts` has the last offset of each own channel in an epoch
    that several instances share, `forgets` that some are missing; None in other epochs.
    """

    log: str = ""
    next: int = 0
    epochs: tuple[EpochStart, ...] = ()
    cursors: dict[str, PeerPosition] = {}
    producers: tuple[tuple[str, str, Produced], ...] = ()
    acks: tuple[tuple[str, int, int], ...] = ()
    consumers: tuple[tuple[str, str, int, tuple[str, ...], float], ...] = ()
    origins: OriginsSnapshot = OriginsSnapshot()
    highs: tuple[tuple[str, str, OriginHigh], ...] = ()
    lasts: tuple[tuple[str, int, float], ...] | None = None
    forgets: bool = False


class _Snapshot1(msgspec.Struct, array_like=True, frozen=True):
    """A snapshot of format 1: producers and consumers had no owner."""

    log: str
    next: int
    epochs: tuple[EpochStart, ...]
    cursors: dict[str, PeerPosition]
    highs: tuple[tuple[str, str, OriginHigh], ...]
    highest: dict[str, tuple[int, float]]
    recent: dict[str, tuple[tuple[int, int, int], ...]]
    acks: tuple[tuple[str, int, int], ...] = ()
    consumers: tuple[tuple[str, int, tuple[str, ...], float], ...] = ()


_snapshot1 = msgspec.msgpack.Decoder(_Snapshot1)


def decode_carried(encoded: bytes) -> Snapshot:
    """Return the state that the head of a segment of format 1 carries.

    Raises:
        msgspec.DecodeError: It is none.
    """
    old = _snapshot1.decode(encoded)
    return Snapshot(
        log=old.log,
        next=old.next,
        epochs=old.epochs,
        cursors=old.cursors,
        producers=tuple(
            ("", name, Produced.of_recent(stamp, high, old.recent.get(name, ())))
            for name, (high, stamp) in old.highest.items()
        ),
        acks=old.acks,
        consumers=tuple((UNOWNED, *consumer[:3], 0.0) for consumer in old.consumers),
        highs=old.highs,
    )


class State:
    """The fold over a log's frames.

    Args:
        log: The log's id.

    Attributes:
        next: The offset that the next record gets, frames under way counted.
        undo: Changes since the caller last put a fresh list here; none are kept before.
        cursors: The log id and the epochs of each peer's cursor, frames under way counted.
        origins: The records of other logs that are here.
        holders: Which instance has a peer's connection, as far as seen by this run.
        is_shared: Several instances may write in the newest epoch.
        producers: Which numbers of each producer are stored.
    """

    __slots__ = (
        "_epochs",
        "_has_forgotten",
        "_lasts",
        "cursors",
        "holders",
        "is_shared",
        "log",
        "next",
        "origins",
        "producers",
        "undo",
    )

    def __init__(self, log: str) -> None:
        self.log = log
        self.next = 1
        self.undo: Undo = deque(maxlen=0)
        self.origins = Origins()
        self._epochs: list[EpochStart] = []
        self.cursors: dict[str, PeerPosition] = {}
        self._lasts: dict[str, tuple[int, float]] = {}
        self._has_forgotten = False  # some of `_lasts`, in this epoch
        self.holders: dict[str, PeerHeld] = {}
        self.is_shared = False
        self.producers = Producers()

    # epochs

    @property
    def epoch(self) -> str:
        """The newest epoch; empty before the first."""
        return self._epochs[-1].epoch if self._epochs else ""

    def change(self, change: Change) -> None:
        """Apply a change without records."""
        if isinstance(change, CursorSet):
            self.put(change.peer, change.place)
        elif isinstance(change, EpochOpened):
            self.open_epoch(change.epoch, change.first)
            self.is_shared = change.shared
        else:
            self.undo.append((self.holders, change.peer, self.holders.get(change.peer, ABSENT)))
            self.holders[change.peer] = change

    def open_epoch(self, epoch: str, first: int) -> None:
        """Begin `epoch` at offset `first`; if it is the newest already, move its beginning."""
        if self._epochs and self._epochs[-1].epoch == epoch:
            self._epochs.pop()
        self._epochs.append(EpochStart(epoch, first))
        self._lasts, self._has_forgotten = {}, False
        if len(self._epochs) > MAX_EPOCHS:
            del self._epochs[self._least_wanted()]
        self.next = max(self.next, first)

    def _least_wanted(self) -> int:
        """Return which epoch goes first: the oldest without records, else the oldest.

        Even an empty one may be all that a copy of this log has in common with what grew from it.
        """
        starts = [start.first for start in self._epochs]
        return next((i for i in range(len(starts) - 1) if starts[i] == starts[i + 1]), 0)

    def saved_epochs(self) -> tuple[Any, ...]:
        """Return what `open_epoch` changes, to be restored."""
        return list(self._epochs), self._lasts, self._has_forgotten, self.is_shared

    def restore_epochs(self, saved: tuple[Any, ...]) -> None:
        """Undo `open_epoch`."""
        self._epochs, self._lasts, self._has_forgotten, self.is_shared = saved

    def epochs(self) -> tuple[EpochStart, ...]:
        """Return the newest epochs, oldest first."""
        return tuple(self._epochs)

    def epoch_below(self, position: int) -> str:
        """Return the epoch of the record just below `position`; the oldest known at the start."""
        for start in reversed(self._epochs):
            if start.first < position:
                return start.epoch
        return self._epochs[0].epoch if self._epochs else ""

    # peers' logs

    def put(self, peer: str, place: PeerPosition | None) -> None:
        """Set a peer's cursor, or forget it."""
        cursors = self.cursors
        self.undo.append((cursors, peer, cursors.get(peer, ABSENT)))
        if place is None:
            cursors.pop(peer, None)
        else:
            cursors[peer] = place

    # own channels

    def follow_on(self, channel: str, last: int, stamp: float) -> int | None:
        """Note the last offset of a batch published here.

        Returns:
            The offset of the record before it on its channel in this epoch; 0 if there is none,
            None if it is no longer known.
        """
        lasts = self._lasts
        before = lasts.pop(channel, ABSENT)
        self.undo.append((lasts, channel, before))
        lasts[channel] = (last, stamp)
        if before is not ABSENT:
            return before[0]  # type: ignore[no-any-return]
        if len(lasts) > MAX_CHANNELS:
            del lasts[next(iter(lasts))]
            self._has_forgotten = True
        return None if self._has_forgotten else 0

    def forget_channels(self, before: float) -> None:
        """Forget the last offsets of own channels on which nothing was published since `before`."""
        lasts = self._lasts
        while lasts:
            channel = next(iter(lasts))
            if lasts[channel][1] >= before:
                break
            del lasts[channel]
            self._has_forgotten = True

    # origins

    def admit(self, batch: Batch, stamp: float) -> Verdict | None:
        """Return what is new of a received batch, and remember it; None where all of it is.

        What was published here is never stored again; it is proven where this log reached so far.
        """
        origin = batch.origin
        if origin.log == self.log:
            last = origin.first + batch.count - 1
            return Verdict((), is_proven=self._is_own(origin.epoch, origin.first, last))
        return self.origins.admit(origin, batch.channel, batch.count, stamp, self.undo)

    def _is_own(self, epoch: str, first: int, last: int) -> bool:
        """Return whether this log has had the offsets from `first` to `last` in `epoch`."""
        ends = [start.first for start in self._epochs[1:]] + [self.next]
        return any(
            start.epoch == epoch and start.first <= first and last < end
            for start, end in zip(self._epochs, ends, strict=True)
        )

    # frames

    def replay(
        self,
        batch: Batch | Head,
        stamp: float,
        whole: tuple[int, int] | None = None,
        counts: Sequence[int] = (),
    ) -> None:
        """Fold a stored batch, as when it was stored.

        Args:
            batch: The batch.
            stamp: The log's clock then.
            whole: (first, count) of a publish of several.
            counts: The records of each sequence of a producer that it holds.
        """
        if batch.source is not None:
            self.follow(batch.source)
        self.replay_records(batch, stamp, whole, counts)

    def follow(self, source: SourcePosition) -> None:
        """Move a peer's cursor to the end of a step."""
        self.put(source.peer, moved(self.cursors.get(source.peer), source))

    def replay_records(
        self,
        batch: Batch | Head,
        stamp: float,
        whole: tuple[int, int] | None,
        counts: Sequence[int],
    ) -> None:
        """Like `replay`, but for the cursor."""
        epochs = self._epochs
        if not epochs or batch.epoch != epochs[-1].epoch:
            self.open_epoch(batch.epoch, batch.offset)  # the frame that opened it was lost
        count = batch.count
        self.next = batch.offset + count
        if batch.source is not None:
            origin = batch.origin
            if count and origin is not None and origin.log != self.log:
                self.origins.admit(origin, batch.channel, count, stamp, self.undo)
            return
        if self.is_shared and count:
            self.follow_on(batch.channel, batch.offset + count - 1, stamp)
        if batch.producer is not None:
            first, count = whole or (batch.offset, count)
            self.producers.note(batch.producer, first, counts or (count,), stamp, self.undo)

    def slices(self) -> Iterator[Snapshot]:
        """Yield all of it, in slices; the state must not change meanwhile."""
        yield Snapshot(log=self.log, next=self.next, epochs=tuple(self._epochs))
        for cursors in in_parts(self.cursors.items()):
            yield Snapshot(cursors=dict(cursors))
        for origins in self.origins.slices(SLICE_ITEMS):
            yield Snapshot(origins=origins)
        for known in in_parts(self.producers.known.items(), _SLICE_PRODUCERS):
            yield Snapshot(producers=tuple([(*key, one) for key, one in known]))
        if self.is_shared:
            yield Snapshot(lasts=(), forgets=self._has_forgotten)
            for lasts in in_parts(self._lasts.items()):
                yield Snapshot(lasts=tuple([(channel, *last) for channel, last in lasts]))

    def add(self, part: Snapshot) -> None:
        """Add a slice."""
        self.next = max(self.next, part.next)
        self._epochs += part.epochs
        self.cursors.update(part.cursors)
        self.origins.add(part.origins)
        for origin, _, high in part.highs:
            self.origins.adopt_highest(origin, high.epoch, high.high, high.older)
        for owner, name, known in part.producers:
            self.producers.add(owner, name, known)
        if part.lasts is not None:
            self.is_shared = True
            self._has_forgotten = self._has_forgotten or part.forgets
            self._lasts.update((channel, (last, stamp)) for channel, last, stamp in part.lasts)

    def tables(self) -> Iterator[dict[Any, Any]]:
        """Yield the tables that may be large, inner ones first."""
        yield self.cursors
        yield self._lasts
        yield self.producers.known
        yield from self.origins.tables()

    @classmethod
    def restored(cls, log: str, slices: Iterable[Snapshot]) -> State:
        """Return the state of the log `log` that `slices` were taken of."""
        state = cls(log)
        for part in slices:
            state.add(part)
        return state


def in_parts(items: Iterable[_Item], most: int = SLICE_ITEMS) -> Iterator[list[_Item]]:
    """Yield `items` in lists of at most `most`."""
    rest = iter(items)
    while part := list(islice(rest, most)):
        yield part


def take_back(undo: Undo) -> None:
    """Undo the changes, the newest first."""
    for table, key, old in reversed(undo):
        if old is ABSENT:
            table.pop(key, None)
        else:
            table[key] = old
