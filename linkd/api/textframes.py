"""The frames of `/ws`, as they come in and go out: pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from linkd.api.bodies import to_json
from linkd.api.refusals import Refusal
from linkd.core.batch import Batch, Record, Unreadable, check_headers, read_records
from linkd.core.shown import JSON, body_of, extras_of, rfc3339

if TYPE_CHECKING:
    from linkd.api.port import Start

TEXT = "text/plain; charset=utf-8"
RESERVED = frozenset(
    ("ping", "pong", "subscribe", "unsubscribe", "ack", "error", "status", "joined", "left", "gap")
)
_KEYS = frozenset(("type", "data", "channel", "id", "headers"))
_CALLS = frozenset(("ping", "pong", "subscribe", "unsubscribe"))

_UNREADABLE = object()
_value = msgspec.json.Decoder()
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


Kind = Literal["publish", "subscribe", "unsubscribe", "ping", "pong"]
"""What a message of a client does."""


class Frame(msgspec.Struct, frozen=True):
    """What a client's message means.

    Args:
        kind: What to do.
        body: What to publish.
        type: Its type.
        content_type: Its content type.
        channel: Where, or which pattern to follow; None: the URL's.
        id: Answered with an ack where it is set.
        start: Where a subscription begins, None where it does not say.
        headers: The headers of what is to be published, None if none.
    """

    kind: Kind
    body: bytes = b""
    type: str = ""
    content_type: str = ""
    channel: str | None = None
    id: str | int | None = None
    start: Start | None = None
    headers: dict[str, str] | None = None


class Told(msgspec.Struct, frozen=True):
    """A message for a client."""

    payload: bytes
    binary: bool


class _Follow(msgspec.Struct, forbid_unknown_fields=True):
    """What `subscribe` and `unsubscribe` say."""

    channel: str
    from_: int | Literal["earliest", "latest"] | None = msgspec.field(default=None, name="from")


_follow = msgspec.json.Decoder(_Follow)


def parse(payload: bytes, binary: bool) -> Frame:
    """Return what a message means.

    Raises:
        Refusal: It has a reserved type, or its `channel`, `id` or `data` is not what it must be.
    """
    if binary:
        return Frame("publish", payload)
    if payload.lstrip()[:1] == b"{":
        try:
            given = _object.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Frame("publish", payload, "", TEXT)
        if "type" in given and _KEYS.issuperset(given):
            frame = _typed(given)
            if frame is not None:
                return frame
        return Frame("publish", payload, "", JSON)
    try:
        _value.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Frame("publish", payload, "", TEXT)
    return Frame("publish", payload, "", JSON)


def _typed(given: dict[str, msgspec.Raw]) -> Frame | None:
    """Return what an object with a type means; None: it is a value like any other."""
    type_ = _plain(given["type"])
    if not isinstance(type_, str) or ("data" not in given and type_ not in _CALLS):
        return None
    headers = _plain(given.get("headers"))
    if headers is not None and not (
        isinstance(headers, dict) and all(isinstance(each, str) for each in headers.values())
    ):
        return None
    id_, channel = _plain(given.get("id")), _plain(given.get("channel"))
    if not (id_ is None or isinstance(id_, str | int)) or isinstance(id_, bool):
        raise Refusal("malformed", "id: expected a string or a whole number")
    if id_ == "":
        id_ = None
    if not (channel is None or isinstance(channel, str)):
        raise Refusal("malformed", "channel: expected a string")
    if type_ == "ping":
        return Frame("ping")
    if type_ == "pong":
        return Frame("pong")
    if type_ in ("subscribe", "unsubscribe"):
        return _following(type_, given.get("data"), id_)
    if type_ in RESERVED:
        raise Refusal("malformed", f"{type_} is a reserved type")
    return Frame(
        "publish",
        bytes(given["data"]),
        type_,
        JSON,
        channel,
        id_,
        headers=check_headers(headers or {}),
    )


def _following(type_: str, data: msgspec.Raw | None, id_: str | int | None) -> Frame:
    try:
        wanted = _follow.decode(data if data is not None else b"null")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(
            "malformed", f'{type_}: expected {{"channel":PATTERN,"from":OFFSET}}: {error}'
        ) from None
    start = wanted.from_
    if isinstance(start, int) and not 0 <= start <= 2**62:
        raise Refusal("malformed", "from: expected an offset")
    kind: Literal["subscribe", "unsubscribe"] = (
        "subscribe" if type_ == "subscribe" else "unsubscribe"
    )
    return Frame(kind, channel=wanted.channel, id=id_, start=start)


def _plain(value: msgspec.Raw | None) -> Any:
    """Return a value; what can't be read, as a number out of range, is neither text nor number."""
    if value is None:
        return None
    try:
        return _value.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _UNREADABLE


def told(batch: Batch, envelope: bool) -> Iterator[Told]:
    """Yield each record of a batch as a message; typed ones, or all, in an envelope.

    So are those with headers, and those that can't be read.
    """
    offset = batch.offset
    for place, record in enumerate(read_records(batch.records, batch.count)):
        if record.type or record.headers or envelope or isinstance(record, Unreadable):
            at = offset + place if offset else 0
            yield Told(_enveloped(batch, record, at, envelope), False)
        else:
            yield _bare(record)


def _enveloped(batch: Batch, record: Record, offset: int, envelope: bool) -> bytes:
    name, value = body_of(record)
    one: dict[str, Any] = {
        "type": record.type or None,
        "base64" if name == "base64" else "data": value,
        "channel": batch.channel,
        "offset": offset,
        "origin": batch.origin.node,
        **extras_of(record),
    }
    if envelope:
        one["time"] = rfc3339(batch.time)
        one["id"] = record.id or None
    return to_json(one)


def _bare(record: Record) -> Told:
    """Return a body as it was published; what is no UTF-8 as a binary message."""
    try:
        record.body.decode()
    except UnicodeDecodeError:
        return Told(record.body, True)
    return Told(record.body, False)
