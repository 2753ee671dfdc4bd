"""Records on their way to a client: in slices, where there is room, and somebody who reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from linkd.api import sinks
from linkd.api.auth import ANYONE
from linkd.api.errors import ApiError
from linkd.api.server import ApiServer
from linkd.api.sinks import PATTERN_COST, SUBSCRIPTION_BYTES, RecordStream, SlicedSink
from linkd.net.rate_limit import SLICE_SECONDS
from linkd.protocol.records import (
    Batch,
    EncodedRecord,
    NewRecords,
    Origin,
    encode_records,
    read_records,
)
from tests.support.fake_node import FakeNode, make_config
from tests.support.step_clock import StepClock

COST = SUBSCRIPTION_BYTES + PATTERN_COST


class Sink(SlicedSink[bytes]):
    """One whose client reads when the test says so; each record takes a quarter of a slice."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.api, bench.api.budget.for_caller("shop"))
        self.reads = True
        self.got: list[bytes] = []
        self.clock = bench.clock

    def is_open_for(self, size: int) -> bool:
        return self.reads

    def pieces(self, batch: object) -> Iterator[bytes]:
        for record in read_records(batch.records, batch.count):  # type: ignore[attr-defined]
            self.clock.rightNow += SLICE_SECONDS / 4
            yield record.body  # type: ignore[union-attr]

    def put(self, pieces: list[bytes]) -> None:
        self.got += pieces

    def volatile(self, batch: object) -> None:
        raise AssertionError("nothing is volatile")

    def gap(self, first: int, next: int) -> None:
        raise AssertionError("nothing is gone")

    def end(self, reason: str) -> None:
        self.refund()


class Bench:
    """A node, its API, and one sink."""

    def __init__(self, directory: Path) -> None:
        self.clock = StepClock()
        config = make_config(directory)
        self.node = FakeNode(config, self.clock)
        self.api = ApiServer(self.node, config, self.clock)  # type: ignore[arg-type]
        self.sink = Sink(self)

    def publish(self, *bodies: bytes) -> None:
        records = encode_records([EncodedRecord(body) for body in bodies])
        self.node.publish(NewRecords("a", len(bodies), records, 0.0), lambda _: None)

    def follow(self) -> None:
        self.sink.subscribe(ANYONE, ("a",), "latest")
        self.clock.advance(0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_batch_of_many_records_is_sent_in_slices(bench: Bench) -> None:
    bench.follow()
    bodies = [b"%d" % number for number in range(20)]
    bench.publish(*bodies)
    assert bench.sink.got == bodies[:4]
    assert bench.sink.is_within
    bench.publish(b"next")
    for _ in range(10):
        before = len(bench.sink.got)
        bench.clock.advance(0)
        assert len(bench.sink.got) <= before + 20
    assert bench.sink.got == [*bodies, b"next"]
    assert not bench.sink.is_within


def test_within_bytes_is_the_size_of_the_whole_batch(bench: Bench) -> None:
    """A small one that used up its slice of time must not wait as a large one does."""
    bench.follow()
    bench.publish(b"1", b"2", b"3", b"4")
    assert len(bench.sink.got) == 4
    assert bench.sink.is_within  # its slice of time ended with the last record
    assert 0 < bench.sink.within_bytes < 100
    for _ in range(3):
        bench.clock.advance(0)
    assert bench.sink.within_bytes == 0


def test_records_wait_and_are_counted_while_the_client_does_not_read(bench: Bench) -> None:
    bench.follow()
    bench.sink.reads = False
    bench.publish(b"x" * 1000)
    bench.publish(b"y" * 1000)
    for _ in range(3):
        bench.clock.advance(0)
    assert bench.sink.got == []
    assert bench.api.budget.held > COST + 2000
    bench.sink.reads = True
    bench.sink.resume()
    for _ in range(3):
        bench.clock.advance(0)
    assert bench.sink.got == [b"x" * 1000, b"y" * 1000]
    assert bench.api.budget.held == COST
    bench.sink.close()
    assert bench.api.budget.held == 0


def test_waiting_records_are_dropped_without_memory_and_read_again(bench: Bench) -> None:
    bench.follow()
    bench.sink.reads = False
    part = bench.api.budget.for_caller("shop")
    filled = bench.api.budget.most - bench.api.budget.held
    part.add(filled)
    bodies = [b"%d" % number for number in range(5)]
    for body in bodies:
        bench.publish(body)
    assert bench.api.budget.held == bench.api.budget.most
    part.release(filled)
    bench.sink.reads = True
    bench.sink.resume()
    for _ in range(10):
        bench.clock.advance(0)
    assert bench.sink.got == bodies


def test_records_wait_for_a_turn_when_the_share_is_used_up(bench: Bench) -> None:
    bench.follow()
    bench.api.share.queue(lambda: None)
    bench.publish(b"x")
    assert bench.sink.got == []
    for _ in range(3):
        bench.clock.advance(0)
    assert bench.sink.got == [b"x"]


def test_a_subscription_without_memory_is_refused_and_a_failed_one_costs_nothing(
    bench: Bench,
) -> None:
    part = bench.api.budget.for_caller("shop")
    part.add(bench.api.budget.most)
    with pytest.raises(ApiError, match="too much memory"):
        bench.sink.subscribe(ANYONE, ("a",), "latest")
    part.release(bench.api.budget.most)

    def refuse(*_: object) -> None:
        raise ApiError("too-many", "refused")

    bench.node.subscriptions.subscribe = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(ApiError, match="refused"):
        bench.sink.subscribe(ANYONE, ("a",), "latest")
    assert bench.api.budget.held == 0


class Stream:
    """An event stream whose caller reads when the test says so."""

    def __init__(self, bench: Bench) -> None:
        self.budget = bench.api.budget.for_caller("shop")
        self.paused = False
        self.got = b""

    def has_room(self, size: int, then: object) -> bool:
        return not self.paused

    def send(self, lines: bytes) -> bool:
        self.got += lines
        return not self.paused


def test_a_large_batch_stops_where_the_client_no_longer_reads(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "SLICE_BYTES", 100)
    bench.follow()
    body = b"x" * 50

    def put(pieces: list[bytes]) -> None:
        bench.sink.got += pieces
        bench.sink.reads = False

    bench.sink.put = put  # type: ignore[method-assign]
    bench.publish(body, body, body)
    for _ in range(3):
        bench.clock.advance(0)
    assert len(bench.sink.got) == 2
    assert bench.sink.is_within
    bench.sink.reads = True
    bench.sink.resume()
    assert len(bench.sink.got) == 3


def test_an_event_stream_reports_the_volatile_messages_that_it_dropped(bench: Bench) -> None:
    stream = Stream(bench)
    sink = RecordStream(bench.api, stream)  # type: ignore[arg-type]
    records = encode_records([EncodedRecord(b"1"), EncodedRecord(b"2")])
    batch = Batch(0, "a", 2, records, 0.0, Origin("edge-1", "l", "e", 0, 0))
    stream.paused = True
    sink.volatile(batch)
    assert stream.got == b""
    stream.paused = False
    sink.volatile(batch)
    assert stream.got.startswith(b'event: gap\ndata: {"dropped":2}\n\n')
    assert stream.got.count(b"data: ") == 3
    sink.volatile(batch)
    assert stream.got.count(b"event: gap") == 1


def test_a_subscription_reports_its_position_without_own_records(bench: Bench) -> None:
    bench.follow()
    subscription = bench.sink.subscription
    assert subscription is not None
    bench.node.publish(
        NewRecords("b", 1, encode_records([EncodedRecord(b"x")]), 0.0), lambda _: None
    )
    assert subscription.position() == 2
    bench.sink.reads = False
    bench.publish(b"1")
    bench.node.publish(
        NewRecords("b", 1, encode_records([EncodedRecord(b"x")]), 0.0), lambda _: None
    )
    assert subscription.position() == 2, "one of its own waits for room"
    bench.sink.reads = True
    bench.sink.resume()
    assert subscription.position() == 4
