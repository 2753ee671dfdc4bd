"""Silence is judged exactly: not before its limit, not after. A path that loses large messages is
found out, and no other.
"""

from __future__ import annotations

import pytest

from linkd.core.liveness import (
    LARGE_BYTES,
    PROBE_AFTER,
    SMALL_BYTES,
    ClientLiveness,
    Liveness,
    Path,
    dialer_limit,
    listener_limit,
)
from linkd.protocol.peer import Probe


def test_silence_counts_from_the_last_byte() -> None:
    life = Liveness(100.0, 7.0)
    life.heard_at = 103.0
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
    life.heard_at = 163.0
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


def fallen(times: int, version: int = 2) -> Path:
    """Return a path on which so many connections fell with records under way."""
    path = Path()
    for number in range(times):
        assert path.began(version, 10.0 * number) is None
        assert not path.ended(unacknowledged=True, progress=False, now=10.0 * number + 7.0)
    return path


def size(probe: Probe | None) -> int:
    assert probe is not None
    return len(probe.padding)


def test_after_three_that_fell_two_probes_decide() -> None:
    path = fallen(PROBE_AFTER)
    assert size(path.began(2, 100.0)) == path.probing == SMALL_BYTES
    assert size(path.answered(SMALL_BYTES, 100.1)) == path.probing == LARGE_BYTES
    assert path.ended(unacknowledged=False, progress=False, now=107.0)
    assert path.narrow


def test_on_a_narrow_path_no_record_shares_a_packet_with_the_hello() -> None:
    path = fallen(PROBE_AFTER)
    path.began(2, 100.0)
    path.answered(SMALL_BYTES, 100.1)
    assert path.ended(unacknowledged=False, progress=False, now=107.0)
    for begun in (110.0, 120.0):
        assert size(path.began(2, begun)) == path.probing == SMALL_BYTES
        assert path.answered(SMALL_BYTES, begun + 0.1) is None
        assert path.probing == 0
        assert not path.ended(unacknowledged=True, progress=False, now=begun + 7.0), "it is known"
    assert path.began(1, 130.0) is None


def test_a_path_that_carries_both_is_well() -> None:
    path = fallen(PROBE_AFTER)
    path.began(2, 100.0)
    assert path.answered(LARGE_BYTES, 100.0) is None, "not asked yet"
    path.answered(SMALL_BYTES, 100.1)
    assert path.answered(SMALL_BYTES, 100.2) is None
    assert path.answered(LARGE_BYTES, 113.0) is None
    assert path.probing == 0
    assert not path.ended(unacknowledged=True, progress=False, now=120.0)
    assert not path.narrow
    assert path.began(2, 130.0) is None, "it begins to count again"


def test_what_proves_nothing() -> None:
    path = fallen(PROBE_AFTER)
    path.began(2, 100.0)
    assert not path.ended(unacknowledged=False, progress=False, now=110.0), "nothing passes"
    path.began(2, 120.0)
    path.answered(SMALL_BYTES, 120.1)
    assert not path.ended(unacknowledged=False, progress=False, now=121.0), "it fell too soon"
    assert not path.narrow
    assert path.began(1, 130.0) is None, "a peer of version 1 knows no probes"
    path.ended(unacknowledged=True, progress=True, now=140.0)
    assert path.began(2, 150.0) is None, "it carried something"
    for _ in range(PROBE_AFTER):
        assert path.began(2, 200.0) is None
        path.ended(unacknowledged=True, progress=False, now=200.9)
        assert path.began(2, 200.0) is None
        path.ended(unacknowledged=False, progress=False, now=300.0)
    assert path.began(2, 400.0) is None, "short ones and those without records do not count"
