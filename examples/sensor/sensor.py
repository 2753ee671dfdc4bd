"""Publish readings of a sensor: each one live, and one every few seconds to keep for a minute.

python sensor.py [--every SECONDS]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import time

from linkd.client import connect
from linkd.client.aio import Node
from linkd.client.errors import NoDaemon
from linkd.errors import LinkdError

KEEP_EVERY = 5
"""One reading of so many is kept for `TTL_SECONDS`."""

TTL_SECONDS = 60


def read() -> float:
    """Return the oven's temperature; put the call of your device here."""
    return round(180 + 5 * math.sin(time.monotonic() / 10), 2)


async def publish(node: Node, count: int) -> None:
    """Publish one reading, live; each `KEEP_EVERY`th one also durable, with a time to live."""
    reading = {"celsius": read(), "count": count}
    # `live` is volatile (channels.toml): sent to whoever is connected, never stored.
    await node.publish("telemetry.live.oven", reading)
    if count % KEEP_EVERY == 0:
        # On disk here, and sent after an outage of the link, unless it is older than that by then.
        await node.publish("telemetry.recent.oven", reading, ttl=TTL_SECONDS)


async def main(every: float) -> None:
    """Publish until the process is stopped."""
    # While the daemon of this host restarts, a reading is dropped, not queued: the next one is
    # newer. `when_down="wait"`, the default, would deliver them late.
    async with connect(when_down="fail") as node:
        await node.opened()
        count = 0
        while True:
            try:
                async with asyncio.timeout(every):
                    await publish(node, count)
            except NoDaemon:
                print("dropped", count, flush=True)
            except TimeoutError:
                print("late", count, flush=True)
            except LinkdError as error:  # a full log, a missing right
                print("refused", count, error, flush=True)
            count += 1
            await asyncio.sleep(every)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=float, default=0.5, help="seconds between readings")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args().every))
