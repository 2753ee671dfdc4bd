"""The log in PostgreSQL: crashes of the server, takeovers, an older state, setup, copies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from linkd.config import LogSettings
from linkd.errors import (
    ConfigError,
    LogDamaged,
    LogFull,
    LogLost,
    LogUnavailable,
    StateTooNew,
    Unavailable,
)
from linkd.log import inspect_postgresql, open_cursors, open_log, shared_values
from linkd.log.cursor_store import CursorStore
from linkd.log.interface import Appended, Consumer, PeerCursor
from tests.support.logs import (
    SegmentBench,
    append,
    bodies,
    draft,
    everything,
    numbered,
    received,
)
from tests.support.postgresql import (
    PostgresqlBench,
    Server,
    needs_postgresql,
    server,
    settings,
)
from tests.support.turns import Turns

pytestmark = needs_postgresql


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[PostgresqlBench]:
    one = PostgresqlBench(tmp_path / "log")
    yield one
    one.close()


@pytest.fixture(scope="module")
def crashing() -> Iterator[Server]:
    """A server that a test may kill."""
    one = Server()
    yield one
    one.remove()


def crash_bench(tmp_path: Path, crashing: Server, **more: Any) -> PostgresqlBench:
    return PostgresqlBench(
        tmp_path / "log", server=crashing, postgresql={"engine_timeout": 1.0} | more
    )


def eventually(bench: PostgresqlBench, true: Callable[[], object]) -> None:
    """Take turns until `true()`, also where nothing is posted."""
    deadline = time.monotonic() + 15
    while not true():
        assert time.monotonic() < deadline
        bench.turns.now()
        time.sleep(0.02)


def ask(bench: PostgresqlBench, *statements: str) -> Any:
    """Run statements as the tables' owner; return the last one's first row."""
    with bench.server.connect(bench.name) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchone() if cursor.description else None


def test_a_crash_of_the_server_loses_and_doubles_nothing(tmp_path: Path, crashing: Server) -> None:
    bench = crash_bench(tmp_path, crashing, engine_timeout=60.0)
    got: list[Any] = []
    for number in range(400):
        bench.log.append(draft(b"%d" % number, producer=numbered("p", number + 1)), got.append)
        bench.turns.now()
        if number in (100, 250):
            crashing.kill()
            bench.log.append(draft(b"x", channel="other"), lambda _: None)
            crashing.start()
            eventually(bench, lambda number=number: len(got) == number + 1)
    eventually(bench, lambda: len(got) == 400)
    assert all(isinstance(one, Appended) and one.count == 1 for one in got)
    bench.restart()
    found = [body for body in bodies(everything(bench)) if body != b"x"]
    assert found == [b"%d" % number for number in range(400)]
    assert bench.log.next == 403
    bench.close()


def test_an_outcome_that_is_unknown_is_found_out(bench: PostgresqlBench) -> None:
    connection = bench.log.database._main
    execute = connection.execute

    def broken(statement: Any, values: Any = None) -> Any:
        """Let the connection break behind a commit, before its answer comes."""
        execute(statement, values)
        if values is not None:
            connection.close()
        return execute("select fence, commits, hub from linkd.log")

    connection.execute = broken
    confirm, refused = bench.log.database._confirm, list[bool]()

    def refuse_once(again: Any) -> None:
        """Refuse what only asks for the standby: the commit is there all the same."""
        if not refused:
            refused.append(True)
            again.execute("select 1 / 0")
        confirm(again)

    bench.log.database._confirm = refuse_once
    assert append(bench, draft(b"a")) == [Appended(1, 1)]
    assert refused
    assert connection.closed
    assert append(bench, draft(b"b")) == [Appended(2, 1)]
    assert bodies(everything(bench)) == [b"a", b"b"]


def test_publishers_do_not_wait_for_long(tmp_path: Path, crashing: Server) -> None:
    bench = crash_bench(tmp_path, crashing)
    log, told = bench.log, []
    log.on_notice.append(told.append)
    assert append(bench, draft(b"a")) == [Appended(1, 1)]
    crashing.kill()
    got: list[Any] = []
    log.append(draft(b"b", ids=("b",)), got.append)
    log.append(draft(b"c"), got.append)
    log.store(received(1, 2, b"r"), got.append)
    log.look()
    assert not got
    eventually(bench, lambda: log.database.trouble)
    bench.now[0] += 1.0
    log.look()
    assert [type(one) for one in got] == [LogUnavailable] * 2
    assert got[0].is_unknown
    assert not got[1].is_unknown
    assert "PostgreSQL:" in str(got[0])
    assert log.unavailable is not None
    late: list[Any] = []
    log.append(draft(b"d"), late.append)
    assert not late[0].is_unknown
    log.append(draft(b"b", ids=("b",)), late.append)  # a repeat of what is under way
    log.look()
    assert late[1].is_unknown
    crashing.start()
    bench.until(lambda: len(got) == 3)
    assert got[2] == Appended(3, 1)
    eventually(bench, lambda: not log.database.trouble)
    log.look()
    assert log.unavailable is None
    events = [one.event for one in told if one.event != "log.slow"]
    assert events == ["log.engine-away", "log.engine-back"]
    assert append(bench, draft(b"b", ids=("b",))) == [Appended(2, 0, True)]
    assert bodies(everything(bench)) == [b"a", b"b", b"r"]
    bench.close()


def test_an_idle_log_notices_that_its_database_is_away(tmp_path: Path, crashing: Server) -> None:
    bench = crash_bench(tmp_path, crashing)
    append(bench, draft(b"a"))
    crashing.kill()
    eventually(bench, lambda: bench.log.look() or bench.log.unavailable)
    crashing.start()
    eventually(bench, lambda: bench.log.database.away() == 0.0)
    bench.close()


def test_a_log_whose_database_is_away_can_be_closed(tmp_path: Path, crashing: Server) -> None:
    bench = crash_bench(tmp_path, crashing)
    crashing.kill()
    got: list[Any] = []
    bench.log.append(draft(b"a"), got.append)
    eventually(bench, lambda: bench.log.database.trouble)
    bench.close()
    assert got[0].is_unknown
    crashing.start()


@pytest.mark.parametrize("reconnects", [False, True])
def test_another_daemon_takes_the_log_over(
    bench: PostgresqlBench, monkeypatch: pytest.MonkeyPatch, reconnects: bool
) -> None:
    died: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: died.append(what.exc_value))
    told: list[Any] = []
    bench.log.on_notice.append(told.append)
    append(bench, draft(b"a"))
    ask(bench, "update linkd.log set fence = fence + 1, hub = 'other'")
    if reconnects:
        bench.log.database._main.close()
    got: list[Any] = []
    bench.log.append(draft(b"b"), got.append)
    eventually(bench, lambda: got and died)
    assert isinstance(got[0], LogUnavailable)
    assert isinstance(died[0], LogLost)
    assert [one.event for one in told] == ["log.fenced"]
    assert "a linkd on other has taken over" in told[0].detail
    bench.log.database.close()
    bench.open()
    assert bodies(everything(bench)) == [b"a"]


def test_a_commit_of_somebody_else_ends_it(
    bench: PostgresqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: died.append(what.exc_value))
    append(bench, draft(b"a"))
    ask(bench, "update linkd.log set commits = commits + 1")
    got: list[Any] = []
    bench.log.append(draft(b"b"), got.append)
    eventually(bench, lambda: got and died)
    assert "another linkd writes into the log" in str(died[0])
    assert isinstance(got[0], LogUnavailable)
    bench.log.database.close()
    bench.open()
    assert bodies(everything(bench)) == [b"a"]


def test_a_database_that_went_back_is_told_with_the_offset(
    bench: PostgresqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    died: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: died.append(what.exc_value))
    told: list[Any] = []
    bench.log.on_notice.append(told.append)
    append(bench, draft(b"a"))
    append(bench, draft(b"b", b"c"))
    table = ask(bench, "select 'linkd.piece_' || max(id) from linkd.file where own")[0]
    ask(
        bench,
        f"delete from {table} where at = (select max(at) from {table})",
        "update linkd.log set commits = commits - 1",
    )
    eventually(bench, lambda: died)  # also without a publish: it looks every second
    bench.turns.now()
    assert [one.event for one in told] == ["log.went-back"]
    assert "of the commits that it had confirmed, 1 are gone" in told[0].detail
    assert "the last offset that was acknowledged here is 3" in told[0].detail
    bench.log.database.close()
    bench.open()
    assert bench.log.next == 2
    assert bodies(everything(bench)) == [b"a"]


def test_a_database_without_room_refuses_and_the_log_goes_on(bench: PostgresqlBench) -> None:
    append(bench, draft(b"a"))
    table = ask(bench, "select 'linkd.piece_' || max(id) from linkd.file where own")[0]
    ask(
        bench,
        "create function no_room() returns trigger language plpgsql as"
        " $$ begin raise disk_full using message = 'no space left'; end $$",
        f"create trigger no_room before insert on {table} execute function no_room()",
    )
    got: list[Any] = append(bench, draft(b"b"))
    assert isinstance(got[0], LogFull)
    assert "no space left (53100)" in str(got[0])
    assert isinstance(append(bench, draft(b"b"))[0], LogFull)
    stored: list[Any] = []
    bench.log.store(received(1, 2, b"r"), stored.append)
    ask(bench, f"drop trigger no_room on {table}")
    bench.until(lambda: stored)
    assert append(bench, draft(b"c")) == [Appended(3, 1)]
    assert bodies(everything(bench)) == [b"a", b"r", b"c"]


def test_a_cancelled_wait_for_the_standby_is_not_taken_for_a_commit(
    bench: PostgresqlBench,
) -> None:
    set_standby(bench.server, "'nobody'")
    try:
        got: list[Any] = []
        bench.log.append(draft(b"a"), got.append)
        waits = "select pid from pg_stat_activity where wait_event = 'SyncRep'"
        for _ in range(2):
            eventually(bench, lambda: ask(bench, waits))
            assert not got
            ask(bench, f"select pg_cancel_backend({ask(bench, waits)[0]})")
            time.sleep(0.2)
        bench.turns.now()
        assert not got
        assert bench.log._commit_seconds() == 0.0  # the bench's clock stands
    finally:
        set_standby(bench.server, "''")
    bench.until(lambda: got)
    assert got == [Appended(1, 1)]
    assert bodies(everything(bench)) == [b"a"]


def set_standby(server: Server, names: str) -> None:
    with server.connect("postgres") as connection:
        connection.execute("set synchronous_commit = local")
        connection.execute(f"alter system set synchronous_standby_names = {names}")
        connection.execute("select pg_reload_conf()")
    time.sleep(0.3)


def test_a_missing_standby_is_logged_where_one_is_preferred(tmp_path: Path) -> None:
    bench = PostgresqlBench(tmp_path / "log", postgresql={"synchronous": "preferred"})
    assert [one.event for one in bench.log.notices] == ["log.no-standby"]
    bench.close()


def test_a_standby_that_does_not_confirm_is_named_at_the_start(
    bench: PostgresqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkd.log.postgresql.database.CONFIRM_SECONDS", 0.3)
    bench.close()
    set_standby(bench.server, "'nobody'")
    try:
        words = (
            r"no standby has confirmed a commit within 0.3 s: .* is nobody, standbys connected: 0"
        )
        with pytest.raises(Unavailable, match=words):
            PostgresqlLog(bench, "edge")
        with pytest.raises(Unavailable, match=words):
            inspect_postgresql(bench.settings)
    finally:
        set_standby(bench.server, "''")
    bench.open()


def test_settings_that_change_are_noticed_while_the_log_is_open(
    bench: PostgresqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkd.log.postgresql.database.HEALTH_SECONDS", 0.0)
    told: list[Any] = []
    bench.log.on_notice.append(told.append)
    monkeypatch.setattr("linkd.log.postgresql.database.clock.wall", lambda: time.time() - 4000)
    eventually(bench, lambda: bench.log.look() or told)
    bench.log.look()
    assert [(one.level, one.event) for one in told] == [("warn", "log.clock-doubtful")]
    assert "the clock of the database is 4000 s ahead of this host's" in told[0].detail
    assert "warning: the clock of the database" in inspect_postgresql(bench.settings)
    monkeypatch.undo()
    monkeypatch.setattr("linkd.log.postgresql.database.HEALTH_SECONDS", 0.0)
    monkeypatch.setattr("linkd.log.postgresql.database.Health.problem", lambda *_: "fsync = off")
    eventually(bench, lambda: "fsync = off" in bench.log.database.trouble)
    monkeypatch.undo()
    assert append(bench, draft(b"a")) == [Appended(1, 1)]


def test_what_instances_have_written_can_be_read_beside_them(bench: PostgresqlBench) -> None:
    bench.close()
    with server().connect(bench.name) as connection:
        connection.execute(
            "insert into linkd.kept (kind, key, value) values"
            " ('instance', 'hub-a', 'one'), ('instance', 'hub-b', null), ('other', 'x', 'two')"
        )
    assert shared_values(bench.settings, "instance") == {"hub-a": b"one"}
    away = settings(f"host={server().folder / 'none'} dbname=nothing user=linkd")
    with pytest.raises(Unavailable, match=r"^log\.postgresql: "):
        shared_values(LogSettings(engine="postgresql", postgresql=away), "instance")
    bench.open()


def test_of_several_hosts_each_one_is_named() -> None:
    first, second = server().folder / "none", server().folder
    found = settings(f"host={first},{second} port=1,{server().port} dbname=nothing user=linkd")
    with pytest.raises(Unavailable) as refused:
        inspect_postgresql(LogSettings(engine="postgresql", postgresql=found))
    assert "none" in str(refused.value)
    assert "does not exist" in str(refused.value)


def test_a_host_from_the_environment_is_held_to_the_same_rule(
    bench: PostgresqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.close()
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    dsn = f"port={server().port} dbname={bench.name} user=linkd"
    found = LogSettings(engine="postgresql", postgresql=settings(dsn))
    assert "PostgreSQL" in inspect_postgresql(found)
    monkeypatch.setattr("linkd.log.postgresql.database.is_loopback", lambda _: False)
    with pytest.raises(ConfigError, match=r"127.0.0.1 is beyond this host: add sslmode"):
        inspect_postgresql(found)
    with pytest.raises(Unavailable, match=r"127.0.0.1 is beyond this host: add sslmode"):
        open_log(found, Path("/nowhere"), "edge", bench.turns.post)
    open_ = LogSettings(engine="postgresql", postgresql=settings(dsn, insecure=True))
    assert "PostgreSQL" in inspect_postgresql(open_)
    monkeypatch.undo()
    bench.open()


def test_a_server_that_fails_while_a_standby_is_tried_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from linkd.log.postgresql.database import Health, check_standby

    class Failing:
        handlers: ClassVar[list[Any]] = []
        add_notice_handler, remove_notice_handler = handlers.append, handlers.remove

        def cancel(self) -> None:
            """Never called."""

        def execute(self, statement: str) -> None:
            raise OSError(statement)

    health = Health.__new__(Health)
    health.standbys = "one"
    with pytest.raises(OSError, match="pg_logical_emit_message"):
        check_standby(Failing(), health)
    assert not Failing.handlers
    monkeypatch.setattr(Failing, "execute", lambda *_: None)
    check_standby(Failing(), health)  # a standby has confirmed it


def test_two_daemons_have_no_log_in_common(
    bench: PostgresqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linkd.log.postgresql.database.LOCK_SECONDS", 0.3)
    with pytest.raises(LogDamaged, match="in use by another linkd"):
        PostgresqlLog(bench, "edge")
    bench.close()
    with pytest.raises(LogDamaged, match="that of the node edge, this is other"):
        PostgresqlLog(bench, "other")
    ask(bench, "update linkd.log set format = 99, needs = '9.9'")
    with pytest.raises(StateTooNew, match=r"linkd 9\.9 or later"):
        PostgresqlLog(bench, "edge")
    ask(bench, "update linkd.log set format = 2")
    bench.open()


def test_tables_of_format_1_are_refused_until_they_are_migrated(bench: PostgresqlBench) -> None:
    append(bench, draft(b"a"), draft(b"b"))
    segment = bench.log._segment_set.last
    bench.close()
    (number,) = server_row(
        bench, f"select id from linkd.file where name = '{segment.number:012d}.log'"
    )
    with bench.server.connect(bench.name) as connection:
        for change in (
            "alter table linkd.log drop column incarnation",
            "alter table linkd.piece drop column token",
            f"alter table linkd.piece_{number} drop column token",
            "alter table linkd.kept drop column changed, drop column rank",
            "alter table linkd.kept alter column value set not null",
            "update linkd.log set format = 1",
        ):
            connection.execute(change)
    with pytest.raises(
        LogDamaged, match=r"have format 1, this linkd needs 2: .* `linkd log migrate`"
    ):
        PostgresqlLog(bench, "edge")
    with pytest.raises(ConfigError, match="run `linkd log migrate`"):
        inspect_postgresql(bench.settings)
    from linkd.log.postgresql.setup import initialise

    assert "there already" in initialise(bench.settings, bench.server.dsn(bench.name, "owner"))
    bench.open()
    assert bodies(everything(bench)) == [b"a", b"b"]


def server_row(bench: PostgresqlBench, query: str) -> Any:
    with bench.server.connect(bench.name) as connection:
        return connection.execute(query).fetchone()


def PostgresqlLog(bench: PostgresqlBench, node: str) -> Any:
    return open_log(bench.settings, Path("/nowhere"), node, bench.turns.post)


def test_a_server_that_would_lose_records_is_refused(tmp_path: Path) -> None:
    unsafe = Server(fsync="off")
    unsafe.database("a")
    found = settings(unsafe.dsn("a"))
    try:
        for log in (
            LogSettings(engine="postgresql", postgresql=found),
            LogSettings(
                engine="postgresql", postgresql=settings(unsafe.dsn("a"), synchronous="required")
            ),
        ):
            with pytest.raises(Unavailable, match="fsync = off"):
                open_log(log, tmp_path, "edge", Turns().post)
            with pytest.raises(ConfigError, match="fsync = off"):
                inspect_postgresql(log)
    finally:
        unsafe.remove()


def log_settings(name: str, user: str = "linkd", **more: Any) -> LogSettings:
    return LogSettings(engine="postgresql", postgresql=settings(server().dsn(name, user), **more))


def test_check_names_what_is_missing(bench: PostgresqlBench, tmp_path: Path) -> None:
    words = inspect_postgresql(bench.settings)
    assert words.startswith("log in PostgreSQL 1")
    assert "fsync on" in words
    assert "warning" in inspect_postgresql(log_settings(bench.name, synchronous="preferred"))
    with pytest.raises(ConfigError, match="synchronous_standby_names is empty"):
        inspect_postgresql(log_settings(bench.name, synchronous="required"))
    empty = server().database("empty")
    with pytest.raises(ConfigError, match="run `linkd log init`"):
        inspect_postgresql(log_settings(empty))
    with pytest.raises(LogDamaged, match="run `linkd log init` first"):
        open_log(log_settings(empty), tmp_path, "edge", Turns().post)
    with pytest.raises(Unavailable, match="does not exist"):
        inspect_postgresql(log_settings("nothing"))
    with pytest.raises(Unavailable, match="does not exist"):
        open_log(log_settings("nothing"), tmp_path, "edge", Turns().post)
    ask(bench, "create role stranger login")
    with pytest.raises(ConfigError, match="run `linkd log init`"):
        inspect_postgresql(log_settings(bench.name, "stranger"))
    ask(bench, "drop role stranger", "update linkd.log set format = 99")
    with pytest.raises(ConfigError, match="newer linkd"):
        inspect_postgresql(bench.settings)
    ask(bench, "update linkd.log set format = 2")


def test_old_servers_are_refused() -> None:
    from linkd.log.postgresql.database import Health

    health = Health.__new__(Health)
    health.number, health.version = 140000, "14.0"
    assert health.problem(settings("")) == "PostgreSQL 15 or later is needed, this is 14.0"


@pytest.mark.parametrize(
    ("dsn", "more", "complaint"),
    [
        ("host=db password=secret", {}, "expected no password in it"),
        ("postgresql://linkd:secret@db/linkd", {}, "expected no password in it"),
        ("host=db nonsense", {}, "expected a connection string"),
        ("host=127.0.0.1,db.example.net", {}, "db.example.net is beyond this host"),
        ("host=/run/postgresql", {"password_file": "/nowhere"}, "password_file"),
    ],
)
def test_unsafe_connections_are_refused(dsn: str, more: Any, complaint: str) -> None:
    from linkd.log.postgresql.database import parameters

    with pytest.raises(ConfigError, match=complaint):
        parameters(settings(dsn, **more))


def test_a_wrong_password_is_refused_with_what_to_do(crashing: Server, tmp_path: Path) -> None:
    rules = crashing.data / "pg_hba.conf"
    rules.write_text(f"local all careful scram-sha-256\n{rules.read_text()}")
    with crashing.connect("postgres") as connection:
        connection.execute("create role careful login password 'right'")
        connection.execute("select pg_reload_conf()")
    time.sleep(0.3)
    (tmp_path / "password").write_text("wrong\n")
    found = LogSettings(
        engine="postgresql",
        postgresql=settings(
            crashing.dsn("postgres", "careful"), password_file=str(tmp_path / "password")
        ),
    )
    words = "password authentication failed .* set the right one in log.postgresql.password_file"
    with pytest.raises(Unavailable, match=words):
        open_log(found, tmp_path, "edge", Turns().post)
    with pytest.raises(Unavailable, match=words):
        inspect_postgresql(found)
    (tmp_path / "password").write_text("right\n")
    with pytest.raises(LogDamaged, match="run `linkd log init` first"):
        open_log(found, tmp_path, "edge", Turns().post)


def test_a_new_password_is_taken_from_the_file_while_the_log_is_open(
    crashing: Server, tmp_path: Path
) -> None:
    rules = crashing.data / "pg_hba.conf"
    rules.write_text(f"local all linkd scram-sha-256\n{rules.read_text()}")
    with crashing.connect("postgres") as connection:
        connection.execute("alter role linkd password 'old'")
        connection.execute("select pg_reload_conf()")
    time.sleep(0.3)
    file = tmp_path / "password"
    file.write_text("old")
    bench = crash_bench(tmp_path, crashing, password_file=str(file))
    assert append(bench, draft(b"a")) == [Appended(1, 1)]
    end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'linkd'"
    file.unlink()
    ask(bench, "alter role linkd password 'new'", end)
    got: list[Any] = []
    bench.log.append(draft(b"b"), got.append)
    eventually(bench, lambda: "log.postgresql.password_file" in bench.log.database.trouble)
    file.write_text("old")
    eventually(bench, lambda: "password authentication" in bench.log.database.trouble)
    assert not got
    file.write_text("new")
    bench.until(lambda: got)
    assert got == [Appended(2, 1)]
    bench.close()
    rules.write_text(rules.read_text().removeprefix("local all linkd scram-sha-256\n"))
    crashing.run("pg_ctl", "reload", "-D", str(crashing.data))


def test_a_connection_string_gets_password_and_limits(tmp_path: Path) -> None:
    from linkd.log.postgresql.database import parameters

    (tmp_path / "password").write_text("secret\n")
    file = str(tmp_path / "password")
    found = parameters(settings("host=db.example.net", password_file=file, insecure=True))
    assert "password=secret" in found
    assert "target_session_attrs=read-write" in found
    assert "sslmode" in parameters(settings("host=db.example.net sslmode=verify-full"))


def test_init_gives_the_daemon_no_more_than_it_needs() -> None:
    from linkd.log.postgresql.setup import initialise

    name = server().database("fresh")
    found = log_settings(name)
    owner = server().dsn(name, "owner")
    assert "created; linkd may use them" in initialise(found, owner)
    assert "there already" in initialise(found, owner)
    assert "there already" in initialise(log_settings(name, "owner"), None)
    with server().connect(name, "linkd") as connection:
        for forbidden in ("drop table linkd.piece", "create table linkd.x (a int)"):
            with pytest.raises(Exception, match=r"must be owner|permission denied"):
                connection.execute(forbidden)
        with pytest.raises(Exception, match="another linkd has this log"):
            connection.execute("select linkd.drop_file(99, 'x')")
    with pytest.raises(Unavailable, match="permission denied"):
        initialise(log_settings(server().database("bare")), None)
    with pytest.raises(ConfigError, match="missing"):
        initialise(LogSettings(), None)
    with server().connect(name) as connection:
        connection.execute("update linkd.log set format = 99")
    with pytest.raises(StateTooNew):
        initialise(found, owner)


def cursors_of(bench: Any, tmp_path: Path) -> CursorStore:
    return open_cursors(bench.log, tmp_path, bench.turns.post)


def test_cursors_are_in_the_database(bench: PostgresqlBench, tmp_path: Path) -> None:
    cursors = cursors_of(bench, tmp_path)
    done: list[Any] = []
    cursors.set_peer(PeerCursor("hub", 1, 5))
    cursors.set_peer(PeerCursor("gone", 1, 5))
    cursors.set_outage(7, b"outage")
    cursors.set_event(8, b"event")
    cursors.set_consumer(Consumer("socket", "billing", 3, ("orders",)), done.append)
    bench.until(lambda: done)
    cursors.remove_peer("gone")
    cursors.close(lambda: done.append("closed"))
    bench.until(lambda: len(done) == 2)
    assert done == [None, "closed"]
    again = cursors_of(bench, tmp_path)
    assert again.peers == {"hub": PeerCursor("hub", 1, 5)}
    assert again.outages() == [(7, b"outage")]
    assert again.events() == [(8, b"event")]
    assert set(again.consumers()) == {("socket", "billing")}
    ask(bench, "revoke insert on linkd.kept from linkd")
    failed: list[Any] = []
    again.set_consumer(Consumer("socket", "other", 3, ("orders",)), failed.append)
    bench.until(lambda: failed)
    assert "permission denied" in str(failed[0])
    ask(bench, "grant insert on linkd.kept to linkd")
    again.close(lambda: failed.append("closed"))
    bench.until(lambda: len(failed) == 2)


def test_a_log_is_copied_in_and_out(tmp_path: Path) -> None:
    from linkd.log.postgresql.schema import create
    from linkd.log.postgresql.setup import copy_in, copy_out

    name = server().database("copied")
    with server().connect(name) as connection:
        create(connection, "linkd")
    state = tmp_path / "state"
    bench = SegmentBench(state / "log")
    for number in range(40):
        append(bench, draft(b"%d" % number + bytes(60_000), ids=(f"{number}",)))
    cursors = open_cursors(bench.log, state, bench.turns.post)
    done: list[Any] = []
    cursors.set_peer(PeerCursor("hub", 1, 5))
    cursors.close(lambda: done.append(True))
    bench.until(lambda: done)
    wanted, identity = bodies(everything(bench)), bench.log.id
    bench.close()
    found, names = log_settings(name), list[str]()
    with pytest.raises(LogDamaged, match="expected a log there"):
        copy_in(found, tmp_path, "edge", names.append)
    with pytest.raises(LogDamaged, match="the database has no log"):
        copy_out(found, tmp_path / "new", "edge", names.append)
    ask_at(name, "revoke insert on linkd.kept from linkd")
    with pytest.raises(LogDamaged, match="cursors could not be copied"):
        copy_in(found, state, "edge", names.append)
    ask_at(name, "grant insert on linkd.kept to linkd")
    assert "log.copied" in copy_in(found, state, "edge", names.append)
    assert "identity" in names
    assert not (state / "log").exists()
    (state / "log.copied").rename(state / "log")
    with pytest.raises(LogDamaged, match="a log already"):
        copy_in(found, state, "edge", names.append)
    with pytest.raises(LogDamaged, match="a log already"):
        copy_out(found, state, "edge", names.append)

    inside = PostgresqlBench.of(found)
    assert inside.log.id == identity
    assert bodies(everything(inside)) == wanted
    assert append(inside, draft(b"x", ids=("39",)))[0].duplicate
    append(inside, draft(b"more"))
    kept = open_cursors(inside.log, tmp_path, inside.turns.post)
    assert kept.peers == {"hub": PeerCursor("hub", 1, 5)}
    kept.close(lambda: done.append(True))
    inside.until(lambda: len(done) == 2)
    inside.close()

    out = tmp_path / "out"
    (out / "log.copying").mkdir(parents=True)
    (out / "log.copying" / "left").touch()
    (out / "log").mkdir()
    (out / "log" / "lock").touch()
    assert "drop the schema" in copy_out(found, out, "edge", names.append)
    outside = SegmentBench(out / "log")
    assert outside.log.id == identity
    assert bodies(everything(outside)) == [*wanted, b"more"]
    outside.close()


def ask_at(database: str, statement: str) -> None:
    with server().connect(database) as connection:
        connection.execute(statement)


def test_a_copy_that_is_shorter_is_no_copy(tmp_path: Path) -> None:
    from linkd.log.files import DiskFiles
    from linkd.log.postgresql.setup import _copy

    class Loses(DiskFiles):
        def write(self, fd: int, at: int, buffers: Any) -> None:
            """Write nothing."""

    (tmp_path / "a").write_bytes(b"content")
    with pytest.raises(LogDamaged, match="expected 7 bytes, found 0"):
        _copy(tmp_path / "a", Loses(), tmp_path / "b", lambda _: None)


def test_old_segments_are_dropped_with_their_tables(tmp_path: Path) -> None:
    bench = PostgresqlBench(tmp_path / "log")
    for number in range(60):
        append(bench, draft(bytes(60_000), channel=f"c{number % 3}"))
    tables = "select count(*) from pg_tables where schemaname = 'linkd' and tablename ~ 'piece_'"
    before = ask(bench, tables)[0]
    assert before >= 3
    assert bench.log.trim(bench.log.next) > 30
    append(bench, draft(b"a"))
    eventually(bench, lambda: ask(bench, tables)[0] < before)
    bench.restart()
    assert bodies(everything(bench))[-1] == b"a"
    bench.close()


def test_files_can_be_cut_renamed_and_read_in_part(bench: PostgresqlBench) -> None:
    files = bench.log._files
    path, other = files.root / "a.part", files.root / "b"
    fd = files.open(path, create=True)
    assert path.stat().st_size == 0
    files.write(fd, 0, [b"01", b"234"])
    files.write(fd, 5, [b"56789"])
    files.truncate(fd, 7)
    files.sync(fd)
    files.uncache(fd, 0, 7)
    files.sync_dir(files.root)
    files.close(fd)
    assert path.read_bytes() == b"0123456"
    with path.open("rb") as file:
        file.seek(3)
        assert (file.read(3), file.read(3), file.read(3)) == (b"345", b"6", b"")
    files.close(files.open(other, create=True))
    files.rename(path, other)
    assert (other.exists(), path.exists(), other.stat().st_size) == (True, False, 7)
    assert (other.stem, other.suffix, path.suffix, str(other)) == ("b", "", ".part", "PostgreSQL:b")
    assert other.parent == files.root
    assert sorted([other, path]) == [path, other]
    assert {other: 1}[files.root / "b"] == 1
    assert other != "b"
    assert path.with_name("b") == other
    other.unlink()
    other.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        other.unlink()
    with pytest.raises(FileNotFoundError):
        files.open(other)
    assert files.free_bytes(files.root) > 2**60


def test_a_database_without_an_encoding_serves_too() -> None:
    """One made under `LANG=C`: without an encoding of our own all its words are bytes."""
    from linkd.log.postgresql.schema import create

    with server().connect("postgres") as connection:
        connection.execute(
            "create database ascii template template0 encoding 'SQL_ASCII' locale 'C'"
        )
    with server().connect("ascii") as connection:
        create(connection, "linkd")
    found = LogSettings(engine="postgresql", postgresql=settings(server().dsn("ascii")))
    assert "fsync on" in inspect_postgresql(found)


def test_without_psycopg_the_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("log", "setup"):
        monkeypatch.setitem(sys.modules, f"linkd.log.postgresql.{name}", None)
    found = log_settings("any")
    with pytest.raises(ConfigError, match=r"install linkd-daemon\[postgresql\]"):
        open_log(found, Path("/nowhere"), "edge", Turns().post)
    for read in (inspect_postgresql, lambda log: shared_values(log, "instance")):
        with pytest.raises(ConfigError, match=r"install linkd-daemon\[postgresql\]"):
            read(found)
