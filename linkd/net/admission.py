"""Admit new connections: by what a handshake costs, with slots reserved for known addresses.

Addresses of peers are admitted as fast as the event loop can work; the time for strangers is
bounded, and they are refused first.

Addresses from which a peer was greeted have slots and tokens that strangers do not get. An address
proves nothing else. The table of addresses is kept over restarts, because all peers reconnect just
after one.

Where slots run out the oldest stranger is closed, first among those that have not sent a request:
so an active newcomer keeps its time however many connections are idle.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec

from linkd.config import LimitSettings
from linkd.errors import is_passing
from linkd.events import emit
from linkd.log.files import DiskFiles
from linkd.log.segment import read_small, write_small
from linkd.net.rate_limit import origin

KEPT_SECONDS: Final = 30 * 86_400.0
"""An address without a greeting for this long is forgotten; only running time counts."""

PER_PEER: Final = 2
"""Addresses kept for each peer, the newest: a peer that moves keeps both for a while."""

FILE: Final = "greeted"
"""The table's name in the state directory."""

_VERSION: Final = 2
"""2 appends the measured rate; 1 is still read."""

_EVERY: Final = 3600.0
"""Interval of writing the table where only times have changed."""

_RETRY: Final = 60.0
_PER_SECOND: Final = 1000
"""Addresses that delay the next write by one second, so that a crowd costs few writes."""


ASSUMED_RATE: Final = 500.0
"""Handshakes a second that a node is taken to do until that has been measured."""

MEASURED: Final = 100
"""Handshakes over whose processor time the rate is measured."""

BURST_SECONDS: Final = 3.0
"""They must come within this time: otherwise other work would count."""

SLOWER_PART: Final = 1 / 4
"""A slower rate counts for this part: other work may have come among the handshakes."""


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    """The file: by peer, addresses and how many seconds ago the peer was greeted from there."""

    version: int
    peers: dict[str, dict[str, float]] = {}
    handshakes_per_second: Annotated[float, msgspec.Meta(ge=1, le=1e6)] = ASSUMED_RATE


class GreetedAddresses:
    """The addresses of greeted peers; an IPv6 /64 counts as one.

    Args:
        path: The file; None: nothing is kept over a restart.
        now: Seconds on the monotonic clock.
        processor: Returns the seconds of processor time that the reactor's thread has used.

    Attributes:
        handshakes_per_second: How many this node can do, as last measured.
    """

    def __init__(
        self,
        path: Path | None = None,
        now: float = 0.0,
        processor: Callable[[], float] = time.thread_time,
    ) -> None:
        self._path = path
        self._processor = processor
        self._burst = (now, 0.0, 0)  # since when, processor time then, handshakes
        self._seen: dict[str, dict[str, float]] = {}
        self._peers: Counter[str] = Counter()
        self._is_new = False
        self._written = now
        self._retry = 0.0
        table = self._read()
        self.handshakes_per_second = table.handshakes_per_second
        for peer, addresses in table.peers.items():
            self._seen[peer] = {each: now - age for each, age in addresses.items()}
            self._peers.update(addresses.keys())

    def __bool__(self) -> bool:
        """Return whether any peer was greeted."""
        return bool(self._peers)

    def peers_at(self, address: str) -> int:
        """Return how many peers were greeted from `address` (as `rate_limit.origin` counts it)."""
        return self._peers[address]

    def greeted(self, peer: str, address: str, now: float) -> None:
        """Note that a peer has proved its identity from an address."""
        place = origin(address)
        seen = self._seen.setdefault(peer, {})
        if place not in seen:
            self._is_new = True
            self._peers[place] += 1
        seen[place] = now
        self._measure(now)
        while len(seen) > PER_PEER:
            self._forget(peer, min(seen, key=seen.__getitem__))

    def _measure(self, now: float) -> None:
        """Measure the processor time of handshakes while many come at once."""
        since, used, count = self._burst
        if not count or now - since > BURST_SECONDS:
            self._burst = (now, self._processor(), 1)
        elif count < MEASURED:
            self._burst = (since, used, count + 1)
        else:
            before, rate = self.handshakes_per_second, count / max(self._processor() - used, 1e-6)
            if rate < before:
                rate = before + SLOWER_PART * (rate - before)
            self.handshakes_per_second = min(max(rate, 1.0), 1e6)
            self._burst = (now, 0.0, 0)
            self._is_new = True

    def retain(self, peers: Collection[str]) -> None:
        """Forget all but these peers."""
        for peer in [each for each in self._seen if each not in peers]:
            for place in list(self._seen[peer]):
                self._forget(peer, place)

    def to_write(self, now: float) -> bytes | None:
        """Return the new content of the file for `write`, or None where that can wait."""
        waited = now - self._written
        if not (self._peers or self._is_new):
            return None
        soon = max(self._retry, len(self._peers) / _PER_SECOND)
        if waited < (soon if self._is_new else _EVERY):
            return None
        for peer, seen in list(self._seen.items()):
            for place in [each for each, at in seen.items() if now - at > KEPT_SECONDS]:
                self._forget(peer, place)
        self._is_new, self._written, self._retry = False, now, 0.0
        peers = {
            peer: {place: round(now - at, 1) for place, at in seen.items()}
            for peer, seen in self._seen.items()
        }
        return msgspec.json.encode(_Table(_VERSION, peers, self.handshakes_per_second))

    def write(self, content: bytes) -> None:
        """Write the file, whole or not at all; blocks, for a thread.

        Raises:
            OSError: The disk failed; `not_written` schedules a retry.
        """
        if self._path is not None:
            write_small(DiskFiles(), self._path, content, 0.0)

    def not_written(self, error: BaseException | None) -> None:
        """Schedule a retry a minute later, and log an error that does not pass by itself."""
        self._is_new, self._retry = True, _RETRY
        if isinstance(error, OSError) and not is_passing(error):
            emit("listener.addresses-lost", detail=f"{self._path}: {error.strerror}")

    def _read(self) -> _Table:
        nothing = _Table(_VERSION)
        if self._path is None or not self._path.exists():
            return nothing
        try:
            content = read_small(self._path)
            table = msgspec.json.decode(content or b"", type=_Table)
        except msgspec.DecodeError:
            emit("listener.addresses-lost", detail=f"{self._path}: it is damaged")
            return nothing
        return table if table.version in (1, _VERSION) else nothing

    def _forget(self, peer: str, place: str) -> None:
        del self._seen[peer][place]
        if not self._seen[peer]:
            del self._seen[peer]
        self._peers[place] -= 1
        if not self._peers[place]:
            del self._peers[place]
        self._is_new = True


_RETRY_PART: Final = 2 / 3
"""Fraction of its wait in a newcomer's Retry-After: it adds a random wait, half as long on average.

So a crowd arrives at the permitted rate. With the whole wait, 5,000 newcomers at 200 a second took
half as long again (simulated in tests/unit/net/test_newcomers.py).
"""

MAX_WAIT: Final = 60.0
"""Seconds of Retry-After that dialers obey."""

STRANGERS_SHARE: Final = 1 / 4
"""Fraction of the event loop's time for handshakes of strangers, once a peer was greeted."""

LATE_FOR_STRANGERS, LATE_FOR_PEERS = 0.1, 1.0
"""Seconds by which the event loop must be late to refuse strangers, and to refuse peers too.

A crowd of peers makes it about 0.1 s late; so does a machine that others use too, where a share of
processor time would give strangers more than theirs.
"""

LEAST_STRANGERS: Final = 5.0
"""Handshakes a second of strangers that are served whatever else comes: a peer with a new address
must come in at a hub that is always busy, too."""

SHED_SECONDS: Final = 10.0
"""Strangers are dropped without an answer while so many wait that it takes this long."""

CROWD_RATE, CROWD_SECONDS = 20.0, 1.0
"""Peers that connect faster than this many a second are a crowd; strangers are dropped without an
answer until that is over for so long. Even an answer that sends one away costs half as much as the
handshake of a peer, and a share of the time that a handshake takes on a calm machine was all that a
starved one had for its peers.
"""

ACCEPT_SECONDS: Final = 0.05
"""The handshakes that begin in one iteration take about this long; the others wait in the kernel's
queue."""

MIN_ACCEPTS: Final = 8

MAX_ADDRESSES: Final = 16_384
"""Addresses that are counted separately; above that counting restarts."""

RESERVED: Final = 1 / 4
"""Fraction of slots and tokens that only addresses of greeted peers get; of the slots each of these
addresses leaves as many to the others."""

FRESH_SECONDS: Final = 10.0
"""A stranger's address without a token for this long precedes those that had one."""

_PLACES_PER_PEER: Final = 2
"""For each peer greeted from an address: a connection and the one that replaces it."""


class Wait(NamedTuple):
    """Why a newcomer must come back later, and after how many seconds."""

    reason: str
    seconds: float


class PendingSlot:
    """The slot of one connection without a hello.

    Args:
        address: The address, as `origin` counts it.
        push_out: Closes the connection; its argument is a sentence with the reason.

    Attributes:
        has_asked: It got a token.
        is_rated: Its handshake is counted.
        is_safe: It has proved to be a peer.
        is_held: It has not been freed.
    """

    __slots__ = ("address", "has_asked", "is_held", "is_rated", "is_safe", "push_out")

    def __init__(self, address: str, push_out: Callable[[str], None]) -> None:
        self.address = address
        self.push_out = push_out
        self.has_asked = False
        self.is_rated = False
        self.is_safe = False
        self.is_held = True


class _Queue:
    """Slots in order of removal: those without a request first, each oldest first."""

    __slots__ = ("_asked", "_mute")

    def __init__(self) -> None:
        self._mute: dict[PendingSlot, None] = {}
        self._asked: dict[PendingSlot, None] = {}

    def __len__(self) -> int:
        return len(self._mute) + len(self._asked)

    def add(self, slot: PendingSlot) -> None:
        (self._asked if slot.has_asked else self._mute)[slot] = None

    def discard(self, slot: PendingSlot) -> None:
        self._mute.pop(slot, None)
        self._asked.pop(slot, None)

    def first(self) -> PendingSlot | None:
        return next(iter(self._mute or self._asked), None)


class _Turns:
    """Promised turns: the k-th of those that were refused comes back after about k / rate seconds.

    A promise reserves no token: if each of a crowd held one by asking, its own retries would keep
    it out for ever.
    """

    __slots__ = ("_at", "_waiting")

    def __init__(self, at: float) -> None:
        self._at = at
        self._waiting = 0.0

    def promise(self, rate: float, now: float, ahead: float = 0.0) -> float:
        """Return the Retry-After of one more, behind the others and `ahead`."""
        self._waiting = min(self.waiting(rate, now) + 1.0, MAX_WAIT * rate)
        self._at = now
        return _RETRY_PART * (self._waiting + ahead) / rate

    def waiting(self, rate: float, now: float) -> float:
        """Return how many are still to come back."""
        return max(0.0, self._waiting - (now - self._at) * rate)


class _Bucket:
    """Tokens that refill at a rate, up to one second's worth, and the turns of those without."""

    __slots__ = ("_at", "given", "tokens", "turns")

    def __init__(self, tokens: float, at: float) -> None:
        self.tokens = tokens
        self.turns = _Turns(at)
        self.given: float | None = None
        self._at = at

    def take(self, rate: float, now: float, keep: float = 0.0) -> float:
        """Take one token unless it is reserved; return 0, or the seconds after which to retry."""
        burst = max(1.0, rate)
        self._refill(burst, rate, now)
        wanted = 1.0 + min(keep * burst, burst - 1.0)
        if self.tokens >= wanted:
            self.tokens -= 1.0
            return 0.0
        return self.turns.promise(rate, now, wanted - self.tokens)

    def has_token(self, rate: float, now: float) -> bool:
        """Return whether one could be taken."""
        self._refill(max(1.0, rate), rate, now)
        return self.tokens >= 1.0

    def spend(self, rate: float, now: float) -> None:
        """Take a token where there is one; strangers then find fewer."""
        self._refill(max(1.0, rate), rate, now)
        self.tokens = max(0.0, self.tokens - 1.0)

    def _refill(self, burst: float, rate: float, now: float) -> None:
        self.tokens = min(burst, self.tokens + (now - self._at) * rate)
        self._at = now


class ConnectionLimiter:
    """Limits the connections without a hello; an IPv6 /64 counts as one address.

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
        self._late = _Turns(0.0)
        self._few = _Bucket(CROWD_RATE, 0.0)
        self._crowded_until = 0.0
        self._least = _Bucket(LEAST_STRANGERS, 0.0)
        self._rates: dict[str, _Bucket] = {}

    @property
    def slots(self) -> int:
        """How many connections without a hello there may be."""
        most = self.limits.pending
        return most if self.share is None else min(most, self.share)

    def accepts(self) -> int:
        """Return how many connections to accept in one iteration.

        Strangers are displaced by those, and connections of an address that has very many; peers
        and other addresses of greeted peers are not.
        """
        fit = max(MIN_ACCEPTS, round(ACCEPT_SECONDS * self.greeted.handshakes_per_second))
        free = self.slots - self.pending + len(self._strangers)
        if free < fit:
            crowd = self._crowd()
            if crowd is not None:
                free += len(crowd) - self.limits.pending_per_address
        return max(0, min(fit, free))

    def is_shed(
        self, address: str, now: float, lateness: float, slot: PendingSlot | None = None
    ) -> bool:
        """Return whether a newcomer is dropped without an answer: never an address of peers.

        Args:
            address: Its address.
            now: Seconds on the monotonic clock.
            lateness: By how many seconds the event loop is late.
            slot: Its slot once it has sent something; then its handshake is counted if it may stay.
        """
        if not self.greeted or self.greeted.peers_at(origin(address)):
            return False
        if lateness < LATE_FOR_STRANGERS and now >= self._crowded_until:
            waiting = 0.0 if self._all is None else self._all.turns.waiting(self._pace, now)
            if waiting < SHED_SECONDS * self._pace:
                return False
        if slot is None:
            return not self._least.has_token(self._least_pace, now)
        slot.is_rated = self.ask(address, now, lateness) is None
        return not slot.is_rated

    @property
    def rate(self) -> float:
        """The handshakes a second that this node can do, or may do."""
        cap, measured = self.limits.handshakes_per_second, self.greeted.handshakes_per_second
        return measured if cap is None else min(cap, measured)

    @property
    def _pace(self) -> float:
        """The handshakes a second of all that have no precedence."""
        cap = self.limits.handshakes_per_second
        if cap is not None:
            return cap
        return self.greeted.handshakes_per_second * (STRANGERS_SHARE if self.greeted else 1.0)

    @property
    def _least_pace(self) -> float:
        """The handshakes a second of strangers that need no other token."""
        return min(LEAST_STRANGERS, self._pace * RESERVED)

    def enter(self, address: str, push_out: Callable[[str], None]) -> PendingSlot:
        """Give a newcomer a slot; where there is none, displace the oldest stranger.

        Args:
            address: Its address.
            push_out: Closes the newcomer's connection when its slot is taken away.
        """
        slot = PendingSlot(origin(address), push_out)
        here, least = self._counts.get(slot.address, 0), self.limits.pending_per_address
        peers = self.greeted.peers_at(slot.address)
        gone: PendingSlot | None = None
        fills = len(self._queue_of(slot)) >= max(least, self.slots - int(self.slots * RESERVED))
        if fills or here >= max(least, _PLACES_PER_PEER * peers):
            gone = self._here[slot.address].first()
            why = f"{here} connections from {address} have not sent a hello"
        elif self.pending >= self.slots or (not peers and self._strangers_fill()):
            gone = self._strangers.first() or self._first_of_crowd()
            why = f"{self.pending} connections have not sent a hello"
        if gone is not None:
            self.leave(gone)
            gone.push_out(f"{why}: the oldest was closed")
        self.pending += 1
        self._counts[slot.address] = self._counts.get(slot.address, 0) + 1
        self._queue_of(slot).add(slot)
        if not peers:
            self._strangers.add(slot)
        return slot

    def asked(self, slot: PendingSlot) -> None:
        """Note that a newcomer got a token: it is displaced after those without one."""
        if slot.is_held and not slot.has_asked and not slot.is_safe:
            slot.has_asked = True
            for queue in (self._queue_of(slot), self._strangers):
                size = len(queue)
                queue.discard(slot)
                if len(queue) < size:
                    queue.add(slot)

    def proved(self, slot: PendingSlot) -> None:
        """Note that a newcomer has proved to be a peer: it keeps its slot."""
        slot.is_safe = True
        self._strangers.discard(slot)
        self._queue_of(slot).discard(slot)

    def leave(self, slot: PendingSlot) -> None:
        """Free a slot: its connection has sent a hello, has ended, or is displaced."""
        if not slot.is_held:
            return
        slot.is_held = False
        self.pending -= 1
        self._strangers.discard(slot)
        self._queue_of(slot).discard(slot)
        self._counts[slot.address] -= 1
        if not self._counts[slot.address]:
            del self._counts[slot.address]
            self._here.pop(slot.address, None)

    def _queue_of(self, slot: PendingSlot) -> _Queue:
        return self._here.setdefault(slot.address, _Queue())

    def _crowd(self) -> _Queue | None:
        """Return the connections of the address that has most, if one may not have so many."""
        crowd = max(self._here.values(), key=len, default=None)
        return crowd if crowd is not None and len(crowd) > self.limits.pending_per_address else None

    def _first_of_crowd(self) -> PendingSlot | None:
        crowd = self._crowd()
        return None if crowd is None else crowd.first()

    def _strangers_fill(self) -> bool:
        """Return whether strangers occupy all slots that are open to them."""
        reserved = int(self.slots * RESERVED) if self.greeted else 0
        return len(self._strangers) >= self.slots - reserved

    def ask(self, address: str, now: float, lateness: float = 0.0) -> Wait | None:
        """Count a handshake; return when to retry if there are too many.

        Args:
            address: Its address.
            now: Seconds on the monotonic clock.
            lateness: By how many seconds the event loop is late.
        """
        address = origin(address)
        if len(self._rates) >= MAX_ADDRESSES and address not in self._rates:
            self._rates.clear()
        peers = self.greeted.peers_at(address)
        each = self.limits.handshakes_per_second_per_address + peers
        bucket = self._rates.get(address)
        if bucket is None:
            bucket = self._rates[address] = _Bucket(max(1.0, each), now)
        is_fresh = bucket.given is None or now - bucket.given >= FRESH_SECONDS
        seconds = bucket.take(each, now)
        if seconds:
            return Wait(f"more than {each:g} connections a second from {address}", seconds)
        wait = self._wait(bool(peers), is_fresh, now, lateness)
        if wait is None:
            bucket.given = now
        return wait

    def _wait(self, is_peer: bool, is_fresh: bool, now: float, lateness: float) -> Wait | None:
        """Count a handshake of an address of a peer, or of a stranger, among all."""
        is_known = is_peer or not self.greeted  # a hub without greeted peers has none to prefer
        pace = self._pace
        if self._all is None:
            self._all = _Bucket(max(1.0, pace), now)
        if not is_known and is_fresh and not self._least.take(self._least_pace, now):
            self._all.spend(pace, now)
            return None
        if lateness >= (LATE_FOR_PEERS if is_known else LATE_FOR_STRANGERS):
            seconds = self._late.promise(self.rate, now)
            return Wait(f"the event loop is {lateness:.1f} s late", seconds)
        if not is_known and now < self._crowded_until:
            return Wait("peers return", self._late.promise(self.rate, now))
        keep = 0.0 if is_known else RESERVED * (1 if is_fresh else 2)
        if is_peer and self._few.take(min(CROWD_RATE, pace), now):
            self._crowded_until = now + CROWD_SECONDS
        if is_peer and self.limits.handshakes_per_second is None:
            self._all.spend(pace, now)
            return None
        seconds = self._all.take(pace, now, keep)
        return Wait(f"more than {pace:g} connections a second", seconds) if seconds else None
