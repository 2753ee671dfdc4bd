"""The last hour of what the dashboard plots of each link, in bounded memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from linkd.core.shown import rfc3339
from linkd.status import LinkHistory

if TYPE_CHECKING:
    from linkd.node.driver import LinkDriver

STEP_SECONDS: Final = 5.0
STEPS: Final = 720
"""One hour."""

MOST_LINKS: Final = 1000
"""Links whose history is kept, the first ones configured: 14 KB each, 14 MB in all."""

NEW_LINKS: Final = 50
"""Links whose rings are made in one second: a thousand at once take 90 ms."""

_SERIES: Final = ("rtt", "silence", "backlog", "sent", "received")


class _Rings:
    """One link's series: a ring of steps each; what is not known is not a number."""

    __slots__ = ("counted", "newest", "rings", "silence")

    def __init__(self, step: int) -> None:
        self.rings = {name: array("f", [math.nan]) * STEPS for name in _SERIES}
        self.newest = step - 1
        self.silence = math.nan
        self.counted: tuple[int, int] | None = None

    def put(self, step: int, values: dict[str, float]) -> None:
        """Keep a step's values; steps that were missed, as by a frozen process, are not known."""
        for missed in range(max(self.newest, step - STEPS) + 1, step):
            for ring in self.rings.values():
                ring[missed % STEPS] = math.nan
        for name, value in values.items():
            self.rings[name][step % STEPS] = value
        self.newest = step

    def listed(self, name: str) -> list[float | None]:
        """Return a series, oldest first."""
        ring, begin = self.rings[name], (self.newest + 1) % STEPS
        in_order = ring[begin:] + ring[:begin]
        return [None if math.isnan(value) else round(value, 5) for value in in_order]


class History:
    """The series of all links, sampled by `second`; nothing is kept over a restart."""

    def __init__(self) -> None:
        self._links: dict[str, _Rings] = {}

    def second(self, drivers: Iterable[LinkDriver], now: float) -> None:
        """Look at the links; call it once a second.

        Silence is kept as its highest value within a step: one sample a step would always meet the
        same moment between two pings.

        Args:
            drivers: All links.
            now: Monotonic seconds.
        """
        seen: set[str] = set()
        made = 0
        for driver in drivers:
            if len(seen) == MOST_LINKS:
                break
            seen.add(driver.peer)
            # A fifth of the links ends its step in each second, so that no second has all of them.
            step = int((now + (len(seen) - 1) % STEP_SECONDS) // STEP_SECONDS)
            rings = self._links.get(driver.peer)
            if rings is None:
                if made == NEW_LINKS:
                    continue
                made += 1
                rings = self._links[driver.peer] = _Rings(step)
            connection = driver.connection
            if connection is not None:
                silence = connection.silence_seconds()
                # Comparing with what is not a number is false.
                rings.silence = max(silence, rings.silence)
            if step > rings.newest:
                rings.put(step, _values(driver, rings))
                rings.silence = math.nan
        if len(self._links) > len(seen) or not made:
            for peer in [peer for peer in self._links if peer not in seen]:
                del self._links[peer]

    def of(self, peer: str, stamp: float) -> LinkHistory:
        """Return the last hour of one link; empty where nothing is kept.

        Args:
            peer: Whose link.
            stamp: Unix seconds now, the time of the newest step.
        """
        rings = self._links.get(peer)
        if rings is None:
            return LinkHistory(peer, STEP_SECONDS, rfc3339(stamp), [], [], [], [], [])
        return LinkHistory(
            peer, STEP_SECONDS, rfc3339(stamp), *(rings.listed(name) for name in _SERIES)
        )


def _values(driver: LinkDriver, rings: _Rings) -> dict[str, float]:
    """Return what is true of a link now; counts are those since the step before."""
    connection = driver.connection
    session = driver.carrier.session
    counts = session.outbound.sent_records, session.inbound.received_records
    before, rings.counted = rings.counted, counts
    known = before is not None and counts[0] >= before[0] and counts[1] >= before[1]
    rtt = None if connection is None else connection.rtt_seconds
    return {
        "rtt": math.nan if rtt is None else rtt,
        "silence": rings.silence,
        "backlog": session.outbound.owed_records,
        "sent": counts[0] - before[0] if before is not None and known else math.nan,
        "received": counts[1] - before[1] if before is not None and known else math.nan,
    }
