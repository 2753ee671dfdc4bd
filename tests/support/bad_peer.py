"""A peer gone bad: it proves who it is, and then says what no peer says."""

from __future__ import annotations

import asyncio
import os
import random
import time

from linkd.protocol.peer import BatchMessage, EpochStart, Generation, Hello, encode
from linkd.protocol.records import Origin
from tests.support.flood import Flood, Stranger, frame, opening, upgrade

_ONE_BYTE, _NO_BYTE = b"\x00\x81\x00\x00\x00\x00x", b"\x00\x80\x00\x00\x00\x00"
_AT_ONCE = 5000


async def greet(flood: Flood, stranger: Stranger, extension: str = "") -> str | None:
    """Say a right hello as `mallory`; return why that failed, or None."""
    nonce = await stranger.nonce()
    if nonce is None:
        return "no nonce"
    request = upgrade("mallory", nonce, flood.order.secret, extension)
    status, head, _ = await stranger.ask(request)
    if status != 101:
        return str(status)
    if b"extensions" in head.lower():
        return "an extension was accepted"
    boot = Generation(os.urandom(8).hex(), 1)
    hello = Hello(
        version=1,
        node="mallory",
        software="none",
        generation=boot,
        log="log-of-mallory",
        epochs=(EpochStart("e", 1),),
        next=1_000_000,
        cursor=None,
        wants=(),
        ping_interval=0.0,
        compress=("zstd",),
    )
    stranger.writer.write(frame(encode(hello)))
    await stranger.frame()
    return None


async def pour(flood: Flood, stranger: Stranger, piece: bytes, most: int = 1 << 40) -> str:
    """Send a piece again and again, `most` times, for as long as it is let; say how it ended."""
    begun = time.monotonic()
    try:
        while flood.left > 0 and most > 0:
            stranger.writer.write(piece)
            most -= 1
            await stranger.writer.drain()
            await asyncio.sleep(0)
    except OSError:
        return "cut"
    return "never cut" if time.monotonic() - begun > 2.0 else "no time left"


async def fragments(flood: Flood, stranger: Stranger) -> str:
    """Send a message in fragments of one byte, for as long as it is let."""
    refused = await greet(flood, stranger)
    if refused is not None:
        return refused
    stranger.writer.write(frame(b"x", 0x02))
    return await pour(flood, stranger, _ONE_BYTE * _AT_ONCE, 5_000_000 // _AT_ONCE)


async def empty_fragments(flood: Flood, stranger: Stranger) -> str:
    """Send a message in fragments of no byte, for as long as it is let."""
    refused = await greet(flood, stranger)
    if refused is not None:
        return refused
    stranger.writer.write(frame(b"x", 0x02))
    return await pour(flood, stranger, _NO_BYTE * _AT_ONCE)


async def api_fragments(flood: Flood, stranger: Stranger) -> str:
    """Send fragments of one byte to the API, with a key that is right."""
    bearer = f"Authorization: Bearer {flood.order.secret}"
    status, _, _ = await stranger.ask(opening("/ws", flood.order.host, bearer))
    if status != 101:
        return str(status)
    stranger.writer.write(frame(b"x", 0x01))
    return await pour(flood, stranger, _ONE_BYTE * _AT_ONCE)


async def pings(flood: Flood, stranger: Stranger) -> str:
    """Send pings without end, and never read what comes back."""
    refused = await greet(flood, stranger)
    if refused is not None:
        return refused
    stranger.writer.transport.pause_reading()  # type: ignore[attr-defined]
    piece = frame(bytes(125), 0x89) * 500
    try:
        while flood.left > 0:
            stranger.writer.write(piece)
            await asyncio.wait_for(stranger.writer.drain(), max(0.1, flood.left))
            await asyncio.sleep(0.002)
    except OSError:
        return "cut"
    return "to the end"


async def huge_length(flood: Flood, stranger: Stranger) -> str:
    """Announce a frame of 2^63 bytes."""
    refused = await greet(flood, stranger)
    if refused is not None:
        return refused
    stranger.writer.write(b"\x82\xff" + (2**63).to_bytes(8, "big") + bytes(4) + b"x" * 1000)
    return f"close code {await stranger.close_code()}"


async def deflated(flood: Flood, stranger: Stranger) -> str:
    """Offer permessage-deflate, and send a frame as if that had been accepted."""
    refused = await greet(flood, stranger, "permessage-deflate; client_max_window_bits")
    if refused is not None:
        return refused
    stranger.writer.write(frame(b"\xed" * 1000, 0xC2))
    return f"close code {await stranger.close_code()}"


async def bomb(flood: Flood, stranger: Stranger) -> str:
    """Send a small batch that unpacks to 256 MiB, whose frame says less, more or nothing."""
    refused = await greet(flood, stranger)
    if refused is not None:
        return refused
    packed = random.choice(bombs())
    origin = Origin("mallory", "log-of-mallory", "e", 1)
    step = BatchMessage(
        1, 2, "e", "orders", 1, len(packed), packed, time.time(), None, origin, encoding="zstd"
    )
    stranger.writer.write(frame(encode(step)))
    return f"close code {await stranger.close_code()}"


_made: list[bytes] = []


def bombs() -> list[bytes]:
    """Return a batch that says its true size, one that says none, and some that lie."""
    if not _made:
        import zstandard

        zeros = bytes(256 * 2**20)
        honest = zstandard.ZstdCompressor(level=3, write_content_size=True).compress(zeros)
        silent = zstandard.ZstdCompressor(level=3, write_content_size=False).compress(zeros)
        single, wide = honest[4] >> 5 & 1, {1: 2, 2: 4, 3: 8}[honest[4] >> 6]
        at = 5 + (0 if single else 1)
        lies = [
            honest[:at] + lie.to_bytes(wide, "little") + honest[at + wide :]
            for lie in (1, 1000, 65_536, 2**31)
        ]
        _made.extend([honest, silent, *lies])
    return _made
