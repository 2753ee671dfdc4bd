"""The durable log.

`base` says what a log promises, `disk_log` keeps it in segment files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from linkd import clock
from linkd.config.settings import ClusterSettings, LogSettings
from linkd.errors import ConfigError
from linkd.log.commit import Post
from linkd.log.cursor_store import CursorStore, SqliteCursorStore
from linkd.log.disk_log import DiskLog
from linkd.log.files import Environment
from linkd.log.inspect import stat, verify, verify_segment

__all__ = [
    "CursorStore",
    "DiskLog",
    "Environment",
    "SqliteCursorStore",
    "inspect_postgresql",
    "open_cursors",
    "open_log",
    "shared_values",
    "stat",
    "verify",
    "verify_segment",
]


def open_log(
    settings: LogSettings,
    state_dir: Path,
    node: str,
    post: Post,
    edges: Environment | None = None,
    cluster: ClusterSettings | None = None,
) -> DiskLog:
    """Open the log in `state_dir`, or create it.

    Args:
        settings: Its limits.
        state_dir: The node's directory; the log gets a folder in it.
        node: This node's name.
        post: Brings a call into the thread that uses the log (`reactor.callFromThread`).
        edges: Disk, clocks and randomness; None: the real ones.
        cluster: Which instance of the node this is, if several share the log.

    Raises:
        LogDamaged: Another daemon uses it, or a file can't be read; the message says what to do.
        StateTooNew: It was written by a newer linkd.
        ConfigError: Its settings are wrong, or psycopg is missing.
        Unavailable: Its database can't be reached.
    """
    if settings.engine == "postgresql":
        try:
            from linkd.log.postgresql.log import PostgresqlLog  # noqa: PLC0415 - it needs psycopg
            from linkd.log.postgresql.shared_log import SharedLog  # noqa: PLC0415
        except ImportError as error:
            raise _no_psycopg(error) from None
        if cluster is not None:
            return SharedLog(node, settings, cluster, post, edges)
        return PostgresqlLog(node, settings, post, edges)
    return DiskLog(Path(state_dir) / "log", node, settings, post, edges)


def inspect_postgresql(settings: LogSettings) -> str:
    """Return what is found at the database of the log, in one line.

    Raises:
        ConfigError: A setting is wrong, psycopg is missing, or the server is unfit for a log.
        Unavailable: It can't be reached.
    """
    try:
        from linkd.log.postgresql.setup import inspect  # noqa: PLC0415 - psycopg is optional
    except ImportError as error:
        raise _no_psycopg(error) from None
    return inspect(settings)


def shared_values(settings: LogSettings, kind: str) -> dict[str, bytes]:
    """Return what the instances of a node have written into its database, by key.

    Raises:
        ConfigError: A setting is wrong, or psycopg is missing.
        Unavailable: The database can't be reached.
    """
    try:
        from linkd.log.postgresql.setup import values_of  # noqa: PLC0415 - psycopg is optional
    except ImportError as error:
        raise _no_psycopg(error) from None
    return values_of(settings, kind)


def _no_psycopg(error: ImportError) -> ConfigError:
    return ConfigError(
        f'log.engine = "postgresql" needs psycopg ({error}): install linkd-daemon[postgresql]'
    )


def open_cursors(
    log: DiskLog, state_dir: Path, post: Post, *, wall: Callable[[], float] = clock.wall
) -> SqliteCursorStore:
    """Open the file of cursors and outages that belongs to `log`, or create it.

    Returns:
        A `CursorStore` that also keeps outages, with `notices` (for the operator) and
        `close(done)`; close it before the log.

    Raises:
        LogDamaged: It can't be opened; the message says what to do.
        StateTooNew: It was written by a newer linkd.
    """
    if hasattr(log, "database"):
        from linkd.log.postgresql.cursors import PostgresqlCursorStore  # noqa: PLC0415
        from linkd.log.postgresql.shared_cursors import SharedCursorStore  # noqa: PLC0415
        from linkd.log.postgresql.shared_log import SharedLog  # noqa: PLC0415

        if isinstance(log, SharedLog):
            return SharedCursorStore(log, post)

        return PostgresqlCursorStore(log.database, log.id, post)
    cursors = SqliteCursorStore(Path(state_dir) / "cursors.db", log.id, log.snapshot, post, wall)
    log.carried = cursors.carried
    return cursors
