"""How many connections the API has room for, over its socket and `http` together."""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal

from linkd import events
from linkd.config import LimitSettings

SOCKET: Final = "socket"
"""What stands for the address of a connection to the unix socket."""

MOST_TURNED_AWAY: Final = 8
"""Connections of addresses that have too many, which are kept for a moment to say so."""

TURNED_AWAY: Final = "turned away"
"""What counts as the address of those."""

_SOCKET_PART: Final = 8
"""One part in so many is kept for the socket: an operator gets in while a client of `http` leaks
connections."""

Full = Literal["connections", "address"]


class Room:
    """The places of all connections of the API.

    Args:
        limits: The bounds in force; may be replaced.

    Attributes:
        limits: The bounds in force.
        share: The API's share of this process's descriptors, or None: the settings alone count.
        refused: How many newcomers were refused, by reason.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self.limits = limits
        self.share: int | None = None
        self.refused: Counter[Full] = Counter()
        self._open: Counter[str] = Counter()
        self._total = 0

    @property
    def most(self) -> int:
        """How many connections there may be in all."""
        most = self.limits.api_connections
        return most if self.share is None else min(most, self.share)

    def enter(self, address: str) -> bool:
        """Take a place for a connection; return False, and log it, where there is none.

        Args:
            address: Where it comes from; `SOCKET` for the unix socket.
        """
        full = self._full(address)
        if full is None:
            self._total += 1
            self._open[address] += 1
            return True
        self.refused[full] += 1
        events.emit("api.busy", reason=full, address=address, connections=self._total)
        return False

    def enter_to_hear_why(self, address: str) -> bool:
        """Take a place that is left with `TURNED_AWAY`, for a connection that is only refused.

        Return False where `address` has no more than it may: then there is no room for anybody.
        """
        if self._full(address) != "address" or self._open[TURNED_AWAY] >= MOST_TURNED_AWAY:
            return False
        self._total += 1
        self._open[TURNED_AWAY] += 1
        return True

    def leave(self, address: str) -> None:
        """Give a place back."""
        self._total -= 1
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]

    def _full(self, address: str) -> Full | None:
        """Return which bound one more connection from `address` would break, or None."""
        most = self.most
        if address == SOCKET:
            return "connections" if self._total >= most else None
        if self._total >= most - max(1, most // _SOCKET_PART):
            return "connections"
        here = self._open[address]
        return "address" if here >= self.limits.api_connections_per_address else None
