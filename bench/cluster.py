"""Several hubs of a node on one log in PostgreSQL: latency, throughput, and what a death costs.

python -m bench.cluster [--quick]

Each hub is a real daemon, the database and its synchronous standby are private servers on the same
disk, HAProxy is before the hubs where edges dial. A relay delays what the standby confirms.
Writes docs/measurements/cluster.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.figures import FOLDER, machine, table
from bench.swarm import Bare
from linkd import client
from linkd.drill.testbed import free_port
from linkd.host import raise_open_file_limit
from tests.chaos.cluster import Balancer
from tests.support.daemon import COMMAND, Daemon, listen, peer
from tests.support.lab import python
from tests.support.postgresql import Server

HUBS = ("hub-a", "hub-b", "hub-c")
EDGES = 12
LINKS = 6000
STANDBY = "standby"
EXPLAINED = (
    "A client at each hub publishes 100 B, one record after the other: 1,000/s over all hubs are"
    " asked for, and no more than one of a client is under way. At full speed each publish\nhas"
    " 1,000 records. Hubs take turns: the log is one sequence, and a commit of one waits for those"
    " of the others."
)


class Delay:
    """Passes one port on to another, each byte so many seconds later in each direction.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, target: int, seconds: float) -> None:
        self._target = target
        self._seconds = seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for one, other in ((near, far), (far, near)):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        held: deque[tuple[float, bytes]] = deque()
        came = threading.Condition()

        def send() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with came:
                        came.wait_for(lambda: held)
                        due, content = held.popleft()
                    time.sleep(max(0.0, due - time.monotonic()))
                    other.sendall(content)

        threading.Thread(target=send, daemon=True).start()
        with contextlib.suppress(OSError):
            while content := one.recv(1 << 16):
                with came:
                    held.append((time.monotonic() + self._seconds, content))
                    came.notify()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


class Cluster:
    """Hubs on one database; a context that ends all.

    Args:
        hubs: How many.
        delay: Milliseconds of a round trip to the synchronous standby; None: there is none.
        edges: How many dial it, through HAProxy.
        light: They are dialers without a log, in one process that the caller starts.
    """

    def __init__(self, hubs: int, delay: float | None, edges: int = 0, light: bool = False) -> None:
        self._stack = contextlib.ExitStack()
        self.server = Server()
        self._stack.callback(self.server.remove)
        self.name = self.server.database("hub")
        if delay is not None:
            self._add_standby(delay / 2000.0)
        names = [f"edge-{number + 1}" for number in range(edges)]
        peers = "".join(peer(name, extra='receive = [">"]\nrequired = false\n') for name in names)
        self.hubs: list[Daemon] = []
        ports = []
        for hub in HUBS[:hubs]:
            port, api = free_port(), free_port()
            ports.append((hub, port, api))
            config = (
                f'http = "127.0.0.1:{api}"\nrequire_key = false\n[cluster]\ninstance = "{hub}"\n'
                '[log]\nengine = "postgresql"\n[log.postgresql]\n'
                f'dsn = "{self.server.dsn(self.name)}"\nsynchronous = "single"\n'
                + listen(port, "127.0.0.1")
                + 'proxy_protocol = ["127.0.0.1"]\n'
                "[limits]\npending_per_address = 1024\n"
                "handshakes_per_second_per_address = 200.0\n" + peers
            )
            self.hubs.append(self._daemon("hub", config))
        owner = self.server.dsn(self.name, "owner")
        config_file = str(self.hubs[0].config_file)
        command = python(*COMMAND, "log", "init", "--dsn", owner, "-c", config_file)
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        for daemon in self.hubs:
            daemon.start(120.0)
        self.edges: list[Daemon] = []
        if edges:
            self.balancer = Balancer(self.hubs[0].directory, ports)
            self._stack.callback(self.balancer.kill)
            self.balancer.start()
            dial = f"ws://127.0.0.1:{self.balancer.port}/link"
            names = [] if light else names
            self.edges = [
                self._daemon(name, peer("hub", dial, extra='send = [">"]\n')) for name in names
            ]
            for daemon in self.edges:
                daemon.start()
            for daemon in self.edges:
                daemon.wait_up("hub", 30.0)

    def _daemon(self, name: str, config: str) -> Daemon:
        daemon = Daemon(name, config)
        self._stack.callback(daemon.close)
        return daemon

    def _add_standby(self, delay: float) -> None:
        line = Delay(self.server.port, delay)
        self._stack.callback(line.close)
        one = Server.__new__(Server)
        one.prepare()
        self._stack.callback(one.remove)
        source = f"host=127.0.0.1 port={line.port} user=owner application_name={STANDBY}"
        one.run("pg_basebackup", "-D", str(one.data), "-R", "-c", "fast", "--no-slot", "-d", source)
        with (one.data / "postgresql.conf").open("a") as file:
            file.write(f"port = {one.port}\nunix_socket_directories = '{one.folder}'\n")
        one.start()
        with self.server.connect("postgres") as connection:
            connection.execute(f"alter system set synchronous_standby_names = '{STANDBY}'")
            connection.execute("select pg_reload_conf()")
        time.sleep(0.5)

    def commits(self) -> int:
        """Return how many commits the log has had."""
        with self.server.connect(self.name) as connection:
            return int(connection.execute("select commits from linkd.log").fetchone()[0])

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def bare_commits(cluster: Cluster, count: int) -> float:
    """Return the median milliseconds of one bare insert of 300 B."""
    took = []
    with cluster.server.connect(cluster.name) as connection:
        connection.execute("create table if not exists bare (body bytea)")
        for _ in range(count):
            began = time.perf_counter()
            connection.execute("insert into bare values (%s)", (bytes(300),))
            took.append(1e3 * (time.perf_counter() - began))
    return statistics.median(took)


def _note(times: list[float], began: float, _: object) -> None:
    """Note how long something took."""
    times.append(time.perf_counter() - began)


async def _latency(cluster: Cluster, count: int) -> tuple[list[float], list[float]]:
    """Return milliseconds from a publish at the first hub to its answer, and to the last hub."""
    answered: list[float] = []
    seen: list[float] = []
    first, last = str(cluster.hubs[0].socket), str(cluster.hubs[-1].socket)
    async with client.connect(first) as near, client.connect(last) as far:
        records = far.subscribe("lat", start="latest").__aiter__()
        reading = asyncio.ensure_future(records.__anext__())
        await asyncio.sleep(0.5)
        for number in range(count):
            await asyncio.sleep(0.03)
            began = time.perf_counter()
            done = asyncio.ensure_future(near.publish("lat", {"n": number}))
            done.add_done_callback(partial(_note, answered, began))
            await reading
            seen.append(time.perf_counter() - began)
            await done
            reading = asyncio.ensure_future(records.__anext__())
        reading.cancel()
    return [1e3 * one for one in answered], [1e3 * one for one in seen]


async def _publish(hub: Daemon, rate: float, seconds: float, took: list[float]) -> int:
    """Publish 100 B at a rate, or as fast as possible (0); return how many were acknowledged."""
    sent, body = 0, b"x" * 100
    async with client.connect(str(hub.socket)) as node:
        ends = time.perf_counter() + seconds
        if rate:
            while (began := time.perf_counter()) < ends:
                await node.publish("load", body)
                took.append(1e3 * (time.perf_counter() - began))
                sent += 1
                await asyncio.sleep(max(0.0, began + 1 / rate - time.perf_counter()))
            return sent
        while time.perf_counter() < ends:
            await node.publish_many("load", [body] * 1000)
            sent += 1000
    return sent


def throughput(cluster: Cluster, rate: float, seconds: float) -> list[str]:
    """Return messages/s, commits/s, median milliseconds of all hubs together."""

    async def all_of() -> list[int]:
        took: list[float] = []
        rows = [_publish(hub, rate, seconds, took) for hub in cluster.hubs]
        sent = await asyncio.gather(*rows)
        latencies.extend(took)
        return list(sent)

    latencies: list[float] = []
    before, began = cluster.commits(), time.perf_counter()
    sent = sum(asyncio.run(all_of()))
    took = time.perf_counter() - began
    median = f"{statistics.median(latencies):.2f}" if latencies else "–"
    return [f"{sent / took:,.0f}", f"{(cluster.commits() - before) / took:,.0f}", median]


def deaths(cluster: Cluster, rounds: int) -> Iterator[float]:
    """Yield for each edge of a killed hub after how many seconds it is up at another one."""
    for number in range(rounds):
        hub = cluster.hubs[number % len(cluster.hubs)]
        links = [link for link in hub.status()["links"] if link["state"] == "up"]
        mine = {
            link["peer"] for link in links if link.get("instance") in (None, _name(hub, cluster))
        }
        began = time.monotonic()
        hub.kill()
        for edge in cluster.edges:
            if edge.name in mine:
                line = edge.wait_line(20.0, after=began, event="link.up")
                yield line.at - began
        hub.start()
        time.sleep(2.0)


def _name(hub: Daemon, cluster: Cluster) -> str:
    return HUBS[cluster.hubs.index(hub)]


def _used(hub: Daemon) -> tuple[int, float]:
    """Return a process's resident bytes, and the seconds of processor time that it has used."""
    status = Path(f"/proc/{hub.pid}/status").read_text()
    fields = Path(f"/proc/{hub.pid}/stat").read_text().rpartition(")")[2].split()
    resident = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    return resident, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle(hubs: int, count: int, seconds: float) -> str:
    """Return what an idle link costs where so many are spread over hubs behind HAProxy."""
    with Cluster(hubs, None, count, light=True) as cluster:
        empty = [_used(hub)[0] for hub in cluster.hubs]
        secret = str(cluster.hubs[0].directory / "secret")
        swarm = Bare(cluster.balancer.port, count, secret)
        try:
            swarm.wait_up(count, 60.0 + count / 20)
            time.sleep(6.0)
            before = [_used(hub) for hub in cluster.hubs]
            time.sleep(seconds)
            after = [_used(hub) for hub in cluster.hubs]
        finally:
            swarm.close()
    grown = sum(now[0] - first for now, first in zip(after, empty, strict=True)) / count / 1024
    cpu = sum(now[1] - then[1] for now, then in zip(after, before, strict=True)) / seconds
    return (
        f"{count} idle links, {hubs} hub{'s' * (hubs > 1)} behind HAProxy with PROXY v2:"
        f" {grown:.1f} KiB a link beside {sum(empty) / hubs / 2**20:.0f} MiB a hub before the"
        f" first (each hub knows all peers), {100 * cpu / count:.5f} % of a core a link"
    )


def run(quick: bool) -> list[str]:
    """Measure all; return the lines of the page."""
    lines = []
    count, seconds = (60, 2.0) if quick else (300, 5.0)
    with Cluster(3, None) as cluster:
        asyncio.run(_latency(cluster, 20))
        bare = bare_commits(cluster, count)
        answered, seen = asyncio.run(_latency(cluster, count))
        bare = statistics.median([bare, bare_commits(cluster, count)])
        middle = statistics.median(seen)
        lines.append(
            f"One record of about 10 B at rest, {count} times: a bare insert of 300 B takes"
            f" {bare:.2f} ms; a publish at one hub is answered after"
            f" {statistics.median(answered):.2f} ms and at a reader of another hub after"
            f" {middle:.2f} ms, {middle / bare:.2f} × the bare commit (95th percentile"
            f" {sorted(seen)[int(0.95 * len(seen))]:.2f} ms)."
        )
        print(lines[-1], flush=True)
    rows = []
    for delay in (None, 0.0, 1.0, 5.0):
        for hubs in (1, 2, 3):
            with Cluster(hubs, delay) as cluster:
                bare = bare_commits(cluster, 50)
                calm = throughput(cluster, 1000 / hubs, seconds)
                full = throughput(cluster, 0, seconds)
            word = "none" if delay is None else f"{delay:g} ms"
            rows.append([word, str(hubs), f"{bare:.2f}", f"{1e3 / bare:,.0f}", *calm, *full[:2]])
            print(rows[-1], flush=True)
    head = ["standby", "hubs", "bare commit, ms", "1 / commit, /s", "messages/s", "commits/s",
            "median, ms", "full speed: messages/s", "commits/s"]  # fmt: skip
    lines += [EXPLAINED, table(head, rows)]
    with Cluster(3, None, EDGES) as cluster:
        stop = threading.Event()

        def fill() -> None:
            while not stop.is_set():
                for edge in cluster.edges:
                    with contextlib.suppress(Exception):
                        edge.call("POST", "/v1/channels/up", b'{"n": 1}')
                time.sleep(0.02)

        filling = threading.Thread(target=fill)
        filling.start()
        try:
            back = sorted(deaths(cluster, 3 if quick else 9))
        finally:
            stop.set()
            filling.join()
        lines.append(
            f"A hub killed under load, {len(back)} links of {EDGES} edges behind HAProxy: up at"
            f" another hub after {statistics.median(back):.2f} s in the median, {back[-1]:.2f} s"
            " at worst."
        )
        print(lines[-1], flush=True)
    for hubs in (1, 3):
        lines.append(idle(hubs, 300 if quick else LINKS, seconds) + ".")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short, and write nothing")
    asked = parser.parse_args()
    raise_open_file_limit()
    if shutil.which("haproxy") is None:
        raise SystemExit("it needs HAProxy")
    lines = run(asked.quick)
    if not asked.quick:
        page = Path(FOLDER) / "cluster.md"
        head = "# Several hubs\n\nWritten by `python -m bench.cluster`.\n"
        page.write_text("\n\n".join([head + machine(), *lines]) + "\n")


if __name__ == "__main__":
    main()
