"""The files of a log as rows: each write is one row, and a segment is a table of its own."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec
from psycopg import sql

from linkd.log.files import DiskFiles
from linkd.log.postgresql.database import Database

READ_BYTES = 16 << 20
"""A whole file is read in parts of this size."""

_OWN = (".log", ".log.part")


class StoredFile(msgspec.Struct, frozen=True):
    """Where the rows of a file are: its number, and whether it has a table of its own."""

    id: int
    own: bool

    @property
    def table(self) -> sql.Identifier:
        """The table of its rows."""
        return sql.Identifier("linkd", f"piece_{self.id}" if self.own else "piece")


class StoredPath:
    """The name of a file in the database, or of the folder of all (an empty name).

    It has what the log uses of a `Path`.

    Args:
        files: The files.
        name: Its name.
    """

    __slots__ = ("_files", "name")

    def __init__(self, files: PostgresqlFiles, name: str = "") -> None:
        self._files = files
        self.name = name

    def __truediv__(self, name: str) -> StoredPath:
        return StoredPath(self._files, name)

    def __str__(self) -> str:
        return f"PostgreSQL:{self.name or 'log'}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredPath) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __lt__(self, other: StoredPath) -> bool:
        return self.name < other.name

    @property
    def parent(self) -> StoredPath:
        """The folder."""
        return StoredPath(self._files)

    @property
    def stem(self) -> str:
        """The name up to its last dot."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The name from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def st_size(self) -> int:
        """The size in bytes."""
        return self._files.size(self.name)

    def stat(self) -> StoredPath:
        """Return what has the file's `st_size`."""
        return self

    def with_name(self, name: str) -> StoredPath:
        """Return another file of the folder."""
        return StoredPath(self._files, name)

    def exists(self) -> bool:
        """Return whether there is such a file."""
        return self.name in self._files.names

    is_file = exists

    def iterdir(self) -> Iterator[StoredPath]:
        """Yield all files."""
        return (StoredPath(self._files, name) for name in tuple(self._files.names))

    def open(self, mode: str, buffering: int = 0) -> StoredReader:
        """Open it for reading."""
        self._files.find(self.name)
        return StoredReader(self._files, self.name)

    def read_bytes(self) -> bytes:
        """Return all of it."""
        with self.open("rb") as file:
            return file.read()

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete it."""
        if self.exists() or not missing_ok:
            self._files.unlink(self)


class StoredReader:
    """A file opened for reading.

    Args:
        files: The files.
        name: Its name.
    """

    def __init__(self, files: PostgresqlFiles, name: str) -> None:
        self._files = files
        self._name = name
        self._at = 0

    def __enter__(self) -> StoredReader:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def seek(self, at: int) -> None:
        """Read from there on."""
        self._at = at

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size`; all that are left without a size."""
        if size < 0:
            parts = list(iter(lambda: self.read(READ_BYTES), b""))
            return b"".join(parts)
        found = self._files.read(self._name, self._at, size)
        self._at += len(found)
        return found


class PostgresqlFiles(DiskFiles):
    """The disk of a log that is in PostgreSQL.

    A write is one row: it is there as a whole once the call returns, or not at all. The number of
    an open file is that of its row in `linkd.file`.

    Args:
        database: Where they are.

    Attributes:
        names: All files. One daemon at a time changes them, so memory knows them all.
        root: Their folder.
    """

    preallocates = False

    def __init__(self, database: Database) -> None:
        self._database = database
        self.names: dict[str, StoredFile] = {}
        self._opened: dict[int, tuple[str, StoredFile]] = {}
        self._appends: tuple[int, bytes] = (0, b"")
        self.root = StoredPath(self)

    def find(self, name: str) -> StoredFile:
        """Return where a file is.

        Raises:
            FileNotFoundError: There is none of that name.
        """
        try:
            return self.names[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def lock(self, folder: Any) -> int:
        """Take the log in the database; the number stands for that."""
        self._database.acquire()
        rows = self._database.run(
            lambda connection: connection.execute("select name, id, own from linkd.file").fetchall()
        )
        self.names = {name: StoredFile(number, own) for name, number, own in rows}
        return -1

    def open(self, path: Any, *, create: bool = False) -> int:
        """Return a file's number; create it where it must not be there yet."""
        name = path.name
        if not create:
            file = self.find(name)
            self._opened[file.id] = (name, file)
            return file.id
        own = name.endswith(_OWN)
        (number,) = self._database.run(
            lambda connection: connection.execute(
                "select linkd.create_file(%s, %s, %s)", (self._database.fence, name, own)
            ).fetchone()
        )
        file = self.names[name] = StoredFile(number, own)
        self._opened[file.id] = (name, file)
        return file.id

    def write(self, fd: int, at: int, buffers: Sequence[bytes]) -> None:
        """Write all of `buffers` as one row; return once it is committed."""
        name, file = self._opened[fd]
        body = b"".join(buffers)
        if not body:  # a group of repeats
            return
        if name.endswith(".log"):
            if self._appends[0] != fd:
                self._appends = (fd, _append(file.table).as_bytes(None))
            self._database.commit(self._appends[1], (fd, at, body))
            return
        self._database.run(
            lambda connection: connection.execute(
                _insert(file.table), (fd, at, body, self._database.fence)
            )
        )

    def read(self, name: str, at: int, size: int) -> bytes:
        """Return up to `size` bytes of a file from `at` on."""
        file = self.find(name)
        rows = self._database.run(
            lambda connection: connection.execute(
                _read(file.table),
                {"file": file.id, "at": at, "end": at + size, "size": size},
                binary=True,
            ).fetchall()
        )
        return b"".join([body for (body,) in rows])[:size]

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        file = self.find(name)
        row = self._database.run(
            lambda connection: connection.execute(
                sql.SQL(
                    "select at + octet_length(body) from {} where file = %s"
                    " order by at desc limit 1"
                ).format(file.table),
                (file.id,),
            ).fetchone()
        )
        return 0 if row is None else int(row[0])

    def truncate(self, fd: int, size: int) -> None:
        """Cut a file."""
        _, file = self._opened[fd]

        def cut(connection: Any) -> None:
            with connection.transaction():
                connection.execute(
                    sql.SQL("delete from {} where file = %s and at >= %s").format(file.table),
                    (fd, size),
                )
                connection.execute(
                    sql.SQL(
                        "update {} set body = substring(body for (%s - at)::int)"
                        " where file = %s and at < %s and at + octet_length(body) > %s"
                    ).format(file.table),
                    (size, fd, size, size),
                )

        self._database.run(cut)

    def rename(self, old: Any, new: Any) -> None:
        """Give a file another name, in place of what has it."""
        before, after, fence = old.name, new.name, self._database.fence
        file = self.find(before)

        def move(connection: Any) -> None:
            with connection.transaction():
                connection.execute(
                    "select linkd.drop_file(%s, %s) from linkd.file where name = %s and id <> %s",
                    (fence, after, after, file.id),
                )
                connection.execute(
                    "update linkd.file set name = %s where id = %s", (after, file.id)
                )

        self._database.run(move)
        self.names[after] = self.names.pop(before)

    def unlink(self, path: Any) -> None:
        """Delete a file; its name goes even where its table is in use by a backup just now."""
        name = path.name
        self.find(name)
        self._database.run(
            lambda connection: connection.execute(
                "select linkd.drop_file(%s, %s)", (self._database.fence, name)
            )
        )
        del self.names[name]

    def sync(self, fd: int) -> None:
        """Each write is committed already."""

    def uncache(self, fd: int, at: int, size: int) -> None:
        """The page cache is the database's."""

    def sync_dir(self, path: Any) -> None:
        """Each change of a name is committed already."""

    def close(self, fd: int) -> None:
        """Close a file; the number of the lock closes the database."""
        if fd == -1:
            self._database.close()
        self._opened.pop(fd, None)

    def is_named(self, fd: int, path: Any) -> bool:
        """Look whether the database works; nobody else deletes a file. The writer calls this."""
        self._database.ping()
        return True

    def free_bytes(self, path: Any) -> int:
        """Return a huge number: the disk of the database is not ours to measure."""
        return 2**62


def _append(table: sql.Identifier) -> sql.Composed:
    """Return the statement of a commit: it counts, and inserts only for the log's holder."""
    return sql.SQL(
        "with held as (update linkd.log set commits = commits + 1"
        " where fence = %s and commits = %s returning 1)"
        " insert into {} (file, at, body) select %s, %s, %b from held"
    ).format(table)


def _insert(table: sql.Identifier) -> sql.Composed:
    return sql.SQL(
        "insert into {} (file, at, body) select %s, %s, %b"
        " where exists (select from linkd.log where fence = %s)"
        " on conflict (file, at) do update set body = excluded.body"
    ).format(table)


def _read(table: sql.Identifier) -> sql.Composed:
    return sql.SQL(
        "select substring(body from (greatest(%(at)s - at, 0) + 1)::int for %(size)s::int)"
        " from {} where file = %(file)s and at < %(end)s"
        " and at >= coalesce((select max(at) from {} where file = %(file)s and at <= %(at)s), 0)"
        " order by at"
    ).format(table, table)
