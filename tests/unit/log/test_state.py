"""Ids: found, forgotten by age and by number, each owner for itself. What a log remembers beside
its records, and what it forgets so that it stays small.
"""

from __future__ import annotations

from typing import Any

import pytest

from linkd.errors import Gap
from linkd.log.origins import Verdict
from linkd.log.segment_set import TailCache
from linkd.log.state import MAX_EPOCHS, RecentIds, State, digest, moved, take_back
from linkd.protocol.peer import EpochEnd
from linkd.protocol.records import NO_ORIGIN, Batch, Origin, SourcePosition


def test_an_id_is_its_channels() -> None:
    assert digest("a", "x") == digest("a", "x")
    assert digest("a", "x") != digest("b", "x")
    assert digest("a", "bx") != digest("ab", "x")


def test_an_id_is_its_owners() -> None:
    ids = RecentIds(80.0, 1000)
    key = digest("c", "x")
    ids.add("shop", key, 1, 0.0)
    ids.add("till", key, 2, 0.0)
    assert (ids.find("shop", key), ids.find("till", key), ids.find("bar", key)) == (1, 2, None)


def test_an_id_without_owner_is_everybodys() -> None:
    ids = RecentIds(80.0, 1000)
    key = digest("c", "x")
    ids.add("", key, 1, 0.0)
    assert (ids.find("shop", key), ids.find("", key)) == (1, 1)
    assert ids.find("shop", digest("c", "y")) is None


def test_ids_are_forgotten_once_older_than_the_window() -> None:
    ids = RecentIds(80.0, 1000)
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
    ids = RecentIds(80.0, 1000)
    ids.add("old", digest("c", "x"), 1, 0.0)
    for number in range(1000):
        ids.add("shop", digest("c", str(number)), number + 2, 200.0)
    assert ids.find("old", digest("c", "x")) is None
    assert len(ids) == 1000


def test_beyond_the_bound_the_greediest_owner_loses_its_oldest() -> None:
    ids = RecentIds(1e9, 10_000)
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
    ids = RecentIds(1e9, 1000)
    for number in range(400):
        ids.add("socket", digest("orders", str(number)), number + 1, 0.0)
    for number in range(5000):
        ids.add("socket", digest("chat", str(number)), number + 401, 1.0)
    assert all(ids.find("socket", digest("orders", str(number))) for number in range(400))


def test_what_was_added_can_be_taken_back() -> None:
    ids, undo = RecentIds(10.0, 80), list[Any]()
    key = digest("c", "x")
    ids.add("shop", key, 7, 0.0, undo)
    take_back(undo)
    assert ids.find("shop", key) is None


def test_an_id_that_was_taken_back_and_given_again_is_as_young_as_it_is() -> None:
    ids, undo = RecentIds(80.0, 1000), list[Any]()
    key = digest("c", "x")
    ids.add("shop", key, 1, 0.0, undo)
    ids.add("shop", digest("c", "a"), 1, 0.0)
    take_back(undo)
    ids.add("shop", key, 2, 50.0)
    ids.add("shop", digest("c", "b"), 3, 135.0)
    assert (ids.find("shop", key), ids.find("shop", digest("c", "a"))) == (2, None)
    assert list(ids.since(2)) == [("shop", digest("c", "b"), 3), ("shop", key, 2)]


def test_of_too_many_epochs_the_empty_ones_go_first_and_then_the_oldest() -> None:
    state = State("log")
    assert (state.epoch, state.epoch_below(5)) == ("", "")
    state.open_epoch("first", 1)
    state.next = 10
    for number in range(MAX_EPOCHS + 50):
        state.open_epoch(f"idle{number}", 10)
    kept = [start.epoch for start in state.epochs()]
    assert len(kept) == MAX_EPOCHS
    assert (kept[0], kept[-1]) == ("first", f"idle{MAX_EPOCHS + 49}")
    assert state.epoch_below(10) == "first"
    for number in range(MAX_EPOCHS + 50):
        state.next += 1
        state.open_epoch(f"busy{number}", state.next)
    kept = [start.epoch for start in state.epochs()]
    assert len(kept) == MAX_EPOCHS
    assert kept[-1] == f"busy{MAX_EPOCHS + 49}"
    assert "first" not in kept


def test_the_last_offset_of_each_own_channel_is_known_within_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = State("log")
    own.open_epoch("one", 1)
    assert [own.follow_on("a", 2, 1.0), own.follow_on("b", 3, 2.0)] == [0, 0]
    assert own.follow_on("a", 4, 3.0) == 2
    own.undo = []
    assert [own.follow_on("a", 5, 4.0), own.follow_on("c", 6, 4.0)] == [4, 0]
    take_back(own.undo)
    assert own.follow_on("a", 5, 4.0) == 4
    own.forget_channels(3.0)
    assert [own.follow_on("b", 7, 5.0), own.follow_on("a", 8, 5.0)] == [None, 5]
    own.forget_channels(100.0)
    assert own.follow_on("a", 9, 101.0) is None
    own.open_epoch("two", 10)
    assert own.follow_on("a", 10, 102.0) == 0
    monkeypatch.setattr("linkd.log.state.MAX_CHANNELS", 1)
    assert [own.follow_on(name, 11, 103.0) for name in "bab"] == [None, None, None]


def test_own_records_that_come_back_are_left_out_and_proven_where_this_log_reached() -> None:
    own = State("log")
    own.open_epoch("one", 1)
    own.next = 5
    own.open_epoch("two", 7)
    own.next = 9

    def back(epoch: str, first: int, count: int) -> Verdict | None:
        origin = Origin("here", "log", epoch, first)
        return own.admit(Batch(0, "a", count, b"", 1.0, origin), 1.0)

    for epoch, first, count, proven in (
        ("one", 1, 4, True),
        ("one", 6, 2, False),
        ("two", 7, 2, True),
        ("two", 6, 2, False),
        ("two", 8, 2, False),
        ("three", 1, 1, False),
    ):
        assert back(epoch, first, count) == Verdict((), is_proven=proven)


def batch(offset: int, count: int = 1, size: int = 10) -> Batch:
    """Return a batch of empty bytes."""
    return Batch(offset, "orders", count, bytes(size), 1.0, NO_ORIGIN)


def test_the_tail_keeps_the_newest_and_frees_what_it_forgot() -> None:
    tail = TailCache(100 * 410, 1)
    for offset in range(1, 5001):
        tail.add(batch(offset))
    assert tail.first == 4901
    assert len(tail._batches) < 2 * 1024 + 200
    assert [b.offset for b in tail.read(4901, 50)] == [4901, 4902, 4903, 4904, 4905]
    assert [b.offset for b in tail.behind(4999)] == [4999, 5000]
    assert tail.at(5001) is None
    huge = batch(5001, size=100_000)
    tail.add(huge)
    assert tail.read(5001, 1) == [huge]
    assert tail.first == 5001


def test_a_hole_in_the_tail_is_a_gap_and_ends_a_read_before_it() -> None:
    tail = TailCache(None, 1)
    for offset in (1, 3, 50):
        tail.add(batch(offset, 2))
    assert [b.offset for b in tail.read(1, 1000)] == [1, 3]
    assert [b.offset for b in tail.read(4, 1000)] == [3]
    with pytest.raises(Gap) as caught:
        tail.read(5, 1000)
    assert (caught.value.wanted, caught.value.first) == (5, 50)
    assert tail.at(5) == batch(50, 2)
    assert tail.read(52, 1000) == []
    tail.forget(4)
    assert [b.offset for b in tail.behind(0)] == [3, 50]
    assert tail.first == 4


def test_a_step_that_is_stored_in_pieces_moves_the_cursor_once() -> None:
    place = ("log", (EpochEnd("a", 5),))
    assert moved(place, SourcePosition("edge", "log", "a", 5, 9)) == ("log", (EpochEnd("a", 9),))
    assert moved(place, SourcePosition("edge", "log", "a", 1, 5)) is place
