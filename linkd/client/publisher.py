"""Publishes in flight: numbered, kept until they settle, resent after a reconnect."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from linkd.client.errors import OffsetUnknown, Refused
from linkd.errors import BadRecord, BodyTooLarge, ChannelRefused, LinkdError, LogFull
from linkd.protocol.client import (
    Publish,
    Published,
    PublishedRun,
    PublishFailed,
    encode_frame,
    renumbered,
)
from linkd.protocol.records import BATCH_OVERHEAD_BYTES, MAX_BATCH_BYTES

Settled = Callable[[Published | LinkdError], None]
"""Called once for each publish: it is on disk, or why it is not, or why nobody knows where."""

DEFAULT_BYTES: Final = 8 * 1024 * 1024

_ERRORS: Final[dict[str, Callable[[str], LinkdError]]] = {
    "log-full": LogFull,
    "channel-refused": ChannelRefused,
    "body-too-large": BodyTooLarge,
    "malformed": BadRecord,
}


class PublishTerms(msgspec.Struct, frozen=True):
    """The options of a publish: time to live, ids for deduplication, a peer to wait for."""

    ttl: float | None = None
    ids: tuple[str, ...] = ()
    wait: str = ""


NO_TERMS: Final = PublishTerms()


class _Publish(msgspec.Struct, gc=False):
    """One publish in flight: number, encoding, and the bytes that it counts for."""

    sequence: int
    encoded: bytes
    size: int
    settled: Settled


class InFlightPublishes:
    """The publishes of one producer, in order.

    Each is numbered and encoded when it is added, so that sending cannot fail because of its
    content.

    Attributes:
        bytes: Bytes of records that are not settled, sent or not; each publish counts for
            HELD_BYTES more.

    Args:
        max_bytes: The most bytes in flight at the daemon; one publish is always allowed.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.bytes = 0
        self.max_bytes = max_bytes
        self._sequence = 0
        self._highest_sent = 0
        self._sent: dict[int, _Publish] = {}
        self._unsent: deque[_Publish] = deque()
        self._sent_bytes = 0

    def __len__(self) -> int:
        return len(self._sent) + len(self._new())

    def add(
        self,
        channel: str,
        count: int,
        records: bytes,
        settled: Settled,
        terms: PublishTerms = NO_TERMS,
    ) -> None:
        """Encode one publish and queue it."""
        number = self._sequence + 1
        encoded = encode_frame(
            Publish(number, channel, count, records, terms.ttl, terms.ids, terms.wait)
        )
        size = len(records) + BATCH_OVERHEAD_BYTES
        self._unsent.append(_Publish(number, encoded, size, settled))
        self._sequence = number
        self.bytes += size

    def next_to_send(self) -> list[bytes]:
        """Return the frames that may be sent now, in order, and mark them as sent."""
        ready: list[bytes] = []
        unsent, sent, highest = self._unsent, self._sent, self._highest_sent
        while unsent:
            publish = unsent[0]
            if self._sent_bytes and self._sent_bytes + publish.size > self.max_bytes:
                break
            self._sent_bytes += publish.size
            unsent.popleft()
            sent[publish.sequence] = publish
            highest = max(highest, publish.sequence)
            ready.append(publish.encoded)
        self._highest_sent = highest
        return ready

    def _new(self) -> list[_Publish]:
        """Return the frames that were never sent."""
        return [publish for publish in self._unsent if publish.sequence not in self._sent]

    def lost(self) -> None:
        """Send all unsettled publishes again, in order, under the same numbers."""
        self._unsent = deque([*self._sent.values(), *self._new()])
        self._sent_bytes = 0

    def begin_above(self, highest: int) -> None:
        """Number what follows above the highest number that the daemon has of this producer.

        If that is above all numbers sent, another client used the name meanwhile: then no answer
        proves whether a publish of ours is stored, or only its number.
        """
        if highest <= self._highest_sent:
            return
        self._unsent = deque(self._new())
        for number, publish in enumerate(self._unsent, highest + 1):
            publish.encoded = renumbered(publish.encoded, number)
            publish.sequence = number
        self._highest_sent, self._sequence = highest, highest + len(self._unsent)
        for sequence in list(self._sent):
            message = "another client used the producer's name: this may be stored or not"
            self._settle(sequence, Refused("sequence-unproven", message))

    def published(self, frame: Published) -> None:
        """Settle one publish; an unknown number is ignored."""
        if frame.duplicate and not frame.offset:
            message = "it is stored, but the daemon no longer knows at which offset"
            self._settle(frame.sequence, OffsetUnknown(message))
        else:
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

        A publish refused by a stopping daemon is kept for the next one.
        """
        if frame.error == "unavailable":
            return
        self._settle(frame.sequence, refusal(frame.error, frame.message))

    def abandon(self, error: LinkdError) -> None:
        """Settle all of them with `error`: whether they were stored is unknown."""
        new = self._new()
        self._unsent.clear()
        for sequence in list(self._sent):
            self._settle(sequence, error)
        for publish in new:
            self.bytes -= publish.size
            publish.settled(error)

    def _settle(self, sequence: int, outcome: Published | LinkdError) -> None:
        publish = self._sent.pop(sequence, None)
        if publish is None:
            return
        self.bytes -= publish.size
        self._sent_bytes = max(0, self._sent_bytes - publish.size)
        publish.settled(outcome)


class _Gathered(msgspec.Struct):
    """Single records with the same channel and options that will become one publish."""

    terms: PublishTerms
    records: list[bytes]
    settled: list[Callable[[int | LinkdError], None]]
    bytes: int = 0


class Batcher:
    """Combines the single publishes of one loop iteration into batches, in order by channel."""

    def __init__(self, flight: InFlightPublishes) -> None:
        self._flight = flight
        self._waiting: dict[str, _Gathered] = {}

    def add(
        self,
        channel: str,
        record: bytes,
        terms: PublishTerms,
        settled: Callable[[int | LinkdError], None],
    ) -> None:
        """Add one encoded record; `settled` gets its offset, or the error."""
        held = self._waiting.get(channel)
        if held is not None and (
            held.terms != terms or terms.ids or held.bytes + len(record) > MAX_BATCH_BYTES - 64
        ):
            self._close(channel, held)
            held = None
        if held is None:
            held = self._waiting[channel] = _Gathered(terms, [], [])
        held.records.append(record)
        held.settled.append(settled)
        held.bytes += len(record)

    def seal(self) -> None:
        """Put all waiting records in flight."""
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            for channel, held in waiting.items():
                self._close(channel, held)

    def _close(self, channel: str, held: _Gathered) -> None:
        def settled(outcome: Published | LinkdError) -> None:
            if isinstance(outcome, LinkdError):
                for each in held.settled:
                    each(outcome)
            else:
                for index, each in enumerate(held.settled):
                    each(outcome.offset + index if outcome.offset else 0)

        records = b"".join(held.records)
        self._flight.add(channel, len(held.records), records, settled, held.terms)


def refusal(error: str, message: str) -> LinkdError:
    """Return the exception for an error code of docs/api.md."""
    kind = _ERRORS.get(error)
    return kind(message) if kind is not None else Refused(error, message)
