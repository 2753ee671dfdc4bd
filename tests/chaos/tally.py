"""Counts numbered records as they arrive: what is missing, what came twice, what came late."""

from __future__ import annotations

from bisect import bisect_right


class Tally:
    """What has arrived of one publisher's records, which are numbered from 0 without a hole.

    Attributes:
        next: One more than the highest number that has arrived.
        twice: How often a number came that was there already.
        out_of_order: How many came after a higher one.
    """

    def __init__(self) -> None:
        self.next = 0
        self.twice = 0
        self.out_of_order = 0
        self._holes: list[tuple[int, int]] = []

    def take(self, number: int) -> None:
        """Count a record."""
        if number == self.next:
            self.next = number + 1
        elif number > self.next:
            self._holes.append((self.next, number))
            self.next = number + 1
        else:
            self._fill(number)

    def _fill(self, number: int) -> None:
        """Count a record that came after a higher one."""
        at = bisect_right(self._holes, number, key=lambda hole: hole[0]) - 1
        if at < 0 or number >= self._holes[at][1]:
            self.twice += 1
            return
        self.out_of_order += 1
        first, last = self._holes[at]
        rest = [(first, number), (number + 1, last)]
        self._holes[at : at + 1] = [hole for hole in rest if hole[0] < hole[1]]

    def missing(self, published: int) -> int:
        """Return how many of the first `published` numbers have not arrived."""
        holes = sum(max(0, min(last, published) - first) for first, last in self._holes)
        return holes + max(0, published - self.next)
