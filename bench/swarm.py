"""Many bare WebSocket connections in one process, which answer pings and come back when cut.

`python -m bench.swarm PORT COUNT`: each line on standard input is answered by one JSON line, as the
swarm of nodes in tests/support does.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from linkd.host import raise_open_file_limit
from tests.support.swarm import Swarm

_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Bare(Swarm):
    """A swarm process of bare connections; a context that ends it."""

    def __init__(self, port: int, count: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.swarm", str(port), str(count)],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )


class Crowd:
    """The connections.

    Attributes:
        up: How many are.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.up = 0

    async def hold(self, number: int) -> None:
        """Hold one connection, for ever; when it is cut, dial again within a second, at random."""
        await asyncio.sleep(number * 0.005)
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(_REQUEST % self.port)
                await reader.readuntil(b"\r\n\r\n")
                self.up += 1
                try:
                    await _answer_pings(reader, writer)
                finally:
                    self.up -= 1
                    writer.transport.abort()
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(random.random())


async def _answer_pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer pings until the other end closes."""
    while True:
        first, size = await reader.readexactly(2)
        payload = await reader.readexactly(size & 127)
        if first == 0x89:
            writer.write(bytes((0x8A, 0x80 | len(payload))) + b"\0\0\0\0" + payload)
        elif first == 0x88:
            return


async def main(port: int, count: int) -> None:
    """Run until standard input ends."""
    crowd, loop = Crowd(port), asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell() -> None:
        print(json.dumps({"up": crowd.up, "at": time.monotonic()}), flush=True)

    def obey() -> None:
        for _ in sys.stdin:
            loop.call_soon_threadsafe(tell)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=obey, daemon=True).start()
    holding = [asyncio.create_task(crowd.hold(number)) for number in range(count)]
    await ended.wait()
    for task in holding:
        task.cancel()


if __name__ == "__main__":
    raise_open_file_limit()
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
