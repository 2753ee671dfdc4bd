"""Many and rude callers of a real daemon: the others and the link don't feel them."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, unix_connect

from linkd.host import raise_open_file_limit
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Daemon
from tests.support.pairs import Pair, fetch, memory
from tests.support.queueing import spent

SLOW = 200
MOST_FILES = 8192
"""Of this process: a reader that was dropped keeps its socket for a while."""

BATCH = 4_000
ROUNDS = 20 if CAMPAIGN else 4
BODY = b'"' + b"x" * 1022 + b'"'
LINES = b"\n".join([BODY] * 1000)


def follow(daemon: Daemon, query: str, **options: Any) -> ClientConnection:
    """Open `/ws`; whoever doesn't read holds the daemon up, as a slow browser would."""
    return unix_connect(
        str(daemon.socket),
        f"ws://localhost/ws?{query}",
        ping_interval=None,
        compression=None,
        max_queue=1,
        **options,
    )


def publish(daemon: Daemon, channel: str, thousands: int) -> None:
    """Publish so many thousand records of 1 KiB."""
    for _ in range(thousands):
        daemon.call("POST", f"/v1/channels/{channel}", LINES, "application/x-ndjson", timeout=20.0)


def timed(daemon: Daemon, fast: ClientConnection) -> float:
    """Publish a load and return the seconds until the fast reader has had all of it."""
    began = time.monotonic()
    loading = threading.Thread(target=publish, args=(daemon, "load.d", BATCH // 1000))
    loading.start()
    for _ in range(BATCH):
        fast.recv(timeout=20)
    took = time.monotonic() - began
    loading.join(20)
    return took


@contextmanager
def crowd(daemon: Daemon) -> Iterator[list[ClientConnection]]:
    """Open as many followers of the load as are asked for, none of which reads."""
    query = "channel=load.%3E&envelope=1"
    with ExitStack() as stack:
        yield [stack.enter_context(_dropped(follow(daemon, query))) for _ in range(SLOW)]


@contextmanager
def _dropped(wire: ClientConnection) -> Iterator[ClientConnection]:
    """End a connection without a goodbye: its other end has too much to say first."""
    try:
        yield wire
    finally:
        wire.socket.close()


@pytest.mark.timing
def test_slow_readers_beside_a_fast_one() -> None:
    """Side by side: the same load with and without 200 readers that have stopped reading."""
    if raise_open_file_limit() < MOST_FILES:
        pytest.skip(f"this machine lacks {MOST_FILES} open files for a process")
    config = '[[channel]]\nname = "load.v"\ndelivery = "volatile"\n'
    alone: list[float] = []
    beside: list[float] = []
    with Daemon("edge-1", config) as daemon, follow(daemon, "channel=load.d") as fast:
        timed(daemon, fast)
        before = memory(daemon)
        for number in range(4 * ROUNDS):
            if number >= ROUNDS and min(beside) <= 1.1 * min(alone):
                break  # what is left of the difference is the machine's
            alone.append(timed(daemon, fast))
            with crowd(daemon):
                publish(daemon, "load.d", 1)
                for _ in range(1000):
                    fast.recv(timeout=20)
                beside.append(timed(daemon, fast))
        grown = memory(daemon) - before
    # The best of each: what else this machine does only ever adds.
    slowed = min(beside) / min(alone) - 1.0
    rates = [BATCH / min(one) for one in (alone, beside)]
    figures.tell(
        f"fast reader alone {rates[0]:.0f}/s, beside {SLOW} slow ones {rates[1]:.0f}/s:"
        f" slowed by {slowed:+.1%}; the daemon grew by {grown / 1e6:.0f} MB"
    )
    assert slowed <= 0.1
    assert grown < SLOW * 600_000


def test_slow_readers_hear_what_they_missed() -> None:
    """Volatile messages are counted to the last; what was deleted meanwhile is told as a gap."""
    config = '[[channel]]\nname = "load.v"\ndelivery = "volatile"\n'
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon("edge-1", config))
        slow = stack.enter_context(follow(daemon, "channel=load.%3E&envelope=1"))
        publish(daemon, "load.d", 4)
        publish(daemon, "load.v", 2)
        end = daemon.status()["log"]["next"]
        daemon.call("POST", "/v1/log/trim", json.dumps({"before": end, "confirmed": True}).encode())
        got: list[int] = []
        volatile = dropped = missed = 0
        position, last = 1, end
        daemon.call("POST", "/v1/channels/load.d", b'"last"')
        while position <= last:
            told = json.loads(slow.recv(timeout=20))
            if told["type"] == "gap" and "first" in told["data"]:
                assert told["data"]["first"] == position, told
                missed += told["data"]["next"] - position
                position = told["data"]["next"]
            elif told["type"] == "gap":
                dropped += told["data"]["dropped"]
            elif told["offset"]:
                assert told["offset"] == position
                position += 1
                got.append(told["offset"])
            else:
                volatile += 1
        daemon.call("POST", "/v1/channels/load.v", b'"last"')
        while dropped + volatile < 2001:
            told = json.loads(slow.recv(timeout=20))
            if told["type"] == "gap":
                dropped += told["data"]["dropped"]
            else:
                volatile += 1
    figures.tell(
        f"slow reader: {len(got)} of {last} durable got, {missed} told as gone;"
        f" volatile {volatile} got, {dropped} told as dropped"
    )
    assert missed > 0
    assert dropped > 0
    assert len(got) + missed == last
    assert dropped + volatile == 2001


def test_ten_thousand_subscriptions_on_one_connection() -> None:
    with Daemon("edge-1", "") as daemon, follow(daemon, "") as wire:
        before = memory(daemon)
        told = threading.Thread(
            target=lambda: [
                wire.send(json.dumps({
                    "type": "subscribe", "id": place, "data": {"channel": f"c.{place}"},
                }))
                for place in range(10_000)
            ]
        )  # fmt: skip
        told.start()
        acks = 0
        for _ in range(10_000):
            answered = json.loads(wire.recv(timeout=20))
            if answered["type"] == "ack":
                acks += 1
            else:
                assert answered["data"]["error"] == "too-many"
                assert "limits.subscriptions" in answered["data"]["message"]
        told.join(20)
        grown = memory(daemon) - before
        wire.send(json.dumps({"type": "t", "data": 1, "channel": "c.0", "id": "x"}))
        assert json.loads(wire.recv(timeout=5))["type"] in ("ack", "t")
        figures.tell(
            f"10,000 subscriptions: {acks} taken, the others refused, {grown / 1e6:.0f} MB"
        )
        assert acks == 256
        assert grown < 50_000_000


def open_raw(port: int, said: bytes) -> socket.socket:
    """Open a connection and say something on it."""
    wire = socket.create_connection(("127.0.0.1", port), timeout=20)
    wire.sendall(said)
    return wire


def ended(wire: socket.socket) -> bytes:
    """Return all that comes until the connection ends."""
    got = b""
    try:
        while piece := wire.recv(65_536):
            got += piece
    except OSError:
        pass
    return got


UPGRADE = (
    b"GET /ws?channel=flood.%d HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1Ng==\r\n\r\n"
)
ONE = b"\x81\x81\x00\x00\x00\x001"
"""A frame of text, masked: the JSON value 1."""


@pytest.mark.timing
def test_floods_of_small_frames_leave_the_others_their_turn() -> None:
    """Eight of them held the loop for 8 s: a silent link is given up sooner."""
    with Pair() as pair, ExitStack() as stack:
        port, edge = pair.port, pair.edge
        before = edge.link("hub")
        floods = [stack.enter_context(open_raw(port, UPGRADE % number)) for number in range(8)]
        for flood in floods:
            assert b" 101 " in flood.recv(4096)
        senders = [
            threading.Thread(target=_send_all, args=(flood, ONE * 40_000)) for flood in floods
        ]
        for sender in senders:
            sender.start()
        slowest, answers = 0.0, 0
        began = time.monotonic()
        while time.monotonic() - began < 5.0:
            asked = time.monotonic()
            assert fetch(port, "GET", "/v1/status")[0] == 200
            slowest = max(slowest, time.monotonic() - asked)
            answers += 1
        for flood in floods:
            flood.shutdown(socket.SHUT_RDWR)
        for sender in senders:
            sender.join(10)
        now = edge.link("hub")
        assert (now["generation"], now["state"]) == (before["generation"], "up")
        taken = edge.call("GET", "/v1/status")["log"]["next"]
        assert taken > 1000
        assert slowest < 2.0
        figures.tell(
            f"8 floods of frames of one byte, {taken:,} taken in 5 s: a status meanwhile took"
            f" {slowest:.2f} s at most of {answers}"
        )


def _send_all(wire: socket.socket, content: bytes) -> None:
    with suppress(OSError):  # the test ends it
        wire.sendall(content)


HEAD = b"POST /v1/channels/orders HTTP/1.1\r\nHost: localhost\r\n"


def test_bad_input_has_no_effect_on_the_link() -> None:
    """Half requests, slow heads, bodies too large, wrong hosts: each told, none felt."""
    with Pair() as pair, ExitStack() as stack:
        port, edge = pair.port, pair.edge
        before = edge.link("hub")
        began = time.monotonic()
        half = [
            stack.enter_context(
                open_raw(port, HEAD + b"Connection: close\r\nContent-Length: 10\r\n\r\n12345")
            )
            for _ in range(50)
        ]
        heads = [stack.enter_context(open_raw(port, b"POST /v1/chan")) for _ in range(50)]
        _refused_at_once(port)
        slowest = 0.0
        while time.monotonic() - began < 11.0:
            for wire in heads[:10]:
                try:
                    wire.sendall(b"x")
                except OSError:
                    break
            asked = time.monotonic()
            assert fetch(port, "POST", "/v1/channels/orders?wait=hub&timeout=5", b"1")[0] == 201
            slowest = max(slowest, time.monotonic() - asked)
            time.sleep(0.2)
        cut = [ended(wire) for wire in heads]
        assert cut == [b""] * 50
        assert time.monotonic() - began < 16.0
        for wire in half[:25]:
            wire.sendall(b"67890")
            assert b" 201 " in ended(wire)
        now = edge.link("hub")
        assert now["generation"] == before["generation"]
        assert now["state"] == "up"
        assert not [
            line for line in edge.lines if line.fields.get("event") == "node.internal-error"
        ]
        figures.tell(
            f"100 half requests and slow heads: heads cut after 10 s, a publish to the peer's disk"
            f" meanwhile took {slowest * 1000:.0f} ms at most, the link untouched"
        )


def _refused_at_once(port: int) -> None:
    """Make each bad call; each has its word."""
    json_type = {"Content-Type": "application/json"}
    large = 17 * 1024 * 1024
    for status, error, target, body, headers in (
        (413, "body-too-large", "/v1/channels/orders", b"x" * (large + 1), {}),
        (413, "body-too-large", "/v1/channels/orders", b"x" * 1_048_577, {}),
        (400, "malformed", "/v1/channels/orders", b"{", json_type),
        (400, "malformed", "/v1/channels/orders", b'"\xff"', json_type),
        (400, "malformed", "/v1/channels/or%20ders", b"1", {}),
        (415, "unsupported-type", "/v1/channels/orders", b"1", {"Content-Type": "nonsense"}),
        (421, "misdirected", "/v1/channels/orders", b"1", {"Host": "evil.example"}),
        (403, "origin-refused", "/v1/channels/orders", b"1", {"Origin": "http://evil.example"}),
        (404, "not-found", "/v2", b"1", {}),
    ):
        got, said = _sent(port, target, body, headers)
        assert (got, json.loads(said)["error"]) == (status, error), (status, error, got, said)
    chunks = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"100000\r\n" + b"x" * 0x100000
    with open_raw(port, chunks) as wire:
        for _ in range(17):
            try:
                wire.sendall(b"\r\n100000\r\n" + b"x" * 0x100000)
            except OSError:
                break
        assert b"413 " in ended(wire)


def _sent(port: int, target: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    """Publish; a refusal may come before all of the body has gone."""
    head = {"Host": "localhost", "Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    with open_raw(
        port, f"POST {target} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode()
    ) as wire:
        try:
            wire.sendall(body)
        except OSError:
            assert len(body) > 1_000_000
        got = ended(wire)
    top, _, rest = got.partition(b"\r\n\r\n")
    return int(top.split()[1]), rest


def test_what_is_no_http() -> None:
    with Pair() as pair:
        for junk in (b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 10_000):
            with open_raw(pair.port, junk) as wire:
                wire.shutdown(socket.SHUT_WR)
                got = ended(wire)
            assert not got or b" 400 " in got
        assert pair.edge.link("hub")["state"] == "up"


def test_hundreds_may_connect_to_the_socket_at_once() -> None:
    with Pair() as pair, ExitStack() as stack:
        pair.edge.freeze()
        try:
            for _ in range(500):
                one = stack.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(str(pair.edge.socket))  # EAGAIN where too many wait to be accepted
        finally:
            pair.edge.thaw()
        assert pair.edge.call("GET", "/healthz", timeout=10)["late_seconds"] is not None


@pytest.mark.timing
def test_readers_that_never_read_do_not_hold_up_requests_of_the_same_caller() -> None:
    raise_open_file_limit()
    request = b"GET /v1/channels/a?from=earliest HTTP/1.1\r\nHost: localhost\r\n"
    request += b"Accept: text/event-stream\r\n\r\n"
    with Pair() as pair, ExitStack() as stack:
        publish(pair.edge, "a", 30)
        for _ in range(900):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(str(pair.edge.socket))
            one.sendall(request)
        waited, before = [], spent(pair.edge.pid)[1]
        for _ in range(10):
            began = time.monotonic()
            pair.edge.call("GET", "/healthz", timeout=60)
            waited.append(time.monotonic() - began)
        queued = spent(pair.edge.pid)[1] - before
        figures.tell(f"/healthz beside 900 readers: {max(waited):.2f} s ({queued:.2f} s queued)")
        assert max(waited) < 1.0 + queued
        assert sorted(waited)[5] < 0.3 + queued / 5  # behind a slice of each reader it was 2 s
