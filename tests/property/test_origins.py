"""Intervals of origins: any paths, in any order, cut anywhere; what is stored is stored once."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.log import origins
from linkd.log.origins import MAX_INTERVALS, Origins, Undo
from linkd.log.state import take_back
from linkd.protocol.records import Origin
from tests.support.logs import origins_again, origins_in_one

Piece = tuple[str, str, int, int, int | None]
"""Epoch, channel, first offset, count, after."""


def written(rng: Random, channels: int, batches: int) -> list[Piece]:
    """Return what an origin has published, over one to three runs."""
    found: list[Piece] = []
    offset, epoch, last = 1, 0, dict[str, int]()
    for _ in range(batches):
        if rng.random() < 0.1:
            epoch, last, offset = epoch + 1, {}, offset + rng.choice((0, 0, 7))
        channel, count = f"c{rng.randrange(channels)}", rng.randint(1, 6)
        found.append((f"e{epoch}", channel, offset, count, last.get(channel, 0)))
        offset += count
        last[channel] = offset - 1
    return found


def cut(rng: Random, piece: Piece) -> Piece:
    """Return a part of a batch, as a node that has the rest passes it on."""
    epoch, channel, first, count, after = piece
    skip = rng.randrange(count) if rng.random() < 0.3 else 0
    some = rng.randint(1, count - skip) if rng.random() < 0.3 else count - skip
    if rng.random() < 0.1:
        return epoch, channel, first + skip, some, None
    return epoch, channel, first + skip, some, first + skip - 1 if skip else after


def paths(rng: Random, pieces: list[Piece]) -> Iterator[Piece]:
    """Yield what three paths bring: each in order, but one was added late and one was restored."""
    queues = [list(pieces) for _ in range(3)]
    del queues[1][: rng.randrange(len(pieces))]
    for queue in queues:
        again = rng.randrange(len(queue))
        queue[again:again] = queue[max(0, again - 3) : again]
        if rng.random() < 0.3:
            rng.shuffle(queue)
    while any(queues):
        queue = rng.choice([queue for queue in queues if queue])
        yield cut(rng, queue.pop(0))
    yield from pieces


def entries_of(known: Origins) -> int:
    """Count the intervals and epochs one by one."""
    epochs = [e for log in origins_in_one(known).logs.values() for e in log.epochs.values()]
    return sum(1 + sum(len(held) // 2 for held in e.channels.values()) for e in epochs)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 40))
def test_each_record_is_new_once_over_any_paths(seed: int, channels: int, batches: int) -> None:
    rng = Random(seed)
    pieces = written(rng, channels, batches)
    known, had = Origins(), set[tuple[str, str, int]]()
    for epoch, channel, first, count, after in paths(rng, pieces):
        origin = Origin("far", "log", epoch, first, after)
        undo: Undo = []
        verdict = known.admit(origin, channel, count, 0.0, undo)
        fresh = ((0, count),) if verdict is None else verdict.fresh
        new = {
            (epoch, channel, first + skip + place) for skip, some in fresh for place in range(some)
        }
        wanted = {(epoch, channel, first + place) for place in range(count)} - had
        assert new == wanted, (epoch, channel, first, count, after)
        assert verdict is None or verdict.is_proven
        if rng.random() < 0.1:
            take_back(undo)  # the disk refused
        else:
            had |= new
        if rng.random() < 0.05:
            known = origins_again(known)
    for epoch, channel, first, count, after in pieces:
        known.admit(Origin("far", "log", epoch, first, after), channel, count, 0.0, [])
    keys = {(epoch, channel) for epoch, channel, *_ in pieces}
    for epoch, channel in keys:
        assert len(known.intervals("log", epoch, channel)) == 2
    assert known.entries == len(keys) + len({epoch for epoch, _ in keys})


@pytest.mark.parametrize("channels", [1, 2, 10])
def test_intervals_are_as_many_as_channels_and_holes(channels: int) -> None:
    rng = Random(channels)
    pieces = written(rng, channels, 2000)
    pieces = [piece for piece in pieces if piece[0] == pieces[0][0]] or pieces
    known, most = Origins(), 0
    there, back = list(pieces), list(pieces)
    holes = 0
    while there or back:
        queue = there if there and (not back or rng.random() < 0.5) else back
        epoch, channel, first, count, after = queue.pop(0)
        if queue is there and rng.random() < 0.01:
            holes += 1  # lost on this path; the other brings it
            continue
        known.admit(Origin("far", "log", epoch, first, after), channel, count, 0.0, [])
        most = max(most, known.entries - 1)
    assert most <= channels + holes
    assert known.entries - 1 == len({piece[1] for piece in pieces})


def test_a_snapshot_may_be_older_than_the_batches_behind_it() -> None:
    rng = Random(1)
    pieces = written(rng, 3, 300)
    known = Origins()
    for number, (epoch, channel, first, count, after) in enumerate(pieces):
        if number == 100:
            again = origins_again(known)
        known.admit(Origin("far", "log", epoch, first, after), channel, count, 0.0, [])
    for epoch, channel, first, count, after in pieces[50:]:
        again.admit(Origin("far", "log", epoch, first, after), channel, count, 0.0, [])
    assert origins_in_one(again).logs == origins_in_one(known).logs
    assert again.entries == known.entries


@given(st.integers(0, 2**32), st.integers(2, 8))
def test_beyond_the_bounds_nothing_is_left_out_that_was_not_here(seed: int, most: int) -> None:
    rng = Random(seed)
    before = origins.MAX_INTERVALS, origins.MAX_ENTRIES
    origins.MAX_INTERVALS, origins.MAX_ENTRIES = most, 4 * most
    known, had = Origins(), set[tuple[str, str, int]]()
    doubles = unproven = 0
    try:
        pieces = [written(rng, 4, 40) for _ in range(3)]
        order = [(f"log{n}", piece) for n, some in enumerate(pieces) for piece in some]
        order += rng.sample(order, len(order) // 2)
        rng.shuffle(order)
        for log, (epoch, channel, first, count, _) in order:
            undo: Undo = []
            origin = Origin("far" if log == "log0" else "near", log, epoch, first, None)
            verdict = known.admit(origin, channel, count, 0.0, undo)
            fresh = ((0, count),) if verdict is None else verdict.fresh
            new = {
                (log, channel, first + skip + place)
                for skip, some in fresh
                for place in range(some)
            }
            lacking = {(log, channel, first + place) for place in range(count)} - had
            assert lacking <= new
            doubles += len(new - lacking)
            if verdict is not None and not verdict.is_proven:
                unproven += len(new)
            else:
                assert new == lacking
            if rng.random() < 0.1:
                take_back(undo)  # the disk refused
            else:
                had |= new
            assert known.entries == entries_of(known) <= 4 * most + 1
    finally:
        origins.MAX_INTERVALS, origins.MAX_ENTRIES = before
    assert doubles <= unproven
    assert before[0] == MAX_INTERVALS
