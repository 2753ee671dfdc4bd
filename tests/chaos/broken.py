"""Builds broken on purpose, as real daemons: a campaign that can't catch them proves nothing.

`python -m tests.chaos.broken NAME run …` is `linkd run …` with one rule of it broken.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from linkd.cli import main
from linkd.core.inbound import Inbound
from linkd.core.link import Refusal, Takeovers
from linkd.core.liveness import Liveness
from linkd.log import recovery
from linkd.log.files import DiskFiles
from linkd.log.origins import Origins, Undo, Verdict
from linkd.log.recovery import Found
from linkd.protocol.peer import EpochEnd
from linkd.protocol.records import Origin

BEHIND = 500
"""How many offsets a cursor lies behind that was not written with its batch."""


def ack_before_commit() -> None:
    """Acknowledge what has arrived, not what is on disk."""
    whole = Inbound.ack

    def ack(self: Inbound) -> object:
        self.committed = max(self.committed, self.received or 0)
        return whole(self)

    Inbound.ack = ack  # type: ignore[method-assign,assignment]


def no_takeover() -> None:
    """Refuse who comes back as long as the old connection counts as alive."""

    def judge(self: Takeovers, live: object, new: object, now: float) -> Refusal:
        return Refusal("replaced", "broken on purpose")

    Takeovers.judge = judge  # type: ignore[method-assign]


def polled_keepalive() -> None:
    """Look every five seconds whether the time of silence has passed."""

    def poll(self: Liveness) -> float:
        return math.ceil((self.heard_at + self.limit) / 5.0) * 5.0

    Liveness.deadline = property(poll)  # type: ignore[assignment,method-assign]


def cursor_apart() -> None:
    """Keep how far a peer's log is stored here apart from the records: a crash takes it back."""
    whole = recovery.recover

    def stale(folder: Path, files: DiskFiles, wall: Callable[[], float]) -> Found:
        found = whole(folder, files, wall)
        if (state := found.state) is not None:
            for peer, (log, ends) in list(state.cursors.items()):
                older = max([1, *(end.next for end in ends[:-1])])
                last = EpochEnd(ends[-1].epoch, max(older, ends[-1].next - BEHIND))
                state.cursors[peer] = (log, (*ends[:-1], last))
            state.origins = Origins()
        return found

    recovery.recover = stale


def highest_offset() -> None:
    """Know of each origin's channel the highest offset only: what lies below it is left out."""

    def admit(
        self: Origins, origin: Origin, channel: str, count: int, stamp: float, undo: Undo
    ) -> Verdict | None:
        high: dict[Any, int] = self._usage._of  # what it has for numbers, and goes with it
        key = (origin.log, channel)
        skip = min(max(high.get(key, 0) + 1 - origin.first, 0), count)
        undo.append((high, key, high.get(key, 0)))
        high[key] = max(high.get(key, 0), origin.first + count - 1)
        return Verdict(((skip, count - skip),) if skip < count else ())

    Origins.admit = admit  # type: ignore[method-assign]


def late_uncounted() -> None:
    """Store records behind later ones, and don't count them."""
    whole = Origins.admit

    def admit(self: Origins, *batch: Any) -> Verdict | None:
        verdict = whole(self, *batch)
        return verdict and msgspec.structs.replace(verdict, late=0)

    Origins.admit = admit  # type: ignore[method-assign,assignment]


def asynchronous_commit() -> None:
    """Acknowledge what a database of the log has not written yet."""
    from linkd.log.postgresql import database

    database._SESSION += "; set synchronous_commit = off"


BUILDS: dict[str, Callable[[], None]] = {
    "ack-before-commit": ack_before_commit,
    "no-takeover": no_takeover,
    "polled-keepalive": polled_keepalive,
    "cursor-apart": cursor_apart,
    "highest-offset": highest_offset,
    "late-uncounted": late_uncounted,
    "asynchronous-commit": asynchronous_commit,
}

if __name__ == "__main__":
    BUILDS[sys.argv[1]]()
    sys.argv[1:] = sys.argv[2:]
    raise SystemExit(main())
