"""What linkd needs to tell time.

Monotonic seconds and timers of the reactor, and wall-clock stamps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

PROGRAM_DATE: Final = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
"""Unix seconds at which this version did not exist yet; a release sets it to its own date."""


def wall() -> float:
    """Return Unix seconds: for stamps only, since the wall clock can step."""
    return time.time()  # noqa: TID251  # the one place


def is_plausible(stamp: float) -> bool:
    """Return whether a wall clock may be right: a host without a battery boots in 1970."""
    return stamp >= PROGRAM_DATE


def clock_words(stamp: float) -> str:
    """Return what a wall clock shows, for a sentence."""
    return datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%d %H:%M UTC")


class Timer(Protocol):
    """A call to come."""

    def active(self) -> bool:
        """Tell whether it is still to come."""

    def cancel(self) -> None:
        """Don't make it; only while active."""

    def reset(self, seconds: float) -> None:
        """Make it so many seconds from now instead; only while active."""


class Clock(Protocol):
    """Monotonic seconds, and calls at a later time."""

    def seconds(self) -> float:
        """Return the time now."""

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any) -> Timer:
        """Call after `delay` seconds."""
