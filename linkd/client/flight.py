"""Publishes under way: numbered, kept until they are settled, sent again after a reconnect."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from linkd.client.bodies import MARGIN_BYTES, pack
from linkd.client.errors import Refused
from linkd.core.batch import HELD_BYTES, MAX_BATCH_BYTES, Record, headers_bytes
from linkd.core.stream import Publish, Published, PublishedRun, PublishFailed
from linkd.errors import BadRecord, BodyTooLarge, ChannelRefused, LinkdError, LogFull

Settled = Callable[[Published | LinkdError], None]
"""Called once for each publish: it is on disk, or nothing of it is and this is why."""

DEFAULT_BYTES: Final = 8 * 1024 * 1024

_ERRORS: Final[dict[str, Callable[[str], LinkdError]]] = {
    "log-full": LogFull,
    "channel-refused": ChannelRefused,
    "body-too-large": BodyTooLarge,
    "malformed": BadRecord,
}


def _held(publish: Publish) -> int:
    """Return the bytes for which a publish counts."""
    return len(publish.records) + HELD_BYTES


class Flight:
    """The publishes of one producer, in order.

    Attributes:
        bytes: Bytes of records that are not settled, sent or not; each publish counts for
            HELD_BYTES more.

    Args:
        max_bytes: So many bytes may be under way at the daemon; one publish always may.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.bytes = 0
        self.max_bytes = max_bytes
        self._sequence = 0
        self._open: dict[int, tuple[Publish, Settled]] = {}
        self._unsent: deque[Publish] = deque()
        self._sent_bytes = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(
        self,
        channel: str,
        count: int,
        records: bytes,
        settled: Settled,
        ttl: float | None = None,
        ids: tuple[str, ...] = (),
    ) -> None:
        """Number one publish and queue it."""
        self._sequence += 1
        publish = Publish(self._sequence, channel, count, records, ttl, ids)
        self._open[self._sequence] = (publish, settled)
        self._unsent.append(publish)
        self.bytes += _held(publish)

    def next_to_send(self) -> list[Publish]:
        """Return what may be sent now, in order; it then counts as sent."""
        ready: list[Publish] = []
        while self._unsent:
            size = _held(self._unsent[0])
            if self._sent_bytes and self._sent_bytes + size > self.max_bytes:
                break
            self._sent_bytes += size
            ready.append(self._unsent.popleft())
        return ready

    def lost(self) -> None:
        """Have all that is not settled sent again, in order, under the same numbers."""
        self._unsent = deque(publish for publish, _ in self._open.values())
        self._sent_bytes = 0

    def published(self, frame: Published) -> None:
        """Settle one publish; a number that is not open is ignored."""
        self._settle(frame.sequence, frame)

    def run(self, frame: PublishedRun) -> None:
        """Settle a run of publishes of one record each."""
        for index in range(frame.count):
            self._settle(
                frame.sequence + index,
                Published(frame.sequence + index, frame.offset + index, 1),
            )

    def failed(self, frame: PublishFailed) -> None:
        """Settle one publish with the daemon's refusal.

        What a daemon that stops refuses stays, for the next one.
        """
        if frame.error == "unavailable":
            return
        self._settle(frame.sequence, refusal(frame.error, frame.message))

    def abandon(self, error: LinkdError) -> None:
        """Settle all of them with `error`: nobody knows whether they were stored."""
        self._unsent.clear()
        for sequence in list(self._open):
            self._settle(sequence, error)

    def _settle(self, sequence: int, outcome: Published | LinkdError) -> None:
        entry = self._open.pop(sequence, None)
        if entry is None:
            return
        publish, settled = entry
        size = _held(publish)
        self.bytes -= size
        self._sent_bytes = max(0, self._sent_bytes - size)
        settled(outcome)


class Gathered(msgspec.Struct):
    """Single records of one channel that wait to become one publish."""

    records: list[Record]
    settled: list[Callable[[int | LinkdError], None]]
    bytes: int = 0


class Gatherer:
    """Single publishes of one turn of the loop, made into batches: one channel and ttl each."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._waiting: dict[tuple[str, float | None], Gathered] = {}

    def add(
        self,
        channel: str,
        record: Record,
        ttl: float | None,
        settled: Callable[[int | LinkdError], None],
    ) -> bool:
        """Take one record; `settled` gets its offset, or why it isn't stored.

        Returns:
            Whether it is the first since the last `seal`, so that the caller plans one.
        """
        first = not self._waiting
        key = (channel, ttl)
        size = len(record.body) + 4 * len(record.type) + len(record.content_type) + MARGIN_BYTES
        if record.headers:
            size += headers_bytes(record.headers)
        held = self._waiting.get(key)
        if held is not None and held.bytes + size > MAX_BATCH_BYTES - 64:
            self._close(key, self._waiting.pop(key))
            held = None
        if held is None:
            held = self._waiting[key] = Gathered([], [])
        held.records.append(record)
        held.settled.append(settled)
        held.bytes += size
        return first

    def seal(self) -> None:
        """Hand all that waits to the flight."""
        waiting, self._waiting = self._waiting, {}
        for key, held in waiting.items():
            self._close(key, held)

    def _close(self, key: tuple[str, float | None], held: Gathered) -> None:
        def settled(outcome: Published | LinkdError) -> None:
            if isinstance(outcome, LinkdError):
                for each in held.settled:
                    each(outcome)
            else:
                for index, each in enumerate(held.settled):
                    each(outcome.offset + index if outcome.offset else 0)

        channel, ttl = key
        self._flight.add(channel, len(held.records), pack(held.records), settled, ttl)


def refusal(error: str, message: str) -> LinkdError:
    """Return the exception for one word of docs/api.md's errors."""
    kind = _ERRORS.get(error)
    return kind(message) if kind is not None else Refused(error, message)
