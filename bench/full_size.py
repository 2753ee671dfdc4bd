"""Every route and frame at its full size, from 1, 32 and 256 connections, beside 1 and 1,000 peers.

python -m bench.full_size [--seconds 1] [--only WORD] [--connections 1,32,256]

The daemon has one processor, the load and all peers the other. Held against the bars: the loop is
late for less than 0.5 s, no link drops, memory grows by at most 300 MiB, and a client that
publishes beside the load keeps half of its rate. Writes docs/measurements/full_size.md.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from bench.figures import FOLDER, machine, table
from linkd.drill.testbed import free_port
from linkd.host import raise_open_file_limit
from linkd.protocol import client
from tests.faults.test_full_size import (
    BODIES,
    FRAMES,
    MEGABYTE,
    PIPELINED,
    TARGETS,
    TEXTS,
    message_of,
)
from tests.support.daemon import Daemon, peer
from tests.support.pairs import Pair, memory
from tests.support.queueing import spent
from tests.support.swarm import Swarm
from tests.support.unix_http import UnixConnection

OURS, LOADS = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
"""The daemon's processor, and that of everything else."""

MANY_PEERS = 1000
LATE_SECONDS = 0.5
GROWN_BYTES = 300 << 20
LEAST_RATE = 0.5
PACE_SECONDS = 0.04
REFUSED_SECONDS = 0.01
SETTLED = 0.3
"""A daemon that uses less of its processor has worked off what a load has left behind."""

SETTLE_SECONDS = 10.0
SETTLE_STEP = 0.3

_UPGRADE = (
    b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n%b\r\n"
)
_STREAM = b"Sec-WebSocket-Protocol: linkd.client.1\r\n"


class Case(msgspec.Struct):
    """What every connection of a load sends: all of it, and again until the time is over."""

    name: str
    upgrade: bytes
    content: Callable[[int], bytes]


def _frame(payload: bytes | str) -> bytes:
    """Return a WebSocket frame with a mask of zeros."""
    first = 0x82 if isinstance(payload, bytes) else 0x81
    body = payload if isinstance(payload, bytes) else payload.encode()
    size = len(body)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65_536:
        head = bytes((first, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + size.to_bytes(8, "big")
    return head + bytes(4) + body


def _stream_frames(frames: list[client.FromClient]) -> Callable[[int], bytes]:
    opened = _frame(client.encode([client.Open(client.VERSION, "", "full size")]))
    return _always(opened + _frame(message_of(frames)))


def _always(content: bytes) -> Callable[[int], bytes]:
    return lambda _: content


def _request(method: str, target: str, kind: bytes = b"", body: bytes = b"") -> Any:
    more = b"Content-Type: %b\r\n" % kind if kind else b""
    if method != "GET":
        more += b"Content-Length: %d\r\n" % len(body)
    times = 1 if body else PIPELINED

    def content(port: int) -> bytes:
        head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode()
        return (head + more + b"\r\n" + body) * times

    return content


def route_cases() -> Iterator[Case]:
    """Yield every route with every body of it."""
    for (method, path), target in TARGETS.items():
        yield Case(f"{method} {path}", b"", _request(method, target))
    for (method, path), (target, bodies) in BODIES.items():
        for kind, body in bodies:
            name = f"{method} {path} {kind.decode()}, {len(body):,} B"
            yield Case(name, b"", _request(method, target, kind, body))


def frame_cases() -> Iterator[Case]:
    """Yield every frame of `/v1/stream` and every kind of message of `/ws`."""
    for frame, make in FRAMES.items():
        for number, frames in enumerate(make(), 1):
            name = f"/v1/stream {frame.__name__} {number}"
            yield Case(name, b"/v1/stream", _stream_frames(frames))
    for kind, texts in TEXTS.items():
        content = b"".join(map(_frame, texts()))
        yield Case(f"/ws {kind}", b"/ws?channel=texts", _always(content))


class Attacker:
    """One connection of a load, opened again whenever the daemon refuses or ends it.

    Args:
        case: What it sends.
        content: The bytes of it.
        port: The daemon's.
        until: When the load is over, by `time.monotonic`.

    Attributes:
        opened: How often it was open.
        refused: How often it was refused before it was.
    """

    def __init__(self, case: Case, content: bytes, port: int, until: float) -> None:
        self._case, self._content, self._port, self._until = case, content, port, until
        self.opened = self.refused = 0
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while time.monotonic() < self._until:
            with contextlib.suppress(OSError), self._connect() as one:
                if self._upgraded(one):
                    self.opened += 1
                    self._flood(one)
                    continue
            self.refused += 1
            time.sleep(REFUSED_SECONDS)

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=5.0)

    def _upgraded(self, one: socket.socket) -> bool:
        """Return whether the case needs no upgrade, or has it."""
        upgrade = self._case.upgrade
        if not upgrade:
            return True
        more = _STREAM if upgrade == b"/v1/stream" else b""
        key = base64.b64encode(bytes(16))
        one.sendall(_UPGRADE % (upgrade, self._port, key, more))
        return b" 101 " in one.recv(4096)

    @staticmethod
    def _reads(one: socket.socket) -> bool:
        """Read a little; return whether the connection goes on."""
        try:
            return bool(one.recv(1 << 16))
        except TimeoutError:
            return True

    def _flood(self, one: socket.socket) -> None:
        """Send all of it again and again; of answers to requests a little is read, late."""
        one.settimeout(0.2)
        sent = memoryview(self._content)
        with contextlib.suppress(OSError):
            while time.monotonic() < self._until:
                try:
                    sent = sent[one.send(sent) :] or memoryview(self._content)
                except TimeoutError:
                    if not self._case.upgrade and not self._reads(one):
                        return


def load_process(orders: Any, seconds: float) -> None:
    """Obey: have so many connections send what a case is made of."""
    pin(os.getpid(), LOADS)
    cases = {case.name: case for case in (*route_cases(), *frame_cases())}
    while (order := orders.recv()) is not None:
        name, connections, port = order
        case = cases[name]
        content = case.content(port)
        orders.send("begun")
        until = time.monotonic() + seconds
        attackers = [Attacker(case, content, port, until) for _ in range(connections)]
        for one in attackers:
            one.thread.start()
        for one in attackers:
            one.thread.join()
        ever = sum(one.opened > 0 for one in attackers)
        opened = sum(one.opened for one in attackers)
        orders.send((ever, opened - ever, sum(one.refused for one in attackers)))


def pin(pid: int, processor: int) -> None:
    """Give all threads of a process one processor; what it starts has that one too."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(task.name), {processor})


class Watch:
    """Looks at a daemon: how late its loop is, its memory, and how fast another client publishes.

    Attributes:
        late: The longest lateness that the daemon reported, seconds.
        most: The most memory, bytes.
        answered: Publishes of the other client that were answered.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._over = threading.Event()
        self.late, self.most, self.answered = 0.0, 0, 0
        self._threads = [threading.Thread(target=run) for run in (self._look, self._publish)]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, memory(self._daemon))
            answer = self._daemon.call("GET", "/healthz", timeout=60)
            self.late = max(self.late, answer["late_seconds"])

    def _publish(self) -> None:
        connection = UnixConnection(str(self._daemon.socket), 60)
        next_at = time.monotonic()
        while not self._over.is_set():
            connection.request("POST", "/v1/channels/other", b"1", {"Content-Type": "text/plain"})
            answer = connection.getresponse()
            answer.read()
            self.answered += answer.status < 300
            next_at = max(next_at + PACE_SECONDS, time.monotonic())
            self._over.wait(next_at - time.monotonic())
        connection.close()


class Bench:
    """A daemon, a load beside it, and a table of what was seen.

    Args:
        seconds: How long each load lasts.
        only: Cases without this word are left out.
    """

    def __init__(self, seconds: float, only: str) -> None:
        self._seconds, self._only = seconds, only
        self.rows: list[list[str]] = []
        self.broken: list[str] = []
        self._orders, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=load_process, args=(theirs, seconds), daemon=True
        )
        self._process.start()

    def run(
        self, cases: Iterator[Case], counts: tuple[int, ...], daemon: Daemon, port: int, peers: int
    ) -> None:
        """Run cases at each number of connections."""
        pin(daemon.pid, OURS)
        with Watch(daemon) as alone:
            time.sleep(2.0)
        usual = alone.answered / 2.0
        for case in cases:
            if self._only not in case.name:
                continue
            for connections in counts:
                self._one(case.name, connections, daemon, port, peers, usual)

    def _one(
        self, name: str, connections: int, daemon: Daemon, port: int, peers: int, usual: float
    ) -> None:
        before, waited = memory(daemon), spent(daemon.pid)[1]
        drops = _drops(daemon)
        self._orders.send((name, connections, port))
        self._orders.recv()
        began = time.monotonic()
        with Watch(daemon) as watch:
            opened, again, refused = self._orders.recv()
            took = time.monotonic() - began
            answered = watch.answered
            settle(daemon)
        waited = spent(daemon.pid)[1] - waited
        late, grown = max(0.0, watch.late - waited), watch.most - before
        drops = _drops(daemon) - drops
        rate = answered / took / usual
        broken = [
            what
            for what, bad in (
                ("late", late >= LATE_SECONDS),
                ("memory", grown > GROWN_BYTES),
                ("link", drops > 0),
                ("rate", rate < LEAST_RATE and waited < took / 5),
            )
            if bad
        ]
        row = [
            name,
            f"{peers:,}",
            f"{opened} of {connections}",
            f"{again:,}",
            f"{refused:,}",
            f"{watch.late:.2f}",
            f"{waited:.2f}",
            str(drops),
            f"{grown / 2**20:+.0f}",
            f"{rate:.2f}",
            ", ".join(broken) or "yes",
        ]
        self.rows.append(row)
        if broken:
            self.broken.append(name)
        print(" | ".join(row), flush=True)

    def close(self) -> None:
        """End the load."""
        self._orders.send(None)
        self._process.join(10)


def settle(daemon: Daemon) -> None:
    """Wait until a daemon has worked off what a load has left behind, so that rows stay apart."""
    end = time.monotonic() + SETTLE_SECONDS
    ran = float("inf")
    while ran > SETTLED * SETTLE_STEP and time.monotonic() < end:
        before = spent(daemon.pid)[0]
        time.sleep(SETTLE_STEP)
        ran = spent(daemon.pid)[0] - before


def _drops(daemon: Daemon) -> int:
    """Return how many times a daemon has logged that a link went down."""
    return sum(str(line.fields.get("detail", "")).startswith("link down") for line in daemon.lines)


@contextlib.contextmanager
def hub_with(count: int) -> Iterator[tuple[Daemon, int]]:
    """Start a hub and so many peers, all linked."""
    links, port = free_port(), free_port()
    names = "".join(peer(f"edge-{number + 1}") for number in range(count))
    config = (
        f'http = "127.0.0.1:{port}"\nrequire_key = false\n[limits]\npending_per_address = 2000\n'
        f'handshakes_per_second_per_address = 2000.0\n[listen]\naddress = "127.0.0.1:{links}"\n'
        f"insecure = true\n{names}"
    )
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon("hub", config))
        pin(daemon.pid, OURS)
        url = f"ws://127.0.0.1:{links}/link"
        swarm = stack.enter_context(Swarm(url, count, str(daemon.directory / "secret"), None))
        swarm.wait_up(count, 300.0)
        yield daemon, port


def _fill(daemon: Daemon) -> None:
    """Put 18 MB of large records into its log."""
    for _ in range(18):
        connection = UnixConnection(str(daemon.socket), 60)
        connection.request("POST", "/v1/channels/big", MEGABYTE)
        connection.getresponse().read()
        connection.close()


HEAD = (
    "what",
    "peers",
    "connections",
    "again",
    "refused",
    "late, s",
    "without a processor, s",
    "drops",
    "memory, MiB",
    "rate of another",
    "held",
)


def page(where: str, seconds: float, bench: Bench) -> str:
    """Return the page."""
    return (
        "# Every route and frame at its full size\n\n"
        f"Measured {where}. Command: `python -m bench.full_size`. Each load lasts {seconds:g} s:"
        " every connection sends the largest that the bounds allow, again and again, and reads"
        " little, late, or nothing. One that the daemon refuses or ends is opened `again` at once;"
        " `connections` counts those that were open at some time, `refused` the attempts that were"
        " refused. The daemon has one processor, the load and all peers the other.\n\n"
        "Bars: the loop is late for less than 0.5 s, beside the time for which the daemon waited"
        " for its processor, which other processes of this machine took; no link drops; memory"
        " grows by at most 300 MiB; another client, which publishes one record every 40 ms over"
        " the socket and waits for each answer, keeps half of the rate that it has alone (not"
        " judged where the daemon waited for its processor a fifth of the time). `held`"
        f" names the bars that a row breaks: {len(bench.broken)} of {len(bench.rows)} rows break"
        " one.\n\n" + table(HEAD, bench.rows) + "\n"
    )


def main() -> int:
    """Run all, print the table, write the page."""
    parser = argparse.ArgumentParser(prog="bench.full_size", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load")
    parser.add_argument("--only", default="", help="cases with this word, and no page")
    parser.add_argument("--connections", default="1,32,256", help="beside one peer")
    asked = parser.parse_args()
    counts = tuple(map(int, asked.connections.split(",")))
    raise_open_file_limit()
    pin(os.getpid(), LOADS)  # and so all that it starts, but for the daemon
    where, bench = machine(), Bench(asked.seconds, asked.only)
    with Pair() as pair:
        _fill(pair.edge)
        bench.run(frame_cases(), counts, pair.edge, pair.port, 1)
        bench.run(route_cases(), counts, pair.edge, pair.port, 1)
    with hub_with(MANY_PEERS) as (hub, port):
        _fill(hub)
        bench.run(route_cases(), (32,), hub, port, MANY_PEERS)
    bench.close()
    if not asked.only:
        (FOLDER / "full_size.md").write_text(page(where, asked.seconds, bench))
    print(f"{len(bench.broken)} of {len(bench.rows)} rows break a bar")
    return 0


if __name__ == "__main__":
    sys.exit(main())
