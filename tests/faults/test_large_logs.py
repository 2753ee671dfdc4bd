"""Large logs under real daemons: how fast they start and drain, and what memory that takes."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from linkd.config import LogSettings
from linkd.log import open_log
from linkd.protocol.records import EncodedRecord, NewRecords, encode_records
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Daemon
from tests.support.duo import Duo, until

NOW = '[[channel]]\nname = "now"\ndelivery = "volatile"\n'
MIB = 1 << 20
BATCH_BYTES = 60_000


def fill(daemon: Daemon, records: int, size: int) -> int:
    """Append records of a size to a stopped daemon's log; return what it then occupies."""
    calls: SimpleQueue[Any] = SimpleQueue()
    state = daemon.directory / "state"
    log = open_log(LogSettings(), state, daemon.name, calls.put)
    each = BATCH_BYTES // (size + 10)
    encoded = encode_records([EncodedRecord(b"x" * size)] * each)
    outcomes: list[object] = []
    sent = 0
    while sent < records:
        count = min(each, records - sent)
        batch = encoded if count == each else encode_records([EncodedRecord(b"x" * size)] * count)
        log.append(NewRecords("orders", count, batch, time.time()), outcomes.append)
        sent += count
        while sent // each - len(outcomes) > 200:
            calls.get(timeout=30)()
    ended: list[bool] = []
    log.close(lambda: ended.append(True))
    while not ended:
        calls.get(timeout=60)()
    return sum(path.stat().st_size for path in (state / "log").iterdir())


def memory(daemon: Daemon) -> int:
    """Return the most memory that a daemon has had in use, in bytes."""
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{daemon.name} has ended")


class Ticks(threading.Thread):
    """Follows a volatile channel at one daemon, as an event stream."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon=True)
        self.came: dict[int, float] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(daemon.socket))
        self._socket.sendall(
            b"GET /v1/channels/now HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        )

    def run(self) -> None:
        for line in self._socket.makefile("rb"):
            if line.startswith(b"data:"):
                self.came[int(json.loads(line[5:])["data"]["n"])] = time.monotonic()

    def close(self) -> None:
        """End it."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self.join(5.0)
        self._socket.close()


def drain(duo: Duo, records: int, within: float) -> tuple[float, float, float]:
    """Start the hub and wait until it has all.

    Returns:
        Seconds that it took, and the most that a volatile message and a status took meanwhile.
    """
    edge, hub = duo.edge, duo.hub
    hub.start()
    ticks = Ticks(hub)
    ticks.start()
    before = time.monotonic()
    edge.call("POST", "/v1/peers/hub/kick", b"")
    began = edge.wait_line(30.0, before, event="link.up").at
    sent: dict[int, float] = {}
    asked = [0.0]
    number = 0
    while edge.link("hub")["backlog_records"]:
        assert time.monotonic() - began < within, edge.link("hub")
        number += 1
        sent[number] = time.monotonic()
        edge.call("POST", "/v1/channels/now", json.dumps({"n": number}).encode())
        for daemon in (edge, hub):
            before = time.monotonic()
            daemon.status()
            asked.append(time.monotonic() - before)
        time.sleep(0.05)
    seconds = time.monotonic() - began
    until(lambda: len(ticks.came) == len(sent), 5.0)
    ticks.close()
    crossed = max((ticks.came[n] - at for n, at in sent.items()), default=0.0)
    assert hub.status()["log"]["next"] == edge.status()["log"]["next"] == records + 1
    return seconds, crossed, max(asked)


@pytest.fixture
def parted() -> Any:
    """Return a pair that has met once and was then stopped."""
    with Duo(NOW) as duo:
        duo.start()
        duo.hub.stop()
        duo.edge.stop()
        yield duo


@pytest.mark.slow
def test_an_outage_of_a_million_records_drains_at_speed(parted: Duo) -> None:
    records = 1_000_000 if CAMPAIGN else 200_000
    fill(parted.edge, records, 100)
    parted.edge.start()
    seconds, crossed, asked = drain(parted, records, 120.0)
    speed, rate = records * 100 / seconds / 1e6, records / seconds
    figures.tell(
        f"{records} records of 100 bytes drained in {seconds:.2f} s: {rate:,.0f} records/s,"
        f" {speed:.0f} MB/s; meanwhile a volatile message took {crossed:.3f} s at most, a status"
        f" {asked:.3f} s"
    )
    assert max(crossed, asked) < 1.0
    assert speed >= (60.0 if CAMPAIGN else 3.0) or rate >= (300_000 if CAMPAIGN else 30_000)


@pytest.mark.slow
def test_a_log_of_gigabytes_starts_at_once_and_drains_in_little_memory(parted: Duo) -> None:
    records = 5_000_000 if CAMPAIGN else 250_000
    occupied = fill(parted.edge, records, 1000)
    took = []
    for end in (parted.edge.stop, parted.edge.kill, None):
        began = time.monotonic()
        parted.edge.start()
        ready = parted.edge.wait_line(5.0, began, event="node.ready")
        took.append(ready.fields["start_seconds"])
        if end is not None:
            end()
    seconds, crossed, asked = drain(parted, records, 600.0)
    used = [memory(daemon) / MIB for daemon in (parted.edge, parted.hub)]
    figures.tell(
        f"a log of {occupied / 1e9:.2f} GB: started in {max(took):.2f} s, drained in"
        f" {seconds:.1f} s ({records * 1000 / seconds / 1e6:.0f} MB/s), at most {used[0]:.0f} MiB"
        f" in use at its sender and {used[1]:.0f} MiB at its receiver; a volatile message took"
        f" {crossed:.3f} s at most, a status {asked:.3f} s"
    )
    assert max(took) < 3.0
    assert max(used) < 200.0
    assert max(crossed, asked) < 1.0
