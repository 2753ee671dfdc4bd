"""What a peer or a client may send and no decoder must stumble over; found by fuzzing."""

from __future__ import annotations

import pytest

from linkd.core import wire
from linkd.core.batch import decode_records, split_raw
from linkd.errors import BadRecord, RemoteProtocolError

DEEP = b"\x91" * 60_000 + b"\xc0"


def test_a_message_with_a_deep_item_behind_the_known_ones_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        wire.decode(b"\x93\xa3ack\x05" + DEEP)


def test_deep_records_are_refused() -> None:
    with pytest.raises(BadRecord):
        split_raw(DEEP, 1)
    with pytest.raises(BadRecord):
        decode_records(b"\x95\xc4\x00\xa0\xa0\xa0" + DEEP, 1)


@pytest.mark.parametrize("count", [2, 2**32 - 1, 2**32, 2**62])
def test_more_records_than_bytes_are_refused(count: int) -> None:
    with pytest.raises(BadRecord, match=f"expected {count} encoded records in 1 bytes"):
        split_raw(b"\xc0", count)
    with pytest.raises(BadRecord, match=f"expected {count} encoded records in 1 bytes"):
        decode_records(b"\xc0", count)
