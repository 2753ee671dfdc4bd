"""Runs of a benchmark are made again where the hypervisor took the processors, and not for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bench.calm import MOST_TRIES, Calm, ticks


def stolen(*shares: int) -> Callable[[], tuple[int, int]]:
    """Return a clock by which so many of 100 ticks are stolen in each run."""

    def read() -> Iterator[tuple[int, int]]:
        gone = total = 0
        for share in shares:
            yield gone, total
            gone, total = gone + share, total + 100
            yield gone, total

    found = read()
    return lambda: next(found)


def test_a_calm_run_is_made_once() -> None:
    calm, runs = Calm(10, stolen(3)), iter("abc")
    assert calm.run(lambda: next(runs)) == ("a", 0.03)
    assert calm.again == 0


def test_others_are_made_again_and_the_calmest_counts() -> None:
    calm, runs = Calm(10, stolen(20, 30, 2)), iter("abc")
    assert calm.run(lambda: next(runs)) == ("c", 0.02)
    calm, runs = Calm(10, stolen(20, 5, 30, 6)), iter("abcd")
    assert calm.run(lambda: next(runs)) == ("b", 0.05)
    assert calm.again == MOST_TRIES - 1


def test_there_is_an_end_to_it() -> None:
    calm, runs = Calm(2, stolen(20, 30, 10, 40, 40)), iter("abcde")
    assert calm.run(lambda: next(runs)) == ("c", 0.1)
    assert calm.run(lambda: next(runs)) == ("d", 0.4)
    assert calm.again == 2


def test_what_linux_says_is_read(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 2 3\n")
    assert ticks(stat) == (80, 360)
    stat.write_text("cpu  10 20 30 40\n")
    assert ticks(stat) == (0, 100)
    assert ticks()[1] > 0
