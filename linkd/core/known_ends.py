"""How far the logs of this node's peers can reach by now, by what the peers said themselves: pure.

A third node that relays a record could name any offset of its origin's log. An offset that the
origin cannot have reached yet would hide what the origin publishes next, so it is refused. The
origin's log grows after its hello, and what it publishes may come faster over another path than
over its own link: the bound therefore grows with time, faster than any node publishes.
"""

from __future__ import annotations

import msgspec

from linkd.core.batch import Origin
from linkd.core.wire import Hello, Volatile

GROWTH_AT_ONCE = 1_000_000
GROWTH_PER_SECOND = 1_000_000
"""Records that a log may have grown by since its hello: several times what one node publishes."""

MAX_RUNS = 10_000
"""Runs of nodes whose last volatile message is remembered."""


class LogEnd(msgspec.Struct, frozen=True, gc=False):
    """What a peer's hello named: its newest epoch, the next offset, and when that was."""

    epoch: str
    next: int
    at: float


class KnownEnds:
    """The ends of the peers' logs and of their volatile sequences; seconds on one monotonic clock.

    What no peer has named itself is not bounded.
    """

    __slots__ = ("_logs", "_nodes", "_owners", "_runs")

    def __init__(self) -> None:
        self._logs: dict[str, LogEnd] = {}
        self._nodes: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        self._runs: dict[tuple[str, str], tuple[int, float]] = {}

    def greeted(self, hello: Hello, now: float) -> None:
        """Note what a peer's hello names; it replaces the peer's older one."""
        self.own(hello.log, hello.node)
        self._logs[hello.log] = LogEnd(hello.epochs[-1].epoch, hello.next, now)

    def own(self, log: str, node: str) -> None:
        """Note that a log is the node's; an older one of its is nobody's any more."""
        if self._nodes.get(node) != log:
            self.disown(node)
        self._nodes[node] = log
        self._owners[log] = node

    def disown(self, node: str) -> None:
        """Forget whose the node's log is: it is configured no more, or under another name."""
        log = self._nodes.pop(node, None)
        if log is not None and self._owners.get(log) == node:
            del self._owners[log]
            self._logs.pop(log, None)

    def owner(self, log: str) -> str | None:
        """Return the configured node whose log this is, as far as that is known."""
        return self._owners.get(log)

    def allows(self, origin: Origin, count: int, now: float) -> bool:
        """Tell whether `count` records from `origin.first` on, behind `origin.after`, can exist.

        Only the epoch in which the origin publishes is bounded. An older one may have been longer
        than its node knows, whose disk was put back; a newer one may begin anywhere.
        """
        end = self._logs.get(origin.log)
        if end is None or end.epoch != origin.epoch:
            return True
        highest = max(origin.first + count - 1, origin.after or 0)
        return highest < end.next + _growth(now - end.at)

    def heard(self, message: Volatile, now: float) -> None:
        """Note a volatile message that came from its origin itself."""
        runs, key = self._runs, (message.node, message.run)
        runs.pop(key, None)
        if len(runs) >= MAX_RUNS:
            del runs[next(iter(runs))]
        runs[key] = (message.sequence, now)

    def allows_volatile(self, message: Volatile, now: float) -> bool:
        """Tell whether the origin can have sent that many volatile messages in this run."""
        known = self._runs.get((message.node, message.run))
        return known is None or message.sequence < known[0] + _growth(now - known[1])


def _growth(seconds: float) -> float:
    """Return how much a log or a sequence may have grown in so many seconds."""
    return GROWTH_AT_ONCE + GROWTH_PER_SECOND * max(0.0, seconds)
