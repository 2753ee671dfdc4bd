"""Bodies as they come in and as they are shown (docs/api.md, "A body")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from linkd.api.errors import ApiError
from linkd.protocol.json import (
    JSON,
    MAX_JSON_DEPTH,
    body_of,
    check_syntax,
    extras_of,
    media_type,
    nested_deeply,
    rfc3339,
)
from linkd.protocol.records import Batch, read_records

NDJSON = "application/x-ndjson"
to_json = msgspec.json.Encoder().encode
"""Returns a value's JSON."""


def to_json_line(value: Any) -> bytes:
    """Return JSON and a newline, so that curl leaves the shell's prompt on a line of its own."""
    return to_json(value) + b"\n"


def check_json(body: bytes, where: str = "the body") -> None:
    """Raise ApiError unless `body` is one JSON value in UTF-8."""
    try:
        check_syntax(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("malformed", f"expected JSON in {where}: {error}") from None
    if nested_deeply(body):
        message = f"expected JSON nested at most {MAX_JSON_DEPTH} deep in {where}"
        raise ApiError("malformed", message)


def check_body(body: bytes, content_type: str) -> None:
    """Raise ApiError if a body does not match its content type."""
    kind = media_type(content_type)
    if kind == JSON:
        check_json(body)
    elif kind.startswith("text/"):
        charset = content_type.lower().partition("charset=")[2].strip(' "').partition(";")[0]
        if charset not in ("", "utf-8", "utf8", "us-ascii"):
            raise ApiError(
                "unsupported-type", f"expected text in UTF-8, got charset {charset[:40]}"
            )
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise ApiError("malformed", f"expected UTF-8 in the body: {error}") from None


def record_objects(batch: Batch) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, JSON object) of each record of a batch; volatile ones have offset 0."""
    time, origin, first = rfc3339(batch.time), batch.origin.node, batch.origin.first
    channel, offset = batch.channel, batch.offset
    for place, record in enumerate(read_records(batch.records, batch.count)):
        name, value = body_of(record)
        yield (
            offset + place if offset else 0,
            to_json(
                {
                    "offset": offset + place if offset else None,
                    "channel": channel,
                    "type": record.type or None,
                    "id": record.id or None,
                    "origin": origin,
                    "origin_offset": first + place if offset else None,
                    "time": time,
                    **extras_of(record),
                    name: value,
                }
            ),
        )
