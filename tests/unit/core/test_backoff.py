"""The delays of a dialer, at both ends of what chance allows."""

from __future__ import annotations

import random

import pytest

from linkd.core.backoff import MAX_MOVE_SPREAD, NEXT_URL_DELAY, Backoff, tcp_timeout

LEAST, MOST = 0.0, 1.0 - 2**-53


def backoff(chance: float, urls: int = 1, max_delay: float = 15.0) -> Backoff:
    """Return one whose chance is fixed."""
    return Backoff(max_delay, 5.0, lambda: chance, urls)


def test_the_first_redial_is_immediate_after_silence() -> None:
    for chance in (LEAST, MOST):
        assert backoff(chance).lost(silent=True, stable=True) == 0.0


@pytest.mark.parametrize(
    ("announced", "spread"),
    [(None, 0.5), (0.0, 0.2), (0.01, 0.2), (4.0, 4.0), (1e9, 30.0), (float("inf"), 30.0)],
)
def test_dialers_return_over_what_their_listener_announced(
    announced: float | None, spread: float
) -> None:
    """Whatever it says: a hub that announces 10^9 s is dialed within 30 s."""
    low, high = backoff(LEAST), backoff(MOST)
    assert low.lost(False, True, announced) == 0.0
    assert high.lost(False, True, announced) == pytest.approx(spread)
    for _ in range(100):
        assert low.failed("refused", None, announced) == pytest.approx(0.8 * max(0.5, spread))
        assert high.failed("refused", None, announced) == pytest.approx(1.2 * max(0.5, spread))


@pytest.mark.parametrize("silent", [True, False])
def test_a_connection_that_did_not_last_counts_as_broken(silent: bool) -> None:
    each = backoff(MOST)
    delays = [each.lost(silent, stable=False) for _ in range(7)]
    assert delays == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0])


def test_unreachable_never_grows() -> None:
    low, high = backoff(LEAST), backoff(MOST)
    for _ in range(1000):
        assert low.failed("unreachable") == pytest.approx(0.4)
        assert high.failed("unreachable") == pytest.approx(0.6)


def test_broken_grows_with_full_jitter_up_to_its_bound() -> None:
    low, high = backoff(LEAST), backoff(MOST)
    assert [low.failed("broken") for _ in range(50)] == [0.0] * 50
    delays = [high.failed("broken") for _ in range(50)]
    assert delays[:6] == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 15.0])
    assert max(delays) <= 15.0


def test_broken_starts_anew_only_on_reset() -> None:
    each = backoff(MOST)
    for _ in range(4):
        each.failed("broken")
    each.lost(silent=True, stable=False)
    assert each.failed("broken") == pytest.approx(15.0)
    each.reset()
    assert each.failed("broken") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("asked", "least", "most"), [(3.0, 3.0, 6.0), (60.0, 60.0, 120.0), (3600.0, 60.0, 120.0)]
)
def test_busy_obeys_up_to_a_minute_and_spreads(asked: float, least: float, most: float) -> None:
    assert backoff(LEAST).failed("busy", asked) == pytest.approx(least)
    assert backoff(MOST).failed("busy", asked) == pytest.approx(most)
    assert backoff(MOST).busy(asked) == pytest.approx(most)


def test_busy_without_a_word_when_counts_as_broken() -> None:
    assert backoff(MOST).failed("busy", None) == pytest.approx(0.5)


def test_rejected_waits_for_a_person() -> None:
    assert backoff(LEAST).failed("rejected") == pytest.approx(48.0)
    assert backoff(MOST).failed("rejected") == pytest.approx(72.0)
    assert backoff(LEAST).rejected() == pytest.approx(48.0)


def test_the_next_url_comes_at_once_and_the_round_waits_for_its_least() -> None:
    each = backoff(LEAST, urls=3)
    assert each.failed("rejected") == pytest.approx(0.05)
    assert each.failed("busy", 20.0) == pytest.approx(0.05)
    assert each.failed("unreachable") == pytest.approx(0.4)
    assert each.failed("rejected") == pytest.approx(0.05)


def test_a_goodbye_with_a_time_counts_as_a_failure_at_its_url() -> None:
    assert backoff(0.5).sent_away(2.0) == 3.0
    two = backoff(0.5, urls=2)
    two.failed("refused")
    assert two.sent_away(2.0) == pytest.approx(NEXT_URL_DELAY + 0.25)
    assert two.failed("busy", 8.0) == 3.0  # a round: the least of both


@pytest.mark.parametrize(
    ("announced", "spread"), [(None, 0.5), (0.0, 0.2), (4.0, 4.0), (30.0, MAX_MOVE_SPREAD)]
)
def test_a_crowd_that_is_sent_away_does_not_reach_the_next_url_in_one_instant(
    announced: float | None, spread: float
) -> None:
    """It moves as it would return, over a few seconds at most: the next hub is there already."""
    chance = random.Random(1)
    moved = sorted(
        Backoff(15.0, 5.0, chance.random, urls=2).sent_away(1.0, announced) for _ in range(1000)
    )
    assert NEXT_URL_DELAY <= moved[0] < 0.01 * spread + NEXT_URL_DELAY
    assert 0.99 * spread < moved[-1] - NEXT_URL_DELAY <= spread
    assert moved[500] - NEXT_URL_DELAY == pytest.approx(spread / 2, rel=0.1)


def test_a_lost_connection_begins_a_new_round() -> None:
    each = backoff(MOST, urls=2)
    each.failed("unreachable")
    each.lost(silent=True, stable=True)
    assert each.failed("unreachable") == pytest.approx(0.05)
    assert each.failed("unreachable") == pytest.approx(0.6)


def test_tcp_is_given_up_early_but_for_every_fourth_round() -> None:
    assert [tcp_timeout(n, 1, 5.0) for n in range(8)] == [2, 2, 2, 5, 2, 2, 2, 5]
    assert [tcp_timeout(n, 2, 5.0) for n in range(8)] == [2, 2, 2, 2, 2, 2, 5, 5]
    assert tcp_timeout(0, 1, 1.5) == 1.5


def test_ten_thousand_dialers_do_not_come_in_one_second() -> None:
    chance = random.Random(7)
    first = [
        Backoff(15.0, 5.0, chance.random).lost(False, True, 10_000 / 500) for _ in range(10_000)
    ]
    busiest = max(sum(int(each) == second for each in first) for second in range(20))
    assert busiest < 600
