"""The bounds that a drill's links must keep, and the comparison with what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from linkd.config import HeartbeatSettings, ReconnectSettings
from linkd.drill.monitor import Tally
from linkd.drill.report import Check, EndReport, seconds
from linkd.status import Outage

EARLY_SECONDS: Final = 0.2
LATE_SECONDS: Final = 0.5
"""How much earlier or later than its bound a silent link may be given up on a busy machine."""

SILENT: Final = ("ping-timeout", "silence")
"""Reasons of a link that was given up for silence."""

BACK_UNREACHABLE: Final = 2.5
"""Seconds: a redial every half second, and a lost SYN sent again after one second."""


class Bounds(msgspec.Struct, frozen=True):
    """The bounds in force.

    Args:
        heartbeat: The listener's; the dialer uses its interval.
        reconnect: The dialer's.
        source: Where they are set, for people.
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
        """The seconds until a dialer is back after a refusal, reset or close: a full delay."""
        return self.reconnect.max_delay + 1.5

    @property
    def back_attempt(self) -> float:
        """The seconds in which a dialer is back whose attempt hung: a whole attempt, and one."""
        return self.reconnect.connect_timeout + BACK_UNREACHABLE


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """The expected result of one drill.

    Args:
        falls: Ends whose link must fall, by role.
        stays: No link may fall; else those not in `falls` may.
        undisturbed: Ends, by role, whose own measurements count: neither killed nor frozen.
        back: Seconds after the restore in which both ends must be up again.
        reason: The reason that the dialer must report meanwhile; None: any.
    """

    falls: tuple[str, ...] = ()
    stays: bool = False
    undisturbed: tuple[str, ...] = ("listener", "dialer")
    back: float = BACK_UNREACHABLE
    reason: str | None = None


def silent_for(bounds: Bounds, seconds: float, back: float = BACK_UNREACHABLE) -> Expectation:
    """Return the expected result of a path that is dead for that many seconds.

    A silent end falls at the latest when its bound has passed since the fault, and at the earliest
    one ping interval before, since it may already have been silent for that long.
    """
    falls = tuple(
        role for role in ("listener", "dialer") if seconds >= bounds.notices(role) + LATE_SECONDS
    )
    earliest = min(bounds.notices("listener"), bounds.notices("dialer"))
    stays = seconds < earliest - bounds.heartbeat.ping_interval - EARLY_SECONDS
    return Expectation(falls=falls, stays=stays, back=back)


def judge(
    ends: Sequence[EndReport],
    reasons: Iterable[str],
    messages: Mapping[str, Tally],
    expected: Expectation,
    bounds: Bounds,
) -> list[Check]:
    """Return every check of a drill.

    Args:
        ends: What each known end has seen.
        reasons: The dialer's reasons while the link was down.
        messages: The tally of the numbered messages, by channel.
        expected: The expected result.
        bounds: The configured bounds.
    """
    checks = []
    for end in ends:
        checks += _fell(end, expected)
        if end.role in expected.undisturbed:
            checks += [_noticed(end, one, bounds) for one in end.outages if one.reason in SILENT]
        if not end.up or end.back_seconds is not None:
            checks.append(_back(end, expected))
    if expected.reason is not None:
        seen = sorted(reasons)
        checks.append(
            Check(
                f"the dialer reports {expected.reason}",
                expected.reason in seen,
                " ".join(seen) or "–",
            )
        )
    checks += [_arrived(channel, one) for channel, one in messages.items()]
    return checks


def _fell(end: EndReport, expected: Expectation) -> list[Check]:
    """Return whether the link fell, or stayed up, as expected."""
    got = end.reasons or ("its daemon does not answer" if end.gone else "it stayed up")
    if expected.stays:
        return [Check(f"{end.name}: the link stays up", not (end.outages or end.gone), got)]
    if end.role in expected.falls:
        return [Check(f"{end.name}: the loss is noticed", bool(end.outages), got)]
    return []


def _noticed(end: EndReport, outage: Outage, bounds: Bounds) -> Check:
    """Return whether silence was detected neither too early nor too late."""
    bound = bounds.notices(end.role or "dialer")
    low, high = bound - EARLY_SECONDS, bound + LATE_SECONDS
    got = outage.noticed_after_seconds
    return Check(
        f"{end.name}: noticed after {low:.1f} to {high:.1f} s of silence",
        got is not None and low <= got <= high,
        f"{seconds(got)} ({outage.reason})",
    )


def _back(end: EndReport, expected: Expectation) -> Check:
    """Return whether the link was back in time."""
    back = end.back_seconds
    return Check(
        f"{end.name}: back within {expected.back:.1f} s of the restore",
        back is not None and back <= expected.back,
        "it was not up again" if back is None else seconds(back),
    )


def _arrived(channel: str, counted: Tally) -> Check:
    """Return whether every acknowledged message arrived once and in order."""
    return Check(
        f"{channel}: nothing lost, doubled or out of order",
        not (counted.lost or counted.twice or counted.out_of_order) and counted.published > 0,
        f"{counted.published:,} published, lost {counted.lost}, twice {counted.twice}, "
        f"out of order {counted.out_of_order}",
    )
