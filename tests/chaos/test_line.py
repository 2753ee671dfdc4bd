"""What a line does to packets, without packets."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.line import Shape, Way

offered = st.lists(st.tuples(st.integers(40, 1500), st.floats(0.0, 0.2)), min_size=1, max_size=100)


@given(offered, st.integers(0, 9))
def test_packets_keep_their_order_and_their_delay(
    packets: list[tuple[int, float]], seed: int
) -> None:
    way = Way(Shape(delay=0.3, jitter=0.1), Random(seed))
    now, before = 100.0, 0.0
    for size, pause in packets:
        now += pause
        due = way.due(size, now)
        assert due is not None
        assert due >= before
        assert due >= now + 0.2 - 1e-9
        before = due
    assert way.passed == len(packets)


@given(offered)
def test_no_more_passes_than_the_rate_and_no_packet_waits_longer_than_the_buffer(
    packets: list[tuple[int, float]],
) -> None:
    way = Way(Shape(rate=64_000.0, buffer=0.25), Random(0))
    now = 100.0
    for size, pause in packets:
        now += pause
        before = way.passed
        due = way.due(size, now)
        assert (due is not None) == (way.passed > before)
        if due is not None:
            assert size / 64_000.0 <= due - now + 1e-9 <= 0.25 + size / 64_000.0 + 2e-9
    assert way.passed + way.overflowed == len(packets)


def test_a_burst_overflows_and_the_rest_comes_at_the_rate() -> None:
    way = Way(Shape(rate=64_000.0, buffer=0.25), Random(0))
    due = [way.due(1_500, 10.0) for _ in range(50)]
    came = [at for at in due if at is not None]
    assert len(came) == 11
    assert came[-1] == pytest.approx(10.0 + 11 * 1_500 / 64_000)


def test_its_share_is_lost() -> None:
    way = Way(Shape(loss=0.05), Random(0))
    for _ in range(10_000):
        way.due(100, 1.0)
    assert 400 <= way.lost <= 600
