"""Sinks of subscriptions: records as time, memory and the reader allow; Server-Sent Events."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Generic, TypeVar

from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from zope.interface import implementer

from linkd.api.auth import Caller
from linkd.api.call import Call, consumer_of, last_record, start_of
from linkd.api.errors import ApiError
from linkd.api.http import SMALL_BYTES, record_objects, to_json
from linkd.errors import LinkdError
from linkd.node.subscriptions import Follower, Sink, Start
from linkd.protocol.records import Batch
from linkd.status import Event

if TYPE_CHECKING:
    from linkd.api.http import CallerBudget
    from linkd.api.server import ApiServer

Piece = TypeVar("Piece", bound=Sized)

SLICE_BYTES = 65_536
PIECE_BYTES = 8192
"""After so many bytes of a batch, or after a piece of so many, there is a look at whether the
client still reads."""

SUBSCRIPTION_BYTES = 3072
PATTERN_COST = 96
"""Bytes of memory that a subscription takes, and each byte of its patterns (measured)."""


class ApiSink(Sink):
    """Delivers one subscription's records to a client.

    Args:
        api: The API.
        budget: The memory budget of the caller.

    Attributes:
        subscription: The source of the records, until it has ended.
    """

    def __init__(self, api: ApiServer, budget: CallerBudget) -> None:
        self.subscription: Follower | None = None
        self._api = api
        self._budget = budget
        self._stopped = False
        self._queues = False
        self._paid = 0
        self._caller = ""  # its jobs run in the turns of this caller

    def subscribe(
        self, caller: Caller, patterns: Sequence[str], start: Start, consumer: str | None = None
    ) -> Follower:
        """Follow these patterns; raise ApiError where that is refused, or takes too much memory."""
        cost = SUBSCRIPTION_BYTES + PATTERN_COST * sum(map(len, patterns))
        if not self._budget.reserve(cost):
            raise ApiError("too-many", "the subscriptions of this caller take too much memory")
        self._paid = cost
        self._caller = caller.name
        try:
            found = self._api.subscribe(caller, patterns, start, self, consumer)
        except LinkdError:
            self.refund()
            raise
        self.subscription = found
        return found

    def refund(self) -> None:
        """Return its cost to the budget."""
        paid, self._paid = self._paid, 0
        self._budget.release(paid)

    @abstractmethod
    def is_open_for(self, size: int) -> bool:
        """Return whether the client takes `size` bytes of records now; else `resume` comes."""

    def has_room(self, size: int) -> bool:
        """Return whether records of `size` bytes may come now; else the subscription resumes."""
        if self.is_open_for(size):
            if self._api.share.left() > 0:
                return True
            self._queue()
        self._stopped = True
        return False

    def hold(self, size: int) -> bool:
        """Count bytes that are read ahead, negative where they are no longer held."""
        if size > 0:
            return self._budget.reserve(size)
        self._budget.release(-size)
        return True

    def _queue(self) -> None:
        """Continue in the caller's turn."""
        if not self._queues:
            self._queues = True
            self._api.share.queue(self._have_turn, self._caller)

    def _have_turn(self) -> None:
        self._queues = False
        self.resume()

    def resume(self) -> None:
        """Continue, if the client reads."""
        if self._stopped and self.is_open_for(0):
            self._stopped = False
            if self.subscription is not None:
                self.subscription.resume()

    def close(self) -> None:
        """Close it for the client."""
        if self._paid:
            self.refund()
        subscription, self.subscription = self.subscription, None
        if subscription is not None:
            subscription.close()


class SlicedSink(ApiSink, Generic[Piece]):
    """A sink that opens batches: a batch of many records goes out in slices of time."""

    def __init__(self, api: ApiServer, budget: CallerBudget) -> None:
        super().__init__(api, budget)
        self._rest: Iterator[Piece] | None = None  # of the batch that is going out
        self._batch_bytes = 0  # of that batch as a whole

    @abstractmethod
    def pieces(self, batch: Batch) -> Iterator[Piece]:
        """Yield what goes out for each record."""

    @abstractmethod
    def put(self, pieces: list[Piece]) -> None:
        """Send what is to go out."""

    def batch(self, batch: Batch) -> bool:
        """Send a batch's records; return whether there is room for more."""
        self._rest, self._batch_bytes = self.pieces(batch), len(batch.records)
        if self._send_rest():
            return True
        self._stopped = True
        return False

    def _send_rest(self) -> bool:
        """Send, one piece at least, until the slice ends; return whether there is room for more."""
        rest = self._rest
        if rest is not None:
            clock, until = self._api.reactor, self._api.share.end()
            ready: list[Piece] = []
            size = 0
            for piece in rest:
                ready.append(piece)
                size += len(piece)
                if size >= SLICE_BYTES or len(piece) >= PIECE_BYTES:
                    self.put(ready)
                    ready, size = [], 0
                    if not self.is_open_for(0):
                        return False
                if clock.seconds() >= until:
                    self.put(ready)
                    self._queue()
                    return False
            self._rest = None
            self.put(ready)
        return self.is_open_for(0)

    def resume(self) -> None:
        """Go on with the batch that is going out, then with others."""
        if self._stopped and self.is_open_for(0) and self._send_rest():
            self._stopped = False
            if self.subscription is not None:
                self.subscription.resume()

    @property
    def is_within(self) -> bool:
        """Whether a batch is going out: nothing else may come in between."""
        return self._rest is not None

    @property
    def within_bytes(self) -> int:
        """Return the size of the batch that is going out, 0 between batches."""
        return 0 if self._rest is None else self._batch_bytes

    def close(self) -> None:
        """Close it for the client."""
        self._rest = None
        super().close()


BEAT_SECONDS = 10.0
"""Seconds between the comments, or positions, on an idle stream: both ends see whether it lives."""


@implementer(IPushProducer)
class EventStream:
    """One answer of type text/event-stream.

    Args:
        api: The API.
        call: The call that it answers.

    Attributes:
        budget: The memory budget of the caller.
        paused: The caller reads too slowly just now.
    """

    def __init__(self, api: ApiServer, call: Call) -> None:
        self._api = api
        self._request = call.request
        self.caller = call.caller
        self.paused = False
        self._waiting = 0  # bytes that wait for the caller to read them
        self.budget = call.request.budget
        self._beat = LoopingCall(self._send_beat)
        self._beat.clock = api.reactor
        self.on_room: Callable[[], None] = lambda: None
        self.on_gone: Callable[[], None] = lambda: None
        self.on_beat: Callable[[], bytes] = lambda: b":\n"
        self.pattern: str | None = None

    def begin(self) -> None:
        """Send the head."""
        request = self._request
        request.begin(
            200,
            {
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            },
        )
        request.registerProducer(self, True)
        request.notifyFinish().addErrback(self._over)
        request.write(b"retry: 1000\n" + self.on_beat() + b"\n")
        self._beat.start(BEAT_SECONDS, now=False).addErrback(lambda _: None)
        self._api.streams.add(self)

    def send(self, lines: bytes) -> bool:
        """Send whole events; return whether there is room for more."""
        if not self._request.gone:
            self._request.write(lines)
            if self.paused:
                self._waiting += len(lines)
                self.budget.add(len(lines))
        return not self.paused

    def _forget_waiting(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, 0
            self.budget.release(waiting)

    def allow(self, caller: Caller) -> None:
        """The caller's rights have changed: end what they no longer cover."""
        self.caller = caller
        try:
            if self.pattern is not None:
                caller.check_subscribe(self.pattern)
        except ApiError as refusal:
            self._say_end(refusal.error)

    def disallow(self) -> None:
        """End it: the caller's key was removed or changed."""
        self._say_end("unauthorized")

    def _say_end(self, reason: str) -> None:
        self.send(event(to_json({"reason": reason}), None, b"end"))
        self.end()

    def end(self) -> None:
        """End the stream."""
        self._over()
        if not self._request.gone:
            self._request.unregisterProducer()
            self._request.finish()

    def _send_beat(self) -> None:
        if not self.paused:
            self.send(self.on_beat() + b"\n")

    def _over(self, _: Failure | None = None) -> None:
        self._forget_waiting()
        if self in self._api.streams:
            self._api.streams.discard(self)
            if self._beat.running:
                self._beat.stop()
            self.on_gone()

    # called by the transport

    def pauseProducing(self) -> None:
        """The caller reads too slowly."""
        self.paused = True

    def resumeProducing(self) -> None:
        """Continue: there is room again."""
        self.paused = False
        self._forget_waiting()
        self.on_room()

    def stopProducing(self) -> None:
        """Stop: the connection is closing."""
        self.paused = True


class RecordStream(SlicedSink[bytes]):
    """A sink that writes records as events."""

    def __init__(self, api: ApiServer, stream: EventStream) -> None:
        super().__init__(api, stream.budget)
        self._stream = stream
        self._dropped = 0

    def is_open_for(self, size: int) -> bool:
        """Return whether the caller reads, and has room for `size` bytes; else `resume` comes."""
        if self._stream.paused:
            return False
        if size <= SMALL_BYTES or self._budget.has_room(size):
            return True
        self._api.budget.when_freed(self.resume)
        return False

    def pieces(self, batch: Batch) -> Iterator[bytes]:
        """Yield each record as an event."""
        epoch = batch.epoch.encode()
        for at, one in record_objects(batch):
            yield event(one, b"%d@%b" % (at, epoch))

    def beat(self) -> bytes:
        """Return the line that shows life: the id behind which the stream would resume.

        EventSource keeps an id that comes without data, so a channel that is still quiet is resumed
        as well, and what was for others is not read again.
        """
        if self.subscription is None or self.is_within:
            return b":\n"
        below = self.subscription.position()
        epoch = self._api.node.log.state.epoch_below(below)
        return b"id: %d@%b\n" % (below - 1, epoch.encode())

    def put(self, pieces: list[bytes]) -> None:
        """Write events."""
        self._stream.send(b"".join(pieces))

    def volatile(self, batch: Batch) -> None:
        """Write records without an id; if the caller is slow, count them and report that later."""
        if self._stream.paused or self.is_within:
            self._dropped += batch.count
            return
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._stream.send(event(to_json({"dropped": dropped}), None, b"gap"))
        self._stream.send(b"".join([event(one, None) for _, one in record_objects(batch)]))

    def gap(self, first: int, next: int) -> None:
        """Write that offsets are gone."""
        self._stream.send(event(to_json({"first": first, "next": next}), None, b"gap"))

    def end(self, reason: str) -> None:
        """Write why nothing more comes, and where it was, and end."""
        position = self.beat()
        self.subscription = None
        self.refund()
        self._stream.send(position + event(to_json({"reason": reason}), None, b"end"))
        self._stream.end()


def stream_records(api: ApiServer, call: Call, pattern: str) -> None:
    """Follow a pattern as an event stream."""
    start: Start = start_of(call.text("from"), "latest")
    last = last_record(call, api.node.log)
    if last is not None:
        start = last
    consumer = consumer_of(call)
    stream = EventStream(api, call)
    sink = RecordStream(api, stream)
    sink.subscribe(call.caller, (pattern,), start, consumer)
    stream.pattern = pattern
    stream.on_room = sink.resume
    stream.on_gone = sink.close
    stream.on_beat = sink.beat
    stream.begin()


def stream_events(api: ApiServer, call: Call, after: int) -> None:
    """Follow the changes of links as an event stream, from behind number `after` on."""
    stream = EventStream(api, call)
    stream.begin()
    waiting = [one for one in api.node.events.after(after) if stream.caller.may_see_event(one)]

    def room() -> None:
        if waiting and not stream.paused:
            lines = [event(to_json(one), b"%d" % one.number) for one in waiting]
            waiting.clear()
            stream.send(b"".join(lines))

    def happened(one: Event) -> None:
        if len(waiting) < 1000 and stream.caller.may_see_event(one):
            waiting.append(one)
        room()

    stream.on_room = room
    stream.on_gone = api.node.events.follow(happened)
    room()


def event(encoded: bytes, id: bytes | None, name: bytes = b"") -> bytes:
    """Return one event with these bytes, of however many lines."""
    head = b"event: %b\n" % name if name else b""
    if id is not None:
        head += b"id: %b\n" % id
    if b"\n" in encoded or b"\r" in encoded:
        encoded = encoded.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return head + b"".join(b"data: %b\n" % line for line in encoded.split(b"\n")) + b"\n"
    return b"%bdata: %b\n\n" % (head, encoded)
