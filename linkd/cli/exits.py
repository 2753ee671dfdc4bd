"""Exit codes, the error that carries one, and the end of a closed pipe."""

from __future__ import annotations

import os
import select
import signal
import stat
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TextIO

OK = 0
NEGATIVE = 1
USAGE = 2
NO_DAEMON = 3
REFUSED = 4
TIMED_OUT = 5
INTERRUPTED = 130


class ReaderGone(Exception):
    """The output has no reader any more: the command ends quietly.

    Not an OSError, so that it is not mistaken for an error of the daemon's connection.
    """


class CommandError(Exception):
    """A command ends with an error message.

    Args:
        message: What was expected and got, without the leading `linkd:`.
        code: The exit code.
    """

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


def on_reader_closed(output: TextIO, call: Callable[[], object]) -> None:
    """Call `call` in a thread of its own once the reader of `output` is gone.

    A write would notice it too, but a command that waits for messages may not write for days.
    Only pipes and sockets have a reader: for anything else this does nothing.
    """
    try:
        fd = output.fileno()
        mode = os.fstat(fd).st_mode
    except (OSError, ValueError):
        return
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        watching = threading.Thread(target=_watch, args=(fd, call), name="audience", daemon=True)
        watching.start()


def end_when_gone(output: TextIO) -> None:
    """Raise ReaderGone in the main thread once the reader of `output` is gone.

    For commands without an event loop: a signal interrupts any wait.
    """
    main = threading.main_thread().ident
    if main is None or threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGUSR1, _raise)
    on_reader_closed(output, lambda: signal.pthread_kill(main, signal.SIGUSR1))


def _watch(fd: int, call: Callable[[], object]) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # Errors and hang-ups are always reported.
    poll.poll()
    call()


def _raise(_number: int, _frame: FrameType | None) -> NoReturn:
    raise ReaderGone
