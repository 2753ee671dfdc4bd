"""Strangers, and one peer gone bad, who flood a node: bounded in time, counted.

`python -m tests.support.strangers '{"kind": …}'` floods as it is told and prints one JSON object:
how often each thing happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from tests.support import bad_peer
from tests.support.flood import Flood, Order, Stranger, upgrade


async def idle(flood: Flood, stranger: Stranger) -> str:
    """Connect and say nothing."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stranger.reader.read(1), max(0.1, min(10.0, flood.left)))
        return "was closed"
    return "still open"


async def slow(flood: Flood, stranger: Stranger) -> str:
    """Send a head that never ends, a line every half second."""
    stranger.writer.write(b"GET /link HTTP/1.1\r\nHost: h\r\n")
    while flood.left > 0:
        stranger.writer.write(b"X-A: b\r\n")
        with contextlib.suppress(TimeoutError):
            if not await asyncio.wait_for(stranger.reader.read(500), 0.5):
                return "cut"
    return "still open"


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


KINDS: Final[dict[str, tuple[Callable[[Flood, Stranger], Awaitable[str]], bool]]] = {
    "idle": (idle, True),
    "slow": (slow, True),
    "large-head": (large_head, False),
    "wrong-proof": (wrong_proof, False),
    "wrong-key": (wrong_key, False),
    "garbage": (garbage, False),
    "fragments": (bad_peer.fragments, True),
    "empty-fragments": (bad_peer.empty_fragments, True),
    "pings": (bad_peer.pings, True),
    "api-fragments": (bad_peer.api_fragments, True),
    "huge-length": (bad_peer.huge_length, False),
    "deflated": (bad_peer.deflated, False),
    "bomb": (bad_peer.bomb, False),
}
"""What each does, and whether so many go on at once (else so many begin each second)."""


def main(text: str) -> None:
    """Flood, and print what happened."""
    os.nice(15)  # it stands for other machines: it must not take this one's processor
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    order = msgspec.json.decode(text, type=Order)
    if order.kind == "bomb":
        bad_peer.bombs()
    print("ready", flush=True)
    flood = Flood(order)
    act, at_once = KINDS[order.kind]
    asyncio.run(flood.at_once(act) if at_once else flood.at_rate(act))
    told: dict[str, Any] = dict(flood.tally)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
