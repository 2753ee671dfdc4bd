"""Two real daemons on this machine, linked over loopback, and plain clients of their APIs."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from linkd.drill.testbed import free_port
from tests.support.daemon import Daemon
from tests.support.duo import Duo


def memory(daemon: Daemon) -> int:
    """Return the bytes of memory that a daemon has in use."""
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{daemon.name} has no memory: it has ended")


class Pair(Duo):
    """A hub, and an edge that dials it and answers over `http`; to enter it starts both.

    Args:
        api: Lines for the edge's `[api]`.
        sections: TOML for both, such as `[[channel]]`.

    Attributes:
        port: The edge's `http`.
    """

    def __init__(self, api: str = "require_key = false\n", sections: str = "") -> None:
        self.port = free_port()
        super().__init__(sections, api=f'http = "127.0.0.1:{self.port}"\n{api}')

    def __enter__(self) -> Pair:
        """Start both, and wait until the link is up."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

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
