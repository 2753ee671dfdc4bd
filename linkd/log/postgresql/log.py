"""The engine on PostgreSQL: the log of segments, with the database as its disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec

from linkd.config.settings import LogSettings, PostgresqlSettings
from linkd.errors import LinkdError, LogLost, LogUnavailable
from linkd.log.commit import CommitGroup, PendingItem, Post, ignore
from linkd.log.disk_log import DiskLog
from linkd.log.files import Environment
from linkd.log.interface import OnDurable, OperatorNotice
from linkd.log.postgresql.database import Database
from linkd.log.postgresql.files import PostgresqlFiles
from linkd.protocol.records import NewRecords


class PostgresqlLog(DiskLog):
    """A log in the database of `log.postgresql`.

    A group whose commit the database has not confirmed stays under way, however long that takes:
    it is asked for and sent again until it is there, once. Publishers do not wait that long.

    Args:
        node: This node's name.
        settings: Its bounds, and where the database is.
        post: Brings a call into the thread in which all methods are called.
        edges: What it touches of the world, but for the disk.

    Attributes:
        database: The connections, which the cursors use too.

    Raises:
        LogDamaged: Another daemon has it, or it can't be read.
        StateTooNew: It was written by a newer linkd.
        Unavailable: The database can't be reached.
    """

    def __init__(
        self, node: str, settings: LogSettings, post: Post, edges: Environment | None = None
    ) -> None:
        assert settings.postgresql is not None
        self._is_lost = False
        self._engine_timeout = settings.postgresql.engine_timeout
        files = self._make_files(settings.postgresql, node)
        edges = msgspec.structs.replace(edges or Environment(), files=files)
        # A StoredPath has all that the log uses of a Path.
        super().__init__(cast(Path, files.root), node, settings, post, edges)
        self._warned = dict(self.database.warnings)
        warnings = [OperatorNotice("warn", *one) for one in self._warned.items()]
        self.notices = [*self.notices, *warnings]
        self.database.lost = lambda error: post(lambda: self._lost(error))

    def _make_files(self, settings: PostgresqlSettings, node: str) -> PostgresqlFiles:
        """Return the files, whose database is not connected yet."""
        self.database = Database(settings, node)
        return PostgresqlFiles(self.database)

    def look(self) -> None:
        """Report new warnings about the server; answer the publishers that wait for too long."""
        if self._is_lost:
            return
        warnings = dict(self.database.warnings)
        for event in warnings.keys() - self._warned:
            self._report_engine("warn", event, warnings[event])
        self._warned = warnings
        if self.database.hung() >= self._engine_timeout:
            self.database.break_off()
        waited = max(self.database.away(), self._commit_seconds())
        if waited < self._engine_timeout:
            if self.unavailable is not None:
                self.unavailable = None
                self._measure()
                self._report_engine("info", "log.engine-back", "the database answers again")
            return
        hangs = "it accepts questions and answers none" if self.database.hung() else ""
        commits = "it has not finished a commit; is its standby connected?"
        why = self.database.trouble or hangs or commits
        sentence = f"the database of the log has not answered for {waited:.0f} s: {why}"
        was_available, self.unavailable = self.unavailable is None, sentence
        self._measure()
        if was_available:
            self._report_engine("error", "log.engine-away", sentence)
        self._give_up()

    def _report_engine(self, level: str, event: str, detail: str) -> None:
        self._notify(OperatorNotice(level, event, detail))
        self._raise_mistakes()

    def _commit_seconds(self) -> float:
        """Return for how long the oldest commit is under way."""
        if not self._under_way:
            return 0.0
        return self.clock() - max(self._under_way[0].stamp, self._finished)

    def _measure(self) -> None:
        """Refuse publishes while the database does not answer."""
        super()._measure()
        if self.unavailable is not None:
            self.full = self.unavailable

    def _refusal(self) -> LinkdError:
        """Return why a publish is refused."""
        if self.unavailable is not None:
            return LogUnavailable(f"nothing was stored: {self.unavailable}", is_unknown=False)
        return super()._refusal()

    def _give_up(self) -> None:
        """Answer all publishers that wait; what is under way stays so, and may be stored."""
        unknown = LogUnavailable(
            f"it may be stored already or later: {self.unavailable};"
            " repeat it with the same id or number",
            is_unknown=True,
        )
        answers: list[tuple[OnDurable, LinkdError]] = []
        for group in self._under_way:
            answers += [(settled, unknown) for settled in _take_publishes(group)]
        error, waiting = self._refusal(), self._waiting
        self._waiting = [entry for entry in waiting if not _is_publish(entry)]
        for entry in waiting:
            if _is_publish(entry):
                answers.append((entry[1], error))
                self._waiting_bytes -= len(cast(NewRecords, entry[0]).records)
        for settled, outcome in answers:
            self._call((settled,), outcome)
        self._raise_mistakes()

    def _lost(self, error: LogLost) -> None:
        """Report that the log is not this daemon's any more; the writer's thread ends by itself."""
        self._is_lost = True
        detail = str(error)
        if error.event == "log.went-back":
            detail += f"; the last offset that was acknowledged here is {self.next - 1}"
        self.unavailable = detail
        self._measure()
        self._report_engine("error", error.event, f"{detail}; linkd starts again")
        self._give_up()

    def close(self, done: Callable[[], None]) -> None:
        """Commit what waits, settle it, end the threads, then call `done`.

        Where the database does not answer nothing is waited for.
        """
        if self.unavailable is not None or self.database.trouble:
            self.unavailable = self.unavailable or self.database.trouble
            self._measure()
            self._give_up()
            self.database.stop()
        super().close(done)


def _is_publish(entry: PendingItem) -> bool:
    return isinstance(entry[0], NewRecords)


def _take_publishes(group: CommitGroup) -> list[OnDurable]:
    """Take the publishers off a group that stays under way; return their callbacks."""
    taken = [settled for item, settled in group.waiting if isinstance(item, NewRecords)]
    known = set(map(id, taken))
    group.waiting = [entry for entry in group.waiting if not _is_publish(entry)]
    group.outcomes = [
        (ignore if id(settled) in known else settled, outcome)
        for settled, outcome in group.outcomes
    ]
    return taken
