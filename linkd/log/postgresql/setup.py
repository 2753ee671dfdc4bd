"""Set up a log in PostgreSQL: create its tables, look at its server, copy a log in and out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from linkd.config.settings import LogSettings, PostgresqlSettings
from linkd.errors import ConfigError, LogDamaged, StateTooNew, Unavailable
from linkd.log.cursor_store import SqliteCursorStore
from linkd.log.files import DiskFiles
from linkd.log.postgresql.cursors import PostgresqlCursorStore
from linkd.log.postgresql.database import (
    Database,
    Health,
    Unfit,
    check_standby,
    parameters,
    text_of,
)
from linkd.log.postgresql.files import PostgresqlFiles
from linkd.log.postgresql.schema import FORMAT, create
from linkd.log.segment import load_identity

COPY_BYTES = 1 << 20
_COPYING = "copying:"
_KINDS = (".log", ".idx", ".ids", ".state")
_NAMES = ("identity", "clock")

Progress = Callable[[str], None]


def _settings(settings: LogSettings) -> PostgresqlSettings:
    if settings.postgresql is None:
        raise ConfigError("log.postgresql: missing; set at least its dsn")
    return settings.postgresql


def initialise(settings: LogSettings, dsn: str | None) -> str:
    """Create the tables as the owner, and let the daemon's role use them; return what was done.

    Args:
        settings: Where the database is, and with which role the daemon connects.
        dsn: How the owner connects; None as the daemon does.

    Raises:
        ConfigError: A setting is wrong.
        StateTooNew: A newer linkd made them.
        Unavailable: The database can't be reached, or refuses.
    """
    table = _settings(settings)
    named = parameters(table)
    owner = named if dsn is None else make_conninfo(dsn, application_name="linkd-init")
    try:
        with psycopg.connect(owner, autocommit=True) as connection:
            role = conninfo_to_dict(named).get("user") or connection.info.user
            is_new = create(connection, str(role))
            found = version_of(connection)
    except psycopg.Error as error:
        raise Unavailable(f"log.postgresql: {text_of(error)}") from None
    if found > FORMAT:
        raise StateTooNew(f"the tables were made by a newer linkd (format {found})")
    what = "created" if is_new else "there already"
    return f"the tables of format {FORMAT} are {what}; {role} may use them"


def version_of(connection: Any) -> int:
    """Return the format of the tables."""
    return int(connection.execute("select format from linkd.log").fetchone()[0])


def inspect(settings: LogSettings) -> str:
    """Return what is found at the database, in one line, for `linkd check`.

    Raises:
        ConfigError: A setting is wrong, or the server is unfit for a log, or has none.
        Unavailable: It can't be reached.
    """
    table = _settings(settings)
    conninfo = make_conninfo(parameters(table), application_name="linkd-check")
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            health = Health(connection)
            problem = health.problem(table)
            if problem is not None:
                raise ConfigError(f"log.postgresql: {problem}")
            check_standby(connection, health)
            found = version_of(connection)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise ConfigError("log.postgresql: it has no tables yet: run `linkd log init`") from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigError(f"log.postgresql: {text_of(error)}: run `linkd log init`") from None
    except (psycopg.Error, Unfit) as error:
        raise Unavailable(f"log.postgresql: {text_of(error)}") from None
    if found > FORMAT:
        raise ConfigError(
            f"log.postgresql: made by a newer linkd (format {found}, this one reads {FORMAT}):"
            " upgrade linkd"
        )
    if found < FORMAT:
        raise ConfigError(
            f"log.postgresql: the tables have format {found}, this linkd needs {FORMAT}:"
            " run `linkd log migrate`"
        )
    warnings = health.warnings(table.synchronous).values()
    return "; warning: ".join([f"log in {health.words()}", *warnings])


def values_of(settings: LogSettings, kind: str) -> dict[str, bytes]:
    """Return what instances of the node have written, by key.

    Raises:
        Unavailable: The database can't be reached, or refuses.
    """
    conninfo = make_conninfo(parameters(_settings(settings)), application_name="linkd-check")
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            return dict(
                connection.execute(
                    "select key, value from linkd.kept where kind = %s and value is not null",
                    (kind,),
                ).fetchall()
            )
    except psycopg.Error as error:
        raise Unavailable(f"log.postgresql: {text_of(error)}") from None


def copy_in(settings: LogSettings, state_dir: Path, node: str, progress: Progress) -> str:
    """Copy the log of segments in `state_dir` into the database, and rename its directory.

    It counts only once all of it is there.

    Raises:
        LinkdError: One of the two is in use or can't be read, or the database has a log.
    """
    source, disk = state_dir / "log", DiskFiles()
    identity = load_identity(source) if source.is_dir() else None
    if identity is None:
        raise LogDamaged(f"{source}: expected a log there")
    held = disk.lock(source)
    database = Database(_settings(settings), node)
    files = PostgresqlFiles(database)
    try:
        files.lock(files.root)
        _clear(files, "the database has a log already")
        for path in _wanted(source):
            _copy(path, files, files.root / f"{_COPYING}{path.name}", progress)
        cursors = SqliteCursorStore(state_dir / "cursors.db", identity.log, None, _now)
        into = PostgresqlCursorStore(database, identity.log, _now)
        _copy_cursors(cursors, into)
        database.run(
            lambda connection: connection.execute(
                "update linkd.file set name = substring(name from %s) where starts_with(name, %s)",
                (len(_COPYING) + 1, _COPYING),
            )
        )
    finally:
        files.close(-1)
        disk.close(held)
    aside = state_dir / "log.copied"
    with suppress(OSError):
        source.rename(aside)
    return f'copied; the old directory is {aside}: set log.engine = "postgresql", then start linkd'


def copy_out(settings: LogSettings, state_dir: Path, node: str, progress: Progress) -> str:
    """Copy the log in the database into segments in `state_dir`.

    Raises:
        LinkdError: It is in use or can't be read, or there is a log already.
    """
    target, part, disk = state_dir / "log", state_dir / "log.copying", DiskFiles()
    if target.is_dir() and load_identity(target) is not None:
        raise LogDamaged(f"{target}: there is a log already")
    database = Database(_settings(settings), node)
    files = PostgresqlFiles(database)
    try:
        files.lock(files.root)
        identity = load_identity(cast(Path, files.root))
        if identity is None:
            raise LogDamaged("the database has no log")
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in part.iterdir():
            left.unlink()
        for path in _wanted(cast(Path, files.root)):
            _copy(path, disk, part / path.name, progress)
        cursors = PostgresqlCursorStore(database, identity.log, _now)
        into = SqliteCursorStore(state_dir / "cursors.db", identity.log, None, _now)
        _copy_cursors(cursors, into)
    finally:
        files.close(-1)
    for left in target.iterdir() if target.is_dir() else ():
        left.unlink()
    part.replace(target)
    return (
        'copied: set log.engine = "segments", then start linkd; drop the schema `linkd` in the'
        " database, and never start that log again"
    )


def _copy_cursors(source: SqliteCursorStore, target: SqliteCursorStore) -> None:
    error = target.write(source.rows())
    for each in (source, target):
        each.close(_nothing)
    if error is not None:
        raise LogDamaged(f"the cursors could not be copied: {error}")


def _clear(files: PostgresqlFiles, has_one: str) -> None:
    """Remove what an interrupted copy left; refuse a log."""
    if any(not name.startswith(_COPYING) for name in files.names):
        raise LogDamaged(has_one)
    for name in tuple(files.names):
        files.unlink(files.root / name)


def _wanted(folder: Path) -> list[Path]:
    """Return the files of a log, without what was set aside."""
    found = [path for path in folder.iterdir() if path.suffix in _KINDS or path.name in _NAMES]
    return sorted(found)


def _copy(path: Path, target: DiskFiles, to: Any, progress: Progress) -> None:
    """Copy a file, and compare what was written."""
    progress(path.name)
    fd, at = target.open(to, create=True), 0
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(COPY_BYTES):
                target.write(fd, at, [block])
                at += len(block)
    finally:
        target.close(fd)
    if to.stat().st_size != at:
        raise LogDamaged(f"{to}: expected {at} bytes, found {to.stat().st_size}")


def _now(call: Callable[[], None]) -> None:
    call()


def _nothing() -> None:
    """Nobody waits for the end."""
