"""Ids: found, forgotten by age and by number, each owner for itself."""

from __future__ import annotations

from typing import Any

from linkd.log.state import Ids, digest, take_back


def test_an_id_is_its_channels() -> None:
    assert digest("a", "x") == digest("a", "x")
    assert digest("a", "x") != digest("b", "x")
    assert digest("a", "bx") != digest("ab", "x")


def test_an_id_is_its_owners() -> None:
    ids = Ids(80.0, 1000)
    key = digest("c", "x")
    ids.add("shop", key, 1, 0.0)
    ids.add("till", key, 2, 0.0)
    assert (ids.find("shop", key), ids.find("till", key), ids.find("bar", key)) == (1, 2, None)


def test_an_id_without_owner_is_everybodys() -> None:
    ids = Ids(80.0, 1000)
    key = digest("c", "x")
    ids.add("", key, 1, 0.0)
    assert (ids.find("shop", key), ids.find("", key)) == (1, 1)
    assert ids.find("shop", digest("c", "y")) is None


def test_ids_are_forgotten_once_older_than_the_window() -> None:
    ids = Ids(80.0, 1000)
    for second in range(200):
        ids.add("shop", digest("c", str(second)), second + 1, float(second))
        if second >= 79:
            assert ids.find("shop", digest("c", str(second - 79))) == second - 78
    assert ids.find("shop", digest("c", "100")) is None
    assert len(ids) <= 100
    found = [("shop", digest("c", "198"), 199), ("shop", digest("c", "199"), 200)]
    assert list(ids.since(199)) == found
    assert ids.forgotten == {}


def test_a_share_that_is_not_used_any_more_is_forgotten_too() -> None:
    ids = Ids(80.0, 1000)
    ids.add("old", digest("c", "x"), 1, 0.0)
    for number in range(1000):
        ids.add("shop", digest("c", str(number)), number + 2, 200.0)
    assert ids.find("old", digest("c", "x")) is None
    assert len(ids) == 1000


def test_beyond_the_bound_the_greediest_owner_loses_its_oldest() -> None:
    ids = Ids(1e9, 10_000)
    mine = digest("orders", "pay-1")
    ids.add("shop", mine, 1, 5.0)
    ids.add("greedy", digest("news", "n"), 2, 6.0)
    for number in range(50_000):
        ids.add("greedy", digest("chat", str(number)), number + 3, 10.0)
    assert ids.find("shop", mine) == 1
    assert ids.find("greedy", digest("news", "n")) == 2
    assert ids.find("greedy", digest("chat", "49999")) == 50_002
    assert ids.find("greedy", digest("chat", "0")) is None
    assert len(ids) <= 10_000 + 4096
    assert list(ids.forgotten) == ["greedy"]
    assert ids.forgotten["greedy"].count + len(ids) == 50_002
    assert ids.forgotten["greedy"].age == 0.0


def test_within_one_owner_the_greediest_channel_loses() -> None:
    ids = Ids(1e9, 1000)
    for number in range(400):
        ids.add("socket", digest("orders", str(number)), number + 1, 0.0)
    for number in range(5000):
        ids.add("socket", digest("chat", str(number)), number + 401, 1.0)
    assert all(ids.find("socket", digest("orders", str(number))) for number in range(400))


def test_what_was_added_can_be_taken_back() -> None:
    ids, undo = Ids(10.0, 80), list[Any]()
    key = digest("c", "x")
    ids.add("shop", key, 7, 0.0, undo)
    take_back(undo)
    assert ids.find("shop", key) is None


def test_an_id_that_was_taken_back_and_given_again_is_as_young_as_it_is() -> None:
    ids, undo = Ids(80.0, 1000), list[Any]()
    key = digest("c", "x")
    ids.add("shop", key, 1, 0.0, undo)
    ids.add("shop", digest("c", "a"), 1, 0.0)
    take_back(undo)
    ids.add("shop", key, 2, 50.0)
    ids.add("shop", digest("c", "b"), 3, 135.0)
    assert (ids.find("shop", key), ids.find("shop", digest("c", "a"))) == (2, None)
    assert list(ids.since(2)) == [("shop", digest("c", "b"), 3), ("shop", key, 2)]
