"""Work for many clients that is done in slices, between the other work of the reactor."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from twisted.internet.base import ReactorBase

from linkd.net.rate_limit import FairShare


class Jobs:
    """Run work for many clients, one job after the other, one slice per iteration of the reactor.

    The messages of a slice are written to their sockets in the same iteration, which takes as long
    again.

    Args:
        share: Gives it its slices.
        clock: The reactor.

    Attributes:
        waiting: The jobs, the current one first.
    """

    def __init__(self, share: FairShare, clock: ReactorBase) -> None:
        self.waiting: deque[Iterator[None]] = deque()
        self._share = share
        self._clock = clock
        self._is_queued = False

    def add(self, job: Iterator[None]) -> None:
        """Append a job, which yields where it can be interrupted."""
        self.waiting.append(job)
        if not self._is_queued:
            self._is_queued = True
            self._share.queue(self._work)

    def _work(self) -> None:
        jobs, until = self.waiting, self._share.end()
        try:
            while jobs:
                if next(jobs[0], self) is self:
                    jobs.popleft()
                if self._share.seconds() >= until:
                    break
        finally:
            self._is_queued = bool(jobs)
            if jobs:
                self._clock.callLater(0, self._share.queue, self._work)
