"""Render records, bodies and times as JSON (docs/api.md, "A body")."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from itertools import accumulate, chain
from operator import sub
from typing import Any

import msgspec

from linkd.protocol.records import EncodedRecord, Unreadable

JSON = "application/json"

MAX_JSON_DEPTH = 60
"""Deeper JSON is shown as text: with a page around it, what common parsers take at least is 64."""

_any = msgspec.json.Decoder()
_unread = msgspec.json.Decoder(msgspec.Raw)
_LARGE_BYTES = 1 << 14
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_OPENING, _CLOSING = re.compile(rb"\[+"), re.compile(rb"\]+")

_SHAPE = bytes.maketrans(b"123456789E", b"000000000e")
_LARGE_NUMBERS = (b"e000", b"0" * 300)
_APART = bytes.maketrans(b'[]{}:,"', b" " * 7)
_APART_BYTES = 1 << 16
_FIRST_SECOND = datetime(1, 1, 1, tzinfo=UTC).timestamp()
_LAST_SECOND = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


def media_type(content_type: str) -> str:
    """Return a content type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def check_syntax(body: bytes) -> None:
    """Raise where a body is no JSON in UTF-8.

    Of a large one no lists and objects are built: of 900 kB of brackets that took 76 ms and takes
    5, of 16 MiB 3 s and 0.08.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: It is none.
    """
    if len(body) <= _LARGE_BYTES:
        _any.decode(body)
        return
    _unread.decode(body)
    body.decode()
    if _may_have_large_numbers(body):
        _check_numbers(_outside_strings(body).translate(_APART))


def _check_numbers(numbers: bytes) -> None:
    """Raise where a number is beyond what parsers take; a piece at a time bounds the memory."""
    begin = 0
    while begin < len(numbers):
        end = numbers.find(b" ", begin + _APART_BYTES)
        piece = numbers[begin:] if end < 0 else numbers[begin:end]
        _any.decode(b"[" + b",".join(piece.split()) + b"]")
        begin += len(piece)


def _may_have_large_numbers(body: bytes) -> bool:
    """Return whether a number may be beyond what parsers take; most JSON has none."""
    shape = body.translate(_SHAPE, b"+")
    return any(each in shape for each in _LARGE_NUMBERS)


def _outside_strings(body: bytes) -> bytes:
    """Return valid JSON without its strings, but for their quotes."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b'"'.join(body.split(b'"')[::2])


def nested_deeply(body: bytes) -> bool:
    """Return whether JSON that is valid is nested more than MAX_JSON_DEPTH deep.

    It counts brackets, so the result does not depend on the depth of the stack.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_JSON_DEPTH:
        return False
    left = _outside_strings(body).translate(_ONE_KIND, _NO_BRACKETS)
    passes, before = 0, 2 * len(left)
    while 4 * len(left) < 3 * before:  # takes the innermost pairs away, one level, if they are many
        left, before = left.replace(b"[]", b""), len(left)
        passes += 1
    opened = accumulate(map(len, _OPENING.findall(left)))
    closed = chain((0,), accumulate(map(len, _CLOSING.findall(left))))
    return passes + max(map(sub, opened, closed), default=0) > MAX_JSON_DEPTH


def render_body(body: bytes, content_type: str) -> tuple[str, Any]:
    """Return under which key a body is shown, `data`, `text` or `base64`, and its JSON value."""
    kind = media_type(content_type)
    if kind == JSON or (not kind.startswith("text/") and body[:1] in (b"{", b"[")):
        try:
            check_syntax(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        else:
            if not nested_deeply(body):
                return "data", msgspec.Raw(body)
    try:
        return "text", body.decode()
    except UnicodeDecodeError:
        return "base64", base64.b64encode(body).decode()


def body_of(record: EncodedRecord) -> tuple[str, Any]:
    """Return under which key a record's body is shown, and its JSON value."""
    if isinstance(record, Unreadable):
        return "base64", base64.b64encode(record.body).decode()
    return render_body(record.body, record.content_type)


def extras_of(record: EncodedRecord) -> dict[str, Any]:
    """Return what only some records show: `headers`, and `unreadable` where nothing else is known.

    The base64 of an unreadable record is its whole encoding.
    """
    if record.headers:
        return {"headers": record.headers}
    return {"unreadable": True} if isinstance(record, Unreadable) else {}


def rfc3339(seconds: float) -> str:
    """Return Unix seconds as RFC 3339, UTC, with milliseconds: the years 1 to 9999."""
    seconds = min(max(seconds, _FIRST_SECOND), _LAST_SECOND)
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
