"""The links of a node: one a configured peer, begun, changed and ended with the configuration."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from twisted.internet.defer import Deferred, succeed

from linkd.config import Config, PeerSettings
from linkd.core.backoff import Backoff
from linkd.log.engine import CursorStore, PeerCursor
from linkd.net.ports import Dialer
from linkd.node.absent import AbsentPeers
from linkd.node.driver import Around, LinkDriver
from linkd.node.waits import Waits

_OVERDUE_SECONDS = 10.0
"""An attempt that should have ended so long ago makes no progress."""

_CROWDED = 0.85
"""From this part of `log.max_bytes` on, peers with `drop-oldest` hold nothing back."""


class Links:
    """All links of a node, each with its cursor and with those who wait for its peer.

    Args:
        around: The node.
        cursors: Where the peers' cursors lie.
        make_dialer: Makes the dialing end of a link.
        rng: For delays.

    Attributes:
        drivers: The links, by peer.
        absent: The peers that are configured no more.
    """

    def __init__(
        self,
        around: Around,
        cursors: CursorStore,
        make_dialer: Callable[[LinkDriver], Dialer],
        rng: Random,
    ) -> None:
        self.drivers: dict[str, LinkDriver] = {}
        self._around = around
        self.absent = AbsentPeers(around.log, cursors, around.tell, around.forgotten)
        self._cursors = cursors
        self._make_dialer = make_dialer
        self._rng = rng
        self._waits: dict[str, Waits] = {}

    # -- life ---------------------------------------------------------------------------------

    def start(self, peers: tuple[PeerSettings, ...]) -> None:
        """Begin all links; the cursors of peers that are configured no more stay for a day."""
        self.absent.start({peer.name for peer in peers})
        for settings in peers:
            self._add(settings)

    def stop(self, detail: str) -> None:
        """End all links."""
        for driver in self.drivers.values():
            driver.stop(detail)

    def reload(self, old: Config, new: Config) -> None:
        """Go from one configuration to another.

        Links of peers that it doesn't change stay up.
        """
        before = {peer.name: peer for peer in old.peers}
        after = {peer.name: peer for peer in new.peers}
        for name in [name for name in before if name not in after]:
            carrier = self.drivers[name].carrier
            outbound = carrier.session.outbound
            owed = outbound.owed_records, outbound.owed_bytes
            self._remove(name, "the peer was removed from the configuration")
            self.absent.leave(before[name], carrier.owes, *owed)
            self._waits.pop(name).end()
        # A dialer follows its listener's [heartbeat], not this node's.
        anew = old.reconnect != new.reconnect
        for name, settings in after.items():
            if name not in before:
                self._add(settings)
            elif settings != before[name] or (anew and settings.dial):
                self._remove(name, "its configuration has changed")
                self._add(settings)

    def _add(self, settings: PeerSettings) -> None:
        """Begin the link to one peer."""
        self.absent.back(settings.name)
        if self._cursors.peer(settings.name) is None:
            here = self._around.log.next
            self._cursors.set_peer(PeerCursor(settings.name, here, here))
        reconnect = self._around.config.reconnect
        backoff = Backoff(reconnect, self._rng, len(settings.dial)) if settings.dial else None
        stored, ends = self._around.log.cursor(settings.name), self._around.ends
        if stored is not None and ends.owner(stored.log) is None:
            ends.own(stored.log, settings.name)
        driver = LinkDriver(self._around, settings, backoff)
        self.drivers[settings.name] = driver
        self._waits.setdefault(settings.name, Waits())
        if settings.dial:
            driver.dialer = self._make_dialer(driver)
        self._around.routes_changed()
        driver.start()

    def _remove(self, name: str, detail: str) -> None:
        """End the link to one peer."""
        self.drivers.pop(name).stop(detail)
        self._around.ends.disown(name)
        self._around.routes_changed()

    # -- what they are asked and told together ------------------------------------------------

    def network_changed(self) -> None:
        """Addresses or routes of this host have changed."""
        for driver in self.drivers.values():
            driver.network_changed()

    def clock_set(self) -> None:
        """Have those dial at once that TLS has rejected: a certificate's date may be right now."""
        for driver in self.drivers.values():
            if driver.link.state == "rejected" and driver.link.attempt_reason == "tls":
                driver.network_changed()

    def kick(self) -> None:
        """Every dialer tries again at once."""
        for driver in self.drivers.values():
            driver.kick()

    def catch_up(self) -> None:
        """Have each look for what came to disk meanwhile, and for acks that are overdue."""
        now = self._around.clock.seconds()
        for driver in tuple(self.drivers.values()):
            driver.carrier.catch_up()
            driver.carrier.watch(now)

    def trimmed(self, first: int) -> None:
        """Records went; whoever was owed some hears of the gap when it comes to it."""
        for driver in self.drivers.values():
            driver.carrier.trimmed(first)

    def progress(self, now: float) -> str | None:
        """Return what makes no progress (for the watchdog), or None where all do."""
        for driver in self.drivers.values():
            dialer = driver.dialer
            if dialer is None or dialer.deadline is None:
                continue
            overdue = now - dialer.deadline
            if overdue > _OVERDUE_SECONDS:
                return f"the attempt to reach {driver.peer} is {overdue:.0f} s overdue"
        return None

    def summary(self) -> tuple[int, list[str]]:
        """Return how many links are up, and the peers of those that are not."""
        down = [d.peer for d in self.drivers.values() if d.link.state != "up"]
        return len(self.drivers) - len(down), down

    # -- how far the peers have our log -------------------------------------------------------

    def acked_by(self, peer: str) -> int:
        """Return the offset below which the peer has everything, as noted on disk."""
        known = self._cursors.peer(peer)
        assert known is not None  # noted before the link begins
        return min(known.acked, self._around.log.next)

    def acked(self, peer: str, next: int) -> LinkDriver | None:
        """Note that the peer has everything below `next`; return its link, while it has one."""
        known, driver = self._cursors.peer(peer), self.drivers.get(peer)
        if known is None or driver is None:
            return None
        if known.acked != next:
            self._cursors.set_peer(PeerCursor(peer, known.made, next))
        self._waits[peer].acked(next)
        return driver

    def wait_for(self, peer: str, next: int) -> Deferred[None]:
        """Fire once everything below `next` is on `peer`'s disk."""
        waits = self._waits[peer]
        if self.drivers[peer].carrier.session.outbound.acked >= next:
            return succeed(None)
        return waits.until(next)

    def low_water(self) -> int:
        """Return the offset below which no peer is owed anything."""
        log = self._around.log
        low = log.next
        crowded = log.size_bytes > _CROWDED * log.max_bytes
        for driver in self.drivers.values():
            if not (crowded and driver.settings.when_full == "drop-oldest"):
                low = min(low, driver.carrier.session.outbound.acked)
        return min(low, self.absent.low_water(crowded))
