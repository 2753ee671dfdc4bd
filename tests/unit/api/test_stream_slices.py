"""Frames of `/v1/stream` are worked on in slices, and no more than the client reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from linkd.api.auth import ANYONE
from linkd.api.server import ApiServer
from linkd.api.stream import FRAME_BYTES, MAX_PATTERNS_BYTES, WAIT_BYTES, StreamSession
from linkd.net.rate_limit import SLICE_SECONDS
from linkd.protocol import client
from linkd.protocol.records import EncodedRecord, NewRecords, encode_records
from tests.support.fake_node import FakeNode, link, make_config
from tests.support.step_clock import StepClock

ONE = encode_records([EncodedRecord(b"x")])


class Socket:
    """A WebSocket whose other end reads, or doesn't."""

    def __init__(self) -> None:
        self.paused = self.is_stuck = False
        self.open = True
        self.frames: list[client.FromDaemon] = []

    def has_room(self, size: int) -> bool:
        return not self.paused

    def send(self, payload: bytes, binary: bool, more: tuple[bytes, ...] = ()) -> None:
        self.frames += client.decode_from_daemon(payload + b"".join(more))

    def close(self, code: int, reason: str) -> None:
        self.open = False

    def unstick(self) -> None:
        self.is_stuck = False


class Bench:
    """A stream that has opened."""

    def __init__(self, directory: Path) -> None:
        self.clock = StepClock()
        config = make_config(directory)
        self.node = FakeNode(config, self.clock)
        self.api = ApiServer(self.node, config, self.clock)  # type: ignore[arg-type]
        self.socket = Socket()
        self.session = StreamSession(self.api, ANYONE, self.socket)
        self.say(client.Open(client.VERSION, "", "test"))

    def say(self, *frames: client.FromClient) -> None:
        """Say something, as one message that came alone."""
        self.session.message(client.encode(frames), True)
        self.session.on_read_end()

    def heard(self, kind: type[Any]) -> list[Any]:
        """Return what the client has been sent of a kind."""
        self.session.flush()
        return [frame for frame in self.socket.frames if type(frame) is kind]

    def slow(self, seconds: float) -> Callable[..., None]:
        """Return what takes the loop some time."""

        def work(*_: object) -> None:
            self.clock.rightNow += seconds

        return work


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_costly_frames_are_processed_in_slices(bench: Bench) -> None:
    done: list[int] = []

    def credit(frame: client.Credit) -> None:
        done.append(frame.id)
        bench.clock.rightNow += SLICE_SECONDS / 4

    bench.session._calls[client.Credit] = credit
    bench.say(*(client.Credit(number, 1) for number in range(10)))
    assert done == [0, 1, 2, 3]
    assert bench.session.busy
    bench.clock.advance(0)
    bench.session.go_on()
    assert done == list(range(8))
    bench.session.go_on()
    assert done == list(range(10))
    assert not bench.session.busy


def test_publishes_are_appended_in_slices_in_order(bench: Bench) -> None:
    bench.node.log.on_commit.append(bench.slow(SLICE_SECONDS / 2))
    bench.say(*(client.Publish(n + 1, f"c.{n}", 1, ONE) for n in range(10)))
    assert bench.session.busy
    assert len(bench.node.published) < 10
    slices = 0
    while bench.session.busy:
        bench.clock.advance(0)
        bench.session.go_on()
        slices += 1
    assert [draft.channel for draft in bench.node.published] == [f"c.{n}" for n in range(10)]
    assert slices >= 3


def test_frames_of_a_large_message_are_decoded_as_they_are_handed_on(bench: Bench) -> None:
    bench.node.log.on_commit.append(bench.slow(SLICE_SECONDS / 100))
    count = 5 * client.WHOLE_FRAMES
    bench.say(*(client.Publish(n + 1, f"c.{n}", 1, ONE) for n in range(count)))
    assert bench.session.busy
    while bench.session.busy:
        assert bench.session.publisher.waiting <= client.SLICE_FRAMES
        bench.clock.advance(0)
        bench.session.go_on()
    assert [draft.channel for draft in bench.node.published] == [f"c.{n}" for n in range(count)]


def test_a_large_publish_does_not_wait_once_it_is_decoded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = client.split_from_client

    def slowly(message: bytes) -> Any:
        bench.clock.rightNow += 2 * SLICE_SECONDS
        return decode(message)

    monkeypatch.setattr(client, "split_from_client", slowly)
    ids = tuple(str(number) for number in range(50_000))
    publish = client.Publish(1, "ids", len(ids), ONE * len(ids), None, ids)
    bench.node.log.on_commit.append(bench.slow(2 * SLICE_SECONDS))
    bench.say(client.Publish(1, "a", 1, ONE), publish, client.Publish(2, "b", 1, ONE))
    while bench.session.busy:
        assert bench.session.publisher.waiting == 0
        bench.clock.advance(0)
        bench.session.go_on()
    assert [draft.channel for draft in bench.node.published] == ["a", "b"]
    assert [frame.sequence for frame in bench.heard(client.PublishFailed)] == [1]


def test_a_malformed_frame_ends_a_large_message_where_it_is(bench: Bench) -> None:
    frames = [client.encode_frame(client.Publish(n + 1, f"c.{n}", 1, ONE)) for n in range(1100)]
    frames.insert(600, b"\x91\x7f")
    bench.session.message(client.join(frames, len(frames)), True)
    while bench.session.busy:
        bench.session.go_on()
    assert bench.heard(client.Failed)[0].error == "malformed"
    assert len(bench.node.published) == 512
    assert not bench.socket.open


def test_decoded_frames_count_while_they_wait(bench: Bench) -> None:
    held = bench.api.budget
    bench.node.log.on_commit.append(bench.slow(SLICE_SECONDS / 10))
    bench.say(*(client.Publish(n + 1, f"c.{n}", 1, ONE) for n in range(100)))
    assert held.held == FRAME_BYTES * bench.session.publisher.waiting > 0
    while bench.session.busy:
        bench.clock.advance(0)
        bench.session.go_on()
    assert held.held == 0
    bench.say(*(client.Publish(n + 101, f"c.{n}", 1, ONE) for n in range(100)))
    assert held.held > 0
    bench.session.closed()
    assert held.held == 0


def test_many_publishes_that_arrive_together_stop_the_reading(bench: Bench) -> None:
    bench.node.log.on_commit.append(bench.slow(SLICE_SECONDS / 10))
    few = [client.Publish(1, f"c.{n}", 1, ONE) for n in range(600)]
    bench.session.message(client.encode(few), True)
    assert not bench.session.busy
    bench.session.message(client.encode(few), True)
    assert bench.session.busy


def test_frames_behind_publishes_wait_until_those_are_appended(bench: Bench) -> None:
    bench.node.log.on_commit.append(bench.slow(SLICE_SECONDS))
    bench.say(
        client.Publish(1, "a", 1, ONE),
        client.Publish(2, "b", 1, ONE),
        client.Subscribe(7, (">",), "latest", "", 1),
    )
    assert not bench.heard(client.Subscribed)
    while bench.session.busy:
        bench.clock.advance(0)
        bench.session.go_on()
    assert [frame.next for frame in bench.heard(client.Subscribed)] == [bench.node.log.next]


def test_no_frames_are_accepted_from_a_client_that_does_not_read(bench: Bench) -> None:
    bench.socket.is_stuck = True
    bench.say(*(client.ConsumerAck(number, 1) for number in range(10)))
    assert len(bench.heard(client.AckFailed)) == 1
    assert bench.session.busy
    bench.socket.is_stuck = False
    bench.session.go_on()
    assert len(bench.heard(client.AckFailed)) == 10
    assert not bench.session.busy


def test_repeated_watch_requests_get_one_status(bench: Bench) -> None:
    bench.say(*[client.WatchStatus()] * 1000)
    bench.clock.advance(0)
    assert len(bench.heard(client.StatusChanged)) == 1
    bench.say(client.WatchStatus())
    bench.clock.advance(0)
    assert len(bench.heard(client.StatusChanged)) == 2


def test_link_changes_are_merged_for_a_client_that_does_not_read(bench: Bench) -> None:
    bench.node.links["other"] = link("other")
    bench.say(client.WatchStatus())
    bench.clock.advance(0)
    bench.socket.paused = True
    for state in ("waiting", "up") * 50:
        bench.node.change("hub", state)
        bench.node.change("other", state)
        bench.say(client.WatchStatus())
        bench.clock.advance(0)
    assert len(bench.heard(client.StatusChanged)) == 1
    bench.socket.paused = False
    bench.session.on_writable()
    bench.clock.advance(0)
    told = bench.heard(client.StatusChanged)[1:]
    assert [len(frame.links) for frame in told] == [2, 1, 1]
    bench.session.closed()
    bench.clock.advance(0)


def test_patterns_are_bounded_for_each_subscription_and_each_connection(bench: Bench) -> None:
    wide = tuple(f"a.{number:04}" + ".b" * 30 for number in range(130))
    bench.say(client.Subscribe(1, wide, "latest", "", 1))
    assert "8192 bytes" in bench.heard(client.Failed)[0].message
    fitting = wide[:120]
    size = sum(map(len, fitting))
    for number in range(2, 20):
        bench.say(client.Subscribe(number, fitting, "latest", "", 1))
    assert len(bench.heard(client.Subscribed)) == MAX_PATTERNS_BYTES // size
    held = bench.api.budget.held
    bench.say(client.Unsubscribe(2), client.Subscribe(30, fitting, "latest", "", 1))
    assert len(bench.heard(client.Subscribed)) == MAX_PATTERNS_BYTES // size + 1
    assert bench.api.budget.held == held
    bench.session.closed()
    assert bench.api.budget.held == 0


def test_too_many_records_in_a_publish_are_refused(bench: Bench) -> None:
    bench.say(client.Publish(1, "a", 65_537, ONE * 65_537))
    assert "at most 65536 records" in bench.heard(client.PublishFailed)[0].message


def test_waits_are_counted_and_cancelled_in_slices(bench: Bench) -> None:
    bench.say(*(client.WaitForPeer(number, "hub", "orders", 2**40, 60.0) for number in range(100)))
    assert bench.api.budget.held == 100 * WAIT_BYTES
    bench.session.closed()
    for _ in range(3):
        bench.clock.advance(0)
    assert bench.api.budget.held == 0
    bench.api.budget.for_caller(ANYONE.name).add(bench.api.budget.most)
    session = StreamSession(bench.api, ANYONE, bench.socket)
    session.message(client.encode([client.Open(1)]), True)
    session.message(client.encode([client.WaitForPeer(1, "hub", "orders", 2**40, 60.0)]), True)
    session.flush()
    assert bench.heard(client.WaitResult)[-1].error == "too-many"


def test_a_run_with_a_malformed_publish_goes_one_by_one_in_slices(bench: Bench) -> None:
    bench.node.log.on_commit.append(bench.slow(SLICE_SECONDS))
    bench.say(
        *(client.Publish(n + 1, "a", 1, ONE if n != 5 else b"\xc1") for n in range(10)),
    )
    assert sum(draft.count for draft in bench.node.published) == 1
    while bench.session.busy:
        bench.clock.advance(0)
        bench.session.go_on()
    assert sum(draft.count for draft in bench.node.published) == 9
    assert [frame.sequence for frame in bench.heard(client.PublishFailed)] == [6]


def test_waits_end_when_their_time_is_over_each_once(bench: Bench) -> None:
    started = bench.clock.seconds()
    bench.say(*(client.WaitForPeer(n, "hub", "orders", 2**40, 9.0 - n) for n in range(8)))
    bench.clock.rightNow = started + 3.5
    for _ in range(2):
        bench.clock.advance(0)
    results = bench.heard(client.WaitResult)
    assert [(one.id, one.error) for one in results] == [(n, "timeout") for n in (7, 6)]
    bench.say(client.WaitForPeer(7, "hub", "orders", 2**40, 60.0))
    bench.clock.rightNow = started + 20.0
    for _ in range(3):
        bench.clock.advance(0)
    results = bench.heard(client.WaitResult)
    assert [one.id for one in results[2:]] == [5, 4, 3, 2, 1, 0]
    assert bench.api.budget.held == WAIT_BYTES
    bench.node.links.reached["hub"] = 2**40
    bench.node.links.waits[-1][2].callback(None)
    assert bench.heard(client.WaitResult)[-1] == client.WaitResult(7)
    assert bench.api.budget.held == 0


def test_answered_waits_leave_little_behind(bench: Bench) -> None:
    for number in range(1000):
        bench.say(client.WaitForPeer(number, "hub", "orders", 2**40, 3600.0))
        bench.node.links.waits.pop()[2].callback(None)
    assert len(bench.heard(client.WaitResult)) == 1000
    assert len(bench.session._waits._ends) <= 65


def test_a_wait_for_a_peer_that_is_removed_is_answered(bench: Bench) -> None:
    bench.say(client.WaitForPeer(1, "hub", "orders", 2**40, 60.0))
    bench.node.links.waits[0][2].errback(CancelledError())
    (result,) = bench.heard(client.WaitResult)
    assert (result.id, result.error) == (1, "not-found")
    assert bench.api.budget.held == 0


@pytest.mark.parametrize("count", [1, 3])
def test_a_large_publish_is_stored_as_it_came(bench: Bench, count: int) -> None:
    records = encode_records([EncodedRecord(bytes(300_000))] * count)
    taken: list[NewRecords] = []

    def publish(draft: NewRecords, settled: object) -> None:
        taken.append(draft)

    bench.node.publish = publish  # type: ignore[assignment, method-assign]
    bench.say(client.Publish(1, "a", count, records, 5.0, (), ""))
    assert [(one.count, one.records, one.ttl) for one in taken] == [(count, records, 5.0)]
    assert isinstance(taken[0].records, memoryview if count == 1 else bytes)


def test_a_large_frame_that_is_no_publish_is_refused_by_its_own_bounds(bench: Bench) -> None:
    bench.say(client.Subscribe(1, ("a" * 300_000,), "latest", "", 1))
    (failed,) = bench.heard(client.Failed)
    assert "length <= 255" in failed.message
