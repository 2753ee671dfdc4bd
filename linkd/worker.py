"""A thread for what may wait for a disk or a network, so that the event loop does not."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import blockingCallFromThread
from twisted.python.failure import Failure

from linkd.errors import Unavailable

MAX_WAITING: Final = 256

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Make calls one after another in a thread of its own.

    State that only such calls use needs no lock. The thread starts with the first call, and ends
    with the process, whatever hangs in it.

    Args:
        reactor: Twisted's; results are delivered in its thread.
        name: Of the thread.
    """

    def __init__(self, reactor: Any, name: str) -> None:
        self._reactor = reactor
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting = 0
        self._started = False

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Make a call in the thread; for the reactor's thread only.

        Returns:
            Fires with its result or exception; with `Unavailable` where `MAX_WAITING` calls wait.
        """
        if self._waiting >= MAX_WAITING:
            return fail(Unavailable(f"{self._name}: {MAX_WAITING} calls wait already"))
        self._waiting += 1
        done: Deferred[T] = Deferred(lambda _: None)

        def run() -> None:
            try:
                result: T | Failure = function(*args, **kwargs)
            except Exception:  # noqa: BLE001 - the caller gets it
                result = Failure()
            self._reactor.callFromThread(self._over, done, result)

        self._calls.put(run)
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        return done

    def in_reactor(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call in the reactor's thread and return its result; for the worker's calls."""
        call: Any = partial(function, *args, **kwargs)
        result: T = blockingCallFromThread(self._reactor, call)
        return result

    def _over(self, done: Deferred[Any], result: object) -> None:
        self._waiting -= 1
        if not done.called:
            done.callback(result)

    def _run(self) -> None:
        while True:
            self._calls.get()()
