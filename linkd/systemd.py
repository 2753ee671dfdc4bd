"""What linkd reports to the service manager that started it, and its own watchdog.

Source: sd_notify(3).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

LOOK_SECONDS: Final = 1.0
LOOKS: Final = 10
"""A loop that has not turned for this many checks in a row hangs."""


class ServiceManager:
    """The service manager; without one nothing is sent.

    Args:
        environment: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are looked up there.

    Attributes:
        watchdog_interval: Seconds between `alive` calls at most, half of what it allows; None
            where there is no watchdog.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self.watchdog_interval = _half(environment)
        self._status = ""

    def ready(self) -> None:
        """Report that the sockets listen, or that a reload is over."""
        self._send("READY=1")

    def status(self, line: str) -> None:
        """Report the state in one line; a repeat is not sent."""
        if line != self._status:
            self._status = line
            self._send("STATUS=" + line.replace("\n", " "))

    def reloading(self) -> None:
        """Report that a reload begins."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that a clean stop has begun."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        """Send one datagram; a manager that does not listen is ignored."""
        if not self._address:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as sender:
                sender.sendto(text.encode(), self._address)
        except OSError:
            pass


class LoopWatch:
    """Abort the process when its event loop hangs, but not when the machine was frozen.

    The service manager's watchdog uses the monotonic clock, which advances while a container is
    frozen or a virtual machine is paused: after 10 s of that it would end a healthy daemon. So the
    unit allows more, for a process that does not run at all, and a thread counts checks: a freeze
    of any length delays only one check.

    Args:
        hangs: What to do, in the thread; default: SIGABRT, as the service manager's watchdog.

    Attributes:
        stop: Stops checking.
    """

    def __init__(self, hangs: Callable[[], None] | None = None) -> None:
        self._hangs = hangs or (lambda: os.kill(os.getpid(), signal.SIGABRT))
        self._turned = True
        self._missed = 0
        self._ended = threading.Event()
        self.stop = self._ended.set

    def start(self) -> None:
        """Start checking."""
        threading.Thread(target=self._run, name="linkd-watchdog", daemon=True).start()

    def turned(self) -> None:
        """Note that the loop has turned."""
        self._turned = True

    def look(self) -> bool:
        """Return whether the loop hangs; called each second."""
        self._missed = 0 if self._turned else self._missed + 1
        self._turned = False
        return self._missed >= LOOKS

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            if self.look():
                self._hangs()
                return


def _half(environment: Mapping[str, str]) -> float | None:
    """Return half of the watchdog's time in seconds, if it is meant for this process."""
    owner = environment.get("WATCHDOG_PID")
    try:
        allowed = int(environment.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    if allowed <= 0 or (owner and owner != str(os.getpid())):
        return None
    return allowed / 2_000_000
