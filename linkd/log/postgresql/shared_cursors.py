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
from linkd.log.postgresql.database import LOCK
from linkd.log.postgresql.shared_database import KeptRow
from linkd.log.postgresql.shared_log import SharedLog

_ORDER = LOCK + 2
"""The advisory lock of a writer: transactions commit in the order of their numbers."""

_PUT = (
    "insert into linkd.kept (kind, key, value, rank)"
    " select * from unnest(%s::text[], %s::text[], %s::bytea[], %s::bigint[])"
    " on conflict (kind, key) do update"
    " set value = excluded.value, rank = excluded.rank, changed = pg_current_xact_id()"
    " where case when excluded.value is null then true"
    " when kept.value is null then kept.kind <> 'consumer' or excluded.rank < 0"
    " else excluded.rank >= greatest(kept.rank, 0) end"
    " returning kind, key, changed::text::bigint, value is null"
)
"""A removed consumer comes back only where it is created (rank -1), which replaces none."""

_REFUSED = (
    "select kept.kind, kept.key, kept.value from linkd.kept"
    " join unnest(%s::text[], %s::text[]) as row (kind, key)"
    " on kept.kind = row.kind and kept.key = row.key"
)
_TAKE = (
    "with taken as (select key, value from linkd.kept"
    " where (kind, key) = (%s, %s) and value is not null for update)"
    " update linkd.kept set value = null, changed = pg_current_xact_id() from taken"
    " where kept.kind = %s and kept.key = taken.key returning taken.value"
)
"""The second of two instances waits for the first, and then finds no value."""

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
        self._creating: set[tuple[str, str]] = set()
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
                self._consumer_changed(row.key, row.value, int(is_older))
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
        elif row.value is not None:
            self._take_peer(row.value)
        elif known is not None:
            del self.peers[row.key]
            for call in tuple(self.on_peer_removed):
                call(known)

    def _take_peer(self, value: bytes) -> None:
        cursor = _peer.decode(value)
        known, self.peers[cursor.peer] = self.peers.get(cursor.peer), cursor
        if cursor != known:
            for call in tuple(self.on_peer):
                call(cursor)

    def _consumer_changed(self, key: str, value: bytes | None, least: int = 0) -> None:
        """Take a consumer's cursor, if it is `least` or more beyond ours: it never goes back."""
        if value is None:
            owner, _, name = key.partition("/")
            if self._consumers.pop((owner, name), None) is not None:
                for call in tuple(self.on_removed):
                    call((owner, name))
            return
        consumer = _consumer.decode(value)
        known = self._consumers.get(consumer.key)
        if known is None or consumer.next - known.next >= least:
            self._consumers[consumer.key] = consumer

    def create_consumer(self, consumer: Consumer) -> None:
        """Note a new consumer, unless another instance of this node knows it already."""
        self._creating.add((CONSUMER, joined(consumer.key)))
        self.set_consumer(consumer)

    def create_peer(self, cursor: PeerCursor) -> None:
        """Note the cursor of a new peer, unless another instance of this node knows it already."""
        self._creating.add((PEER, cursor.peer))
        self.set_peer(cursor)

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
            with connection.transaction():
                connection.execute("select pg_advisory_xact_lock(%s)", (_ORDER,))
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
        self._flying, created = rows, set[tuple[str, str]]()
        gone: list[tuple[str, str]] = []
        kept: list[tuple[str, str, bytes | None, int]] = []
        for (kind, key), row in rows.items():
            stored, word, rank = self._stored_as.get(kind, kind), str(key), 0
            if row is None and kind in HISTORY:
                gone.append((stored, word))
                continue
            if (kind, word) in self._creating:
                created.add((kind, word))
                rank = -1
            elif kind == CONSUMER and row is not None:
                rank = _consumer.decode(row).next
            kept.append((stored, word, row, rank))

        def put(connection: Any) -> tuple[list[Any], list[Any]]:
            with connection.transaction():
                connection.execute("select pg_advisory_xact_lock(%s)", (_ORDER,))
                connection.execute(_DELETE, ([row[0] for row in gone], [row[1] for row in gone]))
                columns = [[row[place] for row in kept] for place in range(4)]
                done = connection.execute(_PUT, columns).fetchall()
                if len(done) == len(kept):
                    return done, []
                there = {row[:2] for row in done}
                refused = [row[:2] for row in kept if row[:2] not in there]
                columns = [[row[place] for row in refused] for place in range(2)]
                return done, connection.execute(_REFUSED, columns).fetchall()

        try:
            done, refused = self._database.run(put)
        except OSError as error:
            return error
        for kind, key, xid, is_gone in done:
            if is_gone:
                self._written.pop((kind, key), None)
            elif "@" not in kind:
                self._written[kind, key] = xid
        if refused:
            self._post(lambda: self._take_refused(refused, created))
        self._creating -= created
        self._flying = {}
        return None

    def _take_refused(self, rows: list[Any], created: set[tuple[str, str]]) -> None:
        """Take what the database has in place of what was refused."""
        for kind, key, value in rows:
            if kind == PEER:
                self._take_peer(value)
            else:
                if (kind, key) in created:
                    self._consumers.pop(_consumer.decode(value).key, None)
                self._consumer_changed(key, value)
