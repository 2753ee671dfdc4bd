"""Frames, the units of a segment file: a prefix with a CRC over the rest, a head, opaque records.

    magic 4 | crc32 | head bytes | record bytes | synced: u32 each | kind u8 | flags u8 | 0 u16
    | stamp f64 | wall f64 | head (msgpack) | records

The CRC starts from the log's secret seed (0 in a segment's first frame, which carries it), so that
no published body can pass for a frame. `synced` is how much of the file was durable when the frame
was written: a crash tears bytes after it only, so a bad frame before it is damage.

The CRC of zlib-ng takes 4 µs for 64 KiB instead of 20, and keeps the interpreter's lock meanwhile:
the writing thread would otherwise wait for it again.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

import msgspec

from linkd.log.state import Change, CursorSet, EpochOpened, PeerHeld
from linkd.protocol.records import Batch, Origin, Producer, SourcePosition

try:
    from zlib_ng.zlib_ng import crc32 as crc32
except ImportError:  # no wheel for this machine
    from zlib import crc32 as crc32


MAGIC = b"LkF\x01"
HEAD, BATCH, EPOCH, CURSOR, SMALL, STATE, HELD = 1, 2, 3, 4, 5, 6, 7
HAS_IDS, CHANGES = 1, 2
"""Flags of a batch's frame: its records have ids; it changes more of the state than its end."""

PREFIX = Struct("<4sIIIIBBHdd")
_BODY = Struct("<IIIBBHdd")
_LEAD = Struct("<4sI")
PREFIX_BYTES = PREFIX.size
MOST_BYTES = 1 << 30
"""No frame has a longer head, nor more bytes of records: neither written nor read."""


class PublishPart(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A publish that is too large for one batch: first offset, count, whether this ends it."""

    first: int
    count: int
    last: bool


class PendingFrame(msgspec.Struct, gc=False):
    """One frame to write: a batch (count 0 for a step without records), or a change without one.

    Args:
        batch: The batch, its offset and epoch set; None for a change.
        change: The change, if there is no batch.
        has_ids: Its records have ids, by which repeats are recognised.
        publish: The publish that it is a part of, if that takes several frames.
        counts: The number of records for each sequence of a producer that it holds.
        owner: The owner of its records' ids.
    """

    batch: Batch | None
    change: Change | None = None
    has_ids: bool = False
    publish: PublishPart | None = None
    counts: tuple[int, ...] = ()
    owner: str = ""


class Head(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The metadata in a batch's frame; `origin` None: published here, behind offset `after`.

    `counts`: the records of each of the sequences of a producer that it holds, `producer` being the
    last. `owner`: whose the ids of its records are.
    """

    offset: int
    channel: str
    count: int
    time: float
    epoch: str
    ttl: float | None
    origin: Origin | None
    source: SourcePosition | None
    producer: Producer | None
    publish: PublishPart | None = None
    counts: tuple[int, ...] = ()
    after: int | None = None
    owner: str = ""


NewFrame = tuple[int, int, bytes, bytes]
"""Kind, flags, head and records of a frame to be."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """A frame as found in a file: where it begins and ends, and what it holds."""

    at: int
    end: int
    kind: int
    flags: int
    synced: int
    stamp: float
    wall: float
    head: bytes
    records: bytes


_encode = msgspec.msgpack.Encoder().encode
decode_head = msgspec.msgpack.Decoder(Head).decode
_KINDS: dict[object, int] = {CursorSet: CURSOR, EpochOpened: EPOCH, PeerHeld: HELD}
_decode_change: dict[int, Callable[[bytes | memoryview], Change]] = {
    kind: msgspec.msgpack.Decoder(struct).decode for struct, kind in _KINDS.items()
}


def encode_frame(piece: PendingFrame) -> NewFrame:
    """Return kind, flags, head and records of the frame of a piece."""
    batch = piece.batch
    if batch is None:
        return _KINDS[type(piece.change)], 0, _encode(piece.change), b""
    head = _encode(
        (
            batch.offset,
            batch.channel,
            batch.count,
            batch.time,
            batch.epoch,
            batch.ttl,
            None if batch.source is None else batch.origin,
            batch.source,
            batch.producer,
            piece.publish,
            piece.counts,
            batch.origin.after,
            piece.owner,
        )
    )
    flags = HAS_IDS if piece.has_ids else 0
    if batch.source is not None or batch.producer is not None:
        flags |= CHANGES
    return BATCH, flags, head, batch.records


def frame_prefix(part: NewFrame, synced: int, stamp: float, wall: float, seed: int = 0) -> bytes:
    """Return the prefix of a frame; `head` and `records` follow it.

    Raises:
        ValueError: No reader would take so long a frame.
    """
    kind, flags, head, records = part
    if len(head) > MOST_BYTES or len(records) > MOST_BYTES:
        raise ValueError(
            f"expected a frame of at most {MOST_BYTES} bytes, got {len(head)} and {len(records)}"
        )
    body = _BODY.pack(len(head), len(records), synced, kind, flags, 0, stamp, wall)
    crc = crc32(records, crc32(head, crc32(body, seed)))
    return _LEAD.pack(MAGIC, crc) + body


def frame_at(buffer: memoryview | bytes, at: int, base: int = 0, seed: int = 0) -> Frame | None:
    """Return the frame that begins at `at` in `buffer`, which starts at `base` in its file.

    None if none does.
    """
    if at + PREFIX_BYTES > len(buffer):
        return None
    magic, crc, head, records, synced, kind, flags, _, stamp, wall = PREFIX.unpack_from(buffer, at)
    if magic != MAGIC:
        return None
    body = at + PREFIX_BYTES
    end = body + head + records
    if (
        end > len(buffer)
        or crc32(buffer[at + 8 : end], 0 if kind in (HEAD, SMALL) else seed) != crc
    ):
        return None
    return Frame(
        base + at,
        base + end,
        kind,
        flags,
        synced,
        stamp,
        wall,
        bytes(buffer[body : body + head]),
        bytes(buffer[body + head : end]),
    )


class FrameCandidate(msgspec.Struct, frozen=True, gc=False):
    """A possible frame, not verified: its kind, its CRC, and the range that the CRC covers."""

    kind: int
    crc: int
    begin: int
    end: int


def candidate_at(buffer: memoryview | bytes, at: int) -> FrameCandidate | None:
    """Return what the frame that seems to begin at `at` claims; None if none fits in there."""
    if at + PREFIX_BYTES > len(buffer):
        return None
    magic, crc, head, records, _, kind, *_ = PREFIX.unpack_from(buffer, at)
    end = at + PREFIX_BYTES + head + records
    return FrameCandidate(kind, crc, at + 8, end) if magic == MAGIC and end <= len(buffer) else None


def frame_size(buffer: memoryview | bytes, at: int) -> int | None:
    """Return the size of the frame at `at` by its prefix; None if no frame begins there."""
    if at + PREFIX_BYTES > len(buffer):
        return None
    magic, _, head, records, *_ = PREFIX.unpack_from(buffer, at)
    if magic != MAGIC or head > MOST_BYTES or records > MOST_BYTES:
        return None
    size: int = PREFIX_BYTES + head + records
    return size


def batch_of(frame: Frame, node: str, log: str) -> tuple[Batch, Head]:
    """Return the batch in a frame of the log `log` of `node`, and its head.

    Raises:
        msgspec.DecodeError: The head is none.
    """
    head = decode_head(frame.head)
    origin = head.origin
    if origin is None:
        origin = Origin(node, log, head.epoch, head.offset, head.after)
    return Batch(
        head.offset,
        head.channel,
        head.count,
        frame.records,
        head.time,
        origin,
        head.epoch,
        head.ttl,
        frame.stamp,
        head.source,
        head.producer,
    ), head


def head_of(frame: Frame) -> Head:
    """Return the head of a batch's frame."""
    return decode_head(frame.head)


def change_of(kind: int, head: bytes | memoryview) -> Change | None:
    """Return the change in a frame without a batch; None in a frame of another kind."""
    decode = _decode_change.get(kind)
    return None if decode is None else decode(head)
