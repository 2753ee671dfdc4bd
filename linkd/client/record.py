"""Records as applications see them, and how bodies are encoded and decoded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from linkd.errors import BadRecord
from linkd.protocol.client import Deliver, DeliverVolatile
from linkd.protocol.json import JSON, MAX_JSON_DEPTH, body_of, extras_of, nested_deeply, rfc3339
from linkd.protocol.records import (
    MAX_BATCH_BYTES,
    Unreadable,
    check_words,
    headers_bytes,
    read_records,
)
from linkd.protocol.records import EncodedRecord as Encoded

TEXT: Final = "text/plain; charset=utf-8"

Encode = Callable[[Any], tuple[bytes, str]]
"""Return a value's body and its content type."""

Decode = Callable[[bytes, str], Any]
"""Return the value of a body with its content type."""

MARGIN_BYTES: Final = 24
"""Heads of array, body and strings, at most, beside the content type of `encode_value`."""

_BATCH_BYTES: Final = MAX_BATCH_BYTES - 64
_packer: Final = msgspec.msgpack.Encoder()
_to_json: Final = msgspec.json.Encoder()
_from_json: Final = msgspec.json.Decoder()


def encode_value(value: Any) -> tuple[bytes, str]:
    """Return bytes as they are, text as UTF-8, and any other value as JSON.

    Raises:
        BadRecord: The value cannot be encoded as JSON.
    """
    if isinstance(value, bytes):
        return value, ""
    if isinstance(value, str):
        try:
            return value.encode(), TEXT
        except UnicodeEncodeError as error:
            raise BadRecord(f"expected text in Unicode: {error}") from None
    if isinstance(value, bytearray | memoryview):
        return bytes(value), ""
    try:
        return _to_json.encode(value), JSON
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecord(f"expected bytes, text or a JSON value: {error}") from None


def decode_value(body: bytes, content_type: str) -> Any:
    """Return the value of a body: JSON, text or bytes.

    A body without a content type is bytes, and so is one that does not match its type.
    """
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == JSON:
            value = _from_json.decode(body)
            return body if nested_deeply(body) else value
        if kind.startswith("text/"):
            return body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    return body


def pack(records: list[Encoded]) -> bytes:
    """Return the encoded records, concatenated with one allocation."""
    packed = _packer.encode(records)
    count = len(records)
    return packed[1 if count < 16 else 3 if count < 65_536 else 5 :]


def encoded(encode: Encode, value: Any) -> tuple[bytes, str]:
    """Return a value's body and content type as records carry them.

    Raises:
        TypeError: `encode` returned anything else.
        BadRecord: `encode_value` has no encoding for the value.
    """
    pair = encode(value)
    given = type(pair).__name__
    if isinstance(pair, tuple | list) and len(pair) == 2:
        body, content_type = pair
        if isinstance(body, bytearray | memoryview):
            body = bytes(body)
        if isinstance(body, bytes) and isinstance(content_type, str):
            return body, content_type
        given = f"{type(body).__name__} and {type(content_type).__name__}"
    raise TypeError(f"expected encode to return bytes and str, got {given}")


def batches(
    values: Iterable[Any],
    type_: str,
    encode: Encode,
    headers: dict[str, str] | None = None,
    check_body: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Encode values into batches of at most 64 KiB, or of one record.

    Yields:
        The number of records and their encodings.

    Raises:
        BadRecord: A value has no encoding, or the type is too long.
        BodyTooLarge: `check_body` refuses the size of a body.
    """
    check_words(type_, "")
    checked = ""
    held: list[Encoded] = []
    append = held.append
    fixed = MARGIN_BYTES + 4 * len(type_) + headers_bytes(headers)
    size = 0
    for value in values:
        body, content_type = encoded(encode, value)
        if check_body is not None:
            check_body(len(body))
        if content_type != checked:
            check_words("", "", content_type)
            checked = content_type
        more = len(body) + fixed + len(content_type)
        if size + more > _BATCH_BYTES and held:
            yield len(held), pack(held)
            held.clear()
            size = 0
        append(Encoded(body, type_, "", content_type, headers))
        size += more
    if held:
        yield len(held), pack(held)


_encoder: Final = msgspec.json.Encoder()
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

Ack = Callable[[int, int], Awaitable[None]]


class RecordContext(msgspec.Struct, frozen=True, eq=False):
    """How the records of one subscription are decoded and acknowledged."""

    decode: Decode
    ack: Ack
    era: int = 0
    owner: object = None
    """What the records keep alive."""


class Record(msgspec.Struct, frozen=True, eq=False):
    """One message of a log.

    Args:
        offset: Its offset in this daemon's log; 0 if volatile.
        channel: Where it was published.
        origin: The node where it was published.
        origin_offset: Its offset in that node's log; 0 if volatile.
        time: Unix seconds of publication.
        encoded: Body, type, id, content type and headers as they were published.
        reading: How it is decoded and acknowledged.
    """

    offset: int
    channel: str
    origin: str
    origin_offset: int
    time: float
    encoded: Encoded
    reading: RecordContext

    @property
    def body(self) -> bytes:
        """The bytes as published."""
        return self.encoded.body

    @property
    def type(self) -> str:
        """The application's name for its kind; empty if none was given."""
        return self.encoded.type

    @property
    def id(self) -> str:
        """The id that deduplicates repeated publishes; empty if none."""
        return self.encoded.id

    @property
    def content_type(self) -> str:
        """As published; empty if none was given."""
        return self.encoded.content_type

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers as published, with names in lower case."""
        return self.encoded.headers or _NO_HEADERS

    @property
    def unreadable(self) -> bool:
        """Whether this version can't read the record: `body` is then its whole encoding."""
        return isinstance(self.encoded, Unreadable)

    @property
    def data(self) -> Any:
        """The value that was published: JSON, text or bytes, by its content type."""
        return self.reading.decode(self.encoded.body, self.encoded.content_type)

    @property
    def text(self) -> str:
        """The body as UTF-8; invalid bytes are replaced."""
        return self.encoded.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the body parsed as JSON, whatever its type; raise ValueError if malformed."""
        body = self.encoded.body
        try:
            value = msgspec.json.decode(body)
            deep = nested_deeply(body)
        except RecursionError:
            deep = True
        if deep:  # one result on every interpreter, whatever its own limit is
            raise ValueError(f"expected JSON nested at most {MAX_JSON_DEPTH} deep")
        return value

    def ack(self) -> Awaitable[None]:
        """Acknowledge this record and all before it; await it to know that the ack is on disk.

        It is sent even if not awaited. Only for records of a named consumer.
        """
        return self.reading.ack(self.offset + 1, self.reading.era)

    def to_json(self) -> bytes:
        """Return the record as one JSON object, the same as the HTTP API's."""
        name, value = body_of(self.encoded)
        return _encoder.encode(
            {
                "offset": self.offset or None,
                "channel": self.channel,
                "type": self.type or None,
                "id": self.id or None,
                "origin": self.origin,
                "origin_offset": self.origin_offset or None,
                "time": rfc3339(self.time),
                **extras_of(self.encoded),
                name: value,
            }
        )


def unpack(frame: Deliver | DeliverVolatile, reading: RecordContext, skip: int = 0) -> list[Record]:
    """Return a delivery's records without the first `skip`."""
    encoded = read_records(frame.records, frame.count)
    channel, origin, time = frame.channel, frame.origin, frame.time
    if isinstance(frame, DeliverVolatile):
        return [Record(0, channel, origin, 0, time, one, reading) for one in encoded]
    first, ahead = frame.offset + skip, frame.first - frame.offset
    return [
        Record(offset, channel, origin, offset + ahead, time, one, reading)
        for offset, one in enumerate(encoded[skip:] if skip else encoded, first)
    ]
