"""How long a dialer waits before it dials again, depending on how the last attempt ended."""

from __future__ import annotations

from collections.abc import Callable

from linkd.errors import FailureKind

DEFAULT_SPREAD = 0.5
"""Seconds over which dialers come back to a listener that has announced nothing."""

MIN_SPREAD, MAX_SPREAD = 0.2, 30.0
"""Bounds of what a listener announces, whatever it says."""

UNREACHABLE_DELAY = 0.5
"""Also the least delay after a refused connection."""

BROKEN_BASE = 0.5
REJECTED_DELAY = 60.0
JITTER = 0.2
"""The fraction by which the fixed delays are spread to either side."""

MAX_RETRY_AFTER = 60.0
NEXT_URL_DELAY = 0.05
"""Seconds before the next URL is tried, until a round has tried them all."""

MAX_MOVE_SPREAD = 5.0
"""The longest spread, in seconds, of a move to the next URL after a goodbye."""

TCP_TIMEOUT = 2.0
PATIENT_EVERY = 4
"""Every fourth round gives TCP the whole attempt instead of `TCP_TIMEOUT`."""


class Backoff:
    """The delays of one dialer.

    A round is one failed attempt for every URL; within a round the next URL comes at once,
    after the last one the shortest of the delays that its failures ask for.

    Args:
        max_delay: The longest delay in seconds after broken attempts (`reconnect.max_delay`).
        stable_after: Seconds that a connection must be up before the delays start over.
        random: Returns numbers from 0 up to, not including, 1; they spread the delays.
        urls: How many URLs are tried in turn.
    """

    def __init__(
        self, max_delay: float, stable_after: float, random: Callable[[], float], urls: int = 1
    ) -> None:
        self.stable_after = stable_after
        self._max_delay = max_delay
        self._random = random
        self._urls = max(1, urls)
        self._broken = 0
        self._round: list[float] = []

    def reset(self) -> None:
        """Start the delays over: a connection has proved stable."""
        self._broken = 0
        self._round = []

    def lost(self, silent: bool, stable: bool, return_spread: float | None = None) -> float:
        """Return the delay after a connection: 0 after silence, random after a close.

        It is spread over `return_spread`, so that the peers of a node that restarts do not all
        return in the same instant.

        Args:
            silent: It ended for silence; otherwise it was closed, reset or taken over.
            stable: `reset` was called for it; otherwise it counts as a broken attempt too.
            return_spread: Seconds that the listener announced, or None.
        """
        self._round = []
        if not stable:
            return self._grow()
        return 0.0 if silent else bounded_spread(return_spread) * self._random()

    def failed(
        self,
        kind: FailureKind,
        retry_after: float | None = None,
        return_spread: float | None = None,
    ) -> float:
        """Return the delay after a failed attempt.

        Args:
            kind: What failed.
            retry_after: Seconds that the peer asked for; only `busy` obeys, up to 60 s.
            return_spread: Seconds that the listener announced when it was last up, or None.
        """
        self._round.append(self._delay(kind, retry_after, return_spread))
        if len(self._round) < self._urls:
            return NEXT_URL_DELAY
        delay = min(self._round)
        self._round = []
        return delay

    def busy(self, retry_after: float) -> float:
        """Return the delay after a peer asked for one: at least that, up to twice that."""
        return min(retry_after, MAX_RETRY_AFTER) * (1 + self._random())

    def sent_away(self, retry_after: float, return_spread: float | None = None) -> float:
        """Return the delay after a goodbye with a time; with several URLs, until the next one.

        All dialers of a node that drains get its goodbye at once. They would all dial the next
        node in the same instant, so the move is spread like a return, over a few seconds at most.

        Args:
            retry_after: Seconds that the peer asked for.
            return_spread: Seconds that the listener announced, or None.
        """
        self._round = []
        after = self.failed("busy", retry_after)
        if self._urls == 1:
            return after
        return after + min(bounded_spread(return_spread), MAX_MOVE_SPREAD) * self._random()

    def rejected(self) -> float:
        """Return the delay after the peer refused us for a reason that an operator must fix."""
        return self._spread(REJECTED_DELAY)

    def _delay(
        self, kind: FailureKind, retry_after: float | None, return_spread: float | None
    ) -> float:
        if kind == "unreachable":
            return self._spread(UNREACHABLE_DELAY)
        if kind == "refused":
            return self._spread(max(UNREACHABLE_DELAY, bounded_spread(return_spread)))
        if kind == "rejected":
            return self.rejected()
        if kind == "busy" and retry_after is not None:
            return self.busy(retry_after)
        return self._grow()

    def _grow(self) -> float:
        """Return the next exponential delay: anything from 0 to its bound (full jitter)."""
        bound = min(self._max_delay, BROKEN_BASE * 2.0 ** min(self._broken, 32))
        self._broken += 1
        return bound * self._random()

    def _spread(self, delay: float) -> float:
        return delay * (1 - JITTER + 2 * JITTER * self._random())


def bounded_spread(announced: float | None) -> float:
    """Return the seconds over which to come back to a listener that announced so many, or None."""
    return DEFAULT_SPREAD if announced is None else min(max(announced, MIN_SPREAD), MAX_SPREAD)


def tcp_timeout(attempt: int, urls: int, connect_timeout: float) -> float:
    """Return the seconds after which an attempt gives up on TCP.

    Short, so that a path that returns is found soon; every fourth round each URL gets the whole
    `connect_timeout`, so that a satellite link gets through too.

    Args:
        attempt: Attempts since the last connection was up, the first is 0.
        urls: How many URLs are tried in turn.
        connect_timeout: The budget of an attempt in seconds.
    """
    if attempt // max(1, urls) % PATIENT_EVERY == PATIENT_EVERY - 1:
        return connect_timeout
    return min(TCP_TIMEOUT, connect_timeout)
