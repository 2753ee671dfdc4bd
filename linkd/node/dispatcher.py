"""Dispatch committed and volatile records by channel to peers and subscriptions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import Literal

import msgspec

from linkd import events
from linkd.config import ChannelSettings
from linkd.core.session_effects import NotRelayed
from linkd.errors import BodyTooLarge, Gap
from linkd.log.interface import Log
from linkd.log.origins import Usage
from linkd.node.link_driver import LinkDriver
from linkd.node.subscriptions import Follower, Subscriptions
from linkd.protocol import peer as wire
from linkd.protocol.channels import Patterns
from linkd.protocol.peer import MAX_VOLATILE_BYTES, Volatile, sendable
from linkd.protocol.records import MAX_BATCH_BYTES, Batch, NewRecords, Origin, runs_of

_CHANNELS_KNOWN = 100_000


class ChannelRules:
    """The rules in force; each channel is matched once.

    Args:
        settings: As configured: the first that matches counts.
    """

    def __init__(self, settings: Sequence[ChannelSettings]) -> None:
        self._rules = [(Patterns((rule.name,)), rule) for rule in settings]
        self._known: dict[str, ChannelSettings | None] = {}

    def of(self, channel: str) -> ChannelSettings | None:
        """Return how messages of `channel` are treated; None: durable without ttl."""
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
"""Channels of runs whose volatile sequence is remembered, of all nodes."""

WINDOW = 1024
"""How far below the highest sequence of a channel it is still known which ones came."""

_Key = tuple[str, str]

Fate = Literal["fresh", "repeated", "stale"]
"""`repeated`: it is here already. `stale`: too far below newer ones to know; it is dropped."""


class VolatileSequence:
    """Numbers our own volatile messages and recognises others' that came before.

    Each channel of each run is judged alone: what comes faster over another path, or what another
    peer forges there, says nothing about it. Keys are bounded; a node that has more than its
    share of them pushes out its own.

    Args:
        node: Our name.
        run: Random, new at every start, so that the numbers may begin anew.
    """

    def __init__(self, node: str, run: str) -> None:
        self._node = node
        self._run = run
        self._sequence = 0
        self._nodes: dict[str, dict[_Key, tuple[int, int]]] = {}  # (run, channel): highest, mask
        self._usage = Usage(MAX_KEYS)

    def make(self, draft: NewRecords, presence: bool = False) -> Volatile:
        """Return a publish, or what this node announces of its clients, as a message."""
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
        """Return whether a message is new here, and remember it."""
        if message.node == self._node:
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
        """Forget the oldest keys of the node that has the most."""
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
    """Return a publish as drafts that are one message each.

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
"""What was committed in less than so many bytes is handed out at once."""

EACH_BYTES = 1 << 16
"""To whom about so much goes at once, it gains nothing from more."""

PUT_OFF_SECONDS = 0.02
"""A loop that has no rest hands out so seldom.

What each gets of a commit that is for many is little, and handing out, sending and acknowledging it
costs nearly as much as more would (measured: 100 channels, 50 peers: a sixth of the processor
time). Nobody waits longer for it than for the rest of what keeps the loop busy.
"""


WhenIdle = Callable[[Callable[[], None], float], object]
"""Makes a call once nothing else is to be done, after so many seconds at the latest."""


class Dispatcher:
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
                    outbound.add_backlog(batch.count, len(batch.records), batch.next)
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
                batches = self._log.read(position, _ANY_SIZE)
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
        events.emit(
            "node.internal-error", where="handing out", detail=f"{type(error).__name__}: {error}"
        )
        return False
    return True
