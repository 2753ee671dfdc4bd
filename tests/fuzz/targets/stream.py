"""Messages of `/v1/stream`, both ways: decoded, encoded again, decoded to the same."""

from __future__ import annotations

from linkd.errors import RemoteProtocolError
from linkd.protocol import client
from tests.fuzz.reading import Input
from tests.fuzz.templates import streams


def one(content: bytes) -> None:
    """Decode a message; half of the inputs say how a proper one is spoilt."""
    message = content[1:] if content[:1] < b"\x80" else Input(content[1:]).near(streams())
    for decode in (client.decode_from_client, client.decode_from_daemon):
        try:
            frames = decode(message)
        except RemoteProtocolError:
            continue
        assert decode(client.encode(frames)) == frames
