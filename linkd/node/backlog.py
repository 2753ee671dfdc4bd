"""Count what a peer is owed, a few milliseconds at a time: a log may have many channels.

A count of 150,000 channels takes a second. Nearly all counts are complete within the first step, in
the call that begins them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec
from twisted.internet.base import ReactorBase

if TYPE_CHECKING:
    from linkd.log.base import Log

COUNT_SECONDS: Final = 0.005
"""Seconds for which backlogs of peers are counted in one slice."""

COUNT_STEP: Final = 64
"""Channels between two looks at the clock."""

Total = tuple[int, int]
"""Records, and their bytes."""


def count(log: Log, position: int, owes: Callable[[str], bool]) -> Iterator[Total]:
    """Yield the total of the records from `position` on, as far as counted, in short steps.

    What is stored after the first step is not counted.

    Args:
        log: The log.
        position: The first offset that counts.
        owes: Returns whether a channel counts.
    """
    position, records, size = max(position, log.first), 0, 0
    totals = log.totals(position) if position < log.next else iter(())
    while step := tuple(islice(totals, COUNT_STEP)):
        for channel, some, their in step:
            if some and owes(channel):
                records += some
                size += their
        yield records, size
    yield records, size


class _Count(msgspec.Struct):
    """A count under way, and what it has found so far."""

    steps: Iterator[Total]
    done: Callable[[Total], None]
    total: Total = (0, 0)


class BacklogCounts:
    """The counts under way for all links: they share COUNT_SECONDS of an iteration.

    Args:
        clock: The reactor.
    """

    def __init__(self, clock: ReactorBase) -> None:
        self._clock = clock
        self._counts: dict[object, _Count] = {}
        self._is_planned = False

    def begin(self, owner: object, steps: Iterator[Total], done: Callable[[Total], None]) -> None:
        """Count, at once as far as time permits; `done` gets the total.

        Args:
            owner: A count that it has begun before is given up.
            steps: The count.
            done: Called once, unless it is given up.
        """
        self._counts[owner] = _Count(steps, done)
        if not self._is_planned:
            self._go_on()

    def give_up(self, owner: object) -> None:
        """Forget an owner's count."""
        self._counts.pop(owner, None)

    def _go_on(self) -> None:
        """Count for COUNT_SECONDS; the rest waits for the next iterations."""
        self._is_planned = False
        until = self._clock.seconds() + COUNT_SECONDS
        while self._counts:
            owner, under_way = next(iter(self._counts.items()))
            for total in under_way.steps:
                under_way.total = total
                if self._clock.seconds() >= until:
                    self._is_planned = True
                    self._clock.callLater(0, self._go_on)
                    return
            del self._counts[owner]
            under_way.done(under_way.total)
