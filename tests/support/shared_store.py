"""Cursor stores of several instances in one process, which see each other's shared values."""

from __future__ import annotations

from linkd.log import CursorStore
from linkd.log.cursor_store import Done


class SharedStores:
    """What the database is to real instances.

    Attributes:
        away: Instances whose changes others do not see: their database is out of reach.
    """

    def __init__(self) -> None:
        self.stores: list[SharedStore] = []
        self.away: set[SharedStore] = set()

    def open(self) -> SharedStore:
        """Return the store of one more instance."""
        made = SharedStore(self)
        self.stores.append(made)
        return made


class SharedStore(CursorStore):
    """The store of one instance.

    Args:
        shared: The stores of all.
    """

    def __init__(self, shared: SharedStores) -> None:
        super().__init__()
        self._shared = shared
        for other in shared.stores:
            for kind, rows in other._rows.items():
                for key, value in rows.items():
                    self._set_shared(kind, key, value)

    def share(self, kind: str, key: str, value: bytes | None, done: Done | None = None) -> None:
        super().share(kind, key, value, done)
        if self in self._shared.away:
            return
        for other in self._shared.stores:
            if other is not self and other not in self._shared.away:
                other.seen(kind, key, value)

    def seen(self, kind: str, key: str, value: bytes | None) -> None:
        """Take another instance's change."""
        self._set_shared(kind, key, value)
        for call in tuple(self._watchers.get(kind, ())):
            call(key, value)
