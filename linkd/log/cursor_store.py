"""Durable cursors of peers and consumers, outages and events, in one SQLite file beside the log.

Memory has all of it; one thread writes the changes, many in one transaction. A lost file costs
progress, never records: the log's last snapshot carries the cursors too.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import apsw
import msgspec

from linkd import clock
from linkd.errors import LogDamaged, StateTooNew
from linkd.log.commit import Post
from linkd.log.files import DiskFiles
from linkd.log.interface import UNOWNED, Consumer, OperatorNotice, Owned, PeerCursor
from linkd.log.state import Snapshot, in_parts

FORMAT = 2
LAZY_SECONDS = 0.1
"""Seconds until a change that no caller waits for is on disk."""

RETRY_SECONDS = 1.0

_WAL_BYTES = 4 << 20
_ROWS_AT_ONCE = 256
"""Each of at most some 10 KiB: one transaction of all consumers would leave as large a WAL file."""

_LONG_ROW = 512
_DEFLATED = b"\x78"
"""A longer row of a consumer is deflated, and begins so in the file; no other row does.

A row of more than 1,002 bytes takes a page of its own besides: 16 MiB of patterns of 10,000
consumers took 45 MB.
"""

_SLICE_CONSUMERS = 32
"""Their patterns may be long."""

PEER, CONSUMER, _OUTAGE, _EVENT = "peer", "consumer", "outage", "event"
HISTORY = (_OUTAGE, _EVENT)

Done = Callable[[Exception | None], None]
Taken = Callable[[bytes | Exception | None], None]
Watcher = Callable[[str, bytes | None], None]
_Key = tuple[str, str | int]
Rows = dict[_Key, bytes | None]
"""Rows to write, in the order of the calls; None: to delete."""

_encode = msgspec.msgpack.Encoder().encode


class _Consumer1(msgspec.Struct, frozen=True):
    """A consumer as format 1 has it: without an owner, `seen` by the wall clock."""

    name: str
    next: int
    patterns: tuple[str, ...]
    seen: float


_consumer1 = msgspec.msgpack.Decoder(_Consumer1)
_consumer = msgspec.msgpack.Decoder(Consumer)
_peer = msgspec.msgpack.Decoder(PeerCursor)

_DAMAGED = (
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.FormatError,
    msgspec.DecodeError,
    zlib.error,
)


class CursorStore:
    """Small values that change in place: cursors, outages and events. Reads are from memory.

    This one ends with the process; `SqliteCursorStore` has a file. A `done` is called in the
    reactor's thread once the change is on disk: with None, or with the error.

    Attributes:
        peers: Each peer's cursor in our log, to read.
        on_peer: Called with a peer's cursor that another instance has noted.
        on_peer_removed: Called with the cursor of a peer that another instance has forgotten.
        on_removed: Called with a consumer that another instance has removed.
        on_shared: Called once a shared value is durable where other instances see it.
        notices: What was found at start, for the operator.
        on_notice: Called with notices for the operator while it runs.
    """

    def __init__(self) -> None:
        self.notices: list[OperatorNotice] = []
        self.on_notice: list[Callable[[OperatorNotice], None]] = []
        self.peers: dict[str, PeerCursor] = {}
        self.on_peer: list[Callable[[PeerCursor], None]] = []
        self.on_peer_removed: list[Callable[[PeerCursor], None]] = []
        self.on_removed: list[Callable[[Owned], None]] = []
        self.on_shared: list[Callable[[], None]] = []
        self._rows: dict[str, dict[str, bytes]] = {}
        self._watchers: dict[str, list[Watcher]] = {}
        self._consumers: dict[Owned, Consumer] = {}
        self._history: dict[str, dict[int, bytes]] = {kind: {} for kind in HISTORY}

    def set_peer(self, cursor: PeerCursor) -> None:
        """Note a peer's progress; soon durable."""
        self.peers[cursor.peer] = cursor
        self._changed(PEER, cursor.peer, cursor)

    def create_peer(self, cursor: PeerCursor) -> None:
        """Note the cursor of a new peer, unless another instance of this node knows it already."""
        self.set_peer(cursor)

    def remove_peer(self, peer: str) -> None:
        """Forget a peer."""
        self.peers.pop(peer, None)
        self._changed(PEER, peer, None)

    def consumers(self) -> Mapping[Owned, Consumer]:
        """Return the named consumers, by owner and name: a view, not a copy."""
        return MappingProxyType(self._consumers)

    def set_consumer(self, consumer: Consumer, done: Done | None = None) -> None:
        """Note a consumer's cursor; `done` once it is on disk."""
        self._consumers[consumer.key] = consumer
        self._changed(CONSUMER, joined(consumer.key), consumer, done)

    def create_consumer(self, consumer: Consumer) -> None:
        """Note a new consumer, unless another instance of this node knows it already."""
        self.set_consumer(consumer)

    def remove_consumer(self, key: Owned, done: Done | None = None) -> None:
        """Forget a consumer; `done` once that is on disk."""
        self._consumers.pop(key, None)
        self._changed(CONSUMER, joined(key), None, done)

    def outages(self) -> list[tuple[int, bytes]]:
        """Return all outages, by number."""
        return sorted(self._history[_OUTAGE].items())

    def set_outage(self, number: int, row: bytes) -> None:
        """Add or replace an outage; soon durable."""
        self._set_history(_OUTAGE, number, row)

    def remove_outage(self, number: int) -> None:
        """Forget an outage, if it is there."""
        self._set_history(_OUTAGE, number, None)

    def events(self) -> list[tuple[int, bytes]]:
        """Return all events, by number."""
        return sorted(self._history[_EVENT].items())

    def set_event(self, number: int, row: bytes) -> None:
        """Add an event; soon durable."""
        self._set_history(_EVENT, number, row)

    def remove_event(self, number: int) -> None:
        """Forget an event, if it is there."""
        self._set_history(_EVENT, number, None)

    def _set_history(self, kind: str, number: int, row: bytes | None) -> None:
        if row is None:
            self._history[kind].pop(number, None)
        else:
            self._history[kind][number] = row
        self._changed(kind, number, row)

    # what the instances of a node share

    def shared(self, kind: str) -> MappingProxyType[str, bytes]:
        """Return the values of a kind that the instances of this node share, by key.

        With one instance only they end with the process. Another thread may `copy` them.
        """
        return MappingProxyType(self._rows.setdefault(kind, {}))

    def share(self, kind: str, key: str, value: bytes | None, done: Done | None = None) -> None:
        """Set a shared value, or remove it; `done` once it is durable."""
        self._set_shared(kind, key, value)
        if done is not None:
            done(None)

    def take(self, kind: str, key: str, done: Taken) -> None:
        """Remove a shared value; only one instance gets it: `done` with it, once it is durable.

        With None where it is not there (any more), with the error where that is not known.
        """
        value = self.shared(kind).get(key)
        self._set_shared(kind, key, None)
        done(value)

    def watch(self, kind: str, call: Watcher) -> None:
        """Call with key and value (None: removed) of each change by another instance."""
        self._watchers.setdefault(kind, []).append(call)

    def refresh(self, done: Callable[[], None]) -> None:
        """Call `done` once all is known that other instances have noted until now."""
        done()

    def _set_shared(self, kind: str, key: str, value: bytes | None) -> None:
        rows = self._rows.setdefault(kind, {})
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value

    def carried(self) -> Iterator[Snapshot]:
        """Return the cursors as they are now, as slices of the log's snapshot.

        Another thread may take the slices: they are made as they are taken.
        """
        return _slices(list(self.peers.values()), list(self._consumers.values()))

    def close(self, done: Callable[[], None]) -> None:
        """Write what is not on disk yet, then call `done`."""
        done()

    def _changed(self, kind: str, key: str | int, value: Any, done: Done | None = None) -> None:
        """Answer at once: nothing outlives the process."""
        if done is not None:
            done(None)

    def _fall_back(self, snapshot: Snapshot) -> None:
        """Take the cursors that a snapshot carries."""
        for peer, made, acked in snapshot.acks:
            self.set_peer(PeerCursor(peer, made, acked))
        for consumer in snapshot.consumers:
            self.set_consumer(Consumer(*consumer))


class SqliteCursorStore(CursorStore):
    """Cursors and outages in a file.

    Args:
        path: The file; made where it is missing.
        log: The id of the log that it belongs to.
        snapshot: What the log carries of it, for the case that the file is lost; None in a new log.
        post: Brings a call into the thread in which all methods are called.
        wall: Unix seconds.

    Raises:
        LogDamaged: It can't be opened; the message says what to do.
        StateTooNew: It was written by a newer linkd.
    """

    def __init__(
        self,
        path: Path,
        log: str,
        snapshot: Snapshot | None,
        post: Post,
        wall: Callable[[], float] = clock.wall,
    ) -> None:
        super().__init__()
        self._path = path
        self._log = log
        self._post = post
        self._wall = wall
        self._lock = threading.Condition()
        self._dirty: Rows = {}
        self._waiting: list[Done] = []
        self._ended: Callable[[], None] | None = None
        self._bad: Exception | None = None  # why the file must be replaced
        self._aside = ""  # what it is called since it was set aside for that
        try:
            self._db = self._find(snapshot)
        except (apsw.Error, OSError) as error:
            raise LogDamaged(_unusable(path, error)) from None
        self._thread = threading.Thread(target=self._run, name="linkd-log-cursors", daemon=True)
        self._thread.start()

    def close(self, done: Callable[[], None]) -> None:
        """Write what is not on disk yet, then call `done`."""
        with self._lock:
            self._ended = done
            self._lock.notify()

    def _changed(self, kind: str, key: str | int, value: Any, done: Done | None = None) -> None:
        """Let a row be written."""
        row = value if value is None or isinstance(value, bytes) else _encode(value)
        with self._lock:
            idle = not self._dirty
            self._dirty.pop((kind, key), None)  # the order is that of the calls
            self._dirty[kind, key] = row
            if done is not None:
                self._waiting.append(done)
            if idle or done is not None:
                self._lock.notify()

    # opening

    def _find(self, snapshot: Snapshot | None) -> apsw.Connection:
        """Open the file and read it; set a bad one aside and go back to what the log carries."""
        if not self._path.exists():
            if snapshot is None:
                return self._open(self._path, is_new=True)
            lost = f"{self._path} was missing"
        else:
            try:
                db = self._open(self._path, is_new=snapshot is None)
                self._read(db)
            except _DAMAGED as error:
                aside = self._set_aside()
                lost = f"{self._path} is damaged ({error}) and was set aside as {aside.name}"
            else:
                return db
        self._lost(snapshot, lost)
        db = self._replace(self.rows())
        self._dirty.clear()
        return db

    def _open(self, path: Path, is_new: bool) -> apsw.Connection:
        """Open a file; begin it where it is new."""
        db = apsw.Connection(str(path))
        db.set_busy_timeout(5000)
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = full")
        db.execute(f"pragma journal_size_limit = {_WAL_BYTES}")
        (version,) = next(db.execute("pragma user_version"))
        if version > FORMAT:
            db.close()
            raise StateTooNew(
                f"{path} was written by a newer linkd (format {version}, this one reads {FORMAT})"
            )
        if version == FORMAT:
            return db
        if version == 0 and not is_new:
            db.close()
            raise apsw.NotADBError("it is empty")
        with db:
            db.execute(
                "create table if not exists kept"
                " (kind text, key, value blob, primary key (kind, key)) without rowid"
            )
            if version == 1:
                _add_owners(db)
            db.execute(f"pragma user_version = {FORMAT}")
            db.execute("insert or ignore into kept values ('log', 'id', ?)", (self._log.encode(),))
        return db

    def rows(self) -> Rows:
        """Return the rows of all that memory has."""
        peers, consumers = tuple(self.peers.values()), tuple(self._consumers.values())
        rows: Rows = {(PEER, one.peer): _encode(one) for one in peers}
        rows |= {(CONSUMER, joined(one.key)): _encode(one) for one in consumers}
        for kind, history in self._history.items():
            rows |= {(kind, number): row for number, row in tuple(history.items())}
        return rows

    def _replace(self, rows: Rows) -> apsw.Connection:
        """Write a new file with these rows, and open it; it gets its name once it is whole.

        A part of them under that name would pass for all of them after a crash: what peers and
        consumers without a row are owed would never be sent.
        """
        fresh = self._path.with_name(self._path.name + ".new")
        _unlink(fresh)
        db = self._open(fresh, is_new=True)
        try:
            _put(db, rows)
            (journal,) = next(db.execute("pragma journal_mode = delete"))
            if journal != "delete":  # rows in a WAL file of the old name would be lost
                raise apsw.FullError("its write-ahead log could not be merged")
        finally:
            db.close()
        _unlink(self._path)
        fresh.replace(self._path)
        DiskFiles().sync_dir(self._path.parent)
        return self._open(self._path, is_new=False)

    def _read(self, db: apsw.Connection) -> None:
        """Take all rows into memory."""
        for (found,) in db.execute("pragma quick_check"):
            if found != "ok":
                db.close()
                raise apsw.CorruptError(found)
        for kind, key, value in db.execute("select kind, key, value from kept"):
            if kind == "log" and value != self._log.encode():
                db.close()
                raise apsw.CorruptError(
                    f"it belongs to the log {bytes(value).decode(errors='replace')}"
                )
            self._take(kind, key, value)

    def _take(self, kind: str, key: Any, value: bytes) -> None:
        """Take a row into memory."""
        if kind == PEER:
            self.peers[key] = _peer.decode(value)
        elif kind == CONSUMER:
            row = zlib.decompress(value) if value[:1] == _DEFLATED else value
            consumer = _consumer.decode(row)
            self._consumers[consumer.key] = consumer
        elif kind in HISTORY:
            self._history[kind][key] = value

    def _set_aside(self) -> Path:
        """Give the file another name."""
        aside = self._path.with_name(f"{self._path.name}.damaged-{int(self._wall())}")
        self._path.replace(aside)
        _unlink(self._path)
        return aside

    def _lost(self, snapshot: Snapshot | None, what: str) -> None:
        """Start from the cursors in the log's snapshot, and report that."""
        self.peers.clear()
        self._consumers.clear()
        for history in self._history.values():
            history.clear()
        if snapshot is not None:
            self._fall_back(snapshot)
        self.notices.append(
            OperatorNotice(
                "warn",
                "cursors.rebuilt",
                f"{what}; made again from the log: {len(self.peers)} peers and"
                f" {len(self._consumers)} consumers continue where they were last noted there and"
                " may get records again; the history of outages and events is empty",
            )
        )

    # the thread

    def _run(self) -> None:
        """Write what changed, again and again."""
        while True:
            with self._lock:
                while not self._dirty and not self._waiting and self._ended is None:
                    self._lock.wait()
                if not self._waiting and self._ended is None:
                    self._lock.wait(LAZY_SECONDS)
            error = None if self._bad is None else self._start_over(self._bad)
            with self._lock:
                rows, self._dirty = self._dirty, {}
                waiting, self._waiting = self._waiting, []
                ended = self._ended
            error = error or self.write(rows)
            if waiting:
                self._post(_telling(waiting, error))
            if ended is not None:
                self._release()
                self._post(ended)
                return
            if error is not None:
                if isinstance(error, _DAMAGED):
                    self._bad, self._aside = error, ""
                with self._lock:
                    self._dirty = _later(rows, self._dirty)
                    self._lock.wait(RETRY_SECONDS)

    def _release(self) -> None:
        """Close the file."""
        self._db.close()

    def _start_over(self, bad: Exception) -> Exception | None:
        """Set a file aside that went bad under way, and let all of memory be written into another.

        Returns:
            Why that failed; the next try goes on from there.
        """
        self._db.close()
        try:
            self._aside = self._aside or self._set_aside().name
            self._db = self._replace(self.rows())
        except (apsw.Error, OSError) as error:
            return error
        notice = OperatorNotice(
            "warn",
            "cursors.rebuilt",
            f"{self._path} went bad ({bad}), was set aside as {self._aside} and made again",
        )
        self._bad, self._aside = None, ""

        def deliver() -> None:
            self.notices.append(notice)
            for call in tuple(self.on_notice):
                call(notice)

        self._post(deliver)
        return None

    def write(self, rows: Rows) -> Exception | None:
        """Write rows, in one transaction where they are few; return why it failed, if it did."""
        try:
            _put(self._db, rows)
        except apsw.Error as error:
            return error
        return None


def _put(db: apsw.Connection, rows: Rows) -> None:
    """Write rows in their order, in one transaction where they are few."""
    for some in in_parts(rows.items(), _ROWS_AT_ONCE):
        gone = [key for key, row in some if row is None]
        kept = [(*key, _packed(key[0], row)) for key, row in some if row is not None]
        with db:
            db.executemany("delete from kept where kind = ? and key = ?", gone)
            db.executemany("insert or replace into kept values (?, ?, ?)", kept)


def _unlink(path: Path) -> None:
    """Remove a file and what SQLite keeps beside it; an old WAL file would change a new one."""
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _later(rows: Rows, more: Rows) -> Rows:
    """Return both, each key where it was last set: a consumer's new name comes before its end."""
    return {key: row for key, row in rows.items() if key not in more} | more


def joined(key: Owned) -> str:
    """Return owner and name as one word; neither has a slash."""
    return "/".join(key)


def _packed(kind: str, row: bytes) -> bytes:
    """Return a row as it is stored in the file."""
    return zlib.compress(row, 1) if kind == CONSUMER and len(row) > _LONG_ROW else row


def _add_owners(db: apsw.Connection) -> None:
    """Rewrite the consumers of format 1: none has an owner yet, and none was absent."""
    rows = [
        _consumer1.decode(value)
        for (value,) in db.execute("select value from kept where kind = ?", (CONSUMER,))
    ]
    db.execute("delete from kept where kind = ?", (CONSUMER,))
    for old in rows:
        one = Consumer(UNOWNED, old.name, old.next, old.patterns)
        db.execute("insert into kept values (?, ?, ?)", (CONSUMER, joined(one.key), _encode(one)))


def _slices(peers: list[PeerCursor], consumers: list[Consumer]) -> Iterator[Snapshot]:
    """Yield slices of a snapshot."""
    for some in in_parts(peers):
        yield Snapshot(acks=tuple([(c.peer, c.made, c.acked) for c in some]))
    for few in in_parts(consumers, _SLICE_CONSUMERS):
        rows = tuple([(c.owner, c.name, c.next, c.patterns, c.idle) for c in few])
        yield Snapshot(consumers=rows)


def _unusable(path: Path, error: Exception) -> str:
    """Return why a file can't be opened, and what to do."""
    if isinstance(error, apsw.FullError):
        return f"{path} can't be opened, the disk is full: make room, then start linkd again"
    if isinstance(error, PermissionError | apsw.CantOpenError | apsw.ReadOnlyError):
        return (
            f"{path} may not be read and written by this user (uid {os.geteuid()}):"
            f" run `chown -R` on {path.parent} for the user that linkd runs as"
        )
    return f"{path} can't be opened ({error}): check the disk, then start linkd again"


def _telling(waiting: Sequence[Done], error: Exception | None) -> Callable[[], None]:
    """Return the call that answers all waiting callers."""

    def deliver() -> None:
        for done in waiting:
            done(error)

    return deliver
