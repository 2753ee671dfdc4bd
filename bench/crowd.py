"""A hub by itself: its peers are nodes of one process, which stand for as many machines."""

from __future__ import annotations

from typing import Self

from bench.systems import Linkd
from tests.support.swarm import Swarm


class Crowd(Linkd):
    """A hub, a whole daemon, and its peers: real nodes in one other process, with logs in memory.

    What is measured is the hub. Peers that are daemons would take the processors from it, which
    peers on machines of their own do not.
    """

    def __enter__(self) -> Self:
        self.start_hub()
        url = f"ws://127.0.0.1:{self.link_port}/link"
        self._swarm = Swarm(url, self.peers, str(self.secret), None, "bench.>")
        self.edge_ports = []
        try:
            self.linked()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End all and remove all."""
        self._swarm.close()
        super().close()
