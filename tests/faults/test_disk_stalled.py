"""A disk that answers nothing for a while: links stay, publishers wait, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from linkd.protocol import client
from linkd.protocol.records import EncodedRecord, encode_records
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Daemon
from tests.support.duo import Duo, Watched, numbers, publish, run, until
from tests.support.pairs import memory

STALLS = """
import os, time
from linkd.log.files import DiskFiles
taken = DiskFiles.write
def write(self, fd, at, buffers):
    while os.path.exists({flag!r}):
        time.sleep(0.02)
    taken(self, fd, at, buffers)
DiskFiles.write = write
from linkd.cli import main
raise SystemExit(main())
"""
SECONDS = 60.0 if CAMPAIGN else 9.0


class Stalling:
    """Makes the disk of a daemon answer nothing, again and again; before its start."""

    def __init__(self, daemon: Daemon) -> None:
        self._flag = daemon.directory / "stalled"
        daemon.program = ("-c", STALLS.format(flag=str(self._flag)))

    def stall(self) -> float:
        """Answer nothing from now on."""
        self._flag.touch()
        return time.monotonic()

    def go_on(self) -> None:
        """Answer again."""
        self._flag.unlink(missing_ok=True)


@pytest.fixture
def duo() -> Iterator[Duo]:
    with Duo() as both:
        yield both


def settled(duo: Duo) -> None:
    """Start both, and have something of the edge's on the hub's disk."""
    duo.start()
    publish(duo.edge, "a", range(10))
    duo.settled()


def test_a_receiver_whose_disk_stalls_keeps_its_links(duo: Duo) -> None:
    disk = Stalling(duo.hub)
    settled(duo)
    watched = Watched(duo)
    began = disk.stall()
    answered = time.monotonic()
    publish(duo.edge, "a", range(10, 20))
    answered = time.monotonic() - answered
    assert answered < 2.0, "the edge's own disk is well"
    told = duo.hub.wait_line(12.0, began, event="log.stalled")
    figures.tell(f"a stalled disk is said after {told.at - began:.1f} s")
    assert 5.0 <= told.at - began - told.queued <= 8.0
    assert told.fields["level"] == "error"
    assert duo.edge.link("hub")["backlog_records"] == 10
    status = duo.hub.status()["log"]
    assert status["stalled_seconds"] >= 5.0
    assert status["full"] is None
    assert "linkd_log_stalled_seconds 0.0" not in duo.hub.call("GET", "/metrics")
    checked = run(duo.hub, "status", "--check")
    assert checked.returncode == 1
    assert "the disk has not finished a commit for " in checked.stdout
    assert "the disk has not finished a commit for " in run(duo.hub, "status").stdout
    time.sleep(max(0.0, began + SECONDS - time.monotonic()))
    assert watched.fell() == []
    disk.go_on()
    duo.settled()
    duo.hub.wait_line(5.0, began, event="log.stall-ended")
    assert numbers(duo.hub, "a") == list(range(20))
    assert duo.hub.status()["log"]["stalled_seconds"] is None
    assert len(list(duo.hub.matching(began, event="log.stalled"))) == 1
    assert "log.stalled" in json.dumps(duo.hub.call("GET", "/v1/events"))
    assert run(duo.hub, "status", "--check").returncode == 0


def test_a_publisher_waits_for_its_disk_and_a_cut_meanwhile_heals(duo: Duo) -> None:
    disk = Stalling(duo.edge)
    settled(duo)
    began = disk.stall()
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(publish, duo.edge, "a", range(10, 20))
        try:
            duo.edge.wait_line(12.0, began, event="log.stalled")
            duo.hub.kill()
            duo.hub.start()
            duo.joined()
            publish(duo.hub, "b", range(5))
            time.sleep(1.0)
            assert not waits.done(), "answered before it was on disk"
            assert numbers(duo.hub, "a") == list(range(10)), "sent before it was on disk"
        finally:
            disk.go_on()
        waits.result(10.0)
    duo.settled()
    for daemon in (duo.hub, duo.edge):
        assert numbers(daemon, "a") == list(range(20))
        assert numbers(daemon, "b") == list(range(5))


def published(daemon: Daemon) -> bool:
    """Tell whether a publish is taken, and answered at once."""
    began = time.monotonic()
    publish(daemon, "after", [1])
    return time.monotonic() - began < 0.5


class Crowd:
    """Publishes messages of one byte on two channels in turn, so that none shares a batch.

    It reads while it sends, which the blocking client of websockets does not: a send that waits
    holds the lock that a received message needs.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.sent = self.published = self.failed = 0

    async def run(self, count: int) -> None:
        """Publish so many, or until one is refused; return once all are answered, or 3 s later."""
        where = str(self._daemon.socket), "ws://localhost/v1/stream"
        async with unix_connect(
            *where,
            subprotocols=[Subprotocol(client.SUBPROTOCOL)],
            max_size=None,
            close_timeout=1.0,
        ) as wire:
            await wire.send(client.encode([client.Open(1, "", "tests")]))
            hearing = asyncio.create_task(self._hear(wire))
            sending = asyncio.create_task(self._send(wire, count))
            while not (self.failed or sending.done()):
                await asyncio.sleep(0.01)
            end = time.monotonic() + 3.0
            while not sending.done() or self.published + self.failed < self.sent:
                if time.monotonic() >= end:
                    break
                await asyncio.sleep(0.1)
            sending.cancel()
        await hearing

    async def _send(self, wire: ClientConnection, count: int) -> None:
        one = encode_records([EncodedRecord(b"x")])
        while self.sent < count and not self.failed:
            begin, self.sent = self.sent, self.sent + 500
            these = range(begin, self.sent)
            await wire.send(
                client.encode([client.Publish(n + 1, "ab"[n % 2], 1, one) for n in these])
            )

    async def _hear(self, wire: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in wire:
                assert isinstance(message, bytes)
                for frame in client.decode_from_daemon(message):
                    if isinstance(frame, client.Published):
                        self.published += 1
                    elif isinstance(frame, client.PublishedRun):
                        self.published += frame.count
                    elif isinstance(frame, client.PublishFailed):
                        assert frame.error == "too-many"
                        self.failed += 1


@pytest.mark.parametrize(("place", "most_megabytes"), [("receiver", 40), ("publisher", 160)])
def test_what_waits_for_a_stalled_disk_is_bounded_however_small_the_messages(
    duo: Duo, place: str, most_megabytes: int
) -> None:
    """Bounded by bytes of records alone, 60,000 of one byte took 60 MB, a million a gigabyte."""
    daemon = duo.hub if place == "receiver" else duo.edge
    disk = Stalling(daemon)
    settled(duo)
    before = memory(daemon)
    watched = Watched(duo)
    disk.stall()
    crowd = Crowd(duo.edge)
    try:
        asyncio.run(crowd.run(200_000))
        grown = (memory(daemon) - before) / (1 << 20)
        figures.tell(
            f"{place} with a stalled disk: {crowd.sent} messages of a byte, {crowd.failed}"
            f" refused, {grown:.0f} MB more"
        )
        assert (crowd.failed > 0) == (place == "publisher")
        assert grown < most_megabytes
    finally:
        disk.go_on()
    duo.settled(60.0)
    until(lambda: published(duo.edge))
    assert watched.fell() == [], "what had waited held up the reactor"
    for each in (duo.hub, duo.edge):
        assert each.stop() == 0
