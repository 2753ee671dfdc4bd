"""Inputs and effects of a session."""

from __future__ import annotations

import msgspec

from linkd.protocol.channels import Patterns
from linkd.protocol.peer import Cursor, Volatile
from linkd.protocol.records import Batch


class SessionSettings(msgspec.Struct, frozen=True):
    """The bounds of a session.

    Args:
        node: Our name.
        peer: The peer's name.
        send: What of our log goes to the peer.
        receive: What we take from it.
        relay: We take records from it that began at a third node.
        window_bytes: Most bytes of records that may be sent and not yet acknowledged; each batch
            counts for HELD_BYTES more.
        read_bytes: About how much of the log is read at once.
        max_records_bytes: The largest batch of one record that is taken: whatever our own
            `log.max_body_bytes`, a peer's may be larger, and its record would block all behind it.
        max_waiting_bytes: Most bytes that may wait for our disk, counted like those of a window,
            and a little for each step without records: far above any window.
        position_interval: Seconds after which a position that moved over skipped records alone is
            told.
    """

    node: str
    peer: str
    send: Patterns
    receive: Patterns
    window_bytes: int = 8 * 1024 * 1024
    read_bytes: int = 512 * 1024
    max_records_bytes: int = 17 * 1024 * 1024
    max_waiting_bytes: int = 64 * 1024 * 1024
    position_interval: float = 0.5
    relay: bool = True


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send this message on the live connection."""

    payload: bytes


class Read(msgspec.Struct, frozen=True, gc=False):
    """Read our log from `position`; answer with `Outbound.read` or `Outbound.missing`."""

    position: int
    max_bytes: int


class Store(msgspec.Struct, frozen=True, gc=False):
    """Store a received batch; answer with `Inbound.stored` once it is on disk."""

    batch: Batch


class Rewind(msgspec.Struct, frozen=True):
    """Set our cursor in the peer's log; None forgets it."""

    cursor: Cursor | None


class Acked(msgspec.Struct, frozen=True, gc=False):
    """The peer has everything below `next` of our log on its disk."""

    next: int


class ForwardVolatile(msgspec.Struct, frozen=True, gc=False):
    """Hand on a volatile message."""

    message: Volatile


class Tell(msgspec.Struct, frozen=True):
    """Say something in the log: `level` warn or error, an event's name, a sentence."""

    level: str
    event: str
    detail: str


class RecordsRefused(msgspec.Struct, frozen=True):
    """`count` records of `channel` came that are not in our `receive`; they were left out.

    The channel is empty where its name is malformed.
    """

    channel: str
    count: int


class NotRelayed(msgspec.Struct, frozen=True):
    """`count` records of `channel` that began at a third node were left out.

    They came although our `relay` is false (`inbound`), or we skipped them since the peer's is.
    """

    channel: str
    count: int
    inbound: bool


class FalseOrigin(msgspec.Struct, frozen=True):
    """`count` records of `channel` name a place in a log that cannot be; they were left out."""

    channel: str
    count: int
    detail: str


class RecordsExpired(msgspec.Struct, frozen=True):
    """`count` records of `channel` outlived their ttl and were skipped."""

    channel: str
    count: int


class OffsetsLost(msgspec.Struct, frozen=True):
    """Offsets [first, next) are gone: told by the peer (`inbound`), or told to it."""

    first: int
    next: int
    inbound: bool


class Diverged(msgspec.Struct, frozen=True):
    """No common epoch: nothing is sent until an operator says from where."""

    detail: str


Effect = (
    Send
    | Read
    | Store
    | Rewind
    | Acked
    | ForwardVolatile
    | Tell
    | RecordsRefused
    | NotRelayed
    | FalseOrigin
    | RecordsExpired
    | OffsetsLost
    | Diverged
)
