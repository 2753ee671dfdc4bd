"""The node: all links of this node, its log, and who reads and publishes here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TypeVar

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall

import linkd
from linkd import events
from linkd.api.port import Measure, Sink, Start
from linkd.clock import Clock, wall
from linkd.config import ChannelSettings, Config, PeerSettings
from linkd.core import wire
from linkd.core.backoff import Backoff
from linkd.core.batch import Draft
from linkd.core.channels import Patterns
from linkd.core.link_types import Changed
from linkd.errors import LinkdError
from linkd.log.engine import Appended, Consumer, CursorStore, Log, PeerCursor, Settled
from linkd.net.ports import Dialer
from linkd.node.book import Book
from linkd.node.driver import LinkDriver
from linkd.node.follow import Follower
from linkd.node.losses import Losses
from linkd.node.readers import Readers
from linkd.node.spread import Spread
from linkd.node.volatile import VolatileSequence
from linkd.node.waits import Waits
from linkd.outages import Outages
from linkd.status import Event, LogStatus, NodeStatus, Outage

_Result = TypeVar("_Result")

MakeDialer = Callable[["Node", LinkDriver], Dialer]

_TICK_SECONDS = 0.25


class Stores(msgspec.Struct, frozen=True):
    """What the disk remembers: the log, the cursors in it, what happened to the links."""

    log: Log
    cursors: CursorStore
    outages: Outages


class Node:
    """One running linkd; `linkd.api.port.NodePort` and `linkd.net.ports.Nodes`.

    Args:
        config: What is in force.
        stores: What its disk remembers, open.
        clock: The reactor.
        make_dialer: Makes the dialing end of a link.
        rng: For delays.
    """

    def __init__(
        self,
        config: Config,
        stores: Stores,
        clock: Clock,
        make_dialer: MakeDialer,
        rng: Random,
    ) -> None:
        self.name = config.node.name
        self.software = f"linkd {linkd.__version__}"
        self.config = config
        self.log = log = stores.log
        self.clock = clock
        self.starting = True
        self.stopping = False
        self._counter: Counter[tuple[str, str, str]] = Counter()
        self.counts: Mapping[tuple[str, str, str], int] = self._counter
        self.on_measured: list[Callable[[Measure, str, float], None]] = []
        self._cursors = stores.cursors
        self._make_dialer = make_dialer
        self._rng = rng
        self._outages = stores.outages
        self._began = clock.seconds()
        self._book = Book()
        self._losses = Losses(self._book)
        self._drivers: dict[str, LinkDriver] = {}
        self._waits: dict[str, Waits] = {}
        self._readers = Readers(self, log, stores.cursors)
        self._volatile = VolatileSequence(self.name, f"{rng.getrandbits(64):016x}")
        self._spread = Spread(log, self._drivers, self._readers, self.count)
        self._rules: dict[str, ChannelSettings | None] = {}
        self._tick = LoopingCall(self._ticked)
        self._tick.clock = clock  # type: ignore[assignment]  # it needs no more than ours offers
        self._hour = 0.0
        self._ticks = 0
        log.on_commit.append(self._spread.committed)
        log.on_trim.append(self._trimmed)

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin all links."""
        known = self._cursors.peers()
        names = {peer.name for peer in self.config.peers}
        for name in [name for name in known if name not in names]:
            self._cursors.remove_peer(name)
        for settings in self.config.peers:
            self._add(settings)
        self.starting = False
        self._tick.start(_TICK_SECONDS, now=False)

    def stop(self, detail: str) -> Deferred[None]:
        """End all links and subscriptions; fires once the log has committed what waits."""
        self.stopping = True
        if self._tick.running:
            self._tick.stop()
        self._readers.stop()
        for driver in self._drivers.values():
            driver.stop(detail)
        done: Deferred[None] = Deferred()
        self._cursors.close(lambda: self.log.close(lambda: done.callback(None)))
        return done

    def _add(self, settings: PeerSettings) -> LinkDriver:
        """Begin the link to one peer."""
        if settings.name not in self._cursors.peers():
            here = self.log.next
            self._cursors.set_peer(PeerCursor(settings.name, here, here))
        backoff = (
            Backoff(self.config.reconnect, self._rng, len(settings.dial)) if settings.dial else None
        )
        driver = LinkDriver(self, settings, backoff)
        self._drivers[settings.name] = driver
        self._waits.setdefault(settings.name, Waits())
        if settings.dial:
            driver.dialer = self._make_dialer(self, driver)
        self.routes_changed()
        driver.start()
        return driver

    def _remove(self, name: str, detail: str) -> None:
        """End the link to one peer."""
        driver = self._drivers.pop(name)
        driver.stop(detail)
        self.routes_changed()

    def reload(self, config: Config) -> None:
        """Put a new configuration in force; links of peers that it doesn't change stay up."""
        old, self.config = self.config, config
        before = {peer.name: peer for peer in old.peers}
        after = {peer.name: peer for peer in config.peers}
        for name in [name for name in before if name not in after]:
            self._remove(name, "the peer was removed from the configuration")
            self._cursors.remove_peer(name)
            self._outages.remove(name)
            self._waits.pop(name).end()
        anew = old.reconnect != config.reconnect or old.heartbeat != config.heartbeat
        for name, settings in after.items():
            if name not in before:
                self._add(settings)
            elif settings != before[name] or (anew and settings.dial):
                self._remove(name, "its configuration has changed")
                self._add(settings)
        self._rules.clear()
        self.routes_changed()

    def progress(self, now: float) -> str | None:
        """Return what makes no progress (for the watchdog), or None where all do."""
        for driver in self._drivers.values():
            dialer = driver.dialer
            if dialer is not None and dialer.deadline is not None and now > dialer.deadline + 10.0:
                return (
                    f"the attempt to reach {driver.peer} is {now - dialer.deadline:.0f} s overdue"
                )
        return None

    def summary(self) -> tuple[int, list[str]]:
        """Return how many links are up, and the peers of those that are not."""
        down = [d.peer for d in self._drivers.values() if d.link.state != "up"]
        return len(self._drivers) - len(down), down

    # -- for the listener (linkd.net.ports.Nodes) -----------------------------------------------

    def peer(self, name: str) -> PeerSettings | None:
        """Return the configured peer of that name."""
        driver = self._drivers.get(name)
        return None if driver is None else driver.settings

    def link(self, name: str) -> LinkDriver | None:
        """Return the link to the peer of that name."""
        return self._drivers.get(name)

    def links(self) -> list[LinkDriver]:
        """Return all links."""
        return list(self._drivers.values())

    def busy(self) -> float | None:
        """Return after how many seconds newcomers should come back, or None."""
        return 1.0 if self.starting or self.stopping else None

    def network_changed(self) -> None:
        """Addresses or routes of this host have changed."""
        for driver in self._drivers.values():
            driver.network_changed()

    def kick_all(self) -> None:
        """Every dialer tries again at once."""
        for driver in self._drivers.values():
            driver.kick()

    # -- publishing ---------------------------------------------------------------------------

    def _rule(self, channel: str) -> ChannelSettings | None:
        """Return how messages of `channel` are treated; None: durable without ttl."""
        try:
            return self._rules[channel]
        except KeyError:
            found = next(
                (rule for rule in self.config.channels if Patterns((rule.name,)).match(channel)),
                None,
            )
            if len(self._rules) > 100_000:
                self._rules.clear()
            self._rules[channel] = found
            return found

    def publish(self, draft: Draft, settled: Settled) -> None:
        """Publish; see `linkd.api.port.NodePort.publish`."""
        rule = self._rule(draft.channel)
        if rule is None:
            self.log.append(draft, settled)
            return
        if draft.ttl is None and rule.ttl is not None:
            draft = msgspec.structs.replace(draft, ttl=rule.ttl)
        if rule.delivery == "durable":
            self.log.append(draft, settled)
            return
        message = self._volatile.make(draft)
        self._spread.volatile(message, None)
        settled(Appended(0, draft.count))

    def passed(self, message: wire.Volatile, peer: str) -> None:
        """A volatile message came from a peer: hand it out and on, once."""
        if self._volatile.fresh(message):
            self._spread.volatile(message, peer)

    def wait_for(self, peer: str, next: int) -> Deferred[None]:
        """Fire once everything below `next` is on `peer`'s disk."""
        waits = self._waits[peer]
        if self._drivers[peer].carrier.session.outbound.acked >= next:
            return succeed(None)
        return waits.until(next)

    def sends(self, peer: str, channel: str) -> bool:
        """Tell whether `peer` gets `channel`."""
        return self._drivers[peer].carrier.owes(channel)

    # -- what happens by itself -------------------------------------------------------------------

    def routes_changed(self) -> None:
        """Somebody wants something else now."""
        self._spread.changed()

    def _trimmed(self, first: int) -> None:
        """Records went; whoever was owed some hears of the gap when it comes to it."""
        for driver in self._drivers.values():
            driver.carrier.trimmed(first)

    def _ticked(self) -> None:
        """Do what is due from time to time; a bug in it must not end it for ever."""
        try:
            self._tick_over()
        except Exception as error:  # noqa: BLE001  # said, and tried again at the next tick
            events.emit("node.bug", where="tick", detail=f"{type(error).__name__}: {error}")

    def _tick_over(self) -> None:
        """Move everyone on over what is not for them; say what is owed to nobody."""
        self._spread.tick()
        self._ticks += 1
        whole_second = self._ticks % 4 == 0
        if not whole_second and self.log.size_bytes < 0.5 * self.log.max_bytes:
            return  # a thousand idle links must not cost a thousand looks at every tick
        for driver in self._drivers.values():
            driver.carrier.catch_up()
        self.log.release(min(self._peers_low_water(), self._readers.low_water()))
        now = wall()
        if not self._hour <= now < self._hour + 3600.0:
            self._hour = now
            self._readers.expire(now)

    def _peers_low_water(self) -> int:
        """Return the offset below which no peer is owed anything."""
        low = self.log.next
        crowded = self.log.size_bytes > 0.85 * self.log.max_bytes
        for driver in self._drivers.values():
            if not (crowded and driver.settings.when_full == "drop-oldest"):
                low = min(low, driver.carrier.session.outbound.acked)
        return low

    # -- what drivers and readers tell ------------------------------------------------------------

    def acked_by(self, peer: str) -> int:
        """Return the offset below which the peer has everything, as noted on disk."""
        return min(self._cursors.peers()[peer].acked, self.log.next)

    def peer_acked(self, peer: str, next: int) -> None:
        """The peer has acknowledged."""
        known, driver = self._cursors.peers().get(peer), self._drivers.get(peer)
        if known is None or driver is None:
            return
        if known.acked != next:
            self._cursors.set_peer(PeerCursor(driver.peer, known.made, next))
        self._waits[driver.peer].acked(next)
        if driver.drain_to is not None and next >= driver.drain_to:
            driver.drain_to = None
            drained = self._outages.drained(driver.peer, self.clock.seconds())
            if drained is not None:
                seconds, records = drained
                events.emit(
                    "link.drained",
                    peer=driver.peer,
                    drained_seconds=round(seconds, 3),
                    replayed_records=records,
                )

    def changed(self, driver: LinkDriver, change: Changed, silence: float | None) -> None:
        """A link's state has changed: remember it, say it."""
        generation = driver.generation
        self._book.add(
            f"link.{change.new}",
            peer=driver.peer,
            generation=generation,
            old=change.old,
            new=change.new,
            reason=change.reason,
            detail=change.detail,
        )
        events.emit(
            f"link.{change.new}",
            "info" if change.old == "stopped" else None,
            peer=driver.peer,
            generation=generation,
            old=change.old,
            new=change.new,
            reason=change.reason,
            detail=change.detail,
            **self._measured(driver, change, silence),
        )

    def _measured(
        self, driver: LinkDriver, change: Changed, silence: float | None
    ) -> dict[str, str | int | float | None]:
        """Record what the change means for the link's outages; return what was measured."""
        now, owed = self.clock.seconds(), driver.carrier.session.outbound.owed_records
        if change.old == "up":
            self._outages.fell(driver.peer, change.reason or "closed", silence, now, wall())
        if change.new != "up":
            return driver.measured(silence)
        down = self._outages.rose(driver.peer, driver.link.attempts, owed, now, wall())
        driver.drain_to = self.log.next if owed else None
        return {
            "outage_seconds": None if down is None else round(down, 3),
            "attempts": driver.link.attempts or None,
            "replayed_records": owed if down is not None else None,
            "peer_version": driver.peer_version,
        }

    def tell(self, level: str, event: str, **fields: str | int | float | None) -> None:
        """Say something in the log; what is worse than usual is remembered too."""
        self._losses.take(event, fields)
        events.emit(event, level, **fields)  # type: ignore[arg-type]  # a core's words for a level

    def observe(self, what: Measure, peer: str, seconds: float) -> None:
        """Tell whoever keeps figures what was measured."""
        for told in self.on_measured:
            told(what, peer, seconds)

    def count(self, what: str, peer: str, channel: str, records: int) -> None:
        """Count records that were refused, expired, dropped or lost."""
        self._counter[what, peer, channel] += records

    # -- for the API (linkd.api.port.NodePort) ----------------------------------------------------

    def subscribe(
        self, patterns: Sequence[str], start: Start, sink: Sink, consumer: str | None = None
    ) -> Follower:
        """Follow the log; see `linkd.api.port.NodePort.subscribe`."""
        return self._readers.subscribe(patterns, start, sink, consumer)

    def consumers(self) -> list[Consumer]:
        """Return the named consumers."""
        return self._readers.consumers()

    def ack(self, consumer: str, next: int) -> Deferred[None]:
        """Set a named consumer's cursor; KeyError if there is none."""
        done: Deferred[None] = Deferred()
        self._readers.ack(consumer, next, lambda error: _settle(done, error, None))
        return done

    def forget(self, consumer: str) -> Deferred[bool]:
        """Remove a named consumer; fires with whether there was one."""
        done: Deferred[bool] = Deferred()
        if not self._readers.forget(consumer, lambda error: _settle(done, error, True)):
            return succeed(False)
        return done

    def status(self) -> NodeStatus:
        """Return what is true now."""
        log = self.log
        return NodeStatus(
            node=self.name,
            version=linkd.__version__,
            uptime_seconds=self.clock.seconds() - self._began,
            log=LogStatus(
                log.id,
                log.first,
                log.next,
                log.size_bytes,
                log.max_bytes,
                log.full,
                self._losses.sentences(),
            ),
            consumers=self._readers.statuses(),
            links=[driver.status() for driver in self._drivers.values()],
        )

    def events(self, after: int = 0) -> list[Event]:
        """Return the remembered changes with a number above `after`."""
        return self._book.after(after)

    def on_event(self, call: Callable[[Event], None]) -> Callable[[], None]:
        """Have each change told as it happens."""
        return self._book.follow(call)

    def outages(self, peer: str | None = None, since_seconds: float | None = None) -> list[Outage]:
        """Return the recorded outages, oldest first; KeyError if there is no such peer."""
        if peer is not None and peer not in self._drivers:
            raise KeyError(peer)
        since = None if since_seconds is None else wall() - since_seconds
        return self._outages.recorded(peer, since)

    def kick(self, peer: str) -> None:
        """Try again at once; KeyError if there is no such peer."""
        self._drivers[peer].kick()
        events.emit("link.kicked", peer=peer)

    def resync(self, peer: str, confirmed: bool) -> Deferred[str]:
        """Forget how far this node has the peer's log: the peer then goes by its own notes."""
        driver = self._drivers[peer]
        cursor = self.log.cursor(peer)
        outbound = driver.carrier.session.outbound
        told = (
            f"this node has nothing of {peer}'s log yet"
            if cursor is None
            else f"this node has {peer}'s log {cursor.log} up to offset {cursor.next - 1}; after"
            f" a resync {peer} sends again from where its own notes stand: records that this node"
            " knows by their origin are left out, others may come a second time, and what is not"
            " there any more is lost"
        )
        told += (
            f". Towards {peer} this node's notes stand at offset {outbound.acked} of"
            f" {self.log.next - 1} ({outbound.owed_records} records owed); to send from there, run"
            f" `linkd resync {self.name}` on {peer} too"
        )
        if not confirmed:
            return succeed(told)
        done: Deferred[str] = Deferred()

        def settled(outcome: Appended | LinkdError) -> None:
            if isinstance(outcome, LinkdError):
                done.errback(outcome)
                return
            events.emit("link.resynced", peer=peer, detail=told)
            driver.rejoin()
            done.callback(told)

        self.log.set_cursor(peer, None, settled)
        return done

    def trim(self, before: int, confirmed: bool) -> tuple[int, int]:
        """Return (records, of them owed) below `before`; delete them where confirmed."""
        before = min(before, self.log.next)
        low = min(self._peers_low_water(), self._readers.low_water())
        owed = max(0, before - max(low, self.log.first))
        if not confirmed:
            return max(0, before - self.log.first), owed
        first, count = self.log.first, self.log.trim(before)
        if count:
            self.tell("warn", "log.trimmed", first=first, next=self.log.first, records=count)
        return count, owed


def _settle(done: Deferred[_Result], error: Exception | None, result: _Result) -> None:
    """Fire `done`."""
    if error is None:
        done.callback(result)
    else:
        done.errback(error)
