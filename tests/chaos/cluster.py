"""A campaign against several hubs of one node, whose log is in PostgreSQL with a standby.

Three hubs on loopback behind HAProxy, with a Redis between them, and edges that know only HAProxy.
Besides the faults of one hub on PostgreSQL (database.py): a hub frozen for half a minute and
thawed, one that is cut off from the database, a standby that is cut off from the primary, two
primaries at once, a balancer or the bus restarted.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from linkd.config.loading import load
from linkd.drill.testbed import free_port
from tests.chaos.acts import Plan
from tests.chaos.checker import Held, judge, read_held
from tests.chaos.database import (
    NAME,
    TAIL,
    DatabaseCampaign,
    Pair,
    Tail,
    excuse,
    kill,
)
from tests.chaos.faults import Happened
from tests.chaos.report import Report
from tests.chaos.run import SETTLE_SECONDS, wrong_lines
from tests.chaos.traffic import Ledger, Publisher
from tests.support import leash
from tests.support.daemon import COMMAND, Daemon, listen, peer
from tests.support.duo import until
from tests.support.lab import python
from tests.support.postgresql import Server
from tests.support.redis import Redis

HUBS = ("hub-a", "hub-b", "hub-c")
FROZEN_SECONDS = 30.0
TWICE_SECONDS = 4.0
"""So long two primaries are up."""

KINDS = {
    "kill hub": 4,
    "freeze hub": 1,
    "cut hub": 2,
    "kill edge": 2,
    "kill database": 2,
    "kill standby": 1,
    "cut standby": 1,
    "end sessions": 1,
    "promote": 2,
    "two primaries": 1,
    "lost tail": 1,
    "restart balancer": 1,
    "kill bus": 1,
}
"""The faults, each with its weight."""

_BALANCER = """
global
    maxconn 8000
defaults
    mode tcp
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    retries 3
    option redispatch 1
listen hubs
    bind 127.0.0.1:{port}
    balance leastconn
    option httpchk GET /healthz
    default-server inter 1s fall 2 rise 1 on-marked-down shutdown-sessions
{servers}
"""


class Relay:
    """Passes connections on to a port of this host, until it is cut: then nothing passes.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._passes = threading.Event()
        self._passes.set()
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._ended:
            with contextlib.suppress(OSError):
                near, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._passes.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._target), 5.0)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs |= {near: far, far: near}
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while not self._ended:
                select.select([one], [], [])
                self._passes.wait()
                content = one.recv(1 << 16)
                if not content:
                    break
                other.sendall(content)
        self._drop(one)

    def _drop(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        for each in (one, other):
            if each is not None:
                self._pairs.pop(each, None)
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def cut(self) -> None:
        """Let nothing pass."""
        self._passes.clear()

    def mend(self) -> None:
        """Let all pass again, over connections that were open too."""
        self._passes.set()

    def close(self) -> None:
        """End it."""
        self._ended = True
        self._passes.set()
        self._listener.close()
        for one in list(self._pairs):
            self._drop(one)


class Balancer:
    """HAProxy before the hubs; a context that ends it.

    Args:
        folder: For its configuration.
        hubs: Name, port of links and port of the API of each.
    """

    def __init__(self, folder: Path, hubs: list[tuple[str, int, int]]) -> None:
        self.port = free_port()
        servers = "\n".join(
            f"    server {name} 127.0.0.1:{port} send-proxy-v2 check port {api}"
            for name, port, api in hubs
        )
        self._config = folder / "haproxy.cfg"
        self._config.write_text(_BALANCER.format(port=self.port, servers=servers))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            ["haproxy", "-db", "-f", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """End it as kill -9 does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


class ClusterCampaign(DatabaseCampaign):
    """Runs a plan; a context that ends everything."""

    kinds = KINDS

    def _build(self) -> None:
        self.pair = self._stack.enter_context(Pair())
        leash.hold(self.pair.primary.folder, self.pair.standby.folder)
        names = [f"edge-{number + 1}" for number in range(self.plan.edges)]
        down = [f"{hub}.*" for hub in HUBS] + [f"{names[0]}.*"]
        peers = "".join(
            peer(
                name, extra=f'send = {down}\nreceive = [">"]\nrequired = false\n'.replace("'", '"')
            )
            for name in names
        )
        both = sorted((self.pair.primary, self.pair.standby), key=lambda one: one.port)
        self.bus = Redis()
        self._stack.callback(self.bus.remove)
        self.hubs: list[Daemon] = []
        self._relays: list[list[Relay]] = []
        ports = []
        for hub in HUBS:
            relays = [Relay(one.port) for one in both]
            for relay in relays:
                self._stack.callback(relay.close)
            self._relays.append(relays)
            port, api = free_port(), free_port()
            ports.append((hub, port, api))
            at = ",".join(str(relay.port) for relay in relays)
            config = (
                f'http = "127.0.0.1:{api}"\nrequire_key = false\n[cluster]\ninstance = "{hub}"\n'
                f'bus = "{self.bus.url}"\n'
                '[log]\nengine = "postgresql"\n[log.postgresql]\n'
                f'dsn = "host=127.0.0.1,127.0.0.1 port={at} dbname={NAME} user=linkd"\n'
                'synchronous = "required"\n'
                + listen(port, "127.0.0.1")
                + 'proxy_protocol = ["127.0.0.1"]\n'
                + peers
            )
            self.hubs.append(self._daemon("hub", config))
        self.hub = self.hubs[0]
        self.balancer = Balancer(self.hubs[0].directory, ports)
        self._stack.callback(self.balancer.kill)
        dial = f"ws://127.0.0.1:{self.balancer.port}/link"
        self.edges = [
            self._daemon(name, peer("hub", dial, extra=f'send = ["{name}.*"]\nreceive = [">"]\n'))
            for name in names
        ]
        self._init()
        for daemon in self.hubs:
            self._start(daemon)
        self.balancer.start()
        for daemon in self.edges:
            self._start(daemon)
        for daemon in self.edges:
            daemon.wait_up("hub", 30.0)

    @property
    def daemons(self) -> list[Daemon]:
        """All daemons, the hubs first."""
        return [*self.hubs, *self.edges]

    def label(self, daemon: Daemon) -> str:
        """Return a daemon's name, that of the instance where it is a hub."""
        return HUBS[self.hubs.index(daemon)] if daemon in self.hubs else daemon.name

    # faults

    @contextlib.contextmanager
    def _kill_hub(self) -> Iterator[None]:
        self._rng.choice(self.hubs).kill()
        yield

    @contextlib.contextmanager
    def _freeze_hub(self) -> Iterator[None]:
        hub = self._rng.choice([hub for hub in self.hubs if hub.running])
        os.kill(hub.pid, signal.SIGSTOP)
        time.sleep(FROZEN_SECONDS)
        os.kill(hub.pid, signal.SIGCONT)
        yield

    @contextlib.contextmanager
    def _cut_hub(self) -> Iterator[None]:
        relays = self._rng.choice(self._relays)
        for relay in relays:
            relay.cut()
        time.sleep(self._rng.uniform(2.0, 15.0))
        yield
        for relay in relays:
            relay.mend()

    @contextlib.contextmanager
    def _cut_standby(self) -> Iterator[None]:
        processes = _processes(self.pair.standby)
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        yield
        for pid in processes:
            os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def _two_primaries(self) -> Iterator[None]:
        with self.pair.standby.connect("postgres") as connection:
            connection.execute("select pg_promote()")
        time.sleep(TWICE_SECONDS)
        kill(self.pair.primary)
        self.pair.primary, self.pair.standby = self.pair.standby, self.pair.primary
        yield
        self.pair.copy()

    @contextlib.contextmanager
    def _restart_balancer(self) -> Iterator[None]:
        self.balancer.kill()
        yield
        self.balancer.start()

    @contextlib.contextmanager
    def _kill_bus(self) -> Iterator[None]:
        self.bus.kill()
        yield
        self.bus.start()

    @contextlib.contextmanager
    def _lost_tail(self) -> Iterator[None]:
        before = self._end()
        self.pair.alone()
        until(lambda: self._end() >= before + TAIL, 60.0)
        kill(self.pair.primary)
        self.pair.standby.start()
        began = time.monotonic()
        self.pair.promote()
        yield
        self.pair.copy()
        lasts, times = [], []
        for hub in self.hubs:  # one that did not know of the tail goes on
            with contextlib.suppress(AssertionError):
                until(partial(self._has_seen, hub, began), 60.0)
            for line in hub.matching(began, event="log.went-back"):
                found = re.search(r"acknowledged here is (\d+)", str(line.fields["detail"]))
                assert found is not None, line
                lasts.append(int(found[1]))
                times.append(line.at)
        assert lasts, "no hub has told of the tail"
        for hub in self.hubs:
            self._start(hub)
        opened: list[int] = []

        def is_open() -> bool:
            for hub in self.hubs:
                for line in hub.matching(began, event="log.epoch"):
                    begins = re.search(r"begins at offset (\d+)", str(line.fields["detail"]))
                    assert begins is not None, line
                    opened.append(int(begins[1]))
            return bool(opened)

        until(is_open, 60.0)
        self._tails.append(Tail(max(times), min(opened), max(lasts) + 1))

    @staticmethod
    def _has_seen(hub: Daemon, since: float) -> bool:
        """Return whether a hub has ended, or goes on with what is left."""
        if not hub.running:
            return True
        with contextlib.suppress(OSError, RuntimeError):
            return hub.status()["log"]["full"] is None and time.monotonic() > since + 20.0
        return False

    def _end(self) -> int:
        """Return the highest next offset of all hubs."""
        ends = [0]
        for hub in self.hubs:
            with contextlib.suppress(OSError, RuntimeError):
                ends.append(int(hub.status()["log"]["next"]))
        return max(ends)

    def _next(self) -> int:
        for daemon in self.daemons:
            self._start(daemon)
        return self._end()

    def _settle(self, report: Report) -> None:
        end = time.monotonic() + SETTLE_SECONDS
        report.undrained = ["?"]
        while report.undrained and time.monotonic() < end:
            time.sleep(0.5)
            with contextlib.suppress(OSError, RuntimeError):
                report.undrained = [
                    f"{edge.name} to hub: {link}"
                    for edge in self.edges
                    for link in edge.status()["links"]
                    if link["state"] != "up" or link["backlog_records"]
                ]
                links = [
                    link
                    for status in [hub.status() for hub in self.hubs]
                    for link in status["links"]
                    if link["instance"] == status["instance"]  # each shows the others' too
                ]
                report.undrained += [
                    f"hub to {edge.name}: {held}"
                    for edge in self.edges
                    for held in [
                        [
                            link
                            for link in links
                            if link["peer"] == edge.name and link["state"] == "up"
                        ]
                    ]
                    if len(held) != 1 or held[0]["backlog_records"]
                ]
        time.sleep(2.0)  # what would come twice comes now

    def _publisher(self, daemon: Daemon, number: int) -> Publisher:
        label = self.label(daemon)
        name = f"{label}/{number}"
        rng = Random(f"{self.plan.seed}/{name}")
        return Publisher(daemon, name, f"{label}.{number}", rng, self.plan.rate)

    def _judge(self, report: Report, ledgers: list[Ledger]) -> None:
        logs: dict[str, Held] = {}
        for daemon in self.daemons:
            daemon.stop(20.0)
        for daemon in (self.hubs[0], *self.edges):
            settings = load([daemon.config_file]).log
            logs[daemon.name] = read_held(daemon.directory / "state", daemon.name, settings)
        for ledger in ledgers:
            report.doubtful += sum(last - first for first, last in ledger.doubtful)
            report.refused += ledger.refused
            source = ledger.name.partition("/")[0]
            for name, held in logs.items():
                if name not in ("hub", source) and source not in (*HUBS, "edge-1"):
                    continue
                verdict = judge(ledger, held.numbers.get(ledger.name, []), name)
                if source in HUBS:
                    report.audit += excuse(verdict, ledger, self._gone(name))
                report.verdicts.append(verdict)
        report.tails = [(tail.first, tail.next) for tail in self._tails]
        for daemon in self.daemons:
            report.bugs += wrong_lines(daemon)

    def _act(self, number: int, kind: str) -> list[Happened]:
        self.hub = self._rng.choice(self.hubs)
        return super()._act(number, kind)

    def _init(self) -> None:
        owner = self.pair.primary.dsn(NAME, "owner")
        command = python(*COMMAND, "log", "init", "--dsn", owner, "-c", str(self.hub.config_file))
        subprocess.run(command, check=True, capture_output=True, timeout=60)


def _processes(server: Server) -> list[int]:
    """Return the processes of a server, the first one first."""
    process = server.process
    assert process is not None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [process.pid, *map(int, children)]


def main(plan: Plan, ends: float = 1e18) -> Report:
    """Run a campaign and print how it goes."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with ClusterCampaign(plan) as campaign:
        report = campaign.run((), ends, say)
    print("\n".join(report.lines()), flush=True)
    return report
