"""The frames of `/v1/stream`: WebSocket subprotocol `linkd.client.1`, docs/api.md, "The stream".

Each binary WebSocket message is one msgpack array of frames; each frame is an array whose first
item is the frame's number. Items that a newer version appends are ignored; an unknown number ends
the connection. Publishes and deliveries carry encoded records side by side
(`linkd.protocol.records`), which the daemon never opens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal, TypeVar

import msgspec

from linkd.errors import RemoteProtocolError
from linkd.protocol.peer import EpochStart
from linkd.protocol.records import array_header
from linkd.status import LinkStatus

SUBPROTOCOL = "linkd.client.1"
VERSION = 2
"""Version 2 adds AckFailed and Position to the frames of version 1."""

MIN_VERSION = 1
"""Clients of an older version are refused."""

MAX_MESSAGE_BYTES = 17_825_792
"""No WebSocket message is larger (17 MiB: a body of 16 MiB and its frame)."""

MAX_IDS = 1_000_000
"""No publish has more ids: the 17 million that fit into a message take 0.4 s to decode."""

Name = Annotated[str, msgspec.Meta(max_length=255)]
Text = Annotated[str, msgspec.Meta(max_length=1024)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Sequenced = Annotated[int, msgspec.Meta(ge=1, le=2**62)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e10)]
Patterns = Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=1024)]
Start = Natural | Literal["earliest", "latest"]
Epochs = tuple[EpochStart, ...]


# From the client


class Open(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The client's first frame.

    Args:
        version: The highest version that it speaks.
        producer: Its lasting, unique name where its publishes are to be settled once, also over
            restarts; else
            empty. Sequences of one producer only grow; a second holder of the name ends the first.
        software: What it is, for people.
        run: A random word of the process where it does not know the numbers that earlier ones used:
            the numbers of each run are its own, so that none is mistaken for a repeat.
    """

    version: Natural
    producer: Annotated[str, msgspec.Meta(max_length=128)] = ""
    software: Text = ""
    run: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Publish(msgspec.Struct, array_like=True, frozen=True, tag=2, gc=False):
    """Store `count` records, all or none; many may be in flight.

    Args:
        sequence: The client's number for it: each larger than the one before.
        channel: A channel's name.
        count: Number of records, at least 1.
        records: Their encodings, side by side.
        ttl: Seconds of life, or None for ever.
        ids: The records' ids where repeats of them count; empty, or one a record.
        wait: A peer for which the client will wait: refused where that peer does not get it.

    What is out of bounds here is an error of this publish alone, not of the connection: clients
    send again what was not answered.
    """

    sequence: Sequenced
    channel: str
    count: Sequenced
    records: bytes
    ttl: float | None = None
    ids: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_IDS)] = ()
    wait: str = ""


class _LargePublish(msgspec.Struct, array_like=True, frozen=True, tag=2, gc=False):
    """A `Publish` whose records are a view of the message."""

    sequence: Sequenced
    channel: str
    count: Sequenced
    records: memoryview
    ttl: float | None = None
    ids: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_IDS)] = ()
    wait: str = ""


class WaitForPeer(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Ask for an answer (`WaitResult`) once `peer` has everything below `next` on disk.

    Args:
        id: The client's number for this question.
        peer: The peer's name.
        channel: The channel concerned: refused at once where the peer does not get it.
        next: One more than the last offset concerned; 0 for all that the log has now.
        timeout: Seconds to wait at most.
    """

    id: Natural
    peer: Name
    channel: Name
    next: Natural
    timeout: Seconds


class Subscribe(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Follow channels.

    Args:
        id: The client's number for this subscription, in use for no other.
        patterns: What it wants.
        start: The first offset wanted, `earliest` or `latest`; with a consumer's name only where
            that is new.
        consumer: The name of a lasting consumer, or empty.
        credit: Bytes of records that may come before the client gives more (`Credit`).
    """

    id: Natural
    patterns: Patterns
    start: Start
    consumer: Annotated[str, msgspec.Meta(max_length=63)]
    credit: Natural


class Unsubscribe(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """Nothing more is wanted; what is on its way still comes, then `Ended`."""

    id: Natural


class Credit(msgspec.Struct, array_like=True, frozen=True, tag=6, gc=False):
    """Allow so many more bytes of records to be sent."""

    id: Natural
    bytes: Natural


class ConsumerAck(msgspec.Struct, array_like=True, frozen=True, tag=7, gc=False):
    """The consumer is done with all below `next`.

    Answered with `ConsumerAcked` once that is on disk, or with `AckFailed`; it never ends the
    subscription.
    """

    id: Natural
    next: Natural


class WatchStatus(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """Ask for `StatusChanged`: all links at once, then each change ahead of all messages."""


# From the daemon


class Opened(msgspec.Struct, array_like=True, frozen=True, tag=32):
    """The answer to `Open`.

    Args:
        version: What both speak from here on.
        node: The node's name.
        software: What it runs.
        log: Its log's id.
        next: The next offset of its log.
        max_body_bytes: The largest body.
        max_pending_bytes: Bytes of records in publishes that may wait for their answer.
        highest: The highest number of the producer (of its run, where it has one) that is stored;
            0 where none is.
        epochs: The log's newest epochs, oldest first: up to where the history agrees that two
            connections met.
    """

    version: Natural
    node: str
    software: str
    log: str
    next: Natural
    max_body_bytes: Natural
    max_pending_bytes: Natural
    highest: Natural = 0
    epochs: Epochs = ()


class Published(msgspec.Struct, array_like=True, frozen=True, tag=33, gc=False):
    """A publish is on disk.

    Args:
        sequence: Which.
        offset: Its first record's offset; of the first publish where all of it was a repeat; 0 on a
            volatile channel, or where a repeat is so old that only its number is known.
        count: Records stored: 0 if all were repeats.
        duplicate: It was a repeat.
    """

    sequence: Natural
    offset: Natural
    count: Natural
    duplicate: bool = False


class PublishedRun(msgspec.Struct, array_like=True, frozen=True, tag=34, gc=False):
    """Publishes of one record each, numbered without holes, are on disk side by side.

    Args:
        sequence: The first one's number.
        offset: Its record's offset; each next one's is one more.
        count: How many publishes.
    """

    sequence: Natural
    offset: Natural
    count: Natural


class PublishFailed(msgspec.Struct, array_like=True, frozen=True, tag=35):
    """Nothing of a publish was stored; `error` is one word of docs/api.md.

    After `log-full` all later publishes of a named producer are refused likewise until it sends
    `Open`
    again: then what was refused may come again, under its old numbers and in its old order.
    """

    sequence: Natural
    error: str
    message: str


class WaitResult(msgspec.Struct, array_like=True, frozen=True, tag=36):
    """The answer to `WaitForPeer`: no `error` once the peer has it, else `timeout` or another."""

    id: Natural
    error: str = ""
    message: str = ""


class Subscribed(msgspec.Struct, array_like=True, frozen=True, tag=37):
    """A subscription began: `next` is the first offset that it may bring."""

    id: Natural
    next: Natural


class Deliver(msgspec.Struct, array_like=True, frozen=True, tag=38, gc=False):
    """Records of the log; costs `len(records)` of the credit.

    Args:
        id: Which subscription.
        offset: The first record's offset; the others follow without holes.
        channel: Their channel.
        count: How many.
        records: Their encodings, side by side.
        time: Unix seconds of publication.
        origin: The node where they were published.
        first: The first record's offset at the origin.
    """

    id: Natural
    offset: Natural
    channel: str
    count: Natural
    records: bytes
    time: float
    origin: str
    first: Natural


class DeliverVolatile(msgspec.Struct, array_like=True, frozen=True, tag=39, gc=False):
    """Records without an offset; `dropped` many before them found no credit."""

    id: Natural
    channel: str
    count: Natural
    records: bytes
    time: float
    origin: str
    dropped: Natural = 0


class SubscriptionGap(msgspec.Struct, array_like=True, frozen=True, tag=40):
    """Offsets `first` to `next` - 1, some of which may have been wanted, are gone."""

    id: Natural
    first: Natural
    next: Natural


class ConsumerAcked(msgspec.Struct, array_like=True, frozen=True, tag=41, gc=False):
    """The consumer's cursor is on disk; everything below `next` will not come again."""

    id: Natural
    next: Natural


class Ended(msgspec.Struct, array_like=True, frozen=True, tag=42):
    """A subscription ended: `unsubscribed`, `replaced`, `deleted`, `stopped`, or an error."""

    id: Natural
    reason: str
    message: str = ""


class StatusChanged(msgspec.Struct, array_like=True, frozen=True, tag=43):
    """Links as they are now; `event` is what happened (`link.up`), empty in the first."""

    links: tuple[LinkStatus, ...]
    event: str = ""


class Failed(msgspec.Struct, array_like=True, frozen=True, tag=44):
    """A subscription was refused; where `id` is 0, the connection ends now."""

    id: Natural
    error: str
    message: str


class AckFailed(msgspec.Struct, array_like=True, frozen=True, tag=45):
    """An ack was refused: the cursor is as it was. The subscription goes on if there is one."""

    id: Natural
    next: Natural
    error: str
    message: str


class Position(msgspec.Struct, array_like=True, frozen=True, tag=46):
    """All that a quiet subscription wants below `next` was sent: it resumes there."""

    id: Natural
    next: Natural


FromClient = (
    Open | Publish | WaitForPeer | Subscribe | Unsubscribe | Credit | ConsumerAck | WatchStatus
)
FromDaemon = (
    Opened
    | Published
    | PublishedRun
    | PublishFailed
    | WaitResult
    | Subscribed
    | Deliver
    | DeliverVolatile
    | SubscriptionGap
    | ConsumerAcked
    | Ended
    | StatusChanged
    | Failed
    | AckFailed
    | Position
)

MAX_EPOCHS = 64
"""Maximum number of epochs in `Opened`: the newest."""

MAX_FRAMES = 65_536
"""The most frames of one message; classifying that many takes a few milliseconds."""

WHOLE_BYTES = 262_144
WHOLE_FRAMES = 1024
"""A message up to this size is decoded at once; a larger one in slices, each in its turn."""

LARGE_BYTES = 32_768
"""Records of this size are not worth being copied out of their message, or into one."""

SLICE_BYTES = 65_536
SLICE_FRAMES = 256
"""The most of one slice, unless a single frame is larger. A frame takes about ten times its bytes
in memory once it is decoded, so only the slice that is worked on is."""

_DELIVER = Deliver.__struct_config__.tag

_encoder = msgspec.msgpack.Encoder()
_raw = msgspec.msgpack.Decoder(list[msgspec.Raw])
_publish = msgspec.msgpack.Decoder(Publish)
_one_from_client = msgspec.msgpack.Decoder(FromClient)
_from_client = msgspec.msgpack.Decoder(list[FromClient])
_large_from_client = msgspec.msgpack.Decoder(
    Open
    | _LargePublish
    | WaitForPeer
    | Subscribe
    | Unsubscribe
    | Credit
    | ConsumerAck
    | WatchStatus
)
_from_daemon = msgspec.msgpack.Decoder(list[FromDaemon])
_Decoded = TypeVar("_Decoded")
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(frames: Sequence[FromClient] | Sequence[FromDaemon]) -> bytes:
    """Return one message with these frames."""
    return _encoder.encode(frames)


def encode_large(frame: Deliver) -> tuple[bytes, bytes, bytes]:
    """Return one message with this frame in three pieces; its records are one, not copied."""
    records = frame.records
    before = _encoder.encode((_DELIVER, frame.id, frame.offset, frame.channel, frame.count))
    behind = _encoder.encode((frame.time, frame.origin, frame.first))
    head = b"\x91\x99" + before[1:] + b"\xc6" + len(records).to_bytes(4, "big")
    return head, bytes(records), behind[1:]  # bytes are not copied, a view would be


encode_frame = _encoder.encode
"""Return one frame's encoding, to be put side by side with others by `join`."""


def checked(frame: FromClient) -> FromClient:
    """Return a client's frame as its daemon will read it.

    Raises:
        ValueError: It has no encoding, or the daemon would refuse it as malformed.
    """
    try:
        return _one_from_client.decode(_encoder.encode(frame))  # type: ignore[no-any-return]
    except (*_MALFORMED, UnicodeEncodeError, OverflowError, TypeError) as error:
        raise ValueError(f"{type(frame).__name__.lower()}: {error}") from None


def agreed(before: Sequence[EpochStart], now: Sequence[EpochStart], next: int) -> int:
    """Return the offset below which a log is what it was, by its epochs then and now.

    It is below what a client has if the log was put back to an older copy, also where that
    copy has grown past it since. Without an epoch in common it is 0: nothing is known to be.

    Args:
        before: Its epochs when the client was last connected, oldest first.
        now: Its epochs now.
        next: Its next offset now.
    """
    firsts = [start.first for start in now]
    ends = {start.epoch: end for start, end in zip(now, [*firsts[1:], next], strict=False)}
    then = next
    for start in reversed(before):
        if (end := ends.get(start.epoch)) is not None:
            return min(end, then)
        then = start.first
    return 0 if before and now else next


def renumbered(publish: bytes, sequence: int) -> bytes:
    """Return an encoded Publish under another number."""
    return _encoder.encode(msgspec.structs.replace(_publish.decode(publish), sequence=sequence))


def join(encoded: Iterable[bytes], count: int) -> bytes:
    """Return one message of `count` encoded frames."""
    return array_header(count) + b"".join(encoded)


def decode_from_client(message: bytes) -> list[FromClient]:
    """Return a client's frames.

    Raises:
        RemoteProtocolError: It is no array of frames that this version knows; `close_code` is 1008.
    """
    return _decode(_from_client, message)


def split_from_client(
    message: bytes,
) -> tuple[list[FromClient], Iterator[list[FromClient]] | None]:
    """Return a client's frames: those of a large message in slices, decoded when asked for.

    Returns:
        All frames and None; or none, and the slices. A slice raises RemoteProtocolError as well.

    Raises:
        RemoteProtocolError: It is no array of frames that this version knows, or of too many.
    """
    count = _count(message)
    if count > MAX_FRAMES:
        raise RemoteProtocolError(f"expected at most {MAX_FRAMES} frames in a message", 1008)
    if count <= WHOLE_FRAMES and len(message) <= WHOLE_BYTES:
        if len(message) < LARGE_BYTES * count:
            return _decode(_from_client, message), None
        return [_decode_large(memoryview(frame)) for frame in _decode(_raw, message)], None
    return [], _slices(message, _bounds(_decode(_raw, message)))


def _decode_large(frame: memoryview) -> FromClient:
    """Return a frame; the record of a publish is not copied out of it."""
    found = _decode(_large_from_client, frame)
    if type(found) is not _LargePublish:
        return found  # type: ignore[no-any-return]
    records = found.records if found.count == 1 else bytes(found.records)
    # All that reads one record takes a view.
    return Publish(*msgspec.structs.astuple(msgspec.structs.replace(found, records=records)))


def _bounds(frames: list[msgspec.Raw]) -> list[tuple[int, int]]:
    """Return of each slice how many frames it has, and how many bytes."""
    bounds = []
    number = size = 0
    for frame in frames:
        more = len(frame)
        if number and (number == SLICE_FRAMES or size + more > SLICE_BYTES):
            bounds.append((number, size))
            number = size = 0
        number += 1
        size += more
    bounds.append((number, size))
    return bounds


def _slices(message: bytes, bounds: list[tuple[int, int]]) -> Iterator[list[FromClient]]:
    """Yield the frames of a message slice by slice."""
    begin = len(message) - sum(size for _, size in bounds)  # behind the head of the array
    for number, size in bounds:
        part = memoryview(message)[begin : begin + size]
        begin += size
        if number == 1:  # it may be large: not copied behind a head
            yield [_decode_large(part)]
        else:
            yield _decode(_from_client, array_header(number) + part)


def _count(message: bytes) -> int:
    """Return how many items an array has by its first bytes; 0 where it is none."""
    first = message[0] if message else 0
    if first & 0xF0 == 0x90:
        return first & 0x0F
    width = {0xDC: 2, 0xDD: 4}.get(first, 0)
    return int.from_bytes(message[1 : 1 + width], "big")


def decode_from_daemon(message: bytes) -> list[FromDaemon]:
    """Return the daemon's frames.

    Raises:
        RemoteProtocolError: It is no array of frames that this version knows.
    """
    return _decode(_from_daemon, message)


def _decode(decoder: msgspec.msgpack.Decoder[_Decoded], message: bytes | memoryview) -> _Decoded:
    """Decode one message, or a part of it."""
    try:
        return decoder.decode(message)
    except _MALFORMED as error:
        raise RemoteProtocolError(f"expected an array of frames: {error}", 1008) from None
