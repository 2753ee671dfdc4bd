"""The budget of the bytes that are held for callers. The API's connections are bounded over all
of its addresses, below the limit of descriptors.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from linkd.api.http import MAX_REFUSAL_SLOTS, REFUSAL_SLOTS, SOCKET, ConnectionSlots, MemoryBudget
from linkd.config import LimitSettings


def test_one_caller_may_hold_half_of_the_memory() -> None:
    budget = MemoryBudget(1000)
    one, two, three = (budget.for_caller(name) for name in ("one", "two", "three"))
    assert one.reserve(500)
    assert not one.reserve(1)
    assert two.reserve(250)
    assert not two.reserve(1)
    assert three.reserve(125)
    assert budget.held == 875


def test_released_bytes_wake_each_waiting_caller_once() -> None:
    budget = MemoryBudget(1000)
    part = budget.for_caller("one")
    assert budget.for_caller("one") is part
    woken: list[int] = []

    def wake() -> None:
        woken.append(part.held)

    part.add(700)
    budget.when_freed(wake)
    budget.when_freed(wake)
    part.add(0)
    part.release(0)
    assert not woken
    part.release(600)
    part.release(100)
    assert woken == [100]
    budget.when_freed(wake)
    budget.forget(wake)
    budget.forget(wake)
    part.add(1)
    part.release(1)
    assert woken == [100]
    assert budget.held == 0


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 300)), max_size=100),
)
def test_another_caller_always_gets_half_of_the_free_memory(takes: list[tuple[int, int]]) -> None:
    budget = MemoryBudget(1000)
    for caller, size in takes:
        budget.for_caller(str(caller)).reserve(size)
    assert budget.held <= 1000
    assert budget.for_caller("another").reserve((1000 - budget.held) // 2)
    most = max(budget.for_caller(str(caller)).held for caller in range(10))
    assert most <= 500


def test_http_clients_leave_connections_for_the_socket() -> None:
    slots = ConnectionSlots(LimitSettings(api_connections=16, api_connections_per_address=100))
    assert [slots.acquire("192.0.2.1") for _ in range(16)] == [True] * 14 + [False] * 2
    assert [slots.acquire(SOCKET) for _ in range(3)] == [True, True, False]
    assert slots.refused == {"connections": 3}
    slots.release("192.0.2.1")
    assert slots.acquire(SOCKET)


def test_connections_are_limited_for_each_address() -> None:
    slots = ConnectionSlots(LimitSettings(api_connections=16, api_connections_per_address=2))
    assert [slots.acquire("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert slots.acquire("192.0.2.2")
    assert slots.refused == {"address": 1}
    slots.release("192.0.2.1")
    assert slots.acquire("192.0.2.1")


def test_few_descriptors_lower_the_limit_of_connections() -> None:
    slots = ConnectionSlots(LimitSettings())
    assert slots.most == LimitSettings().api_connections
    slots.share = 8
    assert [slots.acquire("192.0.2.1") for _ in range(8)].count(True) == 7
    slots.limits = LimitSettings(api_connections=4)
    assert slots.most == 4


def test_a_few_connections_beyond_the_limit_get_a_refusal() -> None:
    slots = ConnectionSlots(LimitSettings(api_connections=64, api_connections_per_address=2))
    assert not slots.acquire_to_refuse("192.0.2.1")
    assert [slots.acquire("192.0.2.1") for _ in range(2)] == [True, True]
    heard = [slots.acquire_to_refuse("192.0.2.1") for _ in range(MAX_REFUSAL_SLOTS + 1)]
    assert heard == [True] * MAX_REFUSAL_SLOTS + [False]
    slots.release(REFUSAL_SLOTS)
    assert slots.acquire_to_refuse("192.0.2.1")
    assert slots.acquire("192.0.2.2")


def test_no_refusal_is_sent_when_all_connections_are_used() -> None:
    slots = ConnectionSlots(LimitSettings(api_connections=8, api_connections_per_address=4))
    assert [slots.acquire("192.0.2.1") for _ in range(4)] == [True] * 4
    assert [slots.acquire_to_refuse("192.0.2.1") for _ in range(9)] == [True] * 3 + [False] * 6
    assert not slots.acquire("192.0.2.2")
    assert slots.acquire(SOCKET)
