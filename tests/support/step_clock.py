"""A clock of the tests that tells iterations of the event loop apart."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.task import Clock


class StepClock(Clock):
    """A reactor of one iteration an `advance`: what is called for now comes in the next one."""

    def __init__(self) -> None:
        super().__init__()
        self._at_end: list[Callable[[], None]] = []

    def call_at_iteration_end(self, call: Callable[[], None]) -> None:
        """Have `call` made where the iteration ends."""
        self._at_end.append(call)

    def advance(self, amount: float) -> None:
        """End the iteration, let time pass, make the calls that were due when it began."""
        calls, self._at_end = self._at_end, []
        for call in calls:
            call()
        self.rightNow += amount
        for due in [one for one in self.calls if one.getTime() <= self.rightNow]:
            if due.active():
                self.calls.remove(due)
                due.called = 1
                due.func(*due.args, **due.kw)
