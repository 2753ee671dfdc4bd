"""The daemon's reactor: Twisted's epoll reactor, made for short answers.

Twisted asks epoll first whether a socket can be written to, at each message anew: two system calls
and a round of the loop until the bytes go, and at each of them a thread that writes the log may get
in between. Nearly always it can. Here, all that a turn has led to is written where the turn ends,
and only sockets that are then full are given to epoll. A turn is what one wait for events has led
to.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger

_Base: Any = EPollReactor  # it has no types


class PromptReactor(_Base):  # type: ignore[misc]
    """An epoll reactor that writes first, and asks where that was too much."""

    _log = Logger(namespace="linkd.reactor")

    def __init__(self) -> None:
        self._fresh: dict[Any, None] = {}
        self._full: set[Any] = set()
        self._last: list[Callable[[], None]] = []
        super().__init__()

    def at_turn_end(self, call: Callable[[], None]) -> None:
        """Make a call where this turn ends, before what it led to is written.

        For the reactor's own thread only.
        """
        self._last.append(call)

    def addWriter(self, writer: Any) -> None:
        """Write where this turn ends, or when epoll says so where it was asked."""
        if writer not in self._full:
            self._fresh[writer] = None

    def removeWriter(self, writer: Any) -> None:
        """Write no more."""
        if writer in self._full:
            self._full.remove(writer)
            super().removeWriter(writer)
        else:
            self._fresh.pop(writer, None)

    def removeAll(self) -> list[Any]:
        """Forget all descriptors, and return them."""
        fresh, self._fresh = self._fresh, {}
        forgotten = dict.fromkeys([*super().removeAll(), *fresh])
        self._full.clear()
        return list(forgotten)

    def getWriters(self) -> list[Any]:
        """Return all that have something to write."""
        return [*super().getWriters(), *self._fresh]

    def doIteration(self, timeout: float | None) -> None:
        """End the turn; then wait for what comes next, and have it worked on.

        Args:
            timeout: Seconds to wait at most; None waits until something comes.
        """
        if self._fresh or self._last:
            self._end_turn()
            # Ending it may have led to calls, what was written to more to write, a loss to a stop.
            stops = self._justStopped or not self.running
            sooner = 0.0 if self._fresh or self._last or stops else self.timeout()
            if sooner is not None:
                timeout = sooner if timeout is None else min(timeout, sooner)
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, len(self._selectables))
        except OSError as error:
            if error.errno == errno.EINTR:
                return
            raise
        selectables, work = self._selectables, self._doReadOrWrite
        for fd, event in events:
            selectable = selectables.get(fd)
            if selectable is not None:
                try:
                    work(selectable, fd, event)
                except Exception:  # noqa: BLE001 - of its loss; the others have their turn
                    self._log.failure("the loss of a socket failed")

    def _end_turn(self) -> None:
        """Make the calls that were put off until now; write all that is to be sent."""
        calls, self._last = self._last, []
        for call in calls:
            try:
                call()
            except Exception:  # noqa: BLE001 - the others have their turn
                self._log.failure("a call at the end of a turn failed")
        for writer in list(self._fresh):
            if writer in self._fresh:
                self._write(writer)
        self._ask()

    def _write(self, writer: Any) -> None:
        """Have one written; it ends with the error, if there is one."""
        try:
            why = writer.doWrite()
        except Exception as error:  # noqa: BLE001 - as EPollReactor does: it costs one connection
            self._log.failure("a socket could not be written to")
            why = error
        if why:
            self._lose(writer, why)

    def _ask(self) -> None:
        """Have epoll tell when what could not be written can be."""
        for writer in list(self._fresh):
            if writer not in self._fresh:
                continue
            del self._fresh[writer]
            try:
                super().addWriter(writer)
            except Exception as error:  # noqa: BLE001 - it costs one connection
                self._log.failure("a socket could not be waited for")
                self._lose(writer, error)
            else:
                self._full.add(writer)

    def _lose(self, writer: Any, why: Any) -> None:
        """End one; a mistake at its end holds up no other."""
        self._fresh.pop(writer, None)
        with self._log.failuresHandled("the loss of a socket failed"):
            self._disconnectSelectable(writer, why, False)


def install() -> PromptReactor:
    """Make it the one of this process, and return it.

    Raises:
        ReactorAlreadyInstalledError: There is one already.
    """
    reactor = PromptReactor()
    installReactor(reactor)
    return reactor
