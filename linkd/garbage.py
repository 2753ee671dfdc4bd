"""When Python looks for garbage in cycles, in a process that runs for long and holds much."""

from __future__ import annotations

import gc

YOUNG = 20_000
"""So many more new containers than went: about twice what 1,000 publishes under way are.

Python's own 700 had it look through all of these every few of them, and find nothing: they go by
themselves (measured: 5 to 8 % of a busy hub's processor time).
"""

OLDER = 1
"""All are looked through after 140,000; Python does it after 94,000. So what links leave goes."""


def settle() -> None:
    """Look once more, then leave what is there now out of every later look."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OLDER, OLDER)
