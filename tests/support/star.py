"""A hub and edges that dial it, each on a host of its own: what most fault tests start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.support.daemon import Daemon, Line, listen, peer
from tests.support.lab import Lab, LabHost

SILENT = ("silence", "ping-timeout")


class Edge(NamedTuple):
    """One edge: its host, its daemon and its name."""

    host: LabHost
    daemon: Daemon
    name: str


class Star:
    """A hub and its edges; a context that starts all daemons and ends them.

    Attributes:
        host, hub: The hub's host and daemon.
        edges: In order; `edge-1` is the first.
    """

    def __init__(self, lab: Lab, edges: int, extra: str = "", urls: Sequence[str] = ()) -> None:
        """Make hosts and daemons; `extra` goes into each `[[peer]]`, `urls` replace the hub's."""
        self.host = lab.host("hub")
        names = [f"edge-{number + 1}" for number in range(edges)]
        hub = listen() + "".join(peer(name, extra=extra) for name in names)
        dial = peer("hub", *(urls or [f"ws://{self.host.address}:9443/link"]), extra=extra)
        self.hub = Daemon("hub", hub, self.host)
        self.edges = []
        for name in names:
            host = lab.host(name)
            self.edges.append(Edge(host, Daemon(name, dial, host), name))

    def __enter__(self) -> Star:
        """Start the hub, then the edges, and wait until all links are up."""
        try:
            self.hub.start()
            for edge in self.edges:
                edge.daemon.start(None)
            for edge in self.edges:
                edge.daemon.wait_notice("READY=1", 60.0)
            for edge in self.edges:
                edge.daemon.wait_up("hub", 30.0)
                self.hub.wait_up(edge.name, 30.0)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all."""
        self.close()

    def close(self) -> None:
        """Kill all daemons and remove their directories."""
        for daemon in (*(edge.daemon for edge in self.edges), self.hub):
            daemon.close()

    def drops(self) -> list[Line]:
        """Return every line that tells of a link that was up and is not any more."""
        return [
            line
            for daemon in (self.hub, *(edge.daemon for edge in self.edges))
            for line in daemon.lines
            if line.fields.get("old") == "up"
        ]


def down(daemon: Daemon, peer_name: str, after: float, within: float) -> Line:
    """Wait for the line that tells that a link has left `up` after a time."""
    return daemon.wait_line(within, after, peer=peer_name, old="up")


def up(daemon: Daemon, peer_name: str, after: float, within: float) -> Line:
    """Wait for the line that tells that a link is up, after a time."""
    return daemon.wait_line(within, after, peer=peer_name, event="link.up")
