"""A connection that has sent nothing costs a place and a timer, until its first byte."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Port

from linkd.events.observers import RepeatFilter
from linkd.net.admission import LEAST_STRANGERS
from linkd.net.listener import Listener
from linkd.net.newcomers import Newcomer, Newcomers, PacedPort
from tests.support.net_lab import Nodes, settings
from tests.support.pipe import Pipe

HERE = IPv4Address("TCP", "192.0.2.1", 40_000)


class Stranger(Protocol):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.heard = b""

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self.heard += data


class Door:
    """A listener on a clock, and strangers at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.lines: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(
            "linkd.net.listener.emit", lambda event, *_, **more: self.lines.append((event, more))
        )
        self.listener = Listener(Nodes("hub", {}), settings(**limits), self.clock)
        self.newcomers = Newcomers(self.listener)

    def come(self, port: int = 40_000) -> Pipe:
        far = self.newcomers.buildProtocol(HERE)
        assert isinstance(far, Newcomer)
        return Pipe(self.clock, Stranger(), far, port=port)


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    """Return a listener."""
    return Door(monkeypatch)


def test_the_first_byte_makes_a_connection_in_the_same_place(door: Door) -> None:
    pipe = door.come()
    assert door.listener.admission.pending == 1
    door.clock.advance(1.0)
    pipe.near.write(b"POST /token HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
    pipe.flow()
    assert pipe.near.protocol.heard.startswith(b"HTTP/1.1 200 ")
    assert type(pipe.far.protocol) is door.listener.protocol
    assert door.listener.admission.pending == 1
    pipe.near.abortConnection()
    pipe.run(0.01)
    assert door.listener.admission.pending == 0
    assert door.clock.getDelayedCalls() == []


@pytest.mark.parametrize("first_byte_after", [None, 4.0])
def test_its_time_counts_from_the_connection_on(door: Door, first_byte_after: float | None) -> None:
    pipe = door.come()
    if first_byte_after is not None:
        door.clock.advance(first_byte_after)
        pipe.near.write(b"GET ")
        pipe.flow()
    door.clock.advance(4.99 - (first_byte_after or 0.0))
    assert not pipe.far.aborted
    door.clock.advance(0.02)
    door.clock.advance(0.0)
    assert pipe.far.aborted
    pipe.flow()
    assert [fields["detail"] for _, fields in door.lines] == ["no hello came within 5 s"]
    assert door.listener.admission.pending == 0
    assert door.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("head", "answers", "closes"),
    [
        (b"POST /token HTTP/1.1\r\n", 2, False),
        (b"POST /token HTTP/1.1\r\nConnection: keep-alive\r\n", 2, False),
        (b"POST /token HTTP/1.1\r\nConnection: Close\r\n", 1, True),
        (b"POST /token HTTP/1.1\r\nConnection: x, close\r\n", 1, True),
        (b"POST /token HTTP/1.0\r\n", 1, True),
    ],
)
def test_a_token_is_the_last_answer_where_the_request_wants_so(
    door: Door, head: bytes, answers: int, closes: bool
) -> None:
    pipe = door.come()
    pipe.near.write((head + b"Host: h\r\nContent-Length: 0\r\n\r\n") * 2)
    pipe.run(0.01)
    heard = pipe.near.protocol.heard
    assert heard.count(b"HTTP/1.1 200 ") == answers
    assert heard.count(b"\r\nConnection: close\r\n") == int(closes)
    assert (door.listener.admission.pending == 0) is closes
    assert door.lines == []


def test_a_request_with_two_lengths_is_refused(door: Door) -> None:
    pipe = door.come()
    inner = b"POST /token HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
    twice = b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(inner)
    pipe.near.write(b"POST /token HTTP/1.1\r\nHost: h\r\n" + twice + inner)
    pipe.run(0.01)
    assert pipe.near.protocol.heard.startswith(b"HTTP/1.1 400 ")
    assert pipe.near.protocol.heard.count(b"HTTP/1.1") == 1


def test_who_goes_before_its_first_byte_leaves_nothing(door: Door) -> None:
    pipe = door.come()
    pipe.near.abortConnection()
    pipe.run(0.01)
    assert door.listener.admission.pending == 0
    assert door.lines == []
    assert door.clock.getDelayedCalls() == []


def test_those_that_make_way_are_counted_and_one_a_second_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    door = Door(monkeypatch, pending=2)
    pipes = [door.come() for _ in range(6)]
    for pipe in pipes:
        pipe.flow()
    assert [pipe.far.aborted for pipe in pipes] == [True] * 4 + [False] * 2
    assert door.listener.refusals == {"busy": 4}
    assert [event for event, _ in door.lines] == ["listener.rate-limited"]
    door.clock.advance(1.0)
    door.come()
    assert len(door.lines) == 2
    assert door.listener.admission.pending == 2


def test_a_late_loop_drops_strangers_and_takes_peers(door: Door) -> None:
    door.listener.lateness = lambda: 0.5
    door.come()  # nobody is known yet
    door.listener.admission.greeted.greeted("edge", "192.0.2.2", 0.0)
    for number in range(int(LEAST_STRANGERS)):
        door.listener.admission.ask(f"198.51.100.{number}", door.clock.seconds(), 0.5)
    assert door.newcomers.buildProtocol(HERE) is None
    assert door.listener.refusals == {"busy": 1}
    assert "strangers are dropped" in door.lines[0][1]["detail"]
    door.listener.admission.greeted.greeted("edge", HERE.host, 0.0)
    door.come()


def test_dropped_strangers_take_no_peers_place_in_an_iteration(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They did: peers waited behind a flood of 500 a second in the kernel's queue."""
    door.listener.lateness = lambda: 0.5
    door.listener.admission.greeted.greeted("edge", "192.0.2.2", 0.0)
    waiting = ["198.51.100.1"] * 500 + ["192.0.2.2"] * 5
    came: list[Any] = []

    def accept(port: PacedPort) -> None:
        """Accept as Twisted does; 0.1 ms each."""
        wanted, accepted = port.numberAccepts, 0
        while waiting and accepted < wanted:
            address = IPv4Address("TCP", waiting.pop(0), 40_000)
            came.append(door.newcomers.buildProtocol(address))
            door.clock.advance(0.0001)
            accepted += 1
        port.numberAccepts = wanted + 20 if accepted == wanted else max(1, accepted)

    monkeypatch.setattr(Port, "doRead", accept)
    for number in range(int(LEAST_STRANGERS)):
        door.listener.admission.ask(f"203.0.113.{number}", door.clock.seconds(), 0.5)
    port = PacedPort(door.listener.admission, 0, door.newcomers, 50, "", door.clock)
    port.doRead()
    assert len(came) == 505
    assert [newcomer is not None for newcomer in came] == [False] * 500 + [True] * 5
    waiting += ["198.51.100.1"] * 5000  # the loop goes on all the same
    port.doRead()
    assert 400 < len(came) - 505 < 600


def test_strangers_that_came_with_one_token_are_dropped_at_their_first_byte(door: Door) -> None:
    """Of 25 accepted in an iteration all were answered: an answer costs half a handshake."""
    door.listener.lateness = lambda: 0.5
    door.listener.admission.greeted.greeted("edge", "192.0.2.2", 0.0)
    pipes = [door.come() for _ in range(25)]
    for number, pipe in enumerate(pipes):
        pipe.far.protocol.host = f"198.51.100.{number}"
        pipe.near.write(TOKEN)
        pipe.flow()
    heard = [pipe.near.protocol.heard for pipe in pipes]
    few = int(LEAST_STRANGERS)
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in heard[:few])
    assert [answer == b"" for answer in heard[few:]] == [True] * (25 - few)
    assert [pipe.far.aborted for pipe in pipes] == [False] * few + [True] * (25 - few)
    assert door.listener.admission.pending == few


def test_peers_return_over_the_time_that_the_cap_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(monkeypatch, handshakes_per_second=100.0)
    door.listener._dialers = 1000
    assert door.listener.return_spread == 10.0


LINE = b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 9443\r\n"
TOKEN = b"POST /token HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def balanced(monkeypatch: pytest.MonkeyPatch) -> Door:
    """Return a listener behind a balancer with the address `HERE`."""
    return Door(monkeypatch, listed=("192.0.2.0/28",))


@pytest.mark.parametrize("pieces", [1, 2, len(LINE)])
def test_behind_a_header_the_real_address_counts(balanced: Door, pieces: int) -> None:
    pipe = balanced.come()
    sent = LINE if pieces > 1 else LINE + TOKEN
    size = -(-len(sent) // pieces)
    for begin in range(0, len(sent), size):
        pipe.near.write(sent[begin : begin + size])
        pipe.flow()
    if pieces > 1:
        assert type(pipe.far.protocol) is Newcomer
        pipe.near.write(TOKEN)
        pipe.flow()
    assert pipe.near.protocol.heard.startswith(b"HTTP/1.1 200 ")
    connection = pipe.far.protocol
    assert type(connection) is balanced.listener.protocol
    assert (connection.host, connection.address) == ("203.0.113.7", "203.0.113.7:40000")
    assert balanced.listener.admission._counts == {"203.0.113.7": 1}
    assert set(balanced.listener.admission._rates) == {"203.0.113.7"}
    pipe.near.abortConnection()
    pipe.run(0.01)
    assert balanced.listener.admission.pending == 0
    assert balanced.clock.getDelayedCalls() == []


def test_a_health_check_counts_as_the_balancer(balanced: Door) -> None:
    pipe = balanced.come()
    pipe.near.write(b"PROXY UNKNOWN\r\n")
    pipe.flow()
    assert balanced.listener.admission._counts == {HERE.host: 1}
    pipe.near.abortConnection()
    pipe.run(0.01)
    assert balanced.lines == []
    assert balanced.listener.admission.pending == 0


@pytest.mark.parametrize(
    ("sent", "detail"),
    [
        (TOKEN, "names its address, but it does not begin with a PROXY header"),
        (b"PROXY TCP4 x y 1 2\r\n" + TOKEN, "names its address, but its PROXY line is malformed"),
        (b"", "no PROXY header came within 3 s from a balancer"),
        (LINE[:-1], "no PROXY header came within 3 s from a balancer"),
    ],
)
def test_a_balancer_without_a_good_header_is_refused(
    balanced: Door, sent: bytes, detail: str
) -> None:
    pipe = balanced.come()
    pipe.near.write(sent)
    pipe.flow()
    if detail.startswith("no "):
        balanced.clock.advance(2.99)
        assert not pipe.far.aborted
        balanced.clock.advance(0.02)
    assert pipe.far.aborted
    pipe.flow()
    assert pipe.near.protocol.heard == b""
    [(event, fields)] = balanced.lines
    assert (event, fields["address"]) == ("connection.refused", "192.0.2.1:40000")
    assert detail in fields["detail"]
    assert fields["balancer"] == HERE.host
    assert balanced.listener.refusals == {"protocol": 1}
    assert balanced.listener.admission.pending == 0
    assert balanced.clock.getDelayedCalls() == []


def test_a_strangers_noise_does_not_hide_why_a_balancer_is_refused(
    balanced: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    folding, written = RepeatFilter(), list[Any]()

    def emit(event: str, *_: object, **fields: Any) -> None:
        written.extend(folding.take(event, fields, balanced.clock.seconds()))

    monkeypatch.setattr("linkd.net.listener.emit", emit)
    elsewhere = IPv4Address("TCP", "198.51.100.9", 40_000)
    for _ in range(3):
        for source in (elsewhere, HERE):
            far = balanced.newcomers.buildProtocol(source)
            pipe = Pipe(balanced.clock, Stranger(), far)
            pipe.near.write(b"PROXY x\r\n")
            pipe.flow()
    assert [fields["balancer"] for _, fields in written] == [None, HERE.host]
    assert "its PROXY line is malformed" in written[1][1]["detail"]


def test_a_header_that_ends_early_is_logged(balanced: Door) -> None:
    pipe = balanced.come()
    pipe.near.write(LINE[:20])
    pipe.flow()
    pipe.near.abortConnection()
    pipe.run(0.01)
    assert [fields["detail"] for _, fields in balanced.lines] == [
        "it closed within its PROXY header"
    ]
    assert balanced.clock.getDelayedCalls() == []


@pytest.mark.parametrize("sent", [LINE + TOKEN, b"\r\n\r\n\0\r\nQUIT\n"])
@pytest.mark.parametrize("listed", [(), ("198.51.100.0/24", "2001:db8::/64")])
def test_a_header_from_another_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, listed: tuple[str, ...]
) -> None:
    door = Door(monkeypatch, listed=listed)
    pipe = door.come()
    pipe.near.write(sent)
    pipe.flow()
    assert pipe.far.aborted
    assert pipe.near.protocol.heard == b""
    [(_, fields)] = door.lines
    assert (fields["address"], fields["balancer"]) == ("192.0.2.1:40000", None)
    assert "listen.proxy_protocol does not name its address" in fields["detail"]


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_client_behind_a_balancer_adds_no_header(balanced: Door, pieces: int) -> None:
    pipe = balanced.come()
    for sent in (LINE + LINE,) if pieces == 1 else (LINE, LINE):
        pipe.near.write(sent)
        pipe.flow()
    assert pipe.far.aborted
    [(_, fields)] = balanced.lines
    assert (fields["address"], fields["balancer"]) == ("203.0.113.7:40000", None)
    assert fields["detail"] == "it sent a PROXY header behind the one of its balancer"


def test_after_a_header_the_time_still_counts_from_the_connection_on(balanced: Door) -> None:
    pipe = balanced.come()
    balanced.clock.advance(2.9)
    pipe.near.write(LINE)
    pipe.flow()
    balanced.clock.advance(2.09)
    assert not pipe.far.aborted
    balanced.clock.advance(0.02)
    assert pipe.far.aborted
    [(_, fields)] = balanced.lines
    assert (fields["detail"], fields["address"]) == (
        "no hello came within 5 s",
        "203.0.113.7:40000",
    )


def test_strangers_behind_a_balancer_are_shed_by_their_own_address(balanced: Door) -> None:
    balanced.listener.lateness = lambda: 0.5
    admission = balanced.listener.admission
    admission.greeted.greeted("edge", "203.0.113.8", 0.0)
    for number in range(int(LEAST_STRANGERS)):
        admission.ask(f"198.51.100.{number}", balanced.clock.seconds(), 0.5)
    stranger, check, peer = balanced.come(), balanced.come(), balanced.come()
    stranger.near.write(LINE + TOKEN)
    check.near.write(b"PROXY UNKNOWN\r\n")
    peer.near.write(LINE.replace(b"203.0.113.7", b"203.0.113.8") + TOKEN)
    for pipe in (stranger, check, peer):
        pipe.flow()
    assert [pipe.far.aborted for pipe in (stranger, check, peer)] == [True, False, False]
    assert "strangers are dropped" in balanced.lines[0][1]["detail"]
    assert peer.near.protocol.heard.startswith(b"HTTP/1.1 200 ")
    stranger.flow()
    assert admission.pending == 2


def test_a_crowd_without_headers_yet_is_not_bounded_by_one_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    door = Door(monkeypatch, listed=(HERE.host,), pending_per_address=2)
    pipes = [door.come(port) for port in range(1, 7)]
    assert door.listener.admission.pending == 6
    for number, pipe in enumerate(pipes):
        pipe.near.write(LINE.replace(b"0.113.7", b"0.113.%d" % (number % 2)))
        pipe.flow()
    assert [pipe.far.aborted for pipe in pipes] == [True] * 2 + [False] * 4


def test_a_reload_changes_the_balancers(balanced: Door) -> None:
    before = balanced.listener
    assert before.is_balancer("192.0.2.15")
    assert before.is_balancer("::ffff:192.0.2.1")
    assert not before.is_balancer("192.0.2.16")
    assert not before.is_balancer("2001:db8::1")
    before.configure(settings(listed=("2001:db8::1",)))
    assert before.is_balancer("2001:db8::1")
    assert not before.is_balancer("192.0.2.1")
    before.configure(settings(listed=("::ffff:192.0.2.9", "::ffff:198.51.100.0/120")))
    assert before.is_balancer("192.0.2.9")
    assert before.is_balancer("::ffff:198.51.100.255")
    assert not before.is_balancer("198.51.101.0")
