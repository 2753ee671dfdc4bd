"""Calls in a thread of their own: in order, bounded, and with a way back into the reactor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from linkd.app import MAX_WAITING, Worker
from linkd.errors import LinkdError, Unavailable


class Reactor:
    """Takes calls from threads, and makes them when the test says so."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], object]] = []
        self._came = threading.Condition()

    def callFromThread(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        with self._came:
            self._calls.append(lambda: call(*args, **kwargs))
            self._came.notify()

    def run_one(self) -> None:
        """Wait for the next call and make it here."""
        with self._came:
            assert self._came.wait_for(lambda: self._calls, 10.0)
            call = self._calls.pop(0)
        call()


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


def test_results_come_in_order_in_the_reactors_thread(reactor: Reactor) -> None:
    worker = Worker(reactor, "test-worker")
    seen: list[tuple[int, str]] = []
    for number in range(3):
        done = worker.call(lambda number=number: (number, threading.current_thread().name))
        done.addCallback(seen.append)
    for _ in range(3):
        reactor.run_one()
    assert seen == [(number, "test-worker") for number in range(3)]


def test_an_error_is_the_callers(reactor: Reactor) -> None:
    worker = Worker(reactor, "test-worker")
    errors: list[str] = []

    def fail() -> None:
        raise LinkdError("no")

    worker.call(fail).addErrback(lambda failure: errors.append(str(failure.value)))
    reactor.run_one()
    assert errors == ["no"]


def test_what_waits_is_bounded(reactor: Reactor) -> None:
    worker = Worker(reactor, "test-worker")
    gate = threading.Event()
    results: list[object] = []
    for _ in range(MAX_WAITING):
        worker.call(gate.wait, 10.0).addCallback(results.append)
    refused: list[type] = []
    worker.call(gate.wait).addErrback(lambda failure: refused.append(failure.type))
    assert refused == [Unavailable]
    gate.set()
    for _ in range(MAX_WAITING):
        reactor.run_one()
    assert results == [True] * MAX_WAITING
    worker.call(int).addCallback(results.append)
    reactor.run_one()
    assert results[-1] == 0


def test_a_call_asks_the_reactor(reactor: Reactor) -> None:
    worker = Worker(reactor, "test-worker")
    names: list[str] = []

    def here() -> str:
        return threading.current_thread().name

    def work() -> tuple[str, str]:
        return here(), worker.in_reactor(here)

    worker.call(work).addCallback(names.extend)
    reactor.run_one()
    reactor.run_one()
    assert names == ["test-worker", threading.current_thread().name]


def test_who_no_longer_waits_gets_nothing(reactor: Reactor) -> None:
    worker = Worker(reactor, "test-worker")
    done: Deferred[int] = worker.call(int)
    done.addErrback(lambda _: None)
    done.cancel()
    reactor.run_one()
    assert worker.call(int) is not None
