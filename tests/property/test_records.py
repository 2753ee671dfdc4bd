"""What a publisher's node takes passes a link, each reader and each client; what it does not, too.

Any bytes may lie in a log: an older or a newer version, or a peer, may have put them there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from linkd.api.http import record_objects
from linkd.api.sinks import event
from linkd.api.text_frames import render_messages
from linkd.cli.streaming import _line
from linkd.client.record import RecordContext, decode_value, unpack
from linkd.errors import BadRecord, BodyTooLarge
from linkd.protocol.client import Deliver
from linkd.protocol.records import (
    MAX_HEADERS,
    Batch,
    EncodedRecord,
    Origin,
    Unreadable,
    check_raw,
    check_records,
    encode_records,
    read_records,
    split_raw,
)

MOST = 4000
"""The largest body, here."""

words = st.text(max_size=300) | st.sampled_from(["a\r\nb", "application/json", "text/plain", "\0"])
bodies = (
    st.binary(max_size=60)
    | st.sampled_from(
        [
            b"[" * 950 + b"]" * 950,
            b"[" * 100_000,
            b'{"a":1}',
            b'{"a":\r\n1}',
            b'"\\ud800"',
            b"7" * 5000,
        ]
    )
    | st.text(max_size=20).map(str.encode)
)
headers = st.none() | st.dictionaries(
    st.text("abz019-", max_size=66), st.text(max_size=260), max_size=MAX_HEADERS + 1
)
records = st.builds(EncodedRecord, bodies, words, words, words, headers)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | words | bodies,
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
nested = st.integers(0, 1200).map(lambda depth: b"\x91" * depth + b"\xc0")
encodings = (
    records.map(lambda record: encode_records((record,)))
    | values.map(msgspec.msgpack.encode)
    | st.lists(values, max_size=10).map(msgspec.msgpack.encode)
    | nested
    | nested.map(lambda deep: b"\x96\xc4\x00\xa0\xa0\xa0\xc0" + deep)
    | nested.map(lambda deep: b"\x95\xc4\x00\xa0\xa0\xa0" + deep)
)

DEEP = b"\x91" * 981 + b"\xc0"


@given(st.lists(encodings, min_size=1, max_size=6), st.data())
@settings(deadline=None, max_examples=300)
@example([DEEP], None)
@example(
    [encode_records((EncodedRecord(b"x"),)), DEEP, encode_records((EncodedRecord(b"y"),))], None
)
def test_a_record_passes_everything_or_nothing(pieces: list[bytes], data: Any) -> None:
    whole, count = b"".join(pieces), len(pieces)
    taken = at_depth(1, lambda: taken_at_ingress(whole, count))
    assert taken == at_depth(200, lambda: taken_at_ingress(whole, count))
    at_depth(200, lambda: check_raw(whole, count))  # what a peer checks
    found = read_records(whole, count)
    assert found == at_depth(200, lambda: read_records(whole, count))
    assert len(found) == count
    if taken:
        assert not any(isinstance(one, Unreadable) for one in found)
    for one, piece in zip(found, pieces, strict=True):
        if isinstance(one, Unreadable):
            assert one.body == piece
    read_by_all(Batch(5, "orders", count, whole, 1.0, Origin("edge", "l", "e", 5)), found)
    if count > 1:
        cut = 1 if data is None else data.draw(st.integers(1, count - 1))
        rest = Batch(5, "orders", count, whole, 1.0, Origin("edge", "l", "e", 5)).from_offset(
            5 + cut
        )
        assert rest.records == b"".join(pieces[cut:])
        assert list(read_records(rest.records, rest.count)) == list(found)[cut:]
        assert [bytes(raw) for raw in split_raw(whole, count)] == pieces


def read_by_all(batch: Batch, found: Any) -> None:
    """Have every reader show a batch, and look at what it shows."""
    shown = [json.loads(encoded) for _, encoded in record_objects(batch)]
    assert [one["offset"] for one in shown] == list(range(5, 5 + batch.count))
    assert [one.get("unreadable", False) for one in shown] == [
        isinstance(one, Unreadable) for one in found
    ]
    assert [one.get("headers") for one in shown] == [one.headers or None for one in found]
    for offset, encoded in record_objects(batch):
        lines = event(encoded, b"%d" % offset).split(b"\n")
        assert lines[0] == b"id: %d" % offset
        assert json.loads(b"\n".join([line[6:] for line in lines[1:] if line])) == shown[offset - 5]
    for envelope in (True, False):
        frames = list(render_messages(batch, envelope))
        assert len(frames) == batch.count
        for frame, one in zip(frames, found, strict=True):
            if envelope or isinstance(one, Unreadable):
                assert not frame.binary
                assert json.loads(frame.payload).get("unreadable", False) == isinstance(
                    one, Unreadable
                )
            if not frame.binary:
                frame.payload.decode()
    frame = Deliver(1, 5, "orders", batch.count, batch.records, 1.0, "edge", 5)
    got = unpack(frame, RecordContext(decode_value, lambda _: None))  # type: ignore[arg-type, return-value]
    assert [json.loads(one.to_json()) for one in got] == shown
    for one in got:
        assert one.data is not None
        assert len(_line(one, as_json=False).splitlines()) == 1
        assert json.loads(_line(one, as_json=True)) == json.loads(one.to_json())
        assert not {"\n", "\r"} & set(_line(one, as_json=True))


def taken_at_ingress(whole: bytes, count: int) -> bool:
    try:
        check_records(whole, count, MOST)
    except (BadRecord, BodyTooLarge):
        return False
    return True


def at_depth(frames: int, call: Callable[[], Any]) -> Any:
    """Return what `call` returns, that many stack frames further down."""
    return call() if not frames else at_depth(frames - 1, call)
