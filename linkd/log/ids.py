"""The ids of records published here, remembered for a while: a repeat gets its first offset."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from hashlib import blake2b
from operator import sub
from zlib import crc32

from linkd.log.origins import ABSENT, Undo

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


class Ids:
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
