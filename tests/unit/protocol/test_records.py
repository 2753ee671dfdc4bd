"""Batches: what is cut off, what is left of a ttl, and heads of arrays of any length."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.errors import BadRecord, BodyTooLarge, LinkdError
from linkd.protocol.records import (
    Batch,
    EncodedRecord,
    Origin,
    Unreadable,
    _are_alike,
    _ends,
    array_header,
    check_headers,
    check_raw,
    check_records,
    check_words,
    decode_records,
    encode_records,
    headers_bytes,
    read_records,
    runs_of,
    split_raw,
)


def batch(*bodies: bytes, ttl: float | None = None) -> Batch:
    """Return a batch from offset 10 on, stored at 100."""
    records = encode_records(EncodedRecord(body) for body in bodies)
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


def at_depth(frames: int, call: Callable[[], object]) -> object:
    """Return what `call` returns or raises, that many stack frames further down."""
    if frames:
        return at_depth(frames - 1, call)
    try:
        return call()
    except LinkdError as error:
        return type(error)


RECORD = EncodedRecord(b"body", "created", "id-1", "text/plain", {"trace-id": "7", "empty": ""})
GOOD = encode_records((RECORD,))


@pytest.mark.parametrize("depth", [1, 30, 31, 32, 33, 500, 900, 950, 981, 40_000])
@pytest.mark.parametrize("head", [b"", b"\x92\xc4\x00", b"\x96\xc4\x00\xa0\xa0\xa0\xc0", b"\x81"])
def test_a_verdict_does_not_depend_on_the_stack(depth: int, head: bytes) -> None:
    deep = head + b"\x91" * depth + b"\xc0"
    for records, count in ((deep, 1), (GOOD + deep + GOOD, 3)):
        calls: tuple[Callable[[], object], ...] = (
            lambda r=records, c=count: check_records(r, c, 1 << 20),
            lambda r=records, c=count: check_raw(r, c),
            lambda r=records, c=count: list(map(bytes, split_raw(r, c))),
            lambda r=records, c=count: read_records(r, c),
        )
        for call in calls:
            assert at_depth(1, call) == at_depth(200, call)


def test_a_deep_record_is_unreadable_and_those_beside_it_are_not() -> None:
    deep = b"\x91" * 981 + b"\xc0"
    assert read_records(GOOD + deep + GOOD, 3) == [RECORD, Unreadable(deep), RECORD]
    whole = batch()
    whole = msgspec.structs.replace(whole, records=GOOD + deep + GOOD, count=3)
    assert whole.from_offset(11).records == deep + GOOD
    assert whole.from_offset(12).records == GOOD


def test_headers_come_back_and_none_cost_one_byte() -> None:
    assert decode_records(GOOD, 1) == [RECORD]
    assert len(encode_records((EncodedRecord(b"x"),))) == len(b"\x94\xc4\x01x\xa0\xa0\xa0") + 1
    assert decode_records(b"\x94\xc4\x01x\xa0\xa0\xa0", 1) == [EncodedRecord(b"x")]
    assert decode_records(b"\x91\xc4\x01x", 1) == [EncodedRecord(b"x")]


@pytest.mark.parametrize(
    "record",
    [
        EncodedRecord(b"", "x" * 256),
        EncodedRecord(b"", "", "x" * 256),
        EncodedRecord(b"", "", "", "x" * 256),
        EncodedRecord(b"", headers={"Upper": "x"}),
        EncodedRecord(b"", headers={"x" * 65: "x"}),
        EncodedRecord(b"", headers={"": "x"}),
        EncodedRecord(b"", headers={"x\n": "x"}),
        EncodedRecord(b"", headers={"x": "x" * 256}),
        EncodedRecord(b"", headers={"x": "a\r\nb"}),
        EncodedRecord(b"", headers={"x": "a\n"}),
        EncodedRecord(b"", headers={f"x{number}": "" for number in range(17)}),
    ],
)
def test_what_is_out_of_bounds_is_refused_at_the_publisher(record: EncodedRecord) -> None:
    encoded = encode_records((record,))
    with pytest.raises(BadRecord):
        check_records(encoded, 1, 1 << 20)
    assert read_records(encoded, 1) == [Unreadable(encoded)]


def test_the_bounds_themselves_are_taken() -> None:
    word = "é" * 255
    headers = {f"{number:064}": word for number in range(16)}
    full = EncodedRecord(b"", word, word, word, headers)
    encoded = encode_records((full,))
    check_records(encoded, 1, 1 << 20)
    assert read_records(encoded, 1) == [full]


@pytest.mark.parametrize("item", [None, 1, "x", True, 1.5, [1, "x"], {"a": None}])
def test_flat_items_of_a_later_version_are_ignored(item: object) -> None:
    more = msgspec.msgpack.encode([b"x", "t", "", "", {"a": "b"}, item, item, item])
    check_records(more + GOOD, 2, 1 << 20)
    assert read_records(more + GOOD, 2) == [EncodedRecord(b"x", "t", headers={"a": "b"}), RECORD]
    nested = msgspec.msgpack.encode([b"x", "t", "", "", {"a": "b"}, [[item]]])
    with pytest.raises(BadRecord):
        check_records(nested, 1, 1 << 20)


def test_bodies_are_bounded_to_the_byte() -> None:
    for size in (1000, 100_000):
        two = encode_records((EncodedRecord(b"y"), EncodedRecord(b"x" * size, "t" * 255)))
        check_records(two, 2, size)
        with pytest.raises(BodyTooLarge, match=f"at most {size - 1} bytes"):
            check_records(two, 2, size - 1)
    later = msgspec.msgpack.encode([b"x" * 100_000, "", "", "", None, 1])
    check_records(later, 1, 100_000)
    with pytest.raises(BodyTooLarge):
        check_records(later, 1, 99_999)


def test_headers_of_an_application_are_checked_and_lowered() -> None:
    assert check_headers({}) is None
    assert check_headers({"Trace-Id": "7 é"}) == {"trace-id": "7 é"}
    for wrong in ({"a b": ""}, {"a": "\n"}, {"a": "\ud800"}, {"a": 1}):
        with pytest.raises(BadRecord, match="expected at most 16 headers"):
            check_headers(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "headers", [None, {"a": ""}, {f"{n:064}": "\U0001f600" * 255 for n in range(16)}]
)
def test_the_bytes_of_headers_are_never_guessed_too_low(headers: dict[str, str] | None) -> None:
    with_them = encode_records((EncodedRecord(b"", headers=headers),))
    assert headers_bytes(headers) >= len(with_them) - len(b"\x95\xc4\x00\xa0\xa0\xa0")


def test_words_are_bounded() -> None:
    check_words("created", "id-1", "text/plain")
    check_words("x" * 255, "é" * 255, "x" * 255)
    for wrong in (
        ("x" * 256, "", ""),
        ("", "é" * 256, ""),
        ("", "", "x" * 256),
        ("\ud800", "", ""),
    ):
        with pytest.raises(BadRecord):
            check_words(*wrong)


def test_what_can_not_be_split_is_unreadable_as_a_whole() -> None:
    assert read_records(b"\xc4\x05x", 2) == [Unreadable(b"\xc4\x05x"), Unreadable(b"")]


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
    split = at_depth(0, lambda: split_raw(whole, count))
    assert (at_depth(0, lambda: check_raw(whole, count)) is None) == isinstance(split, list)
    if count > 1 and isinstance(split, list):
        assert b"".join(map(bytes, split)) == whole
        assert [len(bytes(raw)) for raw in split] == _sizes(whole, count)
    elif count > 1 and count <= len(whole):
        with pytest.raises(BadRecord):
            _ends(whole, count)
    if count > 0:
        assert all(isinstance(one, EncodedRecord) for one in read_records(whole, count))


def _sizes(whole: bytes, count: int) -> list[int]:
    ends = _ends(whole, count)
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def test_every_head_of_msgpack_is_stepped_over_as_msgspec_does() -> None:
    for head in range(256):
        for tail in (b"", bytes(20), b"\x01" + bytes(40), b"\x00\x03" + bytes(40)):
            records = bytes((head,)) + tail
            for count in range(2, min(40, len(records)) + 1):
                split = at_depth(0, lambda r=records, c=count: split_raw(r, c))
                ends = at_depth(0, lambda r=records, c=count: _ends(r, c))
                if isinstance(split, list):
                    assert isinstance(ends, list)
                    assert [len(bytes(raw)) for raw in split] == _sizes(records, count)
                else:
                    assert ends is split, (head, tail, count)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=12)
    | st.builds(lambda size, count: [size] * count, st.integers(0, 9), st.integers(16, 40)),
    st.integers(1, 60),
)
def test_runs_are_as_long_as_the_bound_allows(sizes: list[int], max_bytes: int) -> None:
    each = [encode_records((EncodedRecord(bytes(size)),)) for size in sizes]
    runs = runs_of(b"".join(each), len(each), max_bytes)
    at = 0
    for place, (count, records) in enumerate(runs):
        assert records == b"".join(each[at : at + count])
        assert count == 1 or len(records) <= max_bytes
        at += count
        if place + 1 < len(runs):
            assert len(records) + len(each[at]) > max_bytes
    assert at == len(each)


def test_all_of_a_batch_is_the_batch() -> None:
    whole = batch(b"a", b"b")
    assert whole.part(0, 2) is whole
    assert whole.part(1, 1) == whole.from_offset(11)


ALIKE = st.builds(
    lambda body, type_, headers: encode_records((EncodedRecord(body, type_, headers=headers),)),
    st.integers(0, 400).map(bytes),
    st.text(max_size=4),
    st.none() | st.just({"trace-id": "7"}),
)


@given(
    ALIKE | st.sampled_from([b"\x91\xc4\x01a", b"\x91\xa1a", b"\xc0"]),
    st.integers(1, 40),
    st.data(),
)
def test_records_that_are_alike_get_the_same_verdict_as_each_alone(
    record: bytes, count: int, data: st.DataObject
) -> None:
    whole = bytearray(record * count)
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.sampled_from((0, 1, 0x91, 0xA1, 0xC0, 0xC4, 0xFF)))
    records = bytes(whole)
    assert verdict(lambda: check_records(records, count, 1 << 20)) == verdict(
        lambda: decode_records(records, count)
    )


def verdict(check: Callable[[], object]) -> bool:
    """Return whether a check raises nothing."""
    try:
        check()
    except BadRecord:
        return False
    return True


@pytest.mark.parametrize("size", [0, 100, 300, 4000])
def test_bodies_of_one_length_are_alike_whatever_they_hold(size: int) -> None:
    records = [EncodedRecord(bytes([number]) * size, "created") for number in range(16)]
    assert _are_alike(encode_records(records), 16)
    assert not _are_alike(encode_records([*records[1:], EncodedRecord(bytes(size), "creates")]), 16)
    assert not _are_alike(encode_records([*records[1:], EncodedRecord(bytes(size + 1))]), 16)
    assert not _are_alike(encode_records([EncodedRecord(b"", "x" * 100)] * 16), 16)
    for malformed in (b"\xc0\xc4\x01a", b"\x91\xa2aa", b"\x92\xc4\x01a\xc0", b"\x91\xc4\x09a"):
        assert not _are_alike(malformed * 16, 16)


@pytest.mark.parametrize("count", [1, 15, 16, 40])
@pytest.mark.parametrize("size", [20, 1600])
@pytest.mark.parametrize("spread", [0, 1])
def test_bodies_are_bounded_however_they_are_looked_at(count: int, size: int, spread: int) -> None:
    bodies = [b"x" * (size + spread * (place % 2)) for place in range(count)]
    records = encode_records([EncodedRecord(body) for body in bodies])
    most = max(map(len, bodies))
    check_records(records, count, most)
    with pytest.raises(BodyTooLarge):
        check_records(records, count, most - 1)
