"""A record as applications see it."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from linkd.client.bodies import JSON, Decode, decode_value

_encoder: Final = msgspec.json.Encoder()


class Record:
    """One message out of a log.

    Attributes:
        offset: Its place in this daemon's log; 0 for a volatile one, which has none.
        channel: Where it was published.
        type: The application's word for what it is; empty if none.
        id: What makes a repeated publish harmless; empty if none.
        origin: The node where it was published.
        time: Unix seconds of publication.
        body: The bytes as published.
        content_type: As published; empty if none was given.
    """

    __slots__ = (
        "_decode", "body", "channel", "content_type", "id", "offset", "origin", "time", "type",
    )  # fmt: skip

    def __init__(
        self, offset: int, channel: str, origin: str, time: float, decode: Decode = decode_value
    ) -> None:
        self.offset = offset
        self.channel = channel
        self.origin = origin
        self.time = time
        self.body = b""
        self.type = ""
        self.id = ""
        self.content_type = ""
        self._decode = decode

    @property
    def data(self) -> Any:
        """The value that was published: JSON, text or bytes, by its content type."""
        return self._decode(self.body, self.content_type)

    def json(self) -> Any:
        """Return the body read as JSON, whatever its type; raise ValueError if it is none."""
        return msgspec.json.decode(self.body)

    @property
    def text(self) -> str:
        """The body read as UTF-8; what is none is replaced."""
        return self.body.decode("utf-8", "replace")

    def to_json(self) -> bytes:
        """Return the record as one JSON object, the same as the HTTP API's."""
        name, value = _shown(self.body, self.content_type)
        return _encoder.encode(
            {
                "offset": self.offset or None,
                "channel": self.channel,
                "type": self.type or None,
                "id": self.id or None,
                "origin": self.origin,
                "time": stamp(self.time),
                name: value,
            }
        )

    def __repr__(self) -> str:
        return f"<record {self.offset} of {self.channel}, {len(self.body)} bytes>"


def stamp(time: float) -> str:
    """Return Unix seconds as RFC 3339, UTC, with milliseconds."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _shown(body: bytes, content_type: str) -> tuple[str, Any]:
    """Return under which key a body is shown, and how (docs/api.md, "A body")."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == JSON or (not kind.startswith("text/") and body[:1] in (b"{", b"[")):
        try:
            msgspec.json.decode(body)
        except msgspec.DecodeError:
            pass
        else:
            return "data", msgspec.Raw(body)
    try:
        return "text", body.decode()
    except UnicodeDecodeError:
        return "base64", base64.b64encode(body).decode()
