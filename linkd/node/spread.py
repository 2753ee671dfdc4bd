"""Who gets what was published: by channel, peers and readers here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from linkd import events
from linkd.core import wire
from linkd.core.batch import Batch
from linkd.core.session_types import NotRelayed
from linkd.errors import Gap
from linkd.log.engine import Log
from linkd.node.driver import LinkDriver
from linkd.node.follow import Follower
from linkd.node.readers import Readers
from linkd.node.volatile import as_batch

_ALL = 1 << 62

FLOW_BYTES = 1 << 17
"""What was committed in less than so many bytes is handed out at once."""

EACH_BYTES = 1 << 16
"""To whom about so much goes at once, it gains nothing from more."""

PUT_OFF_SECONDS = 0.02
"""A loop that has no rest hands out so seldom.

What each gets of a commit that is for many is little, and handing out, sending and acknowledging it
costs nearly as much as more would (measured: 100 channels, 50 peers: a sixth of the processor
time). Nobody waits longer for it than for the rest of what keeps the loop busy.
"""
_CHANNELS_KNOWN = 100_000


WhenIdle = Callable[[Callable[[], None], float], object]
"""Makes a call once nothing else is to be done, after so many seconds at the latest."""


class Count(Protocol):
    """Counts records that were refused, expired, dropped or lost."""

    def __call__(self, what: str, peer: str, records: int) -> None:
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
        idle: Puts a call off until nothing else is to be done; None where nothing can.
    """

    def __init__(
        self,
        log: Log,
        drivers: dict[str, LinkDriver],
        readers: Readers,
        count: Count,
        idle: WhenIdle | None = None,
    ) -> None:
        self._log = log
        self._idle = idle
        self._drivers = drivers
        self._readers = readers
        self._count = count
        self._routes: dict[str, tuple[LinkDriver, ...]] = {}
        self._one_way: dict[str, list[str]] = {}
        self._seen = log.next
        self._ticked = 0
        self._for_drivers: dict[LinkDriver, list[Batch]] = {}
        self._for_followers: dict[Follower, list[Batch]] = {}
        self._bytes = 0  # of what is to be handed out
        self._flows = self._waits = self._handing = False

    def changed(self) -> None:
        """Some peer wants something else now."""
        self._routes.clear()
        self._one_way.clear()

    def route(self, channel: str) -> tuple[LinkDriver, ...]:
        """Return the links whose peers get `channel`."""
        route = self._routes.get(channel)
        if route is None:
            if len(self._routes) >= _CHANNELS_KNOWN:
                self._routes.clear()
            route = tuple(d for d in self._drivers.values() if d.carrier.owes(channel))
            self._routes[channel] = route
        return route

    def committed(self, next: int) -> None:
        """Hand what was committed to those who keep up; count what is owed."""
        seen, self._seen = self._seen, next
        for_drivers, for_followers = self._for_drivers, self._for_followers
        for batch in self._between(seen, next):
            self._bytes += len(batch.records)
            for driver in self.route(batch.channel):
                outbound = driver.carrier.session.outbound
                if outbound.has(batch):
                    continue
                if not outbound.takes_from(batch):
                    driver.carrier.not_relayed(NotRelayed(batch.channel, batch.count, False))
                else:
                    outbound.owe(batch.count, len(batch.records), batch.next)
                    for_drivers.setdefault(driver, []).append(batch)
            for follower in self._readers.interested(batch.channel):
                for_followers.setdefault(follower, []).append(batch)
        if not self._flows or self._idle is None:
            self.hand_out()
        elif not self._waits:
            self._waits = True
            self._idle(self.hand_out, PUT_OFF_SECONDS)

    def _between(self, position: int, next: int) -> Iterator[Batch]:
        """Yield the batches between two offsets, over gaps: a new epoch may open far above."""
        while position < next:
            try:
                batches = self._log.read(position, _ALL)
            except Gap as gap:
                position = gap.first
                continue
            if not batches:
                return
            yield from batches
            position = batches[-1].next

    def hand_out(self) -> None:
        """Hand to each what is for it; what that led to being committed at once, behind it."""
        if self._handing:
            return
        self._handing = True
        self._waits = False
        try:
            self._hand_round()
            while self._for_drivers or self._for_followers:
                self._hand_round()
        finally:
            self._handing = False

    def _hand_round(self) -> None:
        """Hand out what there is now."""
        end = self._seen
        for_drivers, self._for_drivers = self._for_drivers, {}
        for_followers, self._for_followers = self._for_followers, {}
        size, self._bytes = self._bytes, 0
        self._flows = FLOW_BYTES <= size < EACH_BYTES * (len(for_drivers) + len(for_followers))
        for driver, owed in for_drivers.items():
            self._offer(driver, owed, end)
        for follower, wanted in for_followers.items():
            if not _done(follower.offer, wanted, end):
                _done(follower.end, "linkd made a mistake; its log has the details")
        self._readers.offered = end

    def _offer(self, driver: LinkDriver, owed: list[Batch], next: int) -> None:
        """Hand a peer what is its own; where that fails it missed something, and begins anew."""
        if not _done(driver.carrier.offer, owed, next):
            _done(driver.rejoin, "the link begins anew after a mistake of ours")

    def tick(self) -> None:
        """Move everyone on over what is not for them."""
        self.hand_out()
        end = self._log.next
        if end != self._ticked:
            self._ticked = end
            for driver in self._drivers.values():
                if driver.carrier.session.outbound.log_next < end:
                    self._offer(driver, [], end)

    def one_way(self, channel: str) -> list[str]:
        """Return the peers that get `channel` and from which it is not taken."""
        found = self._one_way.get(channel)
        if found is None:
            if len(self._one_way) >= _CHANNELS_KNOWN:
                self._one_way.clear()
            found = self._one_way[channel] = [
                driver.peer
                for driver in self.route(channel)
                if not driver.carrier.session.inbound.takes(channel)
            ]
        return found

    def volatile(
        self, message: wire.Volatile, source: str | None, only: Collection[str] | None = None
    ) -> None:
        """Hand a volatile message, here or from peer `source`, to readers and to other peers.

        With `only` to those peers alone. No reader gets what is for the nodes themselves.
        """
        is_ours = message.presence
        followers = [] if is_ours else self._readers.interested(message.channel)
        if followers:
            batch = as_batch(message, self._log.clock())
            for follower in followers:
                follower.volatile(batch)
        payload = b""
        for driver in self.route(message.channel):
            if driver.peer in (source, message.node):
                continue
            if only is not None and driver.peer not in only:
                continue
            if source is not None and not driver.carrier.session.outbound.relays:
                if is_ours:
                    continue
                driver.carrier.not_relayed(NotRelayed(message.channel, message.count, False))
                continue
            payload = payload or wire.encode(message)
            if not driver.volatile(payload) and not is_ours:
                self._count("dropped", driver.peer, message.count)


def _done(call: Callable[..., object], *arguments: object) -> bool:
    """Call; tell whether that went well. A mistake is said, and costs nobody else anything."""
    try:
        call(*arguments)
    except Exception as error:  # noqa: BLE001 - the others get theirs
        events.emit("node.bug", where="handing out", detail=f"{type(error).__name__}: {error}")
        return False
    return True
