"""What is left after minimising fails still, and no part of it is too many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.minimise import minimise

sizes = st.integers(1, 40)


@given(sizes, st.data())
def test_the_few_that_are_needed_together_are_found(size: int, data: st.DataObject) -> None:
    needed = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=4))
    asked: list[list[int]] = []

    def fails(items: list[int]) -> bool:
        asked.append(items)
        return needed <= set(items)

    assert minimise(range(size), fails, 10_000) == sorted(needed)
    assert len(asked) <= size * size + 3 * size


@given(sizes, st.integers(0, 12), st.data())
def test_it_asks_no_more_than_it_may_and_ends_at_what_has_failed(
    size: int, tries: int, data: st.DataObject
) -> None:
    failed = [list(range(size))]
    count = 0

    def fails(items: list[int]) -> bool:
        nonlocal count
        count += 1
        if data.draw(st.booleans()):
            failed.append(items)
            return True
        return False

    left = minimise(range(size), fails, tries)
    assert count <= tries
    assert left == failed[-1]
    assert left == sorted(left)
