"""The messages between nodes: WebSocket subprotocol `linkd.1`, docs/protocol.md.

Each is one binary WebSocket message: a msgpack array whose first item is the message's tag. Items
that a newer version appends are ignored; an unknown tag is the peer's error.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from linkd.errors import ChannelRefused, RemoteProtocolError
from linkd.protocol.channels import MAX_WANTS, check_patterns
from linkd.protocol.records import Origin

SUBPROTOCOL = "linkd.1"
VERSION = 2
PREVIOUS_VERSION = 1
"""The oldest version of the protocol that this node still speaks."""

HELLO_AGAIN_VERSION = 2
"""From this version on, a dialer may send a second hello, and the listener answers it."""

PROBE_VERSION = 2
"""From this version on, a peer answers probes."""

RESEND_VERSION = 2
"""From this version on, a peer can be asked to send again on the same connection."""

MAX_HELLO_BYTES = 65_536
MAX_MESSAGE_BYTES = 131_072
"""No message but `hello` counts more: batches are cut to 64 KiB, larger records travel in parts."""

MAX_VOLATILE_BYTES = MAX_MESSAGE_BYTES - 4096
"""Records of a `volatile`, which has no parts: its other items take the rest at most."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
Token = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Channel = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
MAX_SECONDS = 1e10
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)]
MAX_DETAIL_LENGTH = 1024
Text = Annotated[str, msgspec.Meta(max_length=MAX_DETAIL_LENGTH)]


def sendable(seconds: float) -> float:
    """Return a time of this host's wall clock as a peer takes it, however wrong that clock is."""
    return min(max(seconds, 0.0), MAX_SECONDS)


class Generation(msgspec.Struct, array_like=True, frozen=True, order=True):
    """Which connection of which boot: within one boot a higher counter is newer."""

    boot: Token
    counter: Natural


class EpochStart(msgspec.Struct, array_like=True, frozen=True):
    """An epoch of a log and the first offset in it; it ends where the next one starts."""

    epoch: Token
    first: Natural


class EpochEnd(msgspec.Struct, array_like=True, frozen=True):
    """How far a receiver has a peer's log within one epoch: all below `next`."""

    epoch: Token
    next: Natural


class Cursor(msgspec.Struct, array_like=True, frozen=True):
    """How far a receiver has a peer's log.

    Args:
        log: The log's id.
        epochs: How far in each epoch it saw, oldest first, at most 64.
        committed: Everything below is on the receiver's disk; at most the newest epoch's `next`; 0
            where nothing is yet.
    """

    log: Token
    epochs: Annotated[tuple[EpochEnd, ...], msgspec.Meta(min_length=1, max_length=64)]
    committed: Natural

    @property
    def next(self) -> int:
        """The offset that the receiver wants next."""
        return self.epochs[-1].next


class Hello(msgspec.Struct, array_like=True, frozen=True, tag="hello"):
    """The first message each way; the dialer's comes first.

    Args:
        version: The highest protocol version that the node speaks.
        node: Its name.
        software: What it runs, for people.
        generation: The dialer's connection; the listener repeats it.
        log: Its log's id.
        epochs: The newest epochs of its log, oldest first, at most 1,024; epochs without records
            are left out.
        next: The next offset of its log.
        cursor: How far it has the other's log, None if it never had anything.
        wants: The patterns of what it takes from the other; one with `*` has at most 16 words.
        ping_interval: Seconds between the listener's pings; 0 from a dialer.
        proof: The listener's answer to the dialer's nonce, where a shared secret is used; else
            empty.
        compress: The encodings of batches that it can read (`zstd`), beside none.
        relays: It takes records from the other that began at a third node.
        segment_bytes: A listener's: large packets towards the dialer are lost; it should dial with
            TCP segments of so many bytes at most. 0: as usual.
        time: Unix seconds by its wall clock when it sent this; 0: not given.
        return_spread: A listener's: seconds over which its dialers should come back, at random, if
            it goes away; 0: not given.
    """

    version: Natural
    node: Name
    software: Text
    generation: Generation
    log: Token
    epochs: Annotated[tuple[EpochStart, ...], msgspec.Meta(min_length=1, max_length=1024)]
    next: Natural
    cursor: Cursor | None
    wants: Annotated[tuple[Channel, ...], msgspec.Meta(max_length=MAX_WANTS)]
    ping_interval: Seconds
    proof: Annotated[str, msgspec.Meta(max_length=128)] = ""
    compress: Annotated[tuple[Token, ...], msgspec.Meta(max_length=8)] = ()
    relays: bool = True
    segment_bytes: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    time: Seconds = 0.0
    return_spread: Seconds = 0.0


class BatchMessage(msgspec.Struct, array_like=True, frozen=True, tag="batch", gc=False):
    """The next step through the sender's log, with the records in it that the receiver wants.

    A step without records (`count` 0) only carries the position over what was skipped.

    Args:
        previous: Where the receiver's cursor must be.
        next: Its position once this is stored.
        epoch: The epoch of the sender's log just below `next`.
        channel: The batch's channel; empty in a step without records.
        count: Number of records.
        size: Bytes of the records in all; what `records` lacks follows in `part` messages.
        records: Encoded records side by side, or their beginning.
        time: Unix seconds of publication at the origin.
        ttl: Seconds of life left when it was sent, or None.
        origin: Where the records were published; None in a step without records.
        encoding: How the records are packed: empty, or `zstd`.
    """

    previous: Natural
    next: Natural
    epoch: Token
    channel: Annotated[str, msgspec.Meta(max_length=255)] = ""
    count: Natural = 0
    size: Natural = 0
    records: bytes = b""
    time: Seconds = 0.0
    ttl: Seconds | None = None
    origin: Origin | None = None
    encoding: Annotated[str, msgspec.Meta(max_length=16)] = ""


class _LargeBatch(msgspec.Struct, array_like=True, frozen=True, tag="batch", gc=False):
    """A `BatchMessage` whose records are a view of the message."""

    previous: Natural
    next: Natural
    epoch: Token
    channel: Annotated[str, msgspec.Meta(max_length=255)] = ""
    count: Natural = 0
    size: Natural = 0
    records: memoryview = memoryview(b"")
    time: Seconds = 0.0
    ttl: Seconds | None = None
    origin: Origin | None = None
    encoding: Annotated[str, msgspec.Meta(max_length=16)] = ""


class Part(msgspec.Struct, array_like=True, frozen=True, tag="part", gc=False):
    """The next bytes of the records of the last `batch`; not copied out of the message."""

    records: memoryview


class Volatile(msgspec.Struct, array_like=True, frozen=True, tag="volatile", gc=False):
    """Records that were never in a log: sent while the link is up, else dropped.

    `node` published them as its `sequence`-th message since its start `run`; what is not above the
    highest sequence known of a run is dropped: no loops, no doubles. With `presence` no reader
    gets the records: they are for the nodes themselves, who is there on the channel at `node`.
    """

    channel: Channel
    count: Natural
    records: bytes
    time: Seconds
    ttl: Seconds | None
    node: Name
    run: Token
    sequence: Natural
    presence: bool = False


class Ack(msgspec.Struct, array_like=True, frozen=True, tag="ack", gc=False):
    """Everything of the receiver of this message below `next` is on the sender's disk."""

    next: Natural


class Resend(msgspec.Struct, array_like=True, frozen=True, tag="resend"):
    """The receiver of this message is to send its log again from `next` on.

    What came behind that was left out, for want of room.
    """

    next: Natural


class GapNotice(msgspec.Struct, array_like=True, frozen=True, tag="gap"):
    """Offsets `previous` to `next` - 1 of the sender's log are gone; some may have been owed."""

    previous: Natural
    next: Natural
    epoch: Token


class Probe(msgspec.Struct, array_like=True, frozen=True, tag="probe"):
    """A message of a certain size, to see whether it passes; answered by `probed`."""

    padding: bytes


class Probed(msgspec.Struct, array_like=True, frozen=True, tag="probed"):
    """A probe with `size` bytes of padding has come."""

    size: Natural


class Goodbye(msgspec.Struct, array_like=True, frozen=True, tag="goodbye"):
    """The last message before a close.

    Args:
        reason: One word of docs/protocol.md's reasons.
        detail: One sentence for people.
        retry_after: Seconds that the other should stay away, or None.
        return_spread: A listener's: as in its hello, as it is now; 0: not given.
    """

    reason: Token
    detail: Text = ""
    retry_after: Seconds | None = None
    return_spread: Seconds = 0.0


def goodbye(reason: str, detail: str, retry_after: float | None = None) -> Goodbye:
    """Return a goodbye whose detail is cut to what a peer takes."""
    return Goodbye(reason, detail[:MAX_DETAIL_LENGTH], retry_after)


Message = (
    Hello | BatchMessage | Part | Volatile | Ack | Resend | GapNotice | Probe | Probed | Goodbye
)


_decoder = msgspec.msgpack.Decoder(Message)
_large_decoder = msgspec.msgpack.Decoder(
    Hello | _LargeBatch | Part | Volatile | Ack | Resend | GapNotice | Probe | Probed | Goodbye
)

_VIEW_BYTES = 32_768
"""Records of this size are not worth being copied out of their message."""


encode = msgspec.msgpack.Encoder().encode
"""Returns a message as the payload of one binary WebSocket message."""


def _decode_large(payload: bytes) -> Message:
    """Return a message; the record of a batch is not copied out of it."""
    message = _large_decoder.decode(payload)
    if type(message) is not _LargeBatch:
        return message  # type: ignore[no-any-return]
    records = message.records if message.count == 1 else bytes(message.records)
    # All that reads one record takes a view.
    return BatchMessage(*msgspec.structs.astuple(msgspec.structs.replace(message, records=records)))


def decode(payload: bytes) -> Message:
    """Return the message in `payload`.

    Raises:
        RemoteProtocolError: It is too long, malformed, out of bounds or of an unknown tag.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError(
            f"expected a message of at most {MAX_MESSAGE_BYTES} bytes, got {len(payload)}", 1009
        )
    try:
        if len(payload) >= _VIEW_BYTES:
            return _decode_large(payload)
        message: Message = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed message: {error}", 1007) from None
    if type(message) is Hello:
        try:
            check_patterns(message.wants, MAX_HELLO_BYTES)
        except ChannelRefused as error:
            raise RemoteProtocolError(f"a hello's wants: {error}", 1008) from None
    return message
