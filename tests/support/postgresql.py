"""A PostgreSQL server of the tests' own: made in a temporary directory, never the system's."""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from linkd.config import LogSettings
from linkd.config.settings import PostgresqlSettings
from linkd.drill.testbed import Namespace
from linkd.log.files import DiskFiles, Environment
from tests.support.logs import SegmentBench

try:
    import psycopg
except ImportError:
    psycopg = None  # type: ignore[assignment]


SMALL = 80 << 20


def programs() -> Path | None:
    """Return the directory of the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[-3])
    return found[-1].parent if found else None


needs_postgresql = pytest.mark.skipif(
    programs() is None or psycopg is None,
    reason="PostgreSQL (/usr/lib/postgresql/*/bin) or psycopg is not installed",
)


class Server:
    """A server that can be killed and started again.

    Args:
        small: A namespace in which it runs, with a small disk for its data. As root only.
        small_log: The write-ahead log is on the small disk, and the data is not.
        environment: For its processes.
        settings: Lines for postgresql.conf.
    """

    small: Namespace | None = None
    port: int
    environment: dict[str, str]

    def __init__(
        self,
        small: Namespace | None = None,
        small_log: bool = False,
        environment: dict[str, str] | None = None,
        **settings: str,
    ) -> None:
        self.prepare()
        self.environment |= environment or {}
        apart = self.folder / "log"
        if small is not None:
            disk = self._mount(small)
            if small_log:
                apart = disk / "log"
            else:
                self.data = disk / "data"
        more = ["-X", str(apart)] if small is not None else []
        self.run("initdb", "-D", str(self.data), "-A", "trust", "-U", "owner", "-E", "UTF8", *more)
        lines = {
            "listen_addresses": "'127.0.0.1'",
            "port": str(self.port),
            "unix_socket_directories": f"'{self.folder}'",
            "shared_buffers": "'16MB'",
            "log_min_messages": "fatal",
        } | settings
        conf = self.data / "postgresql.conf"
        if small is not None:
            conf = Path(f"/proc/{small.pid}/root{conf}")
        with conf.open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in lines.items())
        self.start()
        with self.connect("postgres") as connection:
            connection.execute("create role linkd login")

    def prepare(self) -> None:
        """Make its directory, which is that of an unprivileged user: it refuses root."""
        self.folder = Path(tempfile.mkdtemp(prefix="linkd-pg-"))
        self.data = self.folder / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._prefix: list[str] = []
        self.environment = dict(os.environ)
        self._user: dict[str, Any] = {}
        self.owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        if self.owner is not None:
            user, group = self.owner.pw_uid, self.owner.pw_gid
            self._user = {"user": user, "group": group, "extra_groups": []}
            os.chown(self.folder, user, group)
        atexit.register(self.remove)

    def _mount(self, small: Namespace) -> Path:
        """Mount a small disk in a namespace, where all its programs run then."""
        assert self.owner is not None
        user, group, disk = self.owner.pw_uid, self.owner.pw_gid, self.folder / "small"
        small.sh(f"mkdir {disk}; mount -t tmpfs -o size={SMALL},uid={user},gid={group} t {disk}")
        self.small, self._user = small, {}
        self._prefix = [
            *small.prefix, "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups",
        ]  # fmt: skip
        return disk

    def fill(self) -> None:
        """Fill the small disk."""
        assert self.small is not None
        self.small.run("dd", "if=/dev/zero", f"of={self.folder}/small/filling", check=False)

    def free(self) -> None:
        """Take the filling away."""
        assert self.small is not None
        self.small.run("rm", "-f", f"{self.folder}/small/filling")

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as its user."""
        folder = programs()
        assert folder is not None
        command = [*self._prefix, str(folder / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self._user)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        folder = programs()
        assert folder is not None
        self._process = subprocess.Popen(
            [*self._prefix, str(folder / "postgres"), "-D", str(self.data)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=self.environment,
            **self._user,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                self.connect("postgres").close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def kill(self, number: int = signal.SIGQUIT) -> None:
        """Let it crash: SIGQUIT ends all its processes at once, without a checkpoint."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """Its first process, while it runs."""
        return self._process

    def remove(self) -> None:
        """End it, and delete its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self, database: str, user: str = "owner") -> Any:
        """Return a connection."""
        return psycopg.connect(self.dsn(database, user), autocommit=True)

    def dsn(self, database: str, user: str = "linkd") -> str:
        """Return a connection string."""
        return f"host={self.folder} port={self.port} dbname={database} user={user}"

    def database(self, name: str) -> str:
        """Make an empty database of that name, in place of an older one; return its name."""
        with self.connect("postgres") as connection:
            connection.execute(f'drop database if exists "{name}" with (force)')
            connection.execute(f'create database "{name}"')
        return name


@cache
def server() -> Server:
    """Return the server that the tests of one process share."""
    return Server()


def settings(dsn: str, **more: Any) -> PostgresqlSettings:
    """Return settings for a database without a standby."""
    return PostgresqlSettings(**({"dsn": dsn, "synchronous": "single"} | more))


class PostgresqlBench(SegmentBench):
    """A log in PostgreSQL on the bench."""

    server: Server

    def __init__(self, path: Path, **more: Any) -> None:
        from linkd.log.postgresql.schema import create

        self.server = more.pop("server", None) or server()
        self.name = self.server.database(f"bench{os.getpid()}")
        with self.server.connect(self.name) as connection:
            create(connection, "linkd")
        found = settings(self.server.dsn(self.name), **more.pop("postgresql", {}))
        super().__init__(path, engine="postgresql", postgresql=found, **more)

    @classmethod
    def of(cls, found: LogSettings, node: str = "edge", **more: Any) -> PostgresqlBench:
        """Return a bench with the log that is in a database already."""
        bench = cls.__new__(cls)
        more |= {"engine": "postgresql", "postgresql": found.postgresql}
        SegmentBench.__init__(bench, Path(), node, **more)
        return bench

    def make_log(self, node: str, edges: Environment) -> Any:
        """Open the log."""
        from linkd.log.postgresql.log import PostgresqlLog

        return PostgresqlLog(node, self.settings, self.turns.post, edges)

    def open(self, node: str = "edge") -> Any:
        """Open it, and wait for its epoch."""
        edges = Environment(
            DiskFiles(),
            Random(),
            lambda: self.now[0],
            lambda: self.wall[0],
            self.call_at_iteration_end,
            synchronised=lambda: self.synchronised,
            boot=self.boot,
        )
        self.log: Any = self.make_log(node, edges)
        self.turns.until(lambda: not self.log._under_way or self.log.full)
        return self.log


class _Held(dict[str, Any]):
    """All peers are held by one run."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._run_id = run_id

    def get(self, peer: str, default: Any = None) -> Any:
        from linkd.log.state import PeerHeld

        return super().get(peer) or PeerHeld(peer, self._run_id, "", 0)


class SharedBench(PostgresqlBench):
    """A log that several instances could write, with one of them on the bench."""

    instance = "a"

    def make_log(self, node: str, edges: Environment) -> Any:
        """Open the log, with all peers held here."""
        from linkd.config.settings import ClusterSettings
        from linkd.log.postgresql.shared_log import SharedLog

        cluster = ClusterSettings(instance=self.instance)
        log = SharedLog(node, self.settings, cluster, self.turns.post, edges)
        log.state.holders = _Held(log.database.run_id)
        self.turns.until(lambda: log.epoch == log.state.epoch != "" and not log.database.opens)
        return log
