"""When a client tries its daemon again: exponential, full jitter, capped."""

from __future__ import annotations

from typing import Final

MAX_DOUBLINGS: Final = 30


class Backoff:
    """The delays between attempts.

    Args:
        min_delay: Seconds; the first delay lies below it.
        max_delay: Seconds; no delay is above it.
        stable_after: A connection that held so many seconds starts the series anew.
    """

    def __init__(
        self, min_delay: float = 0.2, max_delay: float = 15.0, stable_after: float = 5.0
    ) -> None:
        self.failures = 0
        self._min_delay = min_delay
        self._max_delay = max_delay
        self._stable_after = stable_after

    def failed(self, random: float) -> float:
        """Return the seconds until the next attempt, after one more failure in a row.

        Args:
            random: Out of [0, 1).
        """
        ceiling = min(self._max_delay, self._min_delay * 2.0 ** min(self.failures, MAX_DOUBLINGS))
        self.failures += 1
        return float(ceiling * random)

    def lost(self, held_seconds: float, random: float) -> float:
        """Return the seconds until the next attempt, after a connection that held so long."""
        if held_seconds >= self._stable_after:
            self.failures = 0
        return self.failed(random)
