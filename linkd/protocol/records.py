"""Records and batches: the unit of storage and transfer.

A batch is a run of records of one channel whose encoded records lie side by side in `records`, so
that storing, sending and receiving it never opens it. Only what needs a record's inside decodes it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Annotated

import msgspec

from linkd.errors import BadRecord, BodyTooLarge

MAX_BATCH_BYTES = 65_536
"""A batch of more than one record holds at most this many bytes of encoded records."""

BATCH_OVERHEAD_BYTES = 1024
"""What a batch under way counts for beside its records: about what it takes in memory (measured).

Whatever bounds what waits by bytes counts it: a million messages of one byte take a gigabyte.
"""

MAX_WORD_LENGTH = 255
"""A type, an id, a content type and a header's value have at most this many characters."""

MAX_TTL_SECONDS = 1e9
MAX_HEADERS = 16
MAX_HEADER_NAME_LENGTH = 64

HEADER_NAME_PATTERN = rf"^[a-z0-9-]{{1,{MAX_HEADER_NAME_LENGTH}}}\Z"
"""Lower case: HTTP does not keep the case of a header's name."""

HEADER_VALUE_PATTERN = rf"^[^\x00-\x1f\x7f-\x9f]{{0,{MAX_WORD_LENGTH}}}\Z"
"""No control characters: a value fits into one header of HTTP."""

Word = Annotated[str, msgspec.Meta(max_length=MAX_WORD_LENGTH)]
Headers = Annotated[
    dict[
        Annotated[str, msgspec.Meta(pattern=HEADER_NAME_PATTERN)],
        Annotated[str, msgspec.Meta(pattern=HEADER_VALUE_PATTERN)],
    ],
    msgspec.Meta(max_length=MAX_HEADERS),
]


class EncodedRecord(
    msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True
):
    """A message in a batch: a msgpack array `[body, type, id, content_type, headers]`.

    Items at the end may be left out.

    Args:
        body: Any bytes.
        type: The application's word for what it is; empty if it gave none.
        id: What makes a repeated publish harmless; empty if none.
        content_type: As published; empty means `application/octet-stream`.
        headers: At most 16 short strings by name (`[a-z0-9-]`, at most 64 characters); nil if none.
    """

    body: bytes
    type: Word = ""
    id: Word = ""
    content_type: Word = ""
    headers: Headers | None = None


class Unreadable(EncodedRecord, frozen=True):
    """The place of a record that this version can't read: `body` is its whole encoding."""


class Origin(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a batch was published.

    Args:
        node: The node's name.
        log: Its log's id.
        epoch: The epoch of that log.
        first: The offset of the batch's first record there; the others follow without holes.
        after: The offset of the record before it on its channel in that epoch; 0 if there is none,
            None if it is not known.
    """

    node: Annotated[str, msgspec.Meta(max_length=63)]
    log: Annotated[str, msgspec.Meta(max_length=64)]
    epoch: Annotated[str, msgspec.Meta(max_length=64)]
    first: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    after: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | None = None


NO_ORIGIN = Origin("", "", "", 0)
"""The origin of a step without records."""


class SourcePosition(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Which step of a peer's log a received batch is.

    It takes our cursor from `previous` to `next`.
    """

    peer: str
    log: str
    epoch: str
    previous: int
    next: int


class Producer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A stream client's name for itself and its number for this batch, counted from 1.

    `owner` has the name: the key, or `socket`; empty in what an older linkd stored.
    """

    name: str
    sequence: int
    owner: str = ""


class NewRecords(msgspec.Struct, frozen=True, gc=False):
    """What a publisher hands to the log: `count` encoded records of one channel, side by side.

    Args:
        channel: A valid channel name.
        count: How many records lie in `records`.
        records: Their encodings (`encode_records`), unopened from here on.
        time: Unix seconds of publication; it only stamps.
        ttl: Seconds of life from now on, or None for ever.
        ids: The records' ids where they count for repeats; empty, or one a record.
        producer: The stream client's number for it, or None.
        counts: The records of each of its numbers where it has several: `producer` has the last.
        owner: Whose ids they are: the key's name, or `socket`.
    """

    channel: str
    count: int
    records: bytes
    time: float
    ttl: float | None = None
    ids: tuple[str, ...] = ()
    producer: Producer | None = None
    counts: tuple[int, ...] = ()
    owner: str = ""


class Batch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A batch as it is stored in a log, or a received one not stored yet (then `offset` is 0).

    Args:
        offset: The first record's place in this node's log; the others follow without holes.
        channel: The channel of all its records.
        count: Number of records, at least 1.
        records: `count` encoded records side by side.
        time: Unix seconds of publication at the origin.
        origin: Where it was published.
        epoch: The epoch of this node's log that contains it.
        ttl: Seconds of life that were left at `stamp`, or None for ever.
        stamp: The log's own clock when it was stored: seconds that only grow, also over a restart.
        source: The step of the peer's log that it came with; None if published here.
        producer: The stream client's number for it, or None.
    """

    offset: int
    channel: str
    count: int
    records: bytes
    time: float
    origin: Origin
    epoch: str = ""
    ttl: float | None = None
    stamp: float = 0.0
    source: SourcePosition | None = None
    producer: Producer | None = None

    @property
    def next(self) -> int:
        """The offset behind its last record."""
        return self.offset + self.count

    def expired(self, clock: float) -> bool:
        """Return whether its records have outlived their ttl at `clock`.

        Seconds on the log's clock.
        """
        return self.ttl is not None and clock - self.stamp >= self.ttl

    def ttl_left(self, clock: float) -> float | None:
        """Return the seconds of life that are left at `clock`, or None for ever."""
        return None if self.ttl is None else max(0.0, self.ttl - (clock - self.stamp))

    def from_offset(self, offset: int) -> Batch:
        """Return the batch without the records before `offset`; itself where there are none.

        Raises:
            ValueError: `offset` is beyond its last record.
        """
        skip = offset - self.offset
        if skip <= 0:
            return self
        if skip >= self.count:
            raise ValueError(f"batch {self.offset} to {self.next - 1} has no offset {offset}")
        return self.part(skip, self.count - skip)

    def part(self, skip: int, count: int) -> Batch:
        """Return `count` of its records, behind the first `skip`; itself where that is all."""
        if count == self.count:
            return self
        origin = self.origin
        first = origin.first + skip
        after = first - 1 if skip else origin.after
        return msgspec.structs.replace(
            self,
            offset=self.offset + skip,
            count=count,
            records=join_raw(split_raw(self.records, self.count)[skip : skip + count]),
            origin=msgspec.structs.replace(origin, first=first, after=after),
        )


_Scalar = bool | int | float | str | None
_Shallow = _Scalar | list[_Scalar] | dict[str, _Scalar]


class _LaterRecord(EncodedRecord, frozen=True):
    """A record of a later version: up to three more items, flat ones and no bytes."""

    more_1: _Shallow = None
    more_2: _Shallow = None
    more_3: _Shallow = None


class _View(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """A record whose body is not copied: for large ones."""

    body: memoryview
    type: Word = ""
    id: Word = ""
    content_type: Word = ""
    headers: Headers | None = None


class _Passed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An array of any values, none of them kept: msgspec steps over what it has no field for."""


_BODY_HEADS = {0xC4: 2, 0xC5: 3, 0xC6: 5}
"""Bytes of a body's head, by its first."""

_VIEW_BYTES = 1500
"""A body of this size costs less to look at where it is than to copy (measured)."""

_LEAST_ALIKE = 16
_MOST_COLUMNS = 64
"""With fewer records, or more bytes beside the body, comparing columns does not pay."""

_encoder = msgspec.msgpack.Encoder()
_records = msgspec.msgpack.Decoder(list[EncodedRecord])
_later_records = msgspec.msgpack.Decoder(list[_LaterRecord])
_view = msgspec.msgpack.Decoder(_View)
_views = msgspec.msgpack.Decoder(list[_View])
_headers = msgspec.msgpack.Decoder(Headers)
_raw = msgspec.msgpack.Decoder(list[msgspec.Raw])
_passed = msgspec.msgpack.Decoder(_Passed)
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode_records(records: Iterable[EncodedRecord]) -> bytes:
    """Return the encodings of `records`, side by side."""
    encode = _encoder.encode
    return b"".join([encode(record) for record in records])


def decode_records(records: bytes, count: int) -> Sequence[EncodedRecord]:
    """Return the records of a batch.

    The form is fixed and flat, so the answer does not depend on the depth of the stack.

    Raises:
        BadRecord: These are not `count` well-formed records.
    """
    _check_count(count, records)
    encoded = array_header(count) + records
    try:
        return _records.decode(encoded)
    except _MALFORMED:
        try:
            later = _later_records.decode(encoded)
        except _MALFORMED as error:
            raise BadRecord(f"expected {count} encoded records: {error}") from None
    return [
        EncodedRecord(one.body, one.type, one.id, one.content_type, one.headers) for one in later
    ]


def read_records(records: bytes, count: int) -> Sequence[EncodedRecord]:
    """Return the records of a batch; in the place of one that is malformed, an `Unreadable`.

    It never raises: what is stored reaches every reader.
    """
    try:
        return decode_records(records, count)
    except BadRecord:
        pass
    try:
        raws = split_raw(records, count)
    except BadRecord:
        return [Unreadable(records)] + [Unreadable(b"")] * min(count - 1, len(records))
    return [_read_one(bytes(raw)) for raw in raws]


def _read_one(encoded: bytes) -> EncodedRecord:
    try:
        return decode_records(encoded, 1)[0]
    except BadRecord:
        return Unreadable(encoded)


def check_records(records: bytes, count: int, max_body_bytes: int) -> None:
    """Check what a publisher sends: whatever passes here, every receiver and reader takes.

    Raises:
        BadRecord: These are not `count` well-formed records.
        BodyTooLarge: A body has more than `max_body_bytes`.
    """
    alike = count >= _LEAST_ALIKE and _are_alike(records, count)
    if alike and len(records) <= max_body_bytes * count:
        return
    found: Sequence[_View | EncodedRecord] = (
        _views_of(records, count)
        if count == 1 or len(records) > _VIEW_BYTES * count
        else decode_records(records, count)
    )
    if len(records) > max_body_bytes and any(len(one.body) > max_body_bytes for one in found):
        raise BodyTooLarge(
            f"expected bodies of at most {max_body_bytes} bytes (log.max_body_bytes)"
        )


def _views_of(records: bytes, count: int) -> Sequence[_View | EncodedRecord]:
    """Return the records of a batch, bodies not copied; raise BadRecord as `decode_records`."""
    _check_count(count, records)
    try:
        if count == 1:
            return [_view.decode(records)]  # not copied behind a head
        return _views.decode(array_header(count) + records)
    except _MALFORMED:
        return decode_records(records, count)


def _are_alike(records: bytes, count: int) -> bool:
    """Return whether these are `count` records with bodies of one length and the same words.

    Then what is true of the form of the first one is true of all, at a fifth of the cost. Any body
    of that length is well formed, so only the columns before and behind it are compared.
    """
    if count < _LEAST_ALIKE:
        return False
    size, rest = divmod(len(records), count)
    if rest or size < 3:
        return False
    if not 0x91 <= records[0] <= 0x95 or records[1] not in _BODY_HEADS:
        return False
    begin = 1 + _BODY_HEADS[records[1]]
    try:
        end = begin + len(decode_records(records[:size], 1)[0].body)
    except BadRecord:
        return False
    columns = (*range(begin), *range(end, size))
    if len(columns) > _MOST_COLUMNS:
        return False
    for place in columns:  # noqa: SIM110 - a generator costs as much as the comparisons
        if records[place::size] != records[place : place + 1] * count:
            return False
    return True


def check_words(type_: str, id_: str, content_type: str = "") -> None:
    """Raise BadRecord where one of them is longer than 255 characters, or is no Unicode."""
    whole = type_ + id_ + content_type
    if len(whole) <= MAX_WORD_LENGTH and whole.isascii():
        return  # nearly always: a publish costs microseconds
    for name, word in (("type", type_), ("id", id_), ("content type", content_type)):
        if len(word) > MAX_WORD_LENGTH:
            raise BadRecord(
                f"expected a {name} of at most {MAX_WORD_LENGTH} characters, got {len(word)}"
            )
        if not word.isascii():
            try:
                word.encode()
            except UnicodeEncodeError as error:
                raise BadRecord(f"expected a {name} in Unicode: {error}") from None


def headers_bytes(headers: Mapping[str, str] | None) -> int:
    """Return how many bytes the encoding of headers takes, at most."""
    if not headers:
        return 1
    return 3 + sum([5 + len(name) + 4 * len(value) for name, value in headers.items()])


def check_headers(headers: Mapping[str, str]) -> dict[str, str] | None:
    """Return headers as a record carries them, names in lower case; None if there are none.

    Raises:
        BadRecord: There are too many, or a name or value has a form that records do not carry.
    """
    if not headers:
        return None
    lowered = {name.lower(): value for name, value in headers.items()}
    try:
        return _headers.decode(_encoder.encode(lowered))
    except (*_MALFORMED, UnicodeEncodeError, TypeError):
        raise BadRecord(
            f"expected at most {MAX_HEADERS} headers, their names of letters, digits and -, at"
            f" most {MAX_HEADER_NAME_LENGTH}, their values of at most {MAX_WORD_LENGTH} characters"
            " without control characters"
        ) from None


def split_raw(records: bytes, count: int) -> list[msgspec.Raw]:
    """Return the encoding of each record, undecoded; a single one is returned unchecked.

    Raises:
        BadRecord: These are not `count` msgpack values.
    """
    _check_count(count, records)
    if count == 1:
        return [msgspec.Raw(records)]  # a large record is not copied behind a head
    try:
        return _raw.decode(array_header(count) + records)
    except msgspec.DecodeError as error:
        raise BadRecord(f"expected {count} encoded records: {error}") from None
    except RecursionError:  # a matter of the stack, which must not decide
        ends = _ends(records, count)
        return [
            msgspec.Raw(records[begin:end])
            for begin, end in zip([0, *ends[:-1]], ends, strict=True)
        ]


def runs_of(records: bytes, count: int, max_bytes: int) -> list[tuple[int, bytes]]:
    """Return records as runs of at most `max_bytes`, or of one record: counts and encodings.

    Raises:
        BadRecord: These are not `count` msgpack values.
    """
    if len(records) <= max_bytes or count == 1:
        return [(count, records)]
    if _are_alike(records, count):
        ends: Sequence[int] = range(len(records) // count, len(records) + 1, len(records) // count)
    else:
        ends = list(accumulate([memoryview(raw).nbytes for raw in split_raw(records, count)]))
    runs: list[tuple[int, bytes]] = []
    first = begin = 0
    while first < count:
        next_ = max(first + 1, bisect_right(ends, begin + max_bytes))
        end = ends[next_ - 1]
        runs.append((next_ - first, records[begin:end]))
        first, begin = next_, end
    return runs


def check_raw(records: bytes, count: int) -> None:
    """Check `count` against the bytes, as `split_raw` does, at a third of its cost.

    It looks at the bounds of records only: a malformed one is no error of the peer that stored it.

    Raises:
        BadRecord: These are not `count` msgpack values.
    """
    _check_count(count, records)
    if count == 1:
        return
    try:
        _passed.decode(array_header(count) + records)
    except msgspec.DecodeError as error:
        raise BadRecord(f"expected {count} encoded records: {error}") from None
    except RecursionError:  # a matter of the stack, which must not decide
        _ends(records, count)


_WITH_LENGTH = {
    first + place: (size, beside, each)
    for first, sizes, beside, each in (
        (0xC4, (1, 2, 4), 0, 0),  # bytes
        (0xC7, (1, 2, 4), 1, 0),  # extensions
        (0xD9, (1, 2, 4), 0, 0),  # strings
        (0xDC, (2, 4), 0, 1),  # arrays
        (0xDE, (2, 4), 0, 2),  # maps
    )
    for place, size in enumerate(sizes)
}
"""Of heads with a length: its bytes, the bytes beside it, the values for each of its items."""

_FIXED_BYTES = dict(
    zip(
        (0xC0, 0xC2, 0xC3, *range(0xCA, 0xD9)),
        (1, 1, 1, 5, 9, 2, 3, 5, 9, 2, 3, 5, 9, 3, 4, 6, 10, 18),
        strict=True,
    )
)
"""Of the other heads from 0xC0 to 0xDF: all their bytes."""


def _step_of(head: int) -> tuple[int, int]:
    """Return how far it is from this head to the next, and how many more values follow.

    0 where that is not in the head alone.
    """
    if 0x80 <= head < 0xA0:  # maps and arrays
        return 1, (head & 0x0F) * (2 if head < 0x90 else 1) - 1
    if 0xA0 <= head < 0xC0:  # strings
        return 1 + (head & 0x1F), -1
    return _FIXED_BYTES.get(head, 0) if 0xC0 <= head < 0xE0 else 1, -1


_STEPS = [_step_of(head) for head in range(256)]


def _ends(records: bytes, count: int) -> list[int]:
    """Return where each of `count` msgpack values ends, however deeply they are nested.

    Raises:
        BadRecord: These are not `count` msgpack values.
    """
    at, ends = 0, []
    for _ in range(count):
        at = _end_of(records, at)
        ends.append(at)
    if at != len(records):
        raise BadRecord(f"expected {count} encoded records: they end at byte {at}")
    return ends


def _end_of(records: bytes, at: int) -> int:
    """Return where the msgpack value at `at` ends; it takes a step for each value inside."""
    left, steps, size = 1, _STEPS, len(records)
    while left:
        if at >= size:
            raise BadRecord("expected encoded records: the last one is cut off")
        head = records[at]
        step, more = steps[head]
        if step:
            at += step
            left += more
            continue
        if head not in _WITH_LENGTH:
            raise BadRecord(f"expected encoded records: byte {at} is {head:#x}")
        wide, beside, each = _WITH_LENGTH[head]
        length = int.from_bytes(records[at + 1 : at + 1 + wide], "big")
        at += 1 + wide + (0 if each else beside + length)
        left += each * length - 1
    return at


def _check_count(count: int, records: bytes) -> None:
    """Raise BadRecord where there can't be `count` records: each takes a byte at least."""
    if count > len(records):
        raise BadRecord(f"expected {count} encoded records in {len(records)} bytes")


def join_raw(records: Sequence[msgspec.Raw]) -> bytes:
    """Put encodings side by side again."""
    return b"".join([bytes(record) for record in records])


def array_header(count: int) -> bytes:
    """Return msgpack's head of an array of `count` values."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 65_536:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")
