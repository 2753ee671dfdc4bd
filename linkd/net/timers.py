"""Exact timers on the injected clock, and pings that detect silence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from twisted.internet.base import DelayedCall, ReactorBase

from linkd.core.liveness import Liveness

PING_GRID: Final = 0.25
"""Pings are sent at multiples of so many seconds, so that they share reactor wake-ups."""

CLOCK_STEP: Final = 1.0
"""A change of the wall clock by this many seconds within a second is a step, not a slew."""


class ExactTimer:
    """Replaces Autobahn's batched timer, which fires up to a second early.

    Pings are sent up to `PING_GRID` early so that they share wake-ups: a thousand idle links wake
    the reactor four times a second instead of six hundred times. All other calls are exact.

    Args:
        clock: The factory's clock.
        ping: The name of the method that sends a ping.
    """

    __slots__ = ("_clock", "_ping")

    def __init__(self, clock: ReactorBase, ping: str = "_sendAutoPing") -> None:
        self._clock = clock
        self._ping = ping

    def call_later(self, delay: float, call: Callable[..., object], *args: object) -> DelayedCall:
        """Call `call` after exactly `delay` seconds, or a ping slightly earlier."""
        if delay > PING_GRID and getattr(call, "__name__", "") == self._ping:
            now = self._clock.seconds()
            delay = max(0.0, (now + delay) // PING_GRID * PING_GRID - now)
        return self._clock.callLater(delay, call, *args)


def at_iteration_end(clock: ReactorBase) -> Callable[[Callable[[], None]], object]:
    """Return a function that schedules a call for the end of the reactor's iteration.

    On a clock without iterations the call is made as soon as possible. See `linkd.reactor`.
    """
    return getattr(clock, "call_at_iteration_end", None) or partial(clock.callLater, 0)


def call_when_idle(clock: ReactorBase) -> Callable[[Callable[[], None], float], object] | None:
    """Return a function that defers a call until the reactor is idle, or None on other clocks.

    See `linkd.reactor`.
    """
    return getattr(clock, "call_when_idle", None)


def lateness(clock: ReactorBase) -> Callable[[], float]:
    """Return a function that returns by how many seconds the reactor is late; 0 on other clocks.

    See `linkd.reactor`.
    """
    return getattr(clock, "lateness", None) or (lambda: 0.0)


def cancel(call: DelayedCall | None) -> None:
    """Cancel a call that may be over, or None."""
    if call is not None and call.active():
        call.cancel()


class ClockWatch:
    """Detects steps of the wall clock by comparing it with the monotonic clock.

    Args:
        clock: The reactor.
        wall: Returns Unix seconds.
        on_set: Called with the seconds by which the wall clock was set forward, or back.
    """

    def __init__(
        self, clock: ReactorBase, wall: Callable[[], float], on_set: Callable[[float], None]
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._on_set = on_set
        self._offset = wall() - clock.seconds()

    def look(self) -> None:
        """Compare the clocks; call it once a second, so that a slow correction does not count."""
        before, self._offset = self._offset, self._wall() - self._clock.seconds()
        step = self._offset - before
        if abs(step) >= CLOCK_STEP:
            self._on_set(step)


_CLOSE_ENOUGH: Final = 0.001
"""Silence may be detected this many seconds late, which saves moving a timer at every ping."""


class Silence(ABC):
    """Detects a silent connection; a mixin for Autobahn's protocol classes.

    Attributes:
        life: When bytes were last received and sent.
        clock: The reactor.
    """

    life: Liveness
    clock: ReactorBase
    _judging = False

    def judge(self) -> None:
        """Check for silence after the socket has been read once more.

        A reactor that woke late runs its timers before it reads.
        """
        if not self._judging:
            self._judging = True
            self.clock.callLater(0, self._verdict)

    def _verdict(self) -> None:
        self._judging = False
        if self.is_ending:
            return
        now = self.clock.seconds()
        self.look_closer(now)
        if self.life.silent(now):
            self.fell_silent(self.life.silence(now))
        else:
            self.watch()

    def look_closer(self, now: float) -> None:  # noqa: B027 - a link has none
        """Note signs of life other than bytes, just before a connection is judged."""

    @property
    @abstractmethod
    def is_ending(self) -> bool:
        """Whether the connection has ended, or is about to."""

    @abstractmethod
    def fell_silent(self, silence: float) -> None:
        """End a connection on which nothing was received for `silence` seconds."""

    @abstractmethod
    def watch(self) -> None:
        """Arrange the next check for when silence may reach its limit."""


class PingedSilence(Silence):
    """The accepting end: it pings at every interval, whatever arrives.

    A missing pong alone proves nothing. Autobahn's time-out only counts where silence has reached
    its limit as well; otherwise it is armed again.

    Attributes:
        factory: Has the timer that Autobahn uses.
        autoPingInterval: Seconds between pings; this attribute and those below are Autobahn's.
    """

    factory: Any
    autoPingInterval: float
    autoPingTimeout: float
    autoPingTimeoutCall: DelayedCall | None
    autoPingPendingCall: DelayedCall | None
    autoPingPending: bytes | None
    _pinged_at: float | None = None

    def _sendAutoPing(self) -> None:
        """Send a ping, and set its time-out to when silence reaches its limit."""
        self._pinged_at = self.clock.seconds()
        super()._sendAutoPing()  # type: ignore[misc]
        wanted = self.life.deadline - self.clock.seconds()
        if wanted < self.autoPingTimeout - _CLOSE_ENOUGH:
            self._rearm(max(0.0, wanted))

    def _rearm(self, after: float) -> None:
        """Check for silence after `after` seconds; to move Twisted's call earlier is slower."""
        cancel(self.autoPingTimeoutCall)
        timer = self.factory._batched_timer
        self.autoPingTimeoutCall = timer.call_later(after, self.onAutoPingTimeout)

    def onAutoPingTimeout(self) -> None:
        """Judge the connection where it is silent; a missing pong alone proves nothing."""
        self.autoPingTimeoutCall = None
        if self.life.silent(self.clock.seconds()):
            self.judge()
        else:
            self.watch()

    def watch(self) -> None:
        """Schedule the next ping, or the check for silence where that comes first."""
        now = self.clock.seconds()
        next_ping = (self._pinged_at or now) + self.autoPingInterval
        if next_ping < self.life.deadline:
            self.autoPingPending = None
            self.ping_after(max(0.0, next_ping - now))
        else:
            self._rearm(self.life.deadline - now)

    def ping_after(self, seconds: float) -> None:
        """Schedule the next ping after `seconds`."""
        cancel(self.autoPingPendingCall)
        timer = self.factory._batched_timer
        self.autoPingPendingCall = timer.call_later(seconds, self._sendAutoPing)
