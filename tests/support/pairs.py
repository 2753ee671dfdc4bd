"""Two real daemons on this machine, linked over loopback, and plain clients of their APIs."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.daemon import Daemon, listen, peer

EVERYTHING = 'send = [">"]\nreceive = [">"]\n'


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def memory(daemon: Daemon) -> int:
    """Return the bytes of memory that a daemon has in use."""
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{daemon.name} has no memory: it has ended")


class Pair:
    """A hub, and an edge that dials it; a context that starts both, waits for the link, ends both.

    Attributes:
        edge, hub: The daemons.
        port: The edge's `http`.
    """

    def __init__(self, api: str = "require_key = false\n", more: str = "") -> None:
        """Prepare them; `api` goes into the edge's `[api]`, `more` into its file."""
        self.port = free_port()
        self._link = free_port()
        there = listen(self._link, "127.0.0.1") + peer("edge", extra=EVERYTHING)
        self.hub = Daemon("hub", there)
        url = f"ws://127.0.0.1:{self._link}/link"
        here = f'http = "127.0.0.1:{self.port}"\n{api}{more}' + peer("hub", url, extra=EVERYTHING)
        self.edge = Daemon("edge", here)

    def __enter__(self) -> Pair:
        """Start both, and wait until the link is up."""
        try:
            self.hub.start()
            self.edge.start()
            self.edge.wait_up("hub")
            self.hub.wait_up("edge")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End both."""
        self.close()

    def close(self) -> None:
        """Kill both and remove their directories."""
        self.edge.close()
        self.hub.close()

    def fetch(
        self, method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Call the edge's API over `http`; return status and body."""
        return fetch(self.port, method, target, body, headers)


def fetch(
    port: int,
    method: str,
    target: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Make one call to 127.0.0.1; return status and body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, target, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
