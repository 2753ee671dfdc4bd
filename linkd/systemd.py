"""What linkd tells the service manager that started it. Source: sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class ServiceManager:
    """The service manager, if there is one; nothing is said to nobody.

    Args:
        environment: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are looked up there.

    Attributes:
        watchdog_interval: Seconds between `alive` calls: half of what it allows; None: no watchdog.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self.watchdog_interval = _half(environment)
        self._status = ""

    def ready(self) -> None:
        """Say that the sockets listen, or that a reload is over."""
        self._say("READY=1")

    def status(self, line: str) -> None:
        """Say in one line what is true; a repeat is not sent."""
        if line != self._status:
            self._status = line
            self._say("STATUS=" + line.replace("\n", " "))

    def reloading(self) -> None:
        """Say that a reload begins."""
        self._say(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that a clean stop has begun."""
        self._say("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._say("WATCHDOG=1")

    def _say(self, text: str) -> None:
        """Send one datagram; a manager that does not listen is not our trouble."""
        if not self._address:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as sender:
                sender.sendto(text.encode(), self._address)
        except OSError:
            pass


def _half(environment: Mapping[str, str]) -> float | None:
    """Return half of the watchdog's time in seconds, where it is meant for this process."""
    owner = environment.get("WATCHDOG_PID")
    try:
        allowed = int(environment.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    if allowed <= 0 or (owner and owner != str(os.getpid())):
        return None
    return allowed / 2_000_000
