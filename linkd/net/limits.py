"""Bounds on what strangers can cause: token buckets, each address for itself and all together.

The tables are bounded, so that a flood from many addresses costs a fixed amount of memory; the
address that was quiet longest is forgotten first.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

MAX_ADDRESSES: Final = 16_384


def origin(address: str) -> str:
    """Return what an address counts as: itself, or for IPv6 its /64, which one host may own whole.

    An IPv4 address in IPv6 form counts as IPv4; what is no address, as itself.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))


class Bucket:
    """Tokens that come back at a rate, up to a burst.

    Args:
        rate: Tokens a second.
        burst: The most that are saved up; it begins full.
        now: Seconds on the monotonic clock.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> float:
        """Take one token; return 0, or the seconds until one is there (then none is taken)."""
        gained = max(0.0, now - self._at) * self._rate
        self._tokens = min(self._burst, self._tokens + gained)
        self._at = max(now, self._at)
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate

    def give_back(self) -> None:
        """Undo a `take`."""
        self._tokens = min(self._burst, self._tokens + 1.0)


class Buckets:
    """A bucket for each address and one for all.

    Args:
        rate: Tokens a second of one address, and its `burst`.
        burst: The most that one address saves up.
        total_rate: Tokens a second of all, and their `total_burst`.
        total_burst: The most that all save up.
        addresses: How many addresses are remembered.
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        total_rate: float,
        total_burst: float,
        addresses: int = MAX_ADDRESSES,
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._total = Bucket(total_rate, total_burst, float("-inf"))
        self._addresses = addresses
        self._each: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._each)

    def take(self, address: str, now: float) -> float:
        """Take one token for `address`; return 0, or the seconds until there is one.

        An address that has had its share takes nothing from the others.
        """
        key = origin(address)
        bucket = self._each.get(key)
        if bucket is None:
            bucket = self._each[key] = Bucket(self._rate, self._burst, now)
            if len(self._each) > self._addresses:
                self._each.popitem(last=False)
        self._each.move_to_end(key)
        wait = bucket.take(now)
        if wait:
            return wait
        wait = self._total.take(now)
        if wait:
            bucket.give_back()
        return wait
