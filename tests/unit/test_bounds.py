"""Every bound that a receiver checks has a twin at the sender that is at least as strict.

A receiver that is stricter than the publisher ends its connection at a message that it is sent
again on the next one, for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple, get_args

import msgspec
import pytest
from msgspec import inspect

from linkd.config.settings import MAX_BODY_BYTES, NAME_PATTERN, Config, NodeSettings, PeerSettings
from linkd.config.validation import rule_errors
from linkd.core.inbound import Inbound
from linkd.core.liveness import SEGMENT_BYTES
from linkd.core.outbound import Outbound
from linkd.core.session_effects import Send, SessionSettings, Store
from linkd.errors import BodyTooLarge, ChannelRefused
from linkd.log.base import new_token
from linkd.log.state import MAX_CURSOR_EPOCHS, MAX_EPOCHS
from linkd.node.dispatcher import VolatileSequence, messages_of
from linkd.protocol import peer
from linkd.protocol.channels import MAX_WANTS, Patterns, check_channel
from linkd.protocol.peer import EpochEnd, EpochStart, Generation, sendable
from linkd.protocol.records import (
    MAX_BATCH_BYTES,
    MAX_TTL_SECONDS,
    Batch,
    EncodedRecord,
    NewRecords,
    Origin,
    check_records,
    encode_records,
)

MOST = 2**62
"""No offset comes near: a million records a second take 146,000 years to get there."""

NAME = "n" * 63
"""The longest that NAME_PATTERN takes."""

TOKEN = new_token(Random(1))
"""Log ids, epochs, runs and boots are made by ourselves, all of this length."""

CHANNEL = check_channel("c" * 255)
TIMES = (sendable(-1e300), sendable(math.inf), sendable(1e300))


class Twin(NamedTuple):
    """What bounds a value where it is made, and the most extreme values that it lets pass."""

    bounded_by: str
    extremes: tuple[Any, ...]


def own(*extremes: Any) -> Twin:
    return Twin("made by this node", extremes)


TWINS: dict[str, Twin] = {
    "Generation.boot": own(TOKEN),
    "Generation.counter": own(MOST),
    "EpochStart.epoch": own(TOKEN),
    "EpochStart.first": own(MOST),
    "EpochEnd.epoch": own(TOKEN),
    "EpochEnd.next": own(MOST),
    "Cursor.log": Twin("the peer's own hello", (TOKEN,)),
    "Cursor.epochs": Twin("state.MAX_CURSOR_EPOCHS", ((EpochEnd(TOKEN, 1),) * MAX_CURSOR_EPOCHS,)),
    "Cursor.committed": own(MOST),
    "Hello.version": own(peer.VERSION),
    "Hello.node": Twin("settings.NAME_PATTERN", (NAME,)),
    "Hello.software": own("linkd 1.0.0"),
    "Hello.log": own(TOKEN),
    "Hello.epochs": Twin("state.MAX_EPOCHS", ((EpochStart(TOKEN, 1),) * MAX_EPOCHS,)),
    "Hello.next": own(MOST),
    "Hello.wants": Twin("rules: channels.MAX_WANTS", ((), ("a",) * MAX_WANTS, (CHANNEL,) * 95)),
    "Hello.ping_interval": Twin("settings: 1 to 60", (0.0, 60.0)),
    "Hello.proof": own("0" * 64),
    "Hello.compress": own((), ("zstd",)),
    "Hello.segment_bytes": own(0, SEGMENT_BYTES),
    "Hello.time": Twin("wire.sendable", TIMES),
    "Probed.size": Twin("wire.decode: of a probe that came", (0, peer.MAX_MESSAGE_BYTES)),
    "BatchMessage.previous": own(1, MOST),
    "BatchMessage.next": own(1, MOST),
    "BatchMessage.epoch": own(TOKEN),
    "BatchMessage.channel": Twin("channels.check_channel", ("", CHANNEL)),
    "BatchMessage.count": Twin(
        "batch.check_records: a byte a record at least", (0, MAX_BATCH_BYTES)
    ),
    "BatchMessage.size": Twin("batch.check_records: max_body_bytes", (0, MAX_BODY_BYTES)),
    "BatchMessage.time": Twin("wire.sendable", TIMES),
    "BatchMessage.ttl": Twin("batch.MAX_TTL_SECONDS", (None, 0.0, MAX_TTL_SECONDS)),
    "BatchMessage.encoding": own("", "zstd"),
    "Origin.node": Twin("settings.NAME_PATTERN", (NAME,)),
    "Origin.log": own(TOKEN),
    "Origin.epoch": own(TOKEN),
    "Origin.first": own(0, MOST),
    "Origin.after": own(None, 0, MOST),
    "Volatile.channel": Twin("channels.check_channel", ("c", CHANNEL)),
    "Volatile.count": Twin("batch.check_records: a byte a record at least", (1, MAX_BATCH_BYTES)),
    "Volatile.time": Twin("wire.sendable", TIMES),
    "Volatile.ttl": Twin("batch.MAX_TTL_SECONDS", (None, MAX_TTL_SECONDS)),
    "Volatile.node": Twin("settings.NAME_PATTERN", (NAME,)),
    "Volatile.run": own(TOKEN),
    "Volatile.sequence": own(MOST),
    "Ack.next": own(MOST),
    "Resend.next": own(MOST),
    "GapNotice.previous": own(MOST),
    "GapNotice.next": own(MOST),
    "GapNotice.epoch": own(TOKEN),
    "Goodbye.reason": own("certificate-expired-or-so"),
    "Goodbye.detail": Twin("wire.goodbye", ("", "x" * 1024)),
    "Goodbye.retry_after": own(None, 0.0, 3600.0),
    "Goodbye.return_spread": own(0.0, 3600.0),
    "Hello.return_spread": own(0.0, 3600.0),
}

MESSAGES = (
    *get_args(peer.Message),
    *(peer.Generation, peer.EpochStart, peer.EpochEnd, peer.Cursor, Origin),
)


def bounded() -> Iterator[tuple[str, inspect.Type]]:
    """Yield the fields that a decoder bounds, by name."""
    for struct in MESSAGES:
        told = inspect.type_info(struct)
        assert isinstance(told, inspect.StructType)
        for field in told.fields:
            kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
            for kind in kinds:
                names = ("ge", "le", "gt", "lt", "min_length", "max_length", "pattern")
                if any(getattr(kind, name, None) is not None for name in names):
                    yield f"{struct.__name__}.{field.name}", field.type


def test_every_bound_of_a_message_has_its_twin() -> None:
    assert {name for name, _ in bounded()} <= set(TWINS)


@pytest.mark.parametrize("name", sorted(TWINS))
def test_what_a_sender_may_make_is_taken(name: str) -> None:
    struct, field = name.split(".")
    kind = next(each for each in MESSAGES if each.__name__ == struct)
    hint = kind.__annotations__[field]
    module = peer if kind is not Origin else __import__("linkd.protocol.records", fromlist=["x"])
    decoder = msgspec.msgpack.Decoder(eval(hint, vars(module)))  # our own annotation
    for value in TWINS[name].extremes:
        assert decoder.decode(msgspec.msgpack.encode(value)) == value


def test_what_is_beyond_is_refused_where_it_is_made() -> None:
    with pytest.raises(ChannelRefused):
        check_channel("c" * 256)
    assert msgspec.inspect.type_info(NodeSettings) is not None
    assert NAME_PATTERN.endswith("{0,62}$")
    for receive in (("a",) * (MAX_WANTS + 1), (CHANNEL,) * 96):
        config = Config(
            node=NodeSettings(name="a"), peers=(PeerSettings(name="b", receive=receive),)
        )
        assert any(place == ("peer", 0, "receive") for place, _ in rule_errors(config))


def test_the_largest_hello_is_taken() -> None:
    cursor = peer.Cursor(TOKEN, (EpochEnd(TOKEN, MOST),) * MAX_CURSOR_EPOCHS, MOST)
    for wants in TWINS["Hello.wants"].extremes:
        hello = peer.Hello(
            peer.VERSION,
            NAME,
            "linkd 1.0.0",
            Generation(TOKEN, MOST),
            TOKEN,
            (EpochStart(TOKEN, MOST),) * MAX_EPOCHS,
            MOST,
            cursor,
            wants,
            60.0,
            "0" * 64,
            ("zstd",),
        )
        assert len(peer.encode(hello)) <= peer.MAX_HELLO_BYTES


def test_the_largest_goodbye_is_taken() -> None:
    said = peer.goodbye("stopped", "é" * 5000, 1.0)
    assert peer.decode(peer.encode(said)) == said


SETTINGS = SessionSettings("hub", "edge", Patterns((">",)), Patterns((">",)))
HEADERS = {f"{number:064}": "\U0001f600" * 255 for number in range(16)}
LARGEST = EncodedRecord(bytes(MAX_BODY_BYTES), *["\U0001f600" * 255] * 3, HEADERS)


@pytest.mark.parametrize(
    ("records", "clock"),
    [
        ((LARGEST,), 1.0),
        ((EncodedRecord(b""),) * 9_362, 1.0),
        ((EncodedRecord(bytes(MAX_BATCH_BYTES // 2 - 13)),) * 2, 1.0),
        *(((EncodedRecord(b""),), clock) for clock in (-1e300, -1.0, 0.0, 1e10, 1e300, math.inf)),
    ],
    ids=["largest", "many", "full", "1e300 BC", "1969", "1970", "2286", "1e300", "endless"],
)
def test_whatever_a_publisher_gets_stored_passes_a_link(
    records: tuple[EncodedRecord, ...], clock: float
) -> None:
    encoded = encode_records(records)
    check_records(encoded, len(records), MAX_BODY_BYTES)
    assert len(records) == 1 or len(encoded) <= MAX_BATCH_BYTES
    origin = Origin("hub", TOKEN, TOKEN, 1, 0)
    batch = Batch(1, CHANNEL, len(records), encoded, clock, origin, TOKEN, MAX_TTL_SECONDS, 0.0)
    sender = Outbound(SETTINGS, lambda _: TOKEN)
    receiver = Inbound(SETTINGS)
    hello = peer.Hello(
        1,
        "edge",
        "",
        Generation(TOKEN, 1),
        TOKEN,
        (EpochStart(TOKEN, 1),),
        MOST,
        None,
        (">",),
        0.0,
    )
    sender.log_next = batch.next
    sender.greeted(hello, 1, 1, True)
    receiver.greeted(hello, None)
    effects = sender.read([batch], 0.0, 0.0)
    while sender.eager:
        effects += sender.writable(True, 0.0, 0.0)
    stored: list[Batch] = []
    for effect in effects:
        if isinstance(effect, Send):
            message = peer.decode(effect.payload)
            assert isinstance(message, peer.BatchMessage | peer.Part)
            taken = (
                receiver.batch(message, 0.0)
                if isinstance(message, peer.BatchMessage)
                else receiver.part(message, 0.0)
            )
            stored += [each.batch for each in taken if isinstance(each, Store)]
    assert [(one.records, one.count) for one in stored] == [(encoded, len(records))]


def refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except BodyTooLarge:
        return True
    return False


def test_whatever_a_publisher_gets_through_on_a_volatile_channel_passes_a_link() -> None:
    numbers = VolatileSequence(NAME, TOKEN)
    receiver = Inbound(SETTINGS)
    total = 0
    for size in (0, 60_000, 126_900, 126_966, 126_967, 130_000, 16_000_000):
        for count in (1, 7):
            encoded = encode_records([EncodedRecord(bytes(size))] * count)
            draft = NewRecords(CHANNEL, count, encoded, 1e300, MAX_TTL_SECONDS)
            if refused(lambda d=draft: messages_of(d)):
                assert len(encoded) // count > peer.MAX_VOLATILE_BYTES
                continue
            for one in messages_of(draft):
                message = peer.decode(peer.encode(numbers.make(one)))
                assert isinstance(message, peer.Volatile)
                receiver.volatile(message, 0.0)
                total += message.count
    assert total == receiver.received_records == 4 * 8
