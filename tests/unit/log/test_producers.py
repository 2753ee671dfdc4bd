"""Producers: which numbers are proven to be stored, whose they are, and how much is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.log import producers as producers_module
from linkd.log.origins import Undo
from linkd.log.producers import (
    FOREVER,
    KEPT_RUNS,
    MAX_HOLES,
    MAX_PRODUCERS,
    MAX_RUNS,
    Produced,
    Producers,
)
from linkd.log.state import State, take_back
from linkd.protocol.records import Producer


def note(
    producers: Producers,
    number: int,
    offset: int,
    counts: tuple[int, ...] = (1,),
    *,
    name: str = "p",
    owner: str = "shop",
    stamp: float = 1.0,
) -> Undo:
    """Note numbers up to `number`; return how to take that back."""
    undo: Undo = []
    producers.note(Producer(name, number, owner), offset, counts, stamp, undo)
    return undo


def stored(
    producers: Producers, number: int, name: str = "p", owner: str = "shop"
) -> tuple[int, int] | None:
    """Return what a repeat of `number` is answered."""
    return producers.stored(Producer(name, number, owner))


def test_a_producer_is_its_owners() -> None:
    producers = Producers()
    note(producers, 2**62, 7, owner="mallory")
    assert stored(producers, 2) is None
    assert (producers.highest("shop", "p"), producers.highest("mallory", "p")) == (0, 2**62)


def test_a_number_that_was_never_stored_is_no_repeat() -> None:
    producers = Producers()
    note(producers, 1, 10)
    note(producers, 9, 20)
    assert [stored(producers, n) for n in (1, 2, 8, 9, 10)] == [
        (10, 1), None, None, (20, 1), None,
    ]  # fmt: skip
    note(producers, 5, 30, (2,))
    assert [stored(producers, n) for n in (4, 5, 6)] == [None, (30, 2), None]
    note(producers, 5, 77)  # the same once more changes nothing
    assert stored(producers, 5) == (30, 2)
    assert producers.highest("shop", "p") == 9


def test_it_is_known_from_where_on_a_number_is_stored() -> None:
    producers = Producers()
    assert producers.new_until(Producer("p", 1, "shop")) == FOREVER
    note(producers, 5, 1)
    assert producers.new_until(Producer("p", 1, "shop")) == 5
    assert producers.new_until(Producer("p", 6, "shop")) == FOREVER


def test_a_run_is_noted_and_taken_back_as_one() -> None:
    producers = Producers()
    note(producers, 1, 1)
    undo = note(producers, 4, 2, (5, 1, 2), stamp=2.0)
    assert [stored(producers, n) for n in (1, 2, 3, 4, 5)] == [
        (1, 1), (2, 5), (7, 1), (8, 2), None,
    ]  # fmt: skip
    take_back(undo)
    assert [stored(producers, n) for n in (1, 2, 4)] == [(1, 1), None, None]
    take_back(note(producers, 1, 1, name="q"))
    assert len(producers) == 1


@pytest.mark.parametrize("others", [0, 999, MAX_PRODUCERS - 1])
def test_of_old_numbers_the_proof_is_kept_and_the_offset_forgotten(others: int) -> None:
    producers = Producers()
    for number in range(others):
        note(producers, 1, 1, name=f"other{number}")
    for number in range(1, 10_001):
        note(producers, number, 10 * number, (2,))
    *_, (_, known) = producers.known.items()
    kept = {0: MAX_HOLES, 999: 160, MAX_PRODUCERS - 1: KEPT_RUNS}[others]
    assert len(known.runs) <= kept + 8
    for number in range(10_000 - kept + 2, 10_001):
        assert stored(producers, number) == (10 * number, 2)
    assert stored(producers, 1) == (0, 0)
    assert stored(producers, 5_000) == (0, 0)


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("counts", [(3, 1), (3, 1, 2), (3, 1) * 12])
def test_runs_are_folded_whatever_their_number_grows_by(
    first: int, counts: tuple[int, ...]
) -> None:
    producers, number, offset = Producers(), 0, 1
    for each in range(first):
        number += 1
        note(producers, number, offset, (each + 1,))
        offset += each + 1
    for _ in range(1000):
        number += len(counts)
        note(producers, number, offset, counts)
        offset += sum(counts)
    assert len(producers.known["shop", "p"].runs) <= MAX_HOLES + len(counts) + 8
    assert [stored(producers, n) for n in (1, number)] == [
        (0, 0),
        (offset - counts[-1], counts[-1]),
    ]


def test_a_number_below_what_is_known_is_neither_new_nor_a_repeat() -> None:
    producers = Producers()
    for number in range(1, 2 * (MAX_HOLES + 100), 2):
        note(producers, number, number)
    (_, known), *_ = producers.known.items()
    assert len(known.runs) <= MAX_HOLES + KEPT_RUNS + 8
    for number in (1, 2):
        with pytest.raises(LookupError):
            stored(producers, number)
    assert stored(producers, known.floor + 1) is None
    assert stored(producers, known.floor + 2) == (known.floor + 2, 1)
    alone = Producers({("shop", "p"): Produced(1.0, (), 5)})
    with pytest.raises(LookupError):
        stored(alone, 5)
    assert stored(alone, 6) is None
    assert alone.highest("shop", "p") == 5


def test_silent_producers_are_forgotten() -> None:
    producers = Producers()
    note(producers, 1, 1, name="old", stamp=1.0)
    note(producers, 1, 2, name="new", stamp=5.0)
    producers.forget(5.0)
    assert [key for key, _ in producers.known.items()] == [("shop", "new")]


def test_beyond_the_bound_the_owner_with_the_most_loses_its_oldest() -> None:
    producers = Producers()
    note(producers, 1, 1, stamp=0.0)
    for number in range(MAX_PRODUCERS + 500):
        note(producers, 1, 2, name=f"p{number}", owner="greedy", stamp=float(number))
    assert len(producers) <= MAX_PRODUCERS + 100
    assert stored(producers, 1) == (1, 1)
    assert stored(producers, 1, "p0", "greedy") is None
    assert stored(producers, 1, f"p{MAX_PRODUCERS + 499}", "greedy") == (2, 1)
    assert list(producers.forgotten) == ["greedy"]


def test_beyond_the_bound_of_runs_the_owner_with_the_most_keeps_its_newest_alone() -> None:
    producers = Producers()
    for number in range(1, 100, 2):
        note(producers, number, number)
    for name in range(MAX_RUNS // 200):
        for number in range(1, 400, 2):
            note(producers, number, number, name=str(name), owner="greedy")
    producers.forget(0.0)
    runs = {key: len(known.runs) for key, known in producers.known.items()}
    assert sum(runs.values()) <= MAX_RUNS
    assert runs["shop", "p"] == 50
    assert list(producers.forgotten) == ["greedy"]
    with pytest.raises(LookupError):
        stored(producers, 1, "0", "greedy")


def test_what_is_known_outlives_a_restart() -> None:
    state = State("log")
    undo: Undo = []
    state.producers.note(Producer("p", 3, "shop"), 10, (1, 2), 5.0, undo)
    again = State.restored("log", state.slices()).producers
    assert [stored(again, n) for n in (1, 2, 3)] == [None, (10, 1), (11, 2)]


def test_what_an_older_linkd_stored_is_proven_for_every_owner_of_that_name() -> None:
    old = Produced.of_recent(1.0, 9, [(7, 70, 1), (9, 90, 2)])
    producers = Producers({("", "p"): old})
    assert [stored(producers, n) for n in (7, 8, 9, 10)] == [(70, 1), None, (90, 2), None]
    with pytest.raises(LookupError):
        stored(producers, 6)
    note(producers, 10, 100)
    assert (stored(producers, 7), stored(producers, 10)) == ((70, 1), (100, 1))
    assert stored(producers, 10, owner="till") is None
    assert Produced.of_recent(1.0, 9, ()).floor == 9


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 4)), max_size=200))
def test_an_answer_is_never_wrong(publishes: list[tuple[int, int]]) -> None:
    """A repeat is answered with its offset or with none, and only where it was stored."""
    producers, model, offset = Producers(), dict[int, tuple[int, int]](), 1
    for number, count in publishes:
        answer = stored(producers, number)
        if number in model:
            assert answer == model[number]
            continue
        assert answer is None
        note(producers, number, offset, (count,))
        model[number] = (offset, count)
        offset += count + 1
    for number in range(1, 61):
        assert stored(producers, number) == model.get(number)


def test_producers_without_holes_are_never_thinned_however_many_there_are() -> None:
    for few in (1, 100, 700, 2_000, MAX_PRODUCERS):
        producers, most = Producers(), 0
        for number in range(1, few):
            note(producers, 1, 1, name=f"other{number}")
        for number in range(1, 600):
            note(producers, number, 7 * number)
            *_, (_, known) = producers.known.items()
            most = max(most, len(known.runs))
        assert most * few <= MAX_RUNS


def test_offsets_go_before_numbers_where_more_producers_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(producers_module, "MAX_RUNS", 200)
    producers = Producers()
    for number in range(1, 301):
        note(producers, number, 7 * number)
    producers.forget(0.0)
    assert producers.forgotten == {}
    assert [stored(producers, n) for n in (1, 200, 300)] == [(0, 0), (0, 0), (2100, 1)]


def test_all_owners_are_thinned_to_what_is_always_kept_and_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(producers_module, "MAX_RUNS", KEPT_RUNS)
    producers = Producers()
    for owner, step in (("shop", 1), ("till", 2)):
        for number in range(1, 21):
            note(producers, step * number, 7 * number, owner=owner)
    producers.forget(0.0)
    assert {key[0]: len(known.runs) for key, known in producers.known.items()} == {
        "shop": KEPT_RUNS,
        "till": KEPT_RUNS,
    }
    assert producers.forgotten == {"shop": 1, "till": 1}
    producers.forgotten.clear()
    producers.forget(0.0)
    assert producers.forgotten == {}  # nothing more was lost
    note(producers, 1, 1, owner="till")
    assert producers.new_until(Producer("p", 0, "till")) == 1


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.integers(1, 3), min_size=1, max_size=7)),
        max_size=3,
    )
)
def test_numbers_noted_together_are_as_if_noted_one_by_one(
    publishes: list[tuple[int, list[int]]],
) -> None:
    together, singly = Producers(), Producers()
    offset = 1
    for first, counts in publishes:
        note(together, first + len(counts) - 1, offset, tuple(counts))
        for number, count in enumerate(counts, first):
            note(singly, number, offset, (count,))
            offset += count
    assert list(together.known.items()) == list(singly.known.items())
