"""Proper messages of each kind, to be spoilt."""

from __future__ import annotations

from functools import cache

from linkd.protocol import client, peer
from linkd.protocol.client import join
from linkd.protocol.records import EncodedRecord, Origin, encode_records

_RECORDS = encode_records([EncodedRecord(b"a", "made", "i", "text/plain"), EncodedRecord(b"")])


@cache
def messages() -> tuple[bytes, ...]:
    """Return one message of each kind between nodes."""
    generation = peer.Generation("boot", 1)
    cursor = peer.Cursor("l", (peer.EpochEnd("e", 5),), 5)
    epochs = (peer.EpochStart("e", 1),)
    kinds = (
        peer.Hello(1, "hub", "x", generation, "l", epochs, 9, cursor, (">",), 5.0, "p", ("zstd",)),
        peer.BatchMessage(
            1, 3, "e", "a", 2, len(_RECORDS), _RECORDS, 1.0, 2.0, Origin("a", "l", "e", 1)
        ),
        peer.BatchMessage(3, 9, "e"), peer.Part(b"abc"), peer.Ack(7), peer.GapNotice(1, 5, "e"),
        peer.Volatile("t", 2, _RECORDS, 1.0, None, "a", "r", 1), peer.Goodbye("stopped", "x", 1.0),
        peer.Resend(5), peer.Probe(b"0" * 9), peer.Probed(9),
    )  # fmt: skip
    return tuple(peer.encode(message) for message in kinds)


@cache
def streams() -> tuple[bytes, ...]:
    """Return messages of the stream, both ways."""
    kinds = (
        client.Open(1, "p", "s"), client.Publish(1, "orders", 2, _RECORDS, 1.0, ("i", "")),
        client.WaitForPeer(1, "hub", "orders", 5, 1.0),
        client.Subscribe(1, (">",), "earliest", "c", 500),
        client.Unsubscribe(1), client.Credit(1, 5), client.ConsumerAck(1, 5), client.WatchStatus(),
        client.Opened(1, "n", "s", "l", 1, 2, 3), client.Ended(1, "stopped"),
        client.Deliver(1, 1, "orders", 2, _RECORDS, 1.0, "a", 1), client.SubscriptionGap(1, 2, 3),
    )  # fmt: skip
    return tuple(join([client.encode_frame(frame)], 1) for frame in kinds)


TEXTS = (
    b'{"type":"ping"}', b'{"type":"subscribe","data":{"channel":"news.*","from":3},"id":1}',
    b'{"type":"unsubscribe","data":{"channel":"news.*"}}', b'{"type":"made","data":{"a":[1,2]}}',
    b'{"type":"made","data":1,"id":"i","channel":"orders"}', b'{"type":"ack","data":1}', b"hello",
    b'{"type":"a","data":1,"id":1e999}', b"[1,2.5,null,true]", b'{"a":{"type":"ping"}}', b'"x"',
)  # fmt: skip
