"""HTTP under the API: one request a turn, one answer queued, bodies within bounds and in time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import StringTransport

from linkd.api.auth import Caller
from linkd.api.errors import ApiError
from linkd.api.http import (
    MAX_REQUEST_BYTES,
    SMALL_BYTES,
    ApiRequest,
    ConnectionSlots,
    MemoryBudget,
    Response,
)
from linkd.api.site import BODY_BYTES, BODY_SECONDS, HEAD_SECONDS, ApiChannel, ApiSite
from linkd.config import LimitSettings
from linkd.net.rate_limit import SHARE_SECONDS, SLICE_SECONDS, FairShare
from tests.support.step_clock import StepClock


class Answering:
    """Answers each request with its path; `/later` once the test does, `/open` takes no body."""

    def __init__(self, clock: StepClock) -> None:
        self.share = FairShare(clock)
        self.budget = MemoryBudget()
        self.served: list[str] = []
        self.waiting: list[Deferred[Response | None]] = []
        self.body = b""
        self.cost = 0.0
        self._clock = clock

    def admit(self, request: ApiRequest) -> None:
        if request.path == b"/wrong-host":
            raise ApiError("misdirected", "not this node's")
        access = "open" if request.path == b"/open" else "caller"
        route = SimpleNamespace(access=access)
        request.admitted = SimpleNamespace(
            match=SimpleNamespace(route=route), caller=Caller(request.header("Name") or "shop")
        )

    def serve(self, request: ApiRequest) -> Deferred[Response | None]:
        self.served.append(request.path.decode())
        self._clock.rightNow += self.cost
        if request.path == b"/later":
            self.waiting.append(Deferred())
            return self.waiting[-1]
        return succeed(Response(200, self.body or request.path, "text/plain"))


class Transport(StringTransport):
    """A transport whose other end reads only when the test says so, if it is `full`."""

    full = False

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.full and self.producer is not None:
            self.producer.pauseProducing()

    def abortConnection(self) -> None:
        self.disconnected = True


class Site:
    """A site of one connection."""

    def __init__(self) -> None:
        self.clock = StepClock()
        self.answering = Answering(self.clock)
        self.site: Any = ApiSite(
            self.answering, self.clock, 16_384, ConnectionSlots(LimitSettings())
        )
        self.channel, self.transport = self.connect()

    def connect(self, address: str = "192.168.1.1") -> tuple[ApiChannel, Transport]:
        transport = Transport(peerAddress=IPv4Address("TCP", address, 54_321))
        channel = self.site.buildProtocol(transport.getPeer())
        channel.makeConnection(transport)
        return channel, transport

    def send(self, *requests: bytes) -> None:
        self.channel.dataReceived(b"".join(requests))

    @property
    def reads(self) -> bool:
        return bool(self.transport.producerState == "producing")


@pytest.fixture
def site() -> Site:
    return Site()


def get(path: str, more: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (path.encode(), more)


def post(path: str, length: int, more: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%b\r\n"
    return head % (path.encode(), length, more)


def test_one_pipelined_request_is_answered_per_turn(site: Site) -> None:
    site.answering.cost = SHARE_SECONDS
    site.send(*(get(f"/{number}") for number in range(5)))
    assert site.answering.served == ["/0"]
    assert not site.reads
    for _ in range(6):
        before = len(site.answering.served)
        site.clock.advance(0)
        assert len(site.answering.served) <= before + 1
    assert site.answering.served == [f"/{number}" for number in range(5)]
    assert site.reads
    assert site.transport.value().count(b"200 OK") == 5
    site.clock.advance(0)
    site.send(get("/more"))
    assert site.answering.served[-1] == "/more"


def test_pipelined_requests_with_bodies_keep_their_order(site: Site) -> None:
    site.send(*(post(f"/{number}", 3) + b"abc" for number in range(3)), get("/last"))
    for _ in range(4):
        site.clock.advance(0)
    assert site.answering.served == ["/0", "/1", "/2", "/last"]
    assert site.reads


def test_other_connections_are_served_between_two_pipelined_requests(site: Site) -> None:
    other, _ = site.connect()
    site.answering.cost = SHARE_SECONDS
    site.send(*(get(f"/{number}") for number in range(100)))
    other.dataReceived(get("/other"))
    site.clock.advance(0)
    site.clock.advance(0)
    assert site.answering.served.index("/other") <= 2


def flood(site: Site) -> None:
    """Have 256 connections of one address send a hundred requests each."""
    site.answering.cost = SLICE_SECONDS
    channels = [site.connect()[0] for _ in range(256)]
    for channel in channels:
        channel.dataReceived(get("/flood") * 100)


def test_connections_of_one_address_share_its_turns(site: Site) -> None:
    flood(site)
    other, _ = site.connect("192.0.2.7")
    other.dataReceived(get("/other", b"Name: other\r\n") * 20)
    site.answering.served.clear()
    for _ in range(10):
        site.clock.advance(0)
    # the flood has two parts: of its address, and of the caller that some connections have named
    assert site.answering.served.count("/other") >= 0.3 * len(site.answering.served)


def test_known_callers_behind_one_address_get_turns_of_their_own(site: Site) -> None:
    other, _ = site.connect()
    other.dataReceived(get("/other", b"Name: other\r\n"))
    site.clock.advance(0)
    flood(site)
    for _ in range(256):
        site.clock.advance(0)
    other.dataReceived(get("/other", b"Name: other\r\n") * 20)
    site.answering.served.clear()
    for _ in range(10):
        site.clock.advance(0)
    assert site.answering.served.count("/other") >= 0.45 * len(site.answering.served)


def test_no_request_is_read_while_a_response_is_unread(site: Site) -> None:
    site.transport.full = True
    site.send(get("/0"), get("/1"), get("/2"))
    for _ in range(5):
        site.clock.advance(0)
    assert site.answering.served == ["/0"]
    assert not site.reads
    site.channel.resumeProducing()
    assert not site.reads
    site.clock.advance(0)
    assert site.answering.served == ["/0", "/1"]


def test_nothing_is_read_while_a_late_response_is_unread(site: Site) -> None:
    site.transport.full = True
    site.send(get("/later"))
    site.answering.waiting[0].callback(Response(200, b"x" * 100_000))
    assert not site.reads
    site.channel.resumeProducing()
    assert site.reads


def test_a_queued_connection_that_closes_is_skipped(site: Site) -> None:
    site.send(get("/0"), get("/1"))
    site.channel.connectionLost(Any)
    site.clock.advance(0)
    assert site.answering.served == ["/0"]


def test_a_new_request_waits_when_the_share_is_used_up(site: Site) -> None:
    site.answering.share.queue(lambda: None)
    site.send(get("/0"))
    assert site.answering.served == []
    assert not site.reads
    site.send(get("/1"))
    for _ in range(3):
        site.clock.advance(0)
    assert site.answering.served == ["/0", "/1"]
    assert site.reads


@pytest.mark.parametrize("head", [b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_an_open_route_takes_no_body(site: Site, head: bytes) -> None:
    site.send(b"DELETE /open HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % head)
    assert b"413" in site.transport.value()
    assert b"takes no body" in site.transport.value()
    assert site.answering.budget.held == 0


def test_a_body_is_counted_until_its_response(site: Site) -> None:
    site.send(post("/later", 300_000))
    assert site.answering.budget.held == 300_000
    site.send(b"x" * 300_000)
    assert site.answering.budget.held == 300_000
    site.answering.waiting[0].callback(Response(204))
    assert site.answering.budget.held == 0


def test_bodies_of_one_caller_leave_memory_for_others(site: Site) -> None:
    channels = [site.connect() for _ in range(10)]
    for channel, _ in channels:
        channel.dataReceived(post("/a", MAX_REQUEST_BYTES))
    refused = [transport for _, transport in channels if b"503" in transport.value()]
    assert 1 <= len(refused) <= 4
    assert b"Retry-After: 1" in refused[0].value()
    site.send(post("/b", MAX_REQUEST_BYTES, b"Name: other\r\n"))
    assert site.transport.value() == b""
    for channel, _ in channels:
        channel.connectionLost(Any)
    site.channel.connectionLost(Any)
    assert site.answering.budget.held == 0


def test_a_chunked_body_is_counted_as_it_arrives(site: Site) -> None:
    site.send(b"POST /later HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    site.send(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
    assert site.answering.budget.held == 100_000
    site.answering.budget.for_caller("").add(site.answering.budget.most - 200_000)
    site.send(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
    assert b"503" in site.transport.value()


def test_a_response_is_counted_until_it_is_read(site: Site) -> None:
    site.answering.body = b"x" * (SMALL_BYTES + 1)
    site.send(get("/0"))
    assert site.answering.budget.held == 0
    site.transport.full = True
    site.send(get("/1"))
    assert site.answering.budget.held == SMALL_BYTES + 1
    site.channel.resumeProducing()
    assert site.answering.budget.held == 0
    site.send(get("/2"))
    site.channel.connectionLost(Any)
    assert site.answering.budget.held == 0


def test_a_stalled_body_is_cut(site: Site) -> None:
    site.send(post("/a", MAX_REQUEST_BYTES), b"x" * (MAX_REQUEST_BYTES - 1))
    site.clock.advance(BODY_SECONDS - 1)
    assert not site.transport.disconnected
    site.clock.advance(1)
    assert site.transport.disconnected


def test_a_slow_body_is_cut_and_a_steady_one_is_not(site: Site) -> None:
    site.send(post("/a", MAX_REQUEST_BYTES))
    slow, slow_transport = site.connect()
    slow.dataReceived(post("/b", MAX_REQUEST_BYTES))
    for _ in range(60):
        site.clock.advance(1)
        site.send(b"x" * BODY_BYTES)
        slow.dataReceived(b"x" * (BODY_BYTES // 4))
    assert not site.transport.disconnected
    assert slow_transport.disconnected
    site.channel.connectionLost(Any)
    slow.connectionLost(Any)
    assert not site.clock.getDelayedCalls()


def test_a_request_that_waits_long_for_its_turn_is_answered(site: Site) -> None:
    def work() -> None:
        site.clock.rightNow += HEAD_SECONDS / 2

    for _ in range(3):
        site.answering.share.queue(work, "192.168.1.1")
    site.send(get("/0"))
    for _ in range(5):
        site.clock.advance(0)
    assert b"200 OK" in site.transport.value()
    assert not site.transport.disconnected


@pytest.mark.parametrize(
    "head", [get("/0")[:-2], post("/0", MAX_REQUEST_BYTES)], ids=["head", "body"]
)
def test_a_request_beyond_its_deadline_after_a_freeze_is_read_or_cut(
    site: Site, head: bytes
) -> None:
    def call_later(seconds: float, *call: Any) -> Any:
        assert seconds >= 0, "as the reactor has it"
        return site.clock.callLater(seconds, *call)

    site.channel.callLater = call_later
    site.send(head)
    site.clock.rightNow += 2 * BODY_SECONDS  # frozen: the timer has not run
    site.answering.share.queue(lambda: None)
    site.send(b"x" * 10)
    for _ in range(3):
        site.clock.advance(0)
    assert site.transport.disconnected


def test_a_wrong_host_gets_status_421_with_its_phrase(site: Site) -> None:
    site.send(get("/wrong-host"))
    assert site.transport.value().startswith(b"HTTP/1.1 421 Misdirected Request\r\n")
