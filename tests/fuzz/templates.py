"""Proper messages of each kind, to be spoilt."""

from __future__ import annotations

from functools import cache

from linkd.core import stream, wire
from linkd.core.batch import Origin, Record, encode_records
from linkd.core.stream import join

_RECORDS = encode_records([Record(b"a", "made", "i", "text/plain"), Record(b"")])


@cache
def messages() -> tuple[bytes, ...]:
    """Return one message of each kind between nodes."""
    generation = wire.Generation("boot", 1)
    cursor = wire.Cursor("l", (wire.EpochEnd("e", 5),), 5)
    epochs = (wire.EpochStart("e", 1),)
    kinds = (
        wire.Hello(1, "hub", "x", generation, "l", epochs, 9, cursor, (">",), 5.0, "p", ("zstd",)),
        wire.Step(1, 3, "e", "a", 2, len(_RECORDS), _RECORDS, 1.0, 2.0, Origin("a", "l", "e", 1)),
        wire.Step(3, 9, "e"), wire.Part(b"abc"), wire.Ack(7), wire.GapTold(1, 5, "e"),
        wire.Volatile("t", 2, _RECORDS, 1.0, None, "a", "r", 1), wire.Goodbye("stopped", "x", 1.0),
        wire.Resend(5), wire.Probe(b"0" * 9), wire.Probed(9),
    )  # fmt: skip
    return tuple(wire.encode(message) for message in kinds)


@cache
def streams() -> tuple[bytes, ...]:
    """Return messages of the stream, both ways."""
    kinds = (
        stream.Open(1, "p", "s"), stream.Publish(1, "orders", 2, _RECORDS, 1.0, ("i", "")),
        stream.Wait(1, "hub", "orders", 5, 1.0), stream.Subscribe(1, (">",), "earliest", "c", 500),
        stream.Unsubscribe(1), stream.Credit(1, 5), stream.Ack(1, 5), stream.Watch(),
        stream.Opened(1, "n", "s", "l", 1, 2, 3), stream.Ended(1, "stopped"),
        stream.Deliver(1, 1, "orders", 2, _RECORDS, 1.0, "a", 1), stream.GapTold(1, 2, 3),
    )  # fmt: skip
    return tuple(join([stream.encode_frame(frame)], 1) for frame in kinds)


TEXTS = (
    b'{"type":"ping"}', b'{"type":"subscribe","data":{"channel":"news.*","from":3},"id":1}',
    b'{"type":"unsubscribe","data":{"channel":"news.*"}}', b'{"type":"made","data":{"a":[1,2]}}',
    b'{"type":"made","data":1,"id":"i","channel":"orders"}', b'{"type":"ack","data":1}', b"hello",
    b'{"type":"a","data":1,"id":1e999}', b"[1,2.5,null,true]", b'{"a":{"type":"ping"}}', b'"x"',
)  # fmt: skip
