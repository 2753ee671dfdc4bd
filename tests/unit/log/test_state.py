"""What a log remembers beside its records, and what it forgets so that it stays small."""

from __future__ import annotations

import pytest

from linkd.core.batch import NOWHERE, Batch, Producer
from linkd.errors import Gap
from linkd.log.state import MAX_EPOCHS, MAX_PRODUCERS, MAX_RECENT, State, take_back
from linkd.log.tail import Tail


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


def test_a_producers_old_sequences_are_known_by_number_alone() -> None:
    state = State("log")
    for sequence in range(1, 2 * MAX_RECENT + 2):
        state.number(Producer("p", sequence), 10 * sequence, 2, 1.0)
    assert len(state._recent["p"]) <= 2 * MAX_RECENT
    assert state.repeated(Producer("p", 2 * MAX_RECENT + 2)) is None
    assert state.repeated(Producer("p", 2 * MAX_RECENT + 1)) == (10 * (2 * MAX_RECENT + 1), 2)
    assert state.repeated(Producer("p", MAX_RECENT + 1)) == (10 * (MAX_RECENT + 1), 2)
    assert state.repeated(Producer("p", MAX_RECENT)) == (0, 0)
    assert state.repeated(Producer("p", 1)) == (0, 0)
    assert state.repeated(Producer("q", 1)) is None
    again = State.restored(state.snapshot())
    assert again.repeated(Producer("p", 2 * MAX_RECENT)) == (20 * MAX_RECENT, 2)
    assert again.repeated(Producer("p", 3)) == (0, 0)


def test_a_run_of_sequences_is_noted_and_taken_back_as_one() -> None:
    state = State("log")
    state.number(Producer("p", 1), 1, 1, 1.0)
    state.undo = []
    state.number_run(Producer("p", 4), 2, [5, 1, 2], 2.0)
    found = [state.repeated(Producer("p", n)) for n in (1, 2, 3, 4, 5)]
    assert found == [(1, 1), (2, 5), (7, 1), (8, 2), None]
    take_back(state.undo)
    found = [state.repeated(Producer("p", n)) for n in (1, 2, 4)]
    assert found == [(1, 1), None, None]


def test_producers_are_forgotten_once_silent_and_above_a_number_the_longest_silent() -> None:
    state = State("log")
    for number in range(MAX_PRODUCERS + 5):
        state.number(Producer(f"p{number}", 1), 1, 1, float(number))
    state.forget_producers(0.0)
    assert state.repeated(Producer("p4", 1)) is None
    assert state.repeated(Producer("p5", 1)) == (1, 1)
    state.forget_producers(100.0)
    assert state.repeated(Producer("p99", 1)) is None
    assert state.repeated(Producer("p100", 1)) == (1, 1)
    assert len(state._recent) == MAX_PRODUCERS + 5 - 100


def batch(offset: int, count: int = 1, size: int = 10) -> Batch:
    """Return a batch of empty bytes."""
    return Batch(offset, "orders", count, bytes(size), 1.0, NOWHERE)


def test_the_tail_keeps_the_newest_and_frees_what_it_forgot() -> None:
    tail = Tail(100 * 410, 1)
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
    tail = Tail(None, 1)
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
