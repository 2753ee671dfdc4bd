"""One running node: its links, its log, publishers and readers; resync of a peer; drain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from random import Random
from typing import Final, TypeVar

import msgspec
from twisted.internet.base import DelayedCall, ReactorBase
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall, deferLater

from linkd import events
from linkd.clock import wall
from linkd.config import Config, PeerSettings
from linkd.core.inbound import KnownEnds
from linkd.errors import LinkdError, Reason
from linkd.log.base import Log
from linkd.log.cursor_store import CursorStore
from linkd.log.interface import Appended, OnDurable, Owned
from linkd.net.dialer import LinkDialer
from linkd.net.timers import call_when_idle, cancel
from linkd.node.bus import SISTER, Bus
from linkd.node.dispatcher import ChannelRules, Dispatcher, VolatileSequence, messages_of
from linkd.node.history import History, LinkRecorder, Strangers
from linkd.node.instances import instances_of
from linkd.node.link_driver import LinkDriver
from linkd.node.links import Held, Links
from linkd.node.outages import Outages
from linkd.node.replicator import Measure
from linkd.node.subscriptions import Subscriptions
from linkd.protocol import peer as wire
from linkd.protocol.json import JSON
from linkd.protocol.records import EncodedRecord, NewRecords, encode_records
from linkd.status import (
    Availability,
    CertificateRole,
    CertificateStatus,
    DrainStatus,
    LinkHistory,
    LinkStatus,
    LogStatus,
    NodeStatus,
    Outage,
)
from linkd.version import VERSION


def resync(node: str, log: Log, driver: LinkDriver, confirmed: bool) -> Deferred[str]:
    """Forget how far node `node` has the peer's log, where confirmed; fire with what that means.

    The peer then goes by its own notes.
    """
    text = _describe(node, log, driver)
    if not confirmed:
        return succeed(text)
    done: Deferred[str] = Deferred()

    def settled(outcome: Appended | LinkdError) -> None:
        if isinstance(outcome, LinkdError):
            done.errback(outcome)
            return
        events.emit("link.resynced", peer=driver.peer, detail=text)
        driver.rejoin("the link restarts after a resync")
        done.callback(text)

    log.set_cursor(driver.peer, None, settled)
    return done


def _describe(node: str, log: Log, driver: LinkDriver) -> str:
    """Return what would be sent again or lost, and what the other direction needs."""
    peer, cursor = driver.peer, log.cursor(driver.peer)
    outbound = driver.replicator.session.outbound
    text = (
        f"this node has nothing of {peer}'s log yet"
        if cursor is None or cursor.next <= 1
        else f"this node has {peer}'s log {cursor.log} up to offset {cursor.next - 1}; after"
        f" a resync {peer} sends again from its own cursor on: records that this node"
        " knows by their origin are left out, others may come a second time, and what is not"
        " there any more is lost"
    )
    return (
        f"{text}. By this node's notes {peer} has everything below offset {outbound.acked} of a log"
        f" whose next offset is {log.next} ({outbound.owed_records} records owed); to send from"
        f" there, run `linkd resync {node}` on {peer} too"
    )


_Result = TypeVar("_Result")

MakeDialer = Callable[["Node", LinkDriver], LinkDialer]

_TICK_SECONDS = 0.25


class Stores(msgspec.Struct, frozen=True):
    """What the disk remembers: the log, the cursors in it, what happened to the links."""

    log: Log
    cursors: CursorStore
    outages: Outages


class Node:
    """One running linkd; it is the `linkd.net.connection.Nodes` of its listener.

    Args:
        config: What is in force.
        stores: What its disk remembers, open.
        clock: The reactor.
        make_dialer: Makes the dialing end of a link.
        rng: For delays.

    Attributes:
        warnings: Standing warnings for status, a sentence each, by what they are about. Anyone who
            finds one sets it, and removes it once it is over.
        links: The links to all peers.
        drain: Refuses new links and ends the others, on an operator's request.
        subscriptions: Readers of the log and named consumers.
        dispatcher: Distributes committed and volatile records to links and readers.
        recorder: Records every change of the links.
        events: The latest changes, and who follows them.
        bus: Carries what may be lost to the other instances, where there are some and it is set.
        on_sister: Called with the word of another instance on the bus that is there, or is gone.
        link: Returns the link to a peer, by its name; None if there is none.
        log_event: Logs an event; losses and selected events are also stored.
        forget_outages: Removes the outages of a peer whose cursor is gone.
        certificates: Those in files and of paired peers: role, peer, Unix seconds of the end.
        instances: Those that serve this node, where there may be several.
        shared: Has the small values that these share; None: there is only this one.
    """

    bus: Bus | None = None

    def __init__(
        self,
        config: Config,
        stores: Stores,
        clock: ReactorBase,
        make_dialer: MakeDialer,
        rng: Random,
    ) -> None:
        self.name = config.node.name
        self.software = f"linkd {VERSION}"
        self.config = config
        self.log = log = stores.log
        self.clock = clock
        self.ends = KnownEnds()
        self.starting = True
        self.stopping = False
        self._counter: Counter[tuple[str, str]] = Counter()
        self.counts: Mapping[tuple[str, str], int] = self._counter
        self.on_measured: list[Callable[[Measure, str, float], None]] = []
        self.on_presence: list[Callable[[wire.Volatile, str], None]] = []
        self._cursors = stores.cursors
        self._began = clock.seconds()
        self._outages = stores.outages
        self.recorder = LinkRecorder(log, stores.outages, stores.cursors, clock)
        self.events = self.recorder.events
        self.log_event = self.recorder.log_event
        self.forget_outages = stores.outages.remove
        self.on_fell, self.on_rose = self.recorder.on_fell, self.recorder.on_rose
        self.held = Held(log, lambda: len(self.links.drivers))
        self.links = Links(self, stores.cursors, partial(make_dialer, self), rng)
        self.link: Callable[[str], LinkDriver | None] = self.links.drivers.get
        self.drain = Drain(self)
        self.subscriptions = Subscriptions(self, log, stores.cursors)
        self.warnings: dict[str, str] = {}
        self.certificates: Sequence[tuple[CertificateRole, str | None, float]] = ()
        self._strangers = Strangers()
        self._history = History()
        self._rules = ChannelRules(config.channels)
        self._volatile = VolatileSequence(
            self.name, f"{rng.getrandbits(64):016x}", config.cluster is not None
        )
        self.on_sister: list[Callable[[str, bool], None]] = []
        self.instances = instances_of(self, config.cluster, stores.cursors, stores.outages)
        self.shared = None if self.instances is None else stores.cursors
        self.dispatcher = Dispatcher(
            log, self.links.drivers, self.subscriptions, self.count, call_when_idle(clock)
        )
        self._tick = LoopingCall(self._ticked)
        self._tick.clock = clock  # type: ignore[assignment]  # it needs no more than ours offers
        self._ticks = 0
        log.on_commit.append(self.dispatcher.committed)
        log.on_trim.append(self._trimmed)

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin all links."""
        self.links.start(self.config.peers)
        self.subscriptions.log_orphans()
        self.starting = False
        if self.instances is not None:
            self.instances.start()
        self._tick.start(_TICK_SECONDS, now=False)

    def stop(self, detail: str) -> Deferred[None]:
        """End all links and subscriptions; fires once the log has committed what waits."""
        self.stopping = True
        if self._tick.running:
            self._tick.stop()
        self.subscriptions.stop()
        self.drain.stop()
        self.links.stop(detail)
        if self.instances is not None:
            self.instances.stop()
        done: Deferred[None] = Deferred()
        self._cursors.close(lambda: self.log.close(lambda: done.callback(None)))
        return done

    def reload(self, config: Config) -> None:
        """Put a new configuration in force; links of peers that it doesn't change stay up."""
        old, self.config = self.config, config
        self.links.reload(old, config)
        for driver in self.links.drivers.values():
            if driver.link.state != "up":
                self._outages.configured(driver.peer, self.clock.seconds(), wall())
        self._rules = ChannelRules(config.channels)
        if [key.name for key in config.api.keys] != [key.name for key in old.api.keys]:
            self.subscriptions.log_orphans()
        self.dispatcher.changed()

    def take_bus(self, bus: Bus) -> None:
        """Exchange volatile messages, presence and wake-ups with the other instances over it."""
        self.bus = self.dispatcher.bus = bus
        bus.on_volatile, bus.on_sister = self.passed, self.on_sister
        bus.warn = self._warn_of_bus
        bus.on_wake = self.log.wake
        bus.holds = lambda peer: self.log.holds(peer) or self.log.holder(peer) is None
        self.log.on_written.append(lambda _: bus.wake())
        self._cursors.on_shared.append(bus.wake)

    def _warn_of_bus(self, text: str | None) -> None:
        if text is None:
            self.warnings.pop("bus", None)
        else:
            self.warnings["bus"] = text

    async def refreshed(self) -> None:
        """Wait until all is known that other instances of this node have noted until now."""
        if self.config.cluster is not None:
            known: Deferred[None] = Deferred()
            self._cursors.refresh(partial(known.callback, None))
            await known

    async def reached(self, offset: int) -> None:
        """Wait until the log here has what was read at another instance; for a second at most."""
        until = self.clock.seconds() + 1.0
        while self.config.cluster is not None and self.log.next < offset:
            if self.clock.seconds() >= until:
                return
            await deferLater(self.clock, 0.01, lambda: None)  # type: ignore[arg-type]

    # -- for the listener (linkd.net.connection.Nodes) -----------------------------------

    def peer(self, name: str) -> PeerSettings | None:
        """Return the configured peer of that name."""
        driver = self.links.drivers.get(name)
        return None if driver is None else driver.settings

    def busy(self) -> float | None:
        """Return after how many seconds newcomers should come back, or None."""
        if self.starting or self.stopping or self.log.unavailable is not None:
            return 1.0
        return self.drain.busy()

    def refused(self, claimed: str | None, address: str, reason: Reason, detail: str) -> None:
        """A connection was refused; status shows it."""
        self._strangers.refused(claimed, address, reason, detail, self.clock.seconds())

    # -- publishing ---------------------------------------------------------------------------

    def publish(self, draft: NewRecords, settled: OnDurable) -> None:
        """Publish records whose encoding has been checked.

        `settled` is called once they are on disk; at once, with offset 0, on a volatile channel.
        The channel's rule adds its `ttl` where the draft has none.
        """
        rule = self._rules.of(draft.channel)
        if rule is None:
            self.log.append(draft, settled)
            return
        if draft.ttl is None and rule.ttl is not None:
            draft = msgspec.structs.replace(draft, ttl=rule.ttl)
        if rule.delivery == "durable":
            self.log.append(draft, settled)
            return
        for one in messages_of(draft):
            self.dispatcher.volatile(self._volatile.make(one), None)
        settled(Appended(0, draft.count))

    def announce(self, channel: str, body: bytes, peers: Collection[str] | None = None) -> None:
        """Send a presence message to the peers that get its channel, or to `peers` alone."""
        records = encode_records((EncodedRecord(body, "", "", JSON),))
        draft = NewRecords(channel, 1, records, wall())
        self.dispatcher.volatile(self._volatile.make(draft, presence=True), None, peers)

    def passed(self, message: wire.Volatile, peer: str) -> None:
        """A volatile message came from a peer or another instance: hand it out and on, once."""
        fate = self._volatile.judge(message)
        if fate == "fresh":
            if not message.presence:
                self.dispatcher.volatile(message, peer)
            for heard in self.on_presence if message.presence else ():
                heard(message, peer)
        elif not message.presence and not peer.startswith(SISTER):
            self.count(fate, peer, message.count)

    def sends(self, peer: str, channel: str) -> bool:
        """Return whether `peer` gets `channel`."""
        return self.links.drivers[peer].replicator.owes(channel)

    # -- what happens by itself -------------------------------------------------------------------

    def _ticked(self) -> None:
        """Do what is due from time to time; a bug in it must not end it for ever."""
        try:
            self._tick_over()
        except Exception as error:  # noqa: BLE001  # logged, and retried at the next tick
            events.emit(
                "node.internal-error", where="tick", detail=f"{type(error).__name__}: {error}"
            )

    def _tick_over(self) -> None:
        """Move all cursors past records that they skip; release what is owed to nobody."""
        self.dispatcher.tick()
        self._ticks += 1
        whole_second = self._ticks % 4 == 0
        if not whole_second and self.log.size_bytes < 0.5 * self.log.max_bytes:
            return  # a thousand idle links must not cost a thousand looks at every tick
        if whole_second:
            self._history.second(self.links.drivers.values(), self.clock.seconds())
        self.links.catch_up()
        self.held.tick()
        if self.config.cluster is None:
            self.links.absent.tick(self.clock.seconds())
        elif whole_second:
            self.links.share_dialing()
            if self.log.unavailable is not None:
                self.links.send_away("the database of the log does not answer here")
            self.links.look_for_absent()
        if whole_second and self.log.is_keeper:
            self.subscriptions.move_on()
        self.log.release(self._low_water())
        if whole_second and self.instances is not None:
            self.instances.tick()
        if whole_second:
            self.subscriptions.age()

    def _low_water(self) -> int:
        """Return the offset below which nobody is owed anything."""
        return min(self.links.low_water(), self.subscriptions.low_water())

    # -- callbacks of drivers and readers ---------------------------------------------------------

    def _trimmed(self, first: int) -> None:
        """Records were trimmed: dispatch what is pending before the links are notified."""
        self.dispatcher.dispatch()
        self.links.trimmed(first)

    def count_absent(self, peer: str) -> Iterator[None]:
        """Count again, in short steps, what a peer without an entry is owed.

        Raises:
            KeyError: No such peer.
            LinkdError: It is configured.
        """
        self._check_absent(peer)
        return self.links.absent.count(peer)

    def forget_peer(self, peer: str, confirmed: bool) -> tuple[int, int]:
        """Return (records, bytes) owed to a peer without an entry; where confirmed, forget it.

        Raises:
            KeyError: No such peer.
            LinkdError: It is configured.
        """
        self._check_absent(peer)
        if confirmed and self.instances is not None and not self.instances.agree():
            raise LinkdError(
                f"another instance has other [[peer]] tables, and may have {peer}: give all"
                " instances the same ones, see `linkd instances`"
            )
        return self.links.absent.forget(peer, confirmed)

    def _check_absent(self, peer: str) -> None:
        if peer in self.links.drivers:
            raise LinkdError(f"{peer} is configured: remove its [[peer]] first, and reload")

    def observe(self, what: Measure, peer: str, seconds: float) -> None:
        """Pass a measurement to every observer."""
        for observe in self.on_measured:
            observe(what, peer, seconds)

    def count(self, what: str, peer: str, records: int) -> None:
        """Count records that were refused, expired, dropped or lost.

        Not by channel: its names are the peer's, without bound.
        """
        self._counter[what, peer] += records

    # -- for the API ------------------------------------------------------------------------------

    def ack(self, consumer: Owned, next: int) -> Deferred[None]:
        """Set a named consumer's cursor; KeyError if there is none."""
        done: Deferred[None] = Deferred()
        self.subscriptions.ack(consumer, next, lambda error: _settle(done, error, None))
        return done

    def move(self, old: Owned, new: Owned) -> Deferred[None]:
        """Give a named consumer another owner and name; KeyError if there is none."""
        done: Deferred[None] = Deferred()
        self.subscriptions.move(old, new, lambda error: _settle(done, error, None))
        return done

    def forget(self, consumer: Owned) -> Deferred[bool]:
        """Remove a named consumer; fires with whether there was one."""
        done: Deferred[bool] = Deferred()
        if not self.subscriptions.forget(consumer, lambda error: _settle(done, error, True)):
            return succeed(False)
        return done

    def peers(self) -> list[str]:
        """Return the names of all peers."""
        return list(self.links.drivers)

    def status(self, links: list[LinkStatus] | None = None, owner: str | None = None) -> NodeStatus:
        """Return the node's status.

        Args:
            links: The states of the links, if the caller has them already.
            owner: Leaves out the consumers of other owners.
        """
        log = self.log
        if links is None:
            links = [self._link_status(driver) for driver in self.links.drivers.values()]
        return NodeStatus(
            node=self.name,
            version=VERSION,
            uptime_seconds=self.clock.seconds() - self._began,
            log=LogStatus(
                log.id,
                log.first,
                log.next,
                log.size_bytes,
                log.max_bytes,
                log.full,
                self.recorder.losses.sentences(owner),
                log.stalled(),
            ),
            consumers=self.subscriptions.statuses(owner),
            links=links,
            warnings=[*self.warnings.values(), *self.links.absent.warnings()],
            absent=self.links.absent.statuses(),
            refused=self._strangers.recent(self.clock.seconds()) if owner is None else [],
            certificates=[
                CertificateStatus(role, peer, ends - wall())
                for role, peer, ends in self.certificates
            ],
            draining=self.drain.active,
            instance=None if self.instances is None else self.instances.name,
        )

    def link_status(self, peer: str) -> LinkStatus | None:
        """Return what is true now of one link; None if there is no such peer."""
        driver = self.links.drivers.get(peer)
        return None if driver is None else self._link_status(driver)

    def _link_status(self, driver: LinkDriver) -> LinkStatus:
        own = self.own_link(driver)
        return own if self.instances is None else self.instances.link(own)

    def own_link(self, driver: LinkDriver) -> LinkStatus:
        """Return what a link is at this instance."""
        outage = self._outages.current(driver.peer, self.clock.seconds())
        return driver.status(outage, self._outages.last_reason(driver.peer))

    def outages(
        self, peer: str | None = None, since_seconds: float | None = None, drills: bool = True
    ) -> Iterator[Outage]:
        """Yield the recorded outages, oldest first; KeyError if there is no such peer."""
        if peer is not None:
            self._check_peer(peer)
        since = None if since_seconds is None else wall() - since_seconds
        return self._outages.recorded(self.clock.seconds(), peer, since, drills)

    def availability(self, peer: str | None = None, drills: bool = True) -> Iterator[Availability]:
        """Yield the availability of the links, or of one; KeyError if there is no such peer."""
        if peer is not None:
            self._check_peer(peer)
        peers = [driver.peer for driver in self.links.drivers.values()] if peer is None else [peer]
        now, stamp = self.clock.seconds(), wall()
        return (self._outages.availability(one, now, stamp, drills) for one in peers)

    def history(self, peer: str) -> LinkHistory:
        """Return the last hour of one link; KeyError if there is no such peer."""
        self._check_peer(peer)
        return self._history.of(peer, wall())

    def kick(self, peer: str) -> None:
        """Try again at once, unless it is up; KeyError if there is no such peer."""
        driver = self.links.drivers[peer]
        if driver.link.state != "up":
            driver.kick()
            self.links.command(peer, "kick")
            events.emit("link.kicked", peer=peer)

    def drill_began(self, peer: str, drill: str, seconds: float) -> None:
        """A fault is made on a link on purpose; KeyError if there is no such peer."""
        self._check_peer(peer)
        self._outages.drilled(peer, self.clock.seconds() + seconds)
        detail = f"{drill} for {seconds:g} s, made on purpose"
        self.log_event("warn", "drill.started", peer=peer, drill=drill, detail=detail)

    def drill_ended(self, peer: str, drill: str, verdict: str | None) -> None:
        """It is over; KeyError if there is no such peer."""
        self._check_peer(peer)
        self._outages.drilled(peer, self.clock.seconds())
        detail = f"{drill}: {verdict or 'broken off'}"
        self.log_event(
            "info", "drill.ended", peer=peer, drill=drill, verdict=verdict, detail=detail
        )

    def _check_peer(self, peer: str) -> None:
        """Raise KeyError if there is no such peer."""
        if peer not in self.links.drivers:
            raise KeyError(peer)

    def resync(self, peer: str, confirmed: bool) -> Deferred[str]:
        """Forget how far this node has the peer's log: the peer then goes by its own notes."""
        done = resync(self.name, self.log, self.links.drivers[peer], confirmed)
        return done.addCallback(self._resynced, peer) if confirmed else done

    def _resynced(self, text: str, peer: str) -> str:
        """Let the instance that has the peer restart the link too."""
        self.links.command(peer, "rejoin")
        return text

    def trim(self, before: int, confirmed: bool) -> tuple[int, int]:
        """Return (records, of them owed) below `before`; delete them where confirmed."""
        before = min(before, self.log.next)
        owed = max(0, before - max(self._low_water(), self.log.first))
        if not confirmed:
            return max(0, before - self.log.first), owed
        first, count = self.log.first, self.log.trim(before)
        if count:
            self.log_event("warn", "log.trimmed", first=first, next=self.log.first, records=count)
        return count, owed


def _settle(done: Deferred[_Result], error: Exception | None, result: _Result) -> None:
    """Fire `done`."""
    if error is None:
        done.callback(result)
    else:
        done.errback(error)


_DRAIN_POLL_SECONDS: Final = 0.02

MAX_BUSY_SECONDS: Final = 10.0
"""The longest Retry-After of a draining node, so that peers return soon after an undo."""

BUSY_SHARE: Final = 0.25
"""Retry-After as a share of the time that the drain has lasted: a long drain costs few attempts."""

_DRAIN_WARNING = "drain"


class Drain:
    """The drain of one node: an operator begins and undoes it; it does not outlive the process.

    All links end in one moment, once the peers have acknowledged what they were owed when the drain
    began and have received our acknowledgements, or after a time limit. So an upgrade that follows
    keeps each link away for as short a time as possible.

    Args:
        node: The node.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._clock = node.clock
        self._began: float | None = None
        self._deadline = 0.0
        self._retry_after = 0.0
        self._unsettled: dict[LinkDriver, tuple[int, int]] = {}
        self._has_ended_links = False
        self._took: float | None = None  # until all connections were closed
        self._timer: DelayedCall | None = None

    @property
    def active(self) -> bool:
        """Whether the node drains, or has drained."""
        return self._began is not None

    def busy(self) -> float | None:
        """Return after how many seconds a dialer should come back; None: the node takes links."""
        if self._began is None:
            return None
        lasted = self._clock.seconds() - self._began
        return max(self._retry_after, min(BUSY_SHARE * lasted, MAX_BUSY_SECONDS))

    def begin(self, timeout: float, retry_after: float) -> None:
        """Begin to drain; if the node drains already, set the time limit again.

        Args:
            timeout: Seconds to wait for acknowledgements before the links end.
            retry_after: Seconds after which the peers should come back.
        """
        now = self._clock.seconds()
        self._deadline = now + timeout
        self._retry_after = retry_after
        if self._began is not None:
            return
        self._began = now
        self._took = None
        node = self._node
        node.warnings[_DRAIN_WARNING] = (
            "this node is draining and takes no links: run `linkd drain --undo`, or restart it"
        )
        drivers = node.links.drivers.values()
        self._unsettled = {
            driver: (node.log.next, driver.replicator.session.inbound.received or 0)
            for driver in drivers
            if driver.connection is not None
        }
        node.log_event(
            "warn",
            "node.drain-started",
            links=len(self._unsettled),
            detail=f"no new links; links end once acknowledged, within {timeout:g} s",
        )
        self._poll()

    def undo(self) -> None:
        """Take links again, and start dialing; nothing happens if the node does not drain."""
        if self._began is None:
            return
        cancel(self._timer)
        self._began = None
        self._unsettled = {}
        self._has_ended_links = False
        self._node.warnings.pop(_DRAIN_WARNING, None)
        self._node.log_event("info", "node.drain-undone", detail="links are taken again")
        for driver in tuple(self._node.links.drivers.values()):
            if driver.link.state == "stopped":  # by the drain, or added by a reload meanwhile
                driver.start()

    def stop(self) -> None:
        """Stop polling: the node stops."""
        cancel(self._timer)

    def status(self) -> DrainStatus:
        """Return how far the drain is."""
        drivers = self._node.links.drivers.values()
        connected = [driver for driver in drivers if driver.is_connected]
        began = self._began
        return DrainStatus(
            draining=began is not None,
            done=self._took is not None and began is not None,
            seconds=None if began is None else self._took or self._clock.seconds() - began,
            links=len(connected),
            unacknowledged=sum(not self._is_settled(driver) for driver in self._unsettled),
            owed_records=sum(driver.replicator.session.outbound.owed_records for driver in drivers),
        )

    def _poll(self) -> None:
        """End the links once all are settled or the time is up; then wait until they are gone."""
        self._timer = None
        assert self._began is not None  # `undo` cancels the timer
        now = self._clock.seconds()
        if not self._has_ended_links:
            for driver in [driver for driver in self._unsettled if self._is_settled(driver)]:
                del self._unsettled[driver]
            if not self._unsettled or now >= self._deadline:
                self._end_links()
        if self._has_ended_links and not self._is_connected():
            self._took = now - self._began
            self._node.log_event(
                "info",
                "node.drained",
                drain_seconds=round(self._took, 3),
                detail="all links have ended; dialers get 503 with Retry-After",
            )
            return
        self._timer = self._clock.callLater(_DRAIN_POLL_SECONDS, self._poll)

    def _is_settled(self, driver: LinkDriver) -> bool:
        """Return whether both ends have acknowledged what was owed when the drain began."""
        if driver.connection is None or driver.link.state == "diverged":
            return True  # a diverged link acknowledges nothing
        sent, received = self._unsettled[driver]
        session = driver.replicator.session
        outbound, inbound = session.outbound, session.inbound
        is_acked = outbound.acked >= sent or not outbound.owed_records
        return is_acked and inbound.committed >= received

    def _is_connected(self) -> bool:
        return any(driver.is_connected for driver in self._node.links.drivers.values())

    def _end_links(self) -> None:
        self._has_ended_links = True
        self._unsettled = {}
        detail = f"{self._node.name} is draining, for a restart or for maintenance"
        for driver in tuple(self._node.links.drivers.values()):
            driver.stop(detail, self._retry_after)
