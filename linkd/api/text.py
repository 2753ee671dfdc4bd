"""`/ws`: a text frame is one message; for browsers and any WebSocket client."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from operator import attrgetter
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any

from linkd.api.access import close_of
from linkd.api.auth import Caller
from linkd.api.call import Call, check_consumer, lasting_consumer, resumed, start_of
from linkd.api.errors import ApiError, refusal_of
from linkd.api.http import to_json
from linkd.api.presence import MAX_NAME, PresenceChange
from linkd.api.publish import too_large
from linkd.api.session import ClientSession
from linkd.api.sinks import SlicedSink
from linkd.api.text_frames import (
    LARGE_BYTES,
    FrameRefused,
    Name,
    OutgoingMessage,
    TextFrame,
    in_parts,
    parse,
    render_messages,
)
from linkd.api.websocket import OVERTAKING_BYTES
from linkd.clock import wall
from linkd.errors import LinkdError
from linkd.log.interface import RESUME_PREFIX, Appended
from linkd.protocol.records import (
    BATCH_OVERHEAD_BYTES,
    Batch,
    EncodedRecord,
    NewRecords,
    check_words,
    encode_records,
)
from linkd.status import LinkStatus
from linkd.version import VERSION

if TYPE_CHECKING:
    from linkd.api.server import ApiServer
    from linkd.api.websocket import ApiWebSocket
    from linkd.node.subscriptions import Follower, Start

CONFIRM_SECONDS = 0.05
"""So soon after messages a consumer's client is asked whether it has received them."""

UNACKED_BYTES = 262_144
"""Bytes of records that a consumer's client gets ahead of its acks; one batch at least."""

LARGEST_EVERY = 4
"""Once in so many times that there is room, the largest message goes first."""

PONG = b'{"type":"pong"}'

Key = tuple[str, Name]
"""A subscription: `id` and the name that the client gave it, or `pattern` and its pattern; `own`
and its first pattern where the URL asked for it as a consumer, or for a private channel."""

_FLAGS = {None: False, "0": False, "1": True}


class TextSession(ClientSession):
    """One client of `/ws`.

    Args:
        api: The API.
        call: The request that became the WebSocket.
        socket: The WebSocket.

    Raises:
        ApiError: The query is malformed, or the caller may neither publish on the channel nor read
        it.
    """

    def __init__(self, api: ApiServer, call: Call, socket: ApiWebSocket) -> None:
        super().__init__(api, call.caller, socket)
        self.envelope = _flag(call, "envelope")
        self._status = _flag(call, "status")
        self._presence = _presence(call)
        self._name = _name(call) or self.caller.name
        self.is_linkd = _flag(call, "linkd")  # linkd.js is at the other end
        self._from = start_of(call.text("from"), "latest")
        self._is_default = not call.texts("channel") and not self.is_linkd
        self._channels = self._channels_of(call)
        self._channel = next(iter(self._channels), None)
        self._consumer = _consumer(call)
        self._private = f"private.{token_urlsafe(16)}" if _flag(call, "private") else None
        self._subscriptions: dict[Key, TextSink] = {}
        self._rooms = 0  # how often there was room again
        self._parted = 0  # large messages that were sent in parts
        self._unsettled = 0
        self._joined: dict[str, int] = {}  # the channels where it is present, and its numbers there
        self._missed: set[str] = set()  # channels of which it missed who joined or left
        self._ended = False

    def _channels_of(self, call: Call) -> dict[str, bool]:
        """Return the URL's channels, else the caller's default one, and whether each may be read.

        An empty one is none. Raise ApiError where one is no use at all.
        """
        given = call.texts("channel")
        config = self.api.config
        if self._is_default:
            for channel in self.caller.default_channels(config.api.default_channel):
                with suppress(ApiError):
                    return {channel: self._may_read(channel)}
        most = config.limits.subscriptions
        if len(given) > most:
            raise ApiError("too-many", f"at most {most} channels (limits.subscriptions)")
        return {channel: self._may_read(channel) for channel in given if channel}

    def _may_read(self, channel: str) -> bool:
        """Return whether the URL's channel may be read; raise ApiError if it is of no use."""
        try:
            self.caller.check_subscribe(channel)
        except ApiError as refusal:
            if refusal.error == "malformed":
                raise
            self.caller.check_publish(channel)
            return False
        return True

    def allow(self, caller: Caller) -> None:
        """Apply the caller's new rights: end what they no longer cover, and report that."""
        self.caller = caller
        for key, sink in list(self._subscriptions.items()):
            try:
                for pattern in sink.patterns:
                    if pattern != self._private:
                        caller.check_subscribe(pattern)
            except ApiError as refusal:
                del self._subscriptions[key]
                sink.close()
                self._refuse(None, refusal, sink.name)
                self._leave(*sink.patterns)
        for channel, is_read in self._channels.items():
            if not is_read:
                try:
                    caller.check_publish(channel)
                except ApiError:
                    self._leave(channel)

    # called by the socket

    def opened(self) -> None:
        """Begin: follow the URL's channel, and what else was asked for."""
        if self.is_linkd or self._private is not None:
            self._introduce()
        if self._status:
            self.watch_links()
            for link in self.api.node.status().links:
                self._send_object("status", link)
        try:
            self._follow_all([each for each, is_read in self._channels.items() if is_read])
        except LinkdError as error:
            self.socket.close(*close_of(refusal_of(error)))
            return
        for channel, is_read in self._channels.items():
            self._join(channel, is_read)

    def _follow_all(self, channels: list[str]) -> None:
        """Follow the URL's channels, under the consumer's name where it gives one."""
        if self._private is not None:  # its own, whatever else the caller may read
            self._begin(TextSink(self, self.api, self._private), (self._private,), "latest")
        if self._consumer is None:
            for channel in channels:
                self._follow(channel, self._from)
        elif channels:
            self.caller.check_patterns(channels)
            sink = ConfirmedSink(self, self.api, channels[0])
            self._begin(sink, channels, self._from, self._consumer)
        else:
            raise ApiError("malformed", "consumer: expected a channel that may be read")

    def _begin(
        self, sink: TextSink, patterns: Sequence[str], start: Start, consumer: str | None = None
    ) -> None:
        sink.subscribe(self.caller, patterns, start, consumer)
        self._subscriptions[("own", sink.pattern)] = sink

    def message(self, payload: bytes, binary: bool) -> None:
        """Handle one message; report a refusal and keep the connection."""
        frame: TextFrame | None = None
        try:
            frame = parse(payload, binary)
            self._take(frame)
        except FrameRefused as refusal:
            self._refuse(refusal.id, refusal)
        except LinkdError as error:
            self._refuse(None if frame is None else frame.id, refusal_of(error))

    def receiving(self) -> None:
        """Send a pong as a message: a page is not shown those of the WebSocket."""
        if self.is_linkd:
            self._pong()

    def on_writable(self) -> None:
        """The client reads again."""
        if self._changed_links:
            self.send_links_soon()
        self._catch_up()
        self._rooms += 1
        # The smallest batches first: a large message must not hold up small ones, however many
        # connections share the processor; now and then the largest, else small ones hold it up.
        largest_first = self._rooms % LARGEST_EVERY == 0
        sinks = self._subscriptions.values()
        for sink in sorted(sinks, key=attrgetter("within_bytes"), reverse=largest_first):
            sink.resume()

    def closed(self) -> None:
        """Release everything after a disconnect."""
        self._ended = True
        while self._joined:
            self.api.presence.leave(*self._joined.popitem())
        for sink in list(self._subscriptions.values()):
            sink.close()
        self._subscriptions.clear()
        super().closed()

    # frames

    def _pong(self) -> None:
        """Answer a ping; others may have come since linkd.js opened."""
        spread = round(self.socket.websockets.return_spread(), 1) if self.is_linkd else 0.0
        if spread:
            self._send_object("pong", {"return_spread": spread})
        else:
            self.socket.send(PONG, False)

    def _introduce(self) -> None:
        """Send what linkd.js must know of this node first."""
        node = self.api.node
        more: dict[str, Any] = {
            "node": node.name,
            "version": VERSION,
            "log": node.log.id,
            "epoch": node.log.epoch,
            "next": node.log.next,
            "max_body_bytes": node.config.log.max_body_bytes,
            "return_spread": round(self.socket.websockets.return_spread(), 1),
        }
        if self._private is not None:
            more["private"] = self._private
        self._send_object("opened", more)

    def _take(self, frame: TextFrame) -> None:
        if frame.kind == "ping":
            for sink in self._subscriptions.values():
                sink.report_position()
            self._pong()
        elif frame.kind == "subscribe":
            self._subscribe(frame)
        elif frame.kind == "unsubscribe":
            self._unsubscribe(frame)
        elif frame.kind == "ack":
            self._acknowledge(frame)
        elif frame.kind == "publish":
            self._publish(frame)

    def _subscribe(self, frame: TextFrame) -> None:
        start: Start = "latest" if frame.start is None else frame.start
        if frame.seen:
            start = resumed(self.api.node.log, frame.seen)
        consumer = None if frame.consumer is None else lasting_consumer(frame.consumer)
        sink = self._follow(frame.channel or "", start, frame.subscription, consumer)
        if self._presence:
            self._join(sink.pattern, True)
        if frame.id is not None and sink.subscription is not None:
            more = {} if sink.name is None else {"epoch": sink.epoch}
            self._ack(frame.id, sink.subscription.next, **more)

    def _follow(
        self, pattern: str, start: Start, name: Name | None = None, consumer: str | None = None
    ) -> TextSink:
        """Follow a pattern; a pattern without a name that is already followed restarts."""
        self.caller.check_patterns((pattern,))
        most = self.api.node.config.limits.subscriptions
        spare = 1 if self._is_default else 0  # it did not ask for that one
        spare -= sum(not is_read for is_read in self._channels.values())  # it is present there
        key = ("pattern", pattern) if name is None else ("id", name)
        if name is not None and key in self._subscriptions:
            raise ApiError("malformed", f"subscription {str(name)[:64]} is in use")
        before = self._subscriptions.pop(key, None)
        if before is None and len(self._subscriptions) >= most + spare:
            raise ApiError("too-many", f"at most {most} subscriptions (limits.subscriptions)")
        if before is not None:
            before.close()
        sink = (TextSink if consumer is None else AckedSink)(self, self.api, pattern, name)
        sink.subscribe(self.caller, (pattern,), start, consumer)
        self._subscriptions[key] = sink
        return sink

    def _unsubscribe(self, frame: TextFrame) -> None:
        pattern, name = frame.channel or "", frame.subscription
        key = ("pattern", pattern) if name is None else ("id", name)
        sink = self._subscriptions.pop(key, None)
        if sink is None:
            wanted = pattern if name is None else f"subscription {name}"
            raise ApiError("not-found", f"{wanted[:80]} is not followed")
        sink.close()
        self._leave(*sink.patterns)
        if frame.id is not None:
            self._ack(frame.id, self.api.node.log.next)

    def _acknowledge(self, frame: TextFrame) -> None:
        """Move a consumer's cursor; an ack that is refused ends no subscription."""
        sink = self._subscriptions.get(("id", frame.subscription or ""))
        if not isinstance(sink, AckedSink):
            wanted = str(frame.subscription)[:64]
            raise ApiError("not-found", f"{wanted} is no subscription of a consumer")

        def stored(error: Exception | None) -> None:
            if error is not None:
                word = "not-found" if isinstance(error, LookupError) else "log-full"
                self._refuse(frame.id, ApiError(word, f"the cursor is not stored: {error}"))
            elif frame.id is not None:
                self._ack(frame.id, frame.next)

        sink.acked(frame.next, stored)

    def _publish(self, frame: TextFrame) -> None:
        channel = frame.channel or self._channel
        if channel is None:
            raise ApiError("malformed", "expected a channel, in the frame or in the URL")
        self.caller.check_publish(channel)
        config = self.api.node.config
        if len(frame.body) > config.log.max_body_bytes:
            raise too_large(len(frame.body), config.log.max_body_bytes)
        size = len(frame.body) + BATCH_OVERHEAD_BYTES
        most = config.limits.publish_pending_bytes
        if self._unsettled and self._unsettled + size > most:
            self.is_full = True
            raise ApiError("too-many", "too many bytes wait for the disk")
        id_ = "" if frame.id is None else str(frame.id)
        record = EncodedRecord(frame.body, frame.type, id_, frame.content_type, frame.headers)
        check_words(frame.type, id_)
        draft = NewRecords(
            channel,
            1,
            encode_records((record,)),
            wall(),
            None,
            (id_,) if id_ else (),
            owner=self.caller.name,
        )
        self._unsettled += size

        def settled(outcome: Appended | LinkdError) -> None:
            self._unsettled -= size
            if self.is_full and self._unsettled <= most // 2:
                self.is_full = False
                self.socket.unstick()
            if isinstance(outcome, LinkdError):
                self._refuse(frame.id, refusal_of(outcome))
            elif frame.id is not None:
                self._ack(frame.id, outcome.offset)

        self.api.node.publish(draft, settled)

    # what is sent

    def _ack(self, id: Name, offset: int, **more: Any) -> None:
        self._send_object("ack", {"id": id, "offset": offset, **more})

    def _refuse(self, id: Name | None, refusal: ApiError, subscription: Name | None = None) -> None:
        more = {"id": id, "error": refusal.error, "message": refusal.message}
        self.report("error", more, subscription)

    def _send_object(self, type_: str, value: Any) -> None:
        if not self._ended:
            self.socket.send(to_json({"type": type_, "data": value}), False)

    def report(self, type_: str, more: dict[str, Any], subscription: Name | None) -> None:
        """Send what happened to a subscription, with its name where it has one."""
        if subscription is not None:
            more["subscription"] = subscription
        self._send_object(type_, more)

    def lost(self, sink: TextSink, reason: str) -> None:
        """A subscription was ended by the node."""
        keys = [key for key, each in self._subscriptions.items() if each is sink]
        for key in keys:
            del self._subscriptions[key]
            if reason == "replaced" and sink.name is not None:
                message = "another client follows as this consumer"
                self._refuse(None, ApiError("in-use", message), sink.name)
                self._leave(*sink.patterns)
            elif reason == "replaced":
                message = "another client opened with this consumer's name"
                self.socket.close(*close_of(ApiError("in-use", message)))
            elif reason != "stopped":
                self._refuse(None, ApiError("internal", f"{sink.pattern}: {reason}"), sink.name)
                self._leave(*sink.patterns)

    def parted(self, messages: Iterator[OutgoingMessage]) -> Iterator[OutgoingMessage]:
        """Yield messages as linkd.js gets them, large ones in parts."""
        for one in messages:
            if len(one) > LARGE_BYTES:
                self._parted = (self._parted + 1) % 2**32
                yield from in_parts(self._parted, one)
            else:
                yield one

    # presence

    def _join(self, channel: str, is_read: bool) -> None:
        """Be there on a channel."""
        if channel not in self._joined:
            watcher = self if self._presence and is_read else None
            presence, key = self.api.presence, self.caller.name
            self._joined[channel] = presence.join(channel, self._name, key, watcher)

    def _leave(self, *channels: str) -> None:
        """Be there no more, unless another subscription follows the channel."""
        for channel in channels:
            if not any(channel in each.patterns for each in self._subscriptions.values()):
                number = self._joined.pop(channel, None)
                if number is not None:
                    self.api.presence.leave(channel, number)

    def changed(self, change: PresenceChange) -> None:
        """Send a join or leave; a client that does not read gets the count later."""
        if self.socket.paused:
            self._missed.add(change.channel)
        else:
            text = self._presence == "text"
            self.socket.send(change.sentence if text else change.message, False)

    def _catch_up(self) -> None:
        """Send the counts of channels whose changes were missed."""
        missed, self._missed = self._missed, set()
        for channel in missed & self._joined.keys():
            self.changed(PresenceChange("present", channel, self.api.presence.count(channel)))

    # status

    def send_links(self, changed: Iterable[tuple[LinkStatus, str]]) -> None:
        """Send the status of changed links."""
        for link, _ in changed:
            self._send_object("status", link)


class TextSink(SlicedSink[OutgoingMessage]):
    """Deliver one pattern's records.

    Args:
        session: The client.
        api: The API.
        pattern: The pattern that it follows.
        name: The client's name for it; None: the pattern is its name.

    Attributes:
        epoch: The epoch of the next record, as far as the client knows.
    """

    def __init__(
        self, session: TextSession, api: ApiServer, pattern: str, name: Name | None = None
    ) -> None:
        super().__init__(api, api.budget.for_caller(session.caller.name))
        self.pattern = pattern
        self.patterns: tuple[str, ...] = (pattern,)
        self.name = name
        self.epoch = ""
        self._session = session
        self._dropped = 0
        self._reported = 0  # the client knows that everything below is over

    def subscribe(
        self, caller: Caller, patterns: Sequence[str], start: Start, consumer: str | None = None
    ) -> Follower:
        """Follow these patterns; see `ApiSink.subscribe`."""
        found = super().subscribe(caller, patterns, start, consumer)
        self._reported = found.next
        self.patterns = tuple(patterns)
        self.epoch = self._api.node.log.state.epoch_below(found.next)
        return found

    def is_open_for(self, size: int) -> bool:
        """Return whether the client reads."""
        return self._session.socket.has_room(size, self.within_bytes < OVERTAKING_BYTES)

    def pieces(self, batch: Batch) -> Iterator[OutgoingMessage]:
        """Yield each record as a message."""
        session = self._session
        messages = render_messages(batch, session.envelope, self.name)
        return session.parted(messages) if session.is_linkd else messages

    def batch(self, batch: Batch) -> bool:
        """Send a batch's records; announce an epoch before its first record."""
        if self.name is not None and batch.epoch != self.epoch:
            self._position(batch.offset, batch.epoch)
        self._reported = batch.next
        return super().batch(batch)

    def report_position(self) -> None:
        """Send where a quiet subscription is: what was for others need not be read again."""
        if self.name is None or self.subscription is None or self.is_within:
            return
        position = self.subscription.position()
        if position > self._reported and not self._session.socket.paused:
            self._reported = position
            self._position(position, self._api.node.log.state.epoch_below(position))

    def _position(self, next: int, epoch: str) -> None:
        self.epoch = epoch
        self._session.report("position", {"next": next, "epoch": epoch}, self.name)

    def put(self, pieces: list[OutgoingMessage]) -> None:
        """Send messages."""
        send = self._session.socket.send
        for one in pieces:
            send(one.payload, one.binary)

    def volatile(self, batch: Batch) -> None:
        """Send them where the client keeps up; else count them."""
        if self.is_within or not self.is_open_for(len(batch.records)):
            self._dropped += batch.count
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            more = {"channel": self.pattern, "dropped": dropped}
            self._session.report("gap", more, self.name)
        self.put(list(self.pieces(batch)))

    def gap(self, first: int, next: int) -> None:
        """Report that offsets are gone."""
        more = {"channel": self.pattern, "first": first, "next": next}
        self._session.report("gap", more, self.name)

    def end(self, reason: str) -> None:
        """End the subscription."""
        self.report_position()
        self.subscription = None
        self.refund()
        self._session.lost(self, reason)


class AckedSink(TextSink):
    """Where the records of a consumer go whose client acknowledges what it has handled."""

    def __init__(
        self, session: TextSession, api: ApiServer, pattern: str, name: Name | None = None
    ) -> None:
        super().__init__(session, api, pattern, name)
        self._unacked: deque[tuple[int, int]] = deque()  # the next offset, bytes
        self._unacked_bytes = 0

    def is_open_for(self, size: int) -> bool:
        """Return whether the client reads, and has handled most of what it has got.

        A batch that has begun goes out whole: an ack in the middle of it makes no room.
        """
        has_room = self.is_within or self._unacked_bytes < UNACKED_BYTES
        return has_room and super().is_open_for(size)

    def batch(self, batch: Batch) -> bool:
        """Send a batch's records, and count them until they are acknowledged."""
        self._unacked.append((batch.next, len(batch.records)))
        self._unacked_bytes += len(batch.records)
        return super().batch(batch)

    def acked(self, next: int, done: Callable[[Exception | None], None]) -> None:
        """Move the cursor, and send more."""
        while self._unacked and self._unacked[0][0] <= next:
            self._unacked_bytes -= self._unacked.popleft()[1]
        if self.subscription is not None:
            self.subscription.ack(next, done)
        self.resume()


class ConfirmedSink(TextSink):
    """Where the records of a consumer go whose client sends no acks.

    A pong answers a ping only once everything before it has been received: so far the cursor moves.
    """

    _acked = 0
    _awaits = False
    """A ping is on its way, or about to be."""

    def put(self, pieces: list[OutgoingMessage]) -> None:
        """Send messages, and ask soon whether they were received."""
        super().put(pieces)
        self._ask_soon()

    def _ask_soon(self) -> None:
        if not self._awaits:
            self._awaits = True
            self._api.reactor.callLater(CONFIRM_SECONDS, self._ask)

    def _ask(self) -> None:
        self._awaits = False
        subscription, socket = self.subscription, self._session.socket
        if subscription is None or not socket.open:
            return
        if self.is_within:
            self._ask_soon()
            return
        position = subscription.position()
        if position > self._acked:
            self._awaits = True
            socket.confirm(lambda: self._received(position))

    def _received(self, position: int) -> None:
        self._awaits, self._acked = False, position
        if self.subscription is not None:
            self.subscription.ack(position, lambda _: None)
            if self.subscription.position() > position:
                self._ask_soon()


def _consumer(call: Call) -> str | None:
    """Return the consumer under whose name the client follows, if it asks for one."""
    name, id_ = call.text("consumer"), call.text("resume")
    if name is not None and id_ is not None:
        raise ApiError("malformed", "expected consumer or resume, got both")
    if id_ is not None:
        return check_consumer(f"{RESUME_PREFIX}{id_}")
    return None if name is None else lasting_consumer(name)


def _presence(call: Call) -> str:
    """Return how the client receives joins and leaves; empty: not at all."""
    given = call.text("presence")
    if given not in (None, "0", "1", "text"):
        raise ApiError("malformed", f"presence: expected 0, 1 or text, got {given[:40]!r}")
    return "" if given in (None, "0") else given


def _name(call: Call) -> str | None:
    """Return the name that the URL gives, if it does; raise ApiError where it is no name.

    An application's own `uid` is none where it does not fit.
    """
    given, uid = call.text("name"), call.text("uid")
    if given and (len(given) > MAX_NAME or not given.isprintable()):
        raise ApiError("malformed", f"name: expected at most {MAX_NAME} printable characters")
    return given or (uid if uid and uid.isprintable() else None)


def _flag(call: Call, name: str) -> bool:
    """Return a query value that is 0 or 1."""
    given = call.text(name)
    if given not in _FLAGS:
        raise ApiError("malformed", f"{name}: expected 0 or 1, got {(given or '')[:40]!r}")
    return _FLAGS[given]
