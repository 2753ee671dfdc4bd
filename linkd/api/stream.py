"""`/v1/stream`: publishes and deliveries in whole batches, many in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from linkd.api.auth import Caller
from linkd.api.call import lasting_consumer
from linkd.api.errors import ApiError, refusal_of
from linkd.api.session import ClientSession
from linkd.api.sinks import ApiSink
from linkd.api.stream_publisher import StreamPublisher, check_wait
from linkd.api.websocket import NORMAL, REFUSED
from linkd.errors import LinkdError, RemoteProtocolError
from linkd.net.timers import at_iteration_end, cancel
from linkd.protocol import client
from linkd.protocol.records import Batch
from linkd.status import LinkStatus
from linkd.version import VERSION

if TYPE_CHECKING:
    from linkd.api.server import ApiServer
    from linkd.api.websocket import ApiWebSocket


MESSAGE_BYTES = 131_072
"""Frames are gathered into messages of about this size."""

MAX_PATTERNS_BYTES = 65_536
"""Maximum total size of the patterns of one connection."""

FRAME_BYTES = 256
"""About what a decoded frame takes in memory, beside its records (measured)."""

POSITION_SECONDS = 5.0
"""Seconds between two reports of the positions of quiet subscriptions."""

_PUBLISHES = {client.Publish}
"""What nearly every message holds and nothing else: then no frame needs a look of its own."""


class StreamSession(ClientSession):
    """One client's stream.

    Args:
        api: The API.
        caller: Its caller.
        socket: Its WebSocket.
    """

    def __init__(self, api: ApiServer, caller: Caller, socket: ApiWebSocket) -> None:
        super().__init__(api, caller, socket)
        self.publisher = StreamPublisher(self)
        self._rest: deque[client.FromClient] = deque()
        self._slices: Iterator[list[client.FromClient]] | None = None  # of a large message
        self._held = 0  # bytes of decoded frames that wait, as the budget has them
        self._opened = False
        self._version = client.MIN_VERSION
        self._subscriptions: dict[int, StreamSink] = {}
        self._pattern_bytes = 0
        self._budget = api.budget.for_caller(caller.name)
        self._waits = PeerWaits(self)
        self._out: list[bytes] = []
        self._urgent: list[bytes] = []
        self._out_bytes = 0
        self._flush_due = False
        self._call_at_iteration_end = at_iteration_end(api.reactor)
        self._positions_due: Any = None
        self._all_links_due = False  # the status of all links is to be sent soon
        self._calls: dict[type, Callable[[Any], None]] = {
            client.Open: self._open,
            client.WaitForPeer: self._waits.begin,
            client.Subscribe: self._subscribe,
            client.Unsubscribe: self._unsubscribe,
            client.Credit: self._credit,
            client.ConsumerAck: self._ack,
            client.WatchStatus: self._watch,
        }

    def allow(self, caller: Caller) -> None:
        """Apply the caller's new rights: end what they no longer cover, and report that."""
        self.caller = caller
        self.publisher.checked_channels.clear()
        for sink in list(self._subscriptions.values()):
            try:
                for pattern in sink.patterns:
                    caller.check_subscribe(pattern)
            except ApiError as refusal:
                sink.close()
                self.ended(sink, refusal.error)

    # called by the socket

    def message(self, payload: bytes, binary: bool) -> None:
        """Take a message's frames."""
        try:
            if not binary:
                raise RemoteProtocolError("expected binary messages", REFUSED)
            frames, self._slices = client.split_from_client(payload)
        except RemoteProtocolError as error:
            self._fatal("malformed", str(error))
            return
        if self._opened and set(map(type, frames)) == _PUBLISHES:
            self.publisher.publish(frames)  # type: ignore[arg-type]
            if self.publisher.waiting >= client.WHOLE_FRAMES:
                self._set_busy(not self.publisher.flush(self.api.share.end()))
        else:
            self._rest.extend(frames)
            self._set_busy(not self._work_off(self.api.share.end()))

    def go_on(self) -> None:
        """Work on the message that came, for a slice."""
        until = self.api.share.end()
        self._set_busy(not (self._work_off(until) and self.publisher.flush(until)))

    def _set_busy(self, busy: bool) -> None:
        """Note whether frames wait: they count with the memory that they take once decoded."""
        self.busy = busy
        held = FRAME_BYTES * (len(self._rest) + self.publisher.waiting) if busy else 0
        more, self._held = held - self._held, held
        if more > 0:
            self._budget.add(more)
        else:
            self._budget.release(-more)

    def _work_off(self, until: float) -> bool:
        """Work on frames until a time; return whether all are done."""
        rest, clock = self._rest, self.api.reactor
        while rest or self._slices is not None:
            if not (self._do(rest.popleft(), until) if rest else self._take_slice(until)):
                return False
            if not self.socket.open:
                rest.clear()
                self._slices = None
            elif (rest or self._slices) and (self.socket.is_stuck or clock.seconds() >= until):
                return False
        return True

    def _take_slice(self, until: float) -> bool:
        """Decode the next slice of a large message; return False where the last one still waits."""
        if not self.publisher.flush(until):
            return False
        assert self._slices is not None
        try:
            frames = next(self._slices, None)
        except RemoteProtocolError as error:
            self._fatal("malformed", str(error))
            return True
        if frames is None:
            self._slices = None
        elif self._opened and set(map(type, frames)) == _PUBLISHES:
            self.publisher.publish(frames)  # type: ignore[arg-type]
            return self.publisher.flush(until)  # a single large one at once, also behind `until`
        else:
            self._rest.extend(frames)
        return True

    def _do(self, frame: client.FromClient, until: float) -> bool:
        """Do what a frame asks for; return False where it must wait for the publishes before it."""
        if type(frame) is client.Publish and self._opened:
            self.publisher.publish((frame,))
        elif type(frame) is client.Open or self._opened:
            if not self.publisher.flush(until):
                self._rest.appendleft(frame)
                return False
            self._calls[type(frame)](frame)
        else:
            self._fatal("malformed", "expected open as the first frame")
        return True

    def on_read_end(self) -> None:
        """Append what arrived together."""
        if not (self.busy or self.publisher.flush(self.api.share.end())):
            self._set_busy(True)

    def on_writable(self) -> None:
        """The client reads again."""
        if self._changed_links or self._all_links_due:
            self.send_links_soon()
        for sink in list(self._subscriptions.values()):
            sink.resume()

    def closed(self) -> None:
        """Release everything after a disconnect."""
        self._rest.clear()
        self._slices = None
        for sink in list(self._subscriptions.values()):
            sink.close()
        self._subscriptions.clear()
        self._waits.close()
        if self._positions_due is not None:
            self._positions_due.cancel()
            self._positions_due = None
        self.publisher.closed()
        self._set_busy(False)
        super().closed()

    # sending

    def send(self, frame: client.FromDaemon) -> None:
        """Send a frame, together with what else is sent in this turn."""
        encoded = client.encode_frame(frame)
        self._out.append(encoded)
        self._out_bytes += len(encoded)
        if self._out_bytes >= MESSAGE_BYTES:
            self.flush()
        elif not self._flush_due:
            self._flush_due = True
            self._call_at_iteration_end(self._flush_now)

    def send_since_2(self, frame: client.AckFailed | client.Position) -> None:
        """Send a frame to a client that knows it: to others it would end the connection."""
        if self._version >= 2:
            self.send(frame)

    def send_large(self, frame: client.Deliver) -> None:
        """Send a delivery that is worth a message of its own: its records are not copied."""
        self.flush()
        head, *more = client.encode_large(frame)
        self.socket.send(head, True, tuple(more))

    def _flush_now(self) -> None:
        self._flush_due = False
        self.flush()

    def flush(self) -> None:
        """Send what was gathered, what is urgent first."""
        out = self._urgent + self._out if self._urgent else self._out
        if out:
            self._out, self._urgent, self._out_bytes = [], [], 0
            self.socket.send(client.join(out, len(out)), True)

    def _fatal(self, error: str, message: str) -> None:
        """Report the error and close."""
        self.publisher.flush()
        self.send(client.Failed(0, error, message))
        self.flush()
        self.socket.close(REFUSED, message)

    def replaced(self) -> None:
        """Another connection opened under this producer's name."""
        self.send(client.Failed(0, "replaced", "another client opened with this producer's name"))
        self.flush()
        self.socket.close(NORMAL, "replaced")

    # frames

    def _open(self, frame: client.Open) -> None:
        if frame.version < client.MIN_VERSION:
            self._fatal("malformed", f"expected version {client.MIN_VERSION}, got {frame.version}")
            return
        self._opened = True
        self._version = min(frame.version, client.VERSION)
        highest = self.publisher.open(frame.producer, frame.run)
        node = self.api.node
        self.send(
            client.Opened(
                self._version,
                node.name,
                f"linkd {VERSION}",
                node.log.id,
                node.log.next,
                node.config.log.max_body_bytes,
                node.config.limits.publish_pending_bytes,
                highest,
                node.log.state.epochs()[-client.MAX_EPOCHS :],
            )
        )

    def _subscribe(self, frame: client.Subscribe) -> None:
        most = self.api.node.config.limits.subscriptions
        try:
            if frame.id in self._subscriptions:
                raise ApiError("malformed", f"subscription {frame.id} is in use")
            if len(self._subscriptions) >= most:
                raise ApiError("too-many", f"at most {most} subscriptions (limits.subscriptions)")
            size = sum(map(len, frame.patterns))
            if self._pattern_bytes + size > MAX_PATTERNS_BYTES:
                raise ApiError(
                    "too-many", f"at most {MAX_PATTERNS_BYTES} bytes of patterns a connection"
                )
            self.caller.check_patterns(frame.patterns)
            consumer = lasting_consumer(frame.consumer) if frame.consumer else None
            sink = StreamSink(self, frame.id, frame.patterns, frame.credit)
            began = sink.subscribe(self.caller, frame.patterns, frame.start, consumer)
        except LinkdError as error:
            refusal = refusal_of(error)
            self.send(client.Failed(frame.id, refusal.error, refusal.message))
            return
        self._subscriptions[frame.id] = sink
        self._pattern_bytes += size
        sink.reported = began.next
        self.send(client.Subscribed(frame.id, began.next))
        if self._positions_due is None:
            self._plan_positions()

    def _plan_positions(self) -> None:
        due = self.api.reactor.callLater(POSITION_SECONDS, self._report_positions)
        self._positions_due = due

    def _report_positions(self) -> None:
        """Send where quiet subscriptions are: what was for others need not be read again."""
        self._positions_due = None
        if self._subscriptions:
            for sink in self._subscriptions.values():
                sink.report_position()
            self._plan_positions()

    def _unsubscribe(self, frame: client.Unsubscribe) -> None:
        sink = self._subscriptions.get(frame.id)
        if sink is not None:
            sink.close()
            self.ended(sink, "unsubscribed")

    def ended(self, sink: StreamSink, reason: str) -> None:
        """Forget a subscription that has ended."""
        if self._subscriptions.get(sink.id) is sink:
            del self._subscriptions[sink.id]
            self._pattern_bytes -= sum(map(len, sink.patterns))
            self.send(client.Ended(sink.id, reason))

    def _credit(self, frame: client.Credit) -> None:
        sink = self._subscriptions.get(frame.id)
        if sink is not None:
            sink.add_credit(frame.bytes)

    def _ack(self, frame: client.ConsumerAck) -> None:
        sink = self._subscriptions.get(frame.id)
        if sink is None or sink.subscription is None:
            none = "there is no such subscription"
            self.send_since_2(client.AckFailed(frame.id, frame.next, "not-found", none))
            return

        def done(error: Exception | None) -> None:
            if error is None:
                self.send(client.ConsumerAcked(frame.id, frame.next))
            else:
                word = "not-found" if isinstance(error, KeyError) else "log-full"
                message = f"the cursor is not stored: {error}"
                self.send_since_2(client.AckFailed(frame.id, frame.next, word, message))

        sink.subscription.ack(frame.next, done)

    # status

    def _watch(self, _: client.WatchStatus) -> None:
        """Send the status of all links, once for all requests that came before it is sent."""
        self.watch_links()
        self._all_links_due = True
        self.send_links_soon()

    def send_links(self, changed: Iterable[tuple[LinkStatus, str]]) -> None:
        """Send changed links, or all of them, ahead of all messages."""
        if self._all_links_due:
            self._all_links_due = False
            links = tuple(self.api.node.status().links)
            self._urgent.append(client.encode_frame(client.StatusChanged(links)))
        for link, event in changed:
            self._urgent.append(client.encode_frame(client.StatusChanged((link,), event)))
        self.flush()


class StreamSink(ApiSink):
    """Where one subscription's records go, as far as the client gave credit.

    Args:
        session: The client's stream.
        id: The client's number for it.
        patterns: The patterns that it follows.
        credit: Bytes of records that may come.

    Attributes:
        reported: The client knows that all below this offset was sent.
    """

    def __init__(
        self, session: StreamSession, id: int, patterns: tuple[str, ...], credit: int
    ) -> None:
        super().__init__(session.api, session.api.budget.for_caller(session.caller.name))
        self.id = id
        self.patterns = patterns
        self._session = session
        self._credit = credit
        self._dropped = 0
        self.reported = 0

    def is_open_for(self, size: int) -> bool:
        """Return whether there is credit, and the client reads."""
        return self._credit > 0 and self._session.socket.has_room(size)

    def batch(self, batch: Batch) -> bool:
        """Send records on as they are."""
        records, origin, session = batch.records, batch.origin, self._session
        send = session.send if len(records) < client.LARGE_BYTES else session.send_large
        send(
            client.Deliver(
                self.id,
                batch.offset,
                batch.channel,
                batch.count,
                records,
                batch.time,
                origin.node,
                origin.first,
            )
        )
        self.reported = batch.offset + batch.count
        self._credit -= len(records)
        self._stopped = self._credit <= 0 or self._session.socket.paused
        return not self._stopped

    def volatile(self, batch: Batch) -> None:
        """Send records that have no offset, where there is credit; else count them."""
        if self._credit <= 0 or self._session.socket.paused:
            self._dropped += batch.count
            return
        dropped, self._dropped = self._dropped, 0
        self._credit -= len(batch.records)
        self._session.send(
            client.DeliverVolatile(
                self.id,
                batch.channel,
                batch.count,
                batch.records,
                batch.time,
                batch.origin.node,
                dropped,
            )
        )

    def gap(self, first: int, next: int) -> None:
        """Report that offsets are gone."""
        self._session.send(client.SubscriptionGap(self.id, first, next))

    def end(self, reason: str) -> None:
        """End the subscription."""
        self.report_position()
        self.subscription = None
        self.refund()
        self._session.ended(self, reason)

    def report_position(self) -> None:
        """Send the position, where it is above the last one and behind all that was sent."""
        if self.subscription is None or self._session.socket.paused:
            return
        position = self.subscription.position()
        if position > self.reported:
            self.reported = position
            self._session.send_since_2(client.Position(self.id, position))

    def add_credit(self, bytes: int) -> None:
        """The client takes so many more bytes."""
        self._credit = min(self._credit + bytes, 2**62)
        self.resume()


MAX_WAITS = 10_000
WAIT_BYTES = 2048
"""About what one takes in memory (measured)."""

MAX_WAIT_SECONDS = 3600.0

_TIDY_FROM = 64


class PeerWaits:
    """The waits of one client, of which each is answered once; one timer serves them all.

    Args:
        session: The client's stream.
    """

    def __init__(self, session: StreamSession) -> None:
        self._session = session
        self._api = session.api
        self._budget = session.api.budget.for_caller(session.caller.name)
        self._waits: dict[int, tuple[float, client.WaitForPeer, Deferred[None]]] = {}
        self._ends: list[tuple[float, int]] = []  # of those, and of some that were answered
        self._timer: Any = None

    def begin(self, frame: client.WaitForPeer) -> None:
        """Answer once the peer has it, or after the time that the client gave."""
        refusal = self._refusal(frame)
        if refusal is not None:
            self._session.send(client.WaitResult(frame.id, refusal.error, refusal.message))
            return
        links, log = self._api.node.links, self._api.node.log
        waiting = links.wait_for(frame.peer, frame.next or log.next)
        if waiting.called:
            self._budget.release(WAIT_BYTES)
            self._session.send(client.WaitResult(frame.id))
            return
        end = self._api.reactor.seconds() + min(frame.timeout, MAX_WAIT_SECONDS)
        self._waits[frame.id] = (end, frame, waiting)
        waiting.addCallbacks(partial(self._answer, frame.id), partial(self._removed, frame))
        if len(self._ends) >= _TIDY_FROM and len(self._ends) >= 2 * len(self._waits):
            self._ends = [(end, number) for number, (end, *_) in self._waits.items()]
            heapify(self._ends)
        else:
            heappush(self._ends, (end, frame.id))
        self._plan()

    def _refusal(self, frame: client.WaitForPeer) -> ApiError | None:
        """Return why a wait may not begin; None: it may, and its memory counts."""
        if frame.id in self._waits or len(self._waits) >= MAX_WAITS:
            return ApiError("too-many", f"at most {MAX_WAITS}, each its own id")
        try:
            self._session.caller.check_publish(frame.channel)
            check_wait(self._api.node, frame.peer, frame.channel)
        except ApiError as refusal:
            return refusal
        if not self._budget.reserve(WAIT_BYTES):
            return ApiError("too-many", "too many waits of this caller")
        return None

    def _plan(self) -> None:
        """Set the timer for the first end."""
        first = self._ends[0][0]
        if self._timer is None:
            after = max(0.0, first - self._api.reactor.seconds())
            self._timer = self._api.reactor.callLater(after, self._on_time)
        elif first < self._timer.getTime():
            self._timer.reset(max(0.0, first - self._api.reactor.seconds()))

    def _on_time(self) -> None:
        self._timer = None
        self._api.share.queue(self._expire, self._session.caller.name)

    def _expire(self) -> None:
        """Answer those whose time is over, in slices."""
        clock, until = self._api.reactor, self._api.share.end()
        while self._ends and self._ends[0][0] <= clock.seconds():
            end, number = heappop(self._ends)
            known = self._waits.get(number)
            if known is not None and known[0] == end:
                frame = known[1]
                late = f"{frame.peer} did not have it within {frame.timeout:g} s; it stays owed"
                self._end(number, "timeout", late)
            if clock.seconds() >= until:
                self._api.share.queue(self._expire, self._session.caller.name)
                return
        if self._ends:
            self._plan()

    def _end(self, number: int, error: str, message: str) -> None:
        """Answer a wait that the peer has not met."""
        waiting = self._waits.pop(number)[2]
        self._budget.release(WAIT_BYTES)
        waiting.cancel()
        self._session.send(client.WaitResult(number, error, message))

    def _answer(self, number: int, _: None) -> None:
        """Answer a wait: the peer has it."""
        if self._waits.pop(number, None) is not None:
            self._budget.release(WAIT_BYTES)
            self._session.send(client.WaitResult(number))

    def _removed(self, frame: client.WaitForPeer, _: object) -> None:
        """Answer a wait for a peer that was removed, unless it was given up here."""
        known = self._waits.get(frame.id)
        if known is not None and known[1] is frame:
            message = f"{frame.peer} was removed from the configuration meanwhile"
            self._end(frame.id, "not-found", message)

    def close(self) -> None:
        """Give up all waits, in slices."""
        self._ends.clear()
        cancel(self._timer)
        self._give_up()

    def _give_up(self) -> None:
        clock, until = self._api.reactor, self._api.share.end()
        while self._waits:
            waiting = self._waits.popitem()[1][2]
            self._budget.release(WAIT_BYTES)
            waiting.cancel()
            if clock.seconds() >= until:
                self._api.share.queue(self._give_up, self._session.caller.name)
                break
