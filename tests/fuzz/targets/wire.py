"""Messages between nodes: decoded, encoded again, decoded to the same."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

from linkd.errors import BadRecord, RemoteProtocolError
from linkd.protocol import peer
from linkd.protocol.records import check_raw, decode_records, split_raw
from tests.fuzz.reading import Input
from tests.fuzz.templates import messages


def one(content: bytes) -> None:
    """Decode a message and its records; half of the inputs say how a proper one is spoilt."""
    content = content[1:] if content[:1] < b"\x80" else Input(content[1:]).near(messages())
    try:
        message = peer.decode(content)
    except RemoteProtocolError:
        return
    assert peer.decode(peer.encode(message)) == message
    if isinstance(message, peer.BatchMessage | peer.Volatile):
        found = [_number(how, message) for how in (split_raw, check_raw, decode_records)]
        assert found[0] == found[1]
        assert found[2] in (None, found[0])


def _number(
    how: Callable[[bytes, int], Sized | None], message: peer.BatchMessage | peer.Volatile
) -> Any:
    """Return how many records were found, None where they are malformed."""
    try:
        records = how(message.records, message.count)
    except BadRecord:
        return None
    assert records is None or len(records) == message.count
    return message.count
