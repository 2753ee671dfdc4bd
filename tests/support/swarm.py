"""Many nodes in one process, each with one link that it dials: a crowd for one hub.

`python -m tests.support.swarm URL COUNT SECRET_FILE [PATTERN...]` starts `edge-1` to `edge-COUNT`,
with logs in memory and no local API, which take from the hub what matches a pattern; each line on
standard input is answered by one JSON line about all.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import threading
import time
from collections import deque
from typing import Any

from linkd.drill.deadman import ChildProcess
from linkd.drill.testbed import Namespace
from tests.support.lab import python

MOST_STARTING = 25
"""So many are started at most before one of them is up.

Where the machine is slow, all at once would take longer than an attempt may: then none is ever up.
"""

LOG_BYTES = 1 << 20
"""What each keeps of what nobody is owed: fifty logs that forget nothing would be mostly that."""


def _node(name: str, peer: Any, reactor: Any, shared: Any) -> Any:
    """Return one node with one peer, not yet started."""
    from linkd.config import Config, LogSettings
    from linkd.config.settings import NodeSettings
    from linkd.log import CursorStore
    from linkd.net.dialer import DialerContext, LinkDialer
    from linkd.node import Node, Stores
    from linkd.node.outages import Outages
    from tests.support.memory_log import BoundedMemoryLog

    config = Config(node=NodeSettings(name=name), peers=(peer,))
    origin = DialerContext(name, f"{random.getrandbits(64):016x}", reactor, shared)

    def dialer(node: Any, driver: Any) -> Any:
        return LinkDialer(driver, driver.settings, origin, config.reconnect.connect_timeout)

    log = BoundedMemoryLog(name, LogSettings(memory_bytes=LOG_BYTES))
    stores = Stores(log, CursorStore(), Outages(CursorStore()))
    return Node(config, stores, reactor, dialer, random.Random())


def _report(nodes: list[Any]) -> dict[str, Any]:
    """Return how all links are."""
    links = [link for node in nodes for link in node.status().links]
    ended = [outage for node in nodes for outage in node.outages() if not outage.ongoing]
    return {
        "up": sum(link.state == "up" for link in links),
        "trying": max((link.attempts for link in links), default=0),
        "attempts": [outage.attempts for outage in ended],
        "down": [outage.down_seconds for outage in ended],
        "at": time.monotonic(),
    }


def main(url: str, count: int, secret_file: str, *receive: str) -> None:
    """Run the nodes until standard input ends."""
    from linkd.reactor import install

    installed = install()  # as a daemon's, before anything names Twisted's own
    from twisted.internet import threads

    from linkd import daemon
    from linkd.config.settings import PeerSettings
    from linkd.net.connect import Resolver, look_up

    reactor: Any = installed
    reactor.seconds = time.monotonic
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    shared = Resolver(reactor, lambda host: threads.deferToThread(look_up, host))
    peer = PeerSettings(
        name="hub", dial=(url,), insecure=True, secret_file=secret_file, receive=receive
    )
    nodes = [_node(f"edge-{n + 1}", peer, reactor, shared) for n in range(count)]

    def obey() -> None:
        for _ in sys.stdin:
            reactor.callFromThread(lambda: print(json.dumps(_report(nodes)), flush=True))
        reactor.callFromThread(reactor.stop)

    threading.Thread(target=obey, daemon=True).start()
    waiting, starting = deque(nodes), list[Any]()

    def start_one() -> None:
        if len(starting) >= MOST_STARTING:
            starting[:] = [node for node in starting if node.status().links[0].state != "up"]
        if len(starting) < MOST_STARTING:
            starting.append(waiting.popleft())
            starting[-1].start()
        if waiting:
            reactor.callLater(0.005, start_one)

    start_one()
    daemon.tune_gc()
    reactor.run()


class Swarm(ChildProcess):
    """A swarm process; a context that ends it."""

    def __init__(
        self, url: str, count: int, secret_file: str, host: Namespace | None, *receive: str
    ) -> None:
        """Start it, on this machine or inside a host."""
        command = python("-m", "tests.support.swarm", url, str(count), secret_file, *receive)
        prefix = host.prefix if host is not None else []
        super().__init__([*prefix, *command], "swarm", 20.0, subprocess.DEVNULL)

    def report(self) -> dict[str, Any]:
        """Return `up` (links), `trying` (most attempts now), `attempts` and `down` by outage.

        Raises:
            RuntimeError: The swarm has gone, or did not answer within 20 s.
        """
        return self.order()

    def wait_up(self, count: int, within: float) -> float:
        """Wait until so many links are up; return when that was seen (monotonic).

        Raises:
            RuntimeError: They were not in time.
        """
        end = time.monotonic() + within
        while (report := self.report())["up"] < count:
            if time.monotonic() > end:
                raise RuntimeError(f"{report['up']} of {count} links are up after {within} s")
            time.sleep(0.2)
        return float(report["at"])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
