"""Records and batches: the unit of storage, of transfer and of handing out.

A batch is a run of records of one channel whose encoded records lie side by side in `records`, so
that storing, sending and receiving it never opens it. Only what needs a record's inside decodes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from linkd.errors import BadRecord

MAX_BATCH_BYTES = 65_536
"""A batch of more than one record holds at most this many bytes of encoded records."""

HELD_BYTES = 1024
"""What a batch under way counts for beside its records: about what it takes in memory (measured).

Whatever bounds what waits by bytes counts it: a million messages of one byte take a gigabyte.
"""

MAX_ID_BYTES = 255
MAX_TYPE_BYTES = 255


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One message as it lies in a batch: a msgpack array `[body, type, id, content_type]`.

    Args:
        body: Any bytes.
        type: The application's word for what it is; empty if it gave none.
        id: What makes a repeated publish harmless; empty if none.
        content_type: As published; empty means `application/octet-stream`.
    """

    body: bytes
    type: str = ""
    id: str = ""
    content_type: str = ""


class Origin(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a batch was published.

    Node, log id, epoch, and the offset of its first record there.
    """

    node: str
    log: str
    epoch: str
    first: int


NOWHERE = Origin("", "", "", 0)
"""The origin of a step without records."""


class Source(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Which step of a peer's log a received batch is.

    It takes our cursor from `previous` to `next`.
    """

    peer: str
    log: str
    epoch: str
    previous: int
    next: int


class Producer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A stream client's name for itself and its number for this batch, counted from 1."""

    name: str
    sequence: int


class Draft(msgspec.Struct, frozen=True, gc=False):
    """What a publisher hands to the log: `count` encoded records of one channel, side by side.

    Args:
        channel: A valid channel name.
        count: How many records lie in `records`.
        records: Their encodings (`encode_records`), unopened from here on.
        time: Unix seconds of publication; it only stamps.
        ttl: Seconds of life from now on, or None for ever.
        ids: The records' ids where they count for repeats; empty, or one a record.
        producer: The stream client's number for it, or None.
    """

    channel: str
    count: int
    records: bytes
    time: float
    ttl: float | None = None
    ids: tuple[str, ...] = ()
    producer: Producer | None = None


class Batch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A batch as it lies in a log, or a received one on its way there (then `offset` is 0).

    Args:
        offset: The first record's place in this node's log; the others follow without holes.
        channel: The channel of all its records.
        count: Number of records, at least 1.
        records: `count` encoded records side by side.
        time: Unix seconds of publication at the origin.
        origin: Where it was published.
        epoch: The epoch of this node's log in which it lies.
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
    source: Source | None = None
    producer: Producer | None = None

    @property
    def next(self) -> int:
        """The offset behind its last record."""
        return self.offset + self.count

    def expired(self, clock: float) -> bool:
        """Tell whether its records have outlived their ttl at `clock`.

        Seconds on the log's clock.
        """
        return self.ttl is not None and clock - self.stamp >= self.ttl

    def ttl_left(self, clock: float) -> float | None:
        """Return the seconds of life that are left at `clock`, or None for ever."""
        return None if self.ttl is None else max(0.0, self.ttl - (clock - self.stamp))

    def from_offset(self, offset: int) -> Batch:
        """Return the batch without the records before `offset`; itself where there are none.

        Raises:
            ValueError: `offset` lies behind its last record.
        """
        skip = offset - self.offset
        if skip <= 0:
            return self
        if skip >= self.count:
            raise ValueError(f"batch {self.offset} to {self.next - 1} has no offset {offset}")
        return msgspec.structs.replace(
            self,
            offset=offset,
            count=self.count - skip,
            records=join_raw(split_raw(self.records, self.count)[skip:]),
            origin=msgspec.structs.replace(self.origin, first=self.origin.first + skip),
        )


class _Passed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An array of any values, none of them kept: msgspec steps over what it has no field for."""


_encoder = msgspec.msgpack.Encoder()
_typed = msgspec.msgpack.Decoder(list[Record])
_raw = msgspec.msgpack.Decoder(list[msgspec.Raw])
_lone_raw = msgspec.msgpack.Decoder(msgspec.Raw)
_passed = msgspec.msgpack.Decoder(_Passed)


def encode_records(records: Iterable[Record]) -> bytes:
    """Return the encodings of `records`, side by side."""
    encode = _encoder.encode
    return b"".join([encode(record) for record in records])


def decode_records(records: bytes, count: int) -> list[Record]:
    """Return the records of a batch.

    Raises:
        BadRecord: These are not `count` well-formed records.
    """
    _check_count(count, records)
    try:
        return _typed.decode(array_header(count) + records)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecord(f"expected {count} encoded records: {error}") from None


def split_raw(records: bytes, count: int) -> list[msgspec.Raw]:
    """Return the encoding of each record, unopened.

    Raises:
        BadRecord: These are not `count` msgpack values.
    """
    _check_count(count, records)
    try:
        if count == 1:
            return [_lone_raw.decode(records)]  # a large record is not copied behind a head
        return _raw.decode(array_header(count) + records)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRecord(f"expected {count} encoded records: {error}") from None


def check_raw(records: bytes, count: int) -> None:
    """Hold `count` against what lies there, as `split_raw` does, at a third of its cost.

    Raises:
        BadRecord: These are not `count` msgpack values.
    """
    if count == 1:
        split_raw(records, 1)
        return
    _check_count(count, records)
    try:
        _passed.decode(array_header(count) + records)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRecord(f"expected {count} encoded records: {error}") from None


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
