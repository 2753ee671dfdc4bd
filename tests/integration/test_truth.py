"""What operators and programs are told: how soon, and while much else is going on."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from http.client import HTTPConnection
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import unix_connect

from linkd.api.metrics import Metrics
from linkd.protocol import client
from linkd.status import LinkStatus, LogStatus, NodeStatus
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Daemon
from tests.support.fake_node import metrics_text
from tests.support.pairs import Pair

pytestmark = pytest.mark.timing

BODY = b"x" * 1000
LINES = b"\n".join([b'"%b"' % BODY] * 5_000)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as linked:
        yield linked


class Watcher(ABC):
    """A follower of changes: keeps when each came."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, str, str]] = []
        self._thread = threading.Thread(target=self._guarded, daemon=True)

    def start(self) -> Watcher:
        self._thread.start()
        return self

    def _guarded(self) -> None:
        with contextlib.suppress(OSError, ConnectionClosed):
            self.run()

    @abstractmethod
    def run(self) -> None:
        """Follow until the other end is gone."""

    def note(self, peer: str, state: str) -> None:
        self.seen.append((time.monotonic(), peer, state))

    def wait(self, state: str, after: float, within: float) -> float:
        """Return when a state was told after a moment."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            for at, _, new in tuple(self.seen):
                if new == state and at >= after:
                    return at
            time.sleep(0.005)
        raise AssertionError(f"not told {state}: {self.seen[-5:]}")


class EventPage(Watcher):
    """`/v1/events` as an event stream."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    def run(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        connection.request("GET", "/v1/events", headers={"Accept": "text/event-stream"})
        answer = connection.getresponse()
        while line := answer.readline():
            if line.startswith(b"data: "):
                told = json.loads(line[6:])
                self.note(told["peer"], told["new"])


class TextStatus(Watcher):
    """`/ws?status=1`; with a channel it gets all of its messages on the same connection."""

    def __init__(self, daemon: Daemon, channel: str = "") -> None:
        super().__init__()
        self._path, self._channel = str(daemon.socket), channel
        self.messages = 0

    def run(self) -> None:
        query = f"status=1&channel={self._channel}" if self._channel else "status=1"
        with unix_connect(self._path, f"ws://localhost/ws?{query}", compression=None) as wire:
            for frame in wire:
                if frame.startswith('{"type":"status"'):
                    told = json.loads(frame)["data"]
                    self.note(told["peer"], told["state"])
                else:
                    self.messages += 1


class StreamStatus(Watcher):
    """`/v1/stream` with all messages of a channel beside the status."""

    def __init__(self, daemon: Daemon, channel: str) -> None:
        super().__init__()
        self._path, self._channel = str(daemon.socket), channel
        self.messages = 0

    def run(self) -> None:
        with unix_connect(
            self._path,
            "ws://localhost/v1/stream",
            subprotocols=[client.SUBPROTOCOL],  # type: ignore[list-item]
            max_size=None,
            compression=None,
        ) as wire:
            follow = client.Subscribe(1, (self._channel,), "latest", "", 2**40)
            wire.send(client.encode((client.Open(1), client.WatchStatus(), follow)))
            for message in wire:
                assert isinstance(message, bytes)
                for frame in client.decode_from_daemon(message):
                    if isinstance(frame, client.StatusChanged):
                        for link in frame.links:
                            self.note(link.peer, link.state)
                    elif isinstance(frame, client.Deliver):
                        self.messages += frame.count


def cuts(pair: Pair, watchers: list[Watcher], count: int) -> dict[str, list[float]]:
    """Kill the hub `count` times; return how late each watcher heard, by the log's line."""
    late: dict[str, list[float]] = {type(one).__name__: [] for one in watchers}
    for _ in range(count):
        began = time.monotonic()
        pair.hub.kill()
        line = pair.edge.wait_line(5.0, began, peer="hub", old="up")
        heard = [one.wait(str(line.fields["new"]), began, 2.0) for one in watchers]
        # The line came through a pipe and a thread, as late as what it is compared with.
        first = min(line.at, *heard)
        for one, at in zip(watchers, heard, strict=True):
            late[type(one).__name__].append(at - first)
        began = time.monotonic()
        pair.hub.start()
        pair.edge.call("POST", "/v1/peers/hub/kick")
        line = pair.edge.wait_line(20.0, began, peer="hub", event="link.up")
        heard = [one.wait("up", began, 2.0) for one in watchers]
        first = min(line.at, *heard)
        for one, at in zip(watchers, heard, strict=True):
            late[type(one).__name__].append(at - first)
    return late


def test_changes_reach_followers_soon_and_ahead_of_messages(pair: Pair) -> None:
    """Idle, and then on connections over which all messages flow as fast as they can."""
    quiet = [EventPage(pair.port).start(), TextStatus(pair.edge).start()]
    time.sleep(0.5)
    idle = cuts(pair, quiet, 5 if CAMPAIGN else 2)
    text = TextStatus(pair.edge, "load")
    batched = StreamStatus(pair.edge, "load")
    busy = [EventPage(pair.port).start(), text.start(), batched.start()]
    time.sleep(0.5)
    stopping = threading.Event()
    loader = threading.Thread(target=_load, args=(pair.edge, stopping))
    loader.start()
    try:
        time.sleep(0.5)
        loaded = cuts(pair, busy, 5 if CAMPAIGN else 2)
    finally:
        stopping.set()
        loader.join(20)
    for what, late in (("idle", idle), ("under load", loaded)):
        for name, seconds in late.items():
            figures.tell(f"changes told, {what}, {name}: " + figures.spread(seconds))
    figures.tell(f"  beside {text.messages} and {batched.messages} messages on these connections")
    assert max(max(seconds) for seconds in idle.values()) < 0.2
    assert max(statistics.median(seconds) for seconds in loaded.values()) < 0.2
    assert text.messages > 5_000
    assert batched.messages > 5_000


def _load(daemon: Daemon, stopping: threading.Event) -> None:
    """Publish until told otherwise, about 5,000 records of 1 KB at once."""
    while not stopping.is_set():
        daemon.call("POST", "/v1/channels/load", LINES, "application/x-ndjson", timeout=20)


def test_status_while_100_mb_drain(pair: Pair) -> None:
    """Asked ten times a second of both ends, over connections of their own."""
    pair.hub.kill()
    for _ in range(20):
        pair.edge.call("POST", "/v1/channels/load", LINES, "application/x-ndjson", timeout=20)
    owed = pair.edge.link("hub")
    assert owed["backlog_records"] == 100_000
    pair.hub.start()
    pair.edge.wait_up("hub")
    began = time.monotonic()
    took: dict[str, list[float]] = {"edge": [], "hub": []}
    busy = 0
    while True:
        for daemon in (pair.edge, pair.hub):
            asked = time.monotonic()
            status = daemon.status()
            took[daemon.name].append(time.monotonic() - asked)
            if daemon is pair.edge:
                left = status["links"][0]["backlog_records"]
        if not left:
            break
        busy += 1
        assert time.monotonic() - began < 60.0
        time.sleep(0.02)
    drained = time.monotonic() - began
    for name, seconds in took.items():
        figures.tell(
            f"status of the {name} while {owed['backlog_bytes'] / 1e6:.0f} MB drain in"
            f" {drained:.1f} s: median {statistics.median(seconds) * 1000:.0f} ms,"
            f" most {max(seconds) * 1000:.0f} ms of {len(seconds)}"
        )
        assert statistics.median(seconds) < 0.05
        assert sorted(seconds)[int(0.9 * len(seconds))] < 0.05
    assert busy >= 3, "it was drained before anyone could ask"
    assert pair.hub.status()["log"]["next"] > 100_000


class _Crowded:
    """A node with a thousand peers."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self.on_measured: list[Any] = []
        self.on_fell: list[Any] = []
        self.on_rose: list[Any] = []
        self.log = SimpleNamespace(on_written=[])
        self.stamp = 0.0
        self.instances = self.bus = None

    def status(self) -> NodeStatus:
        self.stamp += 1.0
        links = [
            LinkStatus(
                peer=f"edge-{number}", role="listener", state="up", since_seconds=self.stamp,
                generation=f"{number}:1", address="192.0.2.1:1", rtt_seconds=0.01 + self.stamp,
                silence_seconds=self.stamp, backlog_records=number, backlog_bytes=number * 100,
                backlog_age_seconds=self.stamp, sent_records=number, received_records=number,
                attempts=0, next_attempt_seconds=None, reason=None, detail=None,
                peer_version="linkd", certificate_expires_seconds=1e6 - self.stamp,
            )
            for number in range(1000)
        ]  # fmt: skip
        return NodeStatus("hub", "1", self.stamp, LogStatus("x", 1, 2, 3, 4), [], links)

    def outages(self, *_: Any) -> list[Any]:
        return []


def test_a_scrape_of_a_thousand_peers() -> None:
    node = _Crowded()
    metrics = Metrics(node)  # type: ignore[arg-type]  # as much of a node as metrics read
    took = []
    for _ in range(5):
        began = time.thread_time()
        text = metrics_text(metrics)
        took.append(time.thread_time() - began)
    assert text.count('linkd_link_up{peer="') == 1000
    figures.tell(
        f"text of the metrics of 1,000 peers: {min(took) * 1000:.0f} ms, {len(text)} bytes"
    )
    assert min(took) < 0.05


def test_a_scrape_with_a_thousand_peers_over_http() -> None:
    """A real daemon with a thousand peers that never came."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    peers = "".join(
        f'[[peer]]\nname = "edge-{number}"\nsecret_file = "{{secret}}"\n' for number in range(1000)
    )
    with Daemon("hub", f'[listen]\naddress = "127.0.0.1:{port}"\ninsecure = true\n{peers}') as hub:
        took = []
        for _ in range(7):
            began = time.monotonic()
            text = hub.call("GET", "/metrics")
            took.append(time.monotonic() - began)
        assert text.count('linkd_link_up{peer="') == 1000
    figures.tell(
        f"scrape of a hub with 1,000 peers: median {statistics.median(took) * 1000:.0f} ms"
    )
    assert statistics.median(took) < 0.05
