"""HTTP over `http` and the unix socket: any bytes on a connection of the API.

Every answer begins with a status, none of them 500; nothing is raised, no mistake logged.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from linkd.protocol.records import EncodedRecord, NewRecords, encode_records
from tests.fuzz.reading import Input
from tests.fuzz.serving import Bench
from tests.support.fake_node import KEY, SHOP_KEY

BENCH = Bench()
_TCP = IPv4Address("TCP", "127.0.0.1", 40_000)
_METHODS = (b"GET", b"POST", b"DELETE", b"OPTIONS", b"PUT", b"HEAD")
_PATHS = (
    b"/v1/channels/orders", b"/v1/channels/news.*", b"/v1/records/1", b"/v1/records/9",
    b"/v1/status",
    b"/v1/peers/hub/kick", b"/v1/consumers", b"/v1/consumers/c1", b"/v1/consumers/c1/ack",
    b"/v1/outages", b"/v1/events", b"/v1/peers/hub/resync", b"/v1/log/trim", b"/metrics", b"/ws",
    b"/healthz", b"/readyz", b"/", b"/v1/token", b"/v1/session", b"/v1/stream",
    b"/v1/pairing/invite",
    b"/v1/presence/orders", b"/v1/pairing/peers", b"/dashboard/dom.js", b"/dashboard/..",
    b"/v1/openapi.json",
)  # fmt: skip
_QUERIES = (
    b"", b"from=1", b"from=earliest&limit=2", b"wait=hub&timeout=1", b"wait=1", b"consumer=c1",
    b"token=abc", b"from=%ff", b"limit=0", b"a=1&a=1", b"since=1h", b"channel=orders&envelope=1",
    b"channel=orders&channel=news.a&uid=%07", b"resume=a&private=1&presence=text",
    b"timeout=2&timeout=x",
)  # fmt: skip
_HEADERS = (
    b"Host: 127.0.0.1", b"Host: evil.example", b"Authorization: Bearer " + KEY.encode(),
    b"Authorization: Bearer " + SHOP_KEY.encode(), b"Authorization: Basic x", b"Origin: null",
    b"Origin: http://127.0.0.1", b"Cookie: linkd_session=a.b", b"Content-Type: application/json",
    b"Content-Type: application/x-ndjson", b"Content-Type: text/plain; charset=latin-1",
    b"Linkd-Type: made", b"Linkd-Id: a", b"Linkd-Ttl: 1e9", b"Linkd-Ttl: nan",
    b"Accept: text/event-stream", b"Last-Event-ID: 1", b"Expect: 100-continue",
    b"Transfer-Encoding: chunked", b"Content-Encoding: gzip", b"Upgrade: websocket",
    b"Connection: Upgrade", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Protocol: linkd.client.1", b"Host: [::1",
    b"If-None-Match: *", b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Mode: websocket",
    b"Sec-WebSocket-Protocol: linkd.text.1, linkd.bearer.a2s",
)  # fmt: skip
_BODIES = (
    b"", b"{}", b'{"next":3}', b'{"next":1e99}', b"[1]\n2\n\n{", b'{"before":1,"confirmed":true}',
    b'{"confirmed":true}', b'{"patterns":["orders"]}', b"\xff", b"5\r\nhello\r\n0\r\n\r\n",
)  # fmt: skip


class Wire(StringTransport):
    """A connection whose other end only listens."""

    def __init__(self, peer: Any) -> None:
        super().__init__(peerAddress=peer)
        self.hostAddr = peer
        self.protocol: Any = None

    def getHost(self) -> Any:
        """Return our end."""
        return self.hostAddr

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing to set."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing to set."""

    def unregisterProducer(self) -> None:
        """Forget the producer, if there is one, as a real connection does."""
        self.producer = None

    def abortConnection(self) -> None:
        """End it."""
        self.aborting = True
        self.disconnecting = True


def one(content: bytes) -> None:
    """Speak on one connection, and hang up; one input in sixteen makes up to four requests."""
    given = Input(content)
    mode = given.byte()
    records = encode_records([EncodedRecord(b'{"a":1}', "made", "i"), EncodedRecord(b"\xff")])
    BENCH.node.log.append(NewRecords("orders", 2, records, 1.0), lambda _: None)
    local = bool(mode & 1)
    transport = Wire(UNIXAddress("/fuzz.sock") if local else _TCP)
    site = BENCH.api._site()
    BENCH.api._sites.clear()
    channel = site.buildProtocol(transport.getPeer())
    channel.makeConnection(transport)
    for _ in range(1 if mode & 0xF0 else 4):
        if not given or transport.disconnecting:
            break
        piece = given.piece() if mode & 2 else _request(given)
        cut = given.byte() if mode & 4 else len(piece)
        for part in (piece[:cut], piece[cut:]):
            if part and not transport.disconnecting:
                (transport.protocol or channel).dataReceived(part)
        BENCH.clock.advance(0.0)
    if mode & 8:
        BENCH.clock.advance(100.0)
    said = transport.value()
    (transport.protocol or channel).connectionLost(Failure(ConnectionDone()))
    BENCH.api.websockets._open.clear()
    assert not said or said.startswith((b"HTTP/1.", b"\x88", b"\x81")), said[:40]
    assert b" 500 " not in said[:20], said
    BENCH.finish()


def _request(given: Input) -> bytes:
    """Return a request that is near to a proper one."""
    lines = [
        b"%b %b?%b HTTP/1.1"
        % (given.choice(_METHODS), given.choice(_PATHS), given.choice(_QUERIES))
    ]
    if given.byte() % 8:
        lines.append(_HEADERS[0])
    if given.byte() % 8:
        lines.append(given.choice(_HEADERS[2:4]))
    lines += [given.choice(_HEADERS) for _ in range(given.byte() % 6)]
    body = given.choice(_BODIES) if given.byte() & 1 else given.piece()
    if given.byte() % 8:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
