"""A campaign against a hub whose log is in PostgreSQL with a synchronous standby.

A hub and its edges on loopback, two servers that change roles. Faults are `kill -9` of each server,
of the hub and of an edge, ended sessions, a promoted standby, and a standby that was asynchronous
for a while and is promoted without the last commits. The hub must tell those with their offsets:
only records at them may be missing.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Self

from linkd.config.loading import load
from linkd.drill.testbed import free_port
from tests.chaos.acts import Plan
from tests.chaos.checker import Held, Verdict, judge, read_held
from tests.chaos.faults import Happened
from tests.chaos.report import Report
from tests.chaos.run import RESERVE_SECONDS, SETTLE_SECONDS, Say, wrong_lines
from tests.chaos.traffic import Ledger, Publisher
from tests.support import leash
from tests.support.daemon import COMMAND, Daemon, listen, peer
from tests.support.duo import ALL, until
from tests.support.lab import python
from tests.support.postgresql import Server

NAME = "hub"
STANDBY = "standby"
START_SECONDS = 90.0
"""A hub may need so long: its first commit waits for the standby."""

AWAY_SECONDS = 3.0
TAIL = 100
"""So many records are committed by the primary alone before it dies."""

KINDS = {
    "kill database": 5,
    "kill hub": 3,
    "kill edge": 3,
    "kill standby": 3,
    "end sessions": 2,
    "promote": 3,
    "lost tail": 2,
}
"""The faults, each with its weight."""


@dataclass(frozen=True)
class Tail:
    """Records that the database lost, as the hub told it: offsets [first, next), at that time."""

    at: float
    first: int
    next: int

    def has(self, offset: int, answered: float) -> bool:
        """Return whether it has a record that was acknowledged then, at that offset."""
        return answered < self.at and self.first <= offset < self.next


class Pair:
    """A primary and its synchronous standby, which change roles; a context that ends both."""

    def __init__(self) -> None:
        self.primary = Server(wal_keep_size="'512MB'")
        self.standby = Server.__new__(Server)
        self.standby.prepare()
        self.primary.database(NAME)
        self._set(f"'{STANDBY}'", reload=False)  # the copy has it too
        self.copy()
        self._set(f"'{STANDBY}'")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End both, and delete their files."""
        self.primary.remove()
        self.standby.remove()

    def dsn(self) -> str:
        """Return what the hub connects to."""
        both = sorted((self.primary, self.standby), key=lambda one: one.port)
        hosts = ",".join(str(one.folder) for one in both)
        ports = ",".join(str(one.port) for one in both)
        return f"host={hosts} port={ports} dbname={NAME} user=linkd"

    def _set(self, names: str, reload: bool = True) -> None:
        with self.primary.connect("postgres") as connection:
            connection.execute("set synchronous_commit = local")
            connection.execute(f"alter system set synchronous_standby_names = {names}")
            if reload:
                connection.execute("select pg_reload_conf()")

    def copy(self) -> None:
        """Make the standby anew from the primary, and start it."""
        one = self.standby
        shutil.rmtree(one.data, ignore_errors=True)
        source = self.primary.dsn("postgres", "owner") + f" application_name={STANDBY}"
        one.run("pg_basebackup", "-D", str(one.data), "-R", "-c", "fast", "--no-slot", "-d", source)
        with (one.data / "postgresql.conf").open("a") as file:
            file.write(f"port = {one.port}\nunix_socket_directories = '{one.folder}'\n")
        one.start()

    def in_step(self) -> bool:
        """Return whether the standby confirms commits."""
        with self.primary.connect("postgres") as connection:
            rows = connection.execute(
                "select sync_state from pg_stat_replication where state = 'streaming'"
            ).fetchall()
        return ("sync",) in rows

    def alone(self) -> None:
        """Let the primary confirm commits that no standby has."""
        kill(self.standby)
        self._set("''")

    def promote(self) -> None:
        """Kill the primary, and make the standby the primary."""
        kill(self.primary)
        self.primary, self.standby = self.standby, self.primary
        with self.primary.connect("postgres") as connection:
            connection.execute("select pg_promote()")


def kill(server: Server) -> None:
    """Kill all processes of a server with kill -9; not again where it is gone."""
    process = server.process
    if process is None:
        return
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    server.kill(signal.SIGKILL)
    for child in map(int, children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 10.0)


class DatabaseCampaign:
    """Runs a plan; a context that ends everything."""

    kinds = KINDS

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._stack = contextlib.ExitStack()
        self._tails: list[Tail] = []

    def __enter__(self) -> Self:
        """Start servers and daemons."""
        leash.hold()
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self._stack.close()

    def _build(self) -> None:
        self.pair = self._stack.enter_context(Pair())
        leash.hold(self.pair.primary.folder, self.pair.standby.folder)
        names = [f"edge-{number + 1}" for number in range(self.plan.edges)]
        port = free_port()
        log = (
            '[log]\nengine = "postgresql"\n[log.postgresql]\n'
            f'dsn = "{self.pair.dsn()}"\nsynchronous = "required"\n'
        )
        peers = "".join(peer(name, extra=ALL) for name in names)
        self.hub = self._daemon("hub", log + listen(port, "127.0.0.1") + peers)
        dial = peer("hub", f"ws://127.0.0.1:{port}/link", extra=ALL)
        self.edges = [self._daemon(name, dial) for name in names]
        self._init()
        for daemon in self.daemons:
            self._start(daemon)
        for edge in self.edges:
            edge.wait_up("hub", 30.0)

    @property
    def daemons(self) -> list[Daemon]:
        """All daemons, the hub first."""
        return [self.hub, *self.edges]

    def _daemon(self, name: str, config: str) -> Daemon:
        daemon = Daemon(name, config)
        self._stack.callback(daemon.close)
        if self.plan.broken:
            daemon.program = ("-m", "tests.chaos.broken", self.plan.broken)
        return daemon

    def _init(self) -> None:
        """Create the tables with the command."""
        owner = self.pair.primary.dsn(NAME, "owner")
        command = python(*COMMAND, "log", "init", "--dsn", owner, "-c", str(self.hub.config_file))
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    @staticmethod
    def _start(daemon: Daemon) -> None:
        """Start a daemon again and again until it runs, as a supervisor does."""
        end = time.monotonic() + START_SECONDS
        while not daemon.running:
            try:
                daemon.start(START_SECONDS)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    # faults: each is a context, and mended at its end

    @contextlib.contextmanager
    def _kill_database(self) -> Iterator[None]:
        kill(self.pair.primary)
        yield
        self.pair.primary.start()

    @contextlib.contextmanager
    def _kill_standby(self) -> Iterator[None]:
        kill(self.pair.standby)
        yield
        self.pair.standby.start()

    @contextlib.contextmanager
    def _end_sessions(self) -> Iterator[None]:
        with self.pair.primary.connect("postgres") as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'linkd'"
            )
        yield

    @contextlib.contextmanager
    def _kill_hub(self) -> Iterator[None]:
        self.hub.kill()
        yield

    @contextlib.contextmanager
    def _kill_edge(self) -> Iterator[None]:
        self._rng.choice(self.edges).kill()
        yield

    @contextlib.contextmanager
    def _promote(self) -> Iterator[None]:
        self.pair.promote()
        yield
        self.pair.copy()

    @contextlib.contextmanager
    def _lost_tail(self) -> Iterator[None]:
        if len(self._tails) % 2:  # this one gets nothing of what is lost
            self.edges[-1].kill()
        before = self.hub.status()["log"]["next"]
        self.pair.alone()
        until(lambda: self.hub.status()["log"]["next"] >= before + TAIL, 30.0)
        kill(self.pair.primary)
        self.pair.standby.start()
        began = time.monotonic()
        self.pair.promote()
        yield
        self.pair.copy()
        self.hub.wait(30.0)
        line = next(self.hub.matching(began, event="log.went-back"))
        self._start(self.hub)
        opened = self.hub.wait_line(30.0, after=line.at, event="log.opened")
        last = re.search(r"acknowledged here is (\d+)", str(line.fields["detail"]))
        assert last is not None, line
        self._tails.append(Tail(line.at, int(opened.fields["next"]), int(last[1]) + 1))

    def _next(self) -> int:
        """Return the hub's next offset, 0 while it does not answer. Start it if it has ended."""
        self._start(self.hub)
        with contextlib.suppress(OSError):
            return int(self.hub.status()["log"]["next"])
        return 0

    def _fault(self, kind: str) -> AbstractContextManager[None]:
        made: AbstractContextManager[None] = getattr(self, f"_{kind.replace(' ', '_')}")()
        return made

    def _act(self, number: int, kind: str) -> list[Happened]:
        """Make a fault, half the time with the death of a daemon in its midst; mend all."""
        began = time.monotonic()
        happened = [kind]
        with self._fault(kind):
            time.sleep(self._rng.uniform(0.0, AWAY_SECONDS))
            also = self._rng.choice(["kill hub", "kill edge", "", ""])
            if also and kind not in (also, "lost tail"):  # a hub that is away can't tell a tail
                happened.append(also)
                with self._fault(also):
                    pass
        for daemon in self.daemons:
            self._start(daemon)
        until(self.pair.in_step, START_SECONDS)
        stands = self._next()
        until(lambda: self._next() > stands, START_SECONDS)
        ended = time.monotonic()
        return [Happened(each, "", began, ended, act=number) for each in happened]

    def run(self, kinds: Sequence[str] = (), ends: float = 1e18, say: Say = print) -> Report:
        """Make the faults under traffic, let all settle, and judge.

        Args:
            kinds: The first faults; those after them are random.
            ends: Monotonic seconds at which it must be over.
            say: Told of each act.
        """
        plan, report = self.plan, Report(self.plan)
        self._rng = Random(f"{plan.seed}/postgresql")
        began = report.began = time.monotonic()
        publishers = [
            self._publisher(daemon, number)
            for daemon in self.daemons
            for number in range(plan.publishers)
        ]
        for publisher in publishers:
            publisher.start()
        # Each kind comes as often as it weighs, in random order, again and again.
        bag = list(reversed(kinds))
        for number in range(plan.faults):
            if time.monotonic() > ends - RESERVE_SECONDS:
                break
            if not bag:
                bag = [kind for kind, weight in self.kinds.items() for _ in range(weight)]
                self._rng.shuffle(bag)
            time.sleep(self._rng.uniform(0.5, 2.0))
            happened = self._act(number, bag.pop())
            report.happened += happened
            said = " and ".join(each.kind for each in happened)
            say(f"{number + 1}/{plan.faults} {said} {happened[0].ended - happened[0].began:.1f} s")
        for publisher in publishers:
            publisher.end()
        self._settle(report)
        report.seconds = time.monotonic() - began
        self._judge(report, [publisher.ledger for publisher in publishers])
        return report

    def _publisher(self, daemon: Daemon, number: int) -> Publisher:
        name = f"{daemon.name}/{number}"
        channel = f"{daemon.name}.{number}"
        return Publisher(daemon, name, channel, Random(f"{self.plan.seed}/{name}"), self.plan.rate)

    def _settle(self, report: Report) -> None:
        """Wait until everyone has everything."""
        end = time.monotonic() + SETTLE_SECONDS
        report.undrained = ["?"]
        while report.undrained and time.monotonic() < end:
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                report.undrained = [
                    f"{daemon.name} to {link['peer']}: {link}"
                    for daemon in self.daemons
                    for link in daemon.status()["links"]
                    if link["state"] != "up" or link["backlog_records"]
                ]
        time.sleep(2.0)  # what would come twice comes now

    def _judge(self, report: Report, ledgers: list[Ledger]) -> None:
        """Stop all daemons, read their logs, and hold them against what was published."""
        logs: dict[str, Held] = {}
        for daemon in self.daemons:
            daemon.stop(20.0)
            settings = load([daemon.config_file]).log
            logs[daemon.name] = read_held(daemon.directory / "state", daemon.name, settings)
        for ledger in ledgers:
            report.doubtful += sum(last - first for first, last in ledger.doubtful)
            report.refused += ledger.refused
            for name, held in logs.items():
                verdict = judge(ledger, held.numbers.get(ledger.name, []), name)
                if ledger.name.startswith("hub/"):
                    report.audit += excuse(verdict, ledger, self._gone(name))
                report.verdicts.append(verdict)
        report.tails = [(tail.first, tail.next) for tail in self._tails]
        told = len(list(self.hub.matching(event="log.went-back")))
        if told != len(self._tails):
            report.audit.append(f"{len(self._tails)} tails were lost, and {told} told")
        for daemon in self.daemons:
            report.bugs += wrong_lines(daemon)

    def _gone(self, name: str) -> list[Tail]:
        """Return which offsets of the hub's log may be missing at a node.

        An edge that has told that it has more than the hub has what it told.
        """
        if name == "hub":
            return self._tails
        edge = next(edge for edge in self.edges if edge.name == name)
        gone = []
        for place, tail in enumerate(self._tails):
            later = self._tails[place + 1].at if place + 1 < len(self._tails) else float("inf")
            had = [
                int(line.fields["next"])
                for line in edge.matching(tail.at, event="link.records-lost")
                if line.at < later and line.fields.get("first") == tail.first
            ]
            gone.append(Tail(tail.at, max([tail.first, *had]), tail.next))
        return gone


def excuse(verdict: Verdict, ledger: Ledger, tails: list[Tail]) -> list[str]:
    """Take what was told to be lost off what is missing; return what was told and is there."""
    offsets = {
        number: (offset + number - first, answered)
        for first, last, offset, answered in ledger.places
        for number in range(first, last)
    }
    told = {number for number, place in offsets.items() if any(tail.has(*place) for tail in tails)}
    missing = set(verdict.lost)
    verdict.excused = len(missing & told)
    verdict.lost = sorted(missing - told)
    if verdict.log != "hub" or told <= missing:
        return []
    return [f"{len(told - missing)} records of {ledger.name} were told to be lost and are there"]


def main(plan: Plan, ends: float = 1e18) -> Report:
    """Run a campaign and print how it goes."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with DatabaseCampaign(plan) as campaign:
        report = campaign.run((), ends, say)
    print("\n".join(report.lines()), flush=True)
    return report
