"""The log in memory: commits by hand, a disk that is full, a crash."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from linkd.errors import BadRecord, LogFull, SequenceUnproven
from linkd.log import MemoryLog
from linkd.log.interface import Appended
from linkd.log.producers import MAX_HOLES
from tests.support.logs import draft, numbered, received


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
    assert log.origin_node("elsewhere") is None
