"""Whatever a stranger sends is closed with a reason, counted, and touches no other link."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.logger import LogLevel, globalLogPublisher

from linkd.config import PeerSettings
from linkd.errors import Unavailable
from linkd.net.auth import Nonces, prove
from linkd.net.dialer import DialerContext, LinkDialer
from linkd.net.listener import Listener
from linkd.protocol.peer import Ack, Generation, Goodbye, encode
from tests.support.net_lab import (
    SECRET,
    Link,
    Nodes,
    greeting,
    secret_file,
    settings,
    threaded_resolver,
)
from tests.support.queueing import OwnTime

reactor: Any = global_reactor


class Raw(Protocol):
    """A TCP connection that a test speaks over."""

    def __init__(self) -> None:
        self.heard = b""
        self.closed: Deferred[bytes] = Deferred()
        self.wanted: tuple[bytes, Deferred[bytes]] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        if self.wanted is not None and self.wanted[0] in self.heard:
            wanted, self.wanted = self.wanted, None
            wanted[1].callback(self.heard)

    def connectionLost(self, reason: Any = None) -> None:
        self.closed.callback(self.heard)

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self.transport.write(data)  # type: ignore[union-attr]

    def until(self, what: bytes) -> Deferred[bytes]:
        """Return all that was heard, once `what` is in it."""
        waiter: Deferred[bytes] = Deferred()
        if what in self.heard:
            waiter.callback(self.heard)
        else:
            self.wanted = (what, waiter)
        return waiter.addTimeout(5, reactor)


class Hub:
    """A listener with one good link, and strangers."""

    def __init__(self, directory: Path, **limits: Any) -> None:
        secret = secret_file(directory)
        self.edge, self.other = Link("hub", "edge", 5.0), Link("hub", "other", 5.0)
        self.near = Link("edge", "hub")
        self.nodes = Nodes(
            "hub",
            {
                "edge": (PeerSettings(name="edge", secret_file=secret), self.edge),
                "other": (PeerSettings(name="other", secret_file=secret), self.other),
            },
        )
        self.listener = Listener(self.nodes, settings(**limits), reactor)
        self.listener.start()
        peer = PeerSettings(
            name="hub",
            dial=(f"ws://127.0.0.1:{self.listener.port_number}/link",),
            secret_file=secret,
        )
        origin = DialerContext("edge", "boot", reactor, threaded_resolver(reactor))
        self.dialer = LinkDialer(self.near, peer, origin, 2.0)
        self.raws: list[Raw] = []
        self.lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.lines.append)

    async def link_up(self) -> None:
        """Bring the good link up."""
        self.dialer.dial(0.0)
        await self.near.until("greeted", reactor)

    async def raw(self) -> Raw:
        """Connect a stranger."""
        made = Raw()
        self.raws.append(made)
        ready: Deferred[None] = Deferred()
        made.connectionMade = lambda: ready.callback(None)  # type: ignore[method-assign]
        factory: Any = ClientFactory()
        factory.noisy = False
        factory.buildProtocol = lambda _: made
        reactor.connectTCP("127.0.0.1", self.listener.port_number, factory)
        await ready.addTimeout(5, reactor)
        return made

    async def upgraded(self, name: str = "other") -> Raw:
        """Connect someone who knows the secret, up to the hello."""
        raw = await self.raw()
        raw.write(upgrade(name, await nonce(raw)))
        await raw.until(b"101 Switching")
        await raw.until(b"\r\n\r\n")
        return raw

    async def closed(self, raw: Raw, reason: str) -> dict[str, Any]:
        """Wait until a stranger is gone; return the line that says why."""
        await raw.closed.addTimeout(8, reactor)
        lines = [each for each in self.lines if each.get("event") == "connection.refused"]
        assert lines, [each.get("event") for each in self.lines]
        assert lines[-1]["reason"] == reason, lines[-1]
        assert lines[-1]["detail"]
        assert lines[-1]["address"].startswith("127.0.0.1:")
        assert self.listener.refusals[reason] == len(lines)
        return lines[-1]

    async def unharmed(self) -> None:
        """The good link still talks, nothing was logged as a failure, nothing waits for a hello."""
        self.near.connections[0].send(encode(Ack(1)))
        await self.edge.until("received", reactor)
        assert self.near.losses == self.edge.losses == []
        assert self.other.connections == []
        assert [each for each in self.lines if "log_failure" in each] == []
        assert [each for each in self.lines if each["log_level"] == LogLevel.critical] == []
        assert self.listener.admission.pending == 0

    def end(self) -> Any:
        """End all of it."""
        globalLogPublisher.removeObserver(self.lines.append)
        self.dialer.stop()
        for raw in self.raws:
            if raw.transport is not None:
                raw.transport.abortConnection()  # type: ignore[attr-defined]
        for link in (self.near, self.edge, self.other):
            for connection in link.connections:
                connection.abort("stopped", "the test is over")
        return self.listener.stop()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Return a hub, ended behind the test."""
    made = Hub(tmp_path, hello_timeout=1.0)
    yield made
    pytest_twisted.blockon(made.end())


async def nonce(raw: Raw, path: str = "/token") -> str:
    """Fetch a nonce."""
    raw.write(f"POST {path} HTTP/1.1\r\nHost: hub\r\nContent-Length: 0\r\n\r\n".encode())
    heard = await raw.until(b"}")
    raw.heard = b""
    return str(json.loads(heard.split(b"\r\n\r\n", 1)[1])["nonce"])


def upgrade(name: str, given: str, **changes: str) -> bytes:
    """Return an upgrade request of a node that knows the secret."""
    headers = {
        "Host": "hub:9443",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "linkd.1",
        "Linkd-Node": name,
        "Linkd-Nonce": given,
        "Linkd-Proof": prove(SECRET.encode(), "dialer", name, "hub", given),
    }
    path = changes.pop("path", "/link")
    headers.update({key.replace("_", "-"): value for key, value in changes.items()})
    lines = [
        f"GET {path} HTTP/1.1",
        *(f"{key}: {value}" for key, value in headers.items() if value),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def frame(payload: bytes, first: int = 0x82) -> bytes:
    """Return a masked frame, the mask being zeros."""
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65_536:
        head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x17\x03\x01 garbage of some kind\r\n\r\n", b"400"),
        (b"\x00\xff" * 9000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 4000, b"431"),
        (b"GET /link HTTP/1.0\r\nHost: hub\r\n\r\n", b"505"),
        (b"DELETE /link HTTP/1.1\r\nHost: hub\r\n\r\n", b"405"),
        (b"GET /link HTTP/1.1\r\nHost: hub\r\n\r\n", b"426"),
        (b"GET /?redirect=http://evil.example HTTP/1.1\r\nHost: hub\r\n\r\n", b"426"),
        (b"POST /token HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /token HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"400"),
        (b"POST /token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST /elsewhere HTTP/1.1\r\nHost: hub\r\n\r\n", b"404"),
        (b"POST /token HTTP/1.1\r\n bad\r\n\r\n", b"400"),
        (b"POST /token HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", b"400"),
        (b"POST /token HTTP/1.1\r\nHost: h\r\n\r\n" * 9, b"400"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_bytes_that_are_no_request(hub: Hub, sent: bytes, status: bytes) -> None:
    await hub.link_up()
    raw = await hub.raw()
    raw.write(sent)
    await hub.closed(raw, "protocol")
    assert b"HTTP/1.1 " + status in raw.heard
    assert b"evil" not in raw.heard
    await hub.unharmed()


@pytest.mark.parametrize(
    ("name", "changes", "status", "reason"),
    [
        ("other", {"Sec_WebSocket_Protocol": "linkd.9"}, 400, "protocol"),
        ("other", {"Sec_WebSocket_Protocol": ""}, 400, "protocol"),
        ("other", {"path": "/elsewhere"}, 404, "protocol"),
        ("other", {"path": "/link/elsewhere"}, 404, "protocol"),
        ("other", {"path": "/elsewhere?path=/link"}, 404, "protocol"),
        ("other", {"Sec_WebSocket_Version": "7"}, 400, "protocol"),
        ("stranger", {}, 403, "rejected"),
        ("hub", {}, 403, "rejected"),
        ("", {}, 403, "rejected"),
        ("other", {"Linkd_Proof": "0" * 64}, 401, "rejected"),
        ("other", {"Linkd_Proof": ""}, 401, "rejected"),
        ("other", {"Linkd_Nonce": "made-up"}, 401, "rejected"),
        ("other", {"Linkd_Nonce": Nonces().issue(1.0, "192.0.2.1")}, 503, "rejected"),
        ("other", {"Linkd_Nonce": ""}, 401, "rejected"),
        ("other", {"Linkd_Peer": "hub\vX: y"}, 400, "protocol"),
        ("other", {"Linkd_Peer": "hub\rX: y"}, 400, "protocol"),
        ("other", {"Linkd_Peer": "hub\nOrigin: y"}, 400, "protocol"),
        ("other", {"User_Agent": "\0"}, 400, "protocol"),
        ("", {"Connection": "x, Upgrade", "X": "\x85Linkd-Node: other"}, 403, "rejected"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_upgrades_that_are_refused(
    hub: Hub, name: str, changes: dict[str, str], status: int, reason: str
) -> None:
    await hub.link_up()
    raw = await hub.raw()
    raw.write(upgrade(name, await nonce(raw), **changes))
    line = await hub.closed(raw, reason)
    assert re.match(rb"HTTP/1\.1 %d " % status, raw.heard), raw.heard
    assert SECRET not in str(line)
    await hub.unharmed()


@pytest_twisted.ensureDeferred
async def test_a_proxy_may_share_a_connection_and_a_path_between_dialers(hub: Hub) -> None:
    """It sends a few requests for nonces over one connection, then an upgrade or none."""
    await hub.link_up()
    first = await hub.raw()
    given = [await nonce(first, "/linkd/token") for _ in range(4)]
    assert len(set(given)) == 4
    await first.closed.addTimeout(5, reactor)
    second = await hub.raw()
    second.write(upgrade("other", given[0], path="/linkd/link"))
    await second.until(b"101 Switching")
    assert [line for line in hub.lines if line.get("event") == "connection.refused"] == []


@pytest_twisted.ensureDeferred
async def test_a_nonce_serves_once(hub: Hub) -> None:
    await hub.link_up()
    first = await hub.raw()
    given = await nonce(first)
    first.write(upgrade("other", given))
    await first.until(b"101 Switching")
    first.transport.abortConnection()  # type: ignore[union-attr]
    await first.closed.addTimeout(5, reactor)
    second = await hub.raw()
    second.write(upgrade("other", given))
    await second.closed.addTimeout(5, reactor)
    assert second.heard.startswith(b"HTTP/1.1 401 ")
    assert b"used before" in second.heard
    await hub.unharmed()


HELLO = greeting("other", Generation("b", 1))
BAD_HELLOS = {
    "of another name": frame(encode(greeting("edge", Generation("b", 1)))),
    "another message first": frame(encode(Ack(1))),
    "a goodbye first": frame(encode(Goodbye("stopped"))),
    "no msgpack": frame(b"\xc1 nothing"),
    "text": frame(b"hello", 0x81),
    "unknown tag": frame(b"\x91\xa5other"),
    "too big": frame(encode(HELLO) + bytes(70_000)),
    "far too big": frame(bytes(10))[:1] + b"\xff" + (2**40).to_bytes(8, "big") + bytes(4),
    "not masked": b"\x82\x02\x91\xa5",
    "reserved bits": frame(b"x", 0xF2),
    "reserved opcode": frame(b"x", 0x83),
    "continuation of nothing": frame(b"x", 0x80),
    "long ping": frame(bytes(200), 0x89),
    "too old a version": frame(encode(greeting("other", Generation("b", 1), version=0))),
    "long form of a short length": b"\x82\xfe\x00\x05" + bytes(9),
    "negative length": b"\x82\xff" + b"\xff" * 8 + bytes(4),
}


@pytest.mark.parametrize("kind", BAD_HELLOS)
@pytest_twisted.ensureDeferred
async def test_bad_hellos(hub: Hub, kind: str) -> None:
    await hub.link_up()
    raw = await hub.upgraded()
    raw.write(BAD_HELLOS[kind])
    await raw.until(b"\x88")
    raw.write(frame(b"\x03\xea", 0x88))
    await hub.closed(raw, "protocol")
    await hub.unharmed()


@pytest_twisted.ensureDeferred
async def test_nobody_who_is_sent_away_can_stay(hub: Hub) -> None:
    await hub.link_up()
    raw = await hub.upgraded()
    raw.write(BAD_HELLOS["no msgpack"])
    await raw.until(b"\x88")
    began = reactor.seconds()
    await raw.closed.addTimeout(5, reactor)
    assert reactor.seconds() - began < 3.5
    await hub.unharmed()


@pytest.mark.parametrize("how_far", ["nothing", "half a request", "a token", "an upgrade"])
@pytest_twisted.ensureDeferred
async def test_a_hello_too_late(hub: Hub, how_far: str) -> None:
    await hub.link_up()
    began, own = reactor.seconds(), OwnTime()
    if how_far == "an upgrade":
        raw = await hub.upgraded()
    else:
        raw = await hub.raw()
        if how_far == "half a request":
            raw.write(b"GET /link HTTP/1.1\r\n")
        elif how_far == "a token":
            await nonce(raw)
    line = await hub.closed(raw, "protocol")
    assert "within 1 s" in line["detail"]
    assert reactor.seconds() - began > 0.9
    assert own.seconds() < 1.6
    await hub.unharmed()


@pytest_twisted.ensureDeferred
async def test_a_second_hello_reaches_the_link_which_refuses_it(hub: Hub) -> None:
    await hub.link_up()
    raw = await hub.upgraded()
    raw.write(frame(encode(HELLO)))
    await hub.other.until("greeted", reactor)
    raw.write(frame(encode(HELLO)))
    await hub.other.until("received", reactor)
    assert hub.other.messages == [HELLO]


@pytest_twisted.ensureDeferred
async def test_garbage_after_the_hello_ends_that_link_alone(hub: Hub) -> None:
    await hub.link_up()
    raw = await hub.upgraded()
    raw.write(frame(encode(HELLO)))
    await hub.other.until("greeted", reactor)
    raw.write(frame(b"\xc1 nothing"))
    await raw.until(b"\x88")
    raw.write(frame(b"\x03\xea", 0x88))
    await hub.other.until("lost", reactor)
    reason, detail, _ = hub.other.losses[0]
    assert reason == "protocol"
    assert "malformed" in detail
    assert hub.near.losses == []


@pytest_twisted.ensureDeferred
async def test_too_many_without_a_hello(tmp_path: Path) -> None:
    hub = Hub(tmp_path, pending=8, pending_per_address=5)
    try:
        await hub.link_up()
        held = [await hub.raw() for _ in range(9)]
        for raw in held[:4]:
            await raw.closed.addTimeout(5, reactor)
        assert [raw.closed.called for raw in held[4:]] == [False] * 5
        assert hub.listener.refusals["busy"] == 4
        for raw in held:
            if raw.transport is not None:
                raw.transport.abortConnection()  # type: ignore[attr-defined]
        for raw in held[4:]:
            await raw.closed.addTimeout(5, reactor)
        await hub.raw()
        assert 1 <= [each["event"] for each in hub.lines].count("listener.rate-limited") <= 4
    finally:
        await hub.end()


@pytest_twisted.ensureDeferred
async def test_where_all_places_are_taken_by_peers_others_wait_in_the_kernel(
    tmp_path: Path,
) -> None:
    hub = Hub(tmp_path, pending=2)
    try:
        hub.listener.admission.greeted.greeted("edge", "127.0.0.1", 0.0)
        held = [await hub.raw() for _ in range(3)]
        for raw in held:
            raw.write(b"POST /token HTTP/1.1\r\nHost: hub\r\n\r\n")
        for raw in held[:2]:
            await raw.until(b"nonce")
        assert hub.listener.admission.pending == 2
        assert held[2].heard == b""
        held[0].transport.abortConnection()  # type: ignore[union-attr]
        await held[2].until(b"nonce")
        assert hub.listener.refusals == {}
    finally:
        await hub.end()


@pytest_twisted.ensureDeferred
async def test_too_many_a_second_are_told_when_to_come_back(tmp_path: Path) -> None:
    hub = Hub(tmp_path, handshakes_per_second_per_address=2.0)
    try:
        await hub.link_up()
        for _ in range(9):
            await hub.raw()  # which takes no token: it asks for nothing
        for _ in range(6):
            raw = await hub.raw()
            raw.write(b"POST /token HTTP/1.1\r\nHost: hub\r\n\r\n")
            await raw.until(b"\r\n\r\n")
            if b" 503 " in raw.heard:
                break
        await raw.closed.addTimeout(5, reactor)
        assert raw.heard.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in raw.heard
    finally:
        await hub.end()


@pytest_twisted.ensureDeferred
async def test_a_busy_node_says_when(hub: Hub) -> None:
    hub.nodes.busy_seconds = 7.0
    hub.dialer.dial(0.0)
    await hub.near.until("failed", reactor)
    failure = hub.near.failures[0]
    assert (failure.kind, failure.reason, failure.retry_after) == ("busy", "busy", 7.0)


ASK = b"POST /ask HTTP/1.1\r\nHost: hub\r\nContent-Length: 2\r\n\r\n"


def asked(hub: Hub) -> list[tuple[bytes, Deferred[tuple[int, bytes]]]]:
    """Have `/ask` answered when the test says so; return what was asked."""
    waiting: list[tuple[bytes, Deferred[tuple[int, bytes]]]] = []

    def ask(body: bytes, _: str) -> Deferred[tuple[int, bytes]]:
        waiting.append((body, Deferred()))
        return waiting[-1][1]

    hub.listener.posts["/ask"] = ask
    return waiting


async def turn() -> None:
    """Let the reactor read what was sent."""
    later: Deferred[None] = Deferred()
    reactor.callLater(0.05, later.callback, None)
    await later


@pytest_twisted.ensureDeferred
async def test_posts_are_answered_one_after_another_then_the_upgrade(hub: Hub) -> None:
    await hub.link_up()
    waiting = asked(hub)
    raw = await hub.raw()
    raw.write(ASK + b"{}" + ASK + b"[]")
    await turn()
    assert [body for body, _ in waiting] == [b"{}"]
    waiting[0][1].callback((200, b"first"))
    await raw.until(b"first")
    assert [body for body, _ in waiting] == [b"{}", b"[]"]
    waiting[1][1].callback((200, b"second"))
    await raw.until(b"second")
    raw.heard = b""
    raw.write(upgrade("other", await nonce(raw)))
    await raw.until(b"101 Switching")
    raw.transport.abortConnection()  # type: ignore[union-attr]
    await raw.closed.addTimeout(8, reactor)
    await hub.unharmed()


@pytest_twisted.ensureDeferred
async def test_an_answer_for_one_who_has_gone_is_dropped(hub: Hub) -> None:
    await hub.link_up()
    waiting = asked(hub)
    raw = await hub.raw()
    raw.write(ASK + b"{}")
    await turn()
    raw.transport.abortConnection()  # type: ignore[union-attr]
    await raw.closed.addTimeout(8, reactor)
    await turn()
    waiting[0][1].callback((200, b"late"))
    await hub.unharmed()


@pytest_twisted.ensureDeferred
async def test_an_answer_that_cannot_be_given_is_a_503(hub: Hub) -> None:
    await hub.link_up()
    waiting = asked(hub)
    raw = await hub.raw()
    raw.write(ASK + b"{}")
    await turn()
    waiting[0][1].errback(Unavailable("256 calls wait already"))
    assert (await raw.until(b"503")).startswith(b"HTTP/1.1 503 ")
    await raw.closed.addTimeout(8, reactor)
    await hub.unharmed()


@pytest_twisted.ensureDeferred
async def test_what_comes_ahead_of_an_answer_is_bounded(hub: Hub) -> None:
    await hub.link_up()
    asked(hub)
    raw = await hub.raw()
    raw.write(ASK + b"{}" + b"x" * 100_000)
    assert b"431" in await raw.until(b"431")
    await hub.closed(raw, "protocol")
    await hub.unharmed()
