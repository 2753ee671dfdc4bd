"""How memory goes back, in a process that runs for long and holds much."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

YOUNG = 20_000
"""So many more new containers than went: about twice what 1,000 publishes under way are.

Python's own 700 had it look through all of these every few of them, and find nothing: they go by
themselves (measured: 5 to 8 % of a busy hub's processor time).
"""

OLDER = 1
"""All are looked through after 140,000; Python does it after 94,000. So what links leave goes."""


LARGE_BYTES = 1 << 19
"""Blocks from here on are mapped one by one, and go back to the kernel as soon as they are free.

Of itself glibc raises that bound to 32 MiB once such blocks come and go, and keeps their places:
240 callers of pages of 16 MiB took 534 MB, with 128 MiB in the account, and now 210 MB.
"""

_M_MMAP_THRESHOLD = -3  # of <malloc.h>


def settle() -> None:
    """Look once more, then leave what is there now out of every later look."""
    with suppress(OSError, AttributeError):  # another library than glibc may have no such call
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OLDER, OLDER)
