"""What linkd needs to tell time.

Monotonic seconds and timers of the reactor, and wall-clock stamps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol


def wall() -> float:
    """Return Unix seconds: for stamps only, since the wall clock can step."""
    return time.time()  # noqa: TID251  # the one place


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
