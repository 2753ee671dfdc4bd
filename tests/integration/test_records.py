"""Records with every form that a log may hold, through a link and to every reader and client."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.sync.client import ClientConnection, unix_connect
from websockets.typing import Subprotocol

import linkd.client
from linkd.protocol import client as stream
from linkd.protocol.records import (
    MAX_BATCH_BYTES,
    EncodedRecord,
    NewRecords,
    encode_records,
    read_records,
)
from tests.support.daemon import Daemon
from tests.support.duo import Duo, run, until
from tests.support.logs import SegmentBench, append
from tests.support.needs import need
from tests.support.unix_http import UnixConnection

WORD = "é" * 255
HEADERS = {f"x-{number}": WORD for number in range(16)}
ACCEPTED = [
    EncodedRecord(b""),
    EncodedRecord(b"plain", headers={"trace-id": "7", "empty": ""}),
    EncodedRecord(b"{bad json", WORD, "", "application/json", HEADERS),
    EncodedRecord(b"[" * 900 + b"]" * 900, "", "", "application/json"),
    EncodedRecord(b"[" * 60 + b"]" * 60, "", "", "application/json"),
    EncodedRecord(b"\xff\x00", "line\nend\r\n\x00", "", "no type\r\nX: y"),
    EncodedRecord(b'"\\ud800"', "<script>", "", "application/json"),
    EncodedRecord(b"\xc1" * 100_000, "large"),
]
"""What `/v1/stream` takes."""

DEEP = b"\x91" * 981 + b"\xc0"
UNREADABLE = [DEEP, b"\x05", b"\x91\x01", b"{", msgspec.msgpack.encode([b"", "x" * 256])]
"""What no ingress takes, and an older or newer version may have put into a log."""


class Client:
    """A client of `/v1/stream`."""

    def __init__(self, wire: ClientConnection) -> None:
        self.wire = wire
        self.sequence = 0
        self.heard: list[stream.FromDaemon] = []
        self.send(stream.Open(1))
        self.hear()

    def send(self, frame: stream.FromClient) -> None:
        self.wire.send(stream.encode((frame,)))

    def hear(self) -> stream.FromDaemon:
        while not self.heard:
            got = self.wire.recv(timeout=10)
            assert isinstance(got, bytes)
            self.heard += stream.decode_from_daemon(got)
        return self.heard.pop(0)

    def publish(self, records: bytes, count: int = 1, channel: str = "orders") -> Any:
        self.sequence += 1
        self.send(stream.Publish(self.sequence, channel, count, records))
        return self.hear()


@contextmanager
def client_of(daemon: Daemon) -> Iterator[Client]:
    with unix_connect(
        str(daemon.socket),
        "ws://localhost/v1/stream",
        subprotocols=[Subprotocol(stream.SUBPROTOCOL)],
        max_size=1 << 26,
    ) as wire:
        yield Client(wire)


@pytest.fixture(scope="module")
def duo() -> Iterator[Duo]:
    """Two linked daemons; the edge's log has what can't be read among what can."""
    with Duo(
        '[[channel]]\nname = "live"\ndelivery = "volatile"\n[log]\nmax_body_bytes = 1048576\n'
    ) as pair:
        small = pair.hub.config_file.read_text()
        pair.hub.config_file.write_text(small.replace("1048576", "1024"))
        pair.start()
        pair.edge.stop()
        bench = SegmentBench(pair.edge.directory / "state" / "log")
        bench.wall[0] = time.time()
        good = encode_records((EncodedRecord(b"good"),))
        for one in UNREADABLE:
            append(bench, NewRecords("odd", 3, good + one + good, time.time()))
        append(bench, NewRecords("odd", 1, DEEP, time.time()))
        bench.close()
        pair.edge.start()
        pair.joined()
        yield pair


EXPECTED = [record for one in UNREADABLE for record in (b"good", one, b"good")] + [DEEP]


def objects(page: list[Any]) -> list[tuple[bool, bytes]]:
    """Return of records shown as JSON whether they are unreadable, and their bytes."""
    return [
        (one.get("unreadable", False), base64.b64decode(one["base64"]))
        if "base64" in one
        else (False, one["text"].encode())
        for one in page
    ]


MARKED = [(one != b"good", one) for one in EXPECTED]


def test_what_can_not_be_read_passes_the_link_and_reaches_every_reader(duo: Duo) -> None:
    odd = "/v1/channels/odd?from=earliest&limit=1000"
    until(lambda: len(duo.hub.call("GET", odd)["records"]) == len(EXPECTED))
    assert not duo.edge.link("hub")["backlog_records"]
    for daemon in (duo.edge, duo.hub):
        assert objects(daemon.call("GET", odd)["records"]) == MARKED
        page = daemon.call("GET", odd)["records"]
        assert exact(daemon, page[1]["offset"]) == (DEEP, "true")
        assert exact(daemon, page[0]["offset"]) == (b"good", None)
        assert events(daemon, len(EXPECTED)) == MARKED
        for query in ("", "&envelope=1"):
            assert frames(daemon, query, len(EXPECTED)) == MARKED
        assert asyncio.run(python(daemon, "odd", len(EXPECTED))) == MARKED
        words = ("subscribe", "odd", "--from", "earliest", "--count", str(len(EXPECTED)))
        lines = run(daemon, *words, "--json", "--consumer", "c1").stdout.splitlines()
        assert objects([json.loads(line) for line in lines]) == MARKED
        lines = run(daemon, *words).stdout.splitlines()
        assert ["(unreadable:" in line for line in lines] == [mark for mark, _ in MARKED]
    assert not list(duo.hub.matching(event="link.waiting", reason="protocol"))
    assert duo.edge.link("hub")["state"] == "up"


def exact(daemon: Daemon, offset: int) -> tuple[bytes, str | None]:
    """Return the bytes of one record, and whether they are marked."""
    connection = UnixConnection(str(daemon.socket), 5.0)
    connection.request("GET", f"/v1/records/{offset}")
    answer = connection.getresponse()
    assert answer.status == 200
    body = answer.read()
    connection.close()
    return body, answer.getheader("Linkd-Unreadable")


def events(daemon: Daemon, count: int) -> list[tuple[bool, bytes]]:
    """Follow `odd` as an event stream."""
    need("curl")
    command = ["curl", "-sN", "--unix-socket", str(daemon.socket), "-HAccept: text/event-stream"]
    url = "http://localhost/v1/channels/odd?from=earliest"
    found: list[Any] = []
    with subprocess.Popen([*command, url], stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        for line in curl.stdout:
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
            if len(found) == count:
                break
        curl.kill()
    return objects(found)


def frames(daemon: Daemon, query: str, count: int) -> list[tuple[bool, bytes]]:
    """Follow `odd` over `/ws`."""
    url = f"ws://localhost/ws?channel=odd&from=earliest{query}"
    found: list[tuple[bool, bytes]] = []
    with unix_connect(str(daemon.socket), url) as wire:
        for _ in range(count):
            got = wire.recv(timeout=10)
            assert isinstance(got, str)
            if got == "good":
                found.append((False, b"good"))
                continue
            one = json.loads(got)
            if "data" in one:
                one["text"] = one["data"]
            found += objects([one])
    return found


async def python(daemon: Daemon, channel: str, count: int) -> list[tuple[bool, bytes]]:
    """Follow with the Python client."""
    found: list[tuple[bool, bytes]] = []
    async with asyncio.timeout(20), linkd.client.connect(daemon.socket) as node:
        async for record in node.subscribe(channel, start="earliest"):
            assert isinstance(record.data, bytes)
            found.append((record.unreadable, record.body))
            if len(found) == count:
                break
    return found


def test_what_no_reader_could_read_is_refused_at_every_ingress(duo: Duo) -> None:
    heads = (b"", b"\x95\xc4\x00\xa0\xa0\xa0", b"\x96\xc4\x00\xa0\xa0\xa0\xc0")
    deep = [head + b"\x91" * n + b"\xc0" for n in range(1001, 1, -50) for head in heads]
    with client_of(duo.edge) as client:
        for one in deep + UNREADABLE:
            answer = client.publish(one)
            assert isinstance(answer, stream.PublishFailed)
            assert answer.error == "malformed"
        assert isinstance(client.publish(encode_records(ACCEPTED[:1]), 2), stream.PublishFailed)
    assert duo.edge.link("hub")["state"] == "up"


def test_what_ingress_takes_passes_the_link_and_reaches_every_reader(duo: Duo) -> None:
    with client_of(duo.edge) as client:
        for record in ACCEPTED:
            assert isinstance(client.publish(encode_records((record,))), stream.Published)
    path = "/v1/channels/orders?from=earliest&limit=1000"
    until(lambda: len(duo.hub.call("GET", path)["records"]) == len(ACCEPTED))
    for daemon in (duo.edge, duo.hub):
        found = daemon.call("GET", path)["records"]
        assert [one.get("headers") for one in found] == [one.headers for one in ACCEPTED]
        assert [one["type"] or "" for one in found] == [one.type for one in ACCEPTED]
        for one, record in zip(found, ACCEPTED, strict=True):
            assert exact(daemon, one["offset"]) == (record.body, None)
        with client_of(daemon) as reader:
            reader.send(stream.Subscribe(1, ("orders",), "earliest", "", 1 << 30))
            got: list[EncodedRecord] = []
            while len(got) < len(ACCEPTED):
                frame = reader.hear()
                if isinstance(frame, stream.Deliver):
                    got += read_records(frame.records, frame.count)
        assert got == ACCEPTED
        words = ("subscribe", "orders", "--from", "earliest", "--count", str(len(ACCEPTED)))
        lines = run(daemon, *words, "--json").stdout.splitlines()
        assert [json.loads(line) for line in lines] == found
        assert len(run(daemon, *words).stdout.splitlines()) == len(ACCEPTED)


@pytest.fixture
def hub(duo: Duo) -> Iterator[Client]:
    with client_of(duo.hub) as client:
        yield client


def test_headers_come_from_every_publisher_to_every_reader(duo: Duo, hub: Client) -> None:
    given = {"trace-id": "7 é", "empty": ""}
    hub.send(stream.Subscribe(1, ("notes",), "latest", "", 1 << 30))
    hub.hear()
    heard: list[dict[str, str] | None] = []

    def arrived(count: int) -> None:
        while len(heard) < count:
            frame = hub.hear()
            if isinstance(frame, stream.Deliver):
                heard.extend(one.headers for one in read_records(frame.records, frame.count))

    connection = UnixConnection(str(duo.edge.socket), 5.0)
    over_http = {f"Linkd-Header-{name}": value.encode() for name, value in given.items()}
    connection.request("POST", "/v1/channels/notes", b"1", over_http)  # type: ignore[arg-type]
    assert connection.getresponse().read().startswith(b'{"offset"')
    arrived(1)
    lines = over_http | {"Content-Type": b"application/x-ndjson"}
    connection.request("POST", "/v1/channels/notes", b"1\n2\n", lines)  # type: ignore[arg-type]
    assert connection.getresponse().read().startswith(b'{"offset"')
    arrived(3)
    for wrong in ({f"Linkd-Header-{n}": "" for n in range(17)}, {"Linkd-Header-a_b": ""}):
        connection.request("POST", "/v1/channels/notes", b"1", wrong)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]) == (400, "malformed")
    connection.close()
    run(duo.edge, "publish", "notes", "4", "--header", "Trace-Id=7 é", "--header", "empty=")
    arrived(4)
    with unix_connect(str(duo.edge.socket), "ws://localhost/ws?channel=notes") as wire:
        wire.send(json.dumps({"type": "t", "data": 5, "headers": given}))
        assert json.loads(wire.recv(timeout=5))["headers"] == given
        arrived(5)
        wire.send(json.dumps({"type": "t", "data": 5, "headers": {"a": "\n"}, "id": "x"}))
        assert json.loads(wire.recv(timeout=5))["data"]["error"] == "malformed"
        nested = {"type": "t", "data": 6, "headers": {"a": {}}}
        wire.send(json.dumps(nested))
        assert json.loads(wire.recv(timeout=5)) == nested
        arrived(6)

    async def client() -> None:
        async with asyncio.timeout(20), linkd.client.connect(duo.edge.socket) as node:
            await node.publish("notes", 7, headers={"Trace-Id": "7 é", "empty": ""})
            await node.publish("notes", 8, headers=given, id="once")
            await node.publish_many("notes", [9, 10], headers=given)
            records = node.subscribe("notes", start="earliest")
            found = [await anext(records) for _ in range(10)]
            assert [dict(one.headers) for one in found] == [given] * 5 + [{}] + [given] * 4
            assert json.loads(found[0].to_json())["headers"] == given

    asyncio.run(client())
    arrived(10)
    assert heard == [given] * 5 + [None] + [given] * 4
    printed = run(duo.hub, "subscribe", "notes", "--from", "earliest", "--count", "1").stdout
    assert "{trace-id=7 é empty=}" in printed


@pytest.mark.parametrize("ttl", [0.0, -1.0, math.nan, math.inf, -math.inf, 1e300, 1.0000001e9])
def test_a_ttl_out_of_range_is_an_error_of_its_publish(duo: Duo, ttl: float) -> None:
    one = encode_records((EncodedRecord(b""),))
    with client_of(duo.edge) as client:
        client.send(stream.Publish(1, "lives", 1, one, ttl))
        assert isinstance(client.hear(), stream.PublishFailed)
        client.send(stream.Publish(2, "lives", 1, one, 1e9))
        assert isinstance(client.hear(), stream.Published)


def test_a_channel_or_an_id_out_of_bounds_is_an_error_of_its_publish(duo: Duo) -> None:
    with client_of(duo.edge) as client:
        answer = client.publish(encode_records((EncodedRecord(b""),)), channel="x" * 300)
        assert isinstance(answer, stream.PublishFailed)
        assert answer.error == "malformed"
        long = encode_records((EncodedRecord(b"", id="x" * 256),))
        client.send(stream.Publish(9, "lives", 1, long, None, ("x" * 256,)))
        assert isinstance(client.hear(), stream.PublishFailed)


def test_a_volatile_message_never_ends_a_link(duo: Duo, hub: Client) -> None:
    """One of 200,000 bytes was sent to a peer, which takes 131,072, and closed with 1009."""
    hub.send(stream.Subscribe(1, ("live",), "latest", "", 1 << 30))
    hub.hear()
    connection = UnixConnection(str(duo.edge.socket), 5.0)
    heard = sent = 0
    for size, status in ((1000, 201), (126_000, 201), (200_000, 413), (1_000_000, 413)):
        connection.request("POST", "/v1/channels/live", bytes(size))
        answer = connection.getresponse()
        assert answer.status == status, answer.read()
        answer.read()
        sent += status == 201
    lines = b"".join([b"%d\n" % number for number in range(4_000)])
    connection.request("POST", "/v1/channels/live", lines, {"Content-Type": "application/x-ndjson"})
    assert connection.getresponse().status == 201
    connection.close()
    while heard < sent + 4_000:
        frame = hub.hear()
        if isinstance(frame, stream.DeliverVolatile):
            assert frame.count == 1 or len(frame.records) <= MAX_BATCH_BYTES
            heard += frame.count
    assert duo.edge.link("hub")["attempts"] <= 2
    assert not list(duo.edge.matching(event="link.waiting", reason="protocol"))


def test_a_record_above_the_bound_of_a_receiver_reaches_its_readers(duo: Duo) -> None:
    """The hub takes bodies of 1 KiB; its `/ws` sent no message of more than 66,560 bytes."""
    body, noise = "\x01" * 1_048_576, b"\xff" * 1_048_576
    for one, kind in ((body.encode(), "text/plain"), (noise, "application/octet-stream")):
        duo.edge.call("POST", "/v1/channels/large", one, kind)
    path = "/v1/channels/large?from=earliest"
    until(lambda: len(duo.hub.call("GET", path)["records"]) == 2)
    for daemon in (duo.edge, duo.hub):
        for envelope in ("&envelope=1", ""):
            url = f"ws://localhost/ws?channel=large&from=earliest{envelope}"
            with unix_connect(str(daemon.socket), url, max_size=None) as wire:
                first, second = wire.recv(timeout=10), wire.recv(timeout=10)
            if not envelope:
                assert (first, second) == (body, noise)
                continue
            assert json.loads(first)["data"] == body
            assert base64.b64decode(json.loads(second)["base64"]) == noise
        lines = run(daemon, "subscribe", "large", "--from", "earliest", "--count", "2", "--json")
        assert len(lines.stdout.splitlines()) == 2
        offset = daemon.call("GET", path)["records"][1]["offset"]
        assert exact(daemon, offset) == (noise, None)


def test_a_log_of_the_version_before_is_read(tmp_path: Path) -> None:
    """Records of four items, as they were written before there were headers."""
    bench = SegmentBench(tmp_path)
    old = msgspec.msgpack.encode([b"x", "t", "i", "text/plain"])
    append(bench, NewRecords("orders", 2, old + old, 1.0))
    bench.restart()
    found: list[Any] = []
    bench.log.fetch(1, 1000, found.append)
    bench.until(lambda: found)
    ((batch,),) = found
    assert (
        list(read_records(batch.records, batch.count))
        == [EncodedRecord(b"x", "t", "i", "text/plain")] * 2
    )
    bench.close()
