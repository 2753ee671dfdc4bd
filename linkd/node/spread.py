"""Who gets what was published: by channel, peers and readers here."""

from __future__ import annotations

from typing import Protocol

import msgspec

from linkd.core import wire
from linkd.core.batch import Batch
from linkd.log.engine import Log
from linkd.node.driver import LinkDriver
from linkd.node.follow import Follower
from linkd.node.readers import Readers
from linkd.node.volatile import as_batch

_ALL = 1 << 62
_CHANNELS_KNOWN = 100_000


class Route(msgspec.Struct, frozen=True):
    """Who gets one channel: peers and readers."""

    drivers: tuple[LinkDriver, ...]
    followers: tuple[Follower, ...]


class Count(Protocol):
    """Counts records that were refused, expired, dropped or lost."""

    def __call__(self, what: str, peer: str, channel: str, records: int) -> None:
        """Count."""


class Spread:
    """Hands out what was committed, and what is volatile.

    Those who keep up are handed what is theirs of each commit; `tick` moves everyone on over what
    is not, so that a commit costs nothing for the thousand peers that it does not concern.

    Args:
        log: The node's log.
        drivers: The node's links, by peer.
        readers: Who reads here.
        count: Counts what had to be dropped.
    """

    def __init__(
        self, log: Log, drivers: dict[str, LinkDriver], readers: Readers, count: Count
    ) -> None:
        self._log = log
        self._drivers = drivers
        self._readers = readers
        self._count = count
        self._routes: dict[str, Route] = {}
        self._seen = log.next
        self._ticked = 0

    def changed(self) -> None:
        """Somebody wants something else now."""
        self._routes.clear()

    def route(self, channel: str) -> Route:
        """Return who gets `channel`."""
        route = self._routes.get(channel)
        if route is None:
            if len(self._routes) >= _CHANNELS_KNOWN:
                self._routes.clear()
            drivers = tuple(d for d in self._drivers.values() if d.carrier.owes(channel))
            route = self._routes[channel] = Route(drivers, self._readers.interested(channel))
        return route

    def committed(self, next: int) -> None:
        """Hand what was committed to those who keep up; count what is owed."""
        seen, self._seen = self._seen, next
        for_drivers: dict[LinkDriver, list[Batch]] = {}
        for_followers: dict[Follower, list[Batch]] = {}
        for batch in self._log.read(seen, _ALL) or []:
            route = self.route(batch.channel)
            for driver in route.drivers:
                outbound = driver.carrier.session.outbound
                if outbound.owes(batch):
                    outbound.owe(batch.count, len(batch.records))
                    for_drivers.setdefault(driver, []).append(batch)
            for follower in route.followers:
                for_followers.setdefault(follower, []).append(batch)
        for driver, owed in for_drivers.items():
            driver.carrier.offer(owed, next)
        for follower, wanted in for_followers.items():
            follower.offer(wanted, next)

    def tick(self) -> None:
        """Move everyone on over what is not for them."""
        end = self._log.next
        if end != self._ticked:
            self._ticked = end
            for driver in self._drivers.values():
                if driver.carrier.session.outbound.log_next < end:
                    driver.carrier.offer([], end)
        self._readers.tick()

    def volatile(self, message: wire.Volatile, source: str | None) -> None:
        """Hand a volatile message, here or from peer `source`, to readers and to other peers."""
        route = self.route(message.channel)
        if route.followers:
            batch = as_batch(message, self._log.clock())
            for follower in route.followers:
                follower.volatile(batch)
        payload = b""
        for driver in route.drivers:
            if driver.peer in (source, message.node):
                continue
            payload = payload or wire.encode(message)
            if not driver.volatile(payload):
                self._count("dropped", driver.peer, message.channel, message.count)
