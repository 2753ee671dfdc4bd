"""Who reads this node's log here: subscriptions, and named consumers with their durable cursors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from linkd.api.port import Sink, Start
from linkd.clock import Clock, wall
from linkd.config import Config
from linkd.core.batch import Batch
from linkd.core.channels import Patterns
from linkd.errors import PublishError
from linkd.log.engine import Consumer, CursorStore, Log
from linkd.node.follow import Follower
from linkd.status import ConsumerStatus


class Around(Protocol):
    """What readers need of their node."""

    config: Config
    clock: Clock

    def tell(self, level: str, event: str, **fields: str | int | float | None) -> None:
        """Say something in the log."""

    def count(self, what: str, peer: str, channel: str, records: int) -> None:
        """Count records that were refused, expired, dropped or lost."""

    def routes_changed(self) -> None:
        """Somebody wants something else now."""


class Readers:
    """All followers of the log, and the named consumers among them.

    Args:
        around: The node.
        log: Its log.
        store: Where the consumers' cursors lie.
    """

    def __init__(self, around: Around, log: Log, store: CursorStore) -> None:
        self._around = around
        self._log = log
        self._store = store
        self._followers: dict[Follower, None] = {}
        self._held: dict[str, Follower] = {}

    def subscribe(
        self, patterns: Sequence[str], start: Start, sink: Sink, consumer: str | None
    ) -> Follower:
        """Follow the log; see `linkd.api.port.NodePort.subscribe`.

        Raises:
            PublishError: There are as many named consumers as may be.
        """
        position = self._position(start)
        if consumer is not None:
            position = self._take_name(consumer, position, tuple(patterns))
        follower = Follower(self._log, Patterns(patterns), position, sink, self, consumer)
        self._followers[follower] = None
        if consumer is not None:
            self._held[consumer] = follower
        self._around.routes_changed()
        self._around.clock.callLater(0, follower.pump)
        return follower

    def _position(self, start: Start) -> int:
        """Return the offset that a start means now."""
        if start == "earliest":
            return self._log.first
        if start == "latest":
            return self._log.next
        return max(1, min(start, self._log.next))

    def _take_name(self, name: str, start: int, patterns: tuple[str, ...]) -> int:
        """Give a consumer's name to a new holder; return where it stands."""
        holder = self._held.pop(name, None)
        if holder is not None:
            self._around.tell("warn", "consumer.replaced", consumer=name)
            holder.end("replaced")
        known = self._store.consumers().get(name)
        if known is None:
            if len(self._store.consumers()) >= self._around.config.limits.consumers:
                raise PublishError(
                    f"there are {self._around.config.limits.consumers} named consumers already:"
                    " delete some (`linkd consumers --delete NAME`) or raise limits.consumers"
                )
            self._around.tell("info", "consumer.created", consumer=name, next=start)
        else:
            start = min(known.next, self._log.next)  # the log may have been put back
        self._store.set_consumer(Consumer(name, start, patterns, wall()))
        return start

    def offer(self, follower: Follower, batches: list[Batch], next: int) -> None:
        """Hand on what was committed."""
        follower.offer(batches, next)

    def interested(self, channel: str) -> tuple[Follower, ...]:
        """Return who wants `channel`."""
        return tuple(f for f in self._followers if f.patterns.match(channel))

    def tick(self) -> None:
        """Move followers on over what is not for them; remove consumers that stay away."""
        end = self._log.next
        for follower in list(self._followers):
            if follower.next < end:
                follower.offer([], end)

    def expire(self, now: float) -> None:
        """Remove named consumers that have been absent for too long; `now` is Unix seconds."""
        limit = self._around.config.log.consumer_max_idle
        for consumer in list(self._store.consumers().values()):
            idle = now - consumer.seen
            if consumer.name in self._held:
                self._store.set_consumer(msgspec.structs.replace(consumer, seen=now))
            elif idle > limit:
                self._store.remove_consumer(consumer.name)
                self._around.tell(
                    "error",
                    "consumer.removed",
                    consumer=consumer.name,
                    next=consumer.next,
                    idle_seconds=round(idle, 1),
                )

    def consumers(self) -> list[Consumer]:
        """Return the named consumers, by name."""
        return sorted(self._store.consumers().values(), key=lambda consumer: consumer.name)

    def statuses(self) -> list[ConsumerStatus]:
        """Return how far each named consumer is."""
        end = self._log.next
        return [
            ConsumerStatus(consumer.name, consumer.next, max(0, end - consumer.next))
            for consumer in self.consumers()
        ]

    def low_water(self) -> int:
        """Return the offset below which no named consumer wants anything."""
        return min((c.next for c in self._store.consumers().values()), default=self._log.next)

    def ack(self, name: str, next: int, done: Callable[[Exception | None], None]) -> None:
        """Set a consumer's cursor; it never moves back, nor beyond the log's end.

        Raises:
            KeyError: There is no such consumer.
        """
        known = self._store.consumers()[name]
        moved = max(known.next, min(next, self._log.next))
        self._store.set_consumer(msgspec.structs.replace(known, next=moved, seen=wall()), done)

    def forget(self, name: str, done: Callable[[Exception | None], None]) -> bool:
        """Remove a consumer; return whether there was one."""
        known = self._store.consumers().get(name)
        if known is None:
            return False
        holder = self._held.pop(name, None)
        if holder is not None:
            holder.end("deleted")
        self._store.remove_consumer(name, done)
        self._around.tell("info", "consumer.deleted", consumer=name, next=known.next)
        return True

    def volatile(self, batch: Batch) -> None:
        """Hand on records that have no offset."""
        for follower in self.interested(batch.channel):
            follower.volatile(batch)

    def stop(self) -> None:
        """End all subscriptions."""
        for follower in list(self._followers):
            follower.end("stopped")

    # -- what followers tell ------------------------------------------------------------------

    def acked(
        self, follower: Follower, next: int, done: Callable[[Exception | None], None]
    ) -> None:
        """A named consumer acknowledged through its subscription."""
        name = follower.consumer
        if name is None or self._held.get(name) is not follower:
            done(LookupError("this subscription holds no consumer's name"))
            return
        self.ack(name, next, done)

    def closed(self, follower: Follower) -> None:
        """A follower has ended."""
        self._followers.pop(follower, None)
        if follower.consumer is not None and self._held.get(follower.consumer) is follower:
            del self._held[follower.consumer]
        self._around.routes_changed()

    def expired(self, batch: Batch) -> None:
        """Records outlived their ttl before a reader came to them."""
        self._around.count("expired", "", batch.channel, batch.count)

    def gone(self, follower: Follower, first: int, next: int) -> None:
        """Offsets that a reader wanted are gone; of a named one it is said here too."""
        if follower.consumer is not None:
            self._around.tell(
                "error",
                "consumer.gap",
                consumer=follower.consumer,
                first=first,
                next=next,
                records=next - first,
                detail=f"offsets {first} to {next - 1}, which {follower.consumer} wanted, are gone",
            )
