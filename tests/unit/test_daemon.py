"""The daemon's life: READY, signals, reload, watchdog, stop; and what it wants of its host."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from linkd import daemon as daemons
from linkd.config import Config, NodeSettings, load
from linkd.daemon import STOP_SECONDS, Daemon
from linkd.errors import ConfigError, LinkdError, Unavailable
from linkd.events import Observer
from linkd.host import AlreadyRunning, lock_state_dir, raise_open_file_limit, remove_stale_socket
from linkd.systemd import LOOKS, LoopWatch, ServiceManager

ROOT = Path(__file__).resolve().parents[2]


class Reactor(Clock):
    """A clock that can be stopped, with connections that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = 0
        self.readers: list[object] = []

    def stop(self) -> None:
        self.stopped += 1

    def callFromThread(self, call: Callable[..., object], *args: object) -> None:
        self.callLater(0, call, *args)

    def getReaders(self) -> list[object]:
        return self.readers

    def getWriters(self) -> list[object]:
        return []


class Parts:
    """What the daemon drives."""

    def __init__(self) -> None:
        self.node = self.links = self.drain = self
        self.active = False
        self.calls: list[str] = []
        self.refuses: Exception | None = None
        self.stuck: str | None = None
        self.down = ["hub"]
        self.stopping: Deferred[None] = succeed(None)
        self.config: Config | None = None

    def listen(self) -> None:
        self.calls.append("listen")
        if self.refuses is not None:
            raise self.refuses

    def start(self) -> None:
        self.calls.append("start")

    def reload(self, config: Config) -> None:
        self.config = config

    def stop(self, detail: str) -> Deferred[None]:
        self.calls.append("stop")
        return self.stopping

    def progress(self, now: float) -> str | None:
        return self.stuck

    def summary(self) -> tuple[int, list[str]]:
        return 1, self.down

    def kick(self) -> None:
        self.calls.append("kick")


class House:
    """A daemon on a clock, its files, and what its service manager and log hear."""

    def __init__(self, folder: Path, watchdog: float | None = None) -> None:
        self.file = folder / "linkd.toml"
        self.write()
        self.inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.inbox.bind(str(folder / "notify"))
        self.inbox.setblocking(False)
        environment = {"NOTIFY_SOCKET": str(folder / "notify")}
        if watchdog is not None:
            environment["WATCHDOG_USEC"] = str(int(watchdog * 1_000_000))
        self.reactor = Reactor()
        self.parts = Parts()
        self.watch = LoopWatch(lambda: None)
        self.daemon = Daemon(
            load([self.file]),
            lambda: [self.file],
            self.reactor,
            ServiceManager(environment),
            self.watch,
        )
        self.lines: list[str] = []
        self.observer = Observer(
            lambda line, *_: self.lines.extend(line.split("\n")), clock=self.reactor.seconds
        )
        globalLogPublisher.addObserver(self.observer)

    def write(self, text: str = '[node]\nname = "here"\n') -> None:
        self.file.write_text(text)

    def heard(self) -> list[str]:
        """Take what was said to the service manager."""
        said = []
        while True:
            try:
                said.append(self.inbox.recv(4096).decode())
            except BlockingIOError:
                return said

    def advance(self, seconds: float) -> None:
        """Let time pass in small steps."""
        for _ in range(round(seconds / 0.1)):
            self.reactor.advance(0.1)

    @property
    def log(self) -> list[str]:
        """The lines of the log without their times."""
        return [line[25:] for line in self.lines]

    def close(self) -> None:
        self.watch.stop()
        globalLogPublisher.removeObserver(self.observer)
        self.inbox.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path, watchdog=10.0)
    yield made
    made.close()


class TestStart:
    """READY means that the sockets listen."""

    def test_ready_after_listening_without_waiting_for_peers(self, house: House) -> None:
        house.daemon.start(house.parts)
        assert house.parts.calls == ["listen", "start"]
        assert house.heard() == ["READY=1", "STATUS=links: 1 up, 1 down (hub)"]
        assert "info  node.ready node=here peers=0 start_seconds=0.000" in house.log

    def test_a_socket_that_cannot_be_opened_ends_the_start_with_its_error(
        self, house: House, capsys: pytest.CaptureFixture[str]
    ) -> None:
        house.parts.refuses = ConfigError("listen.address: x: in use")
        house.daemon.start(house.parts)
        assert capsys.readouterr().err == "linkd: listen.address: x: in use\n"
        assert (house.daemon.code, house.reactor.stopped) == (1, 1)
        assert house.heard() == []
        assert "start" not in house.parts.calls


class TestLife:
    """While it runs."""

    def test_status_changes_are_told_once(self, house: House) -> None:
        house.daemon.start(house.parts)
        house.heard()
        house.advance(3)
        assert house.heard() == []
        house.parts.down = [str(number) for number in range(9)]
        house.advance(1.1)
        assert house.heard() == ["STATUS=links: 1 up, 9 down (0, 1, 2, 3, 4, …)"]
        house.parts.down = []
        house.advance(1.1)
        assert house.heard() == ["STATUS=links: 1 up, 0 down"]

    def test_waking_late_is_said(self, house: House) -> None:
        house.daemon.start(house.parts)
        house.advance(5)
        assert not any("node.loop-lag" in line for line in house.log)
        house.reactor.advance(3.0)
        (late,) = [line for line in house.log if "node.loop-lag" in line]
        assert 1.9 < float(late.partition("late_seconds=")[2]) < 3.1

    def test_the_watchdog_is_fed_every_two_and_a_half_seconds(self, watched: House) -> None:
        watched.daemon.start(watched.parts)
        watched.heard()
        watched.advance(21)
        assert watched.heard() == ["WATCHDOG=1"] * 8

    def test_the_watchdog_starves_while_a_dialer_is_stuck(self, watched: House) -> None:
        watched.daemon.start(watched.parts)
        watched.heard()
        watched.parts.stuck = "the attempt to reach hub is 12 s overdue"
        watched.advance(30)
        assert watched.heard() == []
        assert sum("node.stuck" in line for line in watched.log) == 1
        watched.parts.stuck = None
        watched.advance(2.7)
        assert watched.heard() == ["WATCHDOG=1"]

    def test_its_own_watchdog_is_fed_alike(self, watched: House) -> None:
        watched.daemon.start(watched.parts)
        watched.advance(2.6)
        watched.watch.look()
        assert not watched.watch.look()
        watched.parts.stuck = "the attempt to reach hub is 12 s overdue"
        watched.advance(30)
        assert [watched.watch.look() for _ in range(LOOKS)][-1]

    def test_no_watchdog_no_food(self, house: House) -> None:
        house.daemon.start(house.parts)
        house.heard()
        house.advance(60)
        assert house.heard() == []

    def test_a_broken_tick_is_a_bug_that_is_said(self, house: House) -> None:
        house.daemon.start(house.parts)
        house.parts.down = None  # type: ignore[assignment]
        house.advance(1.1)
        assert any("node.internal-error" in line and "where=daemon" in line for line in house.log)

    def test_a_kick_before_the_start_does_nothing(self, house: House) -> None:
        house.daemon.kick()
        house.daemon.start(house.parts)
        house.daemon.kick()
        assert house.parts.calls.count("kick") == 1


class TestReload:
    """SIGHUP."""

    def test_what_changed_is_in_force_and_named(self, house: House) -> None:
        house.daemon.start(house.parts)
        house.heard()
        house.write('[node]\nname = "there"\n[reconnect]\nmax_delay = 3.0\n')
        house.daemon.reload()
        said = house.heard()
        assert said[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert said[1] == "READY=1"
        assert house.parts.config is not None
        assert house.parts.config.node == NodeSettings(name="here")
        assert house.parts.config.reconnect.max_delay == 3.0
        assert house.daemon.config is house.parts.config
        assert house.log[-2:] == [
            'warn  node.restart-needed detail="\\"here\\" -> \\"there\\"" setting=node.name',
            'info  node.reloaded detail="reconnect.max_delay: 15.0 -> 3.0" changes=1',
        ]

    def test_a_reload_without_changes_is_logged(self, house: House) -> None:
        house.daemon.start(house.parts)
        house.daemon.reload()
        assert "nothing has changed" in house.log[-1]

    @pytest.mark.parametrize("text", ["[node", "[node]\nname = 5\n", None])
    def test_a_bad_file_is_refused(self, house: House, text: str | None) -> None:
        house.daemon.start(house.parts)
        house.heard()
        before = house.daemon.config
        if text is None:
            house.file.unlink()
        else:
            house.write(text)
        house.daemon.reload()
        assert house.parts.config is None
        assert house.daemon.config is before
        assert house.log[-1].startswith("error node.reload-refused detail=")
        assert house.heard()[-1] == "READY=1"

    def test_a_mistake_of_ours_refuses_the_reload_and_says_ready_again(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        house.daemon.start(house.parts)
        house.heard()

        def fails(config: Config) -> None:
            raise KeyError("peer")

        monkeypatch.setattr(house.parts, "reload", fails)
        before = house.daemon.config
        house.daemon.reload()
        assert house.daemon.config is before
        assert house.log[-2].startswith("error node.internal-error ")
        assert house.log[-1].startswith("error node.reload-refused ")
        assert house.heard()[-1] == "READY=1"

    def test_before_the_start_and_while_stopping_nothing_happens(self, house: House) -> None:
        house.daemon.reload()
        house.daemon.start(house.parts)
        house.daemon.stop("SIGTERM")
        house.heard()
        house.daemon.reload()
        assert house.heard() == []


class TestStop:
    """SIGTERM and SIGINT: goodbye, commit, end; within 5 s in any case."""

    def test_a_second_signal_while_stopping_changes_nothing(self, house: House) -> None:
        house.daemon.start(house.parts)
        house.heard()
        house.daemon.stop("SIGTERM")
        house.daemon.stop("SIGINT")
        assert house.heard() == ["STOPPING=1"]
        assert house.reactor.stopped == 1
        assert house.daemon.code == 0
        assert house.log[-2:] == [
            "info  node.stopping signal=SIGTERM",
            "info  node.stopped stop_seconds=0.000",
        ]
        assert house.reactor.getDelayedCalls() == []

    def test_it_waits_for_the_disk_and_for_goodbyes(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(daemons.tcp, "Connection", int)
        house.parts.stopping = Deferred()
        house.reactor.readers = [7]
        house.daemon.start(house.parts)
        house.daemon.stop("SIGTERM")
        house.advance(1)
        assert house.reactor.stopped == 0
        house.parts.stopping.callback(None)
        house.advance(1)
        assert house.reactor.stopped == 0
        house.reactor.readers = []
        house.advance(0.1)
        assert house.reactor.stopped == 1

    @pytest.mark.parametrize("fires", [False, True])
    def test_it_does_not_wait_for_ever(
        self, house: House, fires: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(daemons.tcp, "Connection", int)
        house.reactor.readers = [7]
        house.parts.stopping = succeed(None) if fires else Deferred()
        house.daemon.start(house.parts)
        house.daemon.stop("SIGTERM")
        house.advance(STOP_SECONDS - 0.2)
        assert house.reactor.stopped == 0
        house.advance(0.5)
        assert house.reactor.stopped == 1
        house.advance(2)
        assert house.reactor.stopped == 1

    def test_a_failing_part_does_not_stop_the_stop(self, house: House) -> None:
        house.parts.stopping = Deferred()
        house.daemon.start(house.parts)
        house.daemon.stop("SIGTERM")
        house.parts.stopping.errback(LinkdError("the disk is gone"))
        assert house.reactor.stopped == 1
        assert any('node.internal-error detail="the disk is gone"' in line for line in house.log)

    def test_before_the_start(self, house: House) -> None:
        house.daemon.stop("SIGTERM")
        assert house.reactor.stopped == 1


class TestServiceManager:
    """What is said to it."""

    def test_without_a_service_manager_nothing_is_sent(self) -> None:
        nobody = ServiceManager({})
        nobody.ready()
        assert nobody.watchdog_interval is None
        ServiceManager({"NOTIFY_SOCKET": "/nonexistent/socket"}).stopping()

    def test_an_abstract_address(self) -> None:
        name = f"linkd-test-{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
            inbox.bind(f"\0{name}")
            ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).status("a\nb")
            assert inbox.recv(100) == b"STATUS=a b"

    @pytest.mark.parametrize(
        ("environment", "interval"),
        [
            ({"WATCHDOG_USEC": "10000000"}, 5.0),
            ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
            ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
            ({"WATCHDOG_USEC": "0"}, None),
            ({"WATCHDOG_USEC": "x"}, None),
        ],
    )
    def test_the_watchdog_interval_is_that_of_this_process(
        self, environment: dict[str, str], interval: float | None
    ) -> None:
        assert ServiceManager(environment).watchdog_interval == interval


class TestLoopWatch:
    """A loop hangs after so many looks without a turn, however long each took."""

    def test_a_loop_that_turns_now_and_then_does_not_hang(self) -> None:
        watch = LoopWatch(lambda: None)
        for _ in range(5):
            watch.turned()
            assert not any(watch.look() for _ in range(LOOKS))

    def test_a_loop_that_hangs_is_noticed_at_the_tenth_look_without_a_turn(self) -> None:
        watch = LoopWatch(lambda: None)
        watch.turned()
        assert [watch.look() for _ in range(LOOKS + 1)] == [False] * LOOKS + [True]


class TestPremises:
    """The state directory is ours alone; the socket's path is free."""

    def test_a_new_directory(self, tmp_path: Path) -> None:
        state = tmp_path / "state"
        os.close(lock_state_dir(str(state)))
        assert stat.S_IMODE(state.stat().st_mode) == 0o700

    def test_a_second_daemon_is_refused(self, tmp_path: Path) -> None:
        lock = lock_state_dir(str(tmp_path))
        try:
            with pytest.raises(AlreadyRunning, match=f"another linkd uses it, pid {os.getpid()}"):
                lock_state_dir(str(tmp_path))
        finally:
            os.close(lock)
        os.close(lock_state_dir(str(tmp_path)))

    def test_not_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        with pytest.raises(ConfigError, match=r"node.state_dir: .*: can't be used: .*is a file"):
            lock_state_dir(str(tmp_path / "x"))
        with pytest.raises(ConfigError, match=r"node.state_dir: .*: can't be used: .*is a file"):
            lock_state_dir(str(tmp_path / "x/below"))

    def test_everyone_may_write(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        with pytest.raises(ConfigError, match="chmod 0700"):
            lock_state_dir(str(tmp_path))

    def test_a_dead_daemons_socket_goes(self, tmp_path: Path) -> None:
        path = tmp_path / "run/linkd.sock"
        remove_stale_socket(str(path))
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        assert path.exists()
        remove_stale_socket(str(path))
        assert not path.exists()

    def test_a_dead_daemons_socket_on_a_disk_that_refuses_may_pass(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "linkd.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", refuse)
            with pytest.raises(Unavailable, match="can't be replaced"):
                remove_stale_socket(str(path))
        assert path.exists()

    def test_a_live_daemons_socket_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "linkd.sock"
        with socket.socket(socket.AF_UNIX) as live:
            live.bind(str(path))
            live.listen()
            with pytest.raises(AlreadyRunning, match="a running daemon listens there"):
                remove_stale_socket(str(path))
        assert path.exists()

    def test_something_else_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "linkd.sock"
        path.write_text("precious")
        with pytest.raises(ConfigError, match="something else is there"):
            remove_stale_socket(str(path))
        with pytest.raises(ConfigError, match="can't be used"):
            remove_stale_socket(str(path / "below"))
        assert path.read_text() == "precious"

    def test_a_misspelled_path_becomes_no_tree(self, tmp_path: Path) -> None:
        missing = tmp_path / "rnu"
        with pytest.raises(ConfigError, match=f"can't be used: {missing} is missing: make it"):
            remove_stale_socket(str(missing / "linkd/linkd.sock"))
        assert not missing.exists()

    def test_the_limit_of_open_files_is_raised(self) -> None:
        assert raise_open_file_limit() >= 256


def test_bad_configurations_end_with_2_and_no_traceback(tmp_path: Path) -> None:
    file = tmp_path / "linkd.toml"
    file.write_text('[node]\nname = "a"\nstate_dir = "linkd.toml"\n')
    ended = subprocess.run(
        [sys.executable, "-m", "linkd", "run", "-c", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 2
    assert "node.state_dir" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(("secret", "code"), [(None, 1), ("short", 2)])
def test_a_file_that_may_come_late_ends_with_1_so_that_the_service_starts_again(
    tmp_path: Path, secret: str | None, code: int
) -> None:
    file = tmp_path / "linkd.toml"
    file.write_text(
        f'[node]\nname = "a"\nstate_dir = "{tmp_path / "state"}"\n'
        f'[api]\nsocket = "{tmp_path / "linkd.sock"}"\n'
        f'[[peer]]\nname = "b"\ndial = ["ws://h.test/link"]\ninsecure = true\n'
        f'secret_file = "{tmp_path / "secret"}"\n'
    )
    if secret is not None:
        (tmp_path / "secret").write_text(secret)
        (tmp_path / "secret").chmod(0o600)
    ended = subprocess.run(
        [sys.executable, "-m", "linkd", "run", "-c", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == code
    assert ended.stderr.startswith("linkd: peer (b).secret_file: ")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EMFILE])
def test_a_disk_that_fails_while_the_log_opens_ends_with_1(tmp_path: Path, number: int) -> None:
    config = tmp_path / "linkd.toml"
    config.write_text(
        f'[node]\nname = "here"\nstate_dir = "{tmp_path / "state"}"\n'
        f'[api]\nsocket = "{tmp_path / "linkd.sock"}"\n'
    )
    code = (
        "from linkd import app as assembly; from linkd.cli import main\n"
        f"def broken(*_): raise OSError({number}, 'made by the test', '/state/log')\n"
        "assembly.open_log = broken\n"
        f"raise SystemExit(main(['run', '-c', {str(config)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "made by the test: '/state/log'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_thread_that_dies_ends_the_daemon_with_code_1(house: House) -> None:
    house.daemon.start(house.parts)
    died = threading.ExceptHookArgs(
        (ValueError, ValueError("a mistake"), None, threading.Thread(name="linkd-log-writer"))
    )
    daemons._thread_died(house.reactor, house.daemon, died)
    house.advance(1.0)
    assert "stop" in house.parts.calls
    assert (house.daemon.code, house.reactor.stopped) == (1, 1)
    (line,) = [line for line in house.log if "node.thread-died" in line]
    assert "thread=linkd-log-writer" in line
    assert "ValueError: a mistake" in line


def test_a_real_daemon_whose_log_can_be_written_no_more_ends(tmp_path: Path) -> None:
    config = tmp_path / "linkd.toml"
    config.write_text(
        f'[node]\nname = "here"\nstate_dir = "{tmp_path / "state"}"\n'
        f'[api]\nsocket = "{tmp_path / "linkd.sock"}"\n'
    )
    code = (
        "from linkd.log import writer; from linkd.cli import main\n"
        "def broken(self, jobs): raise ZeroDivisionError('made by the test')\n"
        "writer.Writer._write = broken\n"
        f"raise SystemExit(main(['run', '-c', {str(config)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "node.thread-died" in done.stderr
    assert "thread=linkd-log-writer" in done.stderr
    assert "made by the test" in done.stderr
    assert "node.stopped" in done.stderr
