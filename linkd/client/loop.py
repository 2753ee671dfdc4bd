"""What the parts that both clients share need of an event loop; the edges provide it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol


class Loop(Protocol):
    """An event loop.

    Attributes:
        cancelled: What a coroutine that is cancelled is raised.
    """

    cancelled: type[BaseException]

    def bind(self) -> None:
        """Belong to what runs now."""

    def check(self) -> None:
        """Raise ClientError where the caller runs elsewhere than in this loop."""

    def time(self) -> float:
        """Return monotonic seconds."""

    def promise(self) -> tuple[Awaitable[Any], Callable[[Any], None]]:
        """Return what can be awaited once, and what settles it.

        A LinkdError is raised by the await, anything else returned. What is settled or cancelled
        already is left alone.
        """

    def soon(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call once this turn is over; return how to call it off."""

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call after so many seconds; return how to call it off, which may be too late."""

    def run(self, coroutine: Coroutine[Any, Any, None]) -> Callable[[], Awaitable[object]]:
        """Run a coroutine; return how to cancel it. Who awaits that goes on once it has ended."""

    def is_cancelled(self) -> bool:
        """Return whether the coroutine that runs is being cancelled itself.

        False where a cancellation only came out of what it awaits, or where nobody can know.
        """

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""

    def complain(self, said: str, error: Exception) -> None:
        """Log what nobody has asked to be told."""
