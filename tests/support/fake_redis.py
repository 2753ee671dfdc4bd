"""A bus in memory between the instances of a node, which a test can cut, record and forge."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from linkd.log import CursorStore
from linkd.node.bus import Bus
from linkd.protocol.peer import Volatile


class FakeRedis:
    """Carries each message to all that are connected, the sender included.

    Args:
        clock: Time of all; each message takes a call of it.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ends: list[FakeEnd] = []
        self.sent: list[bytes] = []
        self.open = True

    def deliver(self, message: bytes) -> None:
        """Bring a message to all, whoever it is from."""
        self.sent.append(message)
        for end in self.ends:
            if end.open:
                self.clock.callLater(0, end.bus.arrived, message)


class FakeEnd:
    """One instance's connection.

    Args:
        redis: What carries its messages.
        bus: The instance's end.
    """

    def __init__(self, redis: FakeRedis, bus: Bus) -> None:
        self.bus = bus
        self.open = False
        self.room = True
        self._redis = redis
        redis.ends.append(self)

    def start(self) -> None:
        self.open = True

    def send(self, body: bytes) -> bool:
        if self.room and self.open and self._redis.open:
            self._redis.deliver(self.bus.seal(body))
        return self.room

    def stop(self) -> None:
        self.open = False


class SharedStores:
    """The stores of several instances, that see what the others share at once."""

    def __init__(self) -> None:
        self.stores: list[CursorStore] = []

    def store(self) -> CursorStore:
        """Return another instance's."""
        shared = self

        class Store(CursorStore):
            def share(self, kind: str, key: str, value: bytes | None, done: Any = None) -> None:
                super().share(kind, key, value, done)
                for other in shared.stores:
                    if other is not self:
                        other._set_shared(kind, key, value)
                        for call in other._watchers.get(kind, ()):
                            call(key, value)

        one = Store()
        for other in self.stores[:1]:
            for kind, rows in other._rows.items():
                for key, value in rows.items():
                    one._set_shared(kind, key, value)
        self.stores.append(one)
        return one


class Instance:
    """One instance on the bus, and what it got.

    Args:
        redis: The bus.
        stores: The database.
        log: The log's id.
    """

    def __init__(self, redis: FakeRedis, stores: SharedStores, log: str = "log-1") -> None:
        self.bus = Bus(
            "hub", log, stores.store(), redis.clock, lambda call: redis.clock.callLater(0, call)
        )
        self.end = FakeEnd(redis, self.bus)
        self.got: list[tuple[Volatile, str]] = []
        self.sisters: list[tuple[str, bool]] = []
        self.woken = 0
        self.warnings: list[str | None] = []
        self.bus.on_volatile = lambda message, word: self.got.append((message, word))
        self.bus.on_sister = [lambda word, is_up: self.sisters.append((word, is_up))]
        self.bus.on_wake = self._wake
        self.bus.warn = self.warnings.append

    def _wake(self) -> None:
        self.woken += 1

    def start(self) -> None:
        """Take part."""
        self.bus.start(self.end)

    @property
    def word(self) -> str:
        """How the others call it."""
        return f"/{self.bus.run}"
