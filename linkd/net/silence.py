"""How an end that accepts connections notices silence: it pings, and judges by any byte."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

from linkd.core.liveness import Liveness
from linkd.net.timers import Call, Clock, cancel

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
    autoPingTimeoutCall: Call | None
    autoPingPendingCall: Call | None
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
