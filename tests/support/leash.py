"""Whatever a process starts in the lab ends with it, even where it is killed -9.

A watchdog, this file as a process of its own, hears the end of a pipe that nobody else holds. Then
it kills everything that carries the mark in its environment, whoever started it in between, and
removes the folders that it was told of. Network namespaces go with the last process in them.

The signal that Linux sends to a child at its parent's death (`prctl`, PR_SET_PDEATHSIG) would come
too soon: it is bound to the thread that started the child, and faults are made in threads that end.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

MARK = "LINKD_LAB"
"""The variable that marks whatever belongs to one process's lab."""

_PATIENCE_SECONDS = 10.0
_lock = threading.Lock()
_held: dict[int, subprocess.Popen[bytes]] = {}
"""The watchdog of this process, by its pid: what a fork inherits is not its own."""


def hold(*folders: Path) -> None:
    """See to it that what is started from now on ends with this process, and folders are removed.

    Again is cheap. What is started with an environment of its own choice keeps the mark of
    `os.environ`, or is not held.
    """
    with _lock:
        watchdog = _held.get(os.getpid())
        if watchdog is None:
            mark = f"{os.getpid()}-{secrets.token_hex(8)}"
            plain = {name: value for name, value in os.environ.items() if name != MARK}
            watchdog = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).resolve()), mark],
                env=plain,
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            os.environ[MARK] = mark
            _held[os.getpid()] = watchdog
            atexit.register(_let_go)
        assert watchdog.stdin is not None
        for folder in folders:
            watchdog.stdin.write(os.fsencode(folder.absolute()) + b"\n")
        watchdog.stdin.flush()


def _let_go() -> None:
    """End the watchdog at this process's own end, and with it what was forgotten."""
    watchdog = _held.pop(os.getpid(), None)
    if watchdog is not None and watchdog.stdin is not None:
        watchdog.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            watchdog.wait(_PATIENCE_SECONDS)


def marked(mark: str) -> list[int]:
    """Return the processes that carry a mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                if wanted in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
    return found


def main(mark: str) -> None:
    """Wait for the end of the pipe; then kill and remove."""
    folders = sys.stdin.buffer.read().splitlines()
    end = time.monotonic() + _PATIENCE_SECONDS
    while (left := marked(mark)) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for folder in folders:
        shutil.rmtree(os.fsdecode(folder), ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
