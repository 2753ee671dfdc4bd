"""The API's connections are bounded over all of its addresses, below the limit of descriptors."""

from __future__ import annotations

from linkd.api.http import MOST_TURNED_AWAY, SOCKET, TURNED_AWAY, Room
from linkd.config import LimitSettings


def test_a_client_of_http_leaves_places_for_the_socket() -> None:
    room = Room(LimitSettings(api_connections=16, api_connections_per_address=100))
    assert [room.enter("192.0.2.1") for _ in range(16)] == [True] * 14 + [False] * 2
    assert [room.enter(SOCKET) for _ in range(3)] == [True, True, False]
    assert room.refused == {"connections": 3}
    room.leave("192.0.2.1")
    assert room.enter(SOCKET)


def test_one_address_has_its_own_bound() -> None:
    room = Room(LimitSettings(api_connections=16, api_connections_per_address=2))
    assert [room.enter("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert room.enter("192.0.2.2")
    assert room.refused == {"address": 1}
    room.leave("192.0.2.1")
    assert room.enter("192.0.2.1")


def test_descriptors_hold_it_lower() -> None:
    room = Room(LimitSettings())
    assert room.most == LimitSettings().api_connections
    room.share = 8
    assert [room.enter("192.0.2.1") for _ in range(8)].count(True) == 7
    room.limits = LimitSettings(api_connections=4)
    assert room.most == 4


def test_an_address_with_too_many_may_hear_that_a_few_times_at_once() -> None:
    room = Room(LimitSettings(api_connections=64, api_connections_per_address=2))
    assert not room.enter_to_hear_why("192.0.2.1")
    assert [room.enter("192.0.2.1") for _ in range(2)] == [True, True]
    heard = [room.enter_to_hear_why("192.0.2.1") for _ in range(MOST_TURNED_AWAY + 1)]
    assert heard == [True] * MOST_TURNED_AWAY + [False]
    room.leave(TURNED_AWAY)
    assert room.enter_to_hear_why("192.0.2.1")
    assert room.enter("192.0.2.2")


def test_where_there_is_no_room_at_all_nobody_hears_why() -> None:
    room = Room(LimitSettings(api_connections=8, api_connections_per_address=4))
    assert [room.enter("192.0.2.1") for _ in range(4)] == [True] * 4
    assert [room.enter_to_hear_why("192.0.2.1") for _ in range(9)] == [True] * 3 + [False] * 6
    assert not room.enter("192.0.2.2")
    assert room.enter(SOCKET)
