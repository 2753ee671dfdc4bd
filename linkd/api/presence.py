"""Who is there on `/ws`: those who opened with the same channel hear of each other."""

from __future__ import annotations

from typing import Protocol


class Present(Protocol):
    """One who is there."""

    def joined(self, kind: str, number: int, name: str, count: int) -> None:
        """Hear that another `joined` or `left`, and how many there are now."""


class Presence:
    """All who are there, by channel."""

    def __init__(self) -> None:
        self._there: dict[str, dict[int, Present]] = {}
        self._number = 0

    def join(self, channel: str, name: str, who: Present, watches: bool) -> int:
        """Let `who` be there; the others who watch are told. Return its number, for `leave`."""
        self._number += 1
        number = self._number
        there = self._there.setdefault(channel, {})
        there[number] = who if watches else _NOBODY
        self._tell(channel, "joined", number, name)
        return number

    def leave(self, channel: str, name: str, number: int) -> None:
        """Let it be gone; the others are told."""
        there = self._there.get(channel)
        if there is None or there.pop(number, None) is None:
            return
        if not there:
            del self._there[channel]
            return
        self._tell(channel, "left", number, name)

    def _tell(self, channel: str, kind: str, number: int, name: str) -> None:
        there = self._there[channel]
        for other, who in list(there.items()):
            if other != number:
                who.joined(kind, number, name, len(there))


class _Nobody:
    """One who is there and does not watch."""

    def joined(self, kind: str, number: int, name: str, count: int) -> None:
        """Hear nothing."""


_NOBODY = _Nobody()
