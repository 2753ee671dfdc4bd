"""What a drill must show, the verdict on what was measured, and the report as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from linkd.config import HeartbeatSettings, ReconnectSettings
from linkd.drill.monitor import GONE, Span, Tally
from linkd.status import Outage

Verdict = Literal["pass", "fail", "skipped"]
Where = Literal["namespaces", "relay", "running"]

_GONE_SECONDS = 3.0
"""A busy daemon may miss one question, which takes 2 s; one that is gone misses the next too."""


class Check(msgspec.Struct, frozen=True):
    """One bound: the expectation, whether it was met, and what was measured."""

    what: str
    ok: bool
    got: str


class EndReport(msgspec.Struct, frozen=True):
    """The report of one end.

    Args:
        name: The end.
        role: `listener` or `dialer`; None if it was never reached.
        outages: Those that began during the drill.
        back_seconds: From the restore until the link was up again; 0 if it was up before, None if
            it was never down or is not back.
        up: Whether it was up at the end.
        states: The link's states over time, in seconds since the drill's beginning.
    """

    name: str
    role: str | None
    outages: list[Outage]
    back_seconds: float | None
    up: bool
    states: list[Span]

    @property
    def noticed(self) -> float | None:
        """The silence after which the link was first given up; None if it was not or is unknown."""
        known = [one.noticed_after_seconds for one in self.outages]
        return next((seconds for seconds in known if seconds is not None), None)

    @property
    def down(self) -> float | None:
        """The longest outage in seconds; None without one."""
        return max((one.down_seconds or 0.0 for one in self.outages), default=None)

    @property
    def replayed(self) -> int:
        """Records that waited and were sent afterwards."""
        return sum(one.replayed_records for one in self.outages)

    @property
    def gone(self) -> bool:
        """Whether its daemon repeatedly did not answer at the end."""
        last = self.states[-1] if self.states else None
        return last is not None and last.state == GONE and last.ended - last.began > _GONE_SECONDS

    @property
    def reasons(self) -> str:
        """The distinct reasons of the link's falls, in order."""
        return " ".join(dict.fromkeys(one.reason for one in self.outages))


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One drill.

    Args:
        drill: Its name.
        about: What was done, in one sentence.
        began: RFC 3339, UTC.
        where: `namespaces`, `relay` or `running`.
        verdict: Whether every check held.
        why: Why it was skipped, or a note.
        fault_began, fault_ended: Seconds since the drill's beginning.
        ends: The report of each known end.
        messages: The tally of the numbered messages, by channel; empty: not checked.
        checks: The comparisons with the bounds.
    """

    drill: str
    about: str
    began: str
    where: Where
    verdict: Verdict
    why: str = ""
    fault_began: float = 0.0
    fault_ended: float = 0.0
    ends: list[EndReport] = []
    messages: dict[str, Tally] = {}
    checks: list[Check] = []


_HEAD = ("END", "ROLE", "NOTICED AFTER", "DOWN FOR", "BACK AFTER", "REPLAYED", "WHY")
_SUMMARY = (
    "DRILL",
    "NOTICED AFTER",
    "DOWN",
    "BACK",
    "REPLAYED",
    "LOST",
    "TWICE",
    "ORDER",
    "VERDICT",
)


def seconds(value: float | None) -> str:
    """Return seconds for people, or a dash."""
    return "–" if value is None else f"{value:.2f} s"


def text(report: Report) -> list[str]:
    """Return a report in lines for people."""
    lines = [f"{report.drill}: {report.about}"]
    if report.verdict == "skipped":
        return [*lines, f"  skipped: {report.why}"]
    lines.append(
        f"  fault for {report.fault_ended - report.fault_began:.1f} s, {_where(report.where)}"
    )
    rows = [
        (
            end.name,
            end.role or "–",
            seconds(end.noticed),
            seconds(end.down),
            seconds(end.back_seconds),
            f"{end.replayed:,}" if end.outages else "–",
            end.reasons or "no outage",
        )
        for end in report.ends
    ]
    lines += [f"  {line}" for line in aligned(_HEAD, rows)]
    lines.append(f"  messages: {_messages(report)}")
    lines += [
        f"  {'ok  ' if check.ok else 'FAIL'} {check.what}: {check.got}" for check in report.checks
    ]
    if report.why:
        lines.append(f"  {report.why}")
    return [*lines, f"  {report.verdict.upper()}"]


def summary(reports: Sequence[Report]) -> list[str]:
    """Return one line for each drill."""
    rows: list[tuple[str, ...]] = []
    for report in reports:
        if report.verdict == "skipped":
            rows.append((report.drill, *("–",) * 7, f"skipped: {report.why}"))
            continue
        noticed = " ".join(f"{end.name} {seconds(end.noticed)}" for end in report.ends)
        counted = list(report.messages.values())
        rows.append(
            (
                report.drill,
                noticed,
                seconds(_most([end.down for end in report.ends])),
                seconds(_most([end.back_seconds for end in report.ends])),
                f"{sum(end.replayed for end in report.ends):,}",
                *_counts(counted),
                report.verdict,
            )
        )
    return aligned(_SUMMARY, rows)


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of aligned columns."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]


def _counts(counted: Sequence[Tally]) -> tuple[str, str, str]:
    """Return how many messages were lost, doubled, out of order; dashes where not checked."""
    if not counted:
        return "–", "–", "–"
    return (
        f"{sum(one.lost for one in counted):,}",
        f"{sum(one.twice for one in counted):,}",
        f"{sum(one.out_of_order for one in counted):,}",
    )


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _where(where: Where) -> str:
    return {
        "namespaces": "in network namespaces",
        "relay": "through the relay",
        "running": "on the running pair",
    }[where]


def _messages(report: Report) -> str:
    if not report.messages:
        return "not compared at both ends"
    return "; ".join(
        f"{channel} {one.published:,} published"
        + (f", {one.refused:,} refused" if one.refused else "")
        + (f", {one.doubtful:,} in doubt" if one.doubtful else "")
        + f", lost {one.lost}, twice {one.twice}, out of order {one.out_of_order}"
        + f", slowest publish {one.slowest_seconds:.2f} s"
        for channel, one in report.messages.items()
    )


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
