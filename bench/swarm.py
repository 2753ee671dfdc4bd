"""Many bare WebSocket connections in one process, which answer pings and come back when cut.

`python -m bench.swarm PORT COUNT [SECRET_FILE]`: each line on standard input is answered by one
JSON line, as the swarm of nodes in tests/support does. With a secret they are the dialers `edge-1`
to `edge-COUNT` of a hub of linkd, as light as those of a bare server.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
import time

from linkd.drill.deadman import ChildProcess
from linkd.host import raise_open_file_limit
from linkd.net.auth import load_secret, prove
from linkd.net.http_head import TOKEN_PATH, post
from linkd.net.websocket import MESSAGE, PING, put
from linkd.protocol.peer import VERSION, EpochStart, Generation, Hello, encode
from tests.support.lab import python
from tests.support.swarm import Swarm

_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


_UPGRADE = (
    "GET /link HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Protocol: linkd.1\r\nLinkd-Node: {name}\r\nLinkd-Peer: hub\r\n"
    "Linkd-Nonce: {nonce}\r\nLinkd-Proof: {proof}\r\n\r\n"
)


class Bare(Swarm):
    """A swarm process of bare connections; a context that ends it."""

    def __init__(self, port: int, count: int, *secret_file: str) -> None:
        command = python("-m", "bench.swarm", str(port), str(count), *secret_file)
        ChildProcess.__init__(self, command, "bare swarm", 20.0, subprocess.DEVNULL)


class Crowd:
    """The connections.

    Args:
        port: Where they dial.
        secret: Of linkd's dialers; None: a bare server.

    Attributes:
        up: How many are.
    """

    def __init__(self, port: int, secret: bytes | None) -> None:
        self.port = port
        self.up = 0
        self._secret = secret
        self._dials = 0

    async def hold(self, number: int) -> None:
        """Hold one connection, for ever; when it is cut, dial again within a second, at random."""
        await asyncio.sleep(number * 0.005)
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    if self._secret is None:
                        writer.write(_REQUEST % self.port)
                        await reader.readuntil(b"\r\n\r\n")
                    else:
                        await self._link(reader, writer, f"edge-{number + 1}", self._secret)
                    self.up += 1
                    try:
                        await _answer_pings(reader, writer)
                    finally:
                        self.up -= 1
                finally:
                    writer.transport.abort()
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(random.random())

    async def _link(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, secret: bytes
    ) -> None:
        """Make a link, as the node `name`; ConnectionError where the hub refuses."""
        writer.write(post(TOKEN_PATH, f"127.0.0.1:{self.port}", name))
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        nonce = json.loads(await reader.readexactly(size))["nonce"]
        proof = prove(secret, "dialer", name, "hub", nonce)
        upgrade = _UPGRADE.format(port=self.port, name=name, nonce=nonce, proof=proof)
        writer.write(upgrade.encode())
        if not (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101"):
            raise ConnectionError
        self._dials += 1
        hello = Hello(
            version=VERSION,
            node=name,
            software="bench",
            generation=Generation("bench", self._dials),
            log=f"log-of-{name}",
            epochs=(EpochStart("bench", 1),),
            next=1,
            cursor=None,
            wants=(f"to.{int(name[5:]) - 1}",),
            ping_interval=0.0,
        )
        writer.write(b"".join(put(MESSAGE, encode(hello), 0x80)))
        if (await _frame(reader))[0] != MESSAGE:
            raise ConnectionError


async def _answer_pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer pings until the other end closes."""
    while True:
        first, payload = await _frame(reader)
        if first == PING:
            writer.write(bytes((0x8A, 0x80 | len(payload))) + b"\0\0\0\0" + payload)
        elif first == 0x88:
            return


async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return the first byte and the payload of the next frame."""
    first, size = await reader.readexactly(2)
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2), "big")
    return first, await reader.readexactly(size)


async def main(port: int, count: int, secret: bytes | None) -> None:
    """Run until standard input ends."""
    crowd, loop = Crowd(port, secret), asyncio.get_running_loop()
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
    asyncio.run(
        main(int(sys.argv[1]), int(sys.argv[2]), load_secret(sys.argv[3]) if sys.argv[3:] else None)
    )
