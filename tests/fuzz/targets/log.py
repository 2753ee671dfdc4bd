"""Frames of a log's files in memory: found or not, opened or refused by msgspec.

Half of the inputs get a right CRC: what lies behind it is as strange as can be.
"""

from __future__ import annotations

import msgspec

from linkd.errors import BadRecord
from linkd.log import frame
from linkd.log.segment import _good_frames
from linkd.protocol.records import decode_records
from tests.fuzz.reading import Input

_SEED = 0x1234_5678
_KINDS = (frame.HEAD, frame.BATCH, frame.EPOCH, frame.CURSOR, frame.SMALL, 0, 255)


def one(content: bytes) -> None:
    """Look for frames in the input, or make one of it and open that."""
    given = Input(content)
    if given.byte() & 1:
        _search(content[1:])
        return
    kind, flags = given.choice(_KINDS), given.byte()
    head = given.piece()
    part = (kind, flags, head, given.rest())
    seed = 0 if kind in (frame.HEAD, frame.SMALL) else _SEED
    whole = frame.frame_prefix(part, 0, 1.0, 2.0, seed) + head + part[3]
    found = frame.frame_at(whole, 0, 0, _SEED)
    assert found is not None
    assert (found.kind, found.head, found.records, found.end) == (kind, head, part[3], len(whole))
    assert frame.frame_at(whole[:-1], 0, 0, _SEED) is None
    try:
        if kind == frame.BATCH:
            batch, _ = frame.batch_of(found, "edge", "l")
            decode_records(batch.records, min(max(batch.count, 0), 1000))
        else:
            frame.change_of(found.kind, found.head)
    except (msgspec.DecodeError, UnicodeDecodeError, BadRecord):
        return


def _search(content: bytes) -> None:
    last = 0
    for found in _good_frames(content, _SEED, 0):
        assert last <= found.at < found.end <= len(content)
        last = found.end
    size = frame.frame_size(content, 0)
    assert size is None or size >= frame.PREFIX_BYTES
