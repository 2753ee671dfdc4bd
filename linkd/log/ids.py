"""The ids of records published here, remembered for a while: a repeat is told its first offset."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from linkd.log.origins import ABSENT, Undo

_GENERATIONS = 8


def digest(channel: str, id: str) -> bytes:
    """Return the 16 bytes that stand for an id on a channel.

    Two ids never share them in practice.
    """
    return blake2b(f"{channel}\0{id}".encode(), digest_size=16).digest()


class Ids:
    """Ids by channel, forgotten in whole generations once older than `window`.

    Args:
        window: Seconds on the log's clock for which an id is remembered at least; up to 1/8 more.
        limit: The most ids remembered; the oldest go first.
    """

    __slots__ = ("_began", "_generations", "_limit", "_span", "window")

    def __init__(self, window: float, limit: int) -> None:
        self.window = window
        self._limit = max(limit, _GENERATIONS)
        self._span = window / _GENERATIONS
        self._generations: list[dict[bytes, int]] = [{}]
        self._began: list[float] = [0.0]

    def __len__(self) -> int:
        return sum(map(len, self._generations))

    def find(self, key: bytes) -> int | None:
        """Return the offset of the record with that digest, or None."""
        for generation in reversed(self._generations):
            offset = generation.get(key)
            if offset is not None:
                return offset
        return None

    def add(self, key: bytes, offset: int, stamp: float, undo: Undo | None = None) -> None:
        """Remember a record's digest and offset; `undo` is noted how to take it back."""
        newest = self._generations[-1]
        if stamp - self._began[-1] >= self._span or len(newest) >= self._limit // _GENERATIONS:
            newest = {}
            self._generations.append(newest)
            self._began.append(stamp)
            self.expire(stamp)
        newest[key] = offset
        if undo is not None:
            undo.append((newest, key, ABSENT))

    def expire(self, stamp: float) -> None:
        """Forget what is older than the window, or too much."""
        while len(self._generations) > 1 and (
            self._began[1] < stamp - self.window or len(self._generations) > _GENERATIONS + 1
        ):
            del self._generations[0], self._began[0]

    def since(self, offset: int) -> Iterator[tuple[bytes, int]]:
        """Yield what is known of records at or after `offset`."""
        for generation in self._generations:
            yield from ((key, place) for key, place in generation.items() if place >= offset)
