"""Connections that were refused: strangers, second hosts with a peer's name, wrong names."""

from __future__ import annotations

import msgspec

from linkd.net.limits import origin
from linkd.status import RefusedConnection

MOST = 32
"""Sources that are kept: the newest. Anyone who reaches the port can make one."""

KEPT_SECONDS = 3600.0


class _Refusal(msgspec.Struct):
    """What was refused last from one source, and how often."""

    claimed: str | None
    address: str
    reason: str
    detail: str
    count: int
    at: float


class Strangers:
    """Who was refused lately, one entry for each address and reason; an IPv6 /64 is one address.

    A listener's status shows them: a peer that waits may be one that calls itself something else.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], _Refusal] = {}

    def refused(
        self, claimed: str | None, address: str, reason: str, detail: str, now: float
    ) -> None:
        """Note a refusal.

        Args:
            claimed: The name that the other end gave, or None.
            address: Its address and port.
            reason: One word.
            detail: One sentence.
            now: Monotonic seconds.
        """
        key = (origin(address.rpartition(":")[0].strip("[]")), reason)
        before = self._seen.pop(key, None)
        count = 1 if before is None or now - before.at > KEPT_SECONDS else before.count + 1
        self._seen[key] = _Refusal(claimed, address, reason, detail, count, now)
        if len(self._seen) > MOST:
            # A second host has proved a peer's name: strangers must not push it out.
            oldest = next((each for each in self._seen if each[1] != "duplicate"), None)
            self._seen.pop(oldest or next(iter(self._seen)))

    def recent(self, now: float) -> list[RefusedConnection]:
        """Return those of the last hour, the newest first."""
        for key in [key for key, each in self._seen.items() if now - each.at > KEPT_SECONDS]:
            del self._seen[key]
        return [
            RefusedConnection(
                each.claimed, each.address, each.reason, each.detail, each.count, now - each.at
            )
            for each in reversed(self._seen.values())
        ]
