"""The durable log: what a log promises (`engine`), in files (`segments`), in memory (`memory`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from linkd import clock
from linkd.log.commit import Post
from linkd.log.cursor_store import MemoryCursorStore, SqliteCursorStore
from linkd.log.disk_log import DiskLog
from linkd.log.files import Environment, SegmentSettings
from linkd.log.inspect import stat, verify
from linkd.log.interface import Log
from linkd.log.memory_log import BoundedMemoryLog, MemoryLog

__all__ = [
    "DiskLog",
    "Environment",
    "LogSettings",
    "MemoryCursorStore",
    "MemoryLog",
    "SegmentSettings",
    "SqliteCursorStore",
    "open_cursors",
    "open_log",
    "stat",
    "verify",
]


class LogSettings(Protocol):
    """What `[log]` says; `linkd.config.LogSettings` is one."""

    @property
    def engine(self) -> str:
        """`segments` or `memory`."""

    @property
    def max_bytes(self) -> int:
        """The bound on disk."""

    @property
    def max_age(self) -> float:
        """Seconds."""

    @property
    def min_free_bytes(self) -> int:
        """Of the disk."""

    @property
    def when_full(self) -> str:
        """`reject` or `drop-oldest`."""

    @property
    def segment_bytes(self) -> int:
        """Of one file."""

    @property
    def memory_bytes(self) -> int:
        """Of the newest part."""

    @property
    def id_window(self) -> float:
        """Seconds."""

    @property
    def max_ids(self) -> int:
        """The most remembered."""


def open_log(
    settings: LogSettings,
    state_dir: Path,
    node: str,
    post: Post,
    edges: Environment | None = None,
) -> Log:
    """Open the log in `state_dir`, or begin it.

    Args:
        settings: The engine and its bounds.
        state_dir: The node's directory; the log gets a folder in it.
        node: This node's name.
        post: Brings a call into the thread that uses the log (`reactor.callFromThread`).
        edges: What it touches of the world, where that is not as usual.

    Raises:
        LogDamaged: Another daemon has it, or a file can't be read; the message says what to do.
        StateTooNew: It was written by a newer linkd.
    """
    names = SegmentSettings.__struct_fields__
    bounds = SegmentSettings(**{name: getattr(settings, name) for name in names})
    if settings.engine == "memory":
        return BoundedMemoryLog(node, bounds)
    return DiskLog(Path(state_dir) / "log", node, bounds, post, edges)


def open_cursors(
    log: Log, state_dir: Path, post: Post, *, wall: Callable[[], float] = clock.wall
) -> MemoryCursorStore:
    """Open the file of cursors and outages that belongs to `log`, or begin it.

    Returns:
        A `CursorStore` and `OutageStore` with `told` (what the operator must hear of) and
        `close(done)`;
        close it before the log. Beside a log in memory it lies in memory too.

    Raises:
        LogDamaged: It can't be opened; the message says what to do.
        StateTooNew: It was written by a newer linkd.
    """
    if not isinstance(log, DiskLog):
        return MemoryCursorStore()
    cursors = SqliteCursorStore(Path(state_dir) / "cursors.db", log.id, log.snapshot, post, wall)
    log.carried = cursors.carried
    return cursors
