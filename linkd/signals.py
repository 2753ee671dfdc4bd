"""Signals, taken by a thread of their own, so that they work while the reactor hangs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Final

from linkd import events
from linkd.events.observers import Installed

HANG_SECONDS: Final = 4.7
"""A stop that has not ended the process so long after its signal hangs; DESIGN.md promises 5 s."""

_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_LAST_LINES_SECONDS: Final = 0.2
_MOST_DETAIL: Final = 2000


class SignalThread:
    """Wait for signals and make their calls; end the process where nothing else does.

    SIGABRT, which the service manager's watchdog sends, is logged with the place where the main
    thread was, and then ends the process. `os._exit` ends it where a stop hangs: everything
    acknowledged is on disk at any time.

    Args:
        calls: For each signal what is called, in this thread.
        installed: Where lines go: what waits there is written before the process ends.
    """

    def __init__(
        self, calls: Mapping[signal.Signals, Callable[[], None]], installed: Installed
    ) -> None:
        self._calls = calls
        self._installed = installed
        self._signals = {*calls, signal.SIGABRT}
        self._main = threading.main_thread().ident
        self._deadline: float | None = None
        self._ending_by = ""

    def start(self) -> None:
        """Take the signals from now on; threads that are started later leave them alone."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        threading.Thread(target=self._run, name="linkd-signals", daemon=True).start()

    def _run(self) -> None:
        while True:
            number = self._wait()
            if number is None:
                self._end_hung()
            elif number == signal.SIGABRT:
                self._abort()
            else:
                if number in _ENDING and self._deadline is None:
                    self._deadline = time.monotonic() + HANG_SECONDS
                    self._ending_by = number.name
                self._calls[number]()

    def _wait(self) -> signal.Signals | None:
        """Return the next signal, or None once a stop has taken too long."""
        if self._deadline is None:
            return signal.Signals(signal.sigwait(self._signals))
        left = max(0.0, self._deadline - time.monotonic())
        found = signal.sigtimedwait(self._signals, left)
        return None if found is None else signal.Signals(found.si_signo)

    def _end_hung(self) -> None:
        events.emit(
            "node.stop-hung",
            signal=self._ending_by,
            stop_seconds=HANG_SECONDS,
            detail=self._where(),
        )
        self._installed.finish(_LAST_LINES_SECONDS)
        os._exit(1)

    def _abort(self) -> None:
        events.emit("node.aborted", signal="SIGABRT", detail=self._where())
        self._installed.finish()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGABRT})
        signal.raise_signal(signal.SIGABRT)

    def _where(self) -> str:
        """Return the place where the main thread is."""
        frame = sys._current_frames().get(self._main or 0)
        if frame is None:
            return "the main thread has ended"
        return "".join(traceback.format_stack(frame))[-_MOST_DETAIL:]
