"""Messages between nodes: decoded, encoded again, decoded to the same."""

from __future__ import annotations

from linkd.core import wire
from linkd.core.batch import decode_records, split_raw
from linkd.errors import BadRecord, RemoteProtocolError
from tests.fuzz.reading import Input
from tests.fuzz.templates import messages


def one(content: bytes) -> None:
    """Decode a message and its records; half of the inputs say how a proper one is spoilt."""
    content = content[1:] if content[:1] < b"\x80" else Input(content[1:]).near(messages())
    try:
        message = wire.decode(content)
    except RemoteProtocolError:
        return
    assert wire.decode(wire.encode(message)) == message
    if isinstance(message, wire.Step | wire.Volatile):
        for opened in (split_raw, decode_records):
            try:
                found = opened(message.records, message.count)
            except BadRecord:
                continue
            assert len(found) == message.count
