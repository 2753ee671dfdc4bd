"""The line that the soak fits, and when it calls a measure flat."""

from __future__ import annotations

import pytest

from tests.chaos.soak import Fit, fit, flat


def test_a_straight_line_is_found_exactly() -> None:
    line = fit([(at, 5.0 + at / 360.0) for at in range(0, 3600, 60)])
    assert line.slope == pytest.approx(10.0)
    assert line.doubt == pytest.approx(0.0, abs=1e-9)


def test_noise_is_doubt_and_not_growth() -> None:
    line = fit([(at, 20.0 + (at // 10 % 2)) for at in range(0, 600, 10)])
    assert abs(line.slope) < line.doubt * 2
    assert line.mean == pytest.approx(20.5)
    assert flat("descriptors", line)


def test_what_grows_beyond_its_bound_is_not_flat() -> None:
    assert not flat("threads", Fit(1.0, 0.1, 4.0))
    assert flat("threads", Fit(0.6, 0.1, 4.0))


@pytest.mark.parametrize("points", [[], [(0.0, 1.0), (1.0, 1.0)], [(1.0, 1.0)] * 5])
def test_too_few_samples_are_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="expected"):
        fit(points)
