"""Publishes of one stream client: validated, batched where possible, settled in order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from linkd.api.errors import ApiError, known_peer, refusal_of
from linkd.clock import wall
from linkd.config import Config
from linkd.errors import BadRecord, LinkdError
from linkd.log.base import Log
from linkd.log.interface import Appended, OnDurable
from linkd.node.node import Node
from linkd.protocol import client
from linkd.protocol.channels import Patterns
from linkd.protocol.records import (
    BATCH_OVERHEAD_BYTES,
    MAX_BATCH_BYTES,
    MAX_TTL_SECONDS,
    NewRecords,
    Producer,
    check_records,
    decode_records,
)

if TYPE_CHECKING:
    from linkd.api.stream import StreamSession

_PASSING = frozenset(("log-full", "log-unavailable", "too-many"))
"""Refusals of publishes that are to be repeated later, under their numbers."""

MAX_RECORDS = 65_536
"""Records of one publish: a reader decodes all of a batch at once."""

MAX_RUN = 2048
"""Publishes that share an append: where one of them is malformed, each is looked at for itself."""

MAX_PRODUCERS = 10_000
MAX_CHANNELS = 10_000


def check_wait(node: Node, peer: str, channel: str) -> None:
    """Raise ApiError unless one can wait until `peer` has what is published on `channel`."""
    with known_peer(peer):
        sends = node.sends(peer, channel)
    if not sends:
        raise ApiError("not-sent", f"{peer} does not get {channel}: see its `send` and `receive`")
    if volatile(node.config, channel):
        raise ApiError("not-sent", f"{channel} is volatile: no peer acknowledges it")


def volatile(config: Config, channel: str) -> bool:
    """Return whether messages on `channel` are sent without being stored."""
    for rule in config.channels:
        if Patterns((rule.name,)).match(channel):
            return rule.delivery == "volatile"
    return False


class ProducerState:
    """The state of a producer in this run of the daemon.

    Args:
        numbered: The name under which the log has its numbers: each run of it has its own.
        top: The highest number that is stored.

    Attributes:
        holder: The client that publishes under its name.
        top: The highest number that is stored or was handed to the log: publishes above it may
            share a batch.
        under_way: The numbers in each append that the log has not settled: first to last.
    """

    __slots__ = ("holder", "numbered", "top", "under_way")

    def __init__(self, numbered: str, top: int) -> None:
        self.numbered = numbered
        self.holder: StreamPublisher | None = None
        self.top = top
        self.under_way: dict[int, int] = {}


class ActiveProducers:
    """All producers of this run, each one of its owner's; the longest unused go first.

    Args:
        log: The log with their numbers.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._states: OrderedDict[tuple[str, str], ProducerState] = OrderedDict()

    def claim(self, owner: str, name: str, run: str, holder: StreamPublisher) -> ProducerState:
        """Give a name to a holder; the one before is ended, of whichever run it is."""
        key, numbered = (owner, name), f"{name}/{run}" if run else name
        before = self._states.get(key)
        if before is not None and before.numbered == numbered:
            state = before
        else:
            state = ProducerState(numbered, self._log.state.producers.highest(owner, numbered))
        self._states[key] = state
        self._states.move_to_end(key)
        holder_before = before.holder if before is not None else None
        state.holder = holder
        if holder_before is not None and holder_before is not holder:
            holder_before.displaced()
        if len(self._states) > MAX_PRODUCERS:
            for old, other in list(self._states.items())[:100]:
                if other.holder is None and not other.under_way:
                    del self._states[old]
        return state


class StreamPublisher:
    """The publishes of one client.

    Adjacent publishes on one channel become one append: that is what makes single records cheap.
    Those of a named producer only where none of them is in the log already, and without a hole
    between their numbers: the log keeps each number as a proof that it is stored. Nothing above a
    number that was refused for now is taken before that number comes again, or the producer gives
    all that were refused up: its records stay in order.

    A repeat is answered before anything could refuse it; of a publish that the log has not settled
    yet, the answer goes to the client's present connection.

    Args:
        session: The client's stream.

    Attributes:
        checked_channels: The channels that the caller may publish on; clear it when its rights
            change.
    """

    def __init__(self, session: StreamSession) -> None:
        self._session = session
        self._name = ("", "")  # the producer's, and its run's
        self._state: ProducerState | None = None
        self._pending: list[client.Publish] = []
        self._unsettled = 0
        self._refusing = ""  # why a named producer's publishes are refused until it opens again
        self._refused: range | None = None  # its refused numbers, until it repeats the first
        self._closed = False
        self.checked_channels: set[str] = set()
        self._settling: set[int] = set()  # handed to the log by the connection before this one

    def open(self, producer: str, run: str = "") -> int:
        """Take publishes under this producer's name from here on (none where it is empty).

        Returns:
            The highest number that the log has of it.
        """
        self._refusing = ""
        api, owner = self._session.api, self._session.caller.name
        if (producer, run) != self._name or self._state is None:
            self._refused = None
            self._release()
            self._name = (producer, run)
            self._state = api.producers.claim(owner, producer, run, self) if producer else None
            under_way = self._state.under_way if self._state is not None else {}
            self._settling = {
                number for first, last in under_way.items() for number in range(first, last + 1)
            }
        if self._state is None:
            return 0
        return api.node.log.state.producers.highest(owner, self._state.numbered)

    def displaced(self) -> None:
        """Another client has taken the name."""
        self._closed = True
        self._state = None
        self._session.replaced()

    def closed(self) -> None:
        """Release the producer's name after a disconnect; appends under way continue."""
        self._closed = True
        self._pending.clear()
        self._release()

    def _release(self) -> None:
        if self._state is not None and self._state.holder is self:
            self._state.holder = None
        self._state = None

    @property
    def waiting(self) -> int:
        """How many publishes came that are not handed on."""
        return len(self._pending)

    def publish(self, frames: Sequence[client.Publish]) -> None:
        """Take publishes; they are handed on at the end of the turn."""
        settling = self._settling
        if settling:
            frames = [frame for frame in frames if frame.sequence not in settling]
        self._pending += frames

    def flush(self, until: float | None = None) -> bool:
        """Hand on what came, one append at least, until a time on the reactor's clock.

        Returns:
            Whether all of it was handed on.
        """
        pending = self._pending
        if not pending or self._closed:
            return True
        self._pending = []
        clock = self._session.api.reactor
        index, end, alone = 0, len(pending), 0
        while index < end:
            run = self._run(pending, index) if index >= alone else pending[index : index + 1]
            if not self._hand_on(run):
                alone = index + len(run)
                continue
            index += len(run)
            if until is not None and index < end and clock.seconds() >= until:
                self._pending = pending[index:] + self._pending
                return False
        return True

    def _run(self, pending: list[client.Publish], index: int) -> list[client.Publish]:
        """Return the publishes from `index` on that may share an append: at least one."""
        first = pending[index]
        if not self._can_share_batch(first):
            return [first]
        channel, ttl, last = first.channel, first.ttl, first.sequence
        size = len(first.records)
        for place in range(index + 1, min(len(pending), index + MAX_RUN)):
            frame = pending[place]
            size += len(frame.records)
            sequence = frame.sequence
            if (
                frame.channel != channel
                or size > MAX_BATCH_BYTES
                or (sequence != last + 1 if self._state is not None else sequence <= last)
                or frame.ttl != ttl
                or frame.ids
                or frame.wait != first.wait
            ):
                return pending[index:place]
            last = sequence
        return pending[index : index + MAX_RUN]

    def _can_share_batch(self, frame: client.Publish) -> bool:
        """Return whether a publish may share an append with the next ones."""
        if frame.ids:
            return False
        state = self._state
        return state is None or frame.sequence > state.top

    def _hand_on(self, run: list[client.Publish]) -> bool:
        """Check a run, and append or refuse it; return False where it must go one by one."""
        first = run[0]
        records = first.records if len(run) == 1 else b"".join([frame.records for frame in run])
        count = first.count if len(run) == 1 else sum([frame.count for frame in run])
        size = len(records) + BATCH_OVERHEAD_BYTES * len(run)
        state, owner = self._state, self._session.caller.name
        try:
            self._check_place(first, size, alone=len(run) == 1)
            self._check(first, count, records)
        except LinkdError as error:
            if len(run) == 1:
                self._refuse_new(first, error)
            return len(run) == 1
        producer: Producer | None = None
        counts: tuple[int, ...] = ()
        if state is not None:
            last = run[-1].sequence
            producer = Producer(state.numbered, last, owner)
            state.top = max(state.top, last)
            state.under_way[first.sequence] = last
            if len(run) > 1:
                counts = tuple([frame.count for frame in run])
        self._unsettled += size
        draft = NewRecords(
            first.channel, count, records, wall(), first.ttl, first.ids, producer, counts, owner
        )
        try:
            self._session.api.node.publish(draft, self._settled(run, size))
        except LinkdError as error:
            self._settled(run, size)(error)
        return True

    def _refuse_new(self, frame: client.Publish, error: LinkdError) -> None:
        """Refuse a publish, unless it was stored before: then the log answers the repeat.

        Nothing of it is stored: it may be another record under the number of an old one.
        """
        state, number = self._state, frame.sequence
        if state is None or not 0 < number <= state.top:
            self._refuse([frame], refusal_of(error))
            return
        owner = self._session.caller.name
        producer = Producer(state.numbered, number, owner)
        state.under_way[number] = number
        repeat = NewRecords(frame.channel, 1, b"", wall(), None, (), producer, (), owner)
        self._session.api.node.log.refuse(repeat, self._settled([frame], 0), error)

    def _check_place(self, first: client.Publish, size: int, alone: bool) -> None:
        """Raise ApiError where a run may not go now: behind a refused one, or without room."""
        if self._refusing:
            message = "a publish before it was refused: open again, then repeat"
            raise ApiError(self._refusing, message)
        refused = self._refused
        if refused is not None and refused.start < first.sequence < refused.stop:
            raise ApiError(
                "log-full", f"{refused.start} was refused: open again, then repeat from it"
            )
        if (self._unsettled or not alone) and self._unsettled + size > self._most_unsettled:
            raise ApiError("too-many", "too many bytes wait for the disk (max_pending_bytes)")
        self._refused = None

    @property
    def _most_unsettled(self) -> int:
        """How many bytes may wait for the disk."""
        return 2 * self._session.api.node.config.limits.publish_pending_bytes

    def _check(self, first: client.Publish, count: int, records: bytes) -> None:
        """Raise an error where a run may not be published."""
        channel = first.channel
        if count > MAX_RECORDS:
            raise BadRecord(f"expected at most {MAX_RECORDS} records in a publish, got {count}")
        if channel not in self.checked_channels:
            self._session.caller.check_publish(channel)
            if len(self.checked_channels) >= MAX_CHANNELS:
                self.checked_channels.clear()
            self.checked_channels.add(channel)
        if first.wait:
            check_wait(self._session.api.node, first.wait, channel)
        if first.ttl is not None and not 0.0 < first.ttl <= MAX_TTL_SECONDS:
            raise BadRecord(f"expected a ttl above 0, at most {MAX_TTL_SECONDS:g} seconds")
        check_records(records, count, self._session.api.node.config.log.max_body_bytes)
        if first.ids:
            found = decode_records(records, count)
            if tuple([record.id for record in found]) != first.ids:
                raise BadRecord("expected as ids those of the records")

    def _settled(self, run: list[client.Publish], size: int) -> OnDurable:
        """Return what answers a run once the log has settled it."""
        api = self._session.api
        began, state = api.reactor.seconds(), self._state

        def settled(outcome: Appended | LinkdError) -> None:
            self._unsettled -= size
            if self._session.is_full and self._unsettled <= self._most_unsettled // 2:
                self._session.is_full = False
                self._session.socket.unstick()
            holder = self
            if state is not None:
                last = state.under_way.pop(run[0].sequence, 0)
                holder = state.holder or self
                if holder._settling:
                    holder._settling.difference_update(range(run[0].sequence, last + 1))
            api.metrics.publish.observe(api.reactor.seconds() - began)
            if isinstance(outcome, LinkdError):
                holder._refuse(run, refusal_of(outcome))
            elif not holder._closed:
                holder._answer(run, outcome)

        return settled

    def _answer(self, run: list[client.Publish], outcome: Appended) -> None:
        """Send the client the offset of its records."""
        send, offset = self._session.send, outcome.offset
        first = run[0]
        if len(run) == 1:
            send(client.Published(first.sequence, offset, outcome.count, outcome.duplicate))
            return
        plain = run[-1].sequence - first.sequence == len(run) - 1 and outcome.count == len(run)
        if plain and offset:
            send(client.PublishedRun(first.sequence, offset, len(run)))
            return
        for frame in run:
            send(client.Published(frame.sequence, offset, frame.count))
            offset += frame.count if offset else 0

    def _refuse(self, run: list[client.Publish], refusal: ApiError) -> None:
        if self._state is not None and refusal.error in _PASSING:
            # A later number in the log would make this one look like a repeat of a stored one.
            self._refusing = refusal.error
            begin, end, refused = run[0].sequence, run[-1].sequence + 1, self._refused
            if refused is not None:
                begin, end = min(begin, refused.start), max(end, refused.stop)
            self._refused = range(begin, end)
        if self._closed:
            return
        if refusal.error == "too-many" and self._unsettled:
            self._session.is_full = True
        for frame in run:
            self._session.send(client.PublishFailed(frame.sequence, refusal.error, refusal.message))
