"""Cursors and outages: kept, written behind, made anew where the file is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import apsw
import msgspec
import pytest

from linkd.config import LogSettings
from linkd.errors import LogDamaged, StateTooNew
from linkd.log import CursorStore, cursor_store, open_cursors, open_log
from linkd.log.cursor_store import SqliteCursorStore
from linkd.log.interface import Consumer, PeerCursor
from linkd.log.snapshot import snapshot_numbers
from linkd.log.state import in_parts
from tests.support.logs import append, draft
from tests.support.turns import Turns


class Pair:
    """A log and its cursors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.turns = Turns()
        self.open()

    def open(self) -> None:
        """Open both."""
        self.log: Any = open_log(
            LogSettings(segment_bytes=1 << 20), self.folder, "edge", self.turns.post
        )
        self.cursors = open_cursors(self.log, self.folder, self.turns.post)

    def until(self, true: Any) -> None:
        """Wait for it."""
        self.turns.until(true)

    def close(self) -> None:
        """Close both."""
        closers: list[Any] = [self.cursors.close, self.log.close]
        for close in closers:
            done: list[bool] = []
            close(partial(done.append, True))
            self.turns.until(partial(len, done))

    def restart(self) -> CursorStore:
        """Close and open both."""
        self.close()
        self.open()
        return self.cursors


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    one = Pair(tmp_path)
    yield one
    one.close()


BILLING = Consumer("shop", "billing", 7, ("orders", "x.>"), 5.0)
HUB = PeerCursor("hub", 1, 9)


def change(pair: Pair) -> None:
    """Put a peer, a consumer and two outages there, durably."""
    done: list[Any] = []
    pair.cursors.set_peer(HUB)
    pair.cursors.set_outage(1, b"one")
    pair.cursors.set_outage(2, b"two")
    pair.cursors.set_event(1, b"gone")
    pair.cursors.set_event(2, b"said")
    pair.cursors.remove_event(1)
    pair.cursors.set_consumer(BILLING, done.append)
    pair.until(lambda: done)
    assert done == [None]


def test_what_was_set_is_there_after_a_restart(pair: Pair) -> None:
    change(pair)
    cursors = pair.restart()
    assert cursors.peers == {"hub": HUB}
    assert (cursors.peers.get("hub"), cursors.peers.get("nobody")) == (HUB, None)
    assert cursors.consumers() == {BILLING.key: BILLING}
    assert cursors.outages() == [(1, b"one"), (2, b"two")]
    assert cursors.events() == [(2, b"said")]
    assert cursors.notices == []


def test_a_peer_noted_before_absence_was_known_is_read() -> None:
    row = msgspec.msgpack.encode({"peer": "hub", "made": 1, "acked": 9})
    assert msgspec.msgpack.decode(row, type=PeerCursor) == PeerCursor("hub", 1, 9, None)


def test_what_was_removed_stays_away(pair: Pair) -> None:
    change(pair)
    done: list[Any] = []
    pair.cursors.remove_peer("hub")
    pair.cursors.remove_outage(1)
    pair.cursors.remove_outage(77)
    pair.cursors.remove_consumer(BILLING.key, done.append)
    pair.until(lambda: done)
    cursors = pair.restart()
    assert (cursors.peers, cursors.consumers()) == ({}, {})
    assert cursors.outages() == [(2, b"two")]


def test_what_nobody_waits_for_is_soon_on_disk(pair: Pair) -> None:
    pair.cursors.set_peer(HUB)
    other = apsw.Connection(str(pair.folder / "cursors.db"), flags=apsw.SQLITE_OPEN_READONLY)
    query = "select count(*) from kept where kind = 'peer'"
    pair.turns.post(lambda: None)

    def there() -> bool:
        pair.turns.post(lambda: None)
        return bool(next(other.execute(query))[0])

    pair.until(there)
    other.close()


def test_a_row_that_changes_all_the_time_is_written_ten_times_a_second(pair: Pair) -> None:
    commits: list[float] = []

    def committing() -> bool:
        commits.append(time.monotonic())
        return False

    assert isinstance(pair.cursors, SqliteCursorStore)
    pair.cursors._db.set_commit_hook(committing)
    begun = time.monotonic()
    changes = 0
    while time.monotonic() < begun + 0.5:
        changes += 1
        pair.cursors.set_peer(PeerCursor("hub", 1, changes))
        time.sleep(0.001)
    lasted = time.monotonic() - begun  # longer where the machine is busy
    assert 1 <= len(commits) <= 10 * lasted + 2
    assert changes > 2 * len(commits)


HARMS = ("deleted", "empty", "begun", "rubbish", "flipped", "foreign", "no row", "page")


@pytest.mark.parametrize("how", HARMS)
def test_a_lost_file_is_made_anew_from_the_log(pair: Pair, how: str) -> None:
    change(pair)
    for _ in range(13):
        append(pair, draft(bytes(100_000)))
    pair.until(lambda: snapshot_numbers(pair.folder / "log"))
    pair.close()
    path = pair.folder / "cursors.db"
    if how == "deleted":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "begun":
        path.unlink()
        db = apsw.Connection(str(path))
        db.execute("pragma journal_mode = wal")
        db.close()
    elif how == "foreign":
        db = apsw.Connection(str(path))
        db.execute("update kept set value = x'1234' where kind = 'log'")
        db.close()
    elif how == "no row":
        db = apsw.Connection(str(path))
        db.execute("insert into kept values ('peer', 'bad', x'c1')")
        db.close()
    elif how == "page":
        db = apsw.Connection(str(path))
        db.executemany(
            "insert into kept values ('outage', ?, zeroblob(900))", ((n,) for n in range(9, 99))
        )
        db.close()
        content = bytearray(path.read_bytes())
        content[5 * 4096 + 8 : 5 * 4096 + 40] = bytes(32)
        path.write_bytes(bytes(content))
    elif how == "rubbish":
        path.write_bytes(b"rubbish" * 1000)
    else:
        content = bytearray(path.read_bytes())
        content[100:120] = bytes(20)
        path.write_bytes(bytes(content))
    pair.open()
    assert pair.cursors.peers == {"hub": HUB}
    assert pair.cursors.consumers() == {BILLING.key: BILLING}
    assert [told.event for told in pair.cursors.notices] == ["cursors.rebuilt"]
    assert pair.restart().notices == []


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_a_rebuilding_that_is_cut_off_is_done_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """What was written so far passed for all: peers and consumers lost what they were owed."""
    done: list[Any] = []
    for number in range(600):
        pair.cursors.set_consumer(Consumer("shop", f"c{number}", 1, (), 0.0), done.append)
    pair.cursors.set_peer(HUB)
    for _ in range(13):
        append(pair, draft(bytes(100_000)))
    pair.until(lambda: len(done) == 600 and snapshot_numbers(pair.folder / "log"))
    pair.close()
    (pair.folder / "cursors.db").write_bytes(b"rubbish" * 1000)

    def cut_off(rows: Any, most: int) -> Iterator[list[Any]]:
        whole = in_parts(rows, most)
        for _ in range(parts):
            yield next(whole)
        raise apsw.IOError("the host is gone")

    with monkeypatch.context() as patched:
        patched.setattr(cursor_store, "in_parts", cut_off)
        log: Any = open_log(LogSettings(), pair.folder, "edge", pair.turns.post)
        with pytest.raises(LogDamaged, match="host is gone"):
            open_cursors(log, pair.folder, pair.turns.post)
        ended: list[bool] = []
        log.close(partial(ended.append, True))
        pair.until(lambda: ended)
    pair.open()
    assert len(pair.cursors.consumers()) == 600
    assert pair.cursors.peers == {"hub": HUB}
    assert [notice.event for notice in pair.cursors.notices] == ["cursors.rebuilt"]
    assert pair.restart().notices == []
    assert len(pair.cursors.consumers()) == 600


class Unmerged:
    """A connection whose write-ahead log stays: the disk has no room for the rows in the file."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db

    def execute(self, statement: str) -> Any:
        stays = statement == "pragma journal_mode = delete"
        return iter([("wal",)]) if stays else self._db.execute(statement)

    def executemany(self, *more: Any) -> Any:
        return self._db.executemany(*more)

    def __enter__(self) -> Any:
        return self._db.__enter__()

    def __exit__(self, *why: Any) -> Any:
        return self._db.__exit__(*why)

    def close(self) -> None:
        self._db.close()


def test_a_new_file_whose_rows_are_beside_it_gets_no_name(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows stayed in the write-ahead log of the old name, and were lost."""
    change(pair)
    pair.close()
    path = pair.folder / "cursors.db"
    path.write_bytes(b"rubbish" * 1000)
    opened = SqliteCursorStore._open

    def unmerged(store: SqliteCursorStore, path: Path, is_new: bool) -> Any:
        db = opened(store, path, is_new)
        return Unmerged(db) if path.name.endswith(".new") else db

    with monkeypatch.context() as patched:
        patched.setattr(SqliteCursorStore, "_open", unmerged)
        log: Any = open_log(LogSettings(), pair.folder, "edge", pair.turns.post)
        with pytest.raises(LogDamaged, match="make room"):
            open_cursors(log, pair.folder, pair.turns.post)
        ended: list[bool] = []
        log.close(partial(ended.append, True))
        pair.until(lambda: ended)
    assert not path.exists()
    pair.open()
    assert [notice.event for notice in pair.cursors.notices] == ["cursors.rebuilt"]


def test_rows_are_written_in_the_order_of_the_calls(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that moves, with an ack unwritten, was deleted before its new name was there."""
    assert isinstance(pair.cursors, SqliteCursorStore)
    monkeypatch.setattr("linkd.log.cursor_store.RETRY_SECONDS", 0.01)
    write, tries = pair.cursors.write, []
    old, new = Consumer("shop", "old", 1, (), 0.0), Consumer("shop", "new", 1, (), 0.0)

    def once(rows: Any) -> Exception | None:
        tries.append(list(rows))
        if len(tries) == 1:
            pair.cursors.set_consumer(new)
            pair.cursors.remove_consumer(old.key, done.append)
            return apsw.FullError("no room")
        return write(rows)

    done: list[Any] = []
    monkeypatch.setattr(pair.cursors, "write", once)
    pair.cursors.set_consumer(old)
    pair.until(lambda: done)
    assert tries[1] == [("consumer", "shop/new"), ("consumer", "shop/old")]
    assert set(pair.restart().consumers()) == {new.key}


def test_a_newer_file_is_left_alone(pair: Pair) -> None:
    change(pair)
    pair.close()
    db = apsw.Connection(str(pair.folder / "cursors.db"))
    db.execute("pragma user_version = 99")
    db.close()
    with pytest.raises(StateTooNew, match=r"^/\S+ was written by a newer linkd \(format 99"):
        pair.open()
    db = apsw.Connection(str(pair.folder / "cursors.db"))
    db.execute("pragma user_version = 1")
    db.close()
    done: list[bool] = []
    pair.log.close(lambda: done.append(True))
    pair.until(lambda: done)
    pair.open()


def test_a_refused_write_is_told_and_tried_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkd.log.cursor_store.RETRY_SECONDS", 0.01)
    assert isinstance(pair.cursors, SqliteCursorStore)
    real = pair.cursors.write
    refuse = [True]

    def write(rows: Any) -> Exception | None:
        return apsw.FullError("no room") if refuse[0] else real(rows)

    monkeypatch.setattr(pair.cursors, "write", write)
    done: list[Any] = []
    pair.cursors.set_consumer(BILLING, done.append)
    pair.until(lambda: done)
    assert isinstance(done[0], apsw.FullError)
    refuse[0] = False
    pair.cursors.set_consumer(Consumer("socket", "x", 1, (), 1.0), done.append)
    pair.until(lambda: len(done) == 2)
    assert done[1] is None
    assert set(pair.restart().consumers()) == {BILLING.key, ("socket", "x")}


def test_a_disk_error_is_returned(pair: Pair) -> None:
    assert isinstance(pair.cursors, SqliteCursorStore)
    pair.cursors._db.execute("pragma query_only = on")
    done: list[Any] = []
    pair.cursors.set_consumer(BILLING, done.append)
    pair.until(lambda: done)
    assert isinstance(done[0], apsw.Error)
    pair.cursors._db.execute("pragma query_only = off")


def test_a_file_that_goes_bad_under_way_is_made_anew_and_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(pair)
    assert isinstance(pair.cursors, SqliteCursorStore)
    real, broken = pair.cursors.write, [True]

    def write(rows: Any) -> Exception | None:
        if broken:
            broken.clear()
            return apsw.CorruptError("a bad page")
        return real(rows)

    monkeypatch.setattr(pair.cursors, "write", write)
    told: list[Any] = []
    pair.cursors.on_notice.append(told.append)
    pair.cursors.set_consumer(BILLING)
    pair.until(lambda: told)
    assert told == pair.cursors.notices[-1:]
    assert told[0].event == "cursors.rebuilt"
    assert "a bad page" in told[0].detail
    before = (pair.cursors.peers, pair.cursors.consumers(), pair.cursors.outages())
    found = pair.restart()
    assert (found.peers, found.consumers(), found.outages()) == before
    assert list(pair.folder.glob("cursors.db.damaged-*"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (apsw.FullError("full"), "make room"),
        (apsw.CantOpenError("unable"), "chown -R"),
        (PermissionError(13, "no"), "chown -R"),
        (apsw.IOError("disk I/O error"), "check the disk"),
    ],
)
def test_a_file_that_cannot_be_opened_says_what_to_do(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    pair.close()

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(SqliteCursorStore, "_open", refuse)
        log: Any = open_log(LogSettings(), pair.folder, "edge", pair.turns.post)
        with pytest.raises(LogDamaged, match=says):
            open_cursors(log, pair.folder, pair.turns.post)
        done: list[bool] = []
        log.close(partial(done.append, True))
        pair.until(lambda: done)
    pair.open()


def test_a_file_that_goes_bad_while_the_disk_refuses_another_is_made_anew_once_it_does_not(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended the thread: no consumer's ack was ever answered again, nor the close."""
    monkeypatch.setattr("linkd.log.cursor_store.RETRY_SECONDS", 0.01)
    change(pair)
    assert isinstance(pair.cursors, SqliteCursorStore)
    write, opened = pair.cursors.write, pair.cursors._open
    broken, refused = [True], [True] * 3

    def bad(rows: Any) -> Exception | None:
        return apsw.CorruptError("a bad page") if broken and broken.pop() else write(rows)

    def full(path: Path, is_new: bool) -> apsw.Connection:
        if refused:
            refused.pop()
            raise apsw.FullError("no room")
        return opened(path, is_new)

    monkeypatch.setattr(pair.cursors, "write", bad)
    monkeypatch.setattr(pair.cursors, "_open", full)
    done: list[Any] = []
    pair.cursors.set_consumer(BILLING, done.append)
    pair.until(lambda: done)
    assert isinstance(done[0], apsw.CorruptError)
    last = Consumer("socket", "last", 3, (), 1.0)
    pair.cursors.set_consumer(last, done.append)
    pair.until(lambda: len(done) == 2)
    pair.until(lambda: pair.cursors.notices)
    found = pair.restart()
    assert found.notices == []
    assert found.consumers() == {BILLING.key: BILLING, last.key: last}
    assert found.peers == {"hub": HUB}
    assert found.outages() == [(1, b"one"), (2, b"two")]
    assert len(list(pair.folder.glob("cursors.db.damaged-*"))) == 1


def test_all_that_is_known_is_in_the_new_file_before_the_end(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(pair)
    assert isinstance(pair.cursors, SqliteCursorStore)
    monkeypatch.setattr("linkd.log.cursor_store.RETRY_SECONDS", 0.01)
    write, broken = pair.cursors.write, [True]

    def bad(rows: Any) -> Exception | None:
        return apsw.CorruptError("a bad page") if broken and broken.pop() else write(rows)

    monkeypatch.setattr(pair.cursors, "write", bad)
    pair.cursors.set_peer(PeerCursor("other", 2, 3))
    deadline = time.monotonic() + 10
    while broken and time.monotonic() < deadline:
        time.sleep(0.001)
    found = pair.restart()
    assert set(found.peers) == {"hub", "other"}
    assert found.consumers() == {BILLING.key: BILLING}


def test_a_bad_file_beside_a_new_log_begins_anew(tmp_path: Path) -> None:
    turns = Turns()
    path = tmp_path / "cursors.db"
    path.write_bytes(b"rubbish" * 1000)
    cursors = SqliteCursorStore(path, "log", None, turns.post)
    assert (cursors.peers, cursors.consumers(), cursors.outages()) == ({}, {}, [])
    assert "0 peers and 0 consumers" in cursors.notices[0].detail
    done: list[bool] = []
    cursors.close(partial(done.append, True))
    turns.until(lambda: done)


def test_a_consumer_of_a_visit_is_kept_for_a_short_time_and_its_patterns_count() -> None:
    visit = Consumer("shop", "resume.tab-1", 1, ("a.>", "b"))
    lasting = Consumer("shop", "billing", 1, ())
    assert (visit.is_passing, visit.pattern_bytes) == (True, 4)
    assert (lasting.is_passing, lasting.pattern_bytes) == (False, 0)


def test_many_consumers_with_long_patterns_take_little_of_the_disk(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    rng = Random(1)
    regular = tuple(f"plants.north.line-{number}.>" for number in range(300))
    others = tuple(f"{rng.getrandbits(96):024x}.>" for number in range(300))
    for turn in range(3):
        settled: list[Any] = []
        for number in range(1000):
            patterns = regular if number % 2 else others
            one = Consumer("key", f"c{number}", turn, patterns, 0.0)
            pair.cursors.set_consumer(one, settled.append)
        pair.until(lambda settled=settled: len(settled) == 1000)
        assert settled == [None] * 1000
    sizes = {path.suffix: path.stat().st_size for path in tmp_path.glob("cursors.db*")}
    assert sizes[".db-wal"] < 6 << 20  # 8 MB for all in one transaction, and kept for ever
    assert sizes[".db"] < 4_500_000  # 8 MB as they are
    before = dict(pair.cursors.consumers())
    assert dict(pair.restart().consumers()) == before
    pair.close()


def test_cursors_in_memory_are_carried_and_close_at_once() -> None:
    cursors, closed, removed = CursorStore(), list[bool](), list[Any]()
    cursors.set_peer(PeerCursor("edge", 1, 7))
    cursors.remove_consumer(("", "nobody"), removed.append)
    assert removed == [None]
    carried = [each for part in cursors.carried() for each in part.acks]
    assert [(each[0], each[2]) for each in carried] == [("edge", 7)]
    cursors.close(lambda: closed.append(True))
    assert closed == [True]


def test_values_are_shared_within_one_process() -> None:
    cursors, done = CursorStore(), list[Any]()
    cursors.share("token", "x", b"1")
    cursors.share("token", "y", b"2", done.append)
    cursors.share("token", "x", None)
    assert cursors.shared("token") == {"y": b"2"}
    taken: list[Any] = []
    cursors.take("token", "y", taken.append)
    cursors.take("token", "y", taken.append)
    assert taken == [b"2", None]
    assert cursors.shared("token") == {}
    cursors.refresh(lambda: done.append("known"))
    cursors.create_peer(PeerCursor("edge", 4, 4))
    assert cursors.peers == {"edge": PeerCursor("edge", 4, 4)}
    cursors.create_consumer(Consumer("socket", "billing", 3, ("orders",)))
    assert ("socket", "billing") in cursors.consumers()
    cursors.create_peer(PeerCursor("edge", 3, 3))
    assert cursors.peers == {"edge": PeerCursor("edge", 3, 3)}
    assert done == [None, "known"]
