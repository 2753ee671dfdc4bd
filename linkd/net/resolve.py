"""Names looked up afresh for every attempt; the last good addresses serve while that takes long."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from linkd.net.timers import Call, Clock, cancel

PATIENCE: Final = 0.25
"""Seconds without an answer after which the last good addresses serve."""

Lookup = Callable[[str], Deferred[list[str]]]
"""Looks a name up; fails with an OSError."""


def interleave(addresses: list[str]) -> list[str]:
    """Return addresses without repeats, families in turn, that of the first leading (RFC 8305)."""
    unique = list(dict.fromkeys(addresses))
    if not unique:
        return []
    first_is_six = ":" in unique[0]
    lead = [each for each in unique if (":" in each) == first_is_six]
    rest = [each for each in unique if (":" in each) != first_is_six]
    mixed: list[str] = []
    for index in range(max(len(lead), len(rest))):
        mixed += lead[index : index + 1] + rest[index : index + 1]
    return mixed


def look_up(host: str) -> list[str]:
    """Return the addresses of a name, as the system orders them; blocks.

    Raises:
        OSError: There are none.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Resolver:
    """Finds addresses; one look-up a name is under way at a time, however many attempts wait.

    Args:
        clock: For patience.
        lookup: Does the work, in threads of its own.
    """

    def __init__(self, clock: Clock, lookup: Lookup) -> None:
        self._clock = clock
        self._lookup = lookup
        self._good: dict[str, list[str]] = {}
        self._waiting: dict[str, dict[Deferred[list[str]], Call | None]] = {}

    def resolve(self, host: str) -> Deferred[list[str]]:
        """Return the addresses of a host; an address is its own.

        The Deferred fails with an OSError where it has none and never had; it may be cancelled.
        """
        if isIPAddress(host) or isIPv6Address(host.partition("%")[0]):
            return succeed([host])
        waiter: Deferred[list[str]] = Deferred(lambda gone: self._forget(host, gone))
        timer: Call | None = None
        if host in self._good:
            timer = self._clock.callLater(PATIENCE, self._serve_old, host, waiter)
        first = host not in self._waiting
        self._waiting.setdefault(host, {})[waiter] = timer
        if first:
            self._lookup(host).addBoth(self._found, host)
        return waiter

    def _leave(self, host: str, waiter: Deferred[list[str]]) -> bool:
        """Let a waiter go; tell whether it was still waiting."""
        waiting = self._waiting.get(host, {})
        if waiter not in waiting:
            return False
        cancel(waiting.pop(waiter))
        return True

    def _forget(self, host: str, waiter: Deferred[list[str]]) -> None:
        """A waiter was cancelled."""
        self._leave(host, waiter)

    def _serve_old(self, host: str, waiter: Deferred[list[str]]) -> None:
        """The look-up takes long: use what was good before."""
        if self._leave(host, waiter):
            waiter.callback(self._good[host])

    def _found(self, outcome: list[str] | Failure, host: str) -> None:
        waiting = self._waiting.pop(host, {})
        if isinstance(outcome, list) and outcome:
            self._good[host] = interleave(outcome)
        addresses = self._good.get(host)
        for waiter, timer in waiting.items():
            cancel(timer)
            if addresses is not None:
                waiter.callback(addresses)
            else:
                error = outcome.value if isinstance(outcome, Failure) else None
                text = str(error or "no addresses")
                waiter.errback(OSError(f"the name {host} could not be looked up: {text}"))
