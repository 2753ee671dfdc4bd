"""Each frame and each route of the API at its full size: the loop is never late, the link stays.

The tables below have every frame of `/v1/stream`, every kind of message of `/ws` and every route: a
new one without an entry fails. Each is sent as large and as often as its bounds allow, by clients
that read nothing meanwhile.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect, unix_connect

from linkd.api.routes import ROUTES
from linkd.api.text_frames import Kind
from linkd.protocol import client as stream
from linkd.protocol.records import EncodedRecord, encode_records
from tests.support import figures
from tests.support.pairs import Pair, memory
from tests.support.queueing import spent

pytestmark = pytest.mark.timing

LATE_SECONDS = 0.5
GROWN_BYTES = 300 << 20
CONNECTIONS = 32
PIPELINED = 200
FLOOD_SECONDS = 0.7
"""The lateness is looked at 20 times a second: an iteration that is held shows in the first one."""

ONE = encode_records([EncodedRecord(b"x")])
MEGABYTE = encode_records([EncodedRecord(b"x" * 900_000)])
DEEP = ".*" * 14
LONG = "a" * 255
TINY = 60_000

FromClient = type[stream.FromClient]


def _patterns(number: int) -> tuple[str, ...]:
    """Return 8 KiB of patterns that no other number has."""
    return tuple(f"a.{number}-{j}{DEEP}" for j in range(200))


FRAMES: dict[FromClient, Callable[[], list[list[stream.FromClient]]]] = {
    stream.Open: lambda: [[stream.Open(stream.VERSION, "p" * 128, "s" * 100)] * stream.MAX_FRAMES],
    stream.Publish: lambda: [
        [stream.Publish(n + 1, f"c.{n % 5000}", 1, ONE) for n in range(30_000)],
        [stream.Publish(n + 1, "big", 1, MEGABYTE) for n in range(18)],
        [stream.Publish(1, "tiny", TINY, ONE * TINY)],
        [stream.Publish(1, "million", 2_000_000, ONE * 2_000_000)],
        [
            stream.Publish(
                1, "ids", TINY, ONE * TINY, None, tuple(str(number) for number in range(TINY))
            )
        ],
        [stream.Publish(n + 1, "b" * 255, 1, b"\xc1") for n in range(60_000)],
    ],
    stream.WaitForPeer: lambda: [
        [stream.WaitForPeer(n, "hub", "orders", 2**61, 3600.0) for n in range(stream.MAX_FRAMES)],
        [stream.WaitForPeer(n, LONG, LONG, 1, 1.0) for n in range(30_000)],
    ],
    stream.Subscribe: lambda: [
        [stream.Subscribe(n, _patterns(n), "earliest", "", 1 << 40) for n in range(500)],
        [stream.Subscribe(n, ("a.>",), "latest", "", 1) for n in range(stream.MAX_FRAMES)],
        [stream.Subscribe(n, (LONG,) * 1024, "latest", "", 1) for n in range(60)],
    ],
    stream.Unsubscribe: lambda: [
        [stream.Subscribe(1, (">",), "latest", "", 1), stream.Unsubscribe(1)] * 32_000
    ],
    stream.Credit: lambda: [
        [stream.Subscribe(1, (">",), "earliest", "", 1), *[stream.Credit(1, 2**62)] * 65_000]
    ],
    stream.ConsumerAck: lambda: [
        [
            stream.Subscribe(1, (">",), "earliest", "full-size", 1),
            *[stream.ConsumerAck(1, number) for number in range(65_000)],
        ]
    ],
    stream.WatchStatus: lambda: [
        [stream.WatchStatus()] * stream.MAX_FRAMES,
        [stream.WatchStatus()] * 300_000,
    ],
}


def _told(type_: str, data: Any = None) -> str:
    return json.dumps({"type": type_, "data": data})


TEXTS: dict[str, Callable[[], list[str | bytes]]] = {
    "publish": lambda: [
        b"x" * 1_000_000,
        "[" * 100_000,
        "[" + "[]," * 300_000 + "[]]",
        '{"type":"a","data":"' + "\\u00e4" * 160_000 + '"}',
        *["x"] * 3000,
    ],
    "subscribe": lambda: [_told("subscribe", {"channel": f"a.{n}{DEEP}"}) for n in range(1000)],
    "unsubscribe": lambda: [_told("unsubscribe", {"channel": LONG})] * 3000,
    "ack": lambda: [
        _told("subscribe", {"channel": "a", "subscription": 1, "consumer": "c"}),
        *[_told("ack", {"subscription": 1, "next": n}) for n in range(3000)],
    ],
    "ping": lambda: [_told("ping")] * 3000,
    "pong": lambda: [_told("pong", "x" * 1_000_000), *[_told("pong")] * 3000],
}

BODY = b"x" * 17_000_000
LINES = b"1\n" * 8_000_000
BODIES: dict[tuple[str, str], tuple[str, list[tuple[bytes, bytes]]]] = {
    ("POST", "/v1/channels/{channel}"): (
        "/v1/channels/orders",
        [
            (b"application/octet-stream", BODY),
            (b"application/json", b"[" * 900_000),
            (b"application/json", b"[" + b"[]," * 300_000 + b"[]]"),
            (b"application/x-ndjson", LINES),
        ],
    ),
    ("POST", "/v1/consumers/{name}/ack"): ("/v1/consumers/nobody/ack", [(b"", BODY)]),
    ("POST", "/v1/peers/{name}/resync"): ("/v1/peers/hub/resync", [(b"", BODY)]),
    ("POST", "/v1/peers/{name}/drill"): ("/v1/peers/hub/drill", [(b"", BODY)]),
    ("POST", "/v1/peers/{name}/forget"): ("/v1/peers/nobody/forget", [(b"", BODY)]),
    ("POST", "/v1/consumers/{name}/move"): ("/v1/consumers/nobody/move", [(b"", BODY)]),
    ("POST", "/v1/drain"): ("/v1/drain", [(b"", BODY)]),
    ("POST", "/v1/log/trim"): ("/v1/log/trim", [(b"", BODY)]),
    ("POST", "/v1/pairing/invite"): ("/v1/pairing/invite", [(b"", BODY)]),
    ("POST", "/v1/token"): ("/v1/token", [(b"", BODY), (b"", b"")]),
    ("POST", "/v1/session"): ("/v1/session", [(b"", BODY)]),
    ("DELETE", "/v1/session"): ("/v1/session", [(b"", BODY), (b"", b"")]),
}
TARGETS: dict[tuple[str, str], str] = {
    ("GET", "/v1/channels/{channel}"): "/v1/channels/%3E?limit=10000&from=1",
    ("GET", "/v1/presence/{channel}"): "/v1/presence/orders",
    ("GET", "/v1/peers/{name}/history"): "/v1/peers/hub/history",
    ("GET", "/v1/consumers"): "/v1/consumers",
    ("DELETE", "/v1/consumers/{name}"): "/v1/consumers/nobody",
    ("GET", "/v1/records/{offset}"): "/v1/records/1",
    ("GET", "/v1/status"): "/v1/status",
    ("GET", "/v1/instances"): "/v1/instances",
    ("GET", "/v1/events"): "/v1/events",
    ("GET", "/v1/outages"): "/v1/outages",
    ("GET", "/v1/drain"): "/v1/drain",
    ("DELETE", "/v1/drain"): "/v1/drain",
    ("POST", "/v1/peers/{name}/kick"): "/v1/peers/nobody/kick",
    ("GET", "/v1/pairing/peers"): "/v1/pairing/peers",
    ("POST", "/v1/pairing/peers/{name}/revoke"): "/v1/pairing/peers/nobody/revoke",
    ("GET", "/v1/openapi.json"): "/v1/openapi.json",
    ("GET", "/v1/stream"): "/v1/stream",
    ("GET", "/ws"): "/ws",
    ("GET", "/healthz"): "/healthz",
    ("GET", "/readyz"): "/readyz",
    ("GET", "/metrics"): "/metrics",
    ("GET", "/"): "/",
    ("GET", "/linkd.js"): "/linkd.js",
    ("GET", "/linkd.mjs"): "/linkd.mjs",
    ("GET", "/linkd.d.ts"): "/linkd.d.ts",
    ("GET", "/linkd.d.mts"): "/linkd.d.mts",
    ("GET", "/dashboard/{file}"): "/dashboard/dashboard.js",
}


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A pair whose edge has 20 MB of records in its log, some of them small."""
    with Pair() as one:
        with unix_connect(
            str(one.edge.socket),
            "ws://localhost/v1/stream",
            subprotocols=[stream.SUBPROTOCOL],  # type: ignore[list-item]
        ) as client:
            client.send(stream.encode([stream.Open(stream.VERSION, "", "full size")]))
            client.send(
                stream.encode([stream.Publish(n + 1, "big", 1, MEGABYTE) for n in range(18)])
            )
            some = encode_records([EncodedRecord(b"x" * 20)] * 1000)
            client.send(
                stream.encode([stream.Publish(n + 50, "small", 1000, some) for n in range(20)])
            )
            time.sleep(1.0)
        yield one


@contextlib.contextmanager
def watched(pair: Pair, what: str) -> Iterator[None]:
    """Hold what happens meanwhile against the bars: lateness, the link, memory.

    Time in which the daemon waited for a processor is not its own.
    """
    edge, over = pair.edge, threading.Event()
    late: list[float] = []
    before, waited = memory(edge), spent(edge.pid)[1]

    def look() -> None:
        while not over.wait(0.05):
            began = time.monotonic()
            told = edge.call("GET", "/healthz", timeout=60)
            late.append(max(time.monotonic() - began, told["late_seconds"]))

    watcher = threading.Thread(target=look)
    watcher.start()
    most = 0
    try:
        yield
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            most = max(most, memory(edge))
            time.sleep(0.05)
    finally:
        over.set()
        watcher.join()
    queued = spent(edge.pid)[1] - waited
    figures.tell(
        f"{what}: late {max(late):.3f} s (without a processor {queued:.2f} s),"
        f" memory {(most - before) / 1e6:+.0f} MB"
    )
    assert max(late) < LATE_SECONDS + queued
    assert most - before < GROWN_BYTES
    assert edge.link("hub")["state"] == "up"
    assert not [line for line in edge.lines if line.fields.get("event") == "node.internal-error"]


def test_the_tables_have_every_frame_and_every_route() -> None:
    assert set(FRAMES) == set(get_args(stream.FromClient))
    assert set(TEXTS) == set(get_args(Kind))
    assert {(one.method, one.path) for one in ROUTES} == {*BODIES, *TARGETS}


def message_of(frames: list[stream.FromClient]) -> bytes:
    """Return one message of these frames, or of as many as it takes."""
    encoded = [stream.encode_frame(frame) for frame in frames]
    message = stream.join(encoded, len(encoded))
    while len(message) > stream.MAX_MESSAGE_BYTES:
        encoded = encoded[: len(encoded) * 9 // 10]
        message = stream.join(encoded, len(encoded))
    return message


@pytest.mark.parametrize("kind", FRAMES, ids=lambda kind: kind.__name__)
def test_a_frame_at_its_full_size(pair: Pair, kind: FromClient) -> None:
    messages = [message_of(frames) for frames in FRAMES[kind]()]
    for message in messages:
        with (
            watched(pair, f"{kind.__name__}, {len(message)} bytes"),
            unix_connect(
                str(pair.edge.socket),
                "ws://localhost/v1/stream",
                subprotocols=[stream.SUBPROTOCOL],  # type: ignore[list-item]
                compression=None,
                max_size=1 << 26,
                close_timeout=0.1,
            ) as client,
        ):
            client.send(stream.encode([stream.Open(stream.VERSION, "", "full size")]))
            send_all(client, [message])


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_frame_at_its_full_size(pair: Pair, kind: str) -> None:
    with (
        watched(pair, f"/ws {kind}"),
        connect(
            f"ws://127.0.0.1:{pair.port}/ws?channel=texts",
            compression=None,
            close_timeout=0.1,
            max_size=1 << 26,
        ) as client,
    ):
        send_all(client, TEXTS[kind]())


def send_all(client: Any, messages: list[Any]) -> None:
    """Send messages for a moment; what answers is not read."""
    sender = threading.Thread(target=_send, args=(client, messages), daemon=True)
    sender.start()
    sender.join(FLOOD_SECONDS)


def _send(client: Any, messages: list[Any]) -> None:
    with contextlib.suppress(ConnectionClosed, OSError):
        for message in messages:
            client.send(message)


def flood(pair: Pair, request: bytes, times: int, connections: int) -> None:
    """Send a request many times over many connections that read little and late.

    The last one asks for the connection's end, so that a quick route is waited for no longer.
    """
    sockets = []
    for _ in range(connections):
        one = socket.create_connection(("127.0.0.1", pair.port))
        one.settimeout(3.0)
        sockets.append(one)
    last = request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    content = request * (times - 1) + last
    threads = [threading.Thread(target=_flood, args=(one, content)) for one in sockets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in sockets:
        one.close()


def _flood(one: socket.socket, content: bytes) -> None:
    end = time.monotonic() + FLOOD_SECONDS
    with contextlib.suppress(OSError):
        one.sendall(content)
    with contextlib.suppress(OSError):
        while (left := end - time.monotonic()) > 0:
            one.settimeout(left)
            if not one.recv(1 << 20):
                break


@pytest.mark.parametrize("route", [*TARGETS, *BODIES], ids=" ".join)
def test_a_route_at_its_full_size(pair: Pair, route: tuple[str, str]) -> None:
    method, path = route
    head = b"Host: 127.0.0.1:%d\r\n" % pair.port
    if route in TARGETS:
        request = f"{method} {TARGETS[route]} HTTP/1.1\r\n".encode() + head + b"\r\n"
        with watched(pair, f"{method} {path}"):
            flood(pair, request, PIPELINED, CONNECTIONS)
        return
    target, bodies = BODIES[route]
    for kind, body in bodies:
        more = b"Content-Type: %b\r\n" % kind if kind else b""
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        request = f"{method} {target} HTTP/1.1\r\n".encode() + head + more + length + body
        with watched(pair, f"{method} {path} {kind.decode()} {len(body)} bytes"):
            flood(pair, request, 1 if body else PIPELINED, 4 if body else CONNECTIONS)


def begin_message(pair: Pair, size: int) -> tuple[socket.socket, int]:
    """Open a stream, and send all but 100 bytes of one message, unless it is not read.

    Return its socket, and how many bytes are left to send.
    """
    one = socket.create_connection(("127.0.0.1", pair.port))
    key = base64.b64encode(bytes(16))
    one.sendall(
        b"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n"
        b"Sec-WebSocket-Protocol: linkd.client.1\r\n\r\n" % (pair.port, key)
    )
    assert b" 101 " in one.recv(4096)
    one.settimeout(0.2)
    content = memoryview(b"\x82\xff" + size.to_bytes(8, "big") + bytes(4) + bytes(size - 100))
    left = len(content)
    with contextlib.suppress(TimeoutError):
        while left:
            left -= one.send(content[-left:])
    return one, left + 100


def test_messages_that_have_come_in_part_are_bounded_together(pair: Pair) -> None:
    with watched(pair, "40 messages of 17 MiB in part"), contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(begin_message(pair, stream.MAX_MESSAGE_BYTES)[0])
        assert pair.edge.call("POST", "/v1/channels/orders", b"1", timeout=5)["count"] == 1


def test_a_message_that_waited_for_room_is_taken_once_there_is(pair: Pair) -> None:
    with contextlib.ExitStack() as stack:
        begun = [begin_message(pair, stream.MAX_MESSAGE_BYTES)[0] for _ in range(12)]
        for one in begun:
            stack.enter_context(one)
        last, left = begin_message(pair, stream.MAX_MESSAGE_BYTES)
        stack.enter_context(last)
        for one in begun:
            one.close()
        last.settimeout(20)
        last.sendall(bytes(left))
        answer = last.recv(1000)  # what it sent is no array of frames
        assert b"malformed" in answer


def test_pages_that_nobody_reads_are_bounded_together(pair: Pair) -> None:
    request = b"GET /v1/channels/%%3E?from=1&limit=10000 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n"
    with watched(pair, "60 pages of 16 MiB unread"), contextlib.ExitStack() as stack:
        for _ in range(60):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", pair.port))
            stack.enter_context(one)
            one.sendall(request % pair.port)
        time.sleep(3.0)
        assert pair.edge.call("POST", "/v1/channels/orders", b"1", timeout=5)["count"] == 1
