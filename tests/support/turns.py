"""A stand-in for the reactor's thread: what is posted is called when the test says so."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable


class Turns:
    """Calls that wait for their turn in the test's thread."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def post(self, call: Callable[[], None]) -> None:
        """Let `call` be called in the test's thread; from any thread."""
        self._calls.put(call)

    def until(self, true: Callable[[], object], seconds: float = 10.0) -> None:
        """Take turns until `true()`.

        Raises:
            TimeoutError: It did not come true.
        """
        deadline = time.monotonic() + seconds
        while not true():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not within {seconds} s")
            try:
                self._calls.get(timeout=left)()
            except queue.Empty:
                continue

    def now(self) -> None:
        """Take the turns that wait."""
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                return
            call()
