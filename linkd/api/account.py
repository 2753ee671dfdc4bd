"""Bytes that the daemon holds for its callers, in both directions: one account for all of them.

Bodies and messages that have come in part, answers and messages that wait to be read, records read
ahead: what is large is counted here before it is held. A caller may hold as much as is still free:
one alone half of all, two a third each. So there is always room for one more, and nobody has to
know how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MAX_HELD_BYTES: Final = 256 * 1024 * 1024
"""What is held for all callers together; those that hold it are at most twice as much in memory."""

SMALL_BYTES: Final = 65_536
"""So little of a connection need not be counted: it is no more than its buffers."""


class Account:
    """What is held for all callers.

    Args:
        most: How many bytes may be.

    Attributes:
        held: How many bytes are.
    """

    def __init__(self, most: int = MAX_HELD_BYTES) -> None:
        self.most = most
        self.held = 0
        self._parts: dict[str, Part] = {}
        self._waiting: dict[Callable[[], None], None] = {}

    def part(self, name: str) -> Part:
        """Return the part of a caller, by its name: there are as many as keys."""
        part = self._parts.get(name)
        if part is None:
            part = self._parts[name] = Part(self)
        return part

    def when_freed(self, call: Callable[[], None]) -> None:
        """Have `call` made once, as soon as anything was given back."""
        self._waiting[call] = None

    def forget(self, call: Callable[[], None]) -> None:
        """Have `call` not made."""
        self._waiting.pop(call, None)

    def changed(self, size: int) -> None:
        """Count what some part holds more, or less."""
        self.held += size
        if size > 0:
            return
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            call()


class Part:
    """What is held for one caller.

    Attributes:
        held: How many bytes.
    """

    __slots__ = ("_account", "held")

    def __init__(self, account: Account) -> None:
        self._account = account
        self.held = 0

    def take(self, size: int) -> bool:
        """Count bytes that are about to be held; return whether there is room, else none are."""
        if not self.has_room(size):
            return False
        self.add(size)
        return True

    def has_room(self, size: int) -> bool:
        """Return whether so many bytes more may be held."""
        account = self._account
        return self.held + size <= account.most - account.held - size

    def add(self, size: int) -> None:
        """Count bytes that are held already, whether there is room or not."""
        if size:
            self.held += size
            self._account.changed(size)

    def give(self, size: int) -> None:
        """Count bytes that are no longer held."""
        if size:
            self.held -= size
            self._account.changed(-size)
