"""An API without a port: a fake node, a clock, sockets of lists; its mistakes are errors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from linkd.api.http import MemoryBudget
from linkd.api.server import ApiServer
from linkd.net.rate_limit import FairShare
from tests.support import fake_node
from tests.support.fake_node import FakeNode, make_config

_FOLDER = tempfile.TemporaryDirectory(prefix="linkd-fuzz-")


class Mistake(AssertionError):
    """linkd has logged a mistake of its own."""


class Numbers(Random):
    """The same numbers for each log: to seed a generator costs a fifth of a short input."""

    def __init__(self) -> None:
        super().__init__(7)
        self._last = 7

    def again(self, seed: int) -> Numbers:
        """Begin anew."""
        self._last = seed
        return self

    def getrandbits(self, k: int, /) -> int:
        """Return a number of so many bits."""
        found = 0
        for _ in range(0, k, 32):
            self._last = (self._last * 6_364_136_223_846_793_005 + 1) % 2**64
            found = found << 32 | self._last >> 32
        return found % 2**k


setattr(fake_node, "Random", Numbers().again)  # noqa: B010 - a name that it imports


class Bench:
    """The API, made anew with an empty log where an input has stored something.

    Args:
        api: What `[api]` says beyond the defaults.
    """

    def __init__(self, **api: Any) -> None:
        self._config = make_config(Path(_FOLDER.name), **api)
        self._logged: list[dict[str, Any]] = []
        self.clock = Clock()
        self.api: Any = None
        globalLogPublisher.addObserver(self._observe)
        self.fresh()

    def _observe(self, event: dict[str, Any]) -> None:
        if event.get("event") == "node.internal-error" or "log_failure" in event:
            self._logged.append(event)

    def fresh(self) -> None:
        """Begin with an empty log."""
        self.clock = Clock()
        self.node = FakeNode(self._config, self.clock)
        if self.api is None:
            self.api = ApiServer(self.node, self._config, self.clock)
            self._beginning = self.node.log.next
        api = self.api
        api.node, api.reactor = self.node, self.clock
        api.share, api.budget = FairShare(self.clock), MemoryBudget()
        api.streams.clear()
        api.producers._states.clear()
        api.keyring._tokens.clear()
        api.access_control._wrong._limiter._each.clear()

    def finish(self) -> None:
        """Let time pass, and raise Mistake where anything went wrong.

        Raises:
            Mistake: A bug or a failure was logged.
        """
        for _ in range(4):
            self.clock.advance(0.0)
        logged, self._logged = self._logged, []
        self.fresh()
        if logged:
            failure = logged[0].get("log_failure")
            text = logged[0].get("detail") or (failure and failure.getTraceback()) or logged[0]
            raise Mistake(str(text))


class Socket:
    """A WebSocket whose other end reads, or doesn't."""

    def __init__(self) -> None:
        self.paused = False
        self.open = True
        self.sent: list[tuple[bytes, bool]] = []
        self.code = 0
        self.is_stuck = False
        self.websockets = SimpleNamespace(return_spread=lambda: 0.0)

    def has_room(self, size: int, overtakes: bool = False) -> bool:
        """Return whether it reads."""
        return not self.paused

    def send(self, payload: bytes, binary: bool, more: tuple[bytes, ...] = ()) -> None:
        """Take a message."""
        if self.open:
            self.sent.append((payload + b"".join(more), binary))

    def unstick(self) -> None:
        """Go on: there is room for publishes again."""

    def confirm(self, call: Callable[[], None]) -> None:
        """Have received everything."""
        call()

    def close(self, code: int, reason: str) -> None:
        """End."""
        self.open = False
        self.code = code
        assert len(reason) < 100_000
