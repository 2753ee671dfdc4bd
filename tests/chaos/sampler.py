"""Asks daemons once a second what they have counted."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

from tests.chaos.checker import Sample
from tests.support.daemon import Daemon

EVERY_SECONDS = 1.0


def total(page: str, name: str) -> int:
    """Return a metric's sum over its labels; 0 where it has not been counted yet."""
    lines = (line for line in page.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


class Sampler:
    """Keeps samples of each daemon, until `end`.

    Attributes:
        samples: By the daemon's name, in the order of time.
    """

    def __init__(self, daemons: Sequence[Daemon]) -> None:
        self.samples: dict[str, list[Sample]] = {daemon.name: [] for daemon in daemons}
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(daemon,), daemon=True) for daemon in daemons
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def _run(self, daemon: Daemon) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            pid = daemon.pid
            with contextlib.suppress(OSError, ValueError, EOFError, RuntimeError):
                page = daemon.call("GET", "/metrics", timeout=10.0)
                if not isinstance(page, str) or "linkd_log_next_offset " not in page:
                    continue  # it is starting or stopping
                sample = Sample(
                    pid,
                    time.monotonic(),
                    total(page, "linkd_log_next_offset"),
                    total(page, "linkd_records_late_total"),
                    total(page, "linkd_records_unproven_total"),
                )
                if daemon.pid == pid:
                    self.samples[daemon.name].append(sample)

    def end(self) -> None:
        """Stop; again is harmless."""
        self._ended.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(15.0)
