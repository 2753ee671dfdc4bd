"""Rude callers of one daemon's API, in a process of their own.

`python -m tests.chaos.callers KIND SOCKET SECONDS` calls on the unix socket and prints, as one
JSON object, how many connections it made.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from tests.support.flood import frame, opening

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
PIECE: Final = 65_536
PATTERNS: Final = 64
REQUESTS: Final = b"".join(
    f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for path in ("/v1/status", "/metrics", "/v1/channels/%3E?limit=1000", "/v1/events?after=0")
)


async def _discard(reader: asyncio.StreamReader) -> None:
    """Read to the end."""
    while await reader.read(PIECE):
        pass


async def pipelined(streams: Streams, _number: int, seconds: float) -> None:
    """Send thousands of requests without reading; then read."""
    reader, writer = streams
    ends = time.monotonic() + seconds / 2
    with contextlib.suppress(TimeoutError):
        while (left := ends - time.monotonic()) > 0:
            writer.write(REQUESTS * 100)
            await asyncio.wait_for(writer.drain(), left)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_discard(reader), seconds / 2)


async def subscriptions(streams: Streams, number: int, seconds: float) -> None:
    """Subscribe to one long pattern after another, and end them all."""
    reader, writer = streams
    writer.write(opening("/ws", "localhost"))
    reading = asyncio.create_task(_discard(reader))
    ends = time.monotonic() + seconds
    turn = 0
    with contextlib.suppress(TimeoutError):
        while (left := ends - time.monotonic()) > 0 and not reading.done():
            stars = ".*" * 14
            for kind in ("subscribe", "unsubscribe"):
                for place in range(PATTERNS):
                    pattern = f"up{stars}.c{number}-{turn}-{place}"
                    told = {"type": kind, "data": {"channel": pattern}}
                    writer.write(frame(json.dumps(told).encode(), 0x81))
            turn += 1
            await asyncio.wait_for(writer.drain(), left)
            await asyncio.sleep(0.01)
    reading.cancel()


async def mute_readers(streams: Streams, number: int, seconds: float) -> None:
    """Ask for everything from the log's beginning, and read nothing."""
    _, writer = streams
    if number % 2:
        writer.write(opening("/ws?channel=%3E&from=earliest&envelope=1", "localhost"))
    else:
        writer.write(
            b"GET /v1/channels/%3E?from=earliest HTTP/1.1\r\nHost: localhost\r\n"
            b"Accept: text/event-stream\r\n\r\n"
        )
    await asyncio.sleep(seconds)


KINDS: Final[dict[str, tuple[Callable[[Streams, int, float], Awaitable[None]], int]]] = {
    "pipelined": (pipelined, 8),
    "subscriptions": (subscriptions, 8),
    "mute readers": (mute_readers, 64),
}
"""What each connection does, and how many there are at once."""


async def flood(kind: str, path: str, seconds: float) -> int:
    """Flood for so long; return how many connections were made."""
    act, count = KINDS[kind]
    ends = time.monotonic() + seconds
    made = 0

    async def one(number: int) -> None:
        nonlocal made
        while (left := ends - time.monotonic()) > 0:
            with contextlib.suppress(OSError, EOFError):
                reader, writer = await asyncio.open_unix_connection(path, limit=PIECE)
                made += 1
                try:
                    await act((reader, writer), number, left)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.2)

    await asyncio.gather(*(one(number) for number in range(count)))
    return made


def main(arguments: Sequence[str]) -> None:
    """Flood as the arguments say."""
    kind, path, seconds = arguments
    os.nice(15)  # it stands for other programs: it must not take this machine's processor
    print(json.dumps({"connections": asyncio.run(flood(kind, path, float(seconds)))}))


if __name__ == "__main__":
    main(sys.argv[1:])
