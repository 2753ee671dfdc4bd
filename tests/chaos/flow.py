"""Constant traffic at one daemon, in a process of its own: publishes, and counts what arrives.

`python -m tests.chaos.flow SOCKET OURS THEIRS RATE SIZE` publishes numbered records on the
channels OURS.0 to OURS.3 and reads THEIRS.* as a named consumer. It tells its counts as a line of
JSON each second. Orders, one a line: `pause`, `go`, `stop` (publish no more); it ends when its
input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Sequence

import linkd.client
from linkd.client.aio import Node
from linkd.errors import LogFull
from tests.chaos.tally import Tally

CHANNELS = 4
FRAME_BYTES = 40_000
"""Published at once at most: one batch, so that a refusal concerns all of it."""

PAUSE_SECONDS = 0.05
CONSUMER = "flow"


class Flow:
    """The traffic of one end.

    Args:
        node: The daemon.
        ours: What the channels are called that it publishes on.
        theirs: What those are called that the other end publishes on.
        rate: Records a second in all; 0: as fast as they are taken.
        size: Bytes of each.
    """

    def __init__(self, node: Node, ours: str, theirs: str, rate: float, size: int) -> None:
        self._node = node
        self._ours, self._theirs = ours, theirs
        self._rate = rate / CHANNELS
        self._filling = bytes(max(0, size - 8))
        self._most = max(1, FRAME_BYTES // (size + 16))
        self._going = asyncio.Event()
        self._going.set()
        self._over = False
        self._published = [0] * CHANNELS
        self._refused = 0
        self._tallies: dict[str, Tally] = {}

    async def run(self) -> None:
        """Publish, read, tell, obey, until the orders end."""
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(self._publish(place)) for place in range(CHANNELS)]
            others += [tasks.create_task(self._read()), tasks.create_task(self._tell())]
            await self._obey()
            for other in others:
                other.cancel()

    async def _publish(self, place: int) -> None:
        channel = f"{self._ours}.{place}"
        due = time.monotonic()
        while not self._over:
            await self._going.wait()
            first = self._published[place]
            count = max(1, min(self._most, int(self._rate / 20))) if self._rate else self._most
            bodies = [
                number.to_bytes(8, "big") + self._filling for number in range(first, first + count)
            ]
            try:
                await self._node.publish_many(channel, bodies)
            except LogFull:
                self._refused += count
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self._published[place] = first + count
            if self._rate:
                due = max(due + count / self._rate, time.monotonic() - 1.0)
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _read(self) -> None:
        pattern = f"{self._theirs}.*"
        acked = time.monotonic()
        async with self._node.subscribe(pattern, consumer=CONSUMER, start="earliest") as records:
            async for run in records.batches():
                for record in run:
                    tally = self._tallies.setdefault(record.channel, Tally())
                    tally.take(int.from_bytes(record.body[:8], "big"))
                if (now := time.monotonic()) > acked + PAUSE_SECONDS:
                    acked = now
                    records.ack(run[-1].offset + 1)

    async def _tell(self) -> None:
        while True:
            print(json.dumps(self._counts()), flush=True)
            await asyncio.sleep(1.0)

    def _counts(self) -> dict[str, object]:
        channels = {f"{self._ours}.{place}": n for place, n in enumerate(self._published)}
        arrived = {
            channel: [tally.next, tally.missing(tally.next), tally.twice, tally.out_of_order]
            for channel, tally in self._tallies.items()
        }
        return {"published": channels, "refused": self._refused, "arrived": arrived}

    async def _obey(self) -> None:
        loop = asyncio.get_running_loop()
        while order := await loop.run_in_executor(None, sys.stdin.readline):
            if order == "pause\n":
                self._going.clear()
            else:
                self._over = self._over or order == "stop\n"
                self._going.set()


async def main(arguments: Sequence[str]) -> None:
    """Run it as the arguments say."""
    path, ours, theirs, rate, size = arguments
    async with linkd.client.connect(path) as node:
        await node.opened(30.0)
        await Flow(node, ours, theirs, float(rate), int(size)).run()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1:]))
