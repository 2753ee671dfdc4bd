"""How a bounded table is shared: the owner that uses most of it gives way, the others keep theirs.

Finding that owner is cheap: at the bound, at most 1,024 owners can have more than a 1,024th.
"""

from __future__ import annotations

from collections.abc import Hashable, ItemsView
from itertools import islice
from typing import Any

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
    """

    __slots__ = ("_keys", "_owners", "_usage")

    def __init__(self, most: int) -> None:
        self._owners: dict[Hashable, str] = {}
        self._keys: dict[str, dict[Hashable, None]] = {}
        self._usage = Usage(most)

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._owners

    def owners(self) -> ItemsView[Any, str]:
        """Return the keys, each with its owner."""
        return self._owners.items()

    def add(self, owner: str, key: Hashable) -> None:
        """Add a key, unless it is there."""
        if key in self._owners:
            return
        if len(self._owners) >= self._usage.most:
            keys = self._keys[self._usage.largest()]
            for old in list(islice(keys, max(1, len(keys) // 8))):
                self.pop(old)
        self._owners[key] = owner
        self._keys.setdefault(owner, {})[key] = None
        self._usage.add(owner, 1)

    def pop(self, key: Hashable, default: None = None) -> None:
        """Remove a key, if it is there."""
        owner = self._owners.pop(key, default)
        if owner is not None:
            keys = self._keys[owner]
            del keys[key]
            if not keys:
                del self._keys[owner]
            self._usage.add(owner, -1)
