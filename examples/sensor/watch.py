"""Show live readings as they come, and store the recent ones; runs at the other end.

python watch.py readings.csv
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import sys
from pathlib import Path

from linkd.client import connect
from linkd.client.aio import Node


async def show(node: Node) -> None:
    """Print each reading that arrives from now on."""
    async for record in node.subscribe("telemetry.live.*"):
        print("live", record.channel, record.data["celsius"], flush=True)


async def store(node: Node, path: Path) -> None:
    """Append the recent readings to a file, those of an outage too unless they have expired."""
    subscription = node.subscribe("telemetry.recent.*", consumer="store", start="earliest")
    with path.open("a", newline="") as file:
        rows = csv.writer(file)
        async for records in subscription.batches():
            for record in records:
                # With origin and offset a reader can leave out a row that came twice, after a crash
                # between the write and the ack.
                name = f"{record.origin}-{record.origin_offset}"
                rows.writerow([name, record.channel, record.time, record.data["celsius"]])
            file.flush()
            os.fsync(file.fileno())
            records[-1].ack()  # one write and one ack a batch keep up with fast senders
            print("stored", len(records), flush=True)


async def main(path: Path) -> None:
    """Show and store until the process is stopped."""
    async with connect() as node, asyncio.TaskGroup() as tasks:
        tasks.create_task(show(node))
        tasks.create_task(store(node, path))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: watch.py FILE")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1])))
