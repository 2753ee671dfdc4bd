"""Bill each order once, in order, with Twisted; put aside the ones that cannot be billed.

python bill.py billing.db
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

from twisted.enterprise import adbapi
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater, react

from linkd.client.record import Record
from linkd.client.twisted import Node, connect

RETRY_SECONDS = 1.0

SCHEMA = "CREATE TABLE IF NOT EXISTS bills (number INTEGER PRIMARY KEY, total INTEGER NOT NULL)"


class Unbillable(Exception):
    """The order is wrong: it will not be right the next time either."""


def bill(transaction: Any, order: object) -> bool:
    """Write a bill, in a thread of the pool; a second call with the same order changes nothing."""
    try:
        number, total = int(order["number"]), int(order["total"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise Unbillable(f"expected a number and a total: {error!r}") from error
    transaction.execute("INSERT OR IGNORE INTO bills VALUES (?, ?)", (number, total))
    return bool(transaction.rowcount)


async def handle(reactor: Any, node: Node, db: adbapi.ConnectionPool, record: Record) -> None:
    """Return once a record is done: billed, or put aside on `orders.failed`."""
    while True:
        try:
            is_new = await db.runInteraction(bill, record.data)
            print("billed" if is_new else "billed before:", record.data["number"], flush=True)
            return
        except Unbillable as error:
            await node.publish(
                "orders.failed",
                record.body,
                type=record.type,
                # The same record again, after a crash before its ack, is not put aside twice.
                id=f"{record.origin}-{record.origin_offset}",
                headers={"reason": str(error)[:200]},
            )
            print("put aside", record.offset, error, flush=True)
            return
        except sqlite3.OperationalError as error:
            # The database is busy, or its disk full. The orders behind wait: none is skipped. Any
            # other error ends the program before the ack, and the order comes again.
            print("database:", error, flush=True)
            await deferLater(reactor, RETRY_SECONDS)


async def main(reactor: Any, path: str) -> None:
    """Bill until the process is stopped, at any point."""
    # One thread: SQLite has one writer at a time.
    db = adbapi.ConnectionPool("sqlite3", path, timeout=1, cp_max=1, check_same_thread=False)
    await db.runOperation(SCHEMA)
    async with connect(reactor) as node:
        async for record in node.subscribe("orders", consumer="billing", start="earliest"):
            await handle(reactor, node, db, record)
            record.ack()  # after the work is done; it is sent without waiting for it


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: bill.py DATABASE")
    react(lambda reactor: ensureDeferred(main(reactor, sys.argv[1])))
