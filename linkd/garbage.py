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


LARGE_BYTES = 4 << 20
"""glibc maps each block of this size or more by itself and unmaps it as soon as it is free.

Left alone, glibc raises this bound to 32 MiB as such blocks come and go, and keeps their memory:
240 callers of pages of 16 MiB took 534 MB. Messages of 1 MiB must stay below it: to map and fault
in each copy of one doubled the processor time of such a message (6.5 to 16 ms).
"""

KEPT_BYTES = 16 << 20
"""The heap keeps so much free memory at its end.

Setting one bound makes glibc stop adapting the other one, and its default of 128 KiB is returned
to the kernel and asked for again with each turn of the event loop.
"""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def settle() -> None:
    """Look once more, then leave what is there now out of every later look."""
    with suppress(OSError, AttributeError):  # another library than glibc may have no such call
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OLDER, OLDER)
