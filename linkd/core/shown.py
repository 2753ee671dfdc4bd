"""How a record is shown as JSON, by the daemon and by its clients alike (docs/api.md, "A body")."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import msgspec

from linkd.core.batch import Record, Unreadable

JSON = "application/json"

_any = msgspec.json.Decoder()


def kind_of(content_type: str) -> str:
    """Return a content type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def shown(body: bytes, content_type: str) -> tuple[str, Any]:
    """Return under which key a body is shown, `data`, `text` or `base64`, and its JSON value."""
    kind = kind_of(content_type)
    if kind == JSON or (not kind.startswith("text/") and body[:1] in (b"{", b"[")):
        try:
            _any.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        else:
            return "data", msgspec.Raw(body)
    try:
        return "text", body.decode()
    except UnicodeDecodeError:
        return "base64", base64.b64encode(body).decode()


def body_of(record: Record) -> tuple[str, Any]:
    """Return under which key a record's body is shown, and its JSON value."""
    if isinstance(record, Unreadable):
        return "base64", base64.b64encode(record.body).decode()
    return shown(record.body, record.content_type)


def extras_of(record: Record) -> dict[str, Any]:
    """Return what only some records show: `headers`, and `unreadable` where nothing else is known.

    The base64 of an unreadable record is its whole encoding.
    """
    if record.headers:
        return {"headers": record.headers}
    return {"unreadable": True} if isinstance(record, Unreadable) else {}


def rfc3339(seconds: float) -> str:
    """Return Unix seconds as RFC 3339, UTC, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
