"""What goes into a link and what comes out of it."""

from __future__ import annotations

import msgspec

from linkd.core.wire import Generation
from linkd.errors import FailureKind, Reason
from linkd.status import LinkState


class Start(msgspec.Struct, frozen=True):
    """The node has started, or the peer was added."""


class Stop(msgspec.Struct, frozen=True):
    """The node stops, or the peer was removed."""

    detail: str


class Kick(msgspec.Struct, frozen=True):
    """An operator wants an attempt now."""


class NetworkChanged(msgspec.Struct, frozen=True):
    """Addresses or routes of this host have changed."""


class Wake(msgspec.Struct, frozen=True):
    """The deadline may have come."""


class AttemptBegan(msgspec.Struct, frozen=True):
    """The dialer has begun an attempt, or has come as far as one address of it."""


class Opening(msgspec.Struct, frozen=True):
    """The attempt's TCP connection stands."""


class AttemptFailed(msgspec.Struct, frozen=True):
    """The attempt has failed; fields as in `linkd.errors.AttemptFailed`."""

    kind: FailureKind
    reason: Reason
    detail: str
    retry_after: float | None = None


class Greeted(msgspec.Struct, frozen=True):
    """A connection whose peer has proved who it is and said hello.

    Args:
        connection: Its key.
        generation: As chosen by the end that dialed.
        log: The peer's log id.
        dialed: We dialed it.
        address: The other end, for people.
    """

    connection: int
    generation: Generation
    log: str
    dialed: bool
    address: str


class Resumed(msgspec.Struct, frozen=True):
    """The two ends agree on how far they are; `owed`: the peer is owed some of our log."""

    connection: int
    owed: bool = False


class Acknowledged(msgspec.Struct, frozen=True):
    """The peer has acknowledged something on the live connection."""


class Diverged(msgspec.Struct, frozen=True):
    """The two logs have nothing in common."""

    detail: str


class Rejoined(msgspec.Struct, frozen=True):
    """An operator has said from where to go on; `Resumed` follows."""


class Lost(msgspec.Struct, frozen=True):
    """A greeted connection has ended.

    Args:
        connection: Its key.
        reason: One word of `Reason`.
        detail: One sentence.
        retry_after: Seconds that the peer asked us to stay away, or None.
        silent: It was given up for silence.
    """

    connection: int
    reason: Reason
    detail: str
    retry_after: float | None = None
    silent: bool = False


Input = (
    Start
    | Stop
    | Kick
    | NetworkChanged
    | Wake
    | AttemptBegan
    | Opening
    | AttemptFailed
    | Greeted
    | Resumed
    | Acknowledged
    | Diverged
    | Rejoined
    | Lost
)


class Dial(msgspec.Struct, frozen=True):
    """Begin an attempt after so many seconds; replaces what was scheduled or is under way."""

    after: float


class StopDialing(msgspec.Struct, frozen=True):
    """Drop what is scheduled or under way."""


class Adopt(msgspec.Struct, frozen=True):
    """This connection is the link's now; begin the session on it. Always the last effect."""

    connection: int


class Abort(msgspec.Struct, frozen=True):
    """End a connection at once."""

    connection: int
    reason: Reason
    detail: str


class Refuse(msgspec.Struct, frozen=True):
    """Say goodbye to a connection that was never the link's."""

    connection: int
    reason: Reason
    detail: str
    retry_after: float | None = None


class Changed(msgspec.Struct, frozen=True):
    """The link's state has changed."""

    old: LinkState
    new: LinkState
    reason: Reason | None
    detail: str | None


Effect = Dial | StopDialing | Adopt | Abort | Refuse | Changed
