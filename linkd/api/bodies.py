"""Bodies as they come in and as they are shown (docs/api.md, "A body")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from linkd.api.refusals import Refusal
from linkd.core.batch import Batch, Record, decode_records, split_raw
from linkd.core.shown import JSON, kind_of, rfc3339, shown
from linkd.errors import BadRecord

NDJSON = "application/x-ndjson"
_encoder = msgspec.json.Encoder()
_any = msgspec.json.Decoder()
_record = msgspec.msgpack.Decoder(Record)


def check_json(body: bytes, where: str = "the body") -> None:
    """Raise Refusal unless `body` is one JSON value in UTF-8."""
    try:
        _any.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal("malformed", f"expected JSON in {where}: {error}") from None


def check_body(body: bytes, content_type: str) -> None:
    """Raise Refusal where a body is not what its content type says."""
    kind = kind_of(content_type)
    if kind == JSON:
        check_json(body)
    elif kind.startswith("text/"):
        charset = content_type.lower().partition("charset=")[2].strip(' "').partition(";")[0]
        if charset not in ("", "utf-8", "utf8", "us-ascii"):
            raise Refusal("unsupported-type", f"expected text in UTF-8, got charset {charset[:40]}")
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise Refusal("malformed", f"expected UTF-8 in the body: {error}") from None


def records_of(batch: Batch) -> list[Record]:
    """Return a batch's records; what is no record stands there as it is, with its bytes as body."""
    try:
        return decode_records(batch.records, batch.count)
    except BadRecord:
        pass
    found: list[Record] = []
    for raw in split_raw(batch.records, batch.count):
        try:
            found.append(_record.decode(raw))
        except (msgspec.DecodeError, UnicodeDecodeError):
            found.append(Record(bytes(raw)))
    return found


def record_objects(batch: Batch) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, JSON object) of each record of a batch; volatile ones have offset 0."""
    time, origin, channel, offset = (
        rfc3339(batch.time),
        batch.origin.node,
        batch.channel,
        batch.offset,
    )
    for place, record in enumerate(records_of(batch)):
        name, value = shown(record.body, record.content_type)
        yield (
            offset + place if offset else 0,
            _encoder.encode(
                {
                    "offset": offset + place if offset else None,
                    "channel": channel,
                    "type": record.type or None,
                    "id": record.id or None,
                    "origin": origin,
                    "time": time,
                    name: value,
                }
            ),
        )


def verbatim(value: bytes) -> msgspec.Raw:
    """Return bytes that are JSON already, to be put into an answer as they are."""
    return msgspec.Raw(value)


def to_json(value: Any) -> bytes:
    """Return a value's JSON."""
    return _encoder.encode(value)
