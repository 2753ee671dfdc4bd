"""Logs under test: opened, driven and crashed the same way whatever their engine."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from linkd.config import LogSettings
from linkd.log.base import Log
from linkd.log.disk_log import DiskLog
from linkd.log.files import DiskFiles, Environment
from linkd.log.origins import Origins, OriginsSnapshot
from linkd.log.writer import Writer
from linkd.protocol.records import (
    Batch,
    EncodedRecord,
    NewRecords,
    Origin,
    Producer,
    SourcePosition,
    decode_records,
    encode_records,
)
from tests.support.memory_log import MemoryLog
from tests.support.turns import Turns


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a state directory that an older version wrote.

    Python before 3.11.4 has no extraction filters: there the archive is trusted, which is ours.
    """
    with tarfile.open(archive) as opened:
        opened.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        opened.extractall(folder)


class MemoryBench:
    """A memory log on the bench."""

    def __init__(self, path: Path) -> None:
        self.log: Any = MemoryLog("edge", Random(1))

    def until(self, true: Callable[[], object]) -> None:
        """Nothing to wait for."""
        assert true()

    def restart(self, node: str = "edge") -> Any:
        """Crash it and find it again."""
        self.log = self.log.crash()
        return self.log

    def close(self) -> None:
        """End."""
        done: list[bool] = []
        self.log.close(lambda: done.append(True))
        assert done


class SegmentBench:
    """A segment log on the bench."""

    def __init__(self, path: Path, node: str = "edge", **settings: Any) -> None:
        self.path = path
        self.turns = Turns()
        self.files: Any = settings.pop("files", None)
        self.call_at_iteration_end: Any = settings.pop("call_at_iteration_end", None)
        self.now = [1000.0]
        self.wall = [1_800_000_000.0]
        self.synchronised = True
        self.boot = ""
        settings = {"segment_bytes": 1 << 20, "memory_bytes": 1 << 16} | settings
        self.settings = LogSettings(**settings)
        Writer.tick = 0.05
        self.log = self.open(node)

    def open(self, node: str = "edge") -> DiskLog:
        """Open it, and wait for its epoch."""
        self.log = DiskLog(
            self.path,
            node,
            self.settings,
            self.turns.post,
            Environment(
                self.files or DiskFiles(),
                Random(),
                lambda: self.now[0],
                lambda: self.wall[0],
                self.call_at_iteration_end,
                synchronised=lambda: self.synchronised,
                boot=self.boot,
            ),
        )
        self.turns.until(lambda: not self.log._under_way or self.log.full)
        return self.log

    def until(self, true: Callable[[], object]) -> None:
        """Wait for it."""
        self.turns.until(true)

    def restart(self, node: str = "edge") -> DiskLog:
        """Close it and open it again."""
        self.close()
        return self.open(node)

    def close(self) -> None:
        """Close it."""
        done: list[bool] = []
        self.log.close(lambda: done.append(True))
        self.turns.until(lambda: done)


def records(*bodies: bytes, ids: tuple[str, ...] = ()) -> bytes:
    """Return encoded records."""
    names = ids or ("",) * len(bodies)
    return encode_records(
        EncodedRecord(body, id=name) for body, name in zip(bodies, names, strict=True)
    )


def draft(*bodies: bytes, channel: str = "orders", **more: Any) -> NewRecords:
    """Return a draft of records with these bodies."""
    encoded = records(*bodies, ids=more.get("ids", ()))
    return NewRecords(channel, len(bodies), encoded, more.pop("time", 1.0), **more)


def received(
    previous: int,
    next: int,
    *bodies: bytes,
    channel: str = "orders",
    peer: str = "hub",
    log: str = "hublog",
    epoch: str = "e1",
    origin: Origin | None = None,
) -> Batch:
    """Return a batch as a session hands it over."""
    source = SourcePosition(peer, log, epoch, previous, next)
    origin = origin or Origin(peer, log, epoch, next - len(bodies))
    return Batch(0, channel, len(bodies), records(*bodies), 1.0, origin, source=source)


def append(bench: Any, *drafts: NewRecords) -> list[Any]:
    """Append drafts and return what became of them, in order."""
    got: list[Any] = []
    for one in drafts:
        bench.log.append(one, got.append)
    bench.until(lambda: len(got) == len(drafts))
    return got


def store(bench: Any, *batches: Batch) -> list[Any]:
    """Store batches and return what became of them."""
    got: list[Any] = []
    for one in batches:
        bench.log.store(one, got.append)
    bench.until(lambda: len(got) == len(batches))
    return got


def fetch(bench: Any, position: int, max_bytes: int = 1 << 20) -> Any:
    """Fetch and return what came."""
    got: list[Any] = []
    bench.log.fetch(position, max_bytes, got.append)
    bench.until(lambda: got)
    return got[0]


def everything(bench: Any, position: int | None = None) -> list[Batch]:
    """Return all batches from `position` on, over gaps."""
    batches: list[Batch] = []
    at = bench.log.first if position is None else position
    while at < bench.log.next:
        found = fetch(bench, at)
        if isinstance(found, list):
            batches += found
            at = found[-1].next
        else:
            at = found.first
    return batches


def bodies(batches: list[Batch]) -> list[bytes]:
    """Return the bodies of all records."""
    return [r.body for batch in batches for r in decode_records(batch.records, batch.count)]


def numbered(name: str, sequence: int) -> Producer:
    """Return a producer's number."""
    return Producer(name, sequence)


def origins_in_one(known: Origins) -> OriginsSnapshot:
    """Return all that is known of origins, in one slice but for the folded epochs."""
    return next(known.slices(2**62))


def origins_again(known: Origins, size: int = 3) -> Origins:
    """Return the same origins, as they come out of a snapshot with slices of that size."""
    again = Origins()
    for part in list(known.slices(size)):
        again.add(part)
    return again


def owed(log: Log, position: int) -> dict[str, tuple[int, int]]:
    """Return (records, bytes of records) by channel from `position` to the log's end."""
    found: dict[str, tuple[int, int]] = {}
    for channel, records, size in log.totals(position):
        if records:
            old = found.get(channel, (0, 0))
            found[channel] = (old[0] + records, old[1] + size)
    return found
