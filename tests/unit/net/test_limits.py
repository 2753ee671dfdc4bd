"""Token buckets: never more than the rate, no address at another's cost, bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.config import LimitSettings
from linkd.net.admission import Admission
from linkd.net.auth import Nonces
from linkd.net.rate_limit import Bucket, Buckets, origin


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
    bucket, now, taken = Bucket(rate, burst, 0.0), 0.0, 0
    for gap in gaps:
        now += gap
        wait = bucket.take(now)
        taken += wait == 0
        assert 0 <= wait <= 1 / rate + 1e-9
    assert taken <= burst + rate * now + 1e-6


def test_a_token_is_there_after_the_wait() -> None:
    bucket = Bucket(2.0, 1.0, 10.0)
    assert bucket.take(10.0) == 0
    assert bucket.take(10.0) == pytest.approx(0.5)
    assert bucket.take(10.49) > 0
    assert bucket.take(10.5) == 0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = Bucket(1.0, 1.0, 10.0)
    assert bucket.take(10.0) == 0
    assert bucket.take(5.0) > 0
    assert bucket.take(10.5) > 0
    assert bucket.take(11.0) == 0


def test_a_flood_from_one_address_leaves_the_others_their_share() -> None:
    buckets = Buckets(rate=1, burst=5, total_rate=10, total_burst=20)
    assert sum(buckets.take("192.0.2.1", 0.0) == 0 for _ in range(1000)) == 5
    assert buckets.take("192.0.2.2", 0.0) == 0


def test_all_together_are_bounded_and_who_waits_loses_nothing() -> None:
    buckets = Buckets(rate=1, burst=5, total_rate=10, total_burst=20)
    taken = sum(buckets.take(f"192.0.2.{host}", 0.0) == 0 for host in range(100))
    assert taken == 20
    assert buckets.take("192.0.2.99", 0.1) == 0


def test_one_network_is_one_address() -> None:
    buckets = Buckets(rate=1, burst=2, total_rate=100, total_burst=100)
    taken = sum(buckets.take(f"2001:db8::{host:x}", 0.0) == 0 for host in range(50))
    assert taken == 2


def test_memory_is_bounded_and_the_quiet_are_forgotten_first() -> None:
    buckets = Buckets(rate=0.001, burst=1, total_rate=1e6, total_burst=1e6, addresses=100)
    assert buckets.take("192.0.2.1", 0.0) == 0
    for host in range(99):
        buckets.take(f"198.51.100.{host}", 0.0)
    assert buckets.take("192.0.2.1", 0.0) > 0
    for number in range(99):
        buckets.take(f"203.0.113.{number}", 0.0)
    assert len(buckets) == 100
    assert buckets.take("192.0.2.1", 0.0) > 0


def test_one_host_does_not_get_more_by_its_many_ipv6_addresses() -> None:
    admission = Admission(LimitSettings(pending_per_address=2, handshakes_per_second_per_address=1))
    gone: list[int] = []
    for number in (1, 2, 3):
        admission.enter(f"2001:db8::{number}", lambda _, number=number: gone.append(number))
    assert gone == [1]
    admission.enter("2001:db8:0:1::3", lambda _: gone.append(4))
    assert gone == [1]
    assert admission.rate("2001:db8::1", 0.0) is None
    assert admission.rate("2001:db8::2", 0.0) is not None
    nonces = Nonces(per_address=1)
    assert nonces.issue(0.0, "2001:db8::1") is not None
    assert nonces.issue(0.0, "2001:db8::2") is None
