"""What a drill may expect of the links: the configured bounds, and what follows from them."""

from __future__ import annotations

from typing import Final

import msgspec

from linkd.config import HeartbeatSettings, ReconnectSettings

EARLY_SECONDS: Final = 0.2
LATE_SECONDS: Final = 0.5
"""How much earlier or later than its bound a silent link may be given up on a busy machine."""

SILENT: Final = ("ping-timeout", "silence")
"""Reasons of a link that was given up because nothing was heard."""

BACK_UNREACHABLE: Final = 2.5
"""Seconds: a redial every half second, and a lost SYN sent again after one second."""


class Bounds(msgspec.Struct, frozen=True):
    """The bounds in force.

    Args:
        heartbeat: Of the listener; the dialer takes its interval from there.
        reconnect: Of the dialer.
        source: Where they come from, for people.
    """

    heartbeat: HeartbeatSettings = HeartbeatSettings()
    reconnect: ReconnectSettings = ReconnectSettings()
    source: str = "the defaults"

    def notices(self, role: str) -> float:
        """Return the seconds of silence after which an end gives a connection up."""
        if role == "listener":
            return self.heartbeat.ping_interval + self.heartbeat.ping_timeout
        return 2 * self.heartbeat.ping_interval

    @property
    def slowest(self) -> float:
        """The seconds after which both ends have noticed."""
        return max(self.notices("listener"), self.notices("dialer"))

    @property
    def back_broken(self) -> float:
        """The seconds in which a dialer is back that was refused, reset or closed: a full delay."""
        return self.reconnect.max_delay + 1.5

    @property
    def back_attempt(self) -> float:
        """The seconds in which a dialer is back whose attempt hung: a whole attempt, and one."""
        return self.reconnect.connect_timeout + BACK_UNREACHABLE


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """What one drill must show.

    Args:
        falls: Ends whose link must fall, by role.
        stays: No link may fall; else those not in `falls` may.
        undisturbed: Ends, by role, whose own measurements count: neither killed nor frozen.
        back: Seconds after the restore in which both ends must be up again.
        says: What the dialer must give as reason meanwhile; None: anything.
    """

    falls: tuple[str, ...] = ()
    stays: bool = False
    undisturbed: tuple[str, ...] = ("listener", "dialer")
    back: float = BACK_UNREACHABLE
    says: str | None = None


def silent_for(bounds: Bounds, seconds: float, back: float = BACK_UNREACHABLE) -> Expectation:
    """Return what a path that is dead for so many seconds must show.

    A silent end falls at the latest when its bound has passed since the fault, and at the earliest
    one ping interval before, for it may have heard nothing for that long already.
    """
    falls = tuple(
        role for role in ("listener", "dialer") if seconds >= bounds.notices(role) + LATE_SECONDS
    )
    earliest = min(bounds.notices("listener"), bounds.notices("dialer"))
    stays = seconds < earliest - bounds.heartbeat.ping_interval - EARLY_SECONDS
    return Expectation(falls=falls, stays=stays, back=back)
