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


class Terms(msgspec.Struct, frozen=True):
    """What a publish asks for: seconds of life, ids against repeats, a peer to be waited for."""

    ttl: float | None = None
    ids: tuple[str, ...] = ()
    wait: str = ""


NO_TERMS: Final = Terms()


class _Publish(msgspec.Struct, gc=False):
    """One publish under way: its number, its encoding, the bytes for which it counts."""

    sequence: int
    encoded: bytes
    size: int
    settled: Settled


class InFlightPublishes:
    """The publishes of one producer, in order.

    Each is numbered and encoded by the call that adds it, so that sending cannot fail for what it
    contains.

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
        terms: Terms = NO_TERMS,
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
        """Return the frames that may be sent now, in order; they then count as sent."""
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
        """Return what was never sent."""
        return [publish for publish in self._unsent if publish.sequence not in self._sent]

    def lost(self) -> None:
        """Have all that is not settled sent again, in order, under the same numbers."""
        self._unsent = deque([*self._sent.values(), *self._new()])
        self._sent_bytes = 0

    def begin_above(self, highest: int) -> None:
        """Number what follows above the highest number that the daemon has of this producer.

        Where that is above all that were sent, another client used the name meanwhile: then no
        answer tells whether a publish of ours is stored, or only its number is.
        """
        if highest <= self._highest_sent:
            return
        self._unsent = deque(self._new())
        for number, publish in enumerate(self._unsent, highest + 1):
            publish.encoded = renumbered(publish.encoded, number)
            publish.sequence = number
        self._highest_sent, self._sequence = highest, highest + len(self._unsent)
        for sequence in list(self._sent):
            said = "another client used the producer's name: this may be stored or not"
            self._settle(sequence, Refused("sequence-unproven", said))

    def published(self, frame: Published) -> None:
        """Settle one publish; a number that is not open is ignored."""
        if frame.duplicate and not frame.offset:
            said = "it is stored, but the daemon no longer knows at which offset"
            self._settle(frame.sequence, OffsetUnknown(said))
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

        What a daemon that stops refuses stays, for the next one.
        """
        if frame.error == "unavailable":
            return
        self._settle(frame.sequence, refusal(frame.error, frame.message))

    def abandon(self, error: LinkdError) -> None:
        """Settle all of them with `error`: nobody knows whether they were stored."""
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
    """Single records of one channel and the same terms that wait to become one publish."""

    terms: Terms
    records: list[bytes]
    settled: list[Callable[[int | LinkdError], None]]
    bytes: int = 0


class Batcher:
    """Single publishes of one turn of the loop, made into batches, in order within each channel."""

    def __init__(self, flight: InFlightPublishes) -> None:
        self._flight = flight
        self._waiting: dict[str, _Gathered] = {}

    def add(
        self,
        channel: str,
        record: bytes,
        terms: Terms,
        settled: Callable[[int | LinkdError], None],
    ) -> bool:
        """Take one encoded record; `settled` gets its offset, or why it isn't stored.

        Returns:
            Whether it is the first since the last `seal`, so that the caller plans one.
        """
        first = not self._waiting
        held = self._waiting.get(channel)
        if held is not None and (
            held.terms != terms or held.bytes + len(record) > MAX_BATCH_BYTES - 64
        ):
            self._close(channel, held)
            held = None
        if held is None:
            held = self._waiting[channel] = _Gathered(terms, [], [])
        held.records.append(record)
        held.settled.append(settled)
        held.bytes += len(record)
        return first

    def seal(self) -> None:
        """Hand all that waits to the flight."""
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
    """Return the exception for one word of docs/api.md's errors."""
    kind = _ERRORS.get(error)
    return kind(message) if kind is not None else Refused(error, message)
