"""The session: what each new connection gets, and that nothing is settled or handed on twice."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from linkd.client.aio import AsyncioLoop, AsyncioWire
from linkd.client.connection import bearer
from linkd.client.errors import (
    ClientError,
    Closed,
    NoDaemon,
    OffsetUnknown,
    Refused,
    Replaced,
    TimedOut,
    stored_at,
)
from linkd.client.options import address
from linkd.client.publisher import NO_TERMS, InFlightPublishes
from linkd.client.record import Record, RecordContext, pack
from linkd.client.session import DaemonSession
from linkd.client.subscription import SubscriptionState
from linkd.errors import BodyTooLarge, ChannelRefused, Gap, LinkdError, LogFull
from linkd.protocol import client
from linkd.protocol.client import Published
from linkd.protocol.peer import EpochStart
from linkd.protocol.records import BATCH_OVERHEAD_BYTES, encode_records
from linkd.protocol.records import EncodedRecord as Encoded
from linkd.version import VERSION
from tests.support.stream_daemon import LINK


class Taker:
    """Notes what a reader hands on."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.gaps: list[tuple[int, int]] = []
        self.lost = 0
        self.end: list[LinkdError | None] = []

    def records(self, records: list[Record], size: int) -> None:
        self.offsets += [record.offset for record in records]

    def gap(self, gap: Gap) -> None:
        self.gaps.append((gap.wanted, gap.first))

    def dropped(self, count: int) -> None:
        self.lost += count

    def ended(self, error: LinkdError | None) -> None:
        self.end.append(error)


def frames(session: DaemonSession, now: float = 0.0) -> list[client.FromClient]:
    return [frame for message in session.take(now) for frame in client.decode_from_client(message)]


def tell(session: DaemonSession, *told: client.FromDaemon) -> None:
    session.received(client.encode(told))


def opened(
    log: str = "L", next: int = 1, pending: int = 1 << 20, epochs: dict[str, int] | None = None
) -> client.Opened:
    starts = tuple(EpochStart(epoch, first) for epoch, first in (epochs or {}).items())
    return client.Opened(1, "edge-1", "fake", log, next, 1000, pending, 0, starts)


def up(session: DaemonSession, **more: object) -> list[client.FromClient]:
    """Bring a new connection up and return what is restored on it."""
    session.connected()
    (hello,) = frames(session)
    assert isinstance(hello, client.Open)
    tell(session, opened(**more))  # type: ignore[arg-type]
    watch, *restored = frames(session)
    assert watch == client.WatchStatus()
    return restored


def reader(
    session: DaemonSession, taker: Taker, start: client.Start = "latest", consumer: str = ""
) -> SubscriptionState:
    async def ack(_: int, era: int) -> None:
        """Not used."""

    made = session.subscribe(["a"], start, consumer, window=1000)
    made.queue = taker
    made.reading = RecordContext(lambda body, _: body, ack)
    return made


def deliver(id: int, offset: int, count: int) -> client.Deliver:
    records = encode_records([Encoded(b"x")] * count)
    return client.Deliver(id, offset, "a", count, records, 0.0, "edge-1", offset)


def test_publishes_are_sent_again_under_their_numbers_and_settled_once() -> None:
    session = DaemonSession("p")
    settled: list[Published | LinkdError] = []
    for index in range(3):
        session.flight.add("a", 1, b"%d" % index, settled.append)
    assert session.take(0.0) == []
    sent = up(session)
    assert [frame.sequence for frame in sent if isinstance(frame, client.Publish)] == [1, 2, 3]
    tell(session, client.Published(1, 10, 1))
    session.lost()
    assert not session.open
    sent = up(session, next=13)
    assert [frame.sequence for frame in sent if isinstance(frame, client.Publish)] == [2, 3]
    tell(session, client.Published(2, 11, 0, duplicate=True), client.PublishedRun(2, 11, 2))
    assert [each.offset for each in settled if isinstance(each, Published)] == [10, 11, 12]
    assert session.flight.bytes == 0


def test_a_repeat_whose_offset_is_forgotten_never_settles_with_another() -> None:
    session = DaemonSession("p")
    settled: list[Published | LinkdError] = []
    offsets: list[int | LinkdError] = []
    session.flight.add("a", 1, b"0", settled.append)
    for record in (b"1", b"2"):
        session.gatherer.add("a", record, NO_TERMS, offsets.append)
    session.flight.add("volatile", 1, b"3", settled.append)
    up(session)
    tell(session, client.Published(1, 0, 0, duplicate=True), client.Published(2, 0, 1))
    tell(session, client.Published(3, 0, 0, duplicate=True))
    assert [type(each) for each in settled] == [OffsetUnknown, Published]
    assert [type(each) for each in offsets] == [OffsetUnknown] * 2


def test_no_more_is_sent_ahead_than_the_daemon_takes() -> None:
    session = DaemonSession("p")
    settled: list[Published | LinkdError] = []
    for _ in range(5):
        session.flight.add("a", 1, b"x" * 40, settled.append)
    assert len(up(session, pending=2 * BATCH_OVERHEAD_BYTES + 100)) == 2
    tell(session, client.Published(1, 1, 1))
    assert [frame.sequence for frame in frames(session) if isinstance(frame, client.Publish)] == [3]
    session.lost()
    assert len(up(session, pending=2 * BATCH_OVERHEAD_BYTES + 100)) == 2


def test_a_bound_that_was_lowered_is_obeyed_from_the_next_opened_on() -> None:
    session = DaemonSession("p")
    settled: list[Published | LinkdError] = []
    up(session, pending=100 * BATCH_OVERHEAD_BYTES)
    for _ in range(5):
        session.flight.add("a", 1, b"x", settled.append)
    assert len([f for f in frames(session) if isinstance(f, client.Publish)]) == 5
    tell(session, client.PublishFailed(1, "too-many", "why"))
    assert [type(f) for f in frames(session)] == [client.Open]
    tell(session, *[client.PublishFailed(number, "too-many", "why") for number in range(2, 6)])
    tell(session, client.Opened(1, "n", "s", "log", 1, 1 << 20, 2 * BATCH_OVERHEAD_BYTES + 10))
    for _ in range(5):
        session.flight.add("a", 1, b"x", settled.append)
    assert len([f for f in frames(session) if isinstance(f, client.Publish)]) == 2


def test_single_records_of_one_turn_become_one_publish_a_channel() -> None:
    session = DaemonSession("p")
    offsets: list[int | LinkdError] = []
    for index in range(4):
        session.gatherer.add("ab"[index % 2], pack([Encoded(b"x")]), NO_TERMS, offsets.append)
    sent = up(session)
    counts = [(f.channel, f.count) for f in sent if isinstance(f, client.Publish)]
    assert counts == [("a", 2), ("b", 2)]
    tell(session, client.Published(1, 7, 2), client.PublishFailed(2, "malformed", "why"))
    assert offsets[:2] == [7, 8]
    assert all(isinstance(each, LinkdError) for each in offsets[2:])


def test_large_gatherings_are_cut() -> None:
    session = DaemonSession("p")
    for _ in range(3):
        session.gatherer.add("a", pack([Encoded(b"x" * 40_000)]), NO_TERMS, lambda _: None)
    sent = up(session)
    assert [f.count for f in sent if isinstance(f, client.Publish)] == [1, 1, 1]


def test_after_a_full_log_the_session_begins_anew_once() -> None:
    session = DaemonSession("p")
    settled: list[Published | LinkdError] = []
    session.flight.add("a", 1, b"x", settled.append)
    session.flight.add("a", 1, b"x", settled.append)
    up(session)
    tell(session, *(client.PublishFailed(n, "log-full", "no room") for n in (1, 2)))
    assert [type(each) for each in settled] == [LogFull, LogFull]
    assert [type(frame) for frame in frames(session)] == [client.Open]
    tell(session, opened())
    assert frames(session) == []


def test_what_a_stopping_daemon_refuses_stays_for_the_next() -> None:
    session = DaemonSession("p")
    settled: list[Published | LinkdError] = []
    session.flight.add("a", 1, b"x", settled.append)
    up(session)
    tell(session, client.PublishFailed(1, "unavailable", "stopping"))
    session.lost()
    assert settled == []
    assert len(up(session)) == 1


def test_a_subscription_goes_on_where_it_stood_and_hands_on_nothing_twice() -> None:
    session, taker = DaemonSession("p"), Taker()
    made = reader(session, taker)
    assert up(session, next=5) == [client.Subscribe(1, ("a",), "latest", "", 1000)]
    tell(session, client.Subscribed(1, 5), deliver(1, 5, 3))
    session.lost()
    assert up(session, next=9) == [client.Subscribe(1, ("a",), 8, "", 1000 - made_size(3))]
    tell(session, client.Subscribed(1, 8), deliver(1, 6, 2), deliver(1, 7, 2))
    assert taker.offsets == [5, 6, 7, 8]
    assert made.next == 9


def made_size(count: int) -> int:
    return len(encode_records([Encoded(b"x")] * count))


def test_a_subscription_before_its_first_answer_begins_anew() -> None:
    session, taker = DaemonSession("p"), Taker()
    reader(session, taker, "earliest")
    up(session)
    session.lost()
    (again,) = up(session)
    assert isinstance(again, client.Subscribe)
    assert again.start == "earliest"


def test_a_log_that_is_another_is_read_from_its_start_and_one_that_shrank_from_its_end() -> None:
    session, taker = DaemonSession("p"), Taker()
    reader(session, taker)
    up(session, next=5)
    tell(session, client.Subscribed(1, 5), deliver(1, 5, 3))
    session.lost()
    (shrunk,) = up(session, next=6)
    assert isinstance(shrunk, client.Subscribe)
    assert shrunk.start == 6
    session.lost()
    (other,) = up(session, log="M", next=3)
    assert isinstance(other, client.Subscribe)
    assert other.start == "earliest"


def test_credit_is_given_back_as_records_are_used() -> None:
    session, taker = DaemonSession("p"), Taker()
    made = reader(session, taker)
    up(session)
    tell(session, client.Subscribed(1, 1), deliver(1, 1, 3))
    made.consumed(100)
    assert frames(session) == []
    made.consumed(150)
    assert frames(session) == [client.Credit(1, 250)]


def test_acks_are_cumulative_and_sent_again() -> None:
    session, taker = DaemonSession("p"), Taker()
    made = reader(session, taker, "earliest", "billing")
    up(session)
    done: list[tuple[int, LinkdError | None]] = []
    for next_ in (2, 3):
        made.ack(next_, lambda error, next_=next_: done.append((next_, error)))  # type: ignore[misc]
    assert frames(session) == [client.ConsumerAck(1, 3)]
    tell(session, client.ConsumerAcked(1, 2))
    assert done == [(2, None)]
    session.lost()
    assert client.ConsumerAck(1, 3) in up(session)
    tell(session, client.ConsumerAcked(1, 3))
    assert done == [(2, None), (3, None)]
    made.ack(2, lambda error: done.append((0, error)))
    assert done[-1] == (0, None)
    assert frames(session) == []


def test_only_consumers_acknowledge() -> None:
    session, taker = DaemonSession("p"), Taker()
    errors: list[LinkdError | None] = []
    reader(session, taker).ack(2, errors.append)
    assert isinstance(errors[0], LinkdError)


def test_gaps_are_told_once() -> None:
    session, taker = DaemonSession("p"), Taker()
    reader(session, taker, 2)
    up(session, next=10)
    tell(session, client.Subscribed(1, 2), client.SubscriptionGap(1, 2, 5), deliver(1, 5, 1))
    tell(session, client.SubscriptionGap(1, 3, 6), client.SubscriptionGap(1, 4, 8))
    assert taker.gaps == [(2, 5), (6, 8)]


def test_a_quiet_subscription_resumes_at_its_position_and_hears_of_no_gap_of_others() -> None:
    session, taker = DaemonSession("p"), Taker()
    reader(session, taker, 2)
    up(session, next=10)
    tell(session, client.Subscribed(1, 2), deliver(1, 2, 1), client.Position(1, 60))
    session.lost()
    (again,) = [frame for frame in up(session, next=90) if isinstance(frame, client.Subscribe)]
    assert again.start == 60
    tell(session, client.Subscribed(1, 60), client.SubscriptionGap(1, 3, 60))
    assert (taker.offsets, taker.gaps) == ([2], [])


def test_volatile_records_and_drops_are_handed_on() -> None:
    session, taker = DaemonSession("p"), Taker()
    reader(session, taker)
    up(session)
    records = encode_records([Encoded(b"x")])
    tell(session, client.DeliverVolatile(1, "a", 1, records, 0.0, "edge-1", 4))
    assert (taker.offsets, taker.lost) == ([0], 4)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("unsubscribed", type(None)), ("replaced", Replaced), ("deleted", Refused)],
)
def test_an_end_is_told_with_its_reason(reason: str, kind: type) -> None:
    session, taker = DaemonSession("p"), Taker()
    reader(session, taker, "earliest", "billing")
    up(session)
    tell(session, client.Ended(1, reason), deliver(1, 1, 1))
    assert [type(each) for each in taker.end] == [kind]
    assert taker.offsets == []
    session.lost()
    assert up(session) == []


def test_a_daemon_that_stops_ends_no_subscription() -> None:
    session, taker = DaemonSession("p"), Taker()
    reader(session, taker)
    up(session)
    tell(session, client.Ended(1, "stopped"))
    session.lost()
    assert len(up(session)) == 1
    assert taker.end == []


def test_unsubscribing_ends_it_here_and_there() -> None:
    session, taker = DaemonSession("p"), Taker()
    made = reader(session, taker)
    up(session)
    session.unsubscribe(made)
    session.unsubscribe(made)
    assert frames(session) == [client.Unsubscribe(1)]
    assert taker.end == [None]


def test_a_refused_subscription_ends_and_a_refused_connection_is_remembered() -> None:
    session, taker = DaemonSession("p"), Taker()
    reader(session, taker)
    up(session)
    tell(session, client.Failed(1, "channel-refused", "no"))
    assert [type(each) for each in taker.end] == [Refused]
    tell(session, client.Failed(0, "replaced", "another"))
    assert session.displaced


def test_waits_are_asked_again_and_end_in_time() -> None:
    session = DaemonSession("p")
    done: list[LinkdError | None] = []
    session.wait("hub", "a", 8, 30.0, done.append)
    session.wait("hub", "a", 0, 40.0, done.append)
    first, second = (
        frame for frame in up(session, next=20) if isinstance(frame, client.WaitForPeer)
    )
    assert (first.next, first.timeout, second.next) == (8, 30.0, 0)
    session.lost()
    session.connected()
    frames(session)
    tell(session, opened())
    assert [f.timeout for f in frames(session, 10.0) if isinstance(f, client.WaitForPeer)] == [
        20.0,
        30.0,
    ]
    tell(session, client.WaitResult(first.id))
    assert done == [None]
    assert session.expire(39.0) == 40.0
    assert session.expire(40.0) is None
    assert isinstance(done[1], TimedOut)
    session.wait("x", "a", 8, 99.0, done.append)
    (third,) = frames(session, 50.0)
    assert isinstance(third, client.WaitForPeer)
    tell(session, client.WaitResult(third.id, "not-found", "no x"), client.WaitResult(third.id))
    assert isinstance(done[2], Refused)


def test_closing_settles_all() -> None:
    session, taker = DaemonSession("p"), Taker()
    settled: list[Published | LinkdError] = []
    done: list[LinkdError | None] = []
    reader(session, taker)
    session.flight.add("a", 1, b"x", settled.append)
    session.wait("hub", "a", 8, 30.0, done.append)
    session.close(Closed("closed"))
    assert [type(each) for each in (*settled, *done, *taker.end)] == [Closed] * 3


def test_links_are_merged_and_forgotten_with_the_connection() -> None:
    session = DaemonSession("p")
    heard: list[dict[str, str]] = []
    session.on_links = heard.append
    up(session)
    tell(session, client.StatusChanged((LINK,)))
    other = client.msgspec.structs.replace(LINK, peer="b", state="waiting")
    tell(session, client.StatusChanged((other,), "link.waiting"))
    session.lost()
    assert heard == [{"hub": "up"}, {"hub": "up", "b": "waiting"}, {}]


def test_what_can_only_fail_is_refused_at_once() -> None:
    session = DaemonSession("p")
    with pytest.raises(ChannelRefused):
        session.check_publish("a b", 1, "wait")
    with pytest.raises(NoDaemon):
        session.check_publish("a", 1, "fail")
    up(session)
    session.check_publish("a", 1000, "fail")
    with pytest.raises(BodyTooLarge):
        session.check_publish("a", 1001, "wait")
    for patterns in ([], ["a b"]):
        with pytest.raises(ChannelRefused):
            session.subscribe(patterns, "latest")


def opened_above(highest: int) -> client.Opened:
    return client.Opened(1, "n", "s", "L", 1, 1000, 1 << 20, highest)


def test_numbers_begin_above_those_that_the_daemon_has_of_the_producer() -> None:
    session = DaemonSession("p", run="r")
    settled: list[Published | LinkdError] = []
    session.flight.add("a", 1, b"x", settled.append)
    session.connected()
    assert frames(session)[0] == client.Open(client.VERSION, "p", f"linkd-python {VERSION}", "r")
    tell(session, opened_above(7))
    _, sent = frames(session)
    assert isinstance(sent, client.Publish)
    assert sent.sequence == 8


def numbers(flight: InFlightPublishes) -> list[int]:
    """Return the numbers of what may be sent now."""
    ready = flight.next_to_send()
    frames = client.decode_from_client(client.join(ready, len(ready)))
    return [frame.sequence for frame in frames if isinstance(frame, client.Publish)]


def test_a_number_that_did_not_fit_yet_counts_as_never_sent() -> None:
    """Another client of the name used it meanwhile: its record was taken for a repeat of ours."""
    flight = InFlightPublishes(1000)
    settled: list[Published | LinkdError] = []
    for _ in range(2):
        flight.add("a", 1, b"x" * 600, settled.append)
    assert numbers(flight) == [1]
    flight.published(Published(1, 1, 1))
    flight.lost()
    flight.begin_above(2)
    assert numbers(flight) == [3]
    assert settled == [Published(1, 1, 1)]


def test_what_another_client_of_the_name_may_have_hidden_is_unknown() -> None:
    session = DaemonSession("p")
    settled: list[Published | LinkdError] = []
    session.flight.add("a", 1, b"x", settled.append)
    up(session)
    session.lost()
    session.flight.add("a", 1, b"new", settled.append)
    session.connected()
    frames(session)
    tell(session, opened_above(3))
    (unknown,) = settled
    assert isinstance(unknown, Refused)
    assert unknown.error == "sequence-unproven"
    (_, sent) = frames(session)
    assert isinstance(sent, client.Publish)
    assert (sent.sequence, sent.records) == (4, b"new")


def test_a_refused_ack_fails_its_own_call_only() -> None:
    session, taker = DaemonSession("p"), Taker()
    made = reader(session, taker, "earliest", "billing")
    up(session)
    tell(session, client.Subscribed(1, 1))
    done: list[LinkdError | None] = []
    made.ack(5, done.append)
    assert frames(session) == [client.ConsumerAck(1, 5)]
    tell(session, client.AckFailed(1, 5, "log-full", "no room"))
    assert [type(each) for each in done] == [Refused]
    assert frames(session) == []
    made.ack(5, done.append)
    assert frames(session) == [client.ConsumerAck(1, 5)]
    tell(session, client.ConsumerAcked(1, 5))
    assert done[1] is None
    assert taker.end == []


def test_a_stopping_daemon_gets_no_acks_and_the_next_one_gets_them() -> None:
    session, taker = DaemonSession("p"), Taker()
    made = reader(session, taker, "earliest", "billing")
    up(session)
    tell(session, client.Subscribed(1, 1))
    done: list[LinkdError | None] = []
    made.ack(5, done.append)
    assert frames(session) == [client.ConsumerAck(1, 5)]
    tell(session, client.Ended(1, "stopped"), client.AckFailed(1, 5, "not-found", "none"))
    made.ack(6, done.append)
    assert (frames(session), done) == ([], [])
    session.lost()
    assert client.ConsumerAck(1, 6) in up(session)
    tell(session, client.ConsumerAcked(1, 6))
    assert (done, taker.end) == ([None, None], [])


def test_no_frame_but_the_answer_to_it_refuses_a_subscription() -> None:
    session, taker = DaemonSession("p"), Taker()
    reader(session, taker)
    up(session)
    tell(session, client.Subscribed(1, 1), client.Failed(1, "not-found", "late"))
    tell(session, client.Failed(99, "not-found", "of nobody"))
    assert taker.end == []
    assert session.last_failure is None


def test_a_transport_need_not_be_a_subclass_of_asyncios() -> None:
    async def check() -> None:
        written: list[bytes] = []
        transport: Any = SimpleNamespace(is_closing=lambda: False, write=written.append)
        wire = AsyncioWire(address("/x"), {}, DaemonSession("p"), lambda: None, AsyncioLoop())
        wire.connection_made(transport)
        assert b"".join(written).startswith(b"GET /v1/stream")

    asyncio.run(check())


def test_a_key_function_that_fails_fails_the_attempt_only() -> None:
    def html() -> str:
        raise ValueError("Expecting value")

    for wrong in (html, lambda: 5, object):
        with pytest.raises(NoDaemon, match="no key"):
            asyncio.run(bearer(wrong, asyncio.CancelledError))  # type: ignore[arg-type]
    assert "Authorization" in asyncio.run(bearer(" k ", asyncio.CancelledError))


def test_a_daemon_that_waits_less_than_was_asked_for_is_asked_again() -> None:
    session = DaemonSession("p")
    done: list[LinkdError | None] = []
    up(session)
    session.wait("hub", "a", 8, 7200.0, done.append)
    (asked,) = frames(session)
    assert isinstance(asked, client.WaitForPeer)
    tell(session, client.WaitResult(asked.id, "timeout"))
    assert frames(session, 3600.0) == [client.WaitForPeer(asked.id, "hub", "a", 8, 3600.0)]
    assert done == []
    tell(session, client.WaitResult(asked.id, "timeout"))
    assert frames(session, 7200.0) == []
    assert [type(each) for each in done] == [TimedOut]


def test_what_fails_after_storing_says_where_it_is_stored() -> None:
    refused = stored_at(TimedOut("timeout", "late", 504), 7)
    assert isinstance(refused, TimedOut)
    assert (refused.error, refused.status, refused.offset) == ("timeout", 504, 7)
    closed = stored_at(Closed("closed"), 8)
    assert (type(closed), str(closed), closed.offset) == (Closed, "closed", 8)


THEN = {"e1": 1, "e2": 60}
"""Epochs of a log with 100 records, of which a copy was made at the 49th."""


@pytest.mark.parametrize(
    ("log", "next_", "epochs", "agreed"),
    [
        ("M", 200, {"f1": 1}, 0),
        ("L", 200, {"e7": 150, "e8": 170}, 0),  # nothing is known in common
        ("L", 50, {}, 50),
        ("L", 50, {"e1": 1}, 50),
        ("L", 200, {"e1": 1, "e9": 50}, 50),  # grown past the reader before it was back
        ("L", 200, {"e8": 1, "e1": 3, "e9": 50}, 50),
        ("L", 200, {"e1": 1, "e2": 60, "e9": 90}, 90),
    ],
)
def test_an_ack_counts_as_far_as_the_log_is_the_one_of_its_record(
    log: str, next_: int, epochs: dict[str, int], agreed: int
) -> None:
    session, taker = DaemonSession("p"), Taker()
    made = reader(session, taker, 1, "billing")
    up(session, next=101, epochs=THEN)
    tell(session, client.Subscribed(1, 1), deliver(1, 1, 100))
    done: list[LinkdError | None] = []
    made.ack(95, done.append, 0)
    made.ack(20, done.append, 0)
    frames(session)
    session.lost()
    subscribe, *acks = up(session, log=log, next=next_, epochs=epochs)
    assert isinstance(subscribe, client.Subscribe)
    assert subscribe.start == (agreed or "earliest")
    assert acks == ([client.ConsumerAck(1, agreed)] if agreed else [])
    assert [type(each) for each in done] == [ClientError] * (1 if agreed else 2)
    done.clear()
    made.ack(agreed + 1, done.append, 0)
    assert [type(each) for each in done] == [ClientError]
    made.ack(agreed + 1, done.append, made.era)
    assert frames(session) == [client.ConsumerAck(1, agreed + 1)]


@pytest.mark.parametrize(
    "epochs",
    [
        {"e1": 1, "e2": 60},  # the connection was lost, not the daemon
        {"e1": 1, "e2": 60, "e3": 101},  # it was started again
        {"e1": 1, "e2": 60, "e3": 150, "e4": 170},
        {},
    ],
)
def test_a_log_that_only_grew_is_the_same(epochs: dict[str, int]) -> None:
    session, taker = DaemonSession("p"), Taker()
    made = reader(session, taker, 1, "billing")
    up(session, next=101, epochs=THEN)
    tell(session, client.Subscribed(1, 1), deliver(1, 1, 100))
    done: list[LinkdError | None] = []
    made.ack(95, done.append, 0)
    frames(session)
    session.lost()
    subscribe, *acks = up(session, next=200, epochs=epochs)
    assert isinstance(subscribe, client.Subscribe)
    assert (subscribe.start, acks, done) == (101, [client.ConsumerAck(1, 95)], [])


def test_a_cursor_below_what_was_acknowledged_is_set_again() -> None:
    session, taker = DaemonSession("p"), Taker()
    made = reader(session, taker, 1, "billing")
    up(session)
    tell(session, client.Subscribed(1, 1), deliver(1, 1, 9))
    done: list[LinkdError | None] = []
    made.ack(10, done.append)
    frames(session)
    tell(session, client.ConsumerAcked(1, 10))
    session.lost()
    up(session, next=10)
    tell(session, client.Subscribed(1, 3))
    made.ack(8, done.append)
    assert done == [None]
    tell(session, client.ConsumerAcked(1, 10))
    assert done == [None, None]
