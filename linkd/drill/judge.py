"""Holds what was seen against what was to be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from linkd.drill.bounds import EARLY_SECONDS, LATE_SECONDS, SILENT, Bounds, Expectation
from linkd.drill.probe import Counted
from linkd.drill.report import Check, EndReport, seconds
from linkd.status import Outage


def judge(
    ends: Sequence[EndReport],
    reasons: Iterable[str],
    messages: Mapping[str, Counted],
    expected: Expectation,
    bounds: Bounds,
) -> list[Check]:
    """Return every check of a drill.

    Args:
        ends: What each known end has seen.
        reasons: What the dialer gave as reasons while the link was down.
        messages: What became of the numbered messages, by channel.
        expected: What the drill must show.
        bounds: The configured ones.
    """
    checks = []
    for end in ends:
        checks += _fell(end, expected)
        if end.role in expected.undisturbed:
            checks += [_noticed(end, one, bounds) for one in end.outages if one.reason in SILENT]
        if not end.up or end.back_seconds is not None:
            checks.append(_back(end, expected))
    if expected.says is not None:
        said = sorted(reasons)
        checks.append(
            Check(f"the dialer says {expected.says}", expected.says in said, " ".join(said) or "–")
        )
    checks += [_arrived(channel, one) for channel, one in messages.items()]
    return checks


def _fell(end: EndReport, expected: Expectation) -> list[Check]:
    """Return whether the link fell where it had to, and stayed where it had to."""
    got = end.reasons or ("its daemon does not answer" if end.gone else "it stayed up")
    if expected.stays:
        return [Check(f"{end.name}: the link stays up", not (end.outages or end.gone), got)]
    if end.role in expected.falls:
        return [Check(f"{end.name}: the loss is noticed", bool(end.outages), got)]
    return []


def _noticed(end: EndReport, outage: Outage, bounds: Bounds) -> Check:
    """Return whether silence was given up neither too early nor too late."""
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


def _arrived(channel: str, counted: Counted) -> Check:
    """Return whether every acknowledged message is there, once, in its order."""
    return Check(
        f"{channel}: nothing lost, doubled or out of order",
        not (counted.lost or counted.twice or counted.out_of_order) and counted.published > 0,
        f"{counted.published:,} published, lost {counted.lost}, twice {counted.twice}, "
        f"out of order {counted.out_of_order}",
    )
