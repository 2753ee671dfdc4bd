"""The host's clocks."""

from __future__ import annotations

import ctypes
import os
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

PROGRAM_DATE: Final = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
"""Unix seconds before which this version did not exist; a release sets it to its date."""

_TIMEX_BYTES = 512
_TIME_ERROR, _UNSYNCHRONISED = 5, 0x40
"""The result of adjtimex(2), and the flag STA_UNSYNC, for a clock that is not synchronised."""

_TIMESYNC = Path("/run/systemd/timesync/synchronized")
_BOOT_NAME, _BOOT_LETTERS = "boot", 32


wall: Final = time.time  # noqa: TID251  # the one place
"""Returns Unix seconds: only for time stamps, since the wall clock can step."""

boottime: Final = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Returns seconds since the boot of this host, including suspended time."""


def is_synchronised() -> bool:
    """Return whether the wall clock is synchronised; False if unknown."""
    status = ctypes.c_int(_UNSYNCHRONISED)
    try:
        timex = ctypes.create_string_buffer(_TIMEX_BYTES)
        state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
        # struct timex: modes, four longs, status
        status = ctypes.c_int.from_buffer(timex, 5 * ctypes.sizeof(ctypes.c_long))
    except (OSError, AttributeError):
        state = -1
    if state < 0:
        return _TIMESYNC.exists()
    return state != _TIME_ERROR and not status.value & _UNSYNCHRONISED


def boot_word(folder: Path) -> str:
    """Return a random word that stays the same until the next boot.

    `ProcSubset=pid` hides the kernel's boot id from the unit.

    Args:
        folder: The directory that stores it.

    Returns:
        The word; empty if the directory is unusable or not on a tmpfs: then a start can't detect
        whether the host has booted since the last one.
    """
    path = folder / _BOOT_NAME
    try:
        if not _is_tmpfs(folder):
            return ""
        with suppress(FileNotFoundError):
            word = path.read_text("ascii", "replace")
            if len(word) == _BOOT_LETTERS:
                return word
        word = secrets.token_hex(_BOOT_LETTERS // 2)
        part = path.with_name(f"{_BOOT_NAME}.{os.getpid()}")
        part.write_text(word, "ascii")
        part.replace(path)
    except (OSError, ValueError):
        return ""
    return word


def _is_tmpfs(folder: Path) -> bool:
    """Return whether a directory is on a file system that a boot empties."""
    place, best, kind = str(folder.resolve()), "", ""
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        before, _, after = line.partition(" - ")
        mount = before.split()[4]
        if (f"{place}/".startswith(f"{mount.rstrip('/')}/")) and len(mount) >= len(best):
            best, kind = mount, after.split()[0]
    return kind in ("tmpfs", "ramfs")


def is_plausible(stamp: float) -> bool:
    """Return whether a wall clock is plausible: a host without a battery boots in 1970."""
    return stamp >= PROGRAM_DATE


def clock_words(stamp: float) -> str:
    """Return a time for use in a sentence."""
    return datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%d %H:%M UTC")
