"""A flood of connections at a node, spoken over by hand: how many, from where, for how long."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from linkd.net.auth import prove

_TIMEOUT: Final = 12.0


class Order(msgspec.Struct):
    """What to do.

    Args:
        kind: One of `KINDS` in tests/support/strangers.py.
        host: Whom to flood.
        port: Where.
        seconds: For how long.
        rate: Attempts a second, or how many at once.
        sources: Addresses to come from, in turn.
        secret: Of the peer that has gone bad.
    """

    kind: str
    host: str
    port: int
    seconds: float
    rate: int
    sources: list[str]
    secret: str = ""


class Stranger:
    """One TCP connection, spoken over by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Send a request; return status, head and body of its answer."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        size = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        return int(head.split(b" ", 2)[1]), head, await self.reader.readexactly(size)

    async def nonce(self) -> str | None:
        """Ask for a nonce; None where that is refused."""
        status, _, body = await self.ask(
            b"POST /token HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
        )
        return str(json.loads(body)["nonce"]) if status == 200 else None

    async def frame(self) -> tuple[int, bytes]:
        """Return the next frame: its first byte and its payload."""
        first, second = await self.reader.readexactly(2)
        size = second & 0x7F
        if size >= 126:
            wide = await self.reader.readexactly(2 if size == 126 else 8)
            size = int.from_bytes(wide, "big")
        return first, await self.reader.readexactly(size)

    async def close_code(self) -> int | None:
        """Read frames until the close frame; return its code, None where it was just closed."""
        while True:
            try:
                first, payload = await self.frame()
            except (asyncio.IncompleteReadError, OSError):
                return None
            if first == 0x88:
                return int.from_bytes(payload[:2], "big")


class Flood:
    """A flood under way."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.tally: Counter[str] = Counter()
        self.ends = time.monotonic() + order.seconds
        self._turn = 0

    @property
    def left(self) -> float:
        """Seconds that it still goes on."""
        return self.ends - time.monotonic()

    async def connect(self) -> Stranger:
        """Return a new connection, from the next of the addresses."""
        order = self.order
        source = order.sources[self._turn % len(order.sources)] if order.sources else None
        self._turn += 1
        local = None if source is None else (source, 0)
        pair = await asyncio.wait_for(
            asyncio.open_connection(order.host, order.port, local_addr=local), _TIMEOUT
        )
        return Stranger(*pair)

    async def once(self, act: Callable[[Flood, Stranger], Awaitable[str]]) -> None:
        """Connect, act, and count how it went."""
        try:
            stranger = await self.connect()
        except (OSError, TimeoutError):
            self.tally["no connection"] += 1
            return
        try:
            self.tally[await asyncio.wait_for(act(self, stranger), _TIMEOUT)] += 1
        except (OSError, EOFError):
            self.tally["closed"] += 1
        except TimeoutError:
            self.tally["timed out"] += 1
        finally:
            stranger.writer.transport.abort()

    async def at_rate(self, act: Callable[[Flood, Stranger], Awaitable[str]]) -> None:
        """Begin `rate` times a second, whatever becomes of those before."""
        tasks = set()
        begun, count = time.monotonic(), 0
        while self.left > 0:
            due = int((time.monotonic() - begun) * self.order.rate) + 1
            for _ in range(min(due - count, 100)):
                task = asyncio.create_task(self.once(act))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                count += 1
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def at_once(self, act: Callable[[Flood, Stranger], Awaitable[str]]) -> None:
        """Keep `rate` of them going, each begun anew a few seconds after it has ended."""

        async def again(number: int) -> None:
            await asyncio.sleep(number / self.order.rate * min(2.0, self.order.seconds))
            while self.left > 0:
                await self.once(act)
                await asyncio.sleep(min(random.uniform(2, 6), max(0.0, self.left)))

        await asyncio.gather(*(again(number) for number in range(self.order.rate)))


def opening(path: str, host: str, *headers: str) -> bytes:
    """Return a request for a WebSocket."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def upgrade(name: str, nonce: str, secret: str, extension: str = "") -> bytes:
    """Return an upgrade request with the proof that `secret` gives."""
    extensions = [f"Sec-WebSocket-Extensions: {extension}"] if extension else []
    return opening(
        "/link",
        "hub",
        "Sec-WebSocket-Protocol: linkd.1",
        f"Linkd-Node: {name}",
        f"Linkd-Nonce: {nonce}",
        f"Linkd-Proof: {prove(secret.encode(), 'dialer', name, 'hub', nonce)}",
        *extensions,
    )


def frame(payload: bytes, first: int = 0x82) -> bytes:
    """Return a masked frame, its mask zeros."""
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65_536:
        head = bytes((first, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload
