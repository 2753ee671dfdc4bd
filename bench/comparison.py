"""What is compared and what came of it: ways to send, shapes of a hub, and the results of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench.figures import Figure, figure, spread
from bench.systems import Linkd, System

WINDOW_BYTES = 8 << 20
"""So many bytes are under way at most, whatever the system: what linkd's clients allow."""


class Way(NamedTuple):
    """One way to send messages of one size."""

    size: int
    batch: int = 1
    alone: bool = False

    @property
    def title(self) -> str:
        """For tables."""
        if self.batch > 1:
            return f"batches of {self.batch}"
        return "one a WebSocket message" if self.alone else "one a frame"

    def window(self, system: System) -> int:
        """How many publishes are under way."""
        return max(2, min(system.window, WINDOW_BYTES // (self.size * self.batch)))


def batch_of(size: int) -> int:
    """Return how many records a client puts into one batch of at most 64 KiB, here up to 64."""
    return max(1, min(64, (65_536 - 64) // (size + 16)))


class Shape(NamedTuple):
    """Over how many channels the same records go, to how many peers and consumers of a hub."""

    channels: int
    peers: int
    consumers: int

    @property
    def title(self) -> str:
        """For tables."""
        return f"{self.channels} channels, {self.peers} peers, {self.consumers} consumers"


ONE, MANY = Shape(1, 1, 1), Shape(100, 50, 20)

SIZES = (100, 1024, 65_536, 1 << 20)
NAMES = {100: "100 B", 1024: "1 KiB", 65_536: "64 KiB", 1 << 20: "1 MiB"}


def ways(system: System) -> list[Way]:
    """Return how a system is loaded."""
    found = [Way(size) for size in SIZES]
    if isinstance(system, Linkd):
        found += [Way(size, batch_of(size)) for size in SIZES if batch_of(size) > 1]
        found.append(Way(100, 1, True))
    return found


class Found:
    """All that was measured: (what, system, case) to the values of its rounds."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, Any], list[float]] = defaultdict(list)
        self.notes: list[str] = []
        self.again = 0  # runs made again

    def add(self, what: str, system: str, case: Any, value: float) -> None:
        """Keep one value."""
        self.values[what, system, case].append(value)

    def get(self, what: str, system: str, case: Any) -> Figure | None:
        """Return what came of the rounds, None if nothing did."""
        values = self.values.get((what, system, case))
        return figure(values) if values else None

    def cell(self, what: str, system: str, case: Any) -> str:
        """Return it for a table."""
        found = self.get(what, system, case)
        return "–" if found is None else spread(found)

    def ratio(self, what: str, case: Any, others: Sequence[Any], over: Any) -> float | None:
        """Return linkd's median over the best other's, in the same rounds."""
        mine = self.get(what, "linkd", case)
        theirs = [self.get(what, name, over) for name in others]
        best = max((one.median for one in theirs if one is not None), default=0.0)
        return mine.median / best if mine is not None and best else None
