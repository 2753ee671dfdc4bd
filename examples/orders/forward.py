"""Forward new orders from the shop's database to linkd, in order, each stored once.

python forward.py shop.db
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys

from linkd.client import connect
from linkd.errors import LogFull

BATCH = 100
POLL_SECONDS = 0.5
RETRY_SECONDS = 2.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    number INTEGER PRIMARY KEY,
    content TEXT NOT NULL,             -- JSON
    forwarded INTEGER NOT NULL DEFAULT 0
)"""


async def main(path: str) -> None:
    """Forward until the process is stopped, at any point: none is lost, none comes twice."""
    shop = sqlite3.connect(path, timeout=10)
    shop.execute("PRAGMA journal_mode = WAL")  # the shop writes while we read
    shop.execute(SCHEMA)
    shop.commit()
    async with connect() as node:
        while True:
            orders = shop.execute(
                "SELECT number, content FROM orders WHERE NOT forwarded ORDER BY number LIMIT ?",
                (BATCH,),
            ).fetchall()
            # Publishes that are in flight together are sent together, and stored in this order.
            # The id makes a repetition harmless: after a crash before the UPDATE below the same
            # orders are published again, and linkd stores nothing.
            publishes = [
                node.publish("orders", json.loads(content), type="created", id=f"order-{number}")
                for number, content in orders
            ]
            try:
                await asyncio.gather(*publishes)  # now they are on the disk of this host's daemon
            except LogFull as error:  # after a long outage: wait for room, and lose nothing
                print("waiting:", error, flush=True)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            with shop:
                shop.executemany(
                    "UPDATE orders SET forwarded = 1 WHERE number = ?",
                    [(number,) for number, _ in orders],
                )
            if orders:
                print("forwarded", *(number for number, _ in orders), flush=True)
            else:
                await asyncio.sleep(POLL_SECONDS)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: forward.py DATABASE")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
