"""Parse and render the text frames of `/ws`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from linkd.api.errors import ApiError
from linkd.api.http import to_json
from linkd.errors import LinkdError
from linkd.protocol.json import JSON, body_of, check_syntax, extras_of, rfc3339
from linkd.protocol.peer import EpochEnd
from linkd.protocol.records import Batch, EncodedRecord, Unreadable, check_headers, read_records

if TYPE_CHECKING:
    from linkd.node.subscriptions import Start

TEXT = "text/plain; charset=utf-8"
RESERVED = frozenset(
    (
        *("ping", "pong", "subscribe", "unsubscribe", "ack", "error", "status"),
        *("joined", "left", "present", "gap"),
    )
)
_KEYS = frozenset(("type", "data", "channel", "id", "headers"))
_CALLS = frozenset(("ping", "pong", "subscribe", "unsubscribe", "ack"))

_UNREADABLE = object()
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_value = msgspec.json.Decoder()
_QUOTE = ord('"')
_NESTED_BYTES = 65_536
"""All headers take less. A larger array or object is not built: it can be none of the items."""

_READABLE_BYTES = 1 << 20
"""A larger frame that can't be read is not searched for its id: 16 MiB of it take 3 s."""

LARGE_BYTES = 65_536
PART_BYTES = 8192
"""linkd.js gets a message of more than `LARGE_BYTES` in parts of so many bytes: each is a sign of
life, and others pass in between."""

Name = str | int
"""A client's name for a frame or a subscription."""

Kind = Literal["publish", "subscribe", "unsubscribe", "ack", "ping", "pong"]
"""The kinds of client messages."""


class TextFrame(msgspec.Struct, frozen=True):
    """A parsed client message.

    Args:
        kind: The requested action.
        body: The body to publish.
        type: Its type.
        content_type: Its content type.
        channel: Where, or which pattern to follow; None: the URL's.
        id: Answered with an ack where it is set.
        start: Where a subscription begins, None if the message does not specify it.
        headers: The headers of what is to be published, None if none.
        subscription: The client's name of a subscription, None where its pattern names it.
        seen: How far the client has this log, by epochs, oldest first.
        consumer: The named consumer as which it is followed, if any.
        next: Of an ack: everything below is done.
    """

    kind: Kind
    body: bytes = b""
    type: str = ""
    content_type: str = ""
    channel: str | None = None
    id: Name | None = None
    start: Start | None = None
    headers: dict[str, str] | None = None
    subscription: Name | None = None
    seen: tuple[EpochEnd, ...] = ()
    consumer: str | None = None
    next: int = 0


class FrameRefused(ApiError):
    """A frame is refused.

    Args:
        message: One sentence for people.
        id: The frame's, None where it has none that can be read.
    """

    def __init__(self, message: str, id: Name | None) -> None:
        super().__init__("malformed", message)
        self.id = id


class OutgoingMessage(msgspec.Struct, frozen=True):
    """A message for a client."""

    payload: bytes
    binary: bool

    def __len__(self) -> int:
        """Return the bytes of it."""
        return len(self.payload)


_GivenName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | int


class _Follow(msgspec.Struct, forbid_unknown_fields=True):
    """The payload of `subscribe` and `unsubscribe`."""

    channel: str = ""
    subscription: _GivenName | None = None
    consumer: str | None = None
    seen: Annotated[tuple[EpochEnd, ...], msgspec.Meta(max_length=64)] = ()
    from_: int | Literal["earliest", "latest"] | None = msgspec.field(default=None, name="from")


class _Ack(msgspec.Struct, forbid_unknown_fields=True):
    """The payload of an `ack` for a consumer's subscription."""

    subscription: _GivenName
    next: Annotated[int, msgspec.Meta(ge=0, le=2**62)]


_follow = msgspec.json.Decoder(_Follow)
_ack = msgspec.json.Decoder(_Ack)


def parse(payload: bytes, binary: bool) -> TextFrame:
    """Return what a message means.

    Raises:
        ApiError: It has a reserved type, or its `channel`, `id` or `data` is not what it must be.
        FrameRefused: The same, and its id is known.
    """
    if binary:
        return TextFrame("publish", payload)
    if payload.lstrip()[:1] == b"{":
        try:
            given = _object.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _refuse_unreadable(payload, str(error))
            return TextFrame("publish", payload, "", TEXT)
        if "type" in given and _KEYS.issuperset(given):
            frame = _typed(given)
            if frame is not None:
                return frame
        return TextFrame("publish", payload, "", JSON)
    try:
        check_syntax(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return TextFrame("publish", payload, "", TEXT)
    return TextFrame("publish", payload, "", JSON)


def _refuse_unreadable(payload: bytes, why: str) -> None:
    """Raise FrameRefused for a frame that is one by its keys, but has what no JSON here can have.

    A browser's JSON may have half of a surrogate pair, as a text that was cut has at its end.
    Published as text, the whole frame would be the message, and its id would never be answered.
    """
    if len(payload) > _READABLE_BYTES:
        return
    try:
        given = json.loads(payload)
    except (ValueError, RecursionError):
        return
    if isinstance(given, dict) and {"type", "data", "id"} <= given.keys() <= _KEYS:
        id_ = given["id"]
        known = isinstance(id_, str | int) and not isinstance(id_, bool) and _is_whole(id_)
        raise FrameRefused(f"the frame can't be read: {why}", id_ if known else None)


def _is_whole(id_: Name) -> bool:
    """Return whether an id can be sent back."""
    try:
        str(id_).encode()
    except UnicodeEncodeError:
        return False
    return True


def _typed(given: dict[str, msgspec.Raw]) -> TextFrame | None:
    """Return what an object with a type means; None: it is a value like any other."""
    type_ = _plain(given["type"])
    if not isinstance(type_, str) or ("data" not in given and type_ not in _CALLS):
        return None
    id_, channel, headers = map(_plain, map(given.get, ("id", "channel", "headers")))
    if not (id_ is None or isinstance(id_, str | int)) or isinstance(id_, bool):
        raise ApiError("malformed", "id: expected a string or a whole number")
    if id_ == "":
        id_ = None
    if headers is not None and not (
        isinstance(headers, dict) and all(isinstance(each, str) for each in headers.values())
    ):
        if id_ is None:
            return None
        raise FrameRefused("headers: expected an object of strings", id_)
    if not (channel is None or isinstance(channel, str)):
        raise FrameRefused("channel: expected a string", id_)
    if type_ == "ping":
        return TextFrame("ping")
    if type_ == "pong":
        return TextFrame("pong")
    if type_ in RESERVED - _CALLS:
        raise FrameRefused(f"{type_} is a reserved type", id_)
    try:
        if type_ in ("subscribe", "unsubscribe", "ack"):
            data = given.get("data", b"null")
            return _acknowledged(data, id_) if type_ == "ack" else _following(type_, data, id_)
        checked = check_headers(headers or {})
    except LinkdError as error:
        raise FrameRefused(str(error), id_) from None
    return TextFrame("publish", bytes(given["data"]), type_, JSON, channel, id_, headers=checked)


def _following(type_: str, data: bytes | msgspec.Raw, id_: Name | None) -> TextFrame:
    try:
        wanted = _follow.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(
            "malformed", f'{type_}: expected {{"channel":PATTERN,"from":OFFSET}}: {error}'
        ) from None
    start = wanted.from_
    if isinstance(start, int) and not 0 <= start <= 2**62:
        raise ApiError("malformed", "from: expected an offset")
    kind: Literal["subscribe", "unsubscribe"] = (
        "subscribe" if type_ == "subscribe" else "unsubscribe"
    )
    if type_ == "subscribe" and not wanted.channel:
        raise ApiError("malformed", "channel: expected a channel or a pattern")
    if wanted.consumer is not None and (wanted.subscription is None or wanted.seen):
        raise ApiError("malformed", "consumer: expected it with `subscription`, and without `seen`")
    return TextFrame(
        kind,
        channel=wanted.channel,
        id=id_,
        start=start,
        subscription=wanted.subscription,
        seen=wanted.seen,
        consumer=wanted.consumer,
    )


def _acknowledged(data: bytes | msgspec.Raw, id_: Name | None) -> TextFrame:
    try:
        done = _ack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(
            "malformed", f'ack: expected {{"subscription":NAME,"next":OFFSET}}: {error}'
        ) from None
    return TextFrame("ack", id=id_, subscription=done.subscription, next=done.next)


def _plain(value: msgspec.Raw | None) -> Any:
    """Return a value; one that can't be read, or a large array or object, is of no type."""
    if value is None:
        return None
    content = memoryview(value)
    if content.nbytes > _NESTED_BYTES and content[0] != _QUOTE:
        return _UNREADABLE
    try:
        return _value.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _UNREADABLE


def render_messages(
    batch: Batch, envelope: bool, subscription: Name | None = None
) -> Iterator[OutgoingMessage]:
    """Yield each record of a batch as a message; typed ones, or all, in an envelope.

    So are those with headers, those that can't be read, and those of a subscription with a name.
    """
    wraps = envelope or subscription is not None
    more = {} if subscription is None else {"subscription": subscription}
    for place, record in enumerate(read_records(batch.records, batch.count)):
        if record.type or record.headers or wraps or isinstance(record, Unreadable):
            yield OutgoingMessage(
                to_json({**_enveloped(batch, record, place, envelope), **more}), False
            )
        else:
            yield _bare(record)


def in_parts(number: int, message: OutgoingMessage) -> Iterator[OutgoingMessage]:
    """Yield a large message as its announcement and its parts, each led by the number."""
    payload = message.payload
    announced = {"type": "parts", "data": {"number": number, "bytes": len(payload)}}
    yield OutgoingMessage(to_json(announced), False)
    head = number.to_bytes(4, "big")
    for place in range(0, len(payload), PART_BYTES):
        yield OutgoingMessage(head + payload[place : place + PART_BYTES], True)


def _enveloped(batch: Batch, record: EncodedRecord, place: int, envelope: bool) -> dict[str, Any]:
    name, value = body_of(record)
    one: dict[str, Any] = {
        "type": record.type or None,
        "base64" if name == "base64" else "data": value,
        "channel": batch.channel,
        "offset": batch.offset + place if batch.offset else 0,
        "origin": batch.origin.node,
        "origin_offset": batch.origin.first + place if batch.offset else 0,
        **extras_of(record),
    }
    if envelope:
        one["time"] = rfc3339(batch.time)
        one["id"] = record.id or None
    return one


def _bare(record: EncodedRecord) -> OutgoingMessage:
    """Return a body as it was published; what is no UTF-8 as a binary message."""
    try:
        record.body.decode()
    except UnicodeDecodeError:
        return OutgoingMessage(record.body, True)
    return OutgoingMessage(record.body, False)
