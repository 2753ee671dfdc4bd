"""Cursors and other small values that the instances of a node share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from linkd.log.commit import Post
from linkd.log.cursor_store import CONSUMER, HISTORY, PEER, Done, Rows, Taken, joined
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
    " returning kind, key, changed::text::bigint"
)
_TAKE = (
    "with taken as (select key, value from linkd.kept"
    " where (kind, key) = (%s, %s) and value is not null for update)"
    " update linkd.kept set value = null, changed = pg_current_xact_id() from taken"
    " where kept.kind = %s and kept.key = taken.key returning taken.value"
)
"""The second of two instances waits for the first, and then finds no value."""

_KNOWN = "select value from linkd.kept where kind = 'consumer' and key = any(%s)"
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
        self._creating: set[str] = set()
        self._written: dict[tuple[str, str], int] = {}  # in which transaction
        self._taking: list[tuple[str, str, Taken]] = []
        super().__init__(log.database, log.id, post)
        log.on_values.append(self._changed_elsewhere)

    def _take(self, kind: str, key: Any, value: bytes) -> None:
        """Take a row into memory."""
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

        def shared(error: Exception | None) -> None:
            for call in self.on_shared:
                call()
            if done is not None:
                done(error)

        self._changed(kind, key, value, shared if self.on_shared else done)

    def take(self, kind: str, key: str, done: Taken) -> None:
        """Remove a shared value; only one instance gets it: `done` with it, once it is durable."""
        with self._lock:
            self._taking.append((kind, key, done))
            self._waiting.append(lambda _: None)  # behind what was shared before
            self._lock.notify()

    def refresh(self, done: Callable[[], None]) -> None:
        """Call `done` once all is known that other instances have noted until now."""
        self._shared_log.refresh(done)

    # what other instances change

    def _changed_elsewhere(self, rows: list[KeptRow]) -> None:
        """Take what was changed, but for what is older than our own changes."""
        for row in rows:
            key = (row.kind, row.key)
            is_ours = row.changed <= self._written.get(key, 0)
            is_older = key in self._dirty or key in self._flying
            if is_ours or (is_older and not (row.kind == CONSUMER and row.value)):
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
        """Take a consumer's cursor, which never goes back."""
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

    def create_consumer(self, consumer: Consumer) -> None:
        """Note a new consumer, unless another instance of this node knows it already."""
        self._creating.add(joined(consumer.key))
        self.set_consumer(consumer)

    # the thread

    def write(self, rows: Rows) -> Exception | None:
        """Write rows in one transaction, then take values; return why it failed, if it did."""
        with self._lock:
            taking, self._taking = self._taking, []
        error = self._write(rows) if rows else None
        for kind, key, done in taking:
            taken = error or self._taken(kind, key)
            self._post(partial(self._tell, kind, key, taken, done))
        return error

    def _taken(self, kind: str, key: str) -> bytes | Exception | None:
        """Take a value."""

        def take(connection: Any) -> Any:
            return connection.execute(_TAKE, (kind, key, kind), binary=True).fetchone()

        try:
            row = self._database.run(take)
        except OSError as error:
            return error
        return None if row is None else bytes(row[0])

    def _tell(self, kind: str, key: str, taken: bytes | Exception | None, done: Taken) -> None:
        if isinstance(taken, bytes):
            self._set_shared(kind, key, None)
        done(taken)

    def _write(self, rows: Rows) -> Exception | None:
        """Write rows in one transaction; return why it failed, if it did."""
        self._flying, created = rows, set[str]()
        gone: list[tuple[str, str]] = []
        kept: list[tuple[str, str, bytes | None, int]] = []
        for (kind, key), row in rows.items():
            stored, word, rank = self._stored_as.get(kind, kind), str(key), 0
            if row is None and kind in HISTORY:
                gone.append((stored, word))
                continue
            if kind == CONSUMER and word in self._creating:
                created.add(word)
                rank = -1
            elif kind == CONSUMER and row is not None:
                rank = _consumer.decode(row).next
            kept.append((stored, word, row, rank))

        def put(connection: Any) -> tuple[list[Any], list[Any]]:
            with connection.transaction():
                connection.execute(_DELETE, ([row[0] for row in gone], [row[1] for row in gone]))
                columns = [[row[place] for row in kept] for place in range(4)]
                done = connection.execute(_PUT, columns).fetchall()
                there = [key for kind, key, _ in done if kind == CONSUMER]
                known = [key for key in created if key not in there]
                return done, connection.execute(_KNOWN, (known,)).fetchall() if known else []

        try:
            done, known = self._database.run(put)
        except OSError as error:
            return error
        self._written.update({(kind, key): xid for kind, key, xid in done if "@" not in kind})
        if known:
            self._post(lambda: self._take_known(known))
        self._creating -= created
        self._flying = {}
        return None

    def _take_known(self, rows: list[Any]) -> None:
        """Take consumers that were new here, and are known at another instance."""
        for (value,) in rows:
            consumer = _consumer.decode(value)
            self._consumers[consumer.key] = consumer
