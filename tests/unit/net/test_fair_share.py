"""The share of the event loop that all connections of the API have together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from linkd.net.rate_limit import SHARE_SECONDS, SLICE_SECONDS, FairShare, serve_last
from tests.support.step_clock import StepClock


@pytest.fixture
def said() -> Iterator[list[Any]]:
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def test_a_connection_has_a_slice_and_all_together_a_share() -> None:
    loop = StepClock()
    share = FairShare(loop)
    assert share.left() == SLICE_SECONDS
    assert share.end() == loop.seconds() + SLICE_SECONDS
    loop.rightNow += SHARE_SECONDS - 0.001
    assert share.left() == pytest.approx(0.001)
    loop.rightNow += 0.001
    assert share.left() == 0.0
    loop.advance(0)
    assert share.left() == SLICE_SECONDS


def test_who_comes_while_others_queue_queues_too() -> None:
    loop = StepClock()
    share = FairShare(loop)
    share.queue(lambda: None)
    assert share.left() == 0.0
    loop.advance(0)
    assert share.left() == SLICE_SECONDS


def test_jobs_have_their_turns_in_order_within_the_share_of_each_iteration() -> None:
    loop = StepClock()
    share = FairShare(loop)
    done: list[int] = []

    def job(number: int) -> Callable[[], None]:
        def work() -> None:
            done.append(number)
            assert share.left() > 0
            loop.rightNow += SLICE_SECONDS

        return work

    for number in range(10):
        share.queue(job(number))
    loop.advance(0)
    assert done == [0, 1, 2, 3]
    loop.advance(0)
    assert done == [0, 1, 2, 3, 4, 5, 6, 7]
    loop.advance(0)
    assert done == list(range(10))
    assert not loop.getDelayedCalls()


def test_a_job_that_queues_again_comes_behind_the_others() -> None:
    loop = StepClock()
    share = FairShare(loop)
    done: list[str] = []

    def again() -> None:
        done.append("first")
        if len(done) < 3:
            share.queue(again)

    share.queue(again)
    share.queue(lambda: done.append("second"))
    loop.advance(0)
    assert done == ["first", "second", "first"]


def test_a_mistake_in_a_job_costs_no_other_its_turn(said: list[Any]) -> None:
    loop = StepClock()
    share = FairShare(loop)
    done: list[int] = []
    share.queue(lambda: done.append(1 // 0))
    share.queue(lambda: done.append(2))
    loop.advance(0)
    assert done == [2]
    assert [event["event"] for event in said] == ["node.bug"]


def test_a_turn_that_was_given_up_fires_nothing() -> None:
    loop = StepClock()
    share = FairShare(loop)
    waiting, given_up = share.turn(), share.turn()
    fired: list[object] = []
    waiting.addCallback(fired.append)
    given_up.addErrback(lambda _: None)
    given_up.cancel()
    loop.advance(0)
    assert fired == [None]


def test_a_clock_without_iterations_has_slices_all_the_same() -> None:
    clock = Clock()
    share = FairShare(clock)
    for _ in range(10):
        assert share.left() == SLICE_SECONDS
        clock.advance(SLICE_SECONDS)
    done: list[int] = []
    share.queue(lambda: done.append(1))
    clock.advance(0)
    assert done == [1]
    assert share.left() == SLICE_SECONDS
    assert not clock.getDelayedCalls()


def test_the_socket_below_tls_is_the_one_that_is_served_last() -> None:
    class Transport:
        pass

    plain, tls = Transport(), Transport()
    tls.transport = Transport()  # type: ignore[attr-defined]
    serve_last(plain)
    serve_last(tls)
    serve_last(object())
    assert plain.serves_last  # type: ignore[attr-defined]
    assert tls.transport.serves_last  # type: ignore[attr-defined]
    assert not hasattr(tls, "serves_last")
