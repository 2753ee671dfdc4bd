"""The log in memory: commits by hand, a disk that is full, a crash."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from linkd.core.batch import HELD_BYTES
from linkd.errors import LogFull
from linkd.log import MemoryLog
from linkd.log.engine import Appended
from linkd.log.settings import SegmentSettings
from tests.support.logs import draft, received


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


def test_what_is_appended_by_who_is_told_of_a_commit_comes_behind_it() -> None:
    log = MemoryLog("edge", Random(1))
    got: list[Any] = []

    def more(outcome: Any) -> None:
        got.append(outcome)
        if len(got) < 3:
            log.append(draft(b"%d" % len(got)), more)

    log.append(draft(b"0"), more)
    assert got == [Appended(1, 1), Appended(2, 1), Appended(3, 1)]


EACH = HELD_BYTES + 1_000
BOUNDS = SegmentSettings(memory_bytes=10 * EACH, max_bytes=100 * EACH)


def filled(log: MemoryLog, count: int) -> list[Any]:
    """Append so many batches of one record, each of about `EACH` bytes; return what came of it."""
    got: list[Any] = []
    for _ in range(count):
        log.append(draft(b"x" * (EACH - HELD_BYTES - 6)), got.append)
    return got


def test_what_nobody_is_owed_is_forgotten_beyond_its_bound() -> None:
    log = MemoryLog("edge", Random(1), settings=BOUNDS)
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
    log = MemoryLog("edge", Random(1), settings=BOUNDS)
    for end in range(2, 2_000):
        log.store(received(end - 1, end), lambda _: None)
    assert (log.size_bytes, log.full) == (0, None)


def test_what_is_owed_stays_and_publishes_are_refused_until_it_goes() -> None:
    log = MemoryLog("edge", Random(1), settings=BOUNDS)
    got = filled(log, 120)
    stored = [one for one in got if isinstance(one, Appended)]
    assert len(stored) == pytest.approx(90, abs=1)
    assert {type(one) for one in got[len(stored) :]} == {LogFull}
    kept: list[Any] = []
    log.store(received(1, 5, b"b"), kept.append)
    assert (log.first, kept) == (1, [])
    log.release(log.next)
    assert log.full is None
    assert len(kept) == 1
    assert isinstance(filled(log, 1)[0], Appended)


def test_drop_oldest_lets_what_is_owed_go_and_tells_the_gap() -> None:
    log = MemoryLog("edge", Random(1), settings=replace(BOUNDS, when_full="drop-oldest"))
    firsts: list[int] = []
    log.on_trim.append(firsts.append)
    got = filled(log, 150)
    assert {type(one) for one in got} == {Appended}
    assert log.size_bytes <= BOUNDS.max_bytes
    assert firsts[-1] == log.first == pytest.approx(51, abs=1)
