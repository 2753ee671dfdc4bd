"""Connections to the database of a log: who holds it, and whether a commit happened."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from linkd import clock
from linkd.config.addresses import is_loopback
from linkd.config.settings import PostgresqlSettings
from linkd.errors import ConfigError, LogDamaged, LogLost, StateTooNew, Unavailable
from linkd.log.postgresql.schema import FORMAT

_T = TypeVar("_T")

APPLICATION = "linkd"
MIN_VERSION = 150000
LOCK = 0x6C696E6B64  # `linkd` in ASCII: the advisory lock of the one daemon that has the log
LOCK_SECONDS = 5.0
"""A start waits so long for the session of a daemon that was killed to end."""

FENCED = "LK001"
"""The code of the schema's functions for a daemon that is not the log's holder any more."""

RETRY_SECONDS = 0.25
PING_SECONDS = 1.0
HEALTH_SECONDS = 60.0
"""The settings of a server are read again so often."""

CONFIRM_SECONDS = 5.0
"""A start waits so long for the standby to confirm a commit."""

SKEW_SECONDS = 60.0
"""The clocks of the two hosts may differ by so much before an operator is warned."""

_DEFAULTS = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "target_session_attrs": "read-write",
    "application_name": APPLICATION,
    "client_encoding": "utf8",
}
"""A dead server is noticed within about ten seconds, and a standby is not written to."""

_SESSION = (
    "set synchronous_commit = on; set client_connection_check_interval = '2s';"
    " set tcp_keepalives_idle = 5; set tcp_keepalives_interval = 2; set tcp_keepalives_count = 3;"
    " set search_path = linkd; set timezone = 'UTC'"
)


def parameters(settings: PostgresqlSettings) -> str:
    """Return the connection string of `log.postgresql`, with its password and time limits.

    Raises:
        ConfigError: It can't be read, has a password in it, or would send records unprotected.
        Unavailable: The password file can't be read for now.
    """
    try:
        found = conninfo_to_dict(settings.dsn)
    except psycopg.Error as error:
        text = str(error).strip()
        raise ConfigError(f"log.postgresql.dsn: expected a connection string: {text}") from None
    if "password" in found:
        raise ConfigError(
            "log.postgresql.dsn: expected no password in it; set log.postgresql.password_file"
        )
    hosts = f"{found.get('hostaddr') or found.get('host') or ''}".split(",")
    far = [host for host in hosts if host and not host.startswith("/") and not is_loopback(host)]
    if far and found.get("sslmode") != "verify-full" and not settings.insecure:
        raise ConfigError(
            f"log.postgresql.dsn: {far[0]} is beyond this host: add sslmode=verify-full, or set"
            " log.postgresql.insecure = true on a line that is safe by itself"
        )
    more: dict[str, Any] = {key: value for key, value in _DEFAULTS.items() if key not in found}
    if settings.password_file is not None:
        try:
            more["password"] = Path(settings.password_file).read_text().strip()
        except OSError as error:
            raise ConfigError(f"log.postgresql.password_file: {error}") from None
    conninfo: str = make_conninfo(settings.dsn, **more)
    return conninfo


class Health:
    """The settings of a server that durability depends on, its standbys, and its clock."""

    def __init__(self, connection: Any) -> None:
        """Read them."""
        row = connection.execute(
            "select current_setting('fsync'), current_setting('full_page_writes'),"
            " current_setting('synchronous_standby_names'), current_setting('server_version'),"
            " (select count(*) from pg_stat_replication),"
            " extract(epoch from clock_timestamp())::float8"
        ).fetchone()
        self.fsync, self.full_page_writes, self.standbys, self.version, self.connected, at = row
        self.ahead = at - clock.wall()
        self.number = connection.info.server_version
        address = connection.info.hostaddr
        mode = next(one.val for one in connection.pgconn.info if one.keyword == b"sslmode")
        is_far = address and not is_loopback(address)
        self.exposed = address if is_far and mode != b"verify-full" else ""

    def problem(self, settings: PostgresqlSettings) -> str | None:
        """Return why a log must not be kept there, or None."""
        if self.number < MIN_VERSION:
            return f"PostgreSQL 15 or later is needed, this is {self.version}"
        if self.exposed and not settings.insecure:  # its host came from PGHOST or a service file
            return f"{self.exposed} is beyond this host: add sslmode=verify-full to the dsn"
        for name, value in (("fsync", self.fsync), ("full_page_writes", self.full_page_writes)):
            if value != "on":
                return f"the server has {name} = {value}: a power cut would lose the log; set it on"
        if settings.synchronous == "required" and not self.standbys:
            return (
                "synchronous_standby_names is empty, so a failover loses acknowledged records: set"
                ' it, or set log.postgresql.synchronous = "preferred" or "single"'
            )
        return None

    def warnings(self, synchronous: str) -> dict[str, str]:
        """Return what an operator should know, by event."""
        found = {}
        if synchronous == "preferred" and not self.standbys:
            found["log.no-standby"] = (
                "synchronous_standby_names is empty: a failover of the database loses"
                " acknowledged records"
            )
        if abs(self.ahead) > SKEW_SECONDS:
            found["log.clock-doubtful"] = (
                f"the clock of the database is {abs(self.ahead):.0f} s"
                f" {'ahead of' if self.ahead > 0 else 'behind'} this host's; linkd goes by this"
                " host's clock alone: correct the one that is wrong"
            )
        return found

    def words(self) -> str:
        """Return it in one line."""
        return (
            f"PostgreSQL {self.version}, fsync {self.fsync}, full_page_writes"
            f" {self.full_page_writes}, synchronous_standby_names {self.standbys or 'empty'},"
            f" standbys connected: {self.connected}"
        )


def check_standby(connection: Any, health: Health) -> None:
    """Wait until a standby has confirmed a commit, where the server has synchronous ones.

    The commit is that of a mark in the write-ahead log; cancelling it loses nothing.

    Raises:
        Unfit: None has confirmed it in time.
    """
    if not health.standbys:
        return
    given_up: list[bool] = []

    def noticed(notice: Any) -> None:
        given_up.append(is_unconfirmed(notice))

    connection.add_notice_handler(noticed)
    timer = threading.Timer(CONFIRM_SECONDS, connection.cancel)
    timer.daemon = True
    timer.start()
    try:
        connection.execute("select pg_logical_emit_message(true, 'linkd', '')")
    finally:
        timer.cancel()
        connection.remove_notice_handler(noticed)
    if any(given_up):
        raise Unfit(
            f"no standby has confirmed a commit within {CONFIRM_SECONDS:g} s:"
            f" synchronous_standby_names is {health.standbys}, standbys connected:"
            f" {health.connected}; connect one that it names (its application_name), or set it to"
            " those that are there"
        )


def is_unconfirmed(notice: Any) -> bool:
    """Return whether the server gave up waiting for the standby: the commit is only on itself.

    The text is in the server's language, the name of the function is not.
    """
    return bool(notice.source_function == "SyncRepWaitForLSN")


def text_of(error: BaseException) -> str:
    """Return an error's text in one line, with its code; of several hosts, what each one said."""
    state = getattr(error, "sqlstate", None)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = "; ".join(one[2:] for one in lines if one.startswith("- host: ")) or lines[0]
    if state is None and "password" in line:
        line += "; set the right one in log.postgresql.password_file"
    return f"PostgreSQL: {line}" + (f" ({state})" if state else "")


class Database:
    """The database of one log, held by one daemon at a time.

    The writer's thread uses `commit`, all others `run`. Every commit counts one up in the row that
    also names the holder, so that after a lost connection the count tells whether a commit
    happened, whether another daemon took the log over, and whether the database went back.

    Args:
        settings: Where it is.
        node: The node whose log it is.

    Attributes:
        fence: Counts the holders; with another one in the database nothing more can be written.
        trouble: Why the last attempt to reach it failed; empty while it works.
        warnings: What an operator should know about the server, by event.
        lost: Called in the thread that finds that the log is no longer this daemon's.
    """

    def __init__(self, settings: PostgresqlSettings, node: str) -> None:
        self.settings = settings
        self.fence = 0
        self.trouble = ""
        self.warnings: dict[str, str] = {}
        self.lost: Callable[[LogLost], None] = _raise
        self._node = node
        parameters(settings)  # what is wrong in them ends the start as an error of configuration
        self._commits = 0
        self._main: Any = None
        self._idle: list[Any] = []
        self._since: float | None = None
        self._pinged = self._checked = 0.0
        self._asked: float | None = None  # since when a question is not answered
        self._closing = threading.Event()
        self._is_doubtful = False

    # opening

    def connect(self) -> Any:
        """Open a connection to a server that is fit for a log, with the password that is set now.

        Raises:
            psycopg.Error: It can't be reached, or refuses.
            Unfit: Its settings would lose records.
        """
        try:
            conninfo = parameters(self.settings)
        except ConfigError as error:
            raise Unfit(str(error)) from None
        connection = psycopg.connect(conninfo, autocommit=True)
        try:
            connection.execute(_SESSION)
            self._check_health(connection)
        except BaseException:
            connection.close()
            raise
        connection.add_notice_handler(self._noticed)
        return connection

    def _check_health(self, connection: Any) -> None:
        health = Health(connection)
        problem = health.problem(self.settings)
        if problem is not None:
            raise Unfit(problem)
        self.warnings = health.warnings(self.settings.synchronous)
        self._checked = time.monotonic()

    def acquire(self) -> None:
        """Take the log: refuse if a daemon has it, and fence off what is left of an older one.

        Raises:
            LogDamaged: It is in use, or that of another node, or there is none.
            StateTooNew: A newer linkd made it.
            Unavailable: The database can't be reached, or its settings are unfit.
        """
        try:
            self._main = self.connect()
            check_standby(self._main, Health(self._main))
            self._check_schema()
            self._lock()
            self._take()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            self.close()
            raise LogDamaged(f"{text_of(error)}: run `linkd log init` first") from None
        except (psycopg.Error, Unfit) as error:
            self.close()
            raise Unavailable(f"log.postgresql: {text_of(error)}") from None
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        """Fence off an older holder, and end what is left of its sessions."""
        self.fence, self._commits = self._fence_off(self._main)
        self._end_leftovers(APPLICATION)

    def _fence_off(self, connection: Any) -> tuple[int, int]:
        """Count the holders up; return their number, and that of the commits."""
        fence, commits = connection.execute(
            "update linkd.log set fence = fence + 1, hub = %s, node = %s returning fence, commits",
            (socket.gethostname(), self._node),
        ).fetchone()
        return fence, commits

    def _end_leftovers(self, application: str) -> None:
        """End the sessions of an earlier run, which may still hold locks."""
        self._main.execute(
            "select pg_terminate_backend(pid, 2000) from pg_stat_activity"
            " where application_name = %s and datname = current_database()"
            " and usename = current_user and pid <> pg_backend_pid()",
            (application,),
        )

    def _check_schema(self) -> None:
        version, needs, node = self._main.execute(
            "select format, needs, node from linkd.log"
        ).fetchone()
        if version > FORMAT:
            raise StateTooNew(
                f"the log in PostgreSQL was made by a newer linkd (format {version}, this one reads"
                f" {FORMAT}): linkd {needs} or later is needed"
            )
        if version < FORMAT:
            raise LogDamaged(
                f"the tables of the log in PostgreSQL have format {version}, this linkd needs"
                f" {FORMAT}: stop the linkd that uses them, then run `linkd log migrate`"
            )
        if node not in (None, self._node):
            raise LogDamaged(
                f"the log in this database is that of the node {node}, this is {self._node}:"
                " give each node its own database"
            )

    def _lock(self) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while not self._try_lock(self._main):
            if time.monotonic() >= deadline:
                (hub,) = self._main.execute("select hub from linkd.log").fetchone()
                raise LogDamaged(
                    f"the log in PostgreSQL is in use by another linkd, on {hub}: stop that one,"
                    " or give this node its own database"
                )
            time.sleep(RETRY_SECONDS)

    @staticmethod
    def _try_lock(connection: Any) -> bool:
        (held,) = connection.execute("select pg_try_advisory_lock(%s)", (LOCK,)).fetchone()
        return bool(held)

    def stop(self) -> None:
        """Let every attempt that waits for the database fail now."""
        self._closing.set()

    def close(self) -> None:
        """Close all connections; the lock goes with them."""
        self._closing.set()
        idle, self._idle = self._idle, []
        for connection in (*idle, self._main):
            if connection is not None:
                connection.close()
        self._main = None

    # health

    def away(self) -> float:
        """Return for how many seconds it has not been reached; 0 while it works."""
        since = self._since
        return self.hung() if since is None else time.monotonic() - since

    def hung(self) -> float:
        """Return for how many seconds it has not answered a question that takes no time."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def break_off(self) -> None:
        """Let the writer's connection fail: its server does not answer, maybe another one does."""
        break_off(self._main)

    def _failed(self, error: BaseException) -> None:
        if self._since is None:
            self._since = time.monotonic()
        self.trouble = text_of(error)

    def _works(self) -> None:
        self._since, self.trouble = None, ""

    def ping(self) -> None:
        """Look whether it works and is still ours; the writer's thread alone calls this.

        Raises:
            OSError: It can't be reached.
        """
        if time.monotonic() - self._pinged < PING_SECONDS:
            return
        self._pinged = self._asked = time.monotonic()
        try:
            if self._main is None:
                self._reopen()
            elif time.monotonic() - self._checked >= HEALTH_SECONDS:
                self._check_health(self._main)
            self._count(self._main)
        except (psycopg.Error, Unfit) as error:
            self._drop(error)
            raise OSError(errno.EIO, text_of(error)) from None
        finally:
            self._asked = None
        self._works()

    def _drop(self, error: BaseException) -> None:
        """Close the writer's connection after an error on it."""
        self._failed(error)
        if self._main is not None:
            self._main.close()
            self._main = None

    # the writer

    def commit(self, statement: Any, values: tuple[Any, ...]) -> None:
        """Run a statement that inserts behind `_HELD`, and return once it is committed.

        While the database can't be reached it waits and tries again: the outcome is never unknown
        to the caller.

        Raises:
            OSError: The database refused it, and nothing of it is there; or the log is closed.
            LogLost: The log is no longer this daemon's.
        """
        is_unknown = is_there = False
        while True:
            try:
                connection = self._main or self._reopen()
                if is_unknown and not is_there:
                    is_there = self._count(connection) > self._commits
                if is_there:
                    self._confirm(connection)
                    break
                row = (self.fence, self._commits, *values)
                is_there = connection.execute(statement, row).rowcount == 1
                if is_there and not self._is_doubtful:
                    break
                if not is_there and not is_unknown and self._count(connection) > self._commits:
                    self._raise_lost("log.fenced", "another linkd writes into the log")
            except (psycopg.Error, Unfit) as error:
                if is_refusal(error) and not is_there:
                    raise refused(error) from None
                self._drop(error)
                is_unknown = True
                if self._closing.wait(RETRY_SECONDS):
                    raise OSError(errno.ESHUTDOWN, self.trouble) from None
        self._commits += 1
        self._works()

    def _reopen(self) -> Any:
        """Open the writer's connection again, and take the lock that went with the old one."""
        connection = self.connect()
        try:
            self._count(connection)
            self._try_lock(connection)  # the fence protects the log also without it
        except BaseException:
            connection.close()
            raise
        self._main = connection
        return connection

    def _count(self, connection: Any) -> int:
        """Return how many commits the log has had.

        Raises:
            LogLost: Another daemon has it now, or commits are missing that were confirmed.
        """
        fence, commits, hub = connection.execute(
            "select fence, commits, hub from linkd.log"
        ).fetchone()
        if fence > self.fence:
            self._raise_lost("log.fenced", f"a linkd on {hub} has taken over the log in PostgreSQL")
        if fence < self.fence or commits < self._commits:
            self._raise_lost(
                "log.went-back",
                "the database went back to an older state: of the commits that it had confirmed,"
                f" {self._commits - commits} are gone",
            )
        return int(commits)

    def _raise_lost(self, event: str, message: str) -> NoReturn:
        """Report that the log is not ours any more, and end this thread."""
        error = LogLost(event, message)
        self.lost(error)
        raise error

    def _confirm(self, connection: Any) -> None:
        """Wait until a commit that is there is also on the synchronous standby.

        A restart or a cancelled wait makes a commit visible before that. This one comes behind it.
        """
        while True:
            self._is_doubtful = False
            connection.execute("update linkd.log set hub = hub")
            if not self._is_doubtful:
                return

    def _noticed(self, notice: Any) -> None:
        if is_unconfirmed(notice):
            self._is_doubtful = True

    # the others

    def run(self, work: Callable[[Any], _T]) -> _T:
        """Do `work` with a connection, in any thread but the writer's.

        It is done again while the database can't be reached, so it must do no harm twice.

        Raises:
            OSError: The database refuses, or the log is closed.
        """
        while True:
            connection = None
            try:
                connection = self._idle.pop() if self._idle else self.connect()
                result = work(connection)
            except (psycopg.Error, Unfit) as error:
                if connection is not None and is_refusal(error):
                    self._idle.append(connection)
                    raise refused(error) from None
                if connection is not None:
                    connection.close()
                if self._closing.wait(RETRY_SECONDS):
                    raise OSError(errno.ESHUTDOWN, text_of(error)) from None
            else:
                self._idle.append(connection)
                return result


def break_off(connection: Any) -> None:
    """Let what waits on a connection fail now, in whichever thread that is."""
    with suppress(OSError, psycopg.Error):
        if connection is not None:
            with socket.socket(fileno=os.dup(connection.fileno())) as found:
                found.shutdown(socket.SHUT_RDWR)


class Unfit(Exception):
    """The server's settings would lose records."""


def is_refusal(error: BaseException) -> bool:
    """Return whether the server refused a statement, and nothing of it is there.

    With any other error, as that of a server that stops, the outcome is unknown. A standby that
    was reached by mistake counts as a server that is away.
    """
    diag = getattr(error, "diag", None)
    read_only = isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
    return diag is not None and diag.severity_nonlocalized == "ERROR" and not read_only


def refused(error: BaseException) -> OSError:
    """Return the error of a disk for one of the database."""
    number = errno.ENOSPC if isinstance(error, psycopg.errors.DiskFull) else errno.EIO
    if getattr(error, "sqlstate", None) == FENCED:
        number = errno.EPERM
    return OSError(number, text_of(error))


def _raise(error: LogLost) -> None:
    """Nobody listens yet: the error itself ends the start."""
