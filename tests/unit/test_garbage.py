"""Garbage in cycles: looked for seldom, but what a link leaves behind still goes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from linkd import garbage


class _Left:
    """What refers to itself, as a connection that has ended does."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def _looks() -> int:
    """Return how often garbage has been looked for."""
    return sum(found["collections"] for found in gc.get_stats())


def test_what_is_there_is_left_alone_and_containers_that_go_by_themselves_lead_to_no_look() -> None:
    garbage.settle()
    assert gc.get_freeze_count() > 1000
    before = _looks()
    for _ in range(20):
        under_way = [[number] for number in range(5000)]
        under_way.clear()
    assert _looks() == before


def test_what_links_leave_behind_goes_whatever_its_age() -> None:
    garbage.settle()
    kept: list[list[int]] = []
    left = _Left()
    gone = weakref.ref(left)
    for number in range(200_000):
        kept.append([number])
        if number == 150_000:
            del left  # old by then, and no longer in use
        if number > 150_000 and gone() is None:
            break
    kept += [[number] for number in range(100_000)]
    assert gone() is None
