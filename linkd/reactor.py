"""The daemon's reactor: Twisted's epoll reactor, tuned for low latency.

For each message Twisted first asks epoll whether a socket is writable: two system calls and another
iteration of the loop before the bytes are sent, and the log's writer thread may run in between.
Nearly always it is writable. This reactor writes all output of a turn at the end of the turn, and
registers only full sockets with epoll. A turn is the work that follows one wait for events.

Another thread may also run a turn while the loop's thread waits for events: the log's writer thread
runs the callbacks of a commit itself instead of waking the loop, which would cost as much as the
rest. Only one turn runs at a time: its callbacks need no lock.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from threading import Lock, Thread
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger

_SLACK = 0.001
"""Seconds by which a timer may be late: epoll waits for whole milliseconds."""

_Base: Any = EPollReactor  # it has no types


class EagerWriteReactor(_Base):  # type: ignore[misc]
    """An epoll reactor that writes first, and polls only full sockets.

    A socket whose attribute `serves_last` is true is served after all others that are ready in the
    same iteration: clients have it, so that links come first.
    """

    _log = Logger(namespace="linkd.reactor")

    def __init__(self) -> None:
        self._fresh: dict[Any, None] = {}
        self._full: set[Any] = set()
        self._last: list[Callable[[], None]] = []
        self._put_off: list[tuple[float, Callable[[], None]]] = []  # until when, what
        self._turn = Lock()  # held in every turn, by the loop whenever it does not wait
        self._turn.acquire()
        self._others = 0  # turns of other threads
        self._wakes_at: float | None = 0.0  # when the loop ends its wait of itself
        super().__init__()

    def _initThreadPool(self) -> None:
        """Make the pool's threads end with the process, even if one hangs in a name look-up."""
        super()._initThreadPool()
        self.threadpool.threadFactory = partial(Thread, daemon=True)

    def _stopThreadPool(self) -> None:
        """Stop the pool without waiting for its threads."""
        self.threadpool.threads.clear()
        super()._stopThreadPool()

    def at_turn_end(self, call: Callable[[], None]) -> None:
        """Make a call at the end of this turn, before its output is written.

        For the reactor's own thread only.
        """
        self._last.append(call)

    def when_idle(self, call: Callable[[], None], within: float) -> None:
        """Make a call once the loop is idle, after `within` seconds at the latest.

        For the reactor's own thread only.
        """
        self._put_off.append((self.seconds() + within, call))

    def in_turn(self, call: Callable[[], None]) -> None:
        """Make a call as `callFromThread` does, and in order with it; not for the loop's thread.

        While the loop waits for events, the calling thread makes the call in its own turn before
        this returns; but not once the reactor stops.
        """
        if not self._turn.acquire(blocking=False):
            self.callFromThread(call)
            return
        try:
            if self.threadCallQueue or self._stopped:
                self.callFromThread(call)
            else:
                self._others += 1
                self._turn_of_another(call)
        finally:
            self._turn.release()

    def _turn_of_another(self, call: Callable[[], None]) -> None:
        """Make a call and end its turn; wake the loop if it would now wait too long."""
        with self._log.failuresHandled("a call of another thread failed"):
            call()
        if self._fresh or self._last:
            self._end_turn()
        at_once = self._fresh or self._last or self.threadCallQueue or self._stopped
        at_once = at_once or self._put_off
        sooner = 0.0 if at_once else self.timeout()
        wakes = self._wakes_at
        if sooner is not None and (wakes is None or self.seconds() + sooner < wakes - _SLACK):
            self.wakeUp()

    def addWriter(self, writer: Any) -> None:
        """Write at the end of this turn, or when epoll reports a full socket as writable."""
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
        """End the turn; then wait for events, and handle them.

        Args:
            timeout: The most seconds to wait; None waits for an event.
        """
        if self._fresh or self._last:
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
            except Exception:  # noqa: BLE001 - of its loss; the others have their turn
                self._log.failure("the loss of a socket failed")
        for selectable, fd, event in last:
            if selectables.get(fd) is selectable:
                try:
                    work(selectable, fd, event)
                except Exception:  # noqa: BLE001 - of its loss; the others have their turn
                    self._log.failure("the loss of a socket failed")

    def _finish(self, timeout: float | None) -> float | None:
        """End the turn; return how long to wait."""
        self._end_turn()
        # Ending it may have led to calls, what was written to more to write, a loss to a stop.
        stops = self._justStopped or not self.running
        sooner = 0.0 if self._fresh or self._last or stops else self.timeout()
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
        """Return the events, as (descriptor, event); other threads run turns meanwhile."""
        most, others = len(self._selectables), self._others
        self._wakes_at = None if timeout is None else self.seconds() + timeout
        poll = self._poller.poll
        try:
            self._turn.release()
            try:
                events = poll(-1 if timeout is None else timeout, most)
            finally:
                self._turn.acquire()
            # What was found may be of a descriptor that has been closed since, and is another now.
            if events and others != self._others:
                events = poll(0, most)
        except OSError as error:
            if error.errno == errno.EINTR:
                return []
            raise
        return events  # type: ignore[no-any-return]

    def _end_turn(self) -> None:
        """Make the calls for the end of the turn; write all pending output."""
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


def install() -> EagerWriteReactor:
    """Install it as the reactor of this process, and return it.

    Raises:
        ReactorAlreadyInstalledError: A reactor is already installed.
    """
    reactor = EagerWriteReactor()
    installReactor(reactor)
    return reactor
