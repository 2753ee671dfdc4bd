"""The account of the bytes that are held for callers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from linkd.api.http import Account


def test_one_caller_alone_may_hold_half_and_leaves_room_for_more() -> None:
    account = Account(1000)
    one, two, three = (account.part(name) for name in ("one", "two", "three"))
    assert one.take(500)
    assert not one.take(1)
    assert two.take(250)
    assert not two.take(1)
    assert three.take(125)
    assert account.held == 875


def test_what_is_given_back_wakes_those_who_wait_once() -> None:
    account = Account(1000)
    part = account.part("one")
    assert account.part("one") is part
    woken: list[int] = []

    def wake() -> None:
        woken.append(part.held)

    part.add(700)
    account.when_freed(wake)
    account.when_freed(wake)
    part.add(0)
    part.give(0)
    assert not woken
    part.give(600)
    part.give(100)
    assert woken == [100]
    account.when_freed(wake)
    account.forget(wake)
    account.forget(wake)
    part.add(1)
    part.give(1)
    assert woken == [100]
    assert account.held == 0


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 300)), max_size=100),
)
def test_there_is_always_room_for_one_more(takes: list[tuple[int, int]]) -> None:
    account = Account(1000)
    for caller, size in takes:
        account.part(str(caller)).take(size)
    assert account.held <= 1000
    assert account.part("another").take((1000 - account.held) // 2)
    most = max(account.part(str(caller)).held for caller in range(10))
    assert most <= 500
