"""The log's clock: seconds that only grow, over restarts and boots too.

It is the host's CLOCK_BOOTTIME and an offset: time in which the host is suspended counts, and steps
of the wall clock do not. In the same boot the offset stays. After another boot the log's clock goes
on from where it was last noted, plus what the wall clock has advanced since. `ttl` counts all of
that. What keeps records, ids and producers counts it only where the wall clock was synchronised
before and after: a wrong clock must not delete what is still needed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from linkd.clock import clock_words, is_plausible
from linkd.log.files import DiskFiles
from linkd.log.interface import OperatorNotice
from linkd.log.segment import read_small, write_small

NAME = "clock"
NOTE_SECONDS = 60.0
"""Seconds between two notes of the clock's position."""

AGREES_SECONDS = 60.0
"""A wall clock that was set right agrees with what was counted, within so much."""

_MOST_DOUBTS = 64


class Doubt(msgspec.Struct, array_like=True, frozen=True):
    """Seconds from `at` on the log's clock that only `ttl` counts.

    `wall` is when they began, if the wall clock was synchronised then, else None.
    """

    at: float
    seconds: float
    wall: float | None = None


class Note(msgspec.Struct, array_like=True, frozen=True):
    """Where the clock was.

    Args:
        boot: The word of that boot; empty where there is none.
        offset: The log's clock less CLOCK_BOOTTIME.
        stamp: The log's clock.
        wall: Unix seconds.
        synchronised: Whether the wall clock was.
        doubts: Oldest first.
    """

    boot: str
    offset: float
    stamp: float
    wall: float
    synchronised: bool
    doubts: tuple[Doubt, ...] = ()


_note = msgspec.msgpack.Decoder(Note)


def load_note(folder: Path) -> Note | None:
    """Return where the clock was last noted to be, or None where that can't be read."""
    raw = read_small(folder / NAME)
    try:
        return None if raw is None else _note.decode(raw)
    except msgspec.DecodeError:
        return None


def save_note(files: DiskFiles, folder: Path, note: Note) -> None:
    """Note where the clock is; where the disk refuses, the older note serves."""
    with suppress(OSError):
        write_small(files, folder / NAME, msgspec.msgpack.encode(note), note.stamp)


class LogClock:
    """The log's clock.

    Args:
        boottime: CLOCK_BOOTTIME.
        wall: Unix seconds.
        synchronised: Whether the wall clock is.
        boot: The word of this boot; empty where there is none.

    Attributes:
        notices: What is wrong with the wall clock, for the operator; None where nothing is.
    """

    __slots__ = ("_boot", "_boottime", "_doubts", "_offset", "_synchronised", "_wall", "notices")

    def __init__(
        self,
        boottime: Callable[[], float],
        wall: Callable[[], float],
        synchronised: Callable[[], bool],
        boot: str,
    ) -> None:
        self._boottime = boottime
        self._wall = wall
        self._synchronised = synchronised
        self._boot = boot
        self._offset = -boottime()
        self._doubts: tuple[Doubt, ...] = ()
        self.notices: OperatorNotice | None = None

    def resume(self, stamp: float, wall: float | None, note: Note | None) -> None:
        """Go on from where the clock was.

        Args:
            stamp: The log's clock at its last frame.
            wall: Unix seconds then; None where there is no frame.
            note: Where it was last noted to be.
        """
        now = self._boottime()
        if note is not None:
            self._doubts = note.doubts
            if note.boot and note.boot == self._boot and now + note.offset >= note.stamp:
                self._offset = max(note.offset, stamp - now)
                return
            if note.stamp >= stamp or wall is None:
                stamp, wall = note.stamp, note.wall
        passed = self._passed(wall)
        if passed > 0.0:
            was_right = note is not None and note.synchronised
            if not (was_right and self._synchronised()):
                doubt = Doubt(stamp, passed, wall if was_right else None)
                self._doubts = _bounded((*self._doubts, doubt))
        self._offset = stamp + passed - now

    def _passed(self, before: float | None) -> float:
        """Return how long the host was off by the wall clock; 0 where that can't be right."""
        if before is None:
            return 0.0
        wall = self._wall()
        if wall < before or not is_plausible(wall) or not is_plausible(before):
            self.notices = OperatorNotice(
                "warn",
                "log.clock-doubtful",
                f"this host's clock shows {clock_words(wall)}, and showed {clock_words(before)}"
                " when linkd last ran: the time between does not count for the ttl of records;"
                " set the clock right",
            )
            return 0.0
        return wall - before

    def follow(self, stamp: float) -> None:
        """Go on from `stamp` at least: another instance's clock is ahead."""
        self._offset = max(self._offset, stamp - self._boottime())

    def now(self) -> float:
        """Return the log's clock."""
        return self._boottime() + self._offset

    def ago(self, stamp: float, seconds: float) -> float:
        """Return what the log's clock was so many seconds before `stamp`, doubtful ones left out.

        What has an older stamp has been kept for longer than that for certain.
        """
        for doubt in reversed(self._doubts):
            if doubt.at >= stamp:
                continue
            since = max(0.0, stamp - doubt.at - doubt.seconds)
            if since >= seconds:
                break
            seconds -= since
            stamp = doubt.at
        return stamp - seconds

    def note(self) -> Note:
        """Return where the clock is now; the last boot's doubt goes if the wall clock agrees now.

        It is set right some time after the boot only.
        """
        stamp, wall, right = self.now(), self._wall(), self._synchronised()
        last = self._doubts[-1] if self._doubts else None
        if (
            right
            and last is not None
            and last.wall is not None
            and abs((wall - last.wall) - (stamp - last.at)) <= AGREES_SECONDS
        ):
            self._doubts = self._doubts[:-1]
        return Note(self._boot, self._offset, stamp, wall, right, self._doubts)


def _bounded(doubts: tuple[Doubt, ...]) -> tuple[Doubt, ...]:
    """Return not too many doubts: the two oldest become one that spans both."""
    if len(doubts) <= _MOST_DOUBTS:
        return doubts
    first, second = doubts[:2]
    return (Doubt(first.at, second.at + second.seconds - first.at), *doubts[2:])
