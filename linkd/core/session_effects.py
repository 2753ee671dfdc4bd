"""The settings and the effects of a session."""

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
        send: The channels of our log that go to the peer.
        receive: The channels that we take from it.
        relay: We take records from it that a third node published.
        window_bytes: Most bytes of records that may be sent and not yet acknowledged; each batch
            counts BATCH_OVERHEAD_BYTES more.
        read_bytes: About how much of the log is read at once.
        max_records_bytes: The largest batch of one record that is accepted, whatever our own
            `log.max_body_bytes`: a peer's may be larger, and a refused record would block all
            behind it.
        max_waiting_bytes: Most bytes that may wait for our disk, counted like those of a window,
            plus a little for each step without records: far above any window.
        position_interval: Seconds after which a position that moved over skipped records alone is
            sent.
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
    """Deliver a volatile message to this node's readers and its other peers."""

    message: Volatile


class LogEvent(msgspec.Struct, frozen=True):
    """Log an event: `level` warn or error, its name in linkd.events, one sentence."""

    level: str
    event: str
    detail: str


class RecordsRefused(msgspec.Struct, frozen=True):
    """`count` records of `channel` came that are not in our `receive`; they were not stored.

    The channel is empty if its name is malformed.
    """

    channel: str
    count: int


class NotRelayed(msgspec.Struct, frozen=True):
    """`count` records of `channel` that a third node published were left out.

    They came although our `relay` is false (`inbound`), or we skipped them because the peer's is.
    """

    channel: str
    count: int
    inbound: bool


class FalseOrigin(msgspec.Struct, frozen=True):
    """`count` records of `channel` claim an impossible origin offset; they were not stored."""

    channel: str
    count: int
    detail: str


class RecordsExpired(msgspec.Struct, frozen=True):
    """`count` records of `channel` outlived their ttl and were skipped."""

    channel: str
    count: int


class OffsetsLost(msgspec.Struct, frozen=True):
    """Offsets [first, next) are lost: the peer reported it (`inbound`), or we reported it."""

    first: int
    next: int
    inbound: bool


class EpochsDiverged(msgspec.Struct, frozen=True):
    """No common epoch: nothing is sent until an operator chooses where to resume."""

    detail: str


Effect = (
    Send
    | Read
    | Store
    | Rewind
    | Acked
    | ForwardVolatile
    | LogEvent
    | RecordsRefused
    | NotRelayed
    | FalseOrigin
    | RecordsExpired
    | OffsetsLost
    | EpochsDiverged
)
