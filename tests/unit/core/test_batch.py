"""Batches: what is cut off, what is left of a ttl, and heads of arrays of any length."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.core.batch import (
    Batch,
    Origin,
    Record,
    array_header,
    check_raw,
    decode_records,
    encode_records,
    split_raw,
)
from linkd.errors import BadRecord


def batch(*bodies: bytes, ttl: float | None = None) -> Batch:
    """Return a batch from offset 10 on, stored at 100."""
    records = encode_records(Record(body) for body in bodies)
    origin = Origin("far", "log", "e", 7)
    return Batch(10, "orders", len(bodies), records, 1.0, origin, "m", ttl, 100.0)


def test_a_batch_is_cut_at_any_of_its_records_and_nowhere_else() -> None:
    whole = batch(b"a", b"b", b"c")
    assert whole.from_offset(9) is whole
    assert whole.from_offset(10) is whole
    for skip in (1, 2):
        cut = whole.from_offset(10 + skip)
        assert (cut.offset, cut.next, cut.origin.first) == (10 + skip, 13, 7 + skip)
        assert [r.body for r in decode_records(cut.records, cut.count)] == [b"b", b"c"][skip - 1 :]
    with pytest.raises(ValueError, match="batch 10 to 12 has no offset 13"):
        whole.from_offset(13)


def test_a_ttl_ends_at_its_moment() -> None:
    lasting, mortal = batch(b"a"), batch(b"a", ttl=5.0)
    assert not lasting.expired(1e9)
    assert lasting.ttl_left(1e9) is None
    assert not mortal.expired(104.999)
    assert mortal.expired(105.0)
    assert mortal.ttl_left(103.0) == 2.0
    assert mortal.ttl_left(200.0) == 0.0


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536, 70_000])
def test_any_number_of_records_is_read_back(count: int) -> None:
    assert msgspec.msgpack.decode(array_header(count) + b"\xc0" * count) == [None] * count
    assert len(split_raw(b"\xc0" * count, count)) == count


@pytest.mark.parametrize(
    "records", [b"\xc0\xc0", b"\x91\xc4\x01a\xc0", b"\x94\xc4\x01a\xa1\xff\xa0\xa0"]
)
def test_what_is_no_record_is_refused(records: bytes) -> None:
    with pytest.raises(BadRecord, match="expected 1 encoded records"):
        decode_records(records, 1)


_VALUES = st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.lists(_VALUES, max_size=70), st.integers(-2, 2), st.data())
def test_records_are_checked_as_they_are_split(
    values: list[object], off: int, data: st.DataObject
) -> None:
    records = bytearray(b"".join(map(msgspec.msgpack.encode, values)))
    for _ in range(data.draw(st.integers(0, 2))):
        if records:
            records[data.draw(st.integers(0, len(records) - 1))] = data.draw(st.integers(0, 255))
    count, whole = max(0, len(values) + off), bytes(records)
    assert _outcome(check_raw, whole, count) == _outcome(split_raw, whole, count)


def _outcome(how: Callable[[bytes, int], object], records: bytes, count: int) -> str:
    try:
        how(records, count)
    except BadRecord as error:
        return str(error)
    return ""
