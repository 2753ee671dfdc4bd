"""Cursors, outages and events in the database of the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linkd.log.commit import Post
from linkd.log.cursor_store import HISTORY, Rows, SqliteCursorStore
from linkd.log.postgresql.database import Database
from linkd.log.state import Snapshot

_PUT = (
    "insert into linkd.kept (kind, key, value)"
    " select kind, key, value from unnest(%s::text[], %s::text[], %s::bytea[])"
    " as row (kind, key, value) where exists (select from linkd.log where fence = %s)"
    " on conflict (kind, key) do update set value = excluded.value"
)
_DELETE = (
    "delete from linkd.kept using unnest(%s::text[], %s::text[]) as row (kind, key)"
    " where kept.kind = row.kind and kept.key = row.key"
    " and exists (select from linkd.log where fence = %s)"
)


class PostgresqlCursorStore(SqliteCursorStore):
    """Cursors and outages in the table `linkd.kept`.

    Args:
        database: That of the log, which was opened.
        log: The id of the log.
        post: Brings a call into the thread in which all methods are called.
    """

    def __init__(self, database: Database, log: str, post: Post) -> None:
        self._database = database
        super().__init__(Path("PostgreSQL"), log, None, post)

    def _find(self, snapshot: Snapshot | None) -> Any:
        """Read all rows."""
        rows = self._database.run(
            lambda connection: connection.execute(
                "select kind, key, value from linkd.kept where value is not null", binary=True
            ).fetchall()
        )
        for kind, key, value in rows:
            self._take(kind, int(key) if kind in HISTORY else key, value)
        return self

    def _release(self) -> None:
        """Leave the database open: the log closes it."""

    def write(self, rows: Rows) -> Exception | None:
        """Write rows in one transaction; return why it failed, if it did."""
        gone = [key for key, row in rows.items() if row is None]
        kept = [(*key, row) for key, row in rows.items() if row is not None]
        fence = self._database.fence

        def put(connection: Any) -> None:
            with connection.transaction():
                connection.execute(
                    _DELETE, ([kind for kind, _ in gone], [str(key) for _, key in gone], fence)
                )
                connection.execute(
                    _PUT,
                    (
                        [kind for kind, _, _ in kept],
                        [str(key) for _, key, _ in kept],
                        [row for _, _, row in kept],
                        fence,
                    ),
                )

        try:
            self._database.run(put)
        except OSError as error:
            return error
        return None
