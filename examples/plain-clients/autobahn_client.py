"""An Autobahn asyncio client of `/ws` with a keepalive check: both ends notice a dead path.

    python examples/plain-clients/autobahn_client.py ws://HOST:9480/ws?channel=demo [KEY]

The node pings every 5 s. The client counts on that: without a ping for 10 s it drops the connection
and dials again. The node cuts its own end after 7 s of silence. Try it with `scripts/drop.sh`.
Prints each event as a line of JSON, with monotonic seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from autobahn.asyncio.websocket import WebSocketClientFactory, WebSocketClientProtocol

PING_INTERVAL = 5.0
"""As the node's `heartbeat.ping_interval`."""

CONNECT_SECONDS = 5.0
RETRY_SECONDS = 1.0

_Protocol: Any = WebSocketClientProtocol


def tell(event: str, **fields: Any) -> None:
    """Print what happened."""
    print(json.dumps({"at": time.monotonic(), "event": event, **fields}), flush=True)


class Client(_Protocol):  # type: ignore[misc]  # Autobahn has no types
    """One connection."""

    keepalive: asyncio.TimerHandle | None = None
    last_ping = 0.0

    def onOpen(self) -> None:
        """The connection is up: publish, and watch for pings."""
        tell("open")
        self.last_ping = time.monotonic()
        self.schedule_keepalive()
        self.sendMessage(b'{"type":"hello","data":"from asyncio"}')

    def onPing(self, payload: bytes) -> None:
        """The node is there: answer."""
        self.last_ping = time.monotonic()
        self.sendPong(payload)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A message came."""
        if not isBinary:
            tell("message", text=payload.decode()[:200])

    def schedule_keepalive(self) -> None:
        """Look at the moment at which two pings are missing."""
        due = self.last_ping + 2 * PING_INTERVAL - time.monotonic()
        loop = asyncio.get_running_loop()
        self.keepalive = loop.call_later(max(0.0, due), self.check_keepalive)

    def check_keepalive(self) -> None:
        """Drop the connection where no ping came for two intervals."""
        silence = time.monotonic() - self.last_ping
        if silence < 2 * PING_INTERVAL:
            self.schedule_keepalive()
            return
        tell("silence", seconds=round(silence, 2))
        self.dropConnection(abort=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, whatever the reason."""
        super().connection_lost(exc)
        if self.keepalive is not None:
            self.keepalive.cancel()
        tell("lost", why=str(exc) if exc else "closed")
        self.factory.lost.set()


async def main(url: str, key: str | None) -> None:
    """Connect, and connect again, for ever."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    loop = asyncio.get_running_loop()
    while True:
        factory = WebSocketClientFactory(url, headers=headers)
        factory.protocol = Client
        factory.lost = asyncio.Event()
        dialing = loop.create_connection(factory, parts.hostname, port, ssl=parts.scheme == "wss")
        try:
            await asyncio.wait_for(dialing, CONNECT_SECONDS)
        except (OSError, TimeoutError) as error:
            tell("unreachable", why=str(error) or "no answer")
        else:
            await factory.lost.wait()
        await asyncio.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: autobahn_client.py URL [KEY]")
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else None))
