"""`/ws` and `/v1/stream` notice silence: by any byte, by the path, and by the kind of client."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from websockets.sync.client import ClientConnection, unix_connect
from websockets.typing import Subprotocol

from linkd.api.websocket import ApiWebSocket
from linkd.config import HeartbeatSettings
from linkd.net.linux import path_of
from linkd.net.websocket import ServerProtocol
from linkd.protocol import client as stream
from linkd.protocol.records import EncodedRecord, encode_records
from tests.support.api_calls import Served, reactor, thread
from tests.support.fake_node import KEY

pytestmark = pytest.mark.timing

WATCHED = 5.0
"""Seconds for which a connection is looked at; interval and timeout are 1 s each."""

SLACK = 0.6


@pytest_twisted.async_yield_fixture  # type: ignore[misc]
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    one = Served(tmp_path, origins=("https://app.example",))
    one.api.config = msgspec.structs.replace(
        one.api.config, heartbeat=HeartbeatSettings(ping_interval=1.0, ping_timeout=1.0)
    )
    yield one
    await one.stop()


def opened(served: Served, target: str, local: bool = False, **headers: str) -> socket.socket:
    """Return a socket on which the WebSocket is open, and which nobody answers pings on."""
    if local:
        wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        wire.connect(served.path)
    else:
        wire = socket.create_connection(("127.0.0.1", served.port))
    wire.settimeout(WATCHED)
    lines = [
        f"GET {target} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        f"Authorization: Bearer {KEY}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    wire.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += wire.recv(1)
    assert head.startswith(b"HTTP/1.1 101"), head
    return wire


async def client(served: Served, target: str, local: bool = False, **headers: str) -> socket.socket:
    """Open a WebSocket without holding up the reactor."""
    return await thread(lambda: opened(served, target, local, **headers))


def seconds_open(wire: socket.socket, feed: bytes = b"") -> tuple[float, bytes]:
    """Return how long a connection stays open and what came; blocks for `WATCHED` at most."""
    began, got = time.monotonic(), b""
    wire.settimeout(0.25)
    with wire:
        while (lasted := time.monotonic() - began) < WATCHED:
            try:
                if feed:
                    wire.sendall(feed)
                piece = wire.recv(65_536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not piece:
                break
            got += piece
    return lasted, got


@pytest_twisted.ensureDeferred
async def test_the_kind_of_client_says_how_long_it_may_be_silent(served: Served) -> None:
    """An idle program is cut after interval and timeout; what may be busy is not."""
    page = {"Origin": "https://app.example"}
    stream = {"Sec_WebSocket_Protocol": "linkd.client.1"}
    wires = {
        "program": await client(served, "/ws?channel=idle"),
        "local program": await client(served, "/ws?channel=idle", local=True),
        "patient": await client(served, "/ws?channel=idle&timeout=30"),
        "page": await client(served, "/ws?channel=idle", **page),
        "narrowed page": await client(served, "/ws?channel=idle&timeout=1", **page),
        "stream": await client(served, "/v1/stream", **stream),
        "narrowed stream": await client(served, "/v1/stream?timeout=1.5", **stream),
        "at work": await client(served, "/ws?channel=busy"),
    }
    await served.call("POST", "/v1/channels/busy", b"1")
    watching: dict[str, Deferred[tuple[float, bytes]]] = {
        name: thread(lambda w=wire: seconds_open(w)) for name, wire in wires.items()
    }
    lasted = {name: (await one)[0] for name, one in watching.items()}
    for name, expected in (
        ("program", 2.0),
        ("local program", 2.0),
        ("narrowed page", 2.0),
        ("narrowed stream", 2.5),
    ):
        assert expected - 0.3 <= lasted[name] <= expected + SLACK, (name, lasted)
    for name in ("patient", "page", "stream", "at work"):
        assert lasted[name] >= WATCHED, (name, lasted)


@pytest_twisted.ensureDeferred
async def test_a_setting_counts_for_all_kinds(served: Served) -> None:
    served.api.config = msgspec.structs.replace(
        served.api.config,
        heartbeat=HeartbeatSettings(ping_interval=1.0, ping_timeout=1.0, client_timeout=2.0),
    )
    wires = [
        await client(served, "/ws?channel=idle"),
        await client(served, "/ws?channel=idle", Origin="https://app.example"),
        await client(served, "/ws?channel=idle&timeout=30"),
    ]
    watching = [thread(lambda w=wire: seconds_open(w)) for wire in wires]
    for one in watching:
        assert 2.7 <= (await one)[0] <= 3.0 + SLACK


@pytest_twisted.ensureDeferred
async def test_any_byte_is_life_and_a_message_under_way_is_answered_by_pongs(
    served: Served,
) -> None:
    flowing = await client(served, "/ws?channel=idle")
    flowing.sendall(bytes((0x81, 0xFF)) + (900_000).to_bytes(8, "big") + bytes(4))
    dribbling = await client(served, "/ws?channel=idle")
    dribbling.sendall(bytes((0x81, 0xFE)) + (60_000).to_bytes(2, "big") + bytes(4))
    watching = [
        thread(lambda: seconds_open(flowing, b"x" * 300)),
        thread(lambda: seconds_open(dribbling, b"x")),
    ]
    (flowed, got), (dribbled, _) = [await each for each in watching]
    assert min(flowed, dribbled) >= WATCHED
    assert 3 <= got.count(b"\x8a\x00") <= 6, got  # pongs, once a second


@pytest_twisted.ensureDeferred
async def test_a_message_that_is_being_read_slowly_is_life(served: Served) -> None:
    """A pong waits behind it: that the client reads on is known of its kernel."""
    wire = await client(served, "/ws?channel=large&timeout=1")
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    body = b"x" * 1_000_000

    def publish() -> None:
        for _ in range(12):
            served.fetch("POST", "/v1/channels/large", body, {"Content-Type": "text/plain"})

    await thread(publish)

    def read_slowly() -> float:
        began = time.monotonic()
        with wire:
            while (lasted := time.monotonic() - began) < WATCHED:
                time.sleep(0.1)
                try:
                    if not wire.recv(100_000):
                        break
                except OSError:
                    break
        return lasted

    assert await thread(read_slowly) >= WATCHED
    assert reactor.running


@pytest_twisted.ensureDeferred
async def test_a_page_that_does_not_read_for_a_while_stays_on_a_live_path(served: Served) -> None:
    """The kernel asks a host without room ever more seldom: that was taken for a dead path."""
    wire = await client(served, "/ws?channel=orders", Origin="https://app.example")
    body = b"x" * 900_000
    for _ in range(20):
        assert (await served.call("POST", "/v1/channels/orders", body)).status == 201

    def read_late() -> int:
        time.sleep(9.0)
        got = 0
        with wire:
            while got < 20 * len(body) and (piece := wire.recv(1 << 20)):
                got += len(piece)
        return got

    assert await thread(read_late) >= 20 * len(body)


@pytest_twisted.ensureDeferred
async def test_a_client_that_pauses_within_a_large_message_stays_on_a_live_path(
    served: Served,
) -> None:
    """Nothing was sent to it meanwhile, so its kernel acknowledged nothing: it was reset."""
    wire = await client(served, "/ws?channel=idle", Origin="https://app.example")
    wire.sendall(bytes((0x81, 0xFF)) + (900_000).to_bytes(8, "big") + bytes(4) + b"x" * 10_000)
    lasted, got = await thread(lambda: seconds_open(wire))
    assert lasted >= WATCHED
    assert b"\x8a\x00" in got, "a pong asks for no answer"


@pytest_twisted.ensureDeferred
async def test_a_client_whose_large_message_waits_for_memory_stays_on_a_live_path(
    served: Served,
) -> None:
    wire = await client(served, "/ws?channel=idle", Origin="https://app.example")
    gone = await client(served, "/ws?channel=idle", local=True)
    served.api.budget.held, held = served.api.budget.most, served.api.budget.held
    head = bytes((0x81, 0xFF)) + (900_000).to_bytes(8, "big") + bytes(4)
    for each in (wire, gone):
        each.sendall(head + b"x" * 10_000)
    await thread(lambda: time.sleep(0.5))
    sockets = served.api.websockets.sockets()
    assert [each._resting for each in sockets] == [True, True]
    (local,) = [each for each in sockets if path_of(each.transport) is None]
    gone.close()
    lasted, _ = await thread(lambda: seconds_open(wire))
    assert lasted >= WATCHED
    assert not local.open, "the one that has gone is noticed"
    served.api.budget.held = held


@pytest_twisted.ensureDeferred
async def test_a_client_that_floods_a_stalled_disk_and_reads_nothing_is_held_up_not_cut(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that can't read while it sends was sent 1 MiB of refusals, and cut for them."""
    monkeypatch.setattr("linkd.api.websocket.BUSY_CLIENT_SECONDS", 1.0)
    limits = msgspec.structs.replace(served.node.config.limits, publish_pending_bytes=65_536)
    served.node.config = msgspec.structs.replace(served.node.config, limits=limits)
    log = served.node.log
    log._delayed = True
    count, each = 100_000, 500
    one = encode_records([EncodedRecord(b"x")])
    sent: list[int] = []

    def flood(wire: ClientConnection) -> None:
        wire.send(stream.encode([stream.Open(1, "", "tests")]))
        for first in range(1, count, each):
            publishes = [stream.Publish(n, "ab"[n % 2], 1, one) for n in range(first, first + each)]
            wire.send(stream.encode(publishes))
            sent.append(each)

    def run() -> tuple[int, int]:
        settled = refused = 0
        with (
            unix_connect(
                served.path,
                "ws://localhost/v1/stream",
                subprotocols=[Subprotocol(stream.SUBPROTOCOL)],
                max_size=None,
                max_queue=1,  # it reads nothing that is not asked for
            ) as wire,
            ThreadPoolExecutor() as pool,
        ):
            flooding = pool.submit(flood, wire)
            time.sleep(WATCHED)
            assert 0 < sum(sent) < count, "it is held up"
            reactor.callFromThread(go_on)
            while settled + refused < count:
                for frame in stream.decode_from_daemon(wire.recv(timeout=WATCHED)):
                    if isinstance(frame, stream.PublishFailed):
                        assert frame.error == "too-many"
                        refused += 1
                    elif isinstance(frame, stream.Published):
                        settled += 1
                    elif isinstance(frame, stream.PublishedRun):
                        settled += frame.count
            flooding.result(WATCHED)
        return settled, refused

    def go_on() -> None:
        log._delayed = False
        log.commit()

    settled, refused = await thread(run)
    assert refused > 0
    assert log.next == settled + 1


def test_no_ping_is_sent_while_a_large_message_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package `ws` cut an upload after 300 s: 60 of its answers waited behind the message."""
    sent: list[bytes | None] = []
    monkeypatch.setattr(ServerProtocol, "sendPing", lambda self, payload: sent.append(payload))
    monkeypatch.setattr(ServerProtocol, "sendPong", lambda self: sent.append(None))
    socket = ApiWebSocket()
    socket.clock = Clock()
    socket._confirms.append(b"asked")
    monkeypatch.setattr(ApiWebSocket, "awaited", lambda self: 1 << 20)
    socket.sendPing(b"auto")
    socket.sendPing(b"asked")
    assert sent == [None, b"asked"]
    monkeypatch.setattr(ApiWebSocket, "awaited", lambda self: 0)
    socket.sendPing(b"auto")
    assert sent == [None, b"asked", b"auto"]
