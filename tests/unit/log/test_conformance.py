"""What every engine promises (linkd.log.interface.Log), asked of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkd.errors import BadRecord, Gap, LogFull, OutOfStep, SequenceUnproven
from linkd.log.base import MAX_NOTICES
from linkd.log.interface import Appended
from linkd.log.producers import MAX_HOLES
from linkd.log.state import Forgotten
from linkd.protocol.peer import Cursor, EpochEnd
from linkd.protocol.records import (
    BATCH_OVERHEAD_BYTES,
    MAX_BATCH_BYTES,
    NewRecords,
    Origin,
    Producer,
)
from tests.support.logs import (
    MemoryBench,
    SegmentBench,
    append,
    bodies,
    draft,
    everything,
    fetch,
    numbered,
    owed,
    received,
    store,
)
from tests.support.postgresql import PostgresqlBench, SharedBench, needs_postgresql


@pytest.fixture(
    params=[
        MemoryBench,
        SegmentBench,
        pytest.param("postgresql", marks=needs_postgresql),
        pytest.param("shared", marks=needs_postgresql),
    ]
)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    named = {"postgresql": PostgresqlBench, "shared": SharedBench}
    kind = named.get(request.param, request.param)
    one = kind(tmp_path / "log")
    yield one
    one.close()


def test_offsets_count_from_one_without_holes(bench: Any) -> None:
    got = append(bench, draft(b"a"), draft(b"b", b"c"), draft(b"d", channel="other"))
    assert got == [Appended(1, 1), Appended(2, 2), Appended(4, 1)]
    assert (bench.log.first, bench.log.next) == (1, 5)
    assert bodies(bench.log.read(1, 1 << 20)) == [b"a", b"b", b"c", b"d"]


def test_a_peer_can_be_held(bench: Any) -> None:
    got: list[Any] = []
    bench.log.hold("hub", "boot", 1, got.append)
    bench.until(lambda: got)
    assert got == [Appended(1, 0)]
    assert bench.log.holds("hub")
    bench.log.wake()  # nobody else writes: nothing is new
    assert bench.log.next == 1


def test_what_is_read_carries_origin_epoch_and_stamp(bench: Any) -> None:
    append(bench, draft(b"a", ttl=5.0, time=7.0))
    (batch,) = bench.log.read(1, 1)
    assert batch.origin == Origin("edge", bench.log.id, bench.log.epoch, 1, 0)
    assert (batch.epoch, batch.ttl, batch.time) == (bench.log.epoch, 5.0, 7.0)
    assert batch.stamp <= bench.log.clock()
    assert bench.log.stamp_at(1) == batch.stamp
    assert bench.log.stamp_at(2) is None


def test_a_read_in_the_middle_and_at_the_end(bench: Any) -> None:
    append(bench, draft(b"a", b"b", b"c"))
    (batch,) = bench.log.read(2, 1)
    assert bodies([batch.from_offset(2)]) == [b"b", b"c"]
    assert bench.log.read(4, 1) == []
    assert bench.log.read(5, 1) == []


def test_a_repeated_id_answers_the_first_offset(bench: Any) -> None:
    first = append(bench, draft(b"a", ids=("x",)), draft(b"b", ids=("x",)), draft(b"c"))
    assert first == [Appended(1, 1), Appended(1, 0, True), Appended(2, 1)]
    assert append(bench, draft(b"d", channel="other", ids=("x",))) == [Appended(3, 1)]
    bench.restart()
    assert append(bench, draft(b"e", ids=("x",))) == [Appended(1, 0, True)]


def test_of_a_publish_only_what_is_new_is_stored(bench: Any) -> None:
    append(bench, draft(b"a", ids=("x",)))
    got = append(bench, draft(b"a", b"b", b"c", b"d", ids=("x", "y", "", "y")))
    assert got == [Appended(2, 2)]
    assert bodies(everything(bench)) == [b"a", b"b", b"c"]


def test_a_producer_is_settled_once(bench: Any) -> None:
    p = numbered
    got = append(bench, draft(b"a", producer=p("p", 1)), draft(b"b", b"c", producer=p("p", 2)))
    assert got == [Appended(1, 1), Appended(2, 2)]
    again = append(bench, draft(b"b", b"c", producer=p("p", 2)), draft(b"a", producer=p("p", 1)))
    assert again == [Appended(2, 0, True), Appended(1, 0, True)]
    bench.restart()
    again = append(bench, draft(b"b", producer=p("p", 2)), draft(b"z", producer=p("p", 5)))
    assert again == [Appended(2, 0, True), Appended(4, 1)]
    assert append(bench, draft(b"y", producer=p("p", 4))) == [Appended(5, 1)]  # never stored
    both = append(bench, draft(b"w", producer=p("p", 6)), draft(b"w", producer=p("p", 4)))
    assert both == [Appended(6, 1), Appended(5, 0, True)]
    highest = bench.log.state.producers.highest
    assert (highest("", "p"), highest("", "q")) == (6, 0)


def test_a_producer_and_its_numbers_are_its_owners(bench: Any) -> None:
    theirs = Producer("p", 2**62, "mallory")
    assert append(bench, draft(b"x", producer=theirs)) == [Appended(1, 1)]
    bench.restart()
    mine = Producer("p", 2, "shop")
    assert append(bench, draft(b"a", producer=mine)) == [Appended(2, 1)]
    assert append(bench, draft(b"a", producer=mine)) == [Appended(2, 0, True)]
    assert bench.log.state.producers.highest("shop", "p") == 2


def test_a_draft_of_several_numbers_is_new_as_a_whole(bench: Any) -> None:
    def several(number: int, *bodies_: bytes, counts: tuple[int, ...]) -> NewRecords:
        one = draft(*bodies_, producer=numbered("p", number))
        return msgspec.structs.replace(one, counts=counts)

    got = append(
        bench,
        several(2, b"a", b"b", b"c", counts=(1, 2)),
        draft(b"d", producer=numbered("p", 3)),
        several(5, b"e", b"f", counts=(1, 1)),
    )
    assert got == [Appended(1, 3), Appended(4, 1), Appended(5, 2)]
    bench.restart()
    again = append(bench, *[draft(b"", producer=numbered("p", number)) for number in range(1, 6)])
    assert again == [Appended(offset, 0, True) for offset in (1, 2, 4, 5, 6)]
    for wrong in (
        several(6, b"e", b"g", counts=(1, 1)),
        several(8, b"e", b"g", counts=(1, 2)),
    ):
        assert [type(one) for one in append(bench, wrong)] == [BadRecord]


def test_a_number_so_far_back_that_nothing_proves_it_is_refused(bench: Any) -> None:
    for number in range(1, 2 * MAX_HOLES + 200, 2):
        append(bench, draft(b"a", producer=numbered("p", number)))
    before = bench.log.next
    got = append(bench, draft(b"a", producer=numbered("p", 1)))
    assert [type(one) for one in got] == [SequenceUnproven]
    assert bench.log.next == before


def test_ids_and_producers_that_are_pushed_out_are_logged_once_an_hour(bench: Any) -> None:
    told: list[Any] = []
    bench.log.on_notice.append(told.append)
    for count in (5, 7):
        forgotten = Forgotten()
        forgotten.count, forgotten.age = count, 60.0
        bench.log._ids.forgotten["shop"] = forgotten
        bench.log.state.producers.forgotten["shop"] = count
        append(bench, draft(b"a"))
    assert [one.event for one in told] == ["ids.forgotten", "producers.forgotten"]
    assert "5 ids of shop were forgotten" in told[0].detail
    assert bench.log._ids.forgotten["shop"].count == 7
    for owner in range(MAX_NOTICES + 2):
        bench.log.state.producers.forgotten[f"owner{owner}"] = 1
    append(bench, draft(b"a"))
    assert len(told) > MAX_NOTICES
    assert len(bench.log._notified_forgotten) <= MAX_NOTICES + 2


def test_a_position_is_found_by_the_bytes_behind_it(bench: Any) -> None:
    for number in range(30):
        append(bench, draft(bytes(60_000), channel="orders" if number % 2 else "news.a"))
    append(bench, draft(bytes(60_000), channel="late"))
    log = bench.log
    assert log.behind(2**40) == log.first == 1
    assert log.behind(0) == log.next == 32
    found = log.behind(1_300_000)
    assert 1 < found < 32
    assert "news.a" in log.channels(1, 32)
    assert "late" in log.channels(31, 32)
    assert "late" not in log.channels(1, found)
    assert "quiet" not in log.channels(1, 32)
    assert "quiet" not in log.channels(3, 32)
    assert "late" in log.channels(3, 32)
    assert "late" not in log.channels(32, 32)


def test_an_id_is_its_owners(bench: Any) -> None:
    mine, theirs = (
        msgspec.structs.replace(draft(b"a", ids=("x",)), owner=owner) for owner in ("shop", "till")
    )
    assert append(bench, mine, theirs, mine) == [
        Appended(1, 1),
        Appended(2, 1),
        Appended(1, 0, True),
    ]
    bench.restart()
    assert append(bench, theirs, mine) == [Appended(2, 0, True), Appended(1, 0, True)]


def test_malformed_drafts_are_refused(bench: Any) -> None:
    got = append(
        bench,
        NewRecords("c", 2, b"\xc0\xc0", 1.0, ids=("x",)),
        draft(b"a", producer=numbered("p", 0)),
        NewRecords("c", 0, b"", 1.0),
    )
    assert all(isinstance(outcome, BadRecord) for outcome in got)
    assert bench.log.next == 1


def test_a_large_publish_is_split_and_stays_one(bench: Any) -> None:
    got = append(
        bench, draft(*[b"%05d" % n + bytes(1000) for n in range(200)], producer=numbered("p", 1))
    )
    assert got == [Appended(1, 200)]
    batches = everything(bench)
    assert len(batches) > 2
    assert all(len(batch.records) <= MAX_BATCH_BYTES for batch in batches)
    assert [int(body[:5]) for body in bodies(batches)] == list(range(200))
    bench.restart()
    assert append(bench, draft(b"", producer=numbered("p", 1))) == [Appended(1, 0, True)]


def test_a_received_step_moves_the_cursor(bench: Any) -> None:
    assert bench.log.cursor("hub") is None
    assert store(bench, received(4, 9, b"a", b"b")) == [Appended(1, 2)]
    assert bench.log.cursor("hub") == Cursor("hublog", (EpochEnd("e1", 9),), 9)
    assert store(bench, received(4, 9, b"a", b"b"))[0].duplicate
    assert store(bench, received(9, 12)) == [Appended(3, 0)]
    assert store(bench, received(12, 14, b"c", epoch="e2")) == [Appended(3, 1)]
    bench.restart()
    assert bench.log.cursor("hub") == Cursor("hublog", (EpochEnd("e1", 12), EpochEnd("e2", 14)), 14)
    assert store(bench, received(14, 15, b"d", epoch="e2")) == [Appended(4, 1)]
    assert bodies(everything(bench)) == [b"a", b"b", b"c", b"d"]
    assert everything(bench)[0].source is not None


def test_a_step_from_elsewhere_changes_nothing_whatever_is_in_it(bench: Any) -> None:
    store(bench, received(4, 9, b"a"))
    for previous, end in ((2, 3), (2, 9), (8, 9)):
        new = Origin("far", "farlog", "f", 100 + previous)
        assert store(bench, received(previous, end, b"x", origin=new)) == [Appended(2, 0, True)]
    assert bench.log.cursor("hub") == Cursor("hublog", (EpochEnd("e1", 9),), 9)
    assert bodies(everything(bench)) == [b"a"]


@pytest.mark.parametrize("previous", [2, 8, 10])
def test_a_step_that_would_leave_a_hole_is_no_duplicate(bench: Any, previous: int) -> None:
    store(bench, received(4, 9, b"a"))
    (outcome,) = store(bench, received(previous, 20, b"x"))
    assert isinstance(outcome, OutOfStep)
    assert str(outcome).startswith(f"a step from offset {previous} to 20 came, expected one from 9")
    assert bench.log.cursor("hub") == Cursor("hublog", (EpochEnd("e1", 9),), 9)
    assert bodies(everything(bench)) == [b"a"]


def test_what_waits_for_the_disk_is_counted_by_peer(bench: Any) -> None:
    got: list[Any] = []
    bench.log.store(received(1, 2, b"a"), got.append)
    bench.log.store(received(2, 3), got.append)
    assert bench.log.held("hub") == bench.log.held()
    assert bench.log.held("nobody") == 0
    assert got or bench.log.held() > 2 * BATCH_OVERHEAD_BYTES
    bench.until(lambda: len(got) == 2)
    assert bench.log.held() == bench.log.held("hub") == 0
    assert not bench.log.withholds()


def test_steps_under_way_count(bench: Any) -> None:
    got: list[Any] = []
    bench.log.store(received(1, 2, b"a"), got.append)
    bench.log.store(received(1, 2, b"a"), got.append)
    bench.log.store(received(2, 3, b"b"), got.append)
    assert bench.log.cursor("hub").next == 3
    bench.until(lambda: len(got) == 3)
    assert sum(one.count for one in got) == 2
    assert bench.log.cursor("hub").committed == 3


def test_a_set_cursor_takes_effect_at_once(bench: Any) -> None:
    store(bench, received(1, 10, b"a"))
    got: list[Any] = []
    bench.log.set_cursor("hub", Cursor("hublog", (EpochEnd("e1", 5),), 5), got.append)
    assert bench.log.cursor("hub").next == 5
    bench.log.store(received(5, 6, origin=Origin("x", "x", "e", 1)), got.append)
    bench.until(lambda: len(got) == 2)
    bench.restart()
    assert bench.log.cursor("hub").next == 6
    bench.log.set_cursor("hub", None, got.append)
    assert bench.log.cursor("hub") is None
    bench.until(lambda: len(got) == 3)
    bench.restart()
    assert bench.log.cursor("hub") is None


def far(epoch: str, first: int, after: int | None = None) -> Origin:
    """Return an origin in another node's log."""
    return Origin("far", "farlog", epoch, first, after)


def test_records_of_an_origin_that_are_here_are_left_out(bench: Any) -> None:
    assert store(bench, received(1, 4, b"1", b"2", b"3", origin=far("a", 1)))[0].count == 3
    got = store(bench, received(1, 5, b"2", b"3", b"4", peer="b", log="b", origin=far("a", 2)))
    assert got == [Appended(4, 1)]
    assert store(bench, received(5, 6, b"4", peer="b", log="b", origin=far("a", 4)))[0].duplicate
    mine = Origin("edge", bench.log.id, bench.log.epoch, 1)
    assert store(bench, received(6, 7, b"me", peer="b", log="b", origin=mine))[0].count == 0
    assert bench.log.cursor("b").next == 7
    bench.restart()
    assert store(bench, received(7, 8, b"3", peer="b", log="b", origin=far("a", 3)))[0].count == 0
    assert bodies(everything(bench)) == [b"1", b"2", b"3", b"4"]


def test_a_later_path_does_not_hide_what_an_earlier_one_still_owes(bench: Any) -> None:
    new = received(1, 2, b"11", origin=far("a", 11, 10))
    assert store(bench, new) == [Appended(1, 1)]
    old = received(1, 11, *[b"%d" % n for n in range(1, 11)], peer="b", origin=far("a", 1, 0))
    assert store(bench, old) == [Appended(2, 10, late=10)]
    both = received(11, 13, b"10", b"11", peer="b", origin=far("a", 10, 9))
    assert store(bench, both)[0].count == 0
    assert len(everything(bench)) == 2


def test_an_unknown_epoch_does_not_retire_the_current_one(bench: Any) -> None:
    store(bench, received(1, 2, b"1", origin=far("a", 1, 0)))
    store(bench, received(1, 2, b"evil", peer="b", origin=far("no-such-epoch", 1)))
    assert store(bench, received(2, 3, b"2", origin=far("a", 2, 1)))[0].count == 1
    bench.restart()
    assert store(bench, received(3, 4, b"3", origin=far("a", 3, 2)))[0].count == 1


@pytest.mark.parametrize("restarts", [False, True])
def test_a_batch_that_is_here_in_the_middle_is_stored_in_two_parts(
    bench: Any, restarts: bool
) -> None:
    store(bench, received(1, 2, b"3", b"4", origin=far("a", 13, 12)))
    numbers = [b"%d" % n for n in range(1, 7)]
    whole = received(1, 20, *numbers, peer="b", log="b", epoch="e2", origin=far("a", 11, 9))
    assert store(bench, whole) == [Appended(3, 4, late=2)]
    if restarts:
        bench.restart()
    assert bench.log.cursor("b") == Cursor("b", (EpochEnd("e2", 20),), 20)
    batches = everything(bench)
    assert bodies(batches) == [b"3", b"4", b"1", b"2", b"5", b"6"]
    places = [(batch.origin.first, batch.origin.after) for batch in batches]
    assert places == [(13, 12), (11, 9), (15, 14)]
    # Only the last part moves the cursor: where a crash tears the two apart, the rest comes again.
    steps = [(batch.source.previous, batch.source.next) for batch in batches]
    assert steps == [(1, 2), (1, 1), (1, 20)]
    assert store(bench, received(2, 9, *numbers, origin=far("a", 11, 9)))[0].count == 0


def test_each_batch_names_the_record_before_it_on_its_channel(bench: Any) -> None:
    append(bench, draft(b"a", b"b"))
    append(bench, draft(b"x", channel="other"), draft(b"c"))
    append(bench, draft(b"d"), draft(b"y", channel="other"))
    bench.restart()
    append(bench, draft(b"e"))
    found = [(one.channel, one.origin.first, one.origin.after) for one in everything(bench)]
    assert found == [
        ("orders", 1, 0),
        ("other", 3, 0),
        ("orders", 4, 2),
        ("orders", 5, 4),
        ("other", 6, 3),
        ("orders", 7, 0),
    ]


def test_each_start_has_its_epoch(bench: Any) -> None:
    log = bench.log
    one, first = log.id, log.epoch
    append(bench, draft(b"a"))
    second = bench.restart().epoch
    log = bench.restart()
    assert log.id == one
    assert [(e.epoch, e.first) for e in log.state.epochs()] == [
        (first, 1),
        (second, 2),
        (log.epoch, 2),
    ]
    append(bench, draft(b"b"))
    assert [log.state.epoch_below(position) for position in (1, 2, 3)] == [first, first, log.epoch]


def test_the_clock_never_goes_back(bench: Any) -> None:
    before = bench.log.clock()
    bench.restart()
    assert bench.log.clock() >= before


def test_owed_counts_by_channel(bench: Any) -> None:
    append(bench, draft(b"a", b"b"), draft(b"c", channel="x"), draft(b"d"))
    size = len(draft(b"a").records)
    assert owed(bench.log, 1) == {"orders": (3, 3 * size), "x": (1, size)}
    assert owed(bench.log, 2) == {"orders": (2, 2 * size), "x": (1, size)}
    assert owed(bench.log, 5) == {}


def test_who_follows_is_told_after_the_appends(bench: Any) -> None:
    order: list[Any] = []
    bench.log.on_commit.append(order.append)
    bench.log.append(draft(b"a"), lambda outcome: order.append(outcome.offset))
    bench.until(lambda: len(order) == 2)
    assert order == [1, 2]


def test_what_was_trimmed_is_a_gap(bench: Any) -> None:
    append(bench, draft(b"a"), draft(b"b", channel="x"))
    told: list[int] = []
    bench.log.on_trim.append(told.append)
    assert bench.log.trim(3) == 2
    bench.until(lambda: told)
    assert (bench.log.first, told) == (3, [3])
    with pytest.raises(Gap) as gap:
        bench.log.read(1, 1)
    assert (gap.value.wanted, gap.value.first) == (1, 3)
    assert isinstance(fetch(bench, 2), Gap)
    append(bench, draft(b"c"))
    bench.restart()
    assert bench.log.first == 3
    assert bodies(everything(bench)) == [b"c"]


def test_nothing_is_taken_after_close(bench: Any) -> None:
    bench.close()
    got: list[Any] = []
    bench.log.append(draft(b"a"), got.append)
    bench.log.set_cursor("hub", None, got.append)
    assert all(isinstance(one, Exception) for one in got)
    assert len(got) == 2
    if isinstance(bench, SegmentBench):
        bench.open()


def test_totals_go_on_while_the_log_changes(bench: Any) -> None:
    append(bench, *(draft(b"a", channel=f"c{number}") for number in range(10)))
    totals = bench.log.totals(1)
    assert next(totals)[:2] == ("c0", 1)
    append(bench, *(draft(b"a", channel=f"d{number}") for number in range(2000)))
    bench.log.trim(2000)
    assert [one[0] for one in totals][:9] == [f"c{number}" for number in range(1, 10)]


def test_totals_from_within_a_batch_take_its_part(bench: Any) -> None:
    append(bench, draft(b"a"), draft(b"b", b"c", channel="x"), draft(b"d"))
    size = len(draft(b"a").records)
    counted = [one for one in bench.log.totals(3) if one[1]]
    assert counted == [("x", 1, size), ("orders", 1, size)]


def test_a_repeat_is_answered_although_it_may_not_be_stored(bench: Any) -> None:
    full = LogFull("no room")
    append(bench, draft(b"a", ids=("x",)))
    got: list[Any] = []
    first = draft(b"a", ids=("x",))
    malformed = msgspec.structs.replace(first, ids=("x", "x"))
    for again in (first, draft(b"b", ids=("y",)), malformed):
        bench.log.refuse(again, got.append, full)
    assert got == [Appended(1, 0, True), full, full]
    order: list[Any] = []
    bench.log.append(draft(b"c", ids=("c",)), order.append)
    bench.log.refuse(draft(b"c", ids=("c",)), order.append, full)
    bench.until(lambda: len(order) == 2)
    assert order == [Appended(2, 1), Appended(2, 0, True)]
