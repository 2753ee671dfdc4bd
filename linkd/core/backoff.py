"""How long a dialer waits before it dials again, by what happened last."""

from __future__ import annotations

from typing import Protocol

from linkd.errors import FailureKind

FIRST_SPREAD = 1.0
"""After a close the first redial comes within so many seconds, at random."""

UNREACHABLE_DELAY = 0.5
BROKEN_BASE = 0.5
REJECTED_DELAY = 60.0
JITTER = 0.2
"""Part by which the fixed delays are spread to either side."""

MAX_RETRY_AFTER = 60.0
NEXT_URL_DELAY = 0.05
"""Seconds before the next URL is tried, while some have not been in this round."""

TCP_TIMEOUT = 2.0
PATIENT_EVERY = 4
"""TCP is given up after `TCP_TIMEOUT`, but every so many rounds only with the whole attempt."""


class Random(Protocol):
    """What chooses delays: a `random.Random`, or a test's."""

    def random(self) -> float:
        """Return a number from 0 up to, not including, 1."""


class Bounds(Protocol):
    """The settings under `[reconnect]` that count here."""

    @property
    def max_delay(self) -> float:
        """The longest delay in seconds after broken attempts."""

    @property
    def stable_after(self) -> float:
        """Seconds that a connection must be up before delays start anew."""


class Backoff:
    """The delays of one dialer.

    A round is one failed attempt for every URL; within a round the next URL comes at once,
    behind it the least of the delays that its failures ask for.

    Args:
        bounds: The settings.
        random: Spreads the delays.
        urls: How many URLs are tried in turn.
    """

    def __init__(self, bounds: Bounds, random: Random, urls: int = 1) -> None:
        self.stable_after = bounds.stable_after
        self._max_delay = bounds.max_delay
        self._random = random
        self._urls = max(1, urls)
        self._broken = 0
        self._round: list[float] = []

    def reset(self) -> None:
        """A connection has proved stable: delays start anew."""
        self._broken = 0
        self._round = []

    def lost(self, silent: bool, stable: bool) -> float:
        """Return the delay after a greeted connection: 0 after silence, up to 1 s after a close.

        Args:
            silent: It was given up for silence; else it was closed, reset or taken over.
            stable: `reset` was called for it; else it counts as a broken attempt as well.
        """
        self._round = []
        if not stable:
            return self._grow()
        return 0.0 if silent else FIRST_SPREAD * self._random.random()

    def failed(self, kind: FailureKind, retry_after: float | None = None) -> float:
        """Return the delay after a failed attempt.

        Args:
            kind: What failed.
            retry_after: Seconds that the peer asked for; only `busy` obeys, and at most 60 s.
        """
        self._round.append(self._delay(kind, retry_after))
        if len(self._round) < self._urls:
            return NEXT_URL_DELAY
        delay = min(self._round)
        self._round = []
        return delay

    def busy(self, retry_after: float) -> float:
        """Return the delay after a peer said when to come back: that, up to twice that."""
        return min(retry_after, MAX_RETRY_AFTER) * (1 + self._random.random())

    def rejected(self) -> float:
        """Return the delay after the peer refused us for what an operator must mend."""
        return self._spread(REJECTED_DELAY)

    def _delay(self, kind: FailureKind, retry_after: float | None) -> float:
        if kind == "unreachable":
            return self._spread(UNREACHABLE_DELAY)
        if kind == "rejected":
            return self.rejected()
        if kind == "busy" and retry_after is not None:
            return self.busy(retry_after)
        return self._grow()

    def _grow(self) -> float:
        """Return the next delay of the exponential: anything from 0 to its bound."""
        bound = min(self._max_delay, BROKEN_BASE * 2.0 ** min(self._broken, 32))
        self._broken += 1
        return bound * self._random.random()

    def _spread(self, delay: float) -> float:
        return delay * (1 - JITTER + 2 * JITTER * self._random.random())


def tcp_timeout(attempt: int, urls: int, connect_timeout: float) -> float:
    """Return the seconds after which an attempt gives TCP up.

    Short, so that a returning path is met soon; every fourth time each URL gets the whole
    `connect_timeout`, so that a satellite's round trip is met too.

    Args:
        attempt: Attempts since the last connection was up, the first is 0.
        urls: How many URLs are tried in turn.
        connect_timeout: The budget of an attempt in seconds.
    """
    if attempt // max(1, urls) % PATIENT_EVERY == PATIENT_EVERY - 1:
        return connect_timeout
    return min(TCP_TIMEOUT, connect_timeout)
