"""A wall clock that is set is noticed; one that is corrected slowly is not."""

from __future__ import annotations

from twisted.internet.task import Clock

from linkd.net.timers import ClockWatch


def test_steps_are_noticed_once_and_slow_corrections_are_not() -> None:
    clock, wall, steps = Clock(), [1_000.0], list[float]()
    watch = ClockWatch(clock, lambda: wall[0], steps.append)

    def second(step: float = 0.0) -> None:
        clock.advance(1.0)
        wall[0] += 1.0 + step
        watch.look()

    for _ in range(100):
        second(0.0005)
    assert steps == []
    second(1_700_000_000.0)
    second()
    second(-3600.0)
    second()
    assert [round(step) for step in steps] == [1_700_000_000, -3600]
