"""Exact timers on the injected clock, and pings that detect silence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from linkd.clock import Clock, Timer
from linkd.core.liveness import Liveness

PING_GRID: Final = 0.25
"""Seconds between moments at which pings go out."""


CLOCK_STEP: Final = 1.0
"""Seconds within one by which the wall clock was set rather than corrected."""


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

    def call_later(self, delay: float, call: Callable[..., object], *args: object) -> Timer:
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


def cancel(call: Timer | None) -> None:
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


_CLOSE_ENOUGH: Final = 0.001
"""Seconds by which silence may be judged late, rather than move a timer for every ping."""


class Silence(ABC):
    """The verdict on one connection, mixed into Autobahn's protocol.

    Attributes:
        life: When it was heard and spoken to.
        clock: The reactor.
    """

    life: Liveness
    clock: Clock
    _judging = False

    def judge(self) -> None:
        """Silence has reached the limit: read what is in the socket, then judge.

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

    def look_closer(self, now: float) -> None:  # noqa: B027 - a link knows none
        """Note other signs of life than bytes, just before a connection is judged."""

    @property
    @abstractmethod
    def is_ending(self) -> bool:
        """Whether it has ended, or is about to."""

    @abstractmethod
    def fell_silent(self, silence: float) -> None:
        """Nothing was heard for so many seconds: end it."""

    @abstractmethod
    def watch(self) -> None:
        """Be called again when silence may reach the limit."""


class PingedSilence(Silence):
    """The accepting end: it pings every interval whatever arrives.

    A missing pong alone proves nothing: a time-out of Autobahn's counts where silence has reached
    its limit too, and is armed again where it has not.

    Attributes:
        factory: Has the timer that Autobahn uses.
        autoPingInterval: Seconds between pings; Autobahn's, as what follows.
    """

    factory: Any
    autoPingInterval: float
    autoPingTimeout: float
    autoPingTimeoutCall: Timer | None
    autoPingPendingCall: Timer | None
    autoPingPending: bytes | None
    _pinged_at: float | None = None

    def _sendAutoPing(self) -> None:
        """Ping; the time-out is the moment at which silence reaches its limit."""
        self._pinged_at = self.clock.seconds()
        super()._sendAutoPing()  # type: ignore[misc]
        wanted = self.life.deadline - self.clock.seconds()
        if wanted < self.autoPingTimeout - _CLOSE_ENOUGH:
            self._rearm(max(0.0, wanted))

    def _rearm(self, after: float) -> None:
        """Look at the silence after so many seconds; Twisted's `reset` to sooner costs a search."""
        cancel(self.autoPingTimeoutCall)
        timer = self.factory._batched_timer
        self.autoPingTimeoutCall = timer.call_later(after, self.onAutoPingTimeout)

    def onAutoPingTimeout(self) -> None:
        """No pong in time: that alone proves nothing, silence does."""
        self.autoPingTimeoutCall = None
        if self.life.silent(self.clock.seconds()):
            self.judge()
        else:
            self.watch()

    def watch(self) -> None:
        """Ping every interval whatever arrives, and judge when silence may reach its limit."""
        now = self.clock.seconds()
        next_ping = (self._pinged_at or now) + self.autoPingInterval
        if next_ping < self.life.deadline:
            self.autoPingPending = None
            self.ping_after(max(0.0, next_ping - now))
        else:
            self._rearm(self.life.deadline - now)

    def ping_after(self, seconds: float) -> None:
        """Have the next ping go out after so many seconds."""
        cancel(self.autoPingPendingCall)
        timer = self.factory._batched_timer
        self.autoPingPendingCall = timer.call_later(seconds, self._sendAutoPing)
