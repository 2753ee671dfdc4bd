"""Bill each order once, in order; put aside the ones that cannot be billed.

python bill.py billing.db
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys

from linkd.client import connect
from linkd.client.aio import Node
from linkd.client.record import Record

RETRY_SECONDS = 1.0

SCHEMA = "CREATE TABLE IF NOT EXISTS bills (number INTEGER PRIMARY KEY, total INTEGER NOT NULL)"


class Unbillable(Exception):
    """The order is wrong: it will not be right the next time either."""


def bill(db: sqlite3.Connection, order: object) -> None:
    """Write a bill; a second call with the same order changes nothing."""
    try:
        number, total = int(order["number"]), int(order["total"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise Unbillable(f"expected a number and a total: {error!r}") from error
    with db:
        done = db.execute("INSERT OR IGNORE INTO bills VALUES (?, ?)", (number, total))
    print("billed" if done.rowcount else "billed before:", number, flush=True)


async def handle(node: Node, db: sqlite3.Connection, record: Record) -> None:
    """Return once a record is done: billed, or put aside on `orders.failed`."""
    while True:
        try:
            bill(db, record.data)
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
            await asyncio.sleep(RETRY_SECONDS)


async def main(path: str) -> None:
    """Bill until the process is stopped, at any point."""
    db = sqlite3.connect(path, timeout=1)
    db.execute(SCHEMA)
    async with connect() as node:
        # The daemon keeps the cursor of the consumer `billing`: after a crash of this program it
        # begins with the first record without an ack. `start` counts only for a new name.
        async for record in node.subscribe("orders", consumer="billing", start="earliest"):
            await handle(node, db, record)
            record.ack()  # after the work is done; it is sent without waiting for it


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: bill.py DATABASE")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
