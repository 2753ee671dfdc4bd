"""Timers that fire when asked, on the injected clock."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

PING_GRID: Final = 0.25
"""Seconds between moments at which pings go out."""


CLOCK_STEP: Final = 1.0
"""Seconds within one by which the wall clock was set rather than corrected."""


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

    Pings may share a moment, so that a thousand idle links wake the reactor four times a second
    and not six hundred times: they come up to `PING_GRID` early. All else comes when asked.

    Args:
        clock: What the factory runs on.
        ping: The name of what sends a ping.
    """

    __slots__ = ("_clock", "_ping")

    def __init__(self, clock: Clock, ping: str = "_sendAutoPing") -> None:
        self._clock = clock
        self._ping = ping

    def call_later(self, delay: float, call: Callable[..., object], *args: object) -> Call:
        """Call `call` after exactly `delay` seconds, a ping a little earlier."""
        if delay > PING_GRID and getattr(call, "__name__", "") == self._ping:
            now = self._clock.seconds()
            delay = max(0.0, (now + delay) // PING_GRID * PING_GRID - now)
        return self._clock.callLater(delay, call, *args)


def turn_end(clock: Clock) -> Callable[[Callable[[], None]], object]:
    """Return what makes a call where the reactor's turn ends; on another clock, as soon as can be.

    See `linkd.reactor`.
    """
    return getattr(clock, "at_turn_end", None) or partial(clock.callLater, 0)


def when_idle(clock: Clock) -> Callable[[Callable[[], None], float], object] | None:
    """Return what puts a call off until the reactor has nothing else to do; another clock has none.

    See `linkd.reactor`.
    """
    return getattr(clock, "when_idle", None)


def cancel(call: Call | None) -> None:
    """Cancel a call that may have happened, or never have been planned."""
    if call is not None and call.active():
        call.cancel()


class ClockWatch:
    """Notice that the wall clock was set, by how it moves against the monotonic one.

    Args:
        clock: The reactor.
        wall: Returns Unix seconds.
        on_set: Called with the seconds by which the wall clock was set forward, or back.
    """

    def __init__(
        self, clock: Clock, wall: Callable[[], float], on_set: Callable[[float], None]
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._on_set = on_set
        self._offset = wall() - clock.seconds()

    def look(self) -> None:
        """Compare the clocks; called once a second, so that a slow correction does not count."""
        before, self._offset = self._offset, self._wall() - self._clock.seconds()
        step = self._offset - before
        if abs(step) >= CLOCK_STEP:
            self._on_set(step)
