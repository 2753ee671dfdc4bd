"""Who reads our output: a command that waits for news ends when nobody is there to read it."""

from __future__ import annotations

import os
import select
import signal
import stat
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TextIO

from linkd.cli.exits import ReaderGone


def when_gone(output: TextIO, tell: Callable[[], object]) -> None:
    """Have `tell` called, in a thread of its own, once nobody reads `output` any more.

    A write would notice it too; but who waits for messages may have nothing to write for days.
    Only pipes and sockets have a reader that can go: for anything else this does nothing.
    """
    try:
        fd = output.fileno()
        mode = os.fstat(fd).st_mode
    except (OSError, ValueError):
        return
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        watching = threading.Thread(target=_watch, args=(fd, tell), name="audience", daemon=True)
        watching.start()


def end_when_gone(output: TextIO) -> None:
    """Have the main thread raise ReaderGone once nobody reads `output` any more.

    For commands without an event loop: a signal is what wakes them out of any wait.
    """
    main = threading.main_thread().ident
    if main is None or threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGUSR1, _raise)
    when_gone(output, lambda: signal.pthread_kill(main, signal.SIGUSR1))


def _watch(fd: int, tell: Callable[[], object]) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # Errors and hang-ups are told unasked.
    poll.poll()
    tell()


def _raise(_number: int, _frame: FrameType | None) -> NoReturn:
    raise ReaderGone
