"""Ids are remembered for a window, and no more of them than the limit."""

from __future__ import annotations

from typing import Any

from linkd.log.ids import Ids, digest
from linkd.log.state import Undo, take_back


def test_an_id_is_one_on_its_channel_only() -> None:
    assert digest("a", "x") == digest("a", "x")
    assert digest("a", "x") != digest("b", "x")
    assert digest("a", "bx") != digest("ab", "x")


def test_ids_are_forgotten_after_the_window_not_before() -> None:
    ids = Ids(80.0, 1000)
    for second in range(200):
        ids.add(digest("c", str(second)), second + 1, float(second))
        if second >= 80:
            assert ids.find(digest("c", str(second - 79))) == second - 78
    assert ids.find(digest("c", "100")) is None
    assert len(ids) <= 91
    assert dict(ids.since(199)) == {digest("c", "198"): 199, digest("c", "199"): 200}


def test_ids_are_bounded() -> None:
    ids = Ids(1e9, 80)
    for number in range(1000):
        ids.add(digest("c", str(number)), number + 1, 0.0)
    assert 70 <= len(ids) <= 100
    assert ids.find(digest("c", "999")) == 1000


def test_an_id_can_be_taken_back() -> None:
    ids, undo = Ids(10.0, 80), list[Any]()
    changes: Undo = undo
    ids.add(b"key", 1, 0.0, changes)
    take_back(changes)
    assert ids.find(b"key") is None
