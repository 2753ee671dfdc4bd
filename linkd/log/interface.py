"""Values that the log and its callers exchange."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from linkd.errors import LinkdError


class Appended(msgspec.Struct, frozen=True, gc=False):
    """A publish is on disk.

    Args:
        offset: The first record's offset; of the first publish, where it was a repeat.
        count: Records stored by this publish: 0 if all were repeats.
        duplicate: It was a repeat (same id, or same producer and sequence).
        unproven: Received records that were stored without proof that they are new, or left out
            (`count` 0) without proof that they are here.
        late: Received records that were stored after later ones of their origin and channel.
    """

    offset: int
    count: int
    duplicate: bool = False
    unproven: int = 0
    late: int = 0


OnDurable = Callable[[Appended | LinkdError], None]
"""Called once for each append: it is on disk, or nothing of it is and this is why."""


class OperatorNotice(msgspec.Struct, frozen=True):
    """A report for the operator: damage found, what was kept, what is lost.

    Args:
        level: `warn` or `error`.
        event: A name in linkd.events.
        detail: One sentence with file, offsets and what to do.
    """

    level: str
    event: str
    detail: str


Owned = tuple[str, str]
"""The key of a named consumer: its owner, and its name among the owner's."""

UNOWNED = "unowned"
"""The owner of consumers that an older linkd made, until a caller claims them."""


RESUME_PREFIX = "resume."
"""Names of the consumers of `/ws` clients that ask for a short resume only: `?resume=ID`."""

RESUME_SECONDS = 600.0
"""Seconds for which such a consumer is kept after its client has gone."""


class Consumer(msgspec.Struct, frozen=True):
    """A named consumer.

    Args:
        owner: The key that has the name, `socket`, `anyone` or `unowned`.
        name: Its name, one of its owner's.
        next: Its durable cursor.
        patterns: The channels that it reads.
        idle: Seconds of absence while the daemon ran.
    """

    owner: str
    name: str
    next: int
    patterns: tuple[str, ...]
    idle: float = 0.0

    @property
    def key(self) -> Owned:
        """Owner and name."""
        return (self.owner, self.name)

    @property
    def is_passing(self) -> bool:
        """Whether it is kept for RESUME_SECONDS only."""
        return self.name.startswith(RESUME_PREFIX)

    @property
    def pattern_bytes(self) -> int:
        """The total length of its patterns."""
        return sum(map(len, self.patterns))


class PeerCursor(msgspec.Struct, frozen=True):
    """A peer's cursor in our log: it has everything from `made`, where it began, to below `acked`.

    `absent_seconds`: running time since it left the configuration; None while it is configured.
    """

    peer: str
    made: int
    acked: int
    absent_seconds: float | None = None
