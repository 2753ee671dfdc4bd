"""What happens on a node: said in the log, remembered, and measured as outages."""

from __future__ import annotations

from collections.abc import Callable

from linkd import events
from linkd.clock import Clock, wall
from linkd.core.link_types import Changed
from linkd.log.engine import Log
from linkd.net.limits import Bucket
from linkd.node.book import Book, EventStore
from linkd.node.driver import LinkDriver
from linkd.node.losses import Losses
from linkd.outages import Current, Outages
from linkd.status import Availability, Event, Outage

OWNER_EVENTS = 60.0
OWNER_BURST = 20.0
"""Events of one owner's consumers that are kept an hour, and at once."""


class Chronicle:
    """Hears of every change once, and sees to it that everybody is told the same of it.

    Args:
        log: The node's log: its end says when what an outage left is drained.
        outages: What happened to the links, on disk.
        store: Where events are kept.
        clock: The reactor.

    Attributes:
        on_fell: Called once a link has left `up`: peer, reason, seconds of silence until then.
        on_rose: Called once an outage has ended: peer, its seconds.
    """

    def __init__(self, log: Log, outages: Outages, store: EventStore, clock: Clock) -> None:
        self._log = log
        self._outages = outages
        self._clock = clock
        self._book = Book(store)
        self._losses = Losses(self._book)
        self._shares: dict[str, Bucket] = {}
        self.on_fell: list[Callable[[str, str, float | None], None]] = []
        self.on_rose: list[Callable[[str, float], None]] = []

    def changed(self, driver: LinkDriver, change: Changed, silence: float | None) -> None:
        """A link's state has changed: remember it, say it."""
        same: dict[str, str | None] = {
            "peer": driver.peer,
            "generation": driver.generation,
            "old": change.old,
            "new": change.new,
            "reason": change.reason,
            "detail": change.detail,
        }
        self._book.add(f"link.{change.new}", **same)
        if change.old == "up":  # an operator searches the log for this word
            same["detail"] = f"link down: {change.detail}" if change.detail else "link down"
        events.emit(
            f"link.{change.new}",
            "info" if change.old == "stopped" else None,
            **same,
            **self._measured(driver, change, silence),
        )

    def _measured(
        self, driver: LinkDriver, change: Changed, silence: float | None
    ) -> dict[str, str | int | float | None]:
        """Record what the change means for the link's outages; return what was measured."""
        now, owed = self._clock.seconds(), driver.carrier.session.outbound.owed_records
        if change.old == "up":
            reason = change.reason or "closed"
            self._outages.fell(driver.peer, reason, silence, now, wall())
            for fell in self.on_fell:
                fell(driver.peer, reason, silence)
        elif change.reason is not None:
            self._outages.failed(driver.peer, change.reason)
        self._outages.tried(driver.peer, driver.link.attempts)
        if change.new != "up":
            return driver.measured(silence)
        down = self._outages.rose(driver.peer, driver.link.attempts, owed, now)
        if down is not None:
            for rose in self.on_rose:
                rose(driver.peer, down)
        driver.drain_to = self._log.next if owed else None
        return {
            "outage_seconds": None if down is None else round(down, 3),
            "attempts": driver.link.attempts or None,
            "replayed_records": owed if down is not None else None,
            "peer_version": driver.peer_version,
        }

    def acked(self, driver: LinkDriver, next: int) -> None:
        """A peer has everything below `next`: what an outage left may be drained by that."""
        if driver.drain_to is None or next < driver.drain_to:
            return
        driver.drain_to = None
        drained = self._outages.drained(driver.peer, self._clock.seconds())
        if drained is not None:
            seconds, records = drained
            events.emit(
                "link.drained",
                peer=driver.peer,
                drained_seconds=round(seconds, 3),
                replayed_records=records,
            )

    def tell(self, level: str, event: str, **fields: str | int | float | None) -> None:
        """Say something in the log; what is worse than usual is remembered too."""
        owner = fields.get("owner")
        if owner is None or self._has_share(str(owner)):
            self._losses.take(event, fields)
        events.emit(event, level, **fields)  # type: ignore[arg-type]  # a core's words for a level

    def configured(self, peer: str) -> None:
        """A link is configured and not up: it is down since now, if not since before."""
        self._outages.configured(peer, self._clock.seconds(), wall())

    def _has_share(self, owner: str) -> bool:
        """Return whether an event of an owner's consumers is kept: they must not push out all."""
        now = self._clock.seconds()
        if owner not in self._shares:
            self._shares[owner] = Bucket(OWNER_EVENTS / 3600.0, OWNER_BURST, now)
        return not self._shares[owner].take(now)

    def forget(self, peer: str) -> None:
        """A peer is configured no more: its outages go."""
        self._outages.remove(peer)

    def drilled(self, peer: str, seconds: float) -> None:
        """A drill spoils a link for so many seconds from now."""
        self._outages.drilled(peer, self._clock.seconds() + seconds)

    def sentences(self, owner: str | None) -> list[str]:
        """Return what the log lost in this run, a sentence each, oldest first."""
        return self._losses.sentences(owner)

    def after(self, number: int) -> list[Event]:
        """Return the remembered changes with a number above `number`, oldest first."""
        return self._book.after(number)

    def follow(self, call: Callable[[Event], None]) -> Callable[[], None]:
        """Have each change told as it happens; returns how to end that."""
        return self._book.follow(call)

    def outage(self, peer: str) -> Current | None:
        """Return the outage that a link is in; None where it is up."""
        return self._outages.current(peer, self._clock.seconds())

    def last_reason(self, peer: str) -> str | None:
        """Return why a link's newest outage began, over restarts; None where none is recorded."""
        return self._outages.last_reason(peer)

    def outages(self, peer: str | None, since_seconds: float | None, drills: bool) -> list[Outage]:
        """Return the recorded outages, oldest first; of one peer, of the last seconds."""
        since = None if since_seconds is None else wall() - since_seconds
        return self._outages.recorded(self._clock.seconds(), peer, since, drills)

    def availability(self, peer: str, drills: bool) -> Availability:
        """Return which share of the measured time a link was up."""
        return self._outages.availability(peer, self._clock.seconds(), wall(), drills)
