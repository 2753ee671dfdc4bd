"""Dispatch committed and volatile records by channel to peers and subscriptions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Literal

import msgspec

from linkd import events
from linkd.config import ChannelSettings
from linkd.core.session_effects import NotRelayed
from linkd.errors import BodyTooLarge, Gap
from linkd.log.base import Log
from linkd.log.origins import Usage
from linkd.node.bus import SISTER, Bus
from linkd.node.link_driver import LinkDriver
from linkd.node.subscriptions import Follower, Subscriptions
from linkd.protocol import peer as wire
from linkd.protocol.channels import Patterns
from linkd.protocol.peer import MAX_VOLATILE_BYTES, Volatile, sendable
from linkd.protocol.records import MAX_BATCH_BYTES, Batch, NewRecords, Origin, runs_of

_CHANNELS_KNOWN = 100_000


class ChannelRules:
    """The channel rules in force, cached by channel.

    Args:
        settings: As configured: the first that matches counts.
    """

    def __init__(self, settings: Sequence[ChannelSettings]) -> None:
        self._rules = [(Patterns((rule.name,)), rule) for rule in settings]
        self._known: dict[str, ChannelSettings | None] = {}

    def of(self, channel: str) -> ChannelSettings | None:
        """Return the rule for `channel`; None means durable without ttl."""
        try:
            return self._known[channel]
        except KeyError:
            pass
        if len(self._known) >= _CHANNELS_KNOWN:
            self._known.clear()
        found = next((rule for patterns, rule in self._rules if patterns.match(channel)), None)
        self._known[channel] = found
        return found


MAX_KEYS = 100_000
"""Maximum number of (run, channel) pairs with a remembered sequence, over all nodes."""

WINDOW = 1024
"""Size of the window below a channel's highest sequence in which repeats are detected."""

_Key = tuple[str, str]

Fate = Literal["fresh", "repeated", "stale"]
"""`repeated`: received before. `stale`: below the window, so unknown; it is dropped."""


class VolatileSequence:
    """Numbers this node's volatile messages and detects repeated ones of other nodes.

    Each channel of each run is tracked separately, so that faster paths and forged sequences of
    another peer do not affect it. Keys are bounded; at the bound the node
    with the most loses its oldest eighth.

    Args:
        node: Our name.
        run: A random word, new at every start, so that the sequence can restart.
        has_sisters: Other instances have our name too, and other runs.
    """

    def __init__(self, node: str, run: str, has_sisters: bool = False) -> None:
        self._node = node
        self._has_sisters = has_sisters
        self._run = run
        self._sequence = 0
        self._nodes: dict[str, dict[_Key, tuple[int, int]]] = {}  # (run, channel): highest, mask
        self._usage = Usage(MAX_KEYS)

    def make(self, draft: NewRecords, presence: bool = False) -> Volatile:
        """Return a publish, or a presence announcement of this node, as a numbered message."""
        self._sequence += 1
        return Volatile(
            draft.channel,
            draft.count,
            draft.records,
            sendable(draft.time),
            draft.ttl,
            self._node,
            self._run,
            self._sequence,
            presence,
        )

    def judge(self, message: Volatile) -> Fate:
        """Classify a message, and remember it."""
        if message.node == self._node and (message.run == self._run or not self._has_sisters):
            return "repeated"
        node, key = message.node, (message.run, message.channel)
        known = self._nodes.get(node, {})
        found, sequence = known.get(key), message.sequence
        if found is None:
            self._make_room()
            self._usage.add(node, 1)
            self._nodes.setdefault(node, {})[key] = (sequence, 1)
            return "fresh"
        highest, mask = found
        if sequence > highest:
            shift = min(sequence - highest, WINDOW)
            known[key] = (sequence, (mask << shift | 1) & _ALL)
            return "fresh"
        if highest - sequence >= WINDOW:
            return "stale"
        bit = 1 << (highest - sequence)
        if mask & bit:
            return "repeated"
        known[key] = (highest, mask | bit)
        return "fresh"

    def _make_room(self) -> None:
        """Forget the oldest keys of the node with the most keys."""
        usage = self._usage
        if usage.total < usage.most:
            return
        name = usage.largest()
        known = self._nodes[name]
        oldest = list(islice(known, max(1, len(known) // 8)))
        for key in oldest:
            del known[key]
        if not known:
            del self._nodes[name]
        usage.add(name, -len(oldest))


_ALL = (1 << WINDOW) - 1


def messages_of(draft: NewRecords) -> list[NewRecords]:
    """Split a publish into drafts of one message each.

    Raises:
        BodyTooLarge: A record is larger than a message may be.
    """
    runs = runs_of(draft.records, draft.count, MAX_BATCH_BYTES)
    largest = max([len(records) for _, records in runs])
    if largest > MAX_VOLATILE_BYTES:
        raise BodyTooLarge(
            f"expected a message of at most {MAX_VOLATILE_BYTES} bytes on a volatile channel, got"
            f" {largest}"
        )
    if len(runs) == 1:
        return [draft]
    return [msgspec.structs.replace(draft, count=count, records=records) for count, records in runs]


def as_batch(message: Volatile, stamp: float) -> Batch:
    """Return a volatile message as a batch without an offset, for local readers."""
    origin = Origin(message.node, message.run, "", 0)
    return Batch(
        0,
        message.channel,
        message.count,
        message.records,
        message.time,
        origin,
        ttl=message.ttl,
        stamp=stamp,
    )


_ANY_SIZE = 1 << 62

FLOW_BYTES = 1 << 17
"""Commits smaller than this are dispatched immediately."""

EACH_BYTES = 1 << 16
"""A receiver of about this many bytes gains nothing from larger batches."""

PUT_OFF_SECONDS = 0.02
"""Maximum delay of a dispatch on a saturated event loop.

A commit with records for many receivers has little for each, and dispatching, sending and
acknowledging a little costs nearly as much as a larger batch (measured with 100 channels and 50
peers: a sixth of the processor time). The delay is no longer than that of the loop's other work.
"""


WhenIdle = Callable[[Callable[[], None], float], object]
"""Defers a call until the event loop is idle, by the given seconds at most."""


class Dispatcher:
    """Dispatches committed batches and volatile messages to links and subscriptions.

    Receivers that keep up get their batches from each commit; `tick` advances all of them over the
    others, so that a commit costs nothing for the thousand peers that it does not concern.

    Args:
        log: The node's log.
        drivers: The node's links, by peer.
        readers: The subscriptions.
        count: Counts dropped records.
        idle: Defers a call until the event loop is idle; None where the loop cannot.

    Attributes:
        bus: Brings volatile messages to the other instances of this node, where there are some.
    """

    def __init__(
        self,
        log: Log,
        drivers: dict[str, LinkDriver],
        readers: Subscriptions,
        count: Callable[[str, str, int], None],
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
        self._bytes = 0  # of the batches to dispatch
        self._flows = self._waits = self._dispatching = False
        self.bus: Bus | None = None

    def changed(self) -> None:
        """Drop cached routes: the patterns of some peer have changed."""
        self._routes.clear()
        self._one_way.clear()

    def route(self, channel: str) -> tuple[LinkDriver, ...]:
        """Return the links whose peers get `channel`."""
        route = self._routes.get(channel)
        if route is None:
            if len(self._routes) >= _CHANNELS_KNOWN:
                self._routes.clear()
            route = tuple(d for d in self._drivers.values() if d.replicator.owes(channel))
            self._routes[channel] = route
        return route

    def committed(self, next: int) -> None:
        """Route committed batches to receivers that keep up; count the owed records."""
        seen, self._seen = self._seen, next
        for_drivers, for_followers = self._for_drivers, self._for_followers
        for batch in self._between(seen, next):
            self._bytes += len(batch.records)
            for driver in self.route(batch.channel):
                outbound = driver.replicator.session.outbound
                gets = outbound.add(batch)
                if gets:
                    for_drivers.setdefault(driver, []).append(batch)
                elif gets is None:
                    driver.replicator.not_relayed(NotRelayed(batch.channel, batch.count, False))
            for follower in self._readers.interested(batch.channel):
                for_followers.setdefault(follower, []).append(batch)
        if not self._flows or self._idle is None:
            self.dispatch()
        elif not self._waits:
            self._waits = True
            self._idle(self.dispatch, PUT_OFF_SECONDS)

    def _between(self, position: int, next: int) -> list[Batch]:
        """Return the batches between two offsets, across gaps: a new epoch may begin far above."""
        found: list[Batch] = []
        while position < next:
            try:
                batches = self._log.read(position, _ANY_SIZE)
            except Gap as gap:
                position = gap.first
                continue
            if not batches:
                break
            found = found + batches if found else batches
            position = batches[-1].offset + batches[-1].count
        return found

    def dispatch(self) -> None:
        """Dispatch until nothing is left: receivers may commit more meanwhile."""
        if self._dispatching:
            return
        self._dispatching = True
        self._waits = False
        try:
            while True:
                end = self._seen
                for_drivers, self._for_drivers = self._for_drivers, {}
                for_followers, self._for_followers = self._for_followers, {}
                size, self._bytes = self._bytes, 0
                receivers = len(for_drivers) + len(for_followers)
                self._flows = FLOW_BYTES <= size < EACH_BYTES * receivers
                for driver, owed in for_drivers.items():
                    self._offer(driver, owed, end)
                for follower, wanted in for_followers.items():
                    if not _call_safely(follower.offer, wanted, end):
                        _call_safely(follower.end, "linkd made a mistake; its log has the details")
                self._readers.offered = end
                if not (self._for_drivers or self._for_followers):
                    break
        finally:
            self._dispatching = False

    def _offer(self, driver: LinkDriver, owed: list[Batch], next: int) -> None:
        """Pass batches to a link; where that fails the link has missed some, and rejoins."""
        if not _call_safely(driver.replicator.offer, owed, next):
            _call_safely(driver.rejoin, "the link restarts after a bug in this node")

    def tick(self) -> None:
        """Advance all receivers over batches that are not for them."""
        self.dispatch()
        end = self._log.next
        if end != self._ticked:
            self._ticked = end
            for driver in self._drivers.values():
                if driver.replicator.session.outbound.log_next < end:
                    self._offer(driver, [], end)

    def one_way(self, channel: str) -> list[str]:
        """Return the peers that receive `channel` and from which this node does not take it."""
        found = self._one_way.get(channel)
        if found is None:
            if len(self._one_way) >= _CHANNELS_KNOWN:
                self._one_way.clear()
            found = self._one_way[channel] = [
                driver.peer
                for driver in self.route(channel)
                if not driver.replicator.session.inbound.takes(channel)
            ]
        return found

    def volatile(
        self, message: wire.Volatile, source: str | None, only: Collection[str] | None = None
    ) -> None:
        """Dispatch a volatile message, of this node or peer `source`, to readers and other peers.

        With `only` to those peers alone. No reader gets what is for the nodes themselves. A source
        or peer may be another instance of this node: what it has came over the bus, and does not
        go back there.
        """
        is_ours = message.presence
        bus, is_relayed = self.bus, source is not None
        if bus is not None:
            is_relayed = self._send_to(bus, message, source, only)
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
            if is_relayed and not driver.replicator.session.outbound.relays:
                if is_ours:
                    continue
                driver.replicator.not_relayed(NotRelayed(message.channel, message.count, False))
                continue
            payload = payload or wire.encode(message)
            if driver.volatile(payload) or is_ours:
                continue
            if bus is None or bus.holds(driver.peer):  # else the instance that has it counts
                self._count("dropped", driver.peer, message.count)

    @staticmethod
    def _send_to(
        bus: Bus, message: wire.Volatile, source: str | None, only: Collection[str] | None
    ) -> bool:
        """Send what did not come from there to the bus; return whether another node made it."""
        if source is not None and source.startswith(SISTER):
            return message.node != bus.node
        if only is None or any(peer.startswith(SISTER) for peer in only):
            bus.send(message)
        return source is not None


def _call_safely(call: Callable[..., object], *arguments: object) -> bool:
    """Call, and return whether it succeeded; an exception is logged and goes no further."""
    try:
        call(*arguments)
    except Exception as error:  # noqa: BLE001 - the other receivers go on
        events.emit(
            "node.internal-error", where="dispatch", detail=f"{type(error).__name__}: {error}"
        )
        return False
    return True
