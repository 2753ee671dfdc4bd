"""What a peer may bring that began at a third node, and what is not sent to one that takes none."""

from __future__ import annotations

from typing import Any

import pytest

from linkd.core.inbound import KnownEnds
from linkd.core.session import Handshake, Session
from linkd.core.session_effects import (
    Effect,
    FalseOrigin,
    ForwardVolatile,
    NotRelayed,
    Read,
    Send,
    SessionSettings,
    Store,
)
from linkd.protocol import peer as wire
from linkd.protocol.channels import Patterns
from linkd.protocol.peer import BatchMessage, Cursor, EpochEnd, EpochStart, Hello, Volatile
from linkd.protocol.records import Batch, EncodedRecord, Origin, SourcePosition, encode_records

BODY = encode_records([EncodedRecord(b"x")])


def hello(node: str, cursor: Cursor | None = None, **changes: Any) -> Hello:
    """Return a hello; the log of each node reaches from 1 to 99 in `e1`."""
    fields: dict[str, Any] = {
        "version": 2,
        "node": node,
        "software": "test",
        "generation": wire.Generation("b", 1),
        "log": f"{node}log",
        "epochs": (EpochStart("e1", 1),),
        "next": 100,
        "cursor": cursor,
        "wants": (">",),
        "ping_interval": 5.0,
    } | changes
    return Hello(**fields)


def begun(relay: bool = True, ends: KnownEnds | None = None, **theirs: Any) -> Session:
    """Return the hub's session with `mallory`, which stands at offset 10 of her log."""
    settings = SessionSettings("hub", "mallory", Patterns((">",)), Patterns((">",)), relay=relay)
    session = Session(settings, lambda position: "e1", ends=ends)
    ours = hello("hub", Cursor("mallorylog", (EpochEnd("e1", 10),), 10))
    session.outbound.log_next = ours.next
    session.greeted(Handshake(ours, hello("mallory", **theirs), 1, True), 0.0)
    return session


def step(previous: int, origin: Origin, count: int = 1) -> BatchMessage:
    """Return a step of mallory's log."""
    records = BODY * count
    return BatchMessage(
        previous,
        previous + count,
        "e1",
        "orders",
        count,
        len(records),
        records,
        1.0,
        None,
        origin,
    )


def stored(effects: list[Effect]) -> Batch:
    """Return the batch that is stored."""
    (store,) = [each for each in effects if isinstance(each, Store)]
    return store.batch


MINE = Origin("mallory", "mallorylog", "e1", 10, 3)
FAR = Origin("edge", "edgelog", "e1", 5, 3)


def test_without_relay_only_what_began_at_the_peer_is_stored_and_the_cursor_moves_on() -> None:
    session = begun(relay=False)
    assert stored(session.received(step(10, MINE), 0.0)).origin == MINE
    effects = session.received(step(11, FAR), 0.0)
    assert effects[0] == NotRelayed("orders", 1, inbound=True)
    batch = stored(effects)
    assert (batch.count, batch.records) == (0, b"")
    assert batch.source == SourcePosition("mallory", "mallorylog", "e1", 11, 12)
    assert stored(session.received(step(12, MINE), 0.0)).count == 1


def test_with_relay_it_is_stored_as_it_is() -> None:
    session = begun()
    assert stored(session.received(step(10, FAR), 0.0)).origin == FAR


@pytest.mark.parametrize(("relay", "name"), [(False, "mallory"), (True, "edge")])
def test_a_peer_without_relay_speaks_in_its_own_name_alone(relay: bool, name: str) -> None:
    forged = Origin("edge", "mallorylog", "e1", 10)
    origin = stored(begun(relay).received(step(10, forged), 0.0)).origin
    assert origin == Origin(name, "mallorylog", "e1", 10)


def test_a_peer_s_own_record_is_not_above_its_place_in_the_log() -> None:
    session = begun()
    high = Origin("mallory", "mallorylog", "e1", 11)
    effects = session.received(step(10, high), 0.0)
    assert isinstance(effects[0], FalseOrigin)
    assert stored(effects).count == 0


def test_an_offset_that_its_origin_has_not_reached_is_refused() -> None:
    ends = KnownEnds()
    ends.greeted(hello("edge"), 0.0)
    session = begun(ends=ends)
    for bad in (Origin("edge", "edgelog", "e1", 2**62), Origin("edge", "edgelog", "e1", 5, 2**61)):
        (refused, store) = session.received(step(session.inbound.received or 0, bad), 0.0)
        assert isinstance(refused, FalseOrigin)
        assert "which edge itself has not reached" in refused.detail
        assert isinstance(store, Store)
        assert store.batch.count == 0
    assert stored(session.received(step(12, FAR), 0.0)).count == 1


@pytest.mark.parametrize(
    "origin",
    [
        None,
        Origin("", "l", "e", 1),
        Origin("n", "", "e", 1),
        Origin("n", "l", "", 1),
        Origin("n", "l", "e", 0),
    ],
)
def test_a_batch_names_its_origin_whole(origin: Origin | None) -> None:
    with pytest.raises(wire.RemoteProtocolError, match="needs an origin"):
        begun().received(step(10, origin), 0.0)  # type: ignore[arg-type]


def volatile(node: str, sequence: int) -> Volatile:
    """Return a volatile message."""
    return Volatile("t", 1, BODY, 1.0, None, node, "run", sequence)


def test_volatile_messages_of_third_nodes_need_relay_and_a_possible_number() -> None:
    ends = KnownEnds()
    strict, open_ = begun(relay=False, ends=ends), begun(ends=ends)
    assert strict.received(volatile("edge", 1), 0.0) == [NotRelayed("t", 1, inbound=True)]
    assert strict.received(volatile("mallory", 1), 0.0) == [ForwardVolatile(volatile("mallory", 1))]
    ends.heard(volatile("edge", 1), 0.0)
    (refused,) = open_.received(volatile("edge", 2**62), 0.0)
    assert isinstance(refused, FalseOrigin)
    assert open_.received(volatile("edge", 2), 0.0) == [ForwardVolatile(volatile("edge", 2))]


def own(offset: int, channel: str = "orders") -> Batch:
    """Return a batch that was published at the hub."""
    return Batch(offset, channel, 1, BODY, 1.0, Origin("hub", "hublog", "e1", offset), "e1")


def foreign(offset: int, peer: str = "edge", channel: str = "orders") -> Batch:
    """Return a batch that `peer` brought to the hub."""
    source = SourcePosition(peer, f"{peer}log", "e1", 1, 2)
    origin = Origin(peer, f"{peer}log", "e1", 1)
    return Batch(offset, channel, 1, BODY, 1.0, origin, "e1", source=source)


def test_a_committed_batch_counts_into_the_backlog_of_a_peer_that_gets_it() -> None:
    for relays in (True, False):
        outbound = begun(relays=relays).outbound
        peer = outbound._settings.peer
        assert outbound.add(foreign(1, peer)) is False
        assert outbound.owed_records == 0
        assert outbound.add(foreign(2, "edge")) is (True if relays else None)
        assert outbound.add(own(3)) is True
        assert outbound.owed_records == (2 if relays else 1)
        assert outbound.owed_bytes == len(BODY) * outbound.owed_records


def test_a_peer_that_takes_no_relayed_records_is_sent_none_and_the_sender_hears_of_it() -> None:
    for relays in (True, False):
        outbound = begun(relays=relays).outbound
        assert outbound.owes(own(1))
        assert outbound.owes(foreign(2)) is relays
        log = [foreign(1), own(2), foreign(3, "mallory"), foreign(4)]
        effects = outbound.read(log, 0.0, 0.0)
        steps = [wire.decode(each.payload) for each in effects if isinstance(each, Send)]
        nexts = [each.next for each in steps if isinstance(each, BatchMessage) and each.count]
        assert nexts == ([2, 3, 5] if relays else [3])
        skipped = [each for each in effects if isinstance(each, NotRelayed)]
        assert skipped == [NotRelayed("orders", 1, inbound=False)] * (0 if relays else 2)


def test_what_is_not_wanted_at_all_is_not_counted_as_not_relayed() -> None:
    outbound = begun(relays=False, wants=("orders",)).outbound
    effects = outbound.read([foreign(1, channel="other"), own(2)], 0.0, 0.0)
    assert [type(each) for each in effects] == [Send, Read]
