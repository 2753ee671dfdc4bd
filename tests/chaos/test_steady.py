"""A steady time is able to fail: a drop is seen, told and counted."""

from __future__ import annotations

import threading

import pytest

from tests.chaos.steady import Result, Steady, quantiles
from tests.support.needs import need

pytestmark = [pytest.mark.lab]


def test_a_line_that_is_cut_is_a_drop_and_nothing_is_lost() -> None:
    need("iptables in a network namespace")
    stop = threading.Event()
    with Steady("delay") as steady:
        assert steady.line is not None
        results: list[Result] = []
        running = threading.Thread(target=lambda: results.append(steady.run(60.0, stop)))
        running.start()
        steady.line.order(cut=True)
        told = [
            daemon.wait_line(30.0, peer=other, old="up").fields["reason"]
            for daemon, other in steady.ends
        ]
        steady.line.order(cut=False)
        for daemon, other in steady.ends:
            daemon.wait_up(other, 30.0)
        stop.set()
        running.join(120.0)
    (result,) = results
    assert told == ["ping-timeout", "silence"]
    assert len(result.drops) >= 2
    assert not result.good
    assert result.published > 0
    assert (result.lost, result.twice, result.out_of_order) == (0, 0, 0)


def test_quantiles_are_the_median_the_99th_percentile_and_the_maximum() -> None:
    assert quantiles([]) == []
    assert quantiles([float(n) for n in range(100, 0, -1)]) == [51.0, 100.0, 100.0]
