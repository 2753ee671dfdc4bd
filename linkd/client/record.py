"""A record as applications see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from linkd.client.bodies import Decode
from linkd.core.batch import Record as Encoded
from linkd.core.batch import Unreadable, read_records
from linkd.core.shown import MAX_JSON_DEPTH, body_of, extras_of, nested_deeply, rfc3339
from linkd.core.stream import Deliver, DeliverVolatile

_encoder: Final = msgspec.json.Encoder()
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

Ack = Callable[[int, int], Awaitable[None]]


class Reading(msgspec.Struct, frozen=True, eq=False):
    """What the records of one subscription have in common: how to decode and to acknowledge."""

    decode: Decode
    ack: Ack
    era: int = 0


class Record(msgspec.Struct, frozen=True, eq=False):
    """One message out of a log.

    Args:
        offset: Its place in this daemon's log; 0 for a volatile one, which has none.
        channel: Where it was published.
        origin: The node where it was published.
        origin_offset: Its place in that node's log; 0 for a volatile one.
        time: Unix seconds of publication.
        encoded: Body, type, id, content type and headers as they were published.
        reading: What it has in common with the others of its subscription.
    """

    offset: int
    channel: str
    origin: str
    origin_offset: int
    time: float
    encoded: Encoded
    reading: Reading

    @property
    def body(self) -> bytes:
        """The bytes as published."""
        return self.encoded.body

    @property
    def type(self) -> str:
        """The application's word for what it is; empty if none was given."""
        return self.encoded.type

    @property
    def id(self) -> str:
        """What makes a repeated publish harmless; empty if none."""
        return self.encoded.id

    @property
    def content_type(self) -> str:
        """As published; empty if none was given."""
        return self.encoded.content_type

    @property
    def headers(self) -> Mapping[str, str]:
        """The short strings that were published with it, by their names in lower case."""
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
        """The body read as UTF-8; what is none is replaced."""
        return self.encoded.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the body read as JSON, whatever its type; raise ValueError if it is none."""
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
        """Say that this record and all before it are done; await it to know that it is on disk.

        Not awaited it is sent all the same. Only for records of a named consumer.
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


def unpack(frame: Deliver | DeliverVolatile, reading: Reading, skip: int = 0) -> list[Record]:
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
