"""Which of many faults are enough to make a campaign fail. Pure: running them is the caller's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def minimise(items: Sequence[T], fails: Callable[[list[T]], bool], tries: int) -> list[T]:
    """Return the fewest items found that still fail, in their order.

    Delta debugging: first halves are tried alone, then everything but a half, then ever smaller
    pieces down to single items. What fails only sometimes may so end larger than it has to, never
    at something that was not seen to fail.

    Args:
        items: What fails, all together.
        fails: Tells whether some of them fail too.
        tries: How often it is asked at most.

    Source: A. Zeller, R. Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002.
    """
    left, pieces = list(items), 2
    while len(left) >= 2:
        cuts = [len(left) * place // pieces for place in range(pieces + 1)]
        parts = [left[a:b] for a, b in itertools.pairwise(cuts)]
        smaller = None
        alone = [(part, 2) for part in parts]
        without = [
            ([item for other in parts if other is not part for item in other], max(pieces - 1, 2))
            for part in parts
        ]
        for candidate, next_pieces in [*alone, *(without if pieces > 2 else [])]:
            if tries <= 0:
                return left
            tries -= 1
            if fails(candidate):
                smaller, pieces = candidate, next_pieces
                break
        if smaller is not None:
            left = smaller
        elif pieces >= len(left):
            return left
        else:
            pieces = min(len(left), pieces * 2)
    return left
