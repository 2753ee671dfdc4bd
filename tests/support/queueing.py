"""How long a process was ready to run while others had the processors: the machine's own lateness.

A bound on what a daemon does in time is held against the daemon: what it waited for a processor is
added to the bound. On a machine with a processor to spare that is nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from pathlib import Path

WINDOW_SECONDS = 1.5
EVERY_SECONDS = 0.25
LEAST_SECONDS = 0.02
"""Waits that are shorter, all together, count as none: every machine has them."""


def spent(*pids: int) -> tuple[float, float]:
    """Return for how many seconds these processes' threads have run, and waited to run, in all.

    A process that has ended counts until somebody has asked for its status; where the kernel does
    not tell, it has done neither.

    Source: the first figures in /proc/PID/schedstat (Documentation/scheduler/sched-stats.rst).
    """
    ran = waited = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, ValueError):
                one, other, _ = thread.read_text().split()
                ran, waited = ran + int(one), waited + int(other)
    return ran / 1e9, waited / 1e9


class OwnTime:
    """A stopwatch of this process that stands still while it waits for a processor."""

    def __init__(self) -> None:
        """Start it."""
        self._began, self._waited = time.monotonic(), spent(os.getpid())[1]

    def seconds(self) -> float:
        """Return the seconds since its start: for upper bounds on what this process does in time.

        All threads' waits are taken off, so it may show less than one thread took.
        """
        waited = spent(os.getpid())[1] - self._waited
        return time.monotonic() - self._began - waited


class Queueing:
    """Follows how long one process's main thread waits for a processor, until it has ended."""

    def __init__(self, pid: int) -> None:
        """Begin to follow it; where the kernel does not tell, no wait is seen."""
        self._path = Path(f"/proc/{pid}/schedstat")
        self._samples: deque[tuple[float, float]] = deque(
            maxlen=int(WINDOW_SECONDS / EVERY_SECONDS) + 2
        )
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while (waited := self._waited()) is not None:
            self._samples.append((time.monotonic(), waited))
            time.sleep(EVERY_SECONDS)

    def _waited(self) -> float | None:
        """Return seconds waited in its whole life; None: it has gone."""
        try:
            return int(self._path.read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            return None

    def recent(self) -> float:
        """Return the seconds that it has waited in about the last second and a half."""
        now, waited = time.monotonic(), self._waited()
        samples = tuple(self._samples)
        if waited is None or not samples:
            return 0.0
        old = [before for at, before in samples if now - at >= WINDOW_SECONDS]
        seconds = waited - (old[-1] if old else samples[0][1])
        return seconds if seconds >= LEAST_SECONDS else 0.0
