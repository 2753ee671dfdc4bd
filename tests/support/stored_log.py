"""Logs of the real engines for the model of sessions: in segments, and in PostgreSQL."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from linkd.config import LogSettings
from linkd.errors import Gap
from linkd.protocol.records import Batch, NewRecords
from tests.support.logs import SegmentBench
from tests.support.postgresql import PostgresqlBench, server, settings
from tests.support.session_model import ModelNode

MEMORY_BYTES = 1 << 16


class Segments:
    """A log in files.

    Args:
        name: The node.
        folder: Where the files of all nodes are.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.path = folder / name
        self.copies = 0

    def bench(self) -> SegmentBench:
        """Open it."""
        return SegmentBench(self.path, self.name, memory_bytes=MEMORY_BYTES)

    def copy(self) -> Path:
        """Return a copy of it, as it is now."""
        self.copies += 1
        target = self.folder / f"{self.name}.{self.copies}"
        shutil.copytree(self.path, target)
        return target

    def put_back(self, copy: Path) -> None:
        """Put it back to a copy, while it is closed."""
        shutil.rmtree(self.path)
        shutil.copytree(copy, self.path)

    def break_off(self) -> None:
        """Nothing more happens to it in a crash."""


@cache
def _database(name: str) -> str:
    return server().database(f"model{os.getpid()}{name}")


class Postgresql(Segments):
    """A log in a database; a copy is a dump."""

    def __init__(self, name: str, folder: Path) -> None:
        from linkd.log.postgresql.schema import create

        super().__init__(name, folder)
        self.database = _database(name)
        folder.chmod(0o777)  # for the server's user
        with server().connect(self.database) as connection:
            connection.execute("drop schema if exists linkd cascade")
            create(connection, "linkd")

    def bench(self) -> SegmentBench:
        """Open it."""
        found = LogSettings(postgresql=settings(server().dsn(self.database)))
        return PostgresqlBench.of(found, self.name, memory_bytes=MEMORY_BYTES)

    def copy(self) -> Path:
        """Dump it."""
        self.copies += 1
        target = self.folder / f"{self.name}.{self.copies}"
        dsn = server().dsn(self.database, "owner")
        server().run("pg_dump", "-n", "linkd", "-f", str(target), dsn)
        return target

    def put_back(self, copy: Path) -> None:
        """Restore a dump."""
        dsn = server().dsn(self.database, "owner")
        with server().connect(self.database) as connection:
            connection.execute("drop schema linkd cascade")
        server().run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(copy), dsn)

    def break_off(self) -> None:
        """End the daemon's sessions."""
        with server().connect(self.database) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'linkd'"
                " and datname = current_database()"
            )


class StoredLog:
    """A log of a real engine, with what the model needs beyond it.

    Args:
        disk: Where it is.
        rng: Decides how a crash ends it.
        bench: The bench that has it open.
    """

    def __init__(self, disk: Segments, rng: Random, bench: SegmentBench) -> None:
        self._disk, self._rng, self._bench = disk, rng, bench
        self._log: Any = bench.log
        self._copy: Path | None = None
        self._has_crashed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def _live(self, settled: Callable[[Any], None]) -> Callable[[Any], None]:
        """Answer only as long as its process lives."""
        return lambda outcome: None if self._has_crashed else settled(outcome)

    def append(self, draft: NewRecords, settled: Callable[[Any], None]) -> None:
        """Append."""
        self._log.append(draft, self._live(settled))

    def store(self, batch: Batch, settled: Callable[[Any], None]) -> None:
        """Store."""
        self._log.store(batch, self._live(settled))

    def set_cursor(self, peer: str, cursor: Any, settled: Callable[[Any], None]) -> None:
        """Set a cursor."""
        self._log.set_cursor(peer, cursor, self._live(settled))

    def commit(self) -> None:
        """Take the answers to all that waits."""
        log = self._log
        self._bench.until(lambda: not (log._waiting or log._under_way))

    def read(self, position: int, max_bytes: int) -> list[Batch]:
        """Read from memory or the disk, here and now."""
        log, found, size = self._log, list[Batch](), 0
        while position < log.next and size < max_bytes:
            batches = log.read(position, max_bytes)
            if batches is None:
                place = log._segment_set.place(position)
                batches = log._reads._reader.batches(place, position, max_bytes)
                if batches[0].offset > position:
                    raise Gap(position, batches[0].offset)
            found += batches
            size += sum(len(batch.records) for batch in batches)
            position = batches[-1].next
        return found or log.read(position, max_bytes)

    def trim(self, before: int) -> None:
        """Delete whole segments, and wait until they are gone."""
        self.commit()
        ends = [each.next for each in self._log._segment_set.segments if each.next <= before]
        self._log.trim(before)
        self._bench.until(lambda: self._log.first >= max(ends, default=0))

    def backup(self) -> Path:
        """Return a copy of it, without what waits."""
        self.commit()
        return self._disk.copy()

    def put_back(self, copy: Path) -> None:
        """Let the disk be an older copy, which the next crash finds."""
        self._copy = copy

    def crash(self) -> StoredLog:
        """Return the log as it is found after a crash; nobody hears what became of what waited."""
        self._has_crashed = True
        self._log.on_commit.clear()
        if self._rng.random() < 0.5:
            self._disk.break_off()
        self._bench.close()
        if self._copy is not None:
            self._disk.put_back(self._copy)
        self._bench.open(self._disk.name)
        return StoredLog(self._disk, self._rng, self._bench)

    def close(self) -> None:
        """End it."""
        self._has_crashed = True
        self._log.on_commit.clear()
        self._bench.close()


@contextmanager
def stored_logs(engine: type[Segments]) -> Iterator[None]:
    """Let the model's nodes have logs of an engine."""
    folder = Path(tempfile.mkdtemp(prefix="linkd-model-"))
    made: list[Any] = []

    def make(name: str, rng: Random) -> Any:
        disk = engine(name, folder)
        log = StoredLog(disk, rng, disk.bench())
        made.append(log._bench)
        return log

    before, ModelNode.make_log = ModelNode.make_log, staticmethod(make)
    try:
        yield
    finally:
        ModelNode.make_log = staticmethod(before)
        for bench in made:
            bench.log.on_commit.clear()
            bench.close()
        shutil.rmtree(folder, ignore_errors=True)
