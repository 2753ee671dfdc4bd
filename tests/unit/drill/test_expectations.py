"""Verdicts: what was seen against what was to be."""

from __future__ import annotations

import pytest

from linkd.config import HeartbeatSettings, ReconnectSettings
from linkd.drill.monitor import GONE, Span, Tally
from linkd.drill.report import Bounds, EndReport, Expectation, judge, silent_for
from linkd.status import Outage

BOUNDS = Bounds()
BOTH = Expectation(falls=("listener", "dialer"), back=2.5)


def outage(reason: str, noticed: float | None) -> Outage:
    return Outage("peer", "2026-01-01T00:00:00.000Z", reason, noticed, 12.0, 3, 40, 0.1)


def end(
    role: str, *outages: Outage, back: float | None = 0.5, up: bool = True, name: str = ""
) -> EndReport:
    return EndReport(name or role, role, list(outages), back, up, [])


def counted(published: int = 10, lost: int = 0, twice: int = 0, disorder: int = 0) -> Tally:
    return Tally(published, 0, 0, lost, twice, disorder, 0.01)


def failed(*ends: EndReport, expected: Expectation = BOTH, said: tuple[str, ...] = ()) -> list[str]:
    checks = judge(ends, said, {}, expected, BOUNDS)
    return [check.what for check in checks if not check.ok]


def test_both_ends_in_time_pass() -> None:
    listener = end("listener", outage("ping-timeout", 7.01))
    dialer = end("dialer", outage("silence", 10.02))
    assert failed(listener, dialer) == []


@pytest.mark.parametrize(
    ("role", "reason", "noticed", "fine"),
    [
        ("listener", "ping-timeout", 6.79, False),
        ("listener", "ping-timeout", 6.81, True),
        ("listener", "ping-timeout", 7.49, True),
        ("listener", "ping-timeout", 7.51, False),
        ("dialer", "silence", 9.7, False),
        ("dialer", "silence", 10.4, True),
        ("dialer", "silence", 10.6, False),
        ("dialer", "silence", None, False),
        ("dialer", "closed", 0.1, True),
    ],
)
def test_silence_is_held_against_the_bounds_of_the_role(
    role: str, reason: str, noticed: float | None, fine: bool
) -> None:
    expected = Expectation(falls=(role,))
    assert (failed(end(role, outage(reason, noticed)), expected=expected) == []) is fine


def test_the_configured_heartbeat_counts() -> None:
    quick = Bounds(HeartbeatSettings(ping_interval=2.0, ping_timeout=1.0), ReconnectSettings())
    assert quick.notices("listener") == 3.0
    assert quick.notices("dialer") == 4.0
    report = end("listener", outage("ping-timeout", 7.0))
    assert any(not check.ok for check in judge([report], [], {}, BOTH, quick))


def test_an_end_that_noticed_nothing_fails() -> None:
    assert failed(end("dialer", back=None)) == ["dialer: the loss is noticed"]


def test_a_link_that_had_to_stay_fails_by_one_outage() -> None:
    stays = Expectation(stays=True)
    assert failed(end("dialer", back=None), expected=stays) == []
    report = end("dialer", outage("silence", 10.0))
    assert failed(report, expected=stays) == ["dialer: the link stays up"]


def test_late_or_absent_return_fails() -> None:
    fell = outage("silence", 10.0)
    back = ["dialer: back within 2.5 s of the restore"]
    assert failed(end("dialer", fell, back=2.6)) == back
    assert failed(end("dialer", fell, back=None, up=False)) == back


def test_a_frozen_end_is_not_held_against_its_own_measurement() -> None:
    expected = Expectation(falls=("dialer",), undisturbed=("dialer",))
    assert failed(end("listener", outage("ping-timeout", 30.0)), expected=expected) == []


def test_the_dialer_must_say_what_is_wrong() -> None:
    says = Expectation(reason="tls")
    assert failed(end("dialer", back=None), expected=says, said=("tls", "closed")) == []
    assert failed(end("dialer", back=None), expected=says) == ["the dialer reports tls"]


@pytest.mark.parametrize(
    ("one", "fine"),
    [
        (counted(), True),
        (counted(lost=1), False),
        (counted(twice=1), False),
        (counted(disorder=1), False),
        (counted(published=0), False),
    ],
)
def test_messages_are_judged(one: Tally, fine: bool) -> None:
    checks = judge([], [], {"orders": one}, Expectation(), BOUNDS)
    assert [check.ok for check in checks] == [fine]


@pytest.mark.parametrize(
    ("seconds", "falls", "stays"),
    [
        (1.0, (), True),
        (1.9, (), False),
        (7.4, (), False),
        (7.6, ("listener",), False),
        (10.4, ("listener",), False),
        (10.6, ("listener", "dialer"), False),
    ],
)
def test_what_a_dead_path_must_show_follows_from_its_length(
    seconds: float, falls: tuple[str, ...], stays: bool
) -> None:
    expected = silent_for(BOUNDS, seconds)
    assert (expected.falls, expected.stays) == (falls, stays)


@pytest.mark.parametrize("expected", [BOTH, Expectation(stays=True, back=2.5)])
def test_an_end_whose_daemon_is_gone_did_not_stay_up(expected: Expectation) -> None:
    gone = EndReport("hub", "listener", [], None, False, [Span(GONE, 3.0, 20.0)])
    checks = judge([gone], (), {}, expected, BOUNDS)
    assert {check.got for check in checks} == {"its daemon does not answer", "it was not up again"}
    assert not any(check.ok for check in checks)
