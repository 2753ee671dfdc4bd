"""What linkd needs to tell time.

Monotonic seconds and timers of the reactor, and wall-clock stamps.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

PROGRAM_DATE: Final = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
"""Unix seconds at which this version did not exist yet; a release sets it to its own date."""

_TIMEX_BYTES = 512
_TIME_ERROR, _UNSYNCHRONISED = 5, 0x40
"""What adjtimex(2) returns, and the flag STA_UNSYNC, where the clock is not synchronised."""

_TIMESYNC = Path("/run/systemd/timesync/synchronized")
_BOOT_NAME, _BOOT_LETTERS = "boot", 32


def wall() -> float:
    """Return Unix seconds: for stamps only, since the wall clock can step."""
    return time.time()  # noqa: TID251  # the one place


def boottime() -> float:
    """Return seconds since the boot of this host; those in which it was suspended count."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def is_synchronised() -> bool:
    """Return whether something keeps the wall clock right; False where that is not known."""
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
    """Return a random word that is the same until the next boot.

    The kernel's own is hidden from a unit with `ProcSubset=pid`.

    Args:
        folder: Where to keep it.

    Returns:
        The word; empty where the folder is not on a tmpfs, or can't be used: then a start can't
        tell whether the host has booted since the last one.
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
    """Return whether a folder is on a file system that a boot empties."""
    place, best, kind = str(folder.resolve()), "", ""
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        before, _, after = line.partition(" - ")
        mount = before.split()[4]
        if (f"{place}/".startswith(f"{mount.rstrip('/')}/")) and len(mount) >= len(best):
            best, kind = mount, after.split()[0]
    return kind in ("tmpfs", "ramfs")


def is_plausible(stamp: float) -> bool:
    """Return whether a wall clock may be right: a host without a battery boots in 1970."""
    return stamp >= PROGRAM_DATE


def clock_words(stamp: float) -> str:
    """Return what a wall clock shows, for a sentence."""
    return datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%d %H:%M UTC")


class Timer(Protocol):
    """A call to come."""

    def active(self) -> bool:
        """Tell whether it is still to come."""

    def cancel(self) -> None:
        """Don't make it; only while active."""

    def reset(self, seconds: float) -> None:
        """Make it so many seconds from now instead; only while active."""


class Clock(Protocol):
    """Monotonic seconds, and calls at a later time."""

    def seconds(self) -> float:
        """Return the time now."""

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any) -> Timer:
        """Call after `delay` seconds."""
