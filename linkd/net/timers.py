"""Timers that fire when asked, on the injected clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Call(Protocol):
    """A call that was asked for; Twisted's IDelayedCall."""

    def active(self) -> bool:
        """Tell whether it is still to come."""

    def cancel(self) -> None:
        """Have it not happen."""

    def reset(self, secondsFromNow: float) -> None:
        """Have it happen at another time."""


class Clock(Protocol):
    """A reactor, or `twisted.internet.task.Clock`: monotonic seconds and calls later."""

    def seconds(self) -> float:
        """Return monotonic seconds."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object) -> Call:
        """Call `callable` after `delay` seconds."""


class ExactTimer:
    """Takes the place of Autobahn's batched timer, which is up to a second early.

    Args:
        clock: What the factory runs on.
    """

    __slots__ = ("_clock",)

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def call_later(self, delay: float, call: Callable[..., object], *args: object) -> Call:
        """Call `call` after exactly `delay` seconds."""
        return self._clock.callLater(delay, call, *args)


def cancel(call: Call | None) -> None:
    """Cancel a call that may have happened, or never have been planned."""
    if call is not None and call.active():
        call.cancel()
