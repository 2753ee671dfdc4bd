"""The bounds of a segment log, and what it touches of the world."""

from __future__ import annotations

from collections.abc import Callable
from random import Random, SystemRandom

import msgspec

from linkd import clock
from linkd.log.files import Files, RealFiles


class SegmentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of a log; the names are those of `linkd.config`."""

    max_bytes: int = 10_737_418_240
    max_age: float = 604_800.0
    min_free_bytes: int = 67_108_864
    when_full: str = "reject"
    segment_bytes: int = 67_108_864
    memory_bytes: int = 33_554_432
    id_window: float = 86_400.0
    max_ids: int = 1_000_000


class Edges(msgspec.Struct, frozen=True):
    """What a log touches of the world; tests put their own here.

    Args:
        files: The disk.
        rng: Where ids, epochs and seeds come from.
        monotonic: Seconds that only grow, those of a suspended host too.
        wall: Unix seconds.
        synchronised: Whether the wall clock is.
        boot: A word that is the same until the next boot; empty where there is none.
        at_turn_end: Makes a call once all that came together has been worked on, in the reactor's
            thread; None where nobody knows when that is.
        in_turn: Brings what a small commit has led to into the reactor's thread like the log's
            `post`, or makes the call at once in the thread that writes, as long as the reactor
            waits; None: as `post`.
    """

    files: Files = msgspec.field(default_factory=RealFiles)
    rng: Random = msgspec.field(default_factory=SystemRandom)
    monotonic: Callable[[], float] = clock.boottime
    wall: Callable[[], float] = clock.wall
    at_turn_end: Callable[[Callable[[], None]], object] | None = None
    in_turn: Callable[[Callable[[], None]], None] | None = None
    synchronised: Callable[[], bool] = clock.is_synchronised
    boot: str = ""


def refusal(settings: SegmentSettings, size: int, free: int) -> str | None:
    """Return why a log of `size` bytes, on a disk with `free` bytes left, refuses publishes."""
    if settings.when_full == "reject" and size >= settings.max_bytes * 9 // 10:
        return f"{size} bytes are 90 % of log.max_bytes ({settings.max_bytes})"
    if free < settings.min_free_bytes:
        least = settings.min_free_bytes
        return f"the disk has {free} bytes left, less than log.min_free_bytes ({least})"
    return None
