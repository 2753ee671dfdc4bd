"""Strangers, and one peer gone bad, who flood a node: bounded in time, counted.

`python -m tests.support.strangers '{"kind": …}'` floods as it is told and prints one JSON object:
how often each thing happened.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from linkd.core.batch import Origin
from linkd.core.wire import EpochStart, Generation, Hello, Step, encode
from linkd.net.identity import prove

_TIMEOUT: Final = 12.0


class Order(msgspec.Struct):
    """What to do.

    Args:
        kind: One of `KINDS`.
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


async def idle(flood: Flood, stranger: Stranger) -> str:
    """Connect and say nothing."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stranger.reader.read(1), max(0.1, min(10.0, flood.left)))
        return "was closed"
    return "still open"


async def slow(flood: Flood, stranger: Stranger) -> str:
    """Send a head that never ends, a line every half second."""
    stranger.writer.write(b"GET /link HTTP/1.1\r\nHost: h\r\n")
    begun = time.monotonic()
    while flood.left > 0 and not stranger.reader.at_eof():
        stranger.writer.write(b"X-A: b\r\n")
        with contextlib.suppress(TimeoutError):
            if not await asyncio.wait_for(stranger.reader.read(500), 0.5):
                break
    held = time.monotonic() - begun
    return "cut" if held < 12.0 else "held for 12 s"


async def large_head(flood: Flood, stranger: Stranger) -> str:
    """Send a head of 1 MB."""
    stranger.writer.write(b"GET /link HTTP/1.1\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n")
    head = await stranger.reader.readuntil(b"\r\n")
    return head.split(b" ", 2)[1].decode()


async def wrong_proof(flood: Flood, stranger: Stranger) -> str:
    """Fetch a nonce, and prove with a secret that is wrong."""
    nonce = await stranger.nonce()
    if nonce is None:
        return "no nonce"
    status, _, _ = await stranger.ask(upgrade("mallory", nonce, os.urandom(16).hex()))
    return str(status)


async def wrong_key(flood: Flood, stranger: Stranger) -> str:
    """Call the API with a key that is wrong."""
    key = os.urandom(24).hex()
    status, _, _ = await stranger.ask(
        f"GET /v1/status HTTP/1.1\r\nHost: {flood.order.host}\r\n"
        f"Authorization: Bearer {key}\r\n\r\n".encode()
    )
    return str(status)


async def garbage(flood: Flood, stranger: Stranger) -> str:
    """Send random bytes."""
    stranger.writer.write(os.urandom(random.randrange(1, 20_000)) + b"\r\n\r\n")
    head = await stranger.reader.read(12)
    return head[9:12].decode("latin-1") if head.startswith(b"HTTP/1.1 ") else "closed"


# A peer gone bad


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


def never_cut(begun: float) -> str:
    """Say that it went on to the end of the flood, where that was long enough to tell."""
    return "never cut" if time.monotonic() - begun > 2.0 else "no time left"


async def fragments(flood: Flood, stranger: Stranger) -> str:
    """Send a message in fragments of one byte, for as long as it is let."""
    refused = await greet(flood, stranger)
    if refused is not None:
        return refused
    piece = b"\x00\x81\x00\x00\x00\x00x" * 5000
    begun, sent = time.monotonic(), 0
    begun = time.monotonic()
    stranger.writer.write(frame(b"x", 0x02))
    try:
        while flood.left > 0 and sent < 5_000_000:
            stranger.writer.write(piece)
            sent += 5000
            await stranger.writer.drain()
            await asyncio.sleep(0)
    except OSError:
        return "cut"
    return never_cut(begun)


async def empty_fragments(flood: Flood, stranger: Stranger) -> str:
    """Send a message in fragments of no byte, for as long as it is let."""
    refused = await greet(flood, stranger)
    if refused is not None:
        return refused
    piece = b"\x00\x80\x00\x00\x00\x00" * 5000
    begun = time.monotonic()
    stranger.writer.write(frame(b"x", 0x02))
    try:
        while flood.left > 0:
            stranger.writer.write(piece)
            await stranger.writer.drain()
            await asyncio.sleep(0)
    except OSError:
        return "cut"
    return never_cut(begun)


async def api_fragments(flood: Flood, stranger: Stranger) -> str:
    """Send fragments of one byte to the API, with a key that is right."""
    lines = [
        "GET /ws HTTP/1.1",
        f"Host: {flood.order.host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        f"Authorization: Bearer {flood.order.secret}",
    ]
    status, _, _ = await stranger.ask("\r\n".join([*lines, "", ""]).encode())
    if status != 101:
        return str(status)
    piece = b"\x00\x81\x00\x00\x00\x00x" * 5000
    begun = time.monotonic()
    stranger.writer.write(frame(b"x", 0x01))
    try:
        while flood.left > 0:
            stranger.writer.write(piece)
            await stranger.writer.drain()
            await asyncio.sleep(0)
    except OSError:
        return "cut"
    return never_cut(begun)


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
    packed = random.choice(_bombs())
    origin = Origin("mallory", "log-of-mallory", "e", 1)
    step = Step(
        1, 2, "e", "orders", 1, len(packed), packed, time.time(), None, origin, encoding="zstd"
    )
    stranger.writer.write(frame(encode(step)))
    return f"close code {await stranger.close_code()}"


_made: list[bytes] = []


def _bombs() -> list[bytes]:
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


def upgrade(name: str, nonce: str, secret: str, extension: str = "") -> bytes:
    """Return an upgrade request with the proof that `secret` gives."""
    lines = [
        "GET /link HTTP/1.1",
        "Host: hub",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: linkd.1",
        f"Linkd-Node: {name}",
        f"Linkd-Nonce: {nonce}",
        f"Linkd-Proof: {prove(secret.encode(), 'dialer', name, 'hub', nonce)}",
    ]
    if extension:
        lines.append(f"Sec-WebSocket-Extensions: {extension}")
    return "\r\n".join([*lines, "", ""]).encode()


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


KINDS: Final[dict[str, tuple[Callable[[Flood, Stranger], Awaitable[str]], bool]]] = {
    "idle": (idle, True),
    "slow": (slow, True),
    "large-head": (large_head, False),
    "wrong-proof": (wrong_proof, False),
    "wrong-key": (wrong_key, False),
    "garbage": (garbage, False),
    "fragments": (fragments, True),
    "empty-fragments": (empty_fragments, True),
    "pings": (pings, True),
    "api-fragments": (api_fragments, True),
    "huge-length": (huge_length, False),
    "deflated": (deflated, False),
    "bomb": (bomb, False),
}
"""What each does, and whether so many go on at once (else so many begin each second)."""


def main(text: str) -> None:
    """Flood, and print what happened."""
    os.nice(15)  # it stands for other machines: it must not take this one's processor
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    order = msgspec.json.decode(text, type=Order)
    if order.kind == "bomb":
        _bombs()
    print("ready", flush=True)
    flood = Flood(order)
    act, at_once = KINDS[order.kind]
    asyncio.run(flood.at_once(act) if at_once else flood.at_rate(act))
    told: dict[str, Any] = dict(flood.tally)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
