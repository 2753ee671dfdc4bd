"""The ids of records published here, remembered for a while: a repeat gets its first offset."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from zlib import crc32

from linkd.log.origins import ABSENT, Undo

_SPANS = 8
_SHARES = 64
"""Channels are spread over so many shares of their owner's ids."""

_LEAST = 1024
_EVERY = 4096


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


class _Share:
    """The ids of one owner on some channels, in generations, the oldest first."""

    __slots__ = ("began", "generations")

    def __init__(self, stamp: float) -> None:
        self.generations: list[dict[bytes, int]] = [{}]
        self.began = [stamp]

    def __len__(self) -> int:
        return sum(map(len, self.generations))


class Ids:
    """Ids by owner and channel, forgotten in whole generations once older than `window`.

    Each owner has its own. Beyond the bound the owner with the most ids loses the oldest of the
    channels on which it has the most; the ids of all others stay.

    Args:
        window: Seconds on the log's clock for which an id is remembered at least; up to 1/8 more.
        limit: The most ids remembered, about.

    Attributes:
        forgotten: What the bound made it forget, by owner, since the caller last cleared it.
    """

    __slots__ = ("_limit", "_notes", "_shares", "_span", "forgotten", "window")

    def __init__(self, window: float, limit: int) -> None:
        self.window = window
        self.forgotten: dict[str, Forgotten] = {}
        self._limit = limit
        self._span = window / _SPANS
        self._shares: dict[tuple[str, int], _Share] = {}
        self._notes = 0

    def __len__(self) -> int:
        return sum(map(len, self._shares.values()))

    def find(self, owner: str, key: bytes) -> int | None:
        """Return the offset of the owner's record with that digest, or None.

        Ids that a version without owners stored are every owner's.
        """
        offset = self._find((owner, key[0]), key)
        return self._find(("", 0), b"\0" + key[1:]) if offset is None else offset

    def _find(self, place: tuple[str, int], key: bytes) -> int | None:
        share = self._shares.get(place)
        if share is not None:
            for generation in reversed(share.generations):
                offset = generation.get(key)
                if offset is not None:
                    return offset
        return None

    def add(
        self, owner: str, key: bytes, offset: int, stamp: float, undo: Undo | None = None
    ) -> None:
        """Remember a record's digest and offset; `undo` is noted how to take it back."""
        if not owner:
            key = b"\0" + key[1:]
        share = self._shares.get((owner, key[0]))
        if share is None:
            share = self._shares[owner, key[0]] = _Share(stamp)
        newest = share.generations[-1]
        if stamp - share.began[-1] >= self._span or (
            len(newest) >= _LEAST and len(newest) >= len(share) // 4
        ):
            newest = {}
            share.generations.append(newest)
            share.began.append(stamp)
            self._expire(share, stamp)
        newest[key] = offset
        if undo is not None:
            undo.append((newest, key, ABSENT))
        self._notes += 1
        if not self._notes % min(_EVERY, self._limit):
            self._bound(stamp)

    def _expire(self, share: _Share, stamp: float) -> None:
        while len(share.generations) > 1 and share.began[1] <= stamp - self.window:
            del share.generations[0], share.began[0]

    def _bound(self, stamp: float) -> None:
        """Drop what is older than the window, then what is too much."""
        sizes: dict[str, dict[int, int]] = {}
        for (owner, number), share in list(self._shares.items()):
            self._expire(share, stamp)
            if stamp - share.began[-1] > self.window + self._span:
                del self._shares[owner, number]
            else:
                sizes.setdefault(owner, {})[number] = len(share)
        excess = sum(sum(mine.values()) for mine in sizes.values()) - self._limit
        while excess > 0:
            owner = max(sizes, key=lambda owner: sum(sizes[owner].values()))
            number = max(sizes[owner], key=sizes[owner].__getitem__)
            share = self._shares[owner, number]
            gone = len(share.generations[0])
            young = share.began[1] if len(share.generations) > 1 else stamp
            del share.generations[0], share.began[0]
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
            for generation in share.generations:
                yield from ((owner, key, at) for key, at in generation.items() if at >= offset)
