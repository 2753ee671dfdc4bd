"""A log of format 1: which records of other nodes are here is taken over exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linkd.log import origins, recovery
from linkd.log.origins import MAX_INTERVALS, Origins, Verdict
from linkd.log.segment import CARRYING, FORMAT, read_head
from linkd.log.snapshot import OldOrigins, snapshot_numbers
from linkd.protocol.records import Batch, Origin, SourcePosition
from tests.support.logs import SegmentBench, records, store, unpack

DATA = Path(__file__).with_name("data") / "format-1-paths.tar.gz"
Pieces = list[tuple[str, int, int]]
"""Channel, first offset and count of what a node published."""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a log that the code of commit 91efc69 wrote, in ten segments.

    It has what a relay brought of four channels of `farlog`, but for 47 batches of c3.
    """
    unpack(DATA, tmp_path)
    return tmp_path / "state"


@pytest.fixture
def bench(state: Path) -> Iterator[SegmentBench]:
    one = SegmentBench(state / "log", segment_bytes=8192)
    yield one
    one.close()


def pieces(state: Path, which: str) -> Pieces:
    """Return what is there (`kept`), or what is not (`missing`)."""
    return [tuple(piece) for piece in json.loads((state / "kept.json").read_text())[which]]


def bring(bench: SegmentBench, some: Pieces) -> list[Any]:
    """Let another peer bring what `far` published; return what became of it."""
    got, at, last = list[Any](), 1, dict[str, int]()
    for channel, first, count in some:
        origin = Origin("far", "farlog", "e1", first, last.get(channel, 0))
        last[channel] = first + count - 1
        source = SourcePosition("other", "otherlog", "o1", at, at + count)
        got += store(
            bench,
            Batch(0, channel, count, records(*[b"x"] * count), 1.0, origin, source=source),
        )
        at += count
    return got


def test_a_second_path_brings_what_is_missing_and_nothing_twice(
    bench: SegmentBench, state: Path
) -> None:
    kept, missing = pieces(state, "kept"), pieces(state, "missing")
    every = sorted(kept + missing, key=lambda piece: piece[1])
    got = bring(bench, every)
    assert [one.unproven for one in got] == [0] * 600
    stored = [piece for piece, one in zip(every, got, strict=True) if one.count]
    assert stored == missing
    for channel in ("c0", "c1", "c2"):
        assert len(bench.log.state.origins.intervals("farlog", "e1", channel)) == 2


def test_it_is_folded_once(bench: SegmentBench, state: Path) -> None:
    number = snapshot_numbers(bench.path)[-1]
    heads = [read_head(path)[0] for path in sorted(bench.path.glob("*.log"))]
    assert [head.format for head in heads] == [CARRYING] * (number - 1) + [FORMAT]
    before = bench.log.state.origins
    bench.restart()
    after = bench.log.state.origins
    assert after.entries == before.entries
    for channel in ("c0", "c1", "c2", "c3"):
        key = ("farlog", "e1", channel)
        assert after.intervals(*key) == before.intervals(*key) != ()


def test_a_snapshot_that_is_made_of_old_segments_is_as_exact(
    bench: SegmentBench, state: Path
) -> None:
    snapshots = bench.log._snapshots
    for path in bench.path.glob("*.state"):
        path.unlink()
    bench.until(lambda: not snapshots.busy)
    snapshots.bases = [base for base in snapshots.bases if base.size is None]
    bench.log._keep_snapshots()
    bench.until(lambda: not snapshots.busy and len(snapshots.bases) == 2)
    bench.restart()
    got = bring(bench, pieces(state, "kept"))
    assert {(one.count, one.unproven) for one in got} == {(0, 0)}


def test_a_newer_head_serves_where_the_old_segments_are_too_many(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is below its highest offset is stored perhaps twice then, and counted."""
    monkeypatch.setattr(recovery, "UPGRADE_BYTES", 1000)
    bench = SegmentBench(state / "log", segment_bytes=8192)
    got = bring(bench, pieces(state, "kept")[:5])
    assert [one.unproven > 0 for one in got] == [True] * 5
    bench.close()


def test_what_lies_below_the_oldest_segment_that_is_there_is_not_proven(state: Path) -> None:
    for path in sorted((state / "log").glob("*.log"))[:3]:
        path.unlink()
    bench = SegmentBench(state / "log", segment_bytes=8192)
    kept = pieces(state, "kept")
    assert bring(bench, kept[:1])[0].unproven
    bench.restart()
    origin = Origin("far", "farlog", "e1", kept[-1][1], None)
    verdict = bench.log.state.origins.admit(origin, kept[-1][0], kept[-1][2], 1.0, [])
    assert verdict == Verdict(())
    bench.close()


def test_holes_that_nothing_fills_stay_as_many_as_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = Origins()
    old = OldOrigins(known)
    for number in range(MAX_INTERVALS + 2):
        assert old.admit(Origin("far", "log", "e", 10 * number + 1), "c", 2, 0.0, []) is None
        assert old.admit(Origin("far", "log", "e", 10 * number + 3), "c", 1, 0.0, []) is None
    known._folded.add("far", ("log", "gone"))
    old.admit(Origin("far", "log", "gone", 1), "c", 1, 0.0, [])
    assert old.finish() is known
    held = known.intervals("log", "e", "c")
    assert held[:2] == (21, 23)
    assert len(held) == 2 * origins.MAX_INTERVALS
    assert known.node("log") == "far"
    assert known.intervals("log", "gone", "c") == ()
    low = known.admit(Origin("far", "log", "e", 11, None), "c", 2, 0.0, [])
    assert low is not None
    assert not low.is_proven
    assert known.admit(Origin("far", "log", "e", 22, 21), "c", 2, 0.0, []) == Verdict(())
