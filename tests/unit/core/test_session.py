"""A session with a peer that keeps to the protocol, and with one that does not."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from linkd.core.session import Handshake, Session
from linkd.core.session_effects import (
    Acked,
    Effect,
    EpochsDiverged,
    ForwardVolatile,
    LogEvent,
    OffsetsLost,
    Read,
    RecordsExpired,
    RecordsRefused,
    Rewind,
    Send,
    SessionSettings,
    Store,
)
from linkd.errors import RemoteProtocolError
from linkd.protocol import peer
from linkd.protocol.channels import Patterns
from linkd.protocol.peer import (
    Ack,
    BatchMessage,
    Cursor,
    EpochEnd,
    EpochStart,
    GapNotice,
    Hello,
    Part,
    Volatile,
)
from linkd.protocol.records import (
    BATCH_OVERHEAD_BYTES,
    MAX_BATCH_BYTES,
    Batch,
    EncodedRecord,
    Origin,
    SourcePosition,
    decode_records,
    encode_records,
)
from tests.support.session_model import check_order

ORIGIN = Origin("hub", "hublog", "e1", 1)
HERE = Origin("edge", "edgelog", "m1", 1)


def packed(records: bytes) -> bytes:
    """Stand in for a compressor."""
    return zlib.compress(records)


def unpacked(records: bytes, most: int) -> bytes:
    """Stand in for its other half."""
    try:
        found = zlib.decompress(records)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(found) > most:
        raise ValueError(f"{len(found)} bytes")
    return found


def hello(node: str = "hub", cursor: Cursor | None = None, **changes: Any) -> Hello:
    """Return a hello; the hub's log reaches from 1 to 99 in `e1`."""
    fields: dict[str, Any] = {
        "log": f"{node}log",
        "epochs": (EpochStart("e1" if node == "hub" else "m1", 1),),
        "next": 100,
        "wants": (">",),
        "compress": (),
    } | changes
    return Hello(
        1,
        node,
        "test",
        peer.Generation("b", 1),
        fields["log"],
        fields["epochs"],
        fields["next"],
        cursor,
        fields["wants"],
        5.0,
        "",
        fields["compress"],
    )


def at(next: int, log: str = "hublog", epoch: str = "e1", committed: int | None = None) -> Cursor:
    """Return a cursor in one epoch."""
    return Cursor(log, (EpochEnd(epoch, next),), next if committed is None else committed)


def made(**changes: Any) -> Session:
    """Return the edge's session with the hub; it takes orders and sends all."""
    pack, unpack = changes.pop("pack", None), changes.pop("unpack", None)
    settings = SessionSettings("edge", "hub", Patterns((">",)), Patterns(("orders",)), **changes)
    return Session(settings, lambda position: "m1", pack, unpack)


def greeted(
    session: Session,
    cursor: Cursor | None = None,
    theirs: Hello | None = None,
    acked: int = 1,
    writable: bool = True,
) -> list[Effect]:
    """Begin on a connection; `cursor` is where the edge stands in the hub's log."""
    ours = hello("edge", cursor)
    session.outbound.log_next = ours.next
    return session.greeted(Handshake(ours, theirs or hello(), acked, writable), 0.0)


def begun(cursor: Cursor | None = None, **changes: Any) -> Session:
    """Return a session on a connection, at offset 10 of the hub's log."""
    session = made(**changes)
    greeted(session, cursor or at(10))
    return session


def step(previous: int, next: int, *bodies: bytes, **changes: Any) -> BatchMessage:
    """Return a step with these records."""
    records = encode_records(EncodedRecord(body) for body in bodies)
    fields: dict[str, Any] = {
        "channel": "orders",
        "count": len(bodies),
        "size": len(records),
        "records": records,
        "origin": ORIGIN,
        "encoding": "",
    } | changes
    if not bodies and not changes:
        return BatchMessage(previous, next, "e1")
    return BatchMessage(
        previous,
        next,
        "e1",
        fields["channel"],
        fields["count"],
        fields["size"],
        fields["records"],
        1.0,
        None,
        fields["origin"],
        fields["encoding"],
    )


def batch(offset: int, *bodies: bytes, **changes: Any) -> Batch:
    """Return a batch of our log."""
    fields: dict[str, Any] = {"channel": "orders", "ttl": None, "stamp": 0.0} | changes
    records = encode_records(EncodedRecord(body) for body in bodies)
    origin = Origin("edge", "edgelog", "m1", offset)
    return Batch(
        offset,
        fields["channel"],
        len(bodies),
        records,
        1.0,
        fields.get("origin", origin),
        "m1",
        fields["ttl"],
        fields["stamp"],
        fields.get("source"),
    )


def sent(effects: Sequence[Effect]) -> list[peer.Message]:
    """Return the messages that were sent."""
    return [peer.decode(each.payload) for each in effects if isinstance(each, Send)]


LARGE = encode_records([EncodedRecord(bytes(70_000))])
FULL, REST = LARGE[:MAX_BATCH_BYTES], LARGE[MAX_BATCH_BYTES:]
BEGINNING = step(10, 11, b"", count=1, size=len(LARGE), records=FULL)
VOLATILE = Volatile("orders", 2, b"\xc0", 1.0, None, "hub", "r", 1)


DEEP = b"\x91" * 981 + b"\xc0"


@pytest.mark.parametrize(
    ("records", "count"),
    [(DEEP, 1), (DEEP * 3, 3), (b"\xc1", 1), (b"\xc0\xc0\xc0", 1), (b"\x91\x01\x05", 2)],
)
def test_what_a_peer_has_stored_is_taken_whatever_is_inside(records: bytes, count: int) -> None:
    session = begun()
    (store,) = session.received(
        step(10, 10 + count, records=records, count=count, size=len(records)), 0.0
    )
    assert isinstance(store, Store)
    assert (store.batch.records, store.batch.count) == (records, count)
    (passed,) = session.received(
        msgspec.structs.replace(VOLATILE, records=records, count=count), 0.0
    )
    assert isinstance(passed, ForwardVolatile)


@pytest.mark.parametrize(
    ("messages", "said", "code"),
    [
        ([step(10, 10, b"x")], "a step from 10 to 10", 3002),
        ([step(11, 12, b"x")], "from 11, expected one from 10", 3002),
        ([step(9, 12, b"x")], "from 9, expected one from 10", 3002),
        ([GapNotice(9, 12, "e1")], "from 9, expected one from 10", 3002),
        ([step(10, 11, count=0, size=3, records=b"")], "without records carries bytes", 3002),
        ([step(10, 11, count=0, size=0, records=b"x")], "without records carries bytes", 3002),
        ([step(10, 11, b"x", origin=None)], "needs an origin", 3002),
        ([step(10, 11, b"x", channel="")], "needs an origin", 3002),
        ([step(10, 11, b"x", b"y")], "2 records from 10 to 11", 3002),
        ([step(10, 11, b"x", encoding="zstd")], "was not offered", 3002),
        ([step(10, 12, b"", b"", size=MAX_BATCH_BYTES + 1)], "expected at most 65536", 1009),
        ([step(10, 11, b"x", size=100_001)], "expected at most 100000", 1009),
        ([step(10, 11, b"x", size=3)], "a batch of 3 bytes", 1009),
        ([step(10, 11, b"x", size=70_000)], "begins with a full one", 3002),
        ([step(10, 12, records=b"\xc4\x05x", count=2, size=3)], "expected", 1007),
        ([step(10, 12, records=b"\x91" * 2000, count=2, size=2000)], "expected", 1007),
        ([step(10, 11, records=b"", count=1, size=0)], "expected 1 encoded records", 1007),
        ([Part(b"x")], "no batch is under way", 3002),
        ([BEGINNING, Part(b"")], "bytes in parts", 3002),
        ([BEGINNING, Part(REST + b"x")], "bytes in parts", 3002),
        ([BEGINNING, Part(REST[:4095])], "a part of 4095 bytes that is not the last", 3002),
        ([BEGINNING, step(10, 12, b"x")], "parts of the last one are missing", 3002),
        ([BEGINNING, GapNotice(10, 12, "e1")], "parts of the last one are missing", 3002),
        ([VOLATILE], "expected 2 encoded records", 1007),
        ([hello()], "a second hello", 3002),
        ([Ack(101)], "acknowledged 101", 3002),
    ],
)
def test_who_breaks_the_protocol_changes_nothing(
    messages: list[peer.Message], said: str, code: int
) -> None:
    session = begun(max_records_bytes=100_000)
    for message in messages[:-1]:
        assert session.received(message, 0.0) == []
    with pytest.raises(RemoteProtocolError, match=said) as caught:
        session.received(messages[-1], 0.0)
    assert caught.value.close_code == code
    assert session.inbound.received == 10
    assert (session.inbound.received_records, session.outbound.acked) == (0, 1)
    # After the break it goes on where it was, with nothing left of what was half there.
    session.disconnected()
    greeted(session, at(10))
    (store,) = session.received(step(10, 11, b"x"), 0.0)
    assert isinstance(store, Store)


def test_what_came_is_acknowledged_once_it_is_on_disk_and_once() -> None:
    session = begun()
    (store,) = session.received(step(10, 12, b"x", b"y"), 0.0)
    assert isinstance(store, Store)
    assert store.batch.source == SourcePosition("hub", "hublog", "e1", 10, 12)
    inbound = session.inbound
    assert inbound.ack() == []
    inbound.stored(12)
    assert sent(inbound.ack()) == [Ack(12)]
    assert inbound.ack() == []
    inbound.stored(11)
    assert (inbound.committed, inbound.ack()) == (12, [])
    session.received(step(12, 13, b"z"), 0.0)
    session.disconnected()
    inbound.stored(13)
    assert inbound.ack() == []
    assert inbound.received_records == 3


def test_a_large_record_comes_in_parts_and_is_stored_whole() -> None:
    session = begun()
    assert session.received(BEGINNING, 0.0) == []
    assert session.received(Part(REST[:4096]), 0.0) == []
    (store,) = session.received(Part(REST[4096:]), 0.0)
    assert isinstance(store, Store)
    assert store.batch.records == LARGE
    assert session.inbound.received == 11
    (store,) = session.received(step(11, 12, b"next"), 0.0)
    assert isinstance(store, Store)


def test_the_first_step_sets_our_cursor_in_the_epoch_below_it() -> None:
    epochs = (EpochStart("e0", 1), EpochStart("e1", 40), EpochStart("e2", 60))
    for previous, epoch in ((50, "e1"), (40, "e0"), (41, "e1"), (1, "e0"), (70, "e2")):
        for message in (step(previous, 80, b"x"), GapNotice(previous, 80, "e2"), BEGINNING):
            session = made()
            assert greeted(session, theirs=hello(epochs=epochs))
            begins = previous if message is not BEGINNING else 10
            effects = session.received(message, 0.0)
            below = epoch if message is not BEGINNING else "e0"
            base = Cursor("hublog", (EpochEnd(below, begins),), begins)
            assert effects[0] == Rewind(base)
            stores = [each for each in effects if isinstance(each, Store)]
            if isinstance(message, GapNotice):
                assert effects[1] == OffsetsLost(previous, 80, inbound=True)
            assert len(stores) == (message is not BEGINNING)


def test_a_gap_is_told_from_where_we_stood_and_moves_us_on() -> None:
    session = begun()
    told, store = session.received(GapNotice(10, 30, "e1"), 0.0)
    assert told == OffsetsLost(10, 30, inbound=True)
    assert isinstance(store, Store)
    assert (store.batch.count, store.batch.source) == (
        0,
        SourcePosition("hub", "hublog", "e1", 10, 30),
    )
    assert session.inbound.received == 30


def test_a_step_without_records_moves_our_cursor_and_nothing_else() -> None:
    session = begun()
    (store,) = session.received(step(10, 30), 0.0)
    assert isinstance(store, Store)
    assert (store.batch.count, store.batch.source) == (
        0,
        SourcePosition("hub", "hublog", "e1", 10, 30),
    )
    assert (session.inbound.received, session.inbound.received_records) == (30, 0)


def test_our_own_notes_say_where_the_peer_stands_until_it_says_so() -> None:
    session = made()
    session.outbound.begin(42)
    check_order(session.outbound)
    assert (session.outbound.acked, session.outbound.position) == (42, 42)
    assert session.outbound.offer([], 50, 0.0, 0.0) == []


def test_what_we_do_not_take_is_left_out_and_the_cursor_moves() -> None:
    session = begun()
    refused, store = session.received(step(10, 12, b"x", b"y", channel="secret"), 0.0)
    assert refused == RecordsRefused("secret", 2)
    assert isinstance(store, Store)
    assert (store.batch.count, store.batch.records) == (0, b"")
    assert store.batch.source == SourcePosition("hub", "hublog", "e1", 10, 12)
    records = encode_records([EncodedRecord(b"v")])
    volatile = Volatile("secret", 1, records, 1.0, None, "hub", "r", 1)
    assert session.received(volatile, 0.0) == [RecordsRefused("secret", 1)]
    assert session.inbound.received_records == 0
    taken = Volatile("orders", 1, records, 1.0, None, "hub", "r", 2)
    assert session.received(taken, 0.0) == [ForwardVolatile(taken)]
    assert session.inbound.received_records == 1


def test_packed_records_are_stored_unpacked_and_bad_ones_refused() -> None:
    session = begun(unpack=unpacked, max_records_bytes=2000)
    records = encode_records([EncodedRecord(bytes(900))])
    small = packed(records)
    good = step(10, 11, b"", encoding="zstd", size=len(small), records=small)
    (store,) = session.received(good, 0.0)
    assert isinstance(store, Store)
    assert store.batch.records == records
    bomb = packed(bytes(3000))
    for bad, said in ((b"rubbish", "packed records"), (bomb, "3000 bytes")):
        message = step(11, 12, b"", encoding="zstd", size=len(bad), records=bad)
        with pytest.raises(RemoteProtocolError, match=said) as caught:
            session.received(message, 0.0)
        assert caught.value.close_code == 1007
    with pytest.raises(RemoteProtocolError, match="'lz4', which was not offered"):
        session.received(step(11, 12, b"x", encoding="lz4"), 0.0)


def test_a_peer_that_ignores_the_window_is_stopped_while_our_disk_stands() -> None:
    body = bytes(10_000)
    session = begun(max_waiting_bytes=40_000)
    for offset in range(10, 13):
        session.received(step(offset, offset + 1, body), 0.0)
    session.inbound.stored(12)
    for offset in range(13, 15):
        session.received(step(offset, offset + 1, body), 0.0)
    with pytest.raises(RemoteProtocolError, match="expected at most 40000"):
        session.received(step(15, 16, body), 0.0)


def test_a_new_connection_forgets_what_was_half_there_and_what_waited() -> None:
    session = begun(max_waiting_bytes=40_000)
    for offset in range(10, 13):
        session.received(step(offset, offset + 1, bytes(12_000)), 0.0)
    session.received(step(13, 14, b"", count=1, size=len(LARGE), records=FULL), 0.0)
    greeted(session, at(10))
    for offset in range(10, 13):
        (store,) = session.received(step(offset, offset + 1, bytes(12_000)), 0.0)
        assert isinstance(store, Store)


# two hellos


def test_a_new_log_of_the_peer_begins_anew() -> None:
    session = made()
    effects = greeted(session, at(10, log="oldlog"))
    assert effects[0] == Rewind(None)
    assert isinstance(effects[1], LogEvent)
    assert (effects[1].level, effects[1].event) == ("warn", "link.new-log")
    assert "hublog" in effects[1].detail
    assert "oldlog" in effects[1].detail
    assert session.inbound.received is None
    rewind, _ = session.received(step(70, 71, b"x"), 0.0)
    assert isinstance(rewind, Rewind)


def test_a_peer_that_knows_another_log_of_ours_gets_what_our_notes_say() -> None:
    session = made()
    effects = greeted(session, theirs=hello(cursor=at(55, log="lostlog")), acked=20)
    assert isinstance(effects[0], LogEvent)
    assert (effects[0].level, effects[0].event) == ("warn", "link.new-log")
    assert "lostlog" in effects[0].detail
    assert effects[1:] == [Acked(20), Read(20, session.settings.read_bytes)]


def test_without_a_common_epoch_nothing_is_sent() -> None:
    for cursor, theirs, whose in (
        (None, hello(cursor=at(50, "edgelog", "x9")), "this node's log"),
        (at(50, epoch="x9"), hello(), "its log"),
    ):
        session = made()
        effects = greeted(session, cursor, theirs)
        assert [type(each) for each in effects] == [EpochsDiverged]
        assert isinstance(effects[0], EpochsDiverged)
        assert whose in effects[0].detail
        assert "linkd resync hub" in effects[0].detail
        assert session.outbound.offer([], 200, 0.0, 0.0) == []


def test_a_log_that_was_put_back_is_said_with_its_offsets() -> None:
    session = made()
    effects = greeted(session, theirs=hello(cursor=at(150, "edgelog", "m1")))
    assert isinstance(effects[0], LogEvent)
    assert effects[0].level == "error"
    assert "offsets 100 to 149, which hub has, are unknown here" in effects[0].detail
    assert (session.outbound.position, session.outbound.acked) == (100, 100)
    session = made()
    rewind, told, *_ = greeted(session, at(120))
    assert rewind == Rewind(at(100))
    assert isinstance(told, LogEvent)
    assert told.level == "error"
    assert "offsets 100 to 119, which this node has, are unknown there" in told.detail
    assert session.inbound.received == 100


def test_a_cursor_in_an_older_epoch_is_put_back_without_a_word_where_nothing_is_lost() -> None:
    epochs = (EpochStart("e1", 1), EpochStart("e9", 5000))
    cursor = Cursor("hublog", (EpochEnd("e1", 40), EpochEnd("gone", 60)), 60)
    session = made()
    effects = greeted(session, cursor, hello(epochs=epochs, next=5100))
    assert effects[0] == Rewind(at(60))
    assert not [each for each in effects if isinstance(each, LogEvent)]
    assert session.inbound.received == 60


def test_sending_begins_at_the_peers_cursor_whatever_our_notes_say() -> None:
    session = made()
    theirs = hello(cursor=at(50, "edgelog", "m1", committed=45))
    effects = greeted(session, theirs=theirs, acked=30)
    assert effects == [Acked(45), Read(50, session.settings.read_bytes)]
    nothing_yet = hello(cursor=at(50, "edgelog", "m1", committed=0))
    assert greeted(session, theirs=nothing_yet, acked=30)[0] == Acked(30)


# sending


def test_a_large_record_goes_in_parts_with_room_asked_for_between() -> None:
    session = made()
    outbound = session.outbound
    greeted(session, acked=1)
    body = bytes(150_000)
    effects = outbound.read([batch(1, body), batch(2, b"small")], 0.0, 0.0)
    (first,) = sent(effects)
    assert isinstance(first, BatchMessage)
    assert (len(first.records), first.count) == (MAX_BATCH_BYTES, 1)
    assert outbound.eager
    got = bytes(first.records)
    while outbound.eager:
        effects = outbound.writable(True, 0.0, 0.0)
        assert sum(len(each.payload) for each in effects if isinstance(each, Send)) <= 140_000
        for message in sent(effects):
            if isinstance(message, Part):
                got += message.records
            else:
                assert isinstance(message, BatchMessage)
                assert (message.previous, message.next) == (2, 3)
                assert len(got) == first.size
    assert got == encode_records([EncodedRecord(body)])
    assert outbound.sent_records == 2


def test_a_connection_without_room_gets_nothing_and_goes_on_where_it_stopped() -> None:
    session = made()
    outbound = session.outbound
    greeted(session, writable=False)
    assert outbound.offer([], 102, 0.0, 0.0) == []
    assert outbound.read([batch(1, b"x")], 0.0, 0.0) == []
    assert outbound.writable(False, 0.0, 0.0) == []
    (message,) = sent(outbound.writable(True, 0.0, 0.0))
    assert isinstance(message, BatchMessage)
    assert (message.previous, message.next) == (1, 2)


def test_the_window_holds_until_something_is_acknowledged() -> None:
    session = made(window_bytes=1500 + 2 * BATCH_OVERHEAD_BYTES)
    outbound = session.outbound
    greeted(session, theirs=hello())
    outbound.add_backlog(4, 4 * len(batch(1, bytes(1000)).records), 4)  # one too many, none above 3
    batches = [batch(offset, bytes(1000), stamp=float(offset)) for offset in range(1, 5)]
    assert len(sent(outbound.read(batches, 0.0, 0.0))) == 2
    assert outbound.oldest_stamp() == 1.0
    assert not outbound.eager
    assert outbound.writable(True, 0.0, 0.0) == []
    assert session.received(Ack(2), 0.0)[0] == Acked(2)
    assert session.received(Ack(2), 0.0) == []
    assert outbound.oldest_stamp() == 2.0
    assert outbound.owed_records == 3
    assert len(sent(outbound.writable(True, 0.0, 0.0))) == 1
    with pytest.raises(RemoteProtocolError, match="acknowledged 5, but was sent only"):
        session.received(Ack(5), 0.0)
    session.received(Ack(4), 0.0)
    assert (outbound.owed_records, outbound.owed_bytes, outbound.flight_bytes) == (0, 0, 0)
    assert outbound.oldest_stamp() is None


def test_nothing_is_owed_to_where_it_came_from_or_is_not_taken() -> None:
    session = made()
    outbound = session.outbound
    came = SourcePosition("hub", "hublog", "e1", 1, 2)
    assert not outbound.owes(batch(1, b"x", origin=ORIGIN))
    assert not outbound.owes(batch(1, b"x", origin=Origin("far", "f", "e", 1), source=came))
    assert outbound.owes(batch(1, b"x"))
    greeted(session, theirs=hello(wants=("metrics.>",)))
    assert not outbound.owes(batch(1, b"x"))
    assert outbound.owes(batch(1, b"x", channel="metrics.cpu"))


def test_what_outlived_its_ttl_is_skipped_and_counted() -> None:
    session = made()
    outbound = session.outbound
    greeted(session)
    outbound.add_backlog(3, 300, 4)
    old = batch(1, b"x", b"y", ttl=5.0, stamp=10.0)
    fresh = batch(3, b"z", ttl=9.0, stamp=10.0)
    effects = outbound.read([old, fresh], 15.0, 0.0)
    assert effects[0] == RecordsExpired("orders", 2)
    (message,) = sent(effects)
    assert isinstance(message, BatchMessage)
    assert (message.previous, message.next, message.ttl) == (1, 4, 4.0)
    assert outbound.owed_records == 1


def test_a_position_over_skipped_records_alone_is_told_when_it_is_due_not_before() -> None:
    session = made()
    outbound = session.outbound
    greeted(session)
    private = batch(1, *[b"x"] * 99, origin=ORIGIN)
    assert outbound.read([private], 0.0, 7.0) == []
    assert outbound.deadline == 7.5
    assert outbound.on_deadline(7.49) == []
    assert sent(outbound.on_deadline(7.5)) == [BatchMessage(1, 100, "m1")]
    assert outbound.deadline is None
    assert outbound.on_deadline(9.0) == []
    assert session.received(Ack(100), 0.0)[0] == Acked(100)
    # Live: what the log has just committed is offered, and nothing of it is for the peer.
    assert outbound.offer([], 105, 0.0, 8.0) == []
    assert outbound.offer([], 106, 0.0, 8.2) == []
    assert outbound.deadline == 8.5
    assert sent(outbound.on_deadline(8.5)) == [BatchMessage(100, 106, "m1")]
    outbound.offer([], 107, 0.0, 9.0)
    (message,) = sent(outbound.offer([batch(110, b"y")], 112, 0.0, 9.1))
    assert isinstance(message, BatchMessage)
    assert (message.previous, message.next) == (106, 111)
    assert outbound.position == 112
    with pytest.raises(RemoteProtocolError, match="sent only what is below 111"):
        session.received(Ack(112), 0.0)
    assert outbound.deadline is not None
    outbound.offer([batch(112, b"z")], 113, 0.0, 9.2)
    assert outbound.deadline is None
    outbound.offer([], 114, 0.0, 9.3)
    session.disconnected()
    assert outbound.deadline is None
    assert outbound.on_deadline(99.0) == []


def test_a_position_waits_for_the_rest_of_a_large_record() -> None:
    session = made()
    outbound = session.outbound
    greeted(session)
    (first,) = sent(outbound.read([batch(1, bytes(200_000))], 0.0, 0.0))
    assert isinstance(first, BatchMessage)
    outbound.deadline = 1.0
    assert outbound.on_deadline(1.0) == []


def test_a_crowd_of_small_batches_fills_the_window_and_what_may_wait() -> None:
    """Their records are next to nothing; what they take in memory at both ends is not."""
    session = made(window_bytes=10 * BATCH_OVERHEAD_BYTES)
    greeted(session, theirs=hello())
    outbound = session.outbound
    batches = [batch(offset, b"x") for offset in range(1, 100)]
    assert len(sent(outbound.read(batches, 0.0, 0.0))) == 10
    assert len(sent(session.received(Ack(11), 0.0) + outbound.writable(True, 0.0, 0.0))) == 10
    session = begun(max_waiting_bytes=10 * BATCH_OVERHEAD_BYTES)
    for offset in range(10, 19):
        session.received(step(offset, offset + 1, b"x"), 0.0)
    with pytest.raises(RemoteProtocolError, match="expected at most"):
        session.received(step(19, 20, b"x"), 0.0)


def test_a_connection_that_ends_within_a_large_record_leaves_nothing_of_it() -> None:
    session = made()
    greeted(session)
    session.outbound.read([batch(1, bytes(200_000)), batch(2, b"x")], 0.0, 0.0)
    assert session.outbound.eager
    session.disconnected()
    assert not session.outbound.eager
    assert session.outbound.flight_bytes == 0
    greeted(session)
    (first,) = sent(session.outbound.read([batch(1, bytes(200_000))], 0.0, 0.0))
    assert isinstance(first, BatchMessage)
    assert (first.previous, len(first.records)) == (1, MAX_BATCH_BYTES)


def test_no_more_of_the_log_is_read_than_the_window_takes() -> None:
    session = made(window_bytes=1500)
    greeted(session)
    effects = session.outbound.read([batch(1, bytes(2000))], 0.0, 0.0)
    assert [type(each) for each in effects] == [Send]
    assert session.outbound.offer([batch(100, b"x")], 101, 0.0, 0.0) == []
    more = Read(2, session.settings.read_bytes)
    assert session.received(Ack(2), 0.0) == [Acked(2), more]


def test_records_that_were_committed_but_not_offered_are_read_not_skipped() -> None:
    session = made()
    greeted(session, acked=100)
    session.outbound.log_next = 105
    more = Read(100, session.settings.read_bytes)
    assert session.outbound.offer([batch(110, b"x")], 111, 0.0, 0.0) == [more]


def test_what_is_offered_while_older_records_are_read_is_read_in_its_turn() -> None:
    session = made()
    outbound = session.outbound
    assert greeted(session) == [Acked(1), Read(1, session.settings.read_bytes)]
    assert outbound.offer([batch(100, b"live")], 101, 0.0, 0.0) == []
    effects = outbound.read([batch(1, *[b"x"] * 99)], 0.0, 0.0)
    assert effects[-1] == Read(100, session.settings.read_bytes)
    effects = outbound.read([batch(99, b"x", b"live")], 0.0, 0.0)
    (message,) = sent(effects)
    assert isinstance(message, BatchMessage)
    assert (message.previous, message.next, message.count) == (100, 101, 1)
    assert outbound.read([batch(99, b"x", b"live")], 0.0, 0.0) == []
    assert outbound.position == 101


def test_what_is_gone_from_our_log_is_told_as_a_gap() -> None:
    session = made()
    outbound = session.outbound
    greeted(session)
    gap, gone, more = outbound.missing(60)
    assert sent([gap]) == [GapNotice(1, 60, "m1")]
    assert gone == OffsetsLost(1, 60, inbound=False)
    assert more == Read(60, session.settings.read_bytes)
    assert outbound.missing(60) == []
    session.received(Ack(60), 0.0)
    assert (outbound.acked, outbound.position) == (60, 60)
    session.disconnected()
    assert outbound.missing(90) == []
    assert outbound.read([batch(60, b"x")], 0.0, 0.0) == []


def test_a_hole_in_our_log_is_told_behind_what_was_skipped_before_it() -> None:
    session = made()
    outbound = session.outbound
    greeted(session)
    skipped = batch(1, b"x", b"y", origin=ORIGIN)
    effects = outbound.read([skipped, batch(50, b"z")], 0.0, 0.0)
    position, gap, message = sent(effects)
    assert position == BatchMessage(1, 3, "m1")
    assert gap == GapNotice(3, 50, "m1")
    assert isinstance(message, BatchMessage)
    assert (message.previous, message.next) == (50, 51)
    assert [each for each in effects if isinstance(each, OffsetsLost)] == [
        OffsetsLost(3, 50, inbound=False)
    ]


def test_records_are_packed_where_both_ends_can_and_it_pays() -> None:
    for offered, size, encoding in (
        ((), 5000, ""),
        (("zstd",), 300, ""),
        (("zstd",), 5000, "zstd"),
    ):
        session = made(pack=packed)
        greeted(session, theirs=hello(compress=offered))
        assert session.outbound.compresses is bool(offered)
        (message,) = sent(session.outbound.read([batch(1, bytes(size))], 0.0, 0.0))
        assert isinstance(message, BatchMessage)
        assert message.encoding == encoding
        assert (message.size < 5000) is (size < 5000 or encoding == "zstd")
        # The window and what is owed count what the records are, not how they travel.
        assert (
            session.outbound.flight_bytes
            == len(batch(1, bytes(size)).records) + BATCH_OVERHEAD_BYTES
        )


def test_what_does_not_get_smaller_travels_as_it_is() -> None:
    """Packed, such a batch may be larger than the other end takes."""
    session = made(pack=lambda records: b"the head" + records)
    greeted(session, theirs=hello(compress=("zstd",)))
    full = batch(1, *[bytes(1016)] * 64)
    (message,) = sent(session.outbound.read([full], 0.0, 0.0))
    assert isinstance(message, BatchMessage)
    assert (message.encoding, message.size) == ("", MAX_BATCH_BYTES)


@pytest.mark.parametrize(
    ("size", "messages"), [(65_536, 1), (69_000, 1), (70_000, 2), (135_000, 2), (140_000, 3)]
)
def test_a_record_a_little_above_64_kib_is_not_cut(size: int, messages: int) -> None:
    session, other = made(), begun()
    greeted(session)
    effects = session.outbound.read([batch(1, bytes(size))], 0.0, 0.0)
    while session.outbound.eager:
        effects += session.outbound.writable(True, 0.0, 0.0)
    found = sent(effects)
    assert len(found) == messages
    assert isinstance(found[0], BatchMessage)
    found[0] = msgspec.structs.replace(found[0], previous=10, next=11)
    stored = []
    for message in found:
        stored += [each for each in other.received(message, 0.0) if isinstance(each, Store)]
    (store,) = stored
    assert decode_records(store.batch.records, 1) == [EncodedRecord(bytes(size))]


def test_what_finds_no_room_is_left_out_until_it_is_sent_again() -> None:
    session = begun()
    inbound = session.inbound
    session.received(step(10, 11, b"a"), 0.0)
    session.received(step(11, 13, b"b", b"c"), 0.0)
    assert inbound.behind
    inbound.leave_out()
    assert (inbound.received, inbound.discards, inbound.received_records) == (11, True, 1)
    assert session.received(step(13, 14, b"d"), 0.0) == []
    assert session.received(BatchMessage(14, 20, "e1"), 0.0) == []
    assert session.received(GapNotice(20, 21, "e1"), 0.0) == []
    assert session.received(Part(b"x"), 0.0) == []
    assert sent(inbound.ask_again()) == [peer.Resend(11)]
    assert inbound.ask_again() == []
    inbound.stored(11)
    assert sent(inbound.ack()) == [Ack(11)]
    assert not inbound.behind
    (store,) = session.received(step(11, 13, b"b", b"c"), 0.0)
    assert isinstance(store, Store)
    assert (inbound.received, inbound.discards) == (13, False)
    inbound.leave_out()
    gone, store = session.received(GapNotice(11, 15, "e1"), 0.0)
    assert gone == OffsetsLost(11, 15, inbound=True)
    assert inbound.received == 15


def test_a_large_record_under_way_is_left_out_and_comes_again() -> None:
    session = begun()
    inbound = session.inbound
    session.received(BEGINNING, 0.0)
    assert (inbound.partial, inbound.part_bytes) == (True, MAX_BATCH_BYTES)
    inbound.leave_out()
    assert (inbound.partial, inbound.part_bytes, inbound.received) == (False, 0, 10)
    assert session.received(Part(REST), 0.0) == []
    session.received(BEGINNING, 0.0)
    (store,) = session.received(Part(REST), 0.0)
    assert isinstance(store, Store)
    inbound.leave_out()
    greeted(session, at(11))
    assert not inbound.discards
    with pytest.raises(RemoteProtocolError, match="a part, but no batch"):
        session.received(Part(REST), 0.0)


def test_a_peer_that_had_no_room_gets_it_again() -> None:
    session = begun()
    outbound = session.outbound
    outbound.read([batch(1, b"a"), batch(2, b"b"), batch(3, bytes(70_000))], 0.0, 0.0)
    assert outbound.position == 4
    assert not outbound.in_flight, "a large record is under way"
    before = outbound.flight_bytes
    (read,) = session.received(peer.Resend(2), 0.0)
    assert read == Read(2, outbound._settings.read_bytes)
    check_order(outbound)
    assert outbound.in_flight
    assert 0 < outbound.flight_bytes < before
    effects = outbound.read([batch(2, b"b")], 0.0, 0.0)
    assert [each.previous for each in sent(effects)] == [2]
    session.received(Ack(3), 0.0)
    assert (outbound.flight_bytes, outbound.acked_records) == (0, 2)
    for place in (2, 4):
        with pytest.raises(RemoteProtocolError, match=f"asked to send again from {place}"):
            session.received(peer.Resend(place), 0.0)


@pytest.mark.parametrize("missing", [False, True])
def test_what_was_being_read_meanwhile_is_read_again(missing: bool) -> None:
    session = begun()
    outbound = session.outbound
    effects = outbound.read([batch(1, b"a"), batch(2, b"b")], 0.0, 0.0)
    assert effects[-1] == Read(3, outbound._settings.read_bytes)
    assert session.received(peer.Resend(1), 0.0) == []
    stale = outbound.missing(50) if missing else outbound.read([batch(3, b"c")], 0.0, 0.0)
    assert stale == [Read(1, outbound._settings.read_bytes)]
    effects = outbound.read([batch(1, b"a")], 0.0, 0.0)
    assert [each.previous for each in sent(effects)] == [1]


@pytest.mark.parametrize("channel", ["a..b", "*", ">", "tab\t", "ünicode", "x" * 250 + "\n"])
def test_a_channel_with_a_malformed_name_is_never_taken(channel: str) -> None:
    settings = SessionSettings("edge", "hub", Patterns((">",)), Patterns((">",)))
    session = Session(settings, lambda position: "m1")
    greeted(session, at(10))
    refused, store = session.received(step(10, 11, b"x", channel=channel), 0.0)
    assert refused == RecordsRefused("", 1)
    assert isinstance(store, Store)
    assert store.batch.count == 0
    volatile = msgspec.structs.replace(VOLATILE, channel=channel)
    assert session.received(volatile, 0.0) == [RecordsRefused("", 2)]


def test_a_backlog_that_is_counted_meets_what_is_sent_and_acknowledged_meanwhile() -> None:
    session = made()
    outbound = session.outbound
    greeted(session)
    outbound.begin_count(4)
    assert (outbound.owed_records, outbound.owed_bytes) == (1, 0)
    outbound.read([batch(1, b"a"), batch(2, b"b"), batch(3, b"c")], 0.0, 0.0)
    outbound.add(batch(4, b"d"))
    size = len(batch(4, b"d").records)
    outbound.acknowledged(3)
    assert outbound.owed_records > 0
    outbound.end_count(3, 3 * size)
    assert (outbound.owed_records, outbound.owed_bytes) == (2, 2 * size)
    outbound.end_count(3, 3 * size)
    assert outbound.owed_records == 2


def test_a_count_is_void_once_all_of_it_is_acknowledged() -> None:
    session = made()
    outbound = session.outbound
    greeted(session)
    outbound.begin_count(2)
    outbound.read([batch(1, b"a")], 0.0, 0.0)
    outbound.acknowledged(2)
    assert not outbound.counting
    outbound.end_count(1, 3)
    assert (outbound.owed_records, outbound.owed_bytes) == (0, 0)
