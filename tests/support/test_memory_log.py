"""The log in memory: commits by hand, a disk that is full, a crash. The log in memory of a daemon
keeps within its bounds, and gets out of them again.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from linkd.config import LogSettings
from linkd.errors import BadRecord, LogFull, SequenceUnproven
from linkd.log.interface import Appended
from linkd.log.producers import MAX_HOLES
from linkd.protocol.records import BATCH_OVERHEAD_BYTES, Producer
from tests.support.logs import draft, numbered, received
from tests.support.memory_log import BoundedMemoryLog, MemoryLog


def test_nothing_is_settled_before_its_commit_and_nothing_of_it_outlives_a_crash() -> None:
    log = MemoryLog("edge", Random(1), delayed=True)
    got: list[Any] = []
    log.append(draft(b"a"), got.append)
    log.store(received(1, 5, b"b"), got.append)
    assert (got, log.next) == ([], 1)
    log.commit()
    assert got == [Appended(1, 1), Appended(2, 1)]
    log.append(draft(b"c"), got.append)
    found = log.crash()
    assert (found.next, len(got)) == (3, 2)
    cursor = found.cursor("hub")
    assert cursor is not None
    assert (cursor.next, cursor.committed) == (5, 5)


def test_a_full_log_refuses_publishes_and_lets_what_peers_sent_wait() -> None:
    log = MemoryLog("edge", Random(1), delayed=True)
    got: list[Any] = []
    kept: list[Any] = []
    log.append(draft(b"a"), got.append)
    log.store(received(1, 5, b"b"), kept.append)
    log.fill("no room")
    assert isinstance(got[0], LogFull)
    log.append(draft(b"c"), got.append)
    assert isinstance(got[1], LogFull)
    log.commit()
    assert (kept, log.next) == ([], 1)
    log.drain()
    log.commit()
    assert kept == [Appended(1, 1)]
    log.append(draft(b"d"), got.append)
    log.commit()
    assert got[2] == Appended(2, 1)
    assert log.trim(1) == 0


def test_a_full_log_answers_repeats() -> None:
    """One of them was refused before, so that its publisher stored it twice later."""
    log = MemoryLog("edge", Random(1))
    got: list[Any] = []
    log.append(draft(b"a", producer=numbered("p", 1)), got.append)
    log.append(draft(b"b", ids=("x",)), got.append)
    log.fill("no room")
    log.append(draft(b"a", producer=numbered("p", 1)), got.append)
    log.append(draft(b"b", ids=("x",)), got.append)
    assert got[2:] == [Appended(1, 0, True), Appended(2, 0, True)]
    log.append(draft(b"c", producer=numbered("p", 2)), got.append)
    log.append(draft(b"b", b"e", ids=("x", "")), got.append)
    log.append(draft(b"a", producer=numbered("p", 0)), got.append)
    assert [type(each) for each in got[4:]] == [LogFull] * 3


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_repeat_of_what_is_under_way_is_answered_with_it(is_stored: bool) -> None:
    log = MemoryLog("edge", Random(1), delayed=True)
    got: list[Any] = []
    log.append(draft(b"a", producer=numbered("p", 1)), got.append)
    group = log._make_group()
    log.full = "no room"
    log.append(draft(b"a", producer=numbered("p", 1)), got.append)
    assert got == []
    if is_stored:
        log._committed(group)
        assert got == [Appended(1, 1), Appended(1, 0, True)]
    else:
        log._failed("the disk failed")
        assert [type(each) for each in got] == [LogFull, LogFull]


def test_a_full_log_calls_no_number_a_repeat_that_is_not_proven() -> None:
    log = MemoryLog("edge", Random(1))
    got: list[Any] = []
    for number in range(1000, 1000 + 4 * MAX_HOLES, 2):
        log.append(draft(b"a", producer=numbered("p", number)), got.append)
    log.fill("no room")
    got.clear()
    log.append(draft(b"a", producer=numbered("p", 1001)), got.append)
    assert [type(each) for each in got] == [SequenceUnproven]
    got.clear()
    for number in (1002, 2021, 2022, 9999):
        log.refuse(draft(b"", producer=numbered("p", number)), got.append, BadRecord("no"))
    assert [type(each) for each in got] == [SequenceUnproven, BadRecord, Appended, BadRecord]


def test_what_is_appended_by_who_is_told_of_a_commit_comes_behind_it() -> None:
    log = MemoryLog("edge", Random(1))
    got: list[Any] = []

    def more(outcome: Any) -> None:
        got.append(outcome)
        if len(got) < 3:
            log.append(draft(b"%d" % len(got)), more)

    log.append(draft(b"0"), more)
    assert got == [Appended(1, 1), Appended(2, 1), Appended(3, 1)]


def test_it_knows_whose_log_records_come_from() -> None:
    log = MemoryLog("hub")
    assert log.state.origins.node("elsewhere") is None


EACH = BATCH_OVERHEAD_BYTES + 1_000
BOUNDS = LogSettings(memory_bytes=10 * EACH, max_bytes=100 * EACH)
DROPPING = replace(BOUNDS, when_full="drop-oldest")


def filled(log: BoundedMemoryLog, count: int) -> list[Any]:
    """Append so many batches of one record, each of about `EACH` bytes; return what came of it."""
    got: list[Any] = []
    for _ in range(count):
        log.append(draft(b"x" * (EACH - BATCH_OVERHEAD_BYTES - 6)), got.append)
    return got


def test_what_nobody_is_owed_is_forgotten_beyond_its_bound() -> None:
    log = BoundedMemoryLog("edge", BOUNDS, Random(1))
    firsts: list[int] = []
    log.on_trim.append(firsts.append)
    filled(log, 50)
    assert (log.first, log.next) == (1, 51)
    log.release(31)
    assert (log.first, firsts) == (31, [31])
    log.release(51)
    assert log.next - log.first == pytest.approx(10, abs=1)
    assert log.size_bytes <= BOUNDS.memory_bytes
    held = log.read(log.first, 2**40)
    assert held is not None
    assert [batch.offset for batch in held] == list(range(log.first, 51))


def test_steps_without_records_take_no_room() -> None:
    log = BoundedMemoryLog("edge", BOUNDS, Random(1))
    for end in range(2, 2_000):
        log.store(received(end - 1, end), lambda _: None)
    assert (log.size_bytes, log.full) == (0, None)


def test_what_is_owed_stays_and_publishes_are_refused_until_it_goes() -> None:
    log = BoundedMemoryLog("edge", BOUNDS, Random(1))
    got = filled(log, 120)
    stored = [one for one in got if isinstance(one, Appended)]
    assert len(stored) == pytest.approx(90, abs=1)
    assert {type(one) for one in got[len(stored) :]} == {LogFull}
    log.release(log.next)
    assert log.full is None
    assert isinstance(filled(log, 1)[0], Appended)


def test_what_peers_send_has_more_room_than_what_is_published() -> None:
    log = BoundedMemoryLog("edge", BOUNDS, Random(1))
    filled(log, 120)
    assert log.full is not None
    kept: list[Any] = []
    for place in range(1, 31):
        log.store(received(place, place + 1, b"x" * 1_000), kept.append)
    assert len(kept) == pytest.approx(10, abs=1)
    assert log.size_bytes < BOUNDS.max_bytes + EACH
    log.release(11)  # as if a peer had acknowledged the first ten
    assert len(kept) >= 19  # a group goes as a whole
    log.release(log.next)
    assert (len(kept), log.full) == (30, None)


def test_a_trim_makes_room_at_once() -> None:
    log = BoundedMemoryLog("edge", BOUNDS, Random(1))
    filled(log, 120)
    assert log.trim(log.next) == pytest.approx(90, abs=1)
    assert (log.size_bytes, log.full) == (0, None)


def test_more_memory_than_log_does_not_fill_it_for_ever() -> None:
    log = BoundedMemoryLog("edge", replace(BOUNDS, memory_bytes=10**9), Random(1))
    for _ in range(200):
        assert isinstance(filled(log, 1)[0], Appended)
        log.release(log.next)


def test_one_publish_that_does_not_fit_is_refused() -> None:
    log = BoundedMemoryLog("edge", BOUNDS, Random(1))
    got: list[Any] = []
    log.append(draft(b"x" * BOUNDS.max_bytes), got.append)
    assert isinstance(got[0], LogFull)
    assert (log.size_bytes, log.full) == (0, None)


def test_producers_not_heard_of_for_long_are_forgotten() -> None:
    now = [0.0]
    log = BoundedMemoryLog("edge", BOUNDS, Random(1), clock=lambda: now[0])
    got: list[Any] = []
    for number in range(3):
        log.append(draft(b"a", producer=Producer(f"p{number}", 1)), got.append)
    now[0] = BOUNDS.id_window + 120.0
    log.release(1)
    log.append(draft(b"a", producer=Producer("p0", 1)), got.append)
    assert got == [Appended(place, 1) for place in (1, 2, 3, 4)]


def test_drop_oldest_lets_what_is_owed_go_and_tells_the_gap() -> None:
    log = BoundedMemoryLog("edge", DROPPING, Random(1))
    firsts: list[int] = []
    log.on_trim.append(firsts.append)
    got = filled(log, 150)
    assert {type(one) for one in got} == {Appended}
    assert log.size_bytes <= BOUNDS.max_bytes
    assert firsts[-1] == log.first > 50
    assert len(firsts) < 12  # in lumps
