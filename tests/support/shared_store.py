"""Cursor stores of several instances in one process, which see what the others write."""

from __future__ import annotations

from linkd.log import CursorStore
from linkd.log.cursor_store import Done
from linkd.log.interface import Consumer, Owned, PeerCursor


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
            self.peers.update(other.peers)
            for kind, rows in other._rows.items():
                for key, value in rows.items():
                    self._set_shared(kind, key, value)

    def share(self, kind: str, key: str, value: bytes | None, done: Done | None = None) -> None:
        super().share(kind, key, value, done)
        for other in self._others():
            other.seen(kind, key, value)

    def set_peer(self, cursor: PeerCursor) -> None:
        super().set_peer(cursor)
        for other in self._others():
            if other.peers.get(cursor.peer) != cursor:
                other.peers[cursor.peer] = cursor
                for call in tuple(other.on_peer):
                    call(cursor)

    def remove_peer(self, peer: str) -> None:
        super().remove_peer(peer)
        for other in self._others():
            known = other.peers.pop(peer, None)
            if known is not None:
                for call in tuple(other.on_peer_removed):
                    call(known)

    def set_consumer(self, consumer: Consumer, done: Done | None = None) -> None:
        super().set_consumer(consumer, done)
        for other in self._others():
            other._consumers[consumer.key] = consumer

    def remove_consumer(self, key: Owned, done: Done | None = None) -> None:
        super().remove_consumer(key, done)
        for other in self._others():
            if other._consumers.pop(key, None) is not None:
                for call in tuple(other.on_removed):
                    call(key)

    def _others(self) -> list[SharedStore]:
        away = self._shared.away
        return [one for one in self._shared.stores if one is not self and not {one, self} & away]

    def seen(self, kind: str, key: str, value: bytes | None) -> None:
        """Take another instance's change."""
        self._set_shared(kind, key, value)
        for call in tuple(self._watchers.get(kind, ())):
            call(key, value)
