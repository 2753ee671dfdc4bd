"""A connection that has sent nothing costs a place and a timer, until its first byte."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from linkd.net.admission import LEAST_STRANGERS
from linkd.net.listener import Listener, Newcomer, Newcomers
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

    def come(self) -> Pipe:
        far = self.newcomers.buildProtocol(HERE)
        assert isinstance(far, Newcomer)
        return Pipe(self.clock, Stranger(), far)


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


def test_peers_return_over_the_time_that_the_cap_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(monkeypatch, handshakes_per_second=100.0)
    door.listener._dialers = 1000
    assert door.listener.return_spread == 10.0
