"""Text frames of `/ws` that are JSON by their form and yet can't be read; found by fuzzing."""

from __future__ import annotations

import json

import pytest

from linkd.api.errors import ApiError
from linkd.api.text_frames import FrameRefused, parse, render_messages
from linkd.protocol.records import Batch, EncodedRecord, Origin, encode_records


@pytest.mark.parametrize("number", [b"1e999", b"9" * 5000])
def test_an_id_out_of_range_is_refused(number: bytes) -> None:
    with pytest.raises(ApiError, match="id: expected a string or a whole number"):
        parse(b'{"type":"made","data":1,"id":' + number + b"}", binary=False)


@pytest.mark.parametrize("number", [b"1e999", b"9" * 5000])
def test_a_frame_with_an_invalid_type_is_published_as_a_value(number: bytes) -> None:
    payload = b'{"type":' + number + b',"data":1}'
    frame = parse(payload, binary=False)
    assert (frame.kind, frame.type, frame.body) == ("publish", "", payload)


def test_the_longest_headers_are_accepted_and_a_long_type_keeps_its_id() -> None:
    headers = {f"name-{number}-".ljust(64, "x"): "ä" * 255 for number in range(16)}
    given = {"type": "made", "data": 1, "id": 7, "headers": headers}
    frame = parse(json.dumps(given).encode(), binary=False)
    assert (frame.id, frame.headers) == (7, headers)
    long = parse(json.dumps({**given, "type": "t" * 100_000}).encode(), binary=False)
    assert (long.id, len(long.type)) == (7, 100_000)


def test_large_values_instead_of_words_are_refused_without_decoding() -> None:
    brackets = b"[" + b"[]," * 100_000 + b"[]]"
    with pytest.raises(FrameRefused, match="headers: expected an object") as refused:
        parse(b'{"type":"made","data":1,"id":7,"headers":' + brackets + b"}", binary=False)
    assert refused.value.id == 7


@pytest.mark.parametrize("offset", [90, 0])
def test_a_frame_has_its_origin_offset(offset: int) -> None:
    records = encode_records([EncodedRecord(b"1", "noted"), EncodedRecord(b"2", "noted")])
    batch = Batch(offset, "orders", 2, records, 1.0, Origin("edge", "log", "e", 7))
    found = [json.loads(one.payload) for one in render_messages(batch, envelope=False)]
    places = [(one["origin"], one["offset"], one["origin_offset"]) for one in found]
    expected = [("edge", 90, 7), ("edge", 91, 8)] if offset else [("edge", 0, 0)] * 2
    assert places == expected
