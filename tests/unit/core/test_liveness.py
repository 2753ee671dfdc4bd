"""Silence is judged exactly: not before its limit, not after."""

from __future__ import annotations

import pytest

from linkd.core.liveness import FLOW_BYTES, ClientLiveness, Liveness, dialer_limit, listener_limit


def test_silence_counts_from_the_last_byte() -> None:
    life = Liveness(100.0, 7.0)
    life.heard(103.0)
    assert life.silence(104.5) == 1.5
    assert life.deadline == 110.0
    assert life.silence(102.0) == 0.0


@pytest.mark.parametrize(("now", "silent"), [(106.999, False), (107.0, True), (107.001, True)])
def test_the_limit_is_met_at_its_moment(now: float, silent: bool) -> None:
    assert Liveness(100.0, 7.0).silent(now) is silent


def test_a_timer_that_fires_at_the_deadline_finds_silence() -> None:
    for tenths in range(1, 500):
        life = Liveness(tenths * 0.1 + 1e6, 7.0)
        assert life.silent(life.deadline)


def test_a_flow_wants_a_pong_after_a_second_without_a_word() -> None:
    life = Liveness(100.0, 7.0)
    assert not life.pong_due(100.999, FLOW_BYTES)
    assert life.pong_due(101.0, FLOW_BYTES)
    assert not life.pong_due(109.0, FLOW_BYTES - 1)
    life.sent_at = 101.0
    assert not life.pong_due(101.5, 65_536)


def test_limits_follow_the_settings() -> None:
    assert listener_limit(5.0, 2.0) == 7.0
    assert dialer_limit(5.0) == 10.0
    assert dialer_limit(1.0) == 2.0
    assert dialer_limit(60.0) == 120.0
    for out_of_bounds in (0.0, 0.999, 60.001, float("inf"), float("nan")):
        assert dialer_limit(out_of_bounds) is None


def test_a_clients_dead_path_is_noticed_apart_from_a_busy_program() -> None:
    life = ClientLiveness(100.0, 7.0, 35.0, 35.0)
    assert life.deadline == 135.0  # nothing is known of a path
    life.reports_path = True
    assert life.deadline == 107.0
    assert not life.silent(106.9)
    assert life.silent(107.0)
    life.acked_at = 105.0
    assert not life.silent(107.0)
    assert life.deadline == 112.0
    life.acked_at = 133.0
    assert life.silent(135.0)
    life.taken_at = 133.0
    assert life.deadline == 140.0  # that it reads does not prove the path
    life.acked_at = 162.0
    assert life.deadline == 168.0
    life.heard(163.0)
    assert life.deadline == 170.0


def test_an_idle_program_has_less_patience_than_one_at_work() -> None:
    life = ClientLiveness(100.0, 7.0, 7.0, 35.0)
    assert life.deadline == 107.0
    life.sent_at = 95.0 - 0.1
    assert life.patience == 7.0
    life.sent_at = 95.0
    assert life.patience == 35.0
    assert not life.silent(134.9)
    assert life.silent(135.0)
