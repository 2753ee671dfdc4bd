"""How many newcomers a listener takes: bounds on those without a hello, and on their rate.

Where places run out the oldest stranger goes, first of those that have not asked for a token: a
newcomer that does something has its time however many connections idle. Addresses from which a peer
was greeted have places and tokens that strangers do not get.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from linkd.config import LimitSettings
from linkd.net.greeted import GreetedAddresses
from linkd.net.limits import origin

_TOLD: Final = 2 / 3
"""Part of its wait that a newcomer is told: it waits up to as much again, half more in the mean.

So a crowd comes at the rate; told all of it, 5,000 that are taken at 200 a second took half as
long again (simulated, tests/unit/net/test_newcomers.py).
"""

MAX_ADDRESSES: Final = 16_384
"""So many addresses are counted apart; above that counting starts anew."""

RESERVED: Final = 1 / 4
"""Part of places and tokens that only addresses get from which a peer was greeted."""

FRESH_SECONDS: Final = 10.0
"""A stranger's address that had no token for so long comes ahead of those that had one."""

_PLACES_PER_PEER: Final = 2
"""For each peer greeted from an address: a connection and the one that replaces it."""


class Wait(NamedTuple):
    """A newcomer is to come back: why, and after how many seconds."""

    reason: str
    seconds: float


class Place:
    """The place of one connection without a hello.

    Args:
        address: What it counts as.
        push_out: Ends the connection, with a sentence that says why.
    """

    __slots__ = ("address", "has_asked", "is_held", "is_safe", "push_out")

    def __init__(self, address: str, push_out: Callable[[str], None]) -> None:
        self.address = address
        self.push_out = push_out
        self.has_asked = False
        self.is_safe = False
        self.is_held = True


class _Queue:
    """Places in the order in which they would be taken away: the mute first, each oldest first."""

    __slots__ = ("_asked", "_mute")

    def __init__(self) -> None:
        self._mute: dict[Place, None] = {}
        self._asked: dict[Place, None] = {}

    def __len__(self) -> int:
        return len(self._mute) + len(self._asked)

    def add(self, place: Place) -> None:
        (self._asked if place.has_asked else self._mute)[place] = None

    def discard(self, place: Place) -> None:
        self._mute.pop(place, None)
        self._asked.pop(place, None)

    def first(self) -> Place | None:
        return next(iter(self._mute or self._asked), None)


class _Bucket:
    """Tokens that come back at a rate, a second's worth at most.

    Those sent away are spread over the seconds to come, but hold no token: if each of a crowd took
    one by asking, its own returns would keep it out for ever.
    """

    __slots__ = ("at", "away", "given", "tokens")

    def __init__(self, tokens: float, at: float) -> None:
        self.tokens = tokens
        self.away = 0.0
        self.at = at
        self.given: float | None = None

    def take(self, rate: float, now: float, keep: float = 0.0) -> float:
        """Take one token and leave a part of all; return 0, or the seconds to be told."""
        burst = max(1.0, rate)
        back = (now - self.at) * rate
        self.tokens = min(burst, self.tokens + back)
        self.away = max(0.0, self.away - back)
        self.at = now
        wanted = 1.0 + min(keep * burst, burst - 1.0)
        if self.tokens >= wanted:
            self.tokens -= 1.0
            return 0.0
        self.away = min(self.away + 1.0, 60.0 * rate)
        return _TOLD * (self.away + wanted - self.tokens) / rate


class Admission:
    """Counts the connections that have not said hello; an IPv6 /64 counts as one address.

    Args:
        limits: The bounds; may be replaced.
        greeted: Addresses from which peers were greeted.

    Attributes:
        limits: The bounds in force.
        greeted: Addresses from which peers were greeted.
        share: Newcomers' share of this process's descriptors, or None: the settings alone count.
        pending: Connections without a hello.
    """

    def __init__(self, limits: LimitSettings, greeted: GreetedAddresses | None = None) -> None:
        self.limits = limits
        self.greeted = GreetedAddresses() if greeted is None else greeted
        self.share: int | None = None
        self.pending = 0
        self._strangers = _Queue()
        self._here: dict[str, _Queue] = {}
        self._counts: dict[str, int] = {}
        self._all: _Bucket | None = None
        self._rates: dict[str, _Bucket] = {}

    @property
    def places(self) -> int:
        """How many connections without a hello there may be."""
        most = self.limits.pending
        return most if self.share is None else min(most, self.share)

    def full(self) -> str | None:
        """Return why there is no place for a newcomer, or None.

        Strangers make way; peers, and who may be one by the address, do not.
        """
        if self.pending >= self.places and not self._strangers:
            return f"{self.pending} connections have not said hello"
        return None

    def enter(self, address: str, push_out: Callable[[str], None]) -> Place:
        """Give a newcomer a place; where there is none, the oldest stranger loses its own.

        Args:
            address: Where it comes from.
            push_out: Ends the newcomer's connection when its place is taken away.
        """
        place = Place(origin(address), push_out)
        here = self._counts.get(place.address, 0)
        peers = self.greeted.peers_at(place.address)
        gone: Place | None = None
        if here >= max(self.limits.pending_per_address, _PLACES_PER_PEER * peers):
            gone = self._here[place.address].first()
            why = f"{here} connections from {address} have not said hello"
        elif self.pending >= self.places or (not peers and self._strangers_fill()):
            gone = self._strangers.first()
            why = f"{self.pending} connections have not said hello"
        if gone is not None:
            self.leave(gone)
            gone.push_out(f"{why}: the oldest was closed")
        self.pending += 1
        self._counts[place.address] = self._counts.get(place.address, 0) + 1
        self._queue_of(place).add(place)
        if not peers:
            self._strangers.add(place)
        return place

    def asked(self, place: Place) -> None:
        """Note that a newcomer got a token: it goes behind those that have done nothing."""
        if place.is_held and not place.has_asked and not place.is_safe:
            place.has_asked = True
            for queue in (self._queue_of(place), self._strangers):
                size = len(queue)
                queue.discard(place)
                if len(queue) < size:
                    queue.add(place)

    def proved(self, place: Place) -> None:
        """Note that a newcomer has proved to be a peer: its place is not taken away."""
        place.is_safe = True
        self._strangers.discard(place)
        self._queue_of(place).discard(place)

    def leave(self, place: Place) -> None:
        """Free a place: its connection has said hello, has gone, or makes way."""
        if not place.is_held:
            return
        place.is_held = False
        self.pending -= 1
        self._strangers.discard(place)
        self._queue_of(place).discard(place)
        self._counts[place.address] -= 1
        if not self._counts[place.address]:
            del self._counts[place.address]
            self._here.pop(place.address, None)

    def _queue_of(self, place: Place) -> _Queue:
        return self._here.setdefault(place.address, _Queue())

    def _strangers_fill(self) -> bool:
        """Return whether strangers have all places that they may have."""
        reserved = int(self.places * RESERVED) if self.greeted else 0
        return len(self._strangers) >= self.places - reserved

    def rate(self, address: str, now: float) -> Wait | None:
        """Count one handshake; return when to come back if there are too many a second.

        Args:
            address: Where it comes from.
            now: Seconds on the monotonic clock.
        """
        limits = self.limits
        address = origin(address)
        if len(self._rates) >= MAX_ADDRESSES and address not in self._rates:
            self._rates.clear()
        peers = self.greeted.peers_at(address)
        each = limits.handshakes_per_second_per_address + peers
        bucket = self._rates.get(address)
        if bucket is None:
            bucket = self._rates[address] = _Bucket(max(1.0, each), now)
        is_fresh = bucket.given is None or now - bucket.given >= FRESH_SECONDS
        seconds = bucket.take(each, now)
        if seconds:
            return Wait(f"more than {each:g} connections a second from {address}", seconds)
        if self._all is None:
            self._all = _Bucket(max(1.0, limits.handshakes_per_second), now)
        is_known = peers or not self.greeted  # a hub that knows nobody yet has nobody to prefer
        keep = 0.0 if is_known else RESERVED * (1 if is_fresh else 2)
        seconds = self._all.take(limits.handshakes_per_second, now, keep)
        if seconds:
            return Wait(f"more than {limits.handshakes_per_second:g} connections a second", seconds)
        bucket.given = now
        return None
