"""The table of drills: what each does to a pair, and what it expects of whom."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from linkd.config import HeartbeatSettings, ReconnectSettings
from linkd.drill import scenarios
from linkd.drill.report import Bounds, Expectation, silent_for
from linkd.drill.scenarios import DRILLS

BOUNDS = Bounds(
    HeartbeatSettings(ping_interval=4.0, ping_timeout=3.0), ReconnectSettings(max_delay=11.0)
)
BOTH = ("listener", "dialer")


class Recorder:
    """Stands for a pair and all that hangs on it: writes down what is called."""

    def __init__(self, said: list[str], name: str = "") -> None:
        self._said, self._name = said, name

    def __getattr__(self, name: str) -> Recorder:
        return Recorder(self._said, f"{self._name}.{name}".removeprefix("."))

    def __call__(self, *arguments: object) -> Recorder:
        self._said.append(f"{self._name}{arguments}")
        return Recorder(self._said, f"{self._name}{arguments}")


def done(action: Any) -> list[str]:
    """Return what an action does to a pair."""
    said: list[str] = []
    action(Recorder(said))
    return said


def test_a_path_that_is_dead_long_enough_is_noticed_by_both() -> None:
    for name in ("blackhole", "oneway"):
        drill = DRILLS[name]
        lasts = drill.lasts(BOUNDS)
        assert lasts == BOUNDS.slowest + 4.0 == 12.0
        expected = drill.expects(BOUNDS, lasts)
        assert expected == silent_for(BOUNDS, lasts)
        assert expected.falls == BOTH


@pytest.mark.parametrize(
    ("name", "end", "watching"),
    [("kill", "hub", "dialer"), ("kill-edge", "edge", "listener")],
)
def test_who_kills_an_end_counts_on_the_other(name: str, end: str, watching: str) -> None:
    drill = DRILLS[name]
    assert done(drill.begin) == [f"node({end!r},)", f"node({end!r},).kill()"]
    assert done(drill.restore) == [f"start({end!r},)"]
    seen = Expectation(falls=(watching,), undisturbed=(watching,), back=BOUNDS.back_broken)
    assert drill.expects(BOUNDS, 3.0) == seen
    assert end in drill.about


@pytest.mark.parametrize(
    ("name", "end", "watching"),
    [("freeze", "hub", "dialer"), ("freeze-edge", "edge", "listener")],
)
def test_who_freezes_an_end_counts_on_the_other(name: str, end: str, watching: str) -> None:
    drill = DRILLS[name]
    assert done(drill.begin)[1:] == [f"node({end!r},).signal({signal.SIGSTOP!r},)"]
    assert done(drill.restore)[1:] == [f"node({end!r},).signal({signal.SIGCONT!r},)"]
    seen = Expectation(falls=(watching,), undisturbed=(watching,), back=BOUNDS.back_attempt)
    assert drill.expects(BOUNDS, drill.lasts(BOUNDS)) == seen
    assert drill.expects(BOUNDS, 1.0).falls == ()
    assert end in drill.about


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reset", Expectation(falls=BOTH, back=12.5)),
        ("loss", Expectation(stays=True)),
        ("slow", Expectation(stays=True)),
        ("flap", Expectation(back=BOUNDS.back_attempt)),
        ("dns", Expectation(falls=BOTH, back=0.0)),
        ("nameless", Expectation(reason="dns")),
        ("absent", Expectation(back=12.5, reason="refused")),
        ("clock", Expectation(stays=True)),
        ("disk", Expectation(stays=True)),
        ("certificate", Expectation(falls=BOTH, reason="tls", back=4.0)),
    ],
)
def test_what_is_expected(name: str, expected: Expectation) -> None:
    drill = DRILLS[name]
    assert drill.expects(BOUNDS, drill.lasts(BOUNDS)) == expected


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("reset", 3.0),
        ("loss", 24.0),
        ("slow", 16.0),
        ("flap", 16.0),
        ("dns", 6.25),
        ("nameless", 6.0),
        ("absent", 6.0),
        ("kill", 3.0),
        ("clock", 10.0),
        ("disk", 10.0),
        ("certificate", 5.0),
    ],
)
def test_how_long_it_lasts(name: str, seconds: float) -> None:
    assert DRILLS[name].lasts(BOUNDS) == seconds


@pytest.mark.parametrize("name", ["dns", "certificate"])
def test_what_is_open_is_cut_and_let_pass_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(scenarios.time, "sleep", slept.append)
    said = done(DRILLS[name].begin)
    assert said[-2:] == ["path.reject()", "path.heal()"]
    assert slept[-1] == 0.5
    assert slept[:-1] == ([9.0] if name == "certificate" else [])


def test_where_nothing_else_is_said_the_path_heals() -> None:
    for name in ("blackhole", "oneway", "reset", "loss", "slow", "flap"):
        assert done(DRILLS[name].restore) == ["path.heal()"]
    for name in ("flap", "nameless", "absent"):
        assert done(DRILLS[name].begin) == []
