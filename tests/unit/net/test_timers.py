"""A wall clock that is set is noticed; one that is corrected slowly is not. Both ends of a
connection notice silence at their moment: not before, not after.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from linkd.config import PeerSettings
from linkd.config.addresses import parse_url
from linkd.net.connect import Attempt, Budget, Candidate, Resolver
from linkd.net.dialer import DialerContext, LinkDialer
from linkd.net.listener import Listener
from linkd.net.timers import ClockWatch
from linkd.protocol.peer import Ack, Goodbye, encode
from tests.support.net_lab import Link, Nodes, secret_file, settings
from tests.support.pipe import Pipe


def test_steps_are_noticed_once_and_slow_corrections_are_not() -> None:
    clock, wall, steps = Clock(), [1_000.0], list[float]()
    watch = ClockWatch(clock, lambda: wall[0], steps.append)

    def second(step: float = 0.0) -> None:
        clock.advance(1.0)
        wall[0] += 1.0 + step
        watch.look()

    for _ in range(100):
        second(0.0005)
    assert steps == []
    second(1_700_000_000.0)
    second()
    second(-3600.0)
    second()
    assert [round(step) for step in steps] == [1_700_000_000, -3600]


HERE = IPv4Address("TCP", "192.0.2.1", 40_000)


class Pair:
    """A listener's and a dialer's connection over a pipe, greeted."""

    def __init__(self, directory: Path, spread: float = 0.999) -> None:
        self.clock = Clock()
        self.clock.advance(1000.25)
        secret = secret_file(directory)
        self.at_hub = Link("hub", "edge", 5.0)
        self.at_edge = Link("edge", "hub")
        nodes = Nodes("hub", {"edge": (PeerSettings(name="edge", secret_file=secret), self.at_hub)})
        self.listener = Listener(nodes, settings(), self.clock)
        self.listener.random = _Fixed(spread)  # type: ignore[assignment]
        url = "ws://192.0.2.2:9443/link"
        peer = PeerSettings(name="hub", dial=(url,), secret_file=secret)
        resolver = Resolver(self.clock, lambda host: pytest.fail("no look-up was expected"))
        self.dialer = LinkDialer(
            self.at_edge, peer, DialerContext("edge", "boot", self.clock, resolver), 5.0
        )
        attempt = Attempt(self.dialer, parse_url(url), Budget(5.0, 2.0), self.clock)
        self.dialer.connector = attempt
        candidate = Candidate(attempt, "192.0.2.2")
        attempt._candidates.append(candidate)
        self.dialer.secure(candidate)
        self.far: Any = self.listener.buildProtocol(HERE)
        self.near: Any = self.dialer.begin(candidate, HERE)
        self.pipe = Pipe(self.clock, self.near, self.far)
        self.pipe.flow()

    def down_after(self, link: Link, seconds: float) -> float:
        """Return when the link loses its connection, counted from now."""
        began = self.clock.seconds()
        for _ in range(int(seconds * 1000)):
            self.pipe.run(0.001)
            if link.losses:
                return self.clock.seconds() - began
        raise AssertionError(f"not noticed within {seconds} s")


class _Fixed:
    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Return a greeted pair."""
    both = Pair(tmp_path)
    assert both.at_edge.told == ["opening", "greeted"]
    assert both.at_hub.told == ["greeted"]
    return both


def test_a_quiet_link_stays_up_and_is_pinged_every_interval(pair: Pair) -> None:
    pair.pipe.far.writes.clear()
    pair.pipe.run(61.0, 0.005)
    assert pair.at_hub.losses == pair.at_edge.losses == []
    pings = pair.pipe.far.writes
    gaps = [after - before for before, after in itertools.pairwise(pings)]
    assert 12 <= len(pings) <= 16
    assert max(gaps) <= 5.02
    assert pair.near.rtt_seconds is not None
    assert pair.far.rtt_seconds is not None


@pytest.mark.parametrize(
    ("end", "limit", "reason"), [("hub", 7.0, "ping-timeout"), ("edge", 10.0, "silence")]
)
@pytest.mark.parametrize("phase", [0.0, 1.0, 2.5, 4.99, 5.1])
def test_each_end_notices_at_its_limit_of_silence(
    tmp_path: Path, end: str, limit: float, reason: str, phase: float
) -> None:
    pair = Pair(tmp_path)
    connection, link, transport = {
        "hub": (pair.far, pair.at_hub, pair.pipe.far),
        "edge": (pair.near, pair.at_edge, pair.pipe.near),
    }[end]
    pair.pipe.run(10.0 + phase)
    pair.pipe.cut = True
    silent_before = connection.silence_seconds()
    after = pair.down_after(link, limit + 1.0)
    assert silent_before + after == pytest.approx(limit, abs=0.003)
    assert link.losses[0][0] == reason
    assert transport.aborted


@pytest.mark.parametrize("heard", [0.5, 3.0, 4.9, 5.0, 5.5, 6.9])
def test_the_listener_counts_from_the_last_byte_whatever_it_was(
    tmp_path: Path, heard: float
) -> None:
    pair = Pair(tmp_path)
    pair.pipe.run(10.0)
    pair.pipe.cut = True
    last = pair.far.life.heard_at
    while pair.clock.seconds() < last + heard:
        pair.pipe.run(0.001)
    pair.far.dataReceived(b"\x82")  # the first byte of a frame that never goes on
    after = pair.down_after(pair.at_hub, 8.0)
    assert after == pytest.approx(7.0, abs=0.003)


def test_without_pongs_the_listener_goes_on_pinging_while_bytes_come(pair: Pair) -> None:
    pair.pipe.run(6.0)
    pair.near.onPing = lambda payload: None
    pair.pipe.far.writes.clear()
    for _ in range(30):
        pair.pipe.run(1.0, 0.01)
        pair.near.send(encode(Ack(1)))
        pair.pipe.flow()
    assert pair.at_hub.losses == []
    gaps = [b - a for a, b in zip(pair.pipe.far.writes, pair.pipe.far.writes[1:], strict=False)]
    assert max(gaps) <= 5.02


def test_bytes_in_the_socket_count_though_the_reactor_woke_late(pair: Pair) -> None:
    pair.pipe.run(4.0)
    pair.pipe.cut = True
    pair.pipe.run(2.0)
    assert pair.far.autoPingTimeoutCall is not None
    pair.near.send(encode(Ack(3)))
    waiting = pair.pipe.near.written
    pair.clock.rightNow += 30.0
    # All timers that are due run first; only then does the reactor read.
    due = [call for call in pair.clock.getDelayedCalls() if call.getTime() <= pair.clock.seconds()]
    assert due
    for call in due:
        function, arguments = call.func, call.args
        call.cancel()
        function(*arguments)
    assert pair.at_hub.losses == []
    pair.far.dataReceived(waiting)
    pair.clock.advance(0)
    assert pair.at_hub.losses == []
    assert not pair.pipe.far.aborted


def test_a_flow_is_answered_by_a_pong_once_a_second(pair: Pair) -> None:
    pair.pipe.run(1.5)
    pair.pipe.far.writes.clear()
    for _ in range(40):
        pair.far.dataReceived(b"")
        pair.pipe.run(0.1)
        chunk = b"\x82\xfe\xff\xff" + b"\0" * 2000 if not pair.far.data else b"\0" * 500
        pair.far.dataReceived(chunk)
    assert 3 <= len(pair.pipe.far.writes) <= 5


def test_small_talk_asks_for_no_pong(pair: Pair) -> None:
    pair.pipe.run(3.0)
    pair.pipe.far.writes.clear()
    pair.near.send(encode(Ack(3)))
    pair.pipe.flow()
    assert pair.pipe.far.writes == []


def test_a_goodbye_is_followed_by_an_abort_where_nobody_answers(pair: Pair) -> None:
    pair.pipe.run(1.0)
    pair.pipe.cut = True
    pair.far.goodbye(Goodbye("stopped", "maintenance"))
    pair.pipe.run(2.9)
    assert not pair.pipe.far.aborted
    pair.pipe.run(0.2)
    assert pair.pipe.far.aborted
    assert pair.at_hub.losses[0][0] == "stopped"


def test_nothing_is_left_on_the_clock_once_both_have_gone(pair: Pair) -> None:
    pair.pipe.run(12.0, 0.01)
    pair.far.goodbye(Goodbye("stopped"))
    pair.pipe.run(0.1)
    assert pair.at_hub.losses
    assert pair.at_edge.losses
    assert pair.at_edge.losses[0][2] == Goodbye("stopped", return_spread=0.2)
    assert pair.clock.getDelayedCalls() == []


def test_autobahn_takes_its_timers_from_where_the_exact_one_is(pair: Pair) -> None:
    """Fails when Autobahn changes where its pings come from: then silence is judged late again."""
    asked: list[float] = []
    exact = pair.listener._batched_timer

    class Noting:
        def call_later(self, delay: float, call: Any, *args: Any) -> Any:
            asked.append(delay)
            return exact.call_later(delay, call, *args)

    pair.listener._batched_timer = Noting()
    pair.pipe.run(11.0, 0.01)
    assert asked.count(5.0) == 2
    assert asked.count(2.0) == 2
