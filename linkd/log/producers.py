"""Which numbers of each producer are stored: proof for the answer to a repeated publish.

A producer belongs to its owner: the same name under two owners is two producers. Its numbers are
kept as runs, so that a number that was never stored is never taken for one that was.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import groupby

import msgspec

from linkd.log.origins import ABSENT, Undo
from linkd.protocol.records import Producer

KEPT_RUNS = 16
"""For the newest so many runs of a producer at least, the offsets are kept."""

MAX_HOLES = 256
"""Runs with a hole before each that are kept of one producer.

As many runs without a hole keep their offsets, where there are few producers.
"""

MAX_PRODUCERS = 10_000
MAX_RUNS = 250_000
"""Of all producers together: about 37 MB.

More than all have that never leave a number out, so that these are not thinned again and again.
"""

_EXCESS = 100
"""Producers above the limit that are removed at once."""

FOREVER = 2**63


class Run(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Consecutive numbers of one producer, all of them stored.

    Args:
        first: The lowest number.
        last: The highest.
        offset: The first record's offset; 0: only the numbers are known.
        each: Records in each publish.
    """

    first: int
    last: int
    offset: int
    each: int


class Produced(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is known of one producer.

    Args:
        stamp: The log's clock when its newest number came.
        runs: Its stored numbers, ascending.
        floor: A number at or below it, in none of the runs, may have been stored or not.
    """

    stamp: float
    runs: tuple[Run, ...]
    floor: int = 0

    @classmethod
    def of_recent(
        cls, stamp: float, highest: int, recent: Sequence[tuple[int, int, int]]
    ) -> Produced:
        """Return what the state of format 1 proves.

        Args:
            stamp: The log's clock when its newest number came.
            highest: Its highest number.
            recent: (number, first offset, count) of its newest numbers.
        """
        runs: list[Run] = []
        for number, offset, count in sorted(recent):
            _add(runs, number, 1, offset, count)
        floor = runs[0].first - 1 if runs else highest
        runs, floor = _folded(runs, floor, MAX_HOLES, MAX_HOLES + KEPT_RUNS)
        return cls(stamp, tuple(runs), floor)


class Producers:
    """The producers of one log.

    Attributes:
        known: All of them by owner and name, to read.
        forgotten: Producers and runs that the bounds made it forget, by owner, since the caller
            last cleared it.
    """

    __slots__ = ("_spare", "forgotten", "known")

    def __init__(self, known: Mapping[tuple[str, str], Produced] | None = None) -> None:
        self.known = dict(known or {})
        self._spare = 0
        self.forgotten: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.known)

    def highest(self, owner: str, name: str) -> int:
        """Return a producer's highest stored number, publishes under way counted; 0 if none is."""
        known = self._of(owner, name)
        if known is None:
            return 0
        return known.runs[-1].last if known.runs else known.floor

    def add(self, owner: str, name: str, known: Produced) -> None:
        """Take over what a snapshot has of a producer."""
        self.known[owner, name] = known

    def _of(self, owner: str, name: str) -> Produced | None:
        """Return what is known of a producer.

        Numbers that a version without owners stored count for every owner of that name.
        """
        known = self.known.get((owner, name))
        return self.known.get(("", name)) if known is None else known

    def stored(self, producer: Producer) -> tuple[int, int] | None:
        """Return (first offset, count) of a number that is stored; None if it is new.

        (0, 0): it is stored, but so long ago that only its number is known.

        Raises:
            LookupError: It may have been stored, or not: nothing that is kept proves either.
        """
        known, number = self._of(producer.owner, producer.name), producer.sequence
        if known is None or not known.runs or number > known.runs[-1].last:
            if known is not None and number <= known.floor:
                raise LookupError(number)
            return None
        run = known.runs[bisect_left(known.runs, number, key=_last)]
        if run.first <= number:
            if not run.offset:
                return 0, 0
            return run.offset + (number - run.first) * run.each, run.each
        if number <= known.floor:
            raise LookupError(number)
        return None

    def new_until(self, producer: Producer) -> int:
        """Return the lowest stored number above that of `producer`; 2^63 if there is none."""
        known, number = self._of(producer.owner, producer.name), producer.sequence
        if known is None or not known.runs or number > known.runs[-1].last:
            return FOREVER
        return known.runs[bisect_left(known.runs, number, key=_last)].first

    def note(
        self, last: Producer, offset: int, counts: Sequence[int], stamp: float, undo: Undo
    ) -> None:
        """Note stored numbers up to that of `last`, one after the other.

        Args:
            last: The producer, with the highest of the numbers.
            offset: The first record's offset.
            counts: The records of each number.
            stamp: The log's clock.
            undo: Is noted how to take it back.
        """
        table, key = self.known, (last.owner, last.name)
        known = self._of(last.owner, last.name)
        undo.append((table, key, table.get(key, ABSENT)))
        runs, floor = ([], 0) if known is None else (list(known.runs), known.floor)
        before = len(runs)
        if len(counts) == 1:
            _add(runs, last.sequence, 1, offset, counts[0])
        else:
            _add_all(runs, last.sequence - len(counts) + 1, offset, counts)
        # About every 8th run. It may pass a multiple of 8, for several come at once.
        if len(runs) >= KEPT_RUNS + 8 and len(runs) // 8 > before // 8:
            share = MAX_PRODUCERS * KEPT_RUNS // (len(table) or 1)
            wanted = max(KEPT_RUNS, min(share, MAX_HOLES))
            runs, floor = _folded(runs, floor, wanted, MAX_HOLES + KEPT_RUNS)
        table[key] = Produced(stamp, tuple(runs), floor)
        self._spare -= len(counts)  # one more run for each at most
        if self._spare <= 0 or (known is None and len(table) >= MAX_PRODUCERS + _EXCESS):
            self._bound()

    def forget(self, before: float) -> None:
        """Forget the producers that published nothing since `before`, on the log's clock."""
        for key in [key for key, known in self.known.items() if known.stamp < before]:
            del self.known[key]
        self._bound()

    def _bound(self) -> None:
        """Keep to the bounds: the owner with the most loses the oldest, the others nothing."""
        table = self.known
        excess = len(table) - MAX_PRODUCERS
        if excess > 0:
            mine: dict[str, list[tuple[str, str]]] = {}
            for key in sorted(table, key=lambda key: table[key].stamp, reverse=True):
                mine.setdefault(key[0], []).append(key)
            for _ in range(excess):
                owner = max(mine, key=lambda owner: len(mine[owner]))
                del table[mine[owner].pop()]
                self._forgot(owner)
        runs: dict[str, int] = {}
        for key, known in table.items():
            runs[key[0]] = runs.get(key[0], 0) + len(known.runs)
        for most in (MAX_HOLES + KEPT_RUNS, KEPT_RUNS):  # offsets go before numbers
            for owner in sorted(runs, key=lambda owner: runs[owner], reverse=True):
                if sum(runs.values()) > MAX_RUNS:
                    runs[owner] = self._thin(owner, most)
        self._spare = max(4096, MAX_RUNS - sum(runs.values()))

    def _thin(self, owner: str, most: int) -> int:
        """Keep at most so many runs of each producer of an owner; return how many are left."""
        left = 0
        for key, known in list(self.known.items()):
            if key[0] == owner:
                runs, floor = _folded(list(known.runs), known.floor, KEPT_RUNS, most)
                self.known[key] = Produced(known.stamp, tuple(runs), floor)
                left += len(runs)
                if floor != known.floor:
                    self._forgot(owner)
        return left

    def _forgot(self, owner: str) -> None:
        self.forgotten[owner] = self.forgotten.get(owner, 0) + 1


def _last(run: Run) -> int:
    return run.last


def _add_all(runs: list[Run], number: int, offset: int, counts: Sequence[int]) -> None:
    """Add the numbers from `number` on, of so many records each."""
    for each, alike in groupby(counts):
        times = len(list(alike))
        _add(runs, number, times, offset, each)
        number += times
        offset += times * each


def _add(runs: list[Run], number: int, times: int, offset: int, each: int) -> None:
    """Add `times` numbers of `each` records; of those there already nothing changes."""
    while times and runs and number <= runs[-1].last:
        at = bisect_left(runs, number, key=_last)
        if number < runs[at].first:
            runs.insert(at, Run(number, number, offset, each))
        number, times, offset = number + 1, times - 1, offset + each
    if not times:
        return
    last = number + times - 1
    if runs:
        run = runs[-1]
        follows = number == run.last + 1 and each == run.each
        if follows and run.offset and offset == run.offset + (number - run.first) * each:
            runs[-1] = Run(run.first, last, run.offset, each)
            return
    runs.append(Run(number, last, offset, each))


def _folded(runs: list[Run], floor: int, wanted: int, most: int) -> tuple[list[Run], int]:
    """Merge old runs without a hole between them; forget the oldest of too many.

    Args:
        runs: The runs.
        floor: Numbers up to it that are in none of them are not known.
        wanted: No more are merged than so few need.
        most: Beyond so many the oldest go.

    Returns:
        The runs and the floor.
    """
    excess, at = len(runs) - wanted, 0
    old: list[Run] = []
    while excess > 0 and at < len(runs) - KEPT_RUNS:
        run = runs[at]
        if old and old[-1].last + 1 == run.first:
            old[-1] = Run(old[-1].first, run.last, 0, 0)
            excess -= 1
        else:
            old.append(run)
        at += 1
    runs = old + runs[at:]
    if len(runs) > most:
        floor = max(floor, runs[-most - 1].last)
        runs = runs[-most:]
    return runs, floor
