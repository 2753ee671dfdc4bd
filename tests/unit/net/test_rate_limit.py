"""Token buckets: never more than the rate, no address at another's cost, bounded memory. The share
of the event loop that all connections of the API have together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from linkd.config import LimitSettings
from linkd.net.admission import ConnectionLimiter
from linkd.net.auth import Nonces
from linkd.net.rate_limit import (
    COMPETE_SECONDS,
    REQUESTS_RUN,
    SHARE_SECONDS,
    SLICE_SECONDS,
    FairShare,
    RateLimiter,
    TokenBucket,
    origin,
    serve_last,
)
from tests.support.step_clock import StepClock


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_what_an_address_counts_as(address: str, expected: str) -> None:
    assert origin(address) == expected


@given(
    rate=st.floats(0.1, 1000),
    burst=st.floats(1, 100),
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=200),
)
def test_never_more_than_burst_and_rate(rate: float, burst: float, gaps: list[float]) -> None:
    bucket, now, taken = TokenBucket(rate, burst, 0.0), 0.0, 0
    for gap in gaps:
        now += gap
        wait = bucket.take(now)
        taken += wait == 0
        assert 0 <= wait <= 1 / rate + 1e-9
    assert taken <= burst + rate * now + 1e-6


def test_a_token_is_there_after_the_wait() -> None:
    bucket = TokenBucket(2.0, 1.0, 10.0)
    assert bucket.take(10.0) == 0
    assert bucket.take(10.0) == pytest.approx(0.5)
    assert bucket.take(10.49) > 0
    assert bucket.take(10.5) == 0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(1.0, 1.0, 10.0)
    assert bucket.take(10.0) == 0
    assert bucket.take(5.0) > 0
    assert bucket.take(10.5) > 0
    assert bucket.take(11.0) == 0


def test_a_flood_from_one_address_leaves_the_others_their_share() -> None:
    buckets = RateLimiter(rate=1, burst=5, total_rate=10, total_burst=20)
    assert sum(buckets.take("192.0.2.1", 0.0) == 0 for _ in range(1000)) == 5
    assert buckets.take("192.0.2.2", 0.0) == 0


def test_all_together_are_bounded_and_who_waits_loses_nothing() -> None:
    buckets = RateLimiter(rate=1, burst=5, total_rate=10, total_burst=20)
    taken = sum(buckets.take(f"192.0.2.{host}", 0.0) == 0 for host in range(100))
    assert taken == 20
    assert buckets.take("192.0.2.99", 0.1) == 0


def test_one_network_is_one_address() -> None:
    buckets = RateLimiter(rate=1, burst=2, total_rate=100, total_burst=100)
    taken = sum(buckets.take(f"2001:db8::{host:x}", 0.0) == 0 for host in range(50))
    assert taken == 2


def test_memory_is_bounded_and_the_quiet_are_forgotten_first() -> None:
    buckets = RateLimiter(rate=0.001, burst=1, total_rate=1e6, total_burst=1e6, addresses=100)
    assert buckets.take("192.0.2.1", 0.0) == 0
    for host in range(99):
        buckets.take(f"198.51.100.{host}", 0.0)
    assert buckets.take("192.0.2.1", 0.0) > 0
    for number in range(99):
        buckets.take(f"203.0.113.{number}", 0.0)
    assert len(buckets) == 100
    assert buckets.take("192.0.2.1", 0.0) > 0


def test_one_host_does_not_get_more_by_its_many_ipv6_addresses() -> None:
    admission = ConnectionLimiter(
        LimitSettings(pending_per_address=2, handshakes_per_second_per_address=1)
    )
    gone: list[int] = []
    for number in (1, 2, 3):
        admission.enter(f"2001:db8::{number}", lambda _, number=number: gone.append(number))
    assert gone == [1]
    admission.enter("2001:db8:0:1::3", lambda _: gone.append(4))
    assert gone == [1]
    assert admission.ask("2001:db8::1", 0.0) is None
    assert admission.ask("2001:db8::2", 0.0) is not None
    nonces = Nonces(per_address=1)
    assert nonces.issue(0.0, "2001:db8::1") is not None
    assert nonces.issue(0.0, "2001:db8::2") is None


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


def test_callers_have_turns_in_rotation_however_many_connections_one_has() -> None:
    loop = StepClock()
    share = FairShare(loop)
    done: list[str] = []

    def job(caller: str) -> Callable[[], None]:
        def work() -> None:
            done.append(caller)
            loop.rightNow += SLICE_SECONDS
            share.queue(job(caller), caller)

        return work

    for _ in range(256):
        share.queue(job("flood"), "flood")
    for caller in ("one", "two"):
        share.queue(job(caller), caller)
    for _ in range(8):
        loop.advance(0)
    assert done == ["flood", "one", "two"] * 8


def test_jobs_of_one_caller_keep_their_order() -> None:
    loop = StepClock()
    share = FairShare(loop)
    done: list[str] = []
    for name in ("a1", "a2", "b1", "a3", "b2"):
        share.queue(lambda name=name: done.append(name), name[0])
    loop.advance(0)
    assert done == ["a1", "a2", "a3", "b1", "b2"]
    assert share.left() == SLICE_SECONDS


def flooding(loop: StepClock, share: FairShare, done: list[str], seconds: float) -> None:
    """Queue a job of a caller that has the next one ready as soon as one is done."""

    def work() -> None:
        done.append("flood")
        loop.rightNow += seconds
        share.queue(work, "flood")

    share.queue(work, "flood")


def test_requests_of_a_caller_begin_ahead_of_what_goes_on_which_has_its_turns() -> None:
    loop = StepClock()
    share = FairShare(loop)
    done: list[str] = []
    for _ in range(3):
        share.queue(lambda: done.append("reader"), "one")
    for _ in range(REQUESTS_RUN + 1):
        share.queue(lambda: done.append("request"), "one", is_request=True)
    loop.advance(0)
    first = ["request"] * REQUESTS_RUN
    assert done == [*first, "reader", "request", "reader", "reader"]


def test_competing_callers_have_one_slice_an_iteration() -> None:
    loop = StepClock()
    share = FairShare(loop)
    done: list[str] = []
    flooding(loop, share, done, SLICE_SECONDS)
    loop.advance(COMPETE_SECONDS)
    loop.advance(0)
    assert done == ["flood"] * 8
    done.clear()
    for _ in range(4):
        share.queue(lambda: done.append("other"), "other")
        loop.advance(0)
    assert done[-6:] == ["flood", "other"] * 3
    done.clear()
    loop.advance(COMPETE_SECONDS)
    assert len(done) >= 4


def test_competing_callers_share_one_slice_for_work_at_once() -> None:
    loop = StepClock()
    share = FairShare(loop)
    share.queue(lambda: None, "address")
    share.queue(lambda: None, "name of the same")
    loop.advance(0)
    loop.advance(0)
    assert share.left() == SLICE_SECONDS
    loop.rightNow += SLICE_SECONDS
    assert share.left() == SLICE_SECONDS
    for caller in ("one", "two", "one"):
        share.queue(lambda: None, caller)
    loop.advance(0)
    loop.advance(0)
    assert share.left() == SLICE_SECONDS
    loop.rightNow += SLICE_SECONDS
    assert share.left() == 0.0
    loop.advance(COMPETE_SECONDS)
    loop.rightNow += SLICE_SECONDS
    assert share.left() == SLICE_SECONDS


def test_callers_of_which_each_comes_once_do_not_compete() -> None:
    loop = StepClock()
    share = FairShare(loop)
    done: list[str] = []
    for number in range(1000):
        share.queue(lambda: None, f"address {number}")
    loop.advance(0)
    flooding(loop, share, done, SLICE_SECONDS)
    loop.advance(0)
    assert done == ["flood"] * 4


def test_a_competing_caller_rests_for_as_long_as_its_job_took_too_long() -> None:
    loop = StepClock()
    share = FairShare(loop)
    done: list[str] = []
    share.queue(lambda: None, "flood")
    share.queue(lambda: None, "other")
    loop.advance(0)
    flooding(loop, share, done, 5 * SLICE_SECONDS)
    loop.advance(0)
    assert done == ["flood"]
    share.queue(lambda: done.append("other"), "other")
    loop.advance(0)
    assert done == ["flood", "other"]
    loop.advance(3 * SLICE_SECONDS)
    assert done == ["flood", "other"]
    share.queue(lambda: done.append("other"), "other")
    loop.advance(0)
    assert done == ["flood", "other", "other"]
    loop.advance(SLICE_SECONDS)
    assert done == ["flood", "other", "other", "flood"]


def test_a_caller_alone_does_not_rest() -> None:
    loop = StepClock()
    share = FairShare(loop)
    done: list[str] = []
    flooding(loop, share, done, 5 * SLICE_SECONDS)
    loop.advance(COMPETE_SECONDS)
    for _ in range(3):
        loop.advance(0)
    assert done == ["flood"] * 4


def test_many_short_jobs_of_one_caller_are_a_turn_like_a_long_one_of_another() -> None:
    loop = StepClock()
    share = FairShare(loop)
    done: list[str] = []

    def job(caller: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            assert 0 < share.left() <= SLICE_SECONDS
            done.append(caller)
            loop.rightNow += seconds

        return work

    for _ in range(300):
        share.queue(job("short", SLICE_SECONDS / 50.5), "short")
        share.queue(job("long", SLICE_SECONDS), "long")
    loop.advance(0)
    assert (done.count("short"), done.count("long")) == (51, 1)


def test_a_mistake_in_a_job_costs_no_other_its_turn(said: list[Any]) -> None:
    loop = StepClock()
    share = FairShare(loop)
    done: list[int] = []
    share.queue(lambda: done.append(1 // 0))
    share.queue(lambda: done.append(2))
    loop.advance(0)
    assert done == [2]
    assert [event["event"] for event in said] == ["node.internal-error"]


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
