"""The tally against plain sets and lists."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.tally import Tally


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(0, 40))
def test_it_counts_as_a_set_would(numbers: list[int], published: int) -> None:
    tally = Tally()
    seen: set[int] = set()
    twice = late = 0
    for number in numbers:
        tally.take(number)
        if number in seen:
            twice += 1
        elif seen and number < max(seen):
            late += 1
        seen.add(number)
    assert (tally.twice, tally.out_of_order) == (twice, late)
    assert tally.missing(published) == len(set(range(published)) - seen)


def test_all_in_order_is_nothing_to_tell() -> None:
    tally = Tally()
    for number in range(1000):
        tally.take(number)
    assert (tally.next, tally.twice, tally.out_of_order, tally.missing(1000)) == (1000, 0, 0, 0)
