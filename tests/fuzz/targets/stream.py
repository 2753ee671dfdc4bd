"""Messages of `/v1/stream`, both ways: decoded, encoded again, decoded to the same."""

from __future__ import annotations

from linkd.core import stream
from linkd.errors import RemoteProtocolError
from tests.fuzz.reading import Input
from tests.fuzz.templates import streams


def one(content: bytes) -> None:
    """Decode a message; half of the inputs say how a proper one is spoilt."""
    message = content[1:] if content[:1] < b"\x80" else Input(content[1:]).near(streams())
    for decode in (stream.decode_from_client, stream.decode_from_daemon):
        try:
            frames = decode(message)
        except RemoteProtocolError:
            continue
        assert decode(stream.encode(frames)) == frames
