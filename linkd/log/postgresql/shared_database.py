"""The database of a log that several instances write: turns, what others wrote, who keeps it.

The log is one sequence of rows, each the frames of one commit. A commit counts one up from the
number of commits that its instance knows, so it happens only if the instance has seen all others.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from linkd.config.settings import PostgresqlSettings
from linkd.errors import LogDamaged
from linkd.log.commit import Post
from linkd.log.postgresql.database import (
    APPLICATION,
    LOCK,
    LOCK_SECONDS,
    RETRY_SECONDS,
    Database,
    Unfit,
    break_off,
    is_refusal,
    refused,
)
from linkd.log.postgresql.files import PostgresqlFiles, StoredFile
from linkd.log.segment import Identity, load_identity

INSTANCES, RUNNING = 0x6C696E00, 0x6C696E01
"""Classes of advisory locks, one lock for each instance: it is connected; it has opened the log."""

KEEPER = LOCK + 1
CHANNEL = "linkd"
"""Notifications that there is a commit."""

NOTIFY_SECONDS = 0.005
LOOK_SECONDS = 0.1
"""A follower looks so often, also without a notification."""

FORGET_SECONDS = 3600.0

KEEP_SECONDS = 1.0
"""Interval of looking who keeps the log, and which segments there are."""

BEHIND_BYTES = 4 << 20
"""About so much is read at once of what other instances wrote."""

BEHIND_ROWS = 32

TURNS_IN_A_ROW = 16
"""After another instance was quicker so many commits lock the log's row first."""

_SESSION = "set application_name = {}; set idle_in_transaction_session_timeout = '2s'"
"""A frozen instance loses its turn after two seconds."""

_INCARNATION = (
    "select system_identifier::text || '/'"
    " || (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint"
    " from pg_control_system()"
)


class Place(msgspec.Struct, frozen=True):
    """Where a log ends: its last segment and that one's file, its size, the token of its last row.

    A new log has no file. Rows of an instance that had the log alone have no token.
    """

    number: int = 0
    file: StoredFile | None = None
    at: int = 0
    last: int = 0
    token: int | None = None


class Row(msgspec.Struct, frozen=True):
    """A commit of another instance, and the log's end behind it."""

    number: int
    at: int
    body: bytes
    place: Place


class Overtaken(OSError):
    """Another instance has committed first; nothing was written.

    Args:
        rows: What others wrote, in order.
        incarnation: That of the log's row now.
    """

    def __init__(self, rows: Sequence[Row], incarnation: str) -> None:
        super().__init__(errno.EAGAIN, "another instance has committed first")
        self.rows = rows
        self.incarnation = incarnation


class Reincarnated(OSError):
    """The server was started since the log's newest epoch: another one must be opened first."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "the database was started again")


def segment_name(number: int) -> str:
    """Return the name of a segment's file."""
    return f"{number:012d}.log"


class SharedDatabase(Database):
    """The database of a log that several instances of a node write.

    Args:
        settings: Where it is.
        node: The node.
        instance: This instance's name.

    Attributes:
        run_id: This run of the instance.
        incarnation: That of the writer's server; another one after each start of it.
        opened: The incarnation for which the log's newest epoch was opened.
        opens: The next commit opens an epoch.
        place: The log's end as far as this instance's writer knows.
    """

    def __init__(self, settings: PostgresqlSettings, node: str, instance: str) -> None:
        super().__init__(settings, node)
        self.instance = instance
        self.run_id = f"{instance}/{secrets.token_hex(8)}"
        self.incarnation = self.opened = ""
        self.opens = False
        self.place = Place()
        self.number = int.from_bytes(hashlib.blake2b(instance.encode(), digest_size=4).digest())
        self.number -= 1 << 31
        self._starting: Any = None
        self._has_turn = False
        self._turns = 0

    # connections

    def connect(self) -> Any:
        """Open a connection whose turn ends if this process is frozen."""
        connection = super().connect()
        try:
            name = sql.Literal(f"{APPLICATION}/{self.instance}")
            connection.execute(sql.SQL(_SESSION).format(name))
        except BaseException:
            connection.close()
            raise
        return connection

    def _lock(self) -> None:
        """Refuse an instance of the same name, and a daemon that has the log alone."""
        deadline = time.monotonic() + LOCK_SECONDS
        while not self._try_lock(self._main):
            if time.monotonic() >= deadline:
                raise LogDamaged(
                    f"another linkd runs as the instance {self.instance}, or has the log in"
                    " PostgreSQL for itself alone: give each instance its own"
                    " cluster.instance, and all of them a [cluster]"
                )
            time.sleep(RETRY_SECONDS)

    def _try_lock(self, connection: Any) -> bool:  # type: ignore[override]
        row = connection.execute(
            "select pg_try_advisory_lock_shared(%s) and pg_try_advisory_lock(%s::int, %s::int)",
            (LOCK, INSTANCES, self.number),
        ).fetchone()
        return bool(row[0])

    def _take(self) -> None:
        """Keep all other instances from writing until `started`; become the keeper meanwhile."""
        self._end_leftovers(f"{APPLICATION}/{self.instance}")
        while True:
            fence, _ = self._fence_off(self._main)
            starting = self.connect()
            starting.execute("begin; set local idle_in_transaction_session_timeout = '60s'")
            found, commits, opened = starting.execute(
                "select fence, commits, incarnation from linkd.log for update"
            ).fetchone()
            if found == fence:
                break
            starting.close()  # another instance started meanwhile
        self._starting, self.fence, self._commits, self.opened = starting, fence, commits, opened
        (self.incarnation,) = self._main.execute(_INCARNATION).fetchone()
        if not self._has_company(starting):
            # The database may have been put back while nobody looked.
            starting.execute("update linkd.log set incarnation = ''")
            self.opened = ""

    def _has_company(self, connection: Any) -> bool:
        """Return whether another instance has the log open."""
        (count,) = connection.execute(
            "select count(*) from pg_locks where locktype = 'advisory' and classid = %s"
            " and database = (select oid from pg_database where datname = current_database())",
            (RUNNING,),
        ).fetchone()
        return bool(count)

    def started(self, place: Place) -> None:
        """Let all instances write: the log is open, and ends at `place`."""
        self.place = place
        self._main.execute("select pg_advisory_lock(%s::int, %s::int)", (RUNNING, self.number))
        self._starting.execute("commit")
        self._starting.close()
        self._starting = None

    def close(self) -> None:
        """Close all connections; the locks go with them."""
        if self._starting is not None:
            self._starting.close()
            self._starting = None
        super().close()

    def _reopen(self) -> Any:
        """Open the writer's connection again, if the log still goes on from where we are."""
        connection = self.connect()
        try:
            self._count(connection)
            self.verify(connection, self.place)
            if not self._try_lock(connection):
                self._raise_lost(
                    "log.fenced", f"another linkd runs as the instance {self.instance}"
                )
            connection.execute("select pg_advisory_lock(%s::int, %s::int)", (RUNNING, self.number))
            (self.incarnation,) = connection.execute(_INCARNATION).fetchone()
        except BaseException:
            connection.close()
            raise
        self._main, self._has_turn = connection, False
        return connection

    def _count(self, connection: Any) -> int:
        """Return how many commits the log has had.

        Raises:
            LogLost: Commits are missing that were confirmed.
        """
        known = self._commits  # the reactor may count on meanwhile
        (commits,) = connection.execute("select commits from linkd.log").fetchone()
        if commits < known:
            self._raise_went_back(f"of the commits that it had confirmed, {known - commits}")
        return int(commits)

    def verify(self, connection: Any, place: Place) -> None:
        """Check that the log's last row that we know is still there.

        Raises:
            LogLost: It is gone, or another one is in its place.
        """
        if place.file is None:
            return
        try:
            row = connection.execute(
                sql.SQL("select token from {} where file = %s and at = %s").format(
                    place.file.table
                ),
                (place.file.id, place.last),
            ).fetchone()
        except psycopg.errors.UndefinedTable:
            row = None
        if row is None or row[0] != place.token:
            self._raise_went_back("of the commits that it had confirmed, the newest")

    def _raise_went_back(self, what: str) -> None:
        self._raise_lost(
            "log.went-back", f"the database went back to an older state: {what} are gone"
        )

    # what others wrote

    def advance(self, rows: int, place: Place, opened: str | None) -> None:
        """Note that `rows` commits of others were applied; the writer waits meanwhile."""
        self._commits += rows
        self.place = place
        if opened is not None:
            self.opened = opened

    def behind(self, connection: Any, files: SharedFiles, place: Place) -> list[Row]:
        """Return what was written behind `place`, as far as it is read at once."""
        rows: list[Row] = []
        size = 0
        while size < BEHIND_BYTES and len(rows) < BEHIND_ROWS:
            found = [] if place.file is None else self._rows(connection, place)
            for at, body, token in found:
                place = msgspec.structs.replace(place, at=at + len(body), last=at, token=token)
                rows.append(Row(place.number, at, body, place))
                size += len(body)
            if not found:
                file = find_file(connection, segment_name(place.number + 1))
                if file is None:
                    break
                files.note(segment_name(place.number + 1), file)
                place = Place(place.number + 1, file)
        return rows

    @staticmethod
    def _rows(connection: Any, place: Place) -> Sequence[tuple[int, bytes, int | None]]:
        assert place.file is not None
        rows: Sequence[tuple[int, bytes, int | None]] = connection.execute(
            sql.SQL(
                "select at, body, token from {} where file = %s and at >= %s order by at limit 4"
            ).format(place.file.table),
            (place.file.id, place.at),
            binary=True,
        ).fetchall()
        return rows

    # the writer

    def commit_row(self, files: SharedFiles, number: int, at: int, body: bytes) -> StoredFile:
        """Commit a row of a segment; at 0 the segment begins with it.

        While the database can't be reached it waits and tries again.

        Returns:
            The segment's file.

        Raises:
            Overtaken: Another instance was quicker. The turn may be ours now: write again, or end
                it with `end_turn`.
            Reincarnated: An epoch must be opened first.
            OSError: The database refused it, and nothing of it is there; or the log is closed.
            LogLost: The database went back.
        """
        token = secrets.randbits(62)
        is_unknown = False
        file: StoredFile | None = None
        while True:
            try:
                connection = self._main or self._reopen()
                if is_unknown:
                    file = self._committed(connection, number, at, token)
                    if file is not None:
                        self._confirm(connection)
                        break
                    is_unknown = False
                if self.opened != self.incarnation and not self.opens:
                    self.end_turn()
                    raise Reincarnated
                if at == 0 or self._has_turn or self._turns:
                    self._take_turn(connection, files)
                is_unknown = True
                file = self._insert(connection, files, number, at, body, token)
                if file is not None:
                    if self._is_doubtful:
                        self._confirm(connection)
                    break
                self.end_turn()
                is_unknown, self._turns = False, TURNS_IN_A_ROW
            except (psycopg.Error, Unfit) as error:
                if is_refusal(error) and file is None:
                    self.end_turn()
                    raise refused(error) from None
                self._drop(error)
                if self._closing.wait(RETRY_SECONDS):
                    raise OSError(errno.ESHUTDOWN, self.trouble) from None
        self._commits += 1
        self.opened, self.opens = self.incarnation, False
        self.place = Place(number, file, at + len(body), at, token)
        self._works()
        return file

    def _drop(self, error: BaseException) -> None:
        """Close the writer's connection after an error on it; a turn is over then."""
        self._has_turn = False
        super()._drop(error)

    def _committed(self, connection: Any, number: int, at: int, token: int) -> StoredFile | None:
        """Return the file of a row whose commit was in doubt, if it is there."""
        file = find_file(connection, segment_name(number))
        if file is None:
            return None
        row = connection.execute(
            sql.SQL("select token from {} where file = %s and at = %s").format(file.table),
            (file.id, at),
        ).fetchone()
        return file if row is not None and row[0] == token else None

    def _take_turn(self, connection: Any, files: SharedFiles) -> None:
        """Lock the log's row, so that nobody else commits before us.

        Raises:
            Overtaken: Others have committed before. The turn is kept if that is all of it.
        """
        if self._has_turn:
            return
        connection.execute("begin")
        commits, opened = connection.execute(
            "select commits, incarnation from linkd.log for update"
        ).fetchone()
        self._has_turn = True
        self._turns = max(0, self._turns - 1)
        if (commits, opened) == (self._commits, self.opened):
            return
        rows = self.behind(connection, files, self.place)
        if rows:
            self._turns = TURNS_IN_A_ROW
        if len(rows) != commits - self._commits:
            self.end_turn()
            if len(rows) > commits - self._commits or not rows:
                self._raise_went_back("of the commits that it had confirmed, some")
        raise Overtaken(rows, opened)

    def _insert(
        self,
        connection: Any,
        files: SharedFiles,
        number: int,
        at: int,
        body: bytes,
        token: int,
    ) -> StoredFile | None:
        """Insert a row and commit; return None if another instance was quicker."""
        name, self._is_doubtful = segment_name(number), False
        if at == 0:
            (found,) = connection.execute(
                "select linkd.create_file((select fence from linkd.log), %s, true)", (name,)
            ).fetchone()
            file = StoredFile(found, True)
        else:
            file = files.find(name)
        values = (self.incarnation, self._commits, self.opened, file.id, at, body, token)
        if connection.execute(_append(file.table), values).rowcount != 1:
            return None
        if self._has_turn:
            connection.execute("commit")
            self._has_turn = False
        files.note(name, file)
        return file

    def end_turn(self) -> None:
        """Let others write, if it is our turn."""
        if self._has_turn:
            self._has_turn = False
            with suppress(psycopg.Error):
                self._main.execute("rollback")

    def ping(self) -> None:
        """Look whether the database works; a turn that nobody used is over."""
        self.end_turn()
        super().ping()


def _append(table: sql.Identifier) -> sql.Composed:
    """Return the statement of a commit: it inserts only if nobody else has committed."""
    return sql.SQL(
        "with held as (update linkd.log set commits = commits + 1, incarnation = %s"
        " where commits = %s and incarnation = %s returning 1)"
        " insert into {} (file, at, body, token) select %s, %s, %b, %s from held"
    ).format(table)


def find_file(connection: Any, name: str) -> StoredFile | None:
    """Return where the file of that name is, or None if there is none."""
    row = connection.execute("select id, own from linkd.file where name = %s", (name,)).fetchone()
    return None if row is None else StoredFile(*row)


class SharedFiles(PostgresqlFiles):
    """The files of a log that several instances write.

    Only the keeper creates and deletes files, but for segments: each begins with the commit of its
    first row.

    Args:
        database: Where they are.
    """

    is_shared = True
    _NEW = 1 << 62
    """Stands for a segment that is being written."""

    def __init__(self, database: SharedDatabase) -> None:
        super().__init__(database)
        self.shared = database
        self._writing = 0  # the number of the segment
        self._changing = threading.Lock()  # names, by a thread of the log or by `refresh`

    def open(self, path: Any, *, create: bool = False) -> int:
        """Return a file's number; a new segment begins with its first row."""
        if path.name.endswith(".log"):
            if not create:
                self.find(path.name)
            self._writing = int(path.stem)
            return self._NEW
        with self._changing:
            return super().open(path, create=create)

    def rename(self, old: Any, new: Any) -> None:
        """Give a file another name, in place of what has it."""
        with self._changing:
            super().rename(old, new)

    def unlink(self, path: Any) -> None:
        """Delete a file."""
        with self._changing:
            super().unlink(path)

    def write(self, fd: int, at: int, buffers: Sequence[bytes]) -> None:
        """Write all of `buffers` as one row; return once it is committed."""
        if fd != self._NEW:
            super().write(fd, at, buffers)
            return
        body = b"".join(buffers)
        if body:
            self.shared.commit_row(self, self._writing, at, body)
        else:
            self.shared.end_turn()

    def truncate(self, fd: int, size: int) -> None:
        """Cut nothing off a segment: what is behind our rows is another instance's."""
        if fd != self._NEW:
            super().truncate(fd, size)

    def note(self, name: str, file: StoredFile) -> None:
        """Note a segment that is there."""
        with self._changing:
            self.names[name] = file

    def refresh(self, connection: Any) -> None:
        """Find all names again; what is newer than the answer stays."""
        rows = connection.execute("select name, id, own from linkd.file").fetchall()
        found = {name: StoredFile(number, own) for name, number, own in rows}
        newest = max((file.id for file in found.values()), default=0)
        with self._changing:
            later = {name: file for name, file in self.names.items() if file.id > newest}
            self.names = found | later


class Kept(msgspec.Struct, frozen=True):
    """What the keeper left: the log's identity, with its oldest segment.

    `fence` is the keeper's number if that is this instance, else 0; `trim_to`: what an operator had
    trimmed at any instance.
    """

    identity: Identity | None
    fence: int
    trim_to: int


class KeptRow(msgspec.Struct, frozen=True):
    """A small value as it is now; `value` None: it was removed. `changed`: by this transaction."""

    kind: str
    key: str
    value: bytes | None
    changed: int


_CHANGED = (
    "select kind, key, value, changed::text::bigint,"
    " pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
    " from (select 1) one left join linkd.kept"
    " on changed >= %s::text::xid8 and kind not like '%%@%%'"
)
"""What was changed since, and from which transaction on the next look must read."""


class Follower:
    """Reads what other instances write, in a thread of its own, and tells them of our commits.

    Args:
        files: The files.
        post: Brings a call into the reactor's thread.
        found: Called there with the place read from and the rows behind it.
        kept: Called there about once a second.
        changed: Called there with what an instance has changed of the small values.

    Attributes:
        place: The log's end as the reactor knows it; set there.
    """

    def __init__(
        self,
        files: SharedFiles,
        post: Post,
        found: Callable[[Place, list[Row], str], None],
        kept: Callable[[Kept], None],
        changed: Callable[[list[KeptRow]], None],
    ) -> None:
        self.place = Place()
        self._files = files
        self._database = files.shared
        self._post = post
        self._found = found
        self._kept = kept
        self._changed = changed
        self._seen = self._forgotten = 0  # transactions
        self._refreshed: deque[Callable[[], None]] = deque()
        self._forgot = time.monotonic()
        self._reads, self._wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._announces = self._ends = False
        self._announced = self._looked = 0.0
        self._asked: float | None = None  # since when it works on a look
        self._fence = 0
        self._identity: tuple[StoredFile | None, Identity | None] = (None, None)
        self._connection: Any = None
        self._thread = threading.Thread(target=self._run, name="linkd-log-follower", daemon=True)

    def start(self, place: Place) -> None:
        """Follow from there on."""
        self.place = place
        self._thread.start()

    def announce(self) -> None:
        """Let other instances know soon that there is a commit."""
        self._announces = True
        self.wake()

    def wake(self) -> None:
        """Look now."""
        with suppress(OSError):
            os.write(self._wakes, b"w")

    def refresh(self, done: Callable[[], None]) -> None:
        """Call `done` in the reactor behind the next look at the small values."""
        self._refreshed.append(done)
        self.wake()

    def stop(self) -> None:
        """End the thread, and wait until it has ended or a connection hangs."""
        self._ends = True
        self.wake()
        self._thread.join(1.0)

    def watch(self, seconds: float) -> None:
        """Connect again if the server has not answered for so long."""
        asked = self._asked
        if asked is not None and time.monotonic() - asked >= seconds:
            break_off(self._connection)

    def _run(self) -> None:
        while not self._ends:
            self._asked = time.monotonic()
            try:
                if self._connection is None:
                    self._open()
                self._look()
            except (psycopg.Error, Unfit, OSError):
                self._close()
                self._wait(None, RETRY_SECONDS)
        self._close()

    def _open(self) -> None:
        """Connect, once all that is there is on the standby too."""
        connection = self._database.connect()
        try:
            self._database.verify(connection, self.place)
            connection.execute("select pg_logical_emit_message(true, 'linkd', '')")
            connection.execute(f"set synchronous_commit = off; listen {CHANNEL}")
            (incarnation,) = connection.execute(_INCARNATION).fetchone()
            if incarnation != self._database.incarnation:
                self._database.break_off()  # the writer's server is not the primary any more
        except BaseException:
            connection.close()
            raise
        self._connection, self._fence = connection, 0

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _look(self) -> None:
        connection, place = self._connection, self.place
        now = time.monotonic()
        if self._announces and now - self._announced >= NOTIFY_SECONDS:
            self._announces, self._announced = False, now
            connection.execute("select pg_notify(%s, '')", (CHANNEL,))
        rows = self._database.behind(connection, self._files, place)
        if rows:
            (opened,) = connection.execute("select incarnation from linkd.log").fetchone()
            self._post(lambda: self._found(place, rows, opened))
        self._look_at_values(connection)
        if now - self._looked >= KEEP_SECONDS:
            self._looked = now
            kept = self._keep(connection)
            self._post(lambda: self._kept(kept))
        if self._announces:
            self._wait(connection, max(0.0, self._announced + NOTIFY_SECONDS - time.monotonic()))
        elif rows:
            self._wait_for_place(place)
        else:
            self._wait(connection, LOOK_SECONDS)

    def _look_at_values(self, connection: Any) -> None:
        """Read the small values that were changed since the last look."""
        waiting = len(self._refreshed)  # they wait on while the database is away
        found = connection.execute(_CHANGED, (str(self._seen),)).fetchall()
        self._seen = found[0][4]
        rows = [KeptRow(*row[:4]) for row in found if row[0] is not None]
        if rows:
            self._post(lambda: self._changed(rows))
        for _ in range(waiting):
            self._post(self._refreshed.popleft())

    def _forget(self, connection: Any) -> None:
        """Delete what was removed more than an hour ago: all instances have seen that."""
        now = time.monotonic()
        if self._fence and now - self._forgot >= FORGET_SECONDS:
            connection.execute(
                "delete from linkd.kept where value is null and changed < %s::text::xid8",
                (str(self._forgotten),),
            )
            self._forgot, self._forgotten = now, self._seen

    def _wait_for_place(self, place: Place) -> None:
        """Wait until the reactor has applied what was read behind `place`, or for a look's time."""
        deadline = time.monotonic() + LOOK_SECONDS
        while self.place is place and time.monotonic() < deadline and not self._ends:
            self._wait(None, 0.002)

    def _wait(self, connection: Any, seconds: float) -> None:
        """Wait for a notification, or for `wake`."""
        self._asked = None
        waits = select.poll()
        waits.register(self._reads, select.POLLIN)
        if connection is not None:
            waits.register(connection.fileno(), select.POLLIN)
        ready = {fd for fd, _ in waits.poll(seconds * 1000)}
        if self._reads in ready:
            with suppress(BlockingIOError):
                while os.read(self._reads, 4096):
                    pass
            ready.remove(self._reads)
        if ready:
            for _ in connection.notifies(timeout=0):
                pass

    def _keep(self, connection: Any) -> Kept:
        """Become the keeper if there is none; return what there is."""
        mine = bool(self._fence)
        if not mine:
            (mine,) = connection.execute("select pg_try_advisory_lock(%s)", (KEEPER,)).fetchone()
        if mine:
            (fence,) = connection.execute("select fence from linkd.log").fetchone()
            if fence != self._fence:  # we are new, or another instance has started
                (self._fence,) = connection.execute(
                    "update linkd.log set fence = fence + 1 returning fence"
                ).fetchone()
        self._files.refresh(connection)
        self._forget(connection)
        row = connection.execute(
            "select value from linkd.kept where (kind, key) = ('cluster', 'trim')"
        ).fetchone()
        trim_to = int(row[0]) if row is not None else 0
        return Kept(self._find_identity(), self._fence, trim_to)

    def _find_identity(self) -> Identity | None:
        """Return who the log is, read again where that was saved since."""
        file = self._files.names.get("identity")
        if file != self._identity[0]:
            found = load_identity(self._files.root)  # type: ignore[arg-type]
            if found is None:  # it was just saved again
                return None
            self._identity = (file, found)
        return self._identity[1]
