"""Memory: garbage is looked for seldom but goes; blocks are reused, only the largest unmapped."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from linkd import daemon


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
    daemon.tune_gc()
    assert gc.get_freeze_count() > 1000
    before = _looks()
    for _ in range(20):
        under_way = [[number] for number in range(5000)]
        under_way.clear()
    assert _looks() == before


def test_what_links_leave_behind_goes_whatever_its_age() -> None:
    daemon.tune_gc()
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


_FAULTS = """
import resource
from linkd import daemon as garbage

def faults(size, times=100):
    for _ in range(3):
        one, two = bytes(size), bytes(size)
        del one, two
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        one = bytearray(size)
        two = bytes(one)
        del one, two
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // times

garbage.tune_gc()
print(faults(100_000), faults(300_000), faults(1 << 20), faults(16 << 20))
"""


def test_messages_up_to_1_mib_reuse_their_memory_and_pages_of_16_mib_give_theirs_back() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True
    )
    *small, large = [int(word) for word in ran.stdout.split()]
    assert max(small) < 10, "page faults for each message"
    assert large > 1000, "16 MiB stayed in the heap"
