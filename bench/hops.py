"""Where the time of a message goes: each hop between publisher and reader, calm and under load.

python -m bench.hops [--seconds S] [--rounds N] [--rate R] [--busy SHARE]

Both daemons note when records pass; the n-th record of one hop is the n-th of the next. One run is
calm; in the other a process on each core is busy for a share of the time. The same pace is also
measured without notes, beside NATS. Writes docs/measurements/hops.md.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any, Final

from bench.figures import FOLDER, figure, machine, spread, table
from bench.load import load
from bench.systems import Linkd, Nats, Process, System
from linkd.api.stream import StreamSink
from linkd.api.stream_publisher import StreamPublisher
from linkd.client.websocket import WebSocket
from linkd.core.inbound import Inbound
from linkd.core.outbound import Outbound
from linkd.log.base import Log
from linkd.log.commit import CommitGroup
from linkd.log.disk_log import DiskLog
from linkd.log.writer import WriteJob, Writer
from linkd.protocol import client
from linkd.protocol.records import EncodedRecord, encode_records

BUSY_PERIOD: Final = 0.01
"""A busy process works for a share of each such period of seconds, and sleeps for the rest."""

HOPS: Final = (
    ("publisher to API", "the frame is masked, sent, received, decoded"),
    ("API", "checked, handed to the log"),
    ("group", "made at the end of the iteration, or behind the commit under way"),
    ("hand-over", "the writer's thread wakes"),
    ("commit", "written and synced"),
    ("hand-over", "the reactor wakes, and counts the group in"),
    ("dispatch", "routed, offered to the link"),
    ("link", "encoded, masked, sent, received, decoded"),
    ("session", "checked, handed to the peer's log"),
    ("group", "made at the end of the iteration, or behind the commit under way"),
    ("hand-over", "the writer's thread wakes"),
    ("peer's commit", "written and synced"),
    ("hand-over", "the reactor wakes, and counts the group in"),
    ("dispatch", "routed, offered to the subscription"),
    ("reader", "encoded, sent, received"),
)

Passed = list[tuple[float, int]]
"""When how many more records passed; seconds on the monotonic clock of this machine."""


def _take_notes(node: str) -> list[Passed]:
    """Have this process note what passes; return the notes in the order of the hops."""
    notes: list[Passed] = []

    def note(
        owner: type, method: str, count: Callable[..., int], place: int = 1, behind: bool = False
    ) -> None:
        """Note calls of a method: how many records its argument number `place` has."""
        passed: Passed = []
        notes.append(passed)
        call = getattr(owner, method)

        def noted(*arguments: Any) -> Any:
            before = time.monotonic()
            result = call(*arguments)
            what = arguments[place] if place < len(arguments) else result
            passed.append((time.monotonic() if behind else before, count(what)))
            return result

        setattr(owner, method, noted)

    if node == "hub":
        note(Inbound, "batch", _count)
        note(Log, "store", _count)
    else:
        note(StreamPublisher, "publish", lambda frames: sum(map(_count, frames)))
        note(Log, "append", _count)
    note(Log, "_make_group", _in_group, behind=True)
    note(Writer, "_write", _in_jobs)
    note(Writer, "_write", _in_jobs, behind=True)
    note(DiskLog, "_committed", _in_group)
    if node == "hub":
        note(StreamSink, "batch", _count)
    else:
        note(Outbound, "_send", _count)
    return notes


def _count(one: Any) -> int:
    return int(one.count)


def _in_group(group: CommitGroup) -> int:
    return sum(piece.batch.count for piece in group.pieces if piece.batch is not None)


def _in_jobs(jobs: Sequence[WriteJob]) -> int:
    return sum(_in_group(job.group) for job in jobs)


def _run_node(node: str, file: str, arguments: list[str]) -> None:
    """Run a daemon that writes its notes to a file at its end."""
    notes = _take_notes(node)
    sys.argv = ["linkd", *arguments]
    try:
        runpy.run_module("linkd", run_name="__main__")
    finally:
        Path(file).write_text(json.dumps(notes))


class NotedLinkd(Linkd):
    """linkd whose nodes note what passes."""

    def _start(self, config: Path, name: str) -> Process:
        command = [sys.executable, "-m", "bench.hops", "--node", name, self._file(name)]
        return Process([*command, "run", "-c", str(config)], self.folder, name)

    def _file(self, name: str) -> str:
        return str(self.folder / f"{name}.notes")

    def notes(self, name: str) -> list[Passed]:
        """Return what a node that has ended has noted."""
        found: list[Passed] = json.loads(Path(self._file(name)).read_text())
        return found


def _open(port: int, frame: client.FromClient) -> tuple[socket.socket, WebSocket]:
    """Return an open stream of the API, its first frames sent."""
    web = WebSocket(f"ws://127.0.0.1:{port}/v1/stream", client.SUBPROTOCOL, {})
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(web.to_send())
    while not web.opened:
        web.receive(sock.recv(65_536))
    web.send_binary(client.encode([client.Open(client.VERSION, "", "bench"), frame]))
    sock.sendall(web.to_send())
    return sock, web


def _passage(system: System, seconds: float, rate: int) -> tuple[Passed, Passed]:
    """Publish at a pace, and read; return when records were sent, and when they were received."""
    count = int(seconds * rate)
    sent: Passed = []
    received: Passed = []
    subscribe = client.Subscribe(1, ("bench.>",), "latest", "", 2**40)
    reader, reading = _open(int(system.sinks), subscribe)

    def read() -> None:
        total = 0
        while total < count:
            messages = reading.receive(reader.recv(65_536))
            now = time.monotonic()
            for message in messages:
                for frame in client.decode_from_daemon(message):
                    if isinstance(frame, client.Deliver):
                        total += frame.count
                        received.append((now, frame.count))

    thread = Thread(target=read, daemon=True)
    thread.start()
    time.sleep(0.3)
    records = encode_records([EncodedRecord(b"x" * 100)])
    publisher, web = _open(system.source, client.Publish(1, "bench.0", 1, records))
    sent.append((time.monotonic(), 1))
    begin = time.monotonic() + 0.2
    for number in range(1, count):
        wait = begin + number / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        web.send_binary(client.encode([client.Publish(number + 1, "bench.0", 1, records)]))
        sent.append((time.monotonic(), 1))
        publisher.sendall(web.to_send())
    thread.join(30.0)
    for sock in (publisher, reader):
        sock.close()
    return sent, received


def _hop_times(system: NotedLinkd, seconds: float, rate: int) -> list[list[float]]:
    """Return the microseconds of each hop, and last those of all, of each record."""
    sent, received = _passage(system, seconds, rate)
    assert system.hub is not None
    for process in (system.edges[0], system.hub):
        process.stop()
    passed = [sent, *system.notes("edge-1"), *system.notes("hub"), received]
    times = [list(_each(one)) for one in passed]
    warm = min(map(len, times)) // 10  # the first records meet cold caches
    return [
        [(after - before) * 1e6 for before, after in zip(one[warm:], other[warm:], strict=False)]
        for one, other in (*pairwise(times), (times[0], times[-1]))
    ]


def _each(passed: Passed) -> Iterator[float]:
    """Yield for each record when it passed."""
    for at, count in passed:
        for _ in range(count):
            yield at


@contextmanager
def busy(share: float) -> Iterator[None]:
    """Keep each core busy for a share of the time, by a process of its own."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for core in sorted(os.sched_getaffinity(0)) if share else ():
            command = [sys.executable, "-m", "bench.hops", "--spin", str(core), str(share)]
            processes.append(subprocess.Popen(command))
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _spin(core: int, share: float) -> None:
    """Keep one core busy for a share of the time, for good."""
    os.sched_setaffinity(0, {core})
    while True:
        end = time.perf_counter() + share * BUSY_PERIOD
        while time.perf_counter() < end:
            pass
        time.sleep((1 - share) * BUSY_PERIOD)


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _hops_table(seconds: float, rate: int, share: float) -> str:
    """Return the table of hops."""
    columns = []
    for load_share in (0.0, share):
        with NotedLinkd() as system, busy(load_share):
            columns.append(_hop_times(system, seconds, rate))
    rows = []
    for place, (hop, what) in enumerate((*HOPS, ("all", ""))):
        cells = [
            f"{function(spans[place]):,.0f}"
            for spans in columns
            for function in (statistics.median, lambda values: _percentile(values, 0.99))
        ]
        rows.append([hop, what, *cells])
    head = ["hop", "what happens", "calm, median", "calm, p99", "busy, median", "busy, p99"]
    return table(head, rows)


def _paced_table(rounds: int, seconds: float, rate: int, share: float) -> str:
    """Return what linkd and NATS take without notes, calm and busy, in turns."""
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    kinds = [kind for kind in (Linkd, Nats) if kind.version() is not None]
    for _ in range(rounds):
        for kind in kinds:
            with kind() as system:
                for load_share in (0.0, share):
                    with busy(load_share):
                        time.sleep(0.3)
                        options = {"seconds": seconds, "rate": rate, "window": 50_000}
                        run = load(system.protocol, pub=system.source, sub=system.sinks, **options)
                    found.setdefault((system.title, load_share), []).append(
                        (run["p50_us"] / 1000, run["p99_us"] / 1000)
                    )
    rows = []
    for (title, load_share), taken in found.items():
        medians, highest = zip(*taken, strict=True)
        state = "busy" if load_share else "calm"
        rows.append([title, state, spread(figure(medians)), spread(figure(highest))])
    return table(["system", "cores", "median, ms", "p99, ms"], rows)


def main() -> int:
    """Measure, and write the page."""
    if sys.argv[1:2] == ["--node"]:
        _run_node(sys.argv[2], sys.argv[3], sys.argv[4:])
        return 0
    if sys.argv[1:2] == ["--spin"]:
        _spin(int(sys.argv[2]), float(sys.argv[3]))
    parser = argparse.ArgumentParser(prog="bench.hops", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one run")
    parser.add_argument("--rounds", type=int, default=3, help="of the runs beside NATS")
    parser.add_argument("--rate", type=int, default=1000, help="messages a second")
    parser.add_argument("--busy", type=float, default=0.5, help="share of each core")
    parser.add_argument("--quick", action="store_true", help="print, and write nothing")
    asked = parser.parse_args()
    where = machine()
    hops = _hops_table(asked.seconds, asked.rate, asked.busy)
    paced = _paced_table(asked.rounds, asked.seconds, asked.rate, asked.busy)
    text = (
        "# Where the time of a message goes\n\n"
        f"Measured {where}. Command: `python -m bench.hops`. {asked.rate:,} messages a second of"
        " 100 B, each published alone, from a publisher at the edge to a reader at the hub."
        f" Busy: on each core a process works for {asked.busy:.0%} of each"
        f" {BUSY_PERIOD * 1000:.0f} ms.\n\n"
        f"## Hops\n\nMicroseconds. Taking the notes adds a few to each hop.\n\n{hops}\n\n"
        "## Beside NATS\n\nWithout notes, by the C client of the other pages; median (least to"
        f" most) of {asked.rounds} rounds of {asked.seconds:g} s.\n\n{paced}\n"
    )
    print(text)
    if not asked.quick:
        (FOLDER / "hops.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
