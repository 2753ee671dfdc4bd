"""Descriptors: links and files come first; the API and newcomers share what is left of the limit.

A process that has none left can neither accept nor dial nor open a file. Twisted then accepts and
closes each newcomer at once, which looks like a reset from outside and logs nothing that an
operator sees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, MutableMapping
from typing import Final, NamedTuple

from linkd.events import emit

LEAST: Final = 4
"""So many connections the API and newcomers may have each, however low the limit is."""

_WARNING: Final = "descriptors"


class Shares(NamedTuple):
    """How many connections there may be.

    Attributes:
        api: Of the API, its socket included.
        newcomers: At the listener, without a hello.
    """

    api: int
    newcomers: int


class Descriptors:
    """Divide the descriptors of this process, and watch how many are left.

    Args:
        limit: As many may be open, RLIMIT_NOFILE.
        warnings: The node's standing warnings.
        lowest_free: Returns the lowest number that is free; raises OSError where none is.

    Attributes:
        shortages: How often descriptors have run short since the start.
    """

    def __init__(
        self,
        limit: int,
        warnings: MutableMapping[str, str],
        lowest_free: Callable[[], int] | None = None,
    ) -> None:
        self.limit = limit
        self.shortages = 0
        self._warnings = warnings
        self._lowest_free = lowest_free or _lowest_free
        self._margin = max(8, min(64, limit // 16))
        self._is_short = False
        self._used = 0

    def started(self) -> None:
        """Count what the daemon itself has open: all sockets listen, no connection is made yet."""
        try:
            self._used = self._lowest_free()
        except OSError:
            self._used = self.limit

    def divide(self, peers: int) -> Shares:
        """Return the shares where so many peers have a link each.

        Half of what the daemon and its links leave is the API's and a quarter the newcomers', so
        that a quarter stays for redials, segments and look-ups whatever others do.
        """
        free = max(0, self.limit - self._used - peers)
        return Shares(max(LEAST, free // 2), max(LEAST, free // 4))

    def look(self) -> None:
        """Look how many are left; called once a second.

        The kernel gives the lowest free number: where that is near the limit, nearly all below it
        are in use.
        """
        try:
            left, reason = self.limit - self._lowest_free(), "limit"
        except OSError as error:
            left, reason = 0, error.strerror or "limit"
        if left <= self._margin and not self._is_short:
            self._is_short = True
            self.shortages += 1
            detail = f"fewer than {self._margin} of {self.limit} descriptors are left: {reason}"
            self._warnings[_WARNING] = detail
            emit("node.descriptors-short", limit=self.limit, detail=detail)
        elif left > 2 * self._margin and self._is_short:
            self._is_short = False
            self._warnings.pop(_WARNING, None)
            emit("node.descriptors-enough", limit=self.limit)


def _lowest_free() -> int:
    """Return the lowest free descriptor.

    Raises:
        OSError: There is none, in this process or on this host.
    """
    free = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.close(free)
    return free
