"""Cursors and other small values that the instances of a node share."""

from __future__ import annotations

from typing import Any

import msgspec

from linkd.log.commit import Post
from linkd.log.cursor_store import CONSUMER, HISTORY, PEER, Done, Rows
from linkd.log.interface import Consumer, PeerCursor
from linkd.log.postgresql.cursors import PostgresqlCursorStore
from linkd.log.postgresql.shared_database import KeptRow
from linkd.log.postgresql.shared_log import SharedLog

_PUT = (
    "insert into linkd.kept (kind, key, value, rank)"
    " select * from unnest(%s::text[], %s::text[], %s::bytea[], %s::bigint[])"
    " on conflict (kind, key) do update"
    " set value = excluded.value, rank = excluded.rank, changed = pg_current_xact_id()"
    " where excluded.value is null or kept.value is null or excluded.rank >= kept.rank"
    " returning changed::text::bigint"
)
_DELETE = (
    "delete from linkd.kept using unnest(%s::text[], %s::text[]) as row (kind, key)"
    " where kept.kind = row.kind and kept.key = row.key"
)

_consumer = msgspec.msgpack.Decoder(Consumer)
_peer = msgspec.msgpack.Decoder(PeerCursor)


class SharedCursorStore(PostgresqlCursorStore):
    """Cursors in `linkd.kept`, where other instances change them too.

    Outages and events belong to one instance: the kind has its name behind `@`. A peer's cursor is
    noted by the instance that holds the peer; a consumer's never goes back. A removed value stays
    as a row without one until all instances have seen that.

    Args:
        log: The log.
        post: Brings a call into the thread in which all methods are called.
    """

    def __init__(self, log: SharedLog, post: Post) -> None:
        self._shared_log = log
        self._of_instance = {f"{kind}@{log.database.instance}": kind for kind in HISTORY}
        self._stored_as = {kind: stored for stored, kind in self._of_instance.items()}
        self._flying: Rows = {}  # is being written
        self._written: dict[tuple[str, str], int] = {}  # in which transaction
        super().__init__(log.database, log.id, post)
        log.on_values.append(self._changed_elsewhere)

    def _take(self, kind: str, key: Any, value: bytes | None) -> None:
        """Take a row into memory."""
        if value is None:
            return
        name, _, instance = kind.partition("@")
        if instance:
            if kind in self._of_instance:
                super()._take(name, int(key), value)
        elif kind in (PEER, CONSUMER):
            super()._take(kind, key, value)
        elif kind not in HISTORY:
            self._set_shared(kind, key, value)

    def share(self, kind: str, key: str, value: bytes | None, done: Done | None = None) -> None:
        """Set a shared value, or remove it; `done` once it is durable."""
        self._set_shared(kind, key, value)
        self._changed(kind, key, value, done)

    # what other instances change

    def _changed_elsewhere(self, rows: list[KeptRow]) -> None:
        """Take what was changed, but for what is older than our own changes."""
        for row in rows:
            key = (row.kind, row.key)
            is_ours = row.changed <= self._written.get(key, 0)
            if is_ours or key in self._dirty or key in self._flying:
                continue
            if row.kind == PEER:
                self._peer_changed(row)
            elif row.kind == CONSUMER:
                self._consumer_changed(row)
            else:
                if self.shared(row.kind).get(row.key) == row.value:
                    continue  # it was seen at the last look
                self._set_shared(row.kind, row.key, row.value)
                for call in tuple(self._watchers.get(row.kind, ())):
                    call(row.key, row.value)

    def _peer_changed(self, row: KeptRow) -> None:
        """Take a peer's cursor; where the peer is held here, ours is the right one."""
        known = self.peers.get(row.key)
        if known is not None and self._shared_log.holds(row.key):
            self.set_peer(known)
        elif row.value is None:
            self.peers.pop(row.key, None)
        else:
            cursor = self.peers[row.key] = _peer.decode(row.value)
            if cursor == known:
                return
            for call in tuple(self.on_peer):
                call(cursor)

    def _consumer_changed(self, row: KeptRow) -> None:
        if row.value is None:
            owner, _, name = row.key.partition("/")
            if self._consumers.pop((owner, name), None) is not None:
                for call in tuple(self.on_removed):
                    call((owner, name))
            return
        consumer = _consumer.decode(row.value)
        known = self._consumers.get(consumer.key)
        if known is None or consumer.next >= known.next:
            self._consumers[consumer.key] = consumer

    # the thread

    def write(self, rows: Rows) -> Exception | None:
        """Write rows in one transaction; return why it failed, if it did."""
        self._flying = rows
        gone = [
            (self._stored_as[kind], str(key))
            for (kind, key), row in rows.items()
            if row is None and kind in HISTORY
        ]
        kept = [
            (self._stored_as.get(kind, kind), str(key), row, _rank(kind, row))
            for (kind, key), row in rows.items()
            if row is not None or kind not in HISTORY
        ]

        def put(connection: Any) -> Any:
            with connection.transaction():
                connection.execute(_DELETE, ([row[0] for row in gone], [row[1] for row in gone]))
                columns = [[row[place] for row in kept] for place in range(4)]
                return connection.execute(_PUT, columns).fetchone()

        try:
            found = self._database.run(put)
        except OSError as error:
            return error
        if found is not None:
            self._written.update(
                {(kind, key): found[0] for kind, key, _, _ in kept if "@" not in kind}
            )
        self._flying = {}
        return None


def _rank(kind: str, row: bytes | None) -> int:
    """Return what must not go back: a consumer's cursor."""
    return _consumer.decode(row).next if kind == CONSUMER and row is not None else 0
