"""The daemon's reactor: Twisted's epoll reactor, tuned for low latency.

For each message Twisted first asks epoll whether a socket is writable: two system calls and another
iteration of the loop before the bytes are sent, and another thread may run in between. Nearly
always it is writable. This reactor writes all output of an iteration at its end, and registers only
full sockets with epoll. An iteration is one wait for events and the work that follows it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger

_Base: Any = EPollReactor  # it has no types


class EventWaker:
    """Wakes the reactor from another thread, by an eventfd.

    Twisted's own takes a pipe and fourteen calls for each of the log's commits.
    """

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return what the reactor polls."""
        return self._descriptor

    def logPrefix(self) -> str:
        """Return its name in Twisted's log."""
        return "waker"

    def wakeUp(self) -> None:
        """Wake the reactor; for any thread."""
        os.eventfd_write(self._descriptor, 1)

    def doRead(self) -> None:
        """Forget all wake-ups so far: the calls that they are for are made in this iteration."""
        os.eventfd_read(self._descriptor)

    def connectionLost(self, _: object) -> None:
        """Close it."""
        os.close(self._descriptor)


class EagerWriteReactor(_Base):  # type: ignore[misc]
    """An epoll reactor that writes first, and polls only full sockets.

    A socket whose attribute `serves_last` is true is served after all others that are ready in the
    same iteration: clients have it, so that links come first.

    Attributes:
        call_at_iteration_end: Makes a call at the end of this iteration, before its output is
            written. For the reactor's own thread only.
    """

    call_at_iteration_end: Callable[[Callable[[], None]], None]

    _log = Logger(namespace="linkd.reactor")

    def __init__(self) -> None:
        self._fresh: dict[Any, None] = {}
        self._full: set[Any] = set()
        self._ending: list[Callable[[], None]] = []
        self._put_off: list[tuple[float, Callable[[], None]]] = []  # until when, what
        self._woke = math.inf  # nothing is late before the first iteration
        self._worked = 0.0
        self.call_at_iteration_end = self._ending.append
        super().__init__()

    def _wakerFactory(self) -> EventWaker:
        """Return what wakes it."""
        return EventWaker()

    def _initThreadPool(self) -> None:
        """Make the pool's threads end with the process, even if one hangs in a name look-up."""
        super()._initThreadPool()
        self.threadpool.threadFactory = partial(Thread, daemon=True)

    def _stopThreadPool(self) -> None:
        """Stop the pool without waiting for its threads."""
        self.threadpool.threads.clear()
        super()._stopThreadPool()

    def call_when_idle(self, call: Callable[[], None], within: float) -> None:
        """Make a call once the loop is idle, after `within` seconds at the latest.

        For the reactor's own thread only.
        """
        self._put_off.append((self.seconds() + within, call))

    def lateness(self) -> float:
        """Return for how many seconds what is handled now may have waited for its turn.

        That is the work of the last iteration, and of this one so far.
        """
        return max(0.0, float(self._worked + self.seconds() - self._woke))

    def addWriter(self, writer: Any) -> None:
        """Write at the end of this iteration, or when epoll reports a full socket as writable."""
        if writer not in self._full:
            self._fresh[writer] = None

    def removeWriter(self, writer: Any) -> None:
        """Stop writing."""
        if writer in self._full:
            self._full.remove(writer)
            super().removeWriter(writer)
        else:
            self._fresh.pop(writer, None)

    def removeAll(self) -> list[Any]:
        """Remove all descriptors, and return them."""
        fresh, self._fresh = self._fresh, {}
        forgotten = dict.fromkeys([*super().removeAll(), *fresh])
        self._full.clear()
        return list(forgotten)

    def getWriters(self) -> list[Any]:
        """Return all descriptors with pending output."""
        return [*super().getWriters(), *self._fresh]

    def doIteration(self, timeout: float | None) -> None:
        """End the last iteration; then wait for events, and handle them.

        Args:
            timeout: The most seconds to wait; None waits for an event.
        """
        if self._fresh or self._ending:
            timeout = self._finish(timeout)
        events = self._wait(0.0 if self._put_off else timeout)
        if self._put_off and self._is_time(bool(events) or timeout == 0.0):
            self._make_put_off()
            timeout = self._finish(timeout)
            # What was found is found again, unless its socket has been closed since.
            events = self._wait(0.0 if self._put_off else timeout)
        self._work_on(events)

    def _work_on(self, events: list[tuple[int, int]]) -> None:
        """Handle events; clients after links."""
        selectables, work = self._selectables, self._doReadOrWrite
        last = []
        for fd, event in events:
            selectable = selectables.get(fd)
            if selectable is None:
                continue
            if getattr(selectable, "serves_last", False):
                last.append((selectable, fd, event))
                continue
            try:
                work(selectable, fd, event)
            except Exception:  # noqa: BLE001 - of its loss; the others go on
                self._log.failure("the loss of a socket failed")
        for selectable, fd, event in last:
            if selectables.get(fd) is selectable:
                try:
                    work(selectable, fd, event)
                except Exception:  # noqa: BLE001 - of its loss; the others go on
                    self._log.failure("the loss of a socket failed")

    def _finish(self, timeout: float | None) -> float | None:
        """End the iteration; return how long to wait."""
        self._end_iteration()
        # Ending it may have led to calls, what was written to more to write, a loss to a stop.
        stops = self._justStopped or not self.running
        sooner = 0.0 if self._fresh or self._ending or stops else self.timeout()
        if sooner is None:
            return timeout
        return sooner if timeout is None else min(timeout, sooner)

    def _is_time(self, busy: bool) -> bool:
        """Return whether the deferred calls are due."""
        return not busy or self.seconds() >= self._put_off[0][0]

    def _make_put_off(self) -> None:
        """Make the deferred calls."""
        calls, self._put_off = self._put_off, []
        for _, call in calls:
            with self._log.failuresHandled("a call that was put off failed"):
                call()

    def _wait(self, timeout: float | None) -> list[tuple[int, int]]:
        """Return the events, as (descriptor, event)."""
        began = self.seconds()
        found = self._poller.poll(-1 if timeout is None else timeout, len(self._selectables))
        self._worked, self._woke = began - self._woke, self.seconds()
        return found  # type: ignore[no-any-return]

    def _end_iteration(self) -> None:
        """Make the calls for the end of the iteration; write all pending output."""
        calls = self._ending.copy()
        self._ending.clear()
        for call in calls:
            try:
                call()
            except Exception:  # noqa: BLE001 - the others go on
                self._log.failure("a call at the end of an iteration failed")
        for writer in list(self._fresh):
            if writer in self._fresh:
                self._write(writer)
        self._ask()

    def _write(self, writer: Any) -> None:
        """Write one descriptor; an error closes it."""
        try:
            why = writer.doWrite()
        except Exception as error:  # noqa: BLE001 - as EPollReactor does: it costs one connection
            self._log.failure("a socket could not be written to")
            why = error
        if why:
            self._lose(writer, why)

    def _ask(self) -> None:
        """Register a full socket with epoll."""
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
        """Close one descriptor; an error in it does not affect others."""
        self._fresh.pop(writer, None)
        with self._log.failuresHandled("the loss of a socket failed"):
            self._disconnectSelectable(writer, why, False)


def install() -> Any:
    """Install it as the reactor of this process, and return it.

    With `LINKD_REACTOR=stock` in the environment Twisted's own reactor is installed instead, by
    which the tests verify that linkd works on any reactor.

    Raises:
        ReactorAlreadyInstalledError: A reactor is already installed.
    """
    reactor = EPollReactor() if os.environ.get("LINKD_REACTOR") == "stock" else EagerWriteReactor()
    installReactor(reactor)
    return reactor
