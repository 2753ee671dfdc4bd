"""What tests have measured, told at the end of the run: figures, not "ok"."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

TOLD: list[str] = []


def tell(line: str) -> None:
    """Keep one line for the end of the run."""
    TOLD.append(line)


def spread(values: Sequence[float]) -> str:
    """Return smallest, median and greatest of some seconds, and how many they are."""
    if not values:
        return "none"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low:.2f} / {middle:.2f} / {high:.2f} s (min / median / max of {len(values)})"
