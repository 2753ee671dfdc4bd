"""How many newcomers a listener takes: bounds on those without a hello, and on their rate."""

from __future__ import annotations

from typing import Final, NamedTuple

from linkd.config import LimitSettings
from linkd.net.limits import origin

_TOLD: Final = 2 / 3
"""Part of its wait that a newcomer is told: it waits up to as much again, half more in the mean.

So a crowd comes at the rate; told all of it, 5,000 that are taken at 200 a second took half as
long again (simulated, tests/unit/net/test_newcomers.py).
"""

MAX_ADDRESSES: Final = 16_384
"""So many addresses are counted apart; above that counting starts anew."""


class Wait(NamedTuple):
    """A newcomer is to come back: why, and after how many seconds."""

    reason: str
    seconds: float


class _Bucket:
    """Tokens that come back at a rate, a second's worth at most.

    Those sent away are spread over the seconds to come, but hold no token: if each of a crowd took
    one by asking, its own returns would keep it out for ever.
    """

    __slots__ = ("at", "away", "tokens")

    def __init__(self, tokens: float, at: float) -> None:
        self.tokens = tokens
        self.away = 0.0
        self.at = at

    def take(self, rate: float, now: float) -> float:
        """Take one token; return 0, or the seconds to be told."""
        burst = max(1.0, rate)
        back = (now - self.at) * rate
        self.tokens = min(burst, self.tokens + back)
        self.away = max(0.0, self.away - back)
        self.at = now
        if self.tokens >= 1.0:
            self.tokens -= 1.0
            return 0.0
        self.away = min(self.away + 1.0, 60.0 * rate)
        return _TOLD * (self.away + 1.0 - self.tokens) / rate


class Admission:
    """Counts the connections that have not said hello; an IPv6 /64 counts as one address.

    Args:
        limits: The bounds; may be replaced.

    Attributes:
        limits: The bounds in force.
        share: Newcomers' share of this process's descriptors, or None: the settings alone count.
        pending: Connections without a hello.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self.limits = limits
        self.share: int | None = None
        self.pending = 0
        self._addresses: dict[str, int] = {}
        self._all: _Bucket | None = None
        self._rates: dict[str, _Bucket] = {}

    def full(self, address: str) -> str | None:
        """Return which bound one more newcomer from `address` would break, or None."""
        if self.pending >= min(self.limits.pending, self.share or self.limits.pending):
            return f"{self.pending} connections have not said hello"
        here = self._addresses.get(origin(address), 0)
        if here >= self.limits.pending_per_address:
            return f"{here} connections from {address} have not said hello"
        return None

    def enter(self, address: str) -> None:
        """Count a newcomer."""
        self.pending += 1
        address = origin(address)
        self._addresses[address] = self._addresses.get(address, 0) + 1

    def leave(self, address: str) -> None:
        """A newcomer has said hello, or has gone."""
        self.pending -= 1
        address = origin(address)
        left = self._addresses[address] - 1
        if left:
            self._addresses[address] = left
        else:
            del self._addresses[address]

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
        each = limits.handshakes_per_second_per_address
        bucket = self._rates.get(address)
        if bucket is None:
            bucket = self._rates[address] = _Bucket(max(1.0, each), now)
        seconds = bucket.take(each, now)
        if seconds:
            return Wait(f"more than {each:g} connections a second from {address}", seconds)
        if self._all is None:
            self._all = _Bucket(max(1.0, limits.handshakes_per_second), now)
        seconds = self._all.take(limits.handshakes_per_second, now)
        if seconds:
            return Wait(f"more than {limits.handshakes_per_second:g} connections a second", seconds)
        return None
