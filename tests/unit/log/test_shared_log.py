"""A log in PostgreSQL that several instances write: turns, takeovers, epochs, the keeper."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec
import pytest

from linkd.config import LogSettings
from linkd.config.settings import ClusterSettings
from linkd.errors import LogClosed, LogDamaged, LogLost, OutOfStep, PeerMoved, Unavailable
from linkd.log import open_cursors, open_log
from linkd.log.files import DiskFiles, Environment
from linkd.log.interface import Appended, Consumer, PeerCursor
from linkd.log.state import EpochOpened
from linkd.protocol.peer import Cursor, EpochEnd
from linkd.protocol.records import Batch, NewRecords
from tests.support.logs import bodies, draft, everything, numbered, received
from tests.support.postgresql import Server, needs_postgresql, server, settings
from tests.support.turns import Turns

try:
    from linkd.log.postgresql.shared_database import SharedDatabase
except ImportError:
    SharedDatabase = None  # type: ignore[assignment,misc]

pytestmark = needs_postgresql

Made = Callable[..., "Instance"]


class Instance:
    """One of the instances of the node `hub`."""

    def __init__(self, where: Server, database: str, name: str, **more: Any) -> None:
        from linkd.log.postgresql.shared_log import SharedLog

        self.turns = Turns()
        found = settings(where.dsn(database), **more.pop("postgresql", {}))
        self.settings = LogSettings(engine="postgresql", postgresql=found, **more)
        cluster = ClusterSettings(instance=name)
        edges = Environment(DiskFiles(), Random())
        self.log = SharedLog("hub", self.settings, cluster, self.turns.post, edges)
        self.others: list[Instance] = []
        self.taken: list[str] = []
        self.epochs: list[str] = []
        self.trims: list[int] = []
        self.log.on_taken.append(self.taken.append)
        self.log.on_epoch.append(lambda: self.epochs.append(self.log.epoch))
        self.log.on_trim.append(self.trims.append)

    def until(self, true: Callable[[], object], seconds: float = 15.0) -> None:
        """Let all instances take turns until `true()`."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline
            for one in self.others:
                one.turns.now()
            time.sleep(0.0005)

    def append(self, *drafts: NewRecords) -> list[Any]:
        """Append drafts; return what became of them."""
        got: list[Any] = []
        for one in drafts:
            self.log.append(one, got.append)
        self.until(lambda: len(got) == len(drafts))
        return got

    def store(self, *batches: Batch) -> list[Any]:
        """Store batches; return what became of them."""
        got: list[Any] = []
        for one in batches:
            self.log.store(one, got.append)
        self.until(lambda: len(got) == len(batches))
        return got

    def hold(self, peer: str, counter: int, boot: str = "boot") -> Any:
        """Take a peer over; return what became of it."""
        got: list[Any] = []
        self.log.hold(peer, boot, counter, got.append)
        self.until(lambda: got)
        return got[0]

    def bodies(self) -> list[bytes]:
        """Return the bodies of all records, read from the database where memory lacks them."""
        return bodies(everything(self))

    def close(self) -> None:
        """Close it."""
        done: list[bool] = []
        self.log.close(lambda: done.append(True))
        self.until(lambda: done)
        self.others.remove(self)

    def vanish(self) -> None:
        """Let it end as by kill -9: its connections close, nothing else happens."""
        self.log._follower._ends = True
        self.log._writer.queue.put(None)
        self.log._writer._thread.join()
        self.log.database.close()
        self.others.remove(self)


def instances(where: Server, database: str) -> Iterator[Made]:
    from linkd.log.postgresql.schema import create

    where.database(database)
    with where.connect(database) as connection:
        create(connection, "linkd")
    made: list[Instance] = []

    def make(name: str, **more: Any) -> Instance:
        one = Instance(where, database, name, **more)
        made.append(one)
        one.others = made
        one.until(lambda: one.log.epoch and not one.log.database.opens)
        one.turns.now()
        one.epochs.clear()
        return one

    yield make
    for one in tuple(made):
        one.close()


@pytest.fixture
def make() -> Iterator[Made]:
    """Opens instances on one database."""
    yield from instances(server(), "shared")


@pytest.fixture(scope="module")
def crashing() -> Iterator[Server]:
    """A server that a test may kill."""
    one = Server()
    yield one
    one.remove()


@pytest.fixture
def fragile(crashing: Server) -> Iterator[Made]:
    """Opens instances on a server that may crash."""
    yield from instances(crashing, "fragile")


def ask(statement: str, database: str = "shared", where: Server | None = None) -> Any:
    """Run a statement as the tables' owner; return its first row."""
    with (where or server()).connect(database) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone() if cursor.description else None


def same(*all_of: Instance) -> None:
    """Wait until all have the same end, and check that all have the same state."""
    first = all_of[0]
    first.until(lambda: not any(one.log._waiting or one.log._under_way for one in all_of))
    first.until(lambda: len({(one.log.first, one.log.next) for one in all_of}) == 1)
    assert len({one.log.epoch for one in all_of}) == 1
    for other in all_of[1:]:
        assert other.log.state.cursors == first.log.state.cursors
        assert other.log.state.epochs() == first.log.state.epochs()
        assert other.log.state._lasts == first.log.state._lasts
        assert other.bodies() == first.bodies()


def test_what_one_instance_commits_the_others_have_soon(make: Made) -> None:
    a, b = make("a"), make("b")
    assert a.log.epoch == b.log.epoch
    assert a.append(draft(b"1")) == [Appended(1, 1)]
    ends: list[int] = []
    b.log.on_commit.append(ends.append)
    b.until(lambda: ends)
    assert ends == [2]
    assert b.append(draft(b"2"), draft(b"3")) == [Appended(2, 1), Appended(3, 1)]
    assert a.append(draft(b"4")) == [Appended(4, 1)]
    same(a, b)
    assert a.bodies() == [b"1", b"2", b"3", b"4"]


def test_instances_that_write_at_once_lose_and_double_nothing(make: Made) -> None:
    made = [make(name) for name in "abc"]
    got: list[Any] = []
    for number in range(150):
        for index, one in enumerate(made):
            name = f"{index}-{number}"
            more: dict[str, Any] = {"producer": numbered(f"p{index}", number + 1)}
            if number % 3 == 0:
                more = {"ids": (name,)}
            one.log.append(draft(name.encode(), channel=f"c{number % 2}", **more), got.append)
            one.turns.now()
        if number % 20 == 0:
            time.sleep(0.01)
    made[0].until(lambda: len(got) == 450)
    assert all(isinstance(one, Appended) and one.count == 1 for one in got)
    assert len({one.offset for one in got}) == 450
    same(*made)
    found = made[0].bodies()
    for index in range(3):
        own = [body for body in found if body.startswith(b"%d-" % index)]
        assert own == [b"%d-%d" % (index, number) for number in range(150)]
    late = make("d")
    same(late, *made)


def test_a_repeat_at_another_instance_is_answered_with_the_first_offset(make: Made) -> None:
    a, b = make("a"), make("b")
    a.append(draft(b"x", ids=("x",)), draft(b"y", producer=numbered("p", 1)))
    assert b.append(draft(b"x", ids=("x",)), draft(b"y", producer=numbered("p", 1))) == [
        Appended(1, 0, True),
        Appended(2, 0, True),
    ]
    c = make("c")
    assert c.append(draft(b"x", ids=("x",))) == [Appended(1, 0, True)]
    same(a, b, c)


def test_each_record_names_the_one_before_it_on_its_channel_whoever_wrote_it(make: Made) -> None:
    a, b = make("a", segment_bytes=1 << 20), make("b", segment_bytes=1 << 20)
    for number in range(6):
        a.append(draft(bytes(400_000), channel=f"big{number % 2}"))
        b.append(draft(b"y", channel="small"))
    c = make("c", segment_bytes=1 << 20)
    same(a, b, c)
    for _ in range(8):  # so many segments that the keeper makes a snapshot
        c.append(draft(bytes(900_000), channel="big0"))
    d = make("d")
    last: dict[str, int] = {}
    d.append(draft(b"z", channel="small"), draft(b"z", channel="new"))
    for batch in everything(d):
        assert batch.origin.after == last.get(batch.channel, 0)
        last[batch.channel] = batch.next - 1


def test_a_peer_is_held_by_one_instance_at_a_time(make: Made) -> None:
    a, b = make("a"), make("b")
    assert isinstance(a.store(received(1, 2, b"1", peer="edge"))[0], OutOfStep)
    assert isinstance(a.hold("edge", 1), Appended)
    assert a.store(received(1, 2, b"1", peer="edge")) == [Appended(1, 1)]
    assert a.log.holder("edge") == a.log.database.run_id
    assert a.log.holder("nobody") is None
    assert isinstance(b.hold("edge", 2), Appended)
    assert b.log.cursor("edge") == Cursor("hublog", (EpochEnd("e1", 2),), 2)
    a.until(lambda: a.taken)
    assert a.taken == ["edge"]
    (late,) = a.store(received(2, 3, b"late", peer="edge"))
    assert isinstance(late, OutOfStep)
    assert "expected one from 2" in str(late)
    assert b.store(received(2, 3, b"2", peer="edge")) == [Appended(2, 1)]
    assert isinstance(a.hold("edge", 1), PeerMoved)
    assert isinstance(a.hold("edge", 1, "another boot"), Appended)
    assert a.log.cursor("edge") == Cursor("hublog", (EpochEnd("e1", 3),), 3)
    b.until(lambda: b.taken)
    same(a, b)
    assert b.bodies() == [b"1", b"2"]


def test_what_waits_of_a_peer_that_was_taken_is_dropped(make: Made) -> None:
    a, b = make("a"), make("b")
    a.hold("edge", 1)
    a.store(received(1, 2, b"1", peer="edge"))
    a.others.remove(a)  # it does not get a turn
    b.hold("edge", 2)
    b.append(draft(b"other"))
    assert b.store(received(2, 3, b"2", peer="edge")) == [Appended(3, 1)]
    a.others.append(a)
    got: list[Any] = []
    a.log.store(received(2, 3, b"zombie", peer="edge"), got.append)
    a.log.append(draft(b"own"), got.append)
    a.until(lambda: got)
    assert got == [Appended(4, 1)]
    assert a.log.held() == 0
    assert a.taken == ["edge"]
    same(a, b)
    assert a.bodies() == [b"1", b"other", b"2", b"own"]


def test_edges_that_move_about_lose_and_double_nothing(make: Made) -> None:
    made = [make(name) for name in "abc"]
    rng = random.Random(7)
    edges = {f"edge{number}": 1 for number in range(6)}
    counters = dict.fromkeys(edges, 0)
    for _ in range(150):
        one = rng.choice(made)
        edge = rng.choice(list(edges))
        counters[edge] += 1
        assert isinstance(one.hold(edge, counters[edge]), Appended)
        cursor = one.log.cursor(edge)
        at = 1 if cursor is None else cursor.next
        assert at == edges[edge]
        batches = [
            received(at + n, at + n + 1, f"{edge} {at + n}".encode(), peer=edge, log=f"log-{edge}")
            for n in range(rng.randrange(1, 4))
        ]
        assert all(isinstance(out, Appended) and out.count == 1 for out in one.store(*batches))
        edges[edge] = at + len(batches)
        zombie = rng.choice([other for other in made if other is not one])
        zombie.log.store(batches[0], lambda _: None)
        if rng.random() < 0.1:
            made.remove(zombie)
            zombie.vanish()
            made.append(make(zombie.log.database.instance))
    same(*made)
    found = made[0].bodies()
    for edge, end in edges.items():
        own = [body for body in found if body.startswith(f"{edge} ".encode())]
        assert own == [f"{edge} {at}".encode() for at in range(1, end)]


def test_a_cursor_that_one_instance_sets_counts_at_all(make: Made) -> None:
    a, b = make("a"), make("b")
    done: list[Any] = []
    a.log.set_cursor("edge", Cursor("log", (EpochEnd("e", 7),), 7), done.append)
    a.until(lambda: done)
    b.until(lambda: b.log.cursor("edge"))
    assert b.log.cursor("edge") == Cursor("log", (EpochEnd("e", 7),), 7)


def test_a_start_of_the_server_opens_one_epoch_for_all(fragile: Made, crashing: Server) -> None:
    made = [fragile(name) for name in "abc"]
    before = made[0].log.epoch
    made[0].append(draft(b"1"))
    for round_ in range(2):
        crashing.kill()
        got: list[Any] = []
        for one in made:
            one.log.append(draft(b"x"), got.append)
        crashing.start()
        deadline = time.monotonic() + 20
        while not all(len(one.epochs) == round_ + 1 for one in made):
            assert time.monotonic() < deadline
            for one in made:
                one.turns.now()
                one.log.look()
            time.sleep(0.02)
        made[0].until(lambda got=got: len(got) == 3)
        assert all(isinstance(one, Appended) for one in got)
        same(*made)
    assert made[0].log.epoch != before
    assert len(made[0].log.state.epochs()) == 3
    assert made[0].bodies() == [b"1"] + [b"x"] * 6


def test_a_database_that_went_back_ends_all_that_knew_more(
    fragile: Made, crashing: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: died.append(what.exc_value))
    a, b = fragile("a"), fragile("b")
    told: list[Any] = []
    a.append(draft(b"1"))
    same(a, b)
    b.others.remove(b)  # it knows of no more
    b.log._follower._ends = True
    b.log._follower.wake()
    a.append(draft(b"2"), draft(b"3"))
    for one in (a, b):
        one.log.on_notice.append(told.append)
    (number,) = ask("select id from linkd.file where name like '%.log'", "fragile", crashing)
    with crashing.connect("fragile") as connection:
        (at,) = connection.execute(f"select max(at) from linkd.piece_{number}").fetchone()
        connection.execute(f"delete from linkd.piece_{number} where at = {at}")
        connection.execute("update linkd.log set commits = commits - 1")
    crashing.kill()
    crashing.start()
    a.until(lambda: a.log.look() or a.log.unavailable)
    assert "went back" in str(a.log.unavailable)
    assert "the last offset that was acknowledged here is 3" in str(a.log.unavailable)
    assert any(isinstance(error, LogLost) for error in died)
    a.vanish()
    b.others.append(b)
    assert isinstance(b.append(draft(b"new"))[0], Appended)
    assert b.epochs
    assert b.bodies() == [b"1", b"2", b"new"]


def test_the_keeper_deletes_and_the_others_follow(make: Made) -> None:
    more: dict[str, Any] = {"segment_bytes": 1 << 20, "max_bytes": 64 << 20}
    a, b = make("a", **more), make("b", **more)
    a.until(lambda: a.log.is_keeper != b.log.is_keeper)
    keeper, other = (a, b) if a.log.is_keeper else (b, a)
    for _ in range(12):
        other.append(draft(bytes(700_000)))
    keeper.until(lambda: len(keeper.log._snapshots.bases) == 2)
    assert other.log.trim(10) == 8
    other.until(lambda: other.log.first == keeper.log.first == 9)
    assert (other.trims, keeper.trims) == ([9], [9])
    same(a, b)
    keeper.vanish()
    other.until(lambda: other.log.is_keeper and len(other.log._snapshots.bases) == 2)
    for _ in range(8):
        other.append(draft(bytes(700_000)))
    other.log.trim(18)
    other.until(lambda: other.log.first >= 15)
    again = make(keeper.log.database.instance, **more)
    same(again, other)
    assert again.log.first == other.log.first


def test_an_instance_starts_while_others_write(make: Made) -> None:
    a = make("a")
    got: list[Any] = []
    ends = threading.Event()
    numbers = iter(range(10**6))

    def write() -> None:
        while not ends.is_set():
            if len(a.log._waiting) < 10:
                a.log.append(draft(b"%d" % next(numbers)), got.append)
            a.turns.now()
            time.sleep(0.0005)

    writer = threading.Thread(target=write)
    a.others.remove(a)
    writer.start()
    try:
        late = [make(name) for name in "bcd"]
        late[0].until(lambda: late[-1].log.next > 50)
    finally:
        ends.set()
        writer.join()
    a.others.append(a)
    same(a, *late)
    assert a.bodies() == [b"%d" % number for number in range(a.log.next - 1)]


def test_two_instances_of_one_name_and_a_daemon_alone_are_refused(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkd.log.postgresql.database.LOCK_SECONDS", 0.3)
    monkeypatch.setattr("linkd.log.postgresql.shared_database.LOCK_SECONDS", 0.3)
    a = make("a")
    with pytest.raises(LogDamaged, match="another linkd runs as the instance a"):
        make("a")
    with pytest.raises(LogDamaged, match="in use by another linkd"):
        open_log(a.settings, None, "hub", Turns().post)  # type: ignore[arg-type]
    a.close()
    turns = Turns()
    alone = open_log(a.settings, None, "hub", turns.post)  # type: ignore[arg-type]
    with pytest.raises(LogDamaged, match="for itself alone"):
        make("a")
    done: list[bool] = []
    alone.close(lambda: done.append(True))
    turns.until(lambda: done)
    made = open_log(
        a.settings,
        None,
        "hub",
        turns.post,
        cluster=ClusterSettings(instance="b"),  # type: ignore[arg-type]
    )
    made.close(lambda: done.append(True))
    turns.until(lambda: len(done) == 2)


def test_a_frozen_instance_loses_its_turn(make: Made) -> None:
    a, b = make("a"), make("b")
    a.append(draft(b"1"))
    database = a.log.database
    database._main.execute("begin")
    database._main.execute("select from linkd.log for update")
    database._has_turn = True
    assert b.append(draft(b"2"))[0].count == 1
    got = a.append(draft(b"3"))
    assert got[0].count == 1
    same(a, b)


@pytest.mark.parametrize("is_there", [True, False])
def test_an_unknown_outcome_is_found_out_among_others_commits(make: Made, is_there: bool) -> None:
    a, b = make("a"), make("b")
    a.append(draft(b"1"))
    same(a, b)
    connection = a.log.database._main
    execute = connection.execute

    def broken(statement: Any, values: Any = None, **more: Any) -> Any:
        """Let the connection break behind a commit or before it; another commits meanwhile."""
        if values is None or len(values) < 7:
            return execute(statement, values, **more)
        if is_there:
            execute(statement, values, **more)
        connection.close()
        return execute("select 1")

    connection.execute = broken
    got: list[Any] = []
    a.log.append(draft(b"2", producer=numbered("p", 1)), got.append)
    if not is_there:
        b.append(draft(b"between"))
    a.until(lambda: got)
    assert got[0].count == 1
    b.append(draft(b"3"))
    same(a, b)
    assert a.bodies().count(b"2") == 1


def test_a_server_that_cannot_be_reached_refuses_a_start(make: Made) -> None:
    a = make("a")
    wrong = LogSettings(engine="postgresql", postgresql=settings(server().dsn("shared", "nobody")))
    with pytest.raises(Unavailable, match="does not exist"):
        open_log(wrong, None, "hub", Turns().post, cluster=ClusterSettings(instance="x"))  # type: ignore[arg-type]
    assert a.append(draft(b"1")) == [Appended(1, 1)]


def test_an_epoch_that_another_instance_opened_first_takes_ours_back(make: Made) -> None:
    a, b = make("a"), make("b")
    same(a, b)
    for one in (a, b):
        one.log.database.opened = "an older start"
    ask("update linkd.log set incarnation = 'an older start'")
    got: list[Any] = []
    for one in (a, b):
        one.log.append(draft(b"x", channel="c"), got.append)
        one.log.look()
    a.until(lambda: len(got) == 2 and a.epochs and b.epochs)
    same(a, b)
    assert len(a.log.state.epochs()) == 2
    assert [batch.origin.after for batch in everything(a)] == [0, 1]
    assert EpochOpened("e", 1, True) != EpochOpened("e", 1)


class Cursors:
    """The cursors of an instance."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.store: Any = open_cursors(instance.log, None, instance.turns.post)  # type: ignore[arg-type]

    def done(self, call: Callable[..., None], *arguments: Any) -> Any:
        """Make a call with a callback; return what that got."""
        got: list[Any] = []
        call(*arguments, got.append)
        self.instance.until(lambda: got)
        return got[0]

    def close(self) -> None:
        """Close them."""
        got: list[bool] = []
        self.store.close(lambda: got.append(True))
        self.instance.until(lambda: got)


def test_cursors_that_one_instance_notes_are_at_the_others(make: Made) -> None:
    a, b = make("a"), make("b")
    of_a, of_b = Cursors(a), Cursors(b)
    moved: list[Any] = []
    gone: list[Any] = []
    of_b.store.on_peer.append(moved.append)
    of_b.store.on_removed.append(gone.append)
    of_a.store.set_peer(PeerCursor("edge", 1, 5))
    b.until(lambda: moved)
    assert moved == [PeerCursor("edge", 1, 5)]
    assert of_b.store.peers == {"edge": PeerCursor("edge", 1, 5)}
    billing = Consumer("socket", "billing", 3, ("orders",))
    assert of_a.done(of_a.store.set_consumer, billing) is None
    b.until(of_b.store.consumers)
    assert dict(of_b.store.consumers()) == {billing.key: billing}
    assert of_b.done(of_b.store.set_consumer, Consumer("socket", "billing", 9, ("orders",))) is None
    a.until(lambda: of_a.store.consumers()[billing.key].next == 9)
    of_a.store._consumers[billing.key] = billing  # as if that had not been seen yet
    assert of_a.done(of_a.store.set_consumer, Consumer("socket", "billing", 4, ("orders",))) is None
    c = make("c")
    of_c = Cursors(c)
    assert of_c.store.consumers()[billing.key].next == 9
    assert of_a.done(of_a.store.remove_consumer, billing.key) is None
    b.until(lambda: gone)
    assert gone == [billing.key]
    assert not of_b.store.consumers()
    of_a.store.remove_peer("edge")
    b.until(lambda: not of_b.store.peers)
    for one in (of_a, of_b, of_c):
        one.close()


def test_the_instance_that_holds_a_peer_notes_its_cursor(make: Made) -> None:
    a, b = make("a"), make("b")
    of_a, of_b = Cursors(a), Cursors(b)
    b.hold("edge", 1)
    of_b.store.set_peer(PeerCursor("edge", 1, 8))
    a.until(lambda: of_a.store.peers)
    of_a.store.set_peer(PeerCursor("edge", 1, 2))  # what was late
    a.until(lambda: of_a.store.peers["edge"].acked == 8)
    assert of_b.store.peers["edge"].acked == 8
    for one in (of_a, of_b):
        one.close()


def test_history_belongs_to_an_instance(make: Made) -> None:
    a, b = make("a"), make("b")
    of_a, of_b = Cursors(a), Cursors(b)
    of_a.store.set_event(1, b"a's")
    of_b.store.set_event(1, b"b's")
    of_b.store.set_event(2, b"gone")
    of_b.store.remove_event(2)
    for one in (of_a, of_b):
        one.close()
    again = Cursors(b)
    assert again.store.events() == [(1, b"b's")]
    again.close()


def test_values_that_are_shared_are_seen_by_all(make: Made) -> None:
    a, b = make("a"), make("b")
    of_a, of_b = Cursors(a), Cursors(b)
    seen: list[Any] = []
    of_b.store.watch("token", lambda *what: seen.append(what))
    durable: list[Any] = []
    of_a.store.on_shared.append(lambda: durable.append(True))
    assert of_a.done(of_a.store.share, "token", "x", b"1") is None
    assert len(durable) == 1
    b.until(lambda: seen)
    assert of_b.store.shared("token") == of_a.store.shared("token") == {"x": b"1"}
    of_a.store.share("token", "x", None)
    b.until(lambda: len(seen) == 2)
    a.until(lambda: len(durable) == 2)
    assert seen == [("x", b"1"), ("x", None)]
    assert of_b.store.shared("token") == {}
    ask("revoke insert on linkd.kept from linkd")
    assert "permission denied" in str(of_a.done(of_a.store.share, "token", "y", b"2"))
    ask("grant insert on linkd.kept to linkd")
    for one in (of_a, of_b):
        one.close()


def test_a_value_is_taken_by_one_instance(make: Made) -> None:
    a, b = make("a"), make("b")
    of_a, of_b = Cursors(a), Cursors(b)
    for number in range(20):
        of_a.store.share("token", str(number), b"%d" % number)
    of_a.done(of_a.store.share, "token", "last", b"")
    taken: list[tuple[int, Any]] = []
    for number in range(20):
        for one in (of_a, of_b):
            one.store.take("token", str(number), lambda found, n=number: taken.append((n, found)))
    a.until(lambda: len(taken) == 40)
    assert sorted(found for found in taken if found[1] is not None) == [
        (number, b"%d" % number) for number in range(20)
    ]
    assert sum(found[1] is None for found in taken) == 20
    a.until(lambda: of_a.store.shared("token") == of_b.store.shared("token") == {"last": b""})
    ask("revoke update on linkd.kept from linkd")
    taken.clear()
    of_a.store.take("token", "last", lambda found: taken.append((0, found)))
    a.until(lambda: taken)
    assert "permission denied" in str(taken[0][1])
    ask("grant update on linkd.kept to linkd")
    assert of_a.store.shared("token") == {"last": b""}
    for one in (of_a, of_b):
        one.close()


def test_what_was_removed_is_forgotten_after_an_hour(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkd.log.postgresql.shared_database.FORGET_SECONDS", 0.0)
    monkeypatch.setattr("linkd.log.postgresql.shared_database.KEEP_SECONDS", 0.05)
    a = make("a")
    of_a = Cursors(a)
    of_a.done(of_a.store.share, "token", "x", b"1")
    of_a.done(of_a.store.share, "token", "x", None)
    a.until(lambda: ask("select count(*) from linkd.kept where kind = 'token'") == (0,))
    of_a.close()


def test_a_consumer_that_is_new_here_and_known_elsewhere_keeps_its_cursor(make: Made) -> None:
    a, b = make("a"), make("b")
    of_a, of_b = Cursors(a), Cursors(b)
    b.log._follower._changed = lambda rows: None  # it sees nothing
    billing = Consumer("socket", "billing", 3, ("orders",))
    assert of_a.done(of_a.store.set_consumer, billing) is None
    of_b.store.create_consumer(Consumer("socket", "billing", 90, ("orders",)))
    of_b.store.create_consumer(Consumer("socket", "other", 90, ("orders",)))
    assert of_b.done(of_b.store.share, "reader", "socket/billing", b"b") is None
    known: list[bool] = []
    of_b.store.refresh(lambda: known.append(True))
    b.until(lambda: known)
    assert of_b.store.consumers()[billing.key] == billing
    assert of_b.store.consumers()["socket", "other"].next == 90
    b.log.wake()
    for one in (of_a, of_b):
        one.close()


def test_a_late_ack_does_not_bring_back_a_consumer_that_was_removed_elsewhere(make: Made) -> None:
    a, b = make("a"), make("b")
    of_a, of_b = Cursors(a), Cursors(b)
    billing, gone = Consumer("socket", "billing", 3, ("orders",)), list[Any]()
    of_a.store.create_consumer(billing)
    b.until(of_b.store.consumers)
    b.log._follower._changed = lambda rows: None  # it sees nothing
    of_b.store.on_removed.append(gone.append)
    assert of_a.done(of_a.store.remove_consumer, billing.key) is None
    later = msgspec.structs.replace(billing, next=9)
    assert of_b.done(of_b.store.set_consumer, later) is None
    assert gone == [billing.key]
    assert not of_b.store.consumers()
    of_a.store.create_consumer(billing)
    assert of_a.done(of_a.store.share, "token", "x", b"1") is None
    assert of_a.store.consumers() == {billing.key: billing}
    assert of_b.done(of_b.store.set_consumer, later) is None
    a.until(lambda: of_a.store.consumers()[billing.key].next == 9)
    for one in (of_a, of_b):
        one.close()


def test_a_peer_that_is_new_here_and_known_elsewhere_keeps_its_cursor(make: Made) -> None:
    a, b = make("a"), make("b")
    of_a, of_b = Cursors(a), Cursors(b)
    moved, gone = list[Any](), list[Any]()
    b.log._follower._changed = lambda rows: None  # it sees nothing
    of_b.store.on_peer.append(moved.append)
    of_a.store.create_peer(PeerCursor("edge", 3, 3))
    assert of_a.done(of_a.store.share, "token", "x", b"1") is None
    of_b.store.create_peer(PeerCursor("edge", 9, 9))
    assert of_b.done(of_b.store.share, "token", "y", b"1") is None
    assert of_b.store.peers == {"edge": PeerCursor("edge", 3, 3)}
    assert moved == [PeerCursor("edge", 3, 3)]
    of_a.store.on_peer_removed.append(gone.append)
    of_b.store.remove_peer("edge")
    a.until(lambda: gone)
    assert gone == [PeerCursor("edge", 3, 3)]
    for one in (of_a, of_b):
        one.close()


def test_a_refresh_waits_until_the_database_is_there_again(make: Made) -> None:
    a, b = make("a"), make("b")
    of_a, of_b = Cursors(a), Cursors(b)
    follower, known = b.log._follower, list[object]()
    look = follower._look_at_values

    def broken(connection: Any) -> None:
        follower._look_at_values = look
        connection.close()
        look(connection)

    assert of_a.done(of_a.store.share, "token", "x", b"1") is None
    follower._look_at_values = broken
    of_b.store.refresh(lambda: known.append(of_b.store.shared("token")["x"]))
    b.until(lambda: known)
    assert known == [b"1"]
    for one in (of_a, of_b):
        one.close()


def test_what_is_older_than_our_own_change_is_left_out(make: Made) -> None:
    from linkd.log.postgresql.shared_database import KeptRow

    a = make("a")
    of_a = Cursors(a)
    store = of_a.store
    assert of_a.done(store.share, "token", "x", b"1") is None
    seen: list[Any] = []
    store.watch("token", lambda *what: seen.append(what))
    store._changed_elsewhere([KeptRow("token", "x", b"0", 1)])
    store.share("token", "x", b"2")
    store._changed_elsewhere([KeptRow("token", "x", b"0", 1 << 60)])
    assert not seen
    store._flying = {}
    assert of_a.done(store.share, "token", "x", b"3") is None
    store._changed_elsewhere([KeptRow("token", "x", b"3", 1 << 60)])  # it was seen already
    assert not seen
    encode = msgspec.msgpack.encode
    a.hold("edge", 1)
    store.set_peer(PeerCursor("edge", 1, 7))
    store._changed_elsewhere([KeptRow("peer", "edge", encode(PeerCursor("edge", 1, 2)), 1 << 60)])
    moved: list[Any] = []
    store.on_peer.append(moved.append)
    other = KeptRow("peer", "other", encode(PeerCursor("other", 1, 2)), 1 << 60)
    store._changed_elsewhere([other])
    store._changed_elsewhere([other])
    assert moved == [PeerCursor("other", 1, 2)]
    assert store.peers["edge"].acked == 7
    store._changed_elsewhere([KeptRow("peer", "other", None, 1 << 60)])
    assert "other" not in store.peers
    billing = Consumer("socket", "billing", 5, ("orders",))
    store.set_consumer(billing)
    older = Consumer("socket", "billing", 4, ("orders",))
    store._changed_elsewhere([KeptRow("consumer", "socket/billing", encode(older), 1 << 60)])
    assert store.consumers()[billing.key] == billing
    other = msgspec.structs.replace(billing, patterns=("other",))
    store._flying = {("consumer", "socket/billing"): encode(other)}
    store._changed_elsewhere([KeptRow("consumer", "socket/billing", encode(other), 1 << 60)])
    assert store.consumers()[billing.key] == billing  # it was ours, and is under way
    store._flying = {}
    gone: list[Any] = []
    store.on_removed.append(gone.append)
    store._changed_elsewhere([KeptRow("consumer", "socket/unknown", None, 1 << 60)])
    assert not gone
    of_a.close()


def test_rows_of_a_daemon_that_was_alone_and_of_others_are_read_or_left_out(make: Made) -> None:
    encode = msgspec.msgpack.encode
    a = make("a")
    with server().connect("shared") as connection:
        for kind, key, value in (
            ("event", "1", b"alone"),
            ("event@b", "2", b"b's"),
            ("peer", "edge", encode(PeerCursor("edge", 1, 5))),
            ("token", "x", b"1"),
        ):
            connection.execute(
                "insert into linkd.kept (kind, key, value) values (%s, %s, %s)", (kind, key, value)
            )
        connection.execute("insert into linkd.kept (kind, key) values ('token', 'gone')")
    of_a = Cursors(a)
    assert of_a.store.events() == []
    assert of_a.store.peers == {"edge": PeerCursor("edge", 1, 5)}
    assert of_a.store.shared("token") == {"x": b"1"}
    of_a.close()


def test_a_refused_row_is_an_error_of_the_disk(make: Made) -> None:
    a, b = make("a"), make("b")
    a.append(draft(b"1"))
    (number,) = ask("select id from linkd.file where name like '%.log'")
    ask(f"revoke insert on linkd.piece_{number} from linkd")
    (refused,) = a.append(draft(b"2"))
    assert "permission denied" in str(refused)
    a.log.database._turns = 4  # also in a turn
    a.until(lambda: a.log.full is None or not a.log.look())
    ask(f"grant insert on linkd.piece_{number} to linkd")
    a.until(lambda: a.log.full is None)
    assert a.append(draft(b"3"))[0].count == 1
    same(a, b)
    assert a.bodies() == [b"1", b"3"]


def test_a_commit_that_the_standby_has_not_confirmed_is_asked_for_again(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make("a")
    database, confirmed = a.log.database, list[Any]()
    insert, confirm = database._insert, database._confirm

    def doubtful(*arguments: Any) -> Any:
        file = insert(*arguments)
        database._is_doubtful = True
        return file

    monkeypatch.setattr(database, "_insert", doubtful)
    monkeypatch.setattr(database, "_confirm", lambda of: confirmed.append(of) or confirm(of))
    assert a.append(draft(b"1")) == [Appended(1, 1)]
    assert len(confirmed) == 1


def test_a_new_segment_whose_commit_failed_is_written_again(make: Made) -> None:
    a = make("a", segment_bytes=1 << 20)
    a.append(draft(bytes(700_000)))
    a.append(draft(bytes(700_000)))
    connection = a.log.database._main
    execute = connection.execute

    def broken(statement: Any, *more: Any, **named: Any) -> Any:
        if "create_file" in str(statement):
            connection.close()
        return execute(statement, *more, **named)

    connection.execute = broken
    assert a.append(draft(b"next")) == [Appended(3, 1)]
    assert a.bodies()[-1] == b"next"


def test_an_instance_that_is_far_behind_catches_up_in_steps(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make("a"), make("b")
    same(a, b)
    monkeypatch.setattr("linkd.log.postgresql.shared_database.BEHIND_ROWS", 2)
    a.log._follower._ends = True
    a.log._follower.wake()
    a.log._follower._thread.join()
    for number in range(15):
        b.append(draft(b"%d" % number))
    assert a.append(draft(b"a"))[0].offset == 16
    assert a.log.next == 17
    assert b.append(draft(b"b"))[0].offset == 17


def test_what_waits_while_another_was_quicker_is_not_stored_by_a_node_that_stops(
    make: Made,
) -> None:
    a, b = make("a"), make("b")
    same(a, b)
    a.log._follower._ends = True
    a.log._follower.wake()
    a.log._follower._thread.join()
    b.append(draft(b"b"))
    got: list[Any] = []
    a.log.append(draft(b"a"), got.append)
    a.close()
    assert isinstance(got[0], LogClosed)
    b.append(draft(b"c"))
    assert b.bodies() == [b"b", b"c"]


def test_an_instance_that_lost_its_name_ends(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from linkd.log.postgresql.database import LOCK
    from linkd.log.postgresql.shared_database import INSTANCES

    died: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: died.append(what.exc_value))
    a, b = make("a"), make("b")
    told: list[Any] = []
    a.log.on_notice.append(told.append)
    other = server().connect("shared", "linkd")
    ask(
        "select pg_terminate_backend(pid, 2000) from pg_stat_activity"
        " where application_name = 'linkd/a'"
    )
    other.execute(
        "select pg_advisory_lock_shared(%s), pg_advisory_lock(%s::int, %s::int)",
        (LOCK, INSTANCES, a.log.database.number),
    )
    a.until(lambda: told)
    assert told[0].event == "log.fenced"
    assert "another linkd runs as the instance a" in told[0].detail
    a.log._follower._ends = True
    a.others.remove(a)
    other.close()
    assert b.append(draft(b"1"))[0].count == 1


def test_a_database_without_what_was_confirmed_is_noticed(make: Made) -> None:
    from linkd.log.postgresql.files import StoredFile

    a = make("a")
    a.append(draft(b"1"))
    database, lost = a.log.database, list[Any]()
    database.lost = lost.append
    with pytest.raises(LogLost, match="the newest are gone"):
        database.verify(
            database._main, msgspec.structs.replace(database.place, file=StoredFile(10**6, True))
        )
    database._commits += 2
    with pytest.raises(LogLost, match="2 are gone"):
        database._count(database._main)
    connection = database.connect()
    database._commits -= 4  # as if rows were missing
    with pytest.raises(LogLost, match="some are gone"):
        database._take_turn(connection, a.log._shared)
    connection.close()
    database._commits += 2
    assert len(lost) == 3


def test_a_row_without_an_epoch_for_it_is_met_in_a_turn(make: Made) -> None:
    a, b = make("a"), make("b")
    same(a, b)
    ask("update linkd.log set incarnation = ''")  # as an instance does that finds itself alone
    assert a.append(draft(b"1"))[0].count == 1
    same(a, b)
    assert len(a.log.state.epochs()) == 2


def test_a_start_that_fails_lets_the_others_write(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make("a")

    def fails(*_: Any) -> None:
        raise LogDamaged("no")

    with monkeypatch.context() as patch:
        patch.setattr("linkd.log.disk_log.begin", fails)
        with pytest.raises(LogDamaged, match="no"):
            Instance(server(), "shared", "b")
    assert a.append(draft(b"1")) == [Appended(1, 1)]
    fence, tries = SharedDatabase._fence_off, list[int]()

    def late(self: Any, connection: Any) -> tuple[int, int]:
        """Let another instance start between the two steps, once."""
        found, commits = fence(self, connection)
        tries.append(found)
        return (found - 1 if len(tries) == 1 else found), commits

    monkeypatch.setattr(SharedDatabase, "_fence_off", late)
    b = make("b")
    assert len(tries) == 2
    same(a, b)


def test_a_segment_cannot_be_repaired_or_cut_while_others_use_it(make: Made) -> None:
    a = make("a")
    a.append(draft(b"1"))
    with pytest.raises(LogDamaged, match="restore that from a backup"):
        a.log._reads._make_repairer()
    files = a.log._shared
    a.until(lambda: a.log.is_keeper)
    fd = files.open(files.root / "note", create=True)
    files.write(fd, 0, [b"1234"])
    files.truncate(fd, 2)
    files.truncate(files.open(files.root / "000000000001.log"), 0)
    assert (files.root / "note").read_bytes() == b"12"
    files.unlink(files.root / "note")
    assert a.bodies() == [b"1"]


def test_an_instance_ceases_to_be_the_keeper_where_another_has_become_it(make: Made) -> None:
    from linkd.log.postgresql.shared_database import Kept

    a = make("a")
    a.until(lambda: a.log.is_keeper)
    kept = Kept(a.log._roller.identity, 0, 0)
    a.log._take_kept(kept)
    assert not a.log.is_keeper
    segments, a.log._segment_set.segments = a.log._segment_set.segments, []
    a.log._roller.note_again()  # of a new log there is nothing to note
    a.log._segment_set.segments = segments
    a.until(lambda: a.log.is_keeper)
    a.log._no_snapshot(OSError(5, "it is broken"))
    assert "no snapshot of the state could be made" in a.log.notices[-1].detail
    a.log._no_snapshot(OSError(1, "another linkd has this log"))
    assert a.log._snapshot_failed < a.log._monotonic() - 8.0


def test_received_batches_wait_behind_what_others_wrote(make: Made) -> None:
    a, b = make("a"), make("b")
    a.hold("edge", 1)
    same(a, b)
    got: list[Any] = []
    a.others.remove(a)
    b.append(draft(b"b"))
    a.log.store(received(1, 2, b"1", peer="edge"), got.append)
    a.log.store(received(2, 2, peer="edge"), got.append)
    a.log.store(received(2, 3, b"2", peer="edge"), got.append)
    a.others.append(a)
    a.until(lambda: len(got) == 3)
    assert [one.count for one in got] == [1, 0, 1]
    same(a, b)
    assert b.log.cursor("edge") == a.log.cursor("edge")


def test_a_log_whose_database_is_away_can_be_closed(fragile: Made, crashing: Server) -> None:
    a = fragile("a")
    crashing.kill()
    got: list[Any] = []
    a.log.append(draft(b"1"), got.append)
    a.until(lambda: a.log.database.trouble)
    a.close()
    assert got[0].is_unknown
    crashing.start()


def test_a_server_that_answers_nothing_is_left_for_one_that_does(make: Made) -> None:
    a, b = make("a"), make("b")
    database, follower = a.log.database, a.log._follower
    before, followed = database._main, follower._connection
    follower._asked = database._asked = -100.0
    told: list[Any] = []
    a.log.on_notice.append(told.append)
    a.log.look()
    assert "it accepts questions and answers none" in told[0].detail
    assert a.append(draft(b"1"))[0].is_unknown is False
    a.until(lambda: a.log.look() or a.log.unavailable is None)
    assert a.append(draft(b"2"))[0].count == 1
    assert database._main is not before
    a.until(lambda: follower._connection not in (None, followed))
    b.append(draft(b"3"))
    same(a, b)
    database.incarnation = "another server's"
    before, followed = database._main, follower._connection
    follower._connection.close()
    a.until(lambda: database._main not in (None, before))
    assert database.incarnation == b.log.database.incarnation
    assert a.append(draft(b"4"))[0].count == 1
    same(a, b)


def test_instances_that_write_the_same_values_at_once_agree(make: Made) -> None:
    a, b = make("a"), make("b")
    both = Cursors(a), Cursors(b)
    errors: list[Any] = []

    def write(store: Any, order: int) -> None:
        for number in range(60):
            rows = {("token", key): b"%d" % number for key in ("x", "y", "z")[::order]}
            errors.append(store.write(rows))

    threads = [
        threading.Thread(target=write, args=(of.store, order))
        for of, order in zip(both, (1, -1), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [None] * 120
    for number in range(20):
        got: list[Any] = []
        for of, letter in zip(both, "ab", strict=True):
            of.store.share("reader", "x", f"{letter}{number}".encode(), got.append)
        a.until(lambda got=got: len(got) == 2)
        a.until(lambda: both[0].store.shared("reader") == both[1].store.shared("reader"))
    for of in both:
        of.close()


def test_a_connection_that_cannot_be_prepared_is_closed(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make("a")
    monkeypatch.setattr("linkd.log.postgresql.shared_database._SESSION", "set nothing = {}")
    with pytest.raises(Unavailable, match="unrecognized configuration parameter"):
        Instance(server(), "shared", "b")
    monkeypatch.undo()
    assert a.append(draft(b"1")) == [Appended(1, 1)]
