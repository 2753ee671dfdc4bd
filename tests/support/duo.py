"""Two real daemons on loopback, one dialing the other, and what lies in their logs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from linkd.drill.testbed import Namespace, free_port
from tests.support.daemon import COMMAND, Daemon, listen, peer
from tests.support.lab import python

ALL = 'send = [">"]\nreceive = [">"]\n'


class Duo:
    """`hub`, which listens, and `edge`, which dials it; each sends the other everything.

    A context that ends both. Not started.

    Args:
        sections: TOML for both, such as `[log]`.
        host: Where both run; None is this machine.
        api: Lines for the edge's `[api]`.

    Attributes:
        edge, hub: The daemons.
    """

    def __init__(self, sections: str = "", host: Namespace | None = None, api: str = "") -> None:
        port = free_port() if host is None else 9443
        there = listen(port, "127.0.0.1") + peer("edge", extra=ALL)
        self.hub = Daemon("hub", sections + there, host)
        here = peer("hub", f"ws://127.0.0.1:{port}/link", extra=ALL)
        self.edge = Daemon("edge", api + sections + here, host)

    def start(self) -> None:
        """Start both and wait until they are joined."""
        self.hub.start()
        self.edge.start()
        self.joined()

    def joined(self, within: float = 20.0) -> None:
        """Wait until the link is up at both ends."""
        self.hub.wait_up("edge", within)
        self.edge.wait_up("hub", within)

    def settled(self, within: float = 30.0) -> None:
        """Wait until neither owes the other anything."""
        for daemon, other in ((self.hub, "edge"), (self.edge, "hub")):
            until(partial(_owes_nothing, daemon, other), within)

    def close(self) -> None:
        """End both."""
        self.edge.close()
        self.hub.close()

    def __enter__(self) -> Duo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _owes_nothing(daemon: Daemon, other: str) -> bool:
    return not daemon.link(other)["backlog_records"]


def until(true: Callable[[], object], within: float = 20.0) -> float:
    """Wait until something is true; return after how many seconds it was.

    Raises:
        AssertionError: It is not within so many seconds.
    """
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within, "not in time"
        time.sleep(0.02)
    return time.monotonic() - began


def publish(daemon: Daemon, channel: str, numbers: Sequence[int], size: int = 0) -> int:
    """Publish numbered records as one call; return the offset of the first."""
    filling = "x" * size
    lines = [json.dumps({"p": channel, "n": number, "x": filling}) for number in numbers]
    body = "\n".join(lines).encode()
    path = f"/v1/channels/{channel}"
    return int(daemon.call("POST", path, body, "application/x-ndjson", timeout=30.0)["offset"])


def numbers(daemon: Daemon, channel: str) -> list[int]:
    """Return the numbers of the records of a channel, in the order in which they lie there."""
    found: list[int] = []
    at = 1
    while True:
        page = daemon.call("GET", f"/v1/channels/{channel}?from={at}&limit=1000", timeout=30.0)
        found += [record["data"]["n"] for record in page["records"]]
        if page["next"] == at:
            return found
        at = page["next"]


def run(daemon: Daemon, *words: str, timeout: float = 20.0) -> subprocess.CompletedProcess[str]:
    """Run the command against a daemon."""
    command = python(*COMMAND, words[0], "--socket", str(daemon.socket), *words[1:])
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def segments(daemon: Daemon) -> list[Path]:
    """Return the files of a daemon's log, oldest first."""
    return sorted((daemon.directory / "state" / "log").glob("*.log"))


class Watched:
    """Links of a pair, looked at all the time: did one ever leave `up`?"""

    def __init__(self, duo: Duo) -> None:
        self._since = time.monotonic()
        self._duo = duo

    def fell(self) -> list[object]:
        """Return the lines of links that fell since."""
        return [
            line.fields
            for daemon in (self._duo.hub, self._duo.edge)
            for event in ("link.waiting", "link.rejected", "link.diverged", "connection.protocol")
            for line in daemon.matching(self._since, event=event)
        ]
