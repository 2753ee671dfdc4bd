"""From what applications publish to encoded records, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from linkd.core.batch import MAX_BATCH_BYTES, Record, check_words, headers_bytes
from linkd.core.shown import JSON, nested_deeply
from linkd.errors import BadRecord

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
        BadRecord: The value has no JSON.
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
        raise BadRecord(f"expected bytes, text or what JSON can say: {error}") from None


def decode_value(body: bytes, content_type: str) -> Any:
    """Return a body as the value that it was: JSON, text or bytes.

    A body without a content type is bytes, and so is one that is not what its type says.
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


def pack(records: list[Record]) -> bytes:
    """Return the encodings of records side by side, with one allocation for all of them."""
    packed = _packer.encode(records)
    count = len(records)
    return packed[1 if count < 16 else 3 if count < 65_536 else 5 :]


def encoded(encode: Encode, value: Any) -> tuple[bytes, str]:
    """Return a value's body and content type as records carry them.

    Raises:
        TypeError: `encode` returned anything else.
        BadRecord: `encode_value` has no encoding for the value.
    """
    body, content_type = encode(value)
    if isinstance(body, bytearray | memoryview):
        body = bytes(body)
    if not isinstance(body, bytes) or not isinstance(content_type, str):
        given = f"{type(body).__name__} and {type(content_type).__name__}"
        raise TypeError(f"expected encode to return bytes and str, got {given}")
    return body, content_type


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
    held: list[Record] = []
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
        append(Record(body, type_, "", content_type, headers))
        size += more
    if held:
        yield len(held), pack(held)
