"""The state of a client, without any I/O: it outlives connections and restarts of the daemon.

The edges (asyncio, Twisted) call `connected`, `received` and `lost` as connections come and go, and
after each call send what `take` returns. Publishes that were in flight are sent again under their
numbers, so that the daemon stores each once; subscriptions continue at their position.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any, Final

import msgspec

from linkd.client.errors import NoDaemon, Refused, TimedOut
from linkd.client.publisher import DEFAULT_BYTES, Batcher, InFlightPublishes
from linkd.client.subscription import DEFAULT_WINDOW, Done, SubscriptionState
from linkd.errors import BodyTooLarge, ChannelRefused, LinkdError
from linkd.protocol import client
from linkd.protocol.channels import check_channel, is_pattern
from linkd.protocol.client import FromClient
from linkd.version import VERSION

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""No daemon takes a larger body: a message of the stream holds no more."""

MAX_ASKED: Final = 8192
"""So many waits may be asked of a daemon at once, which takes 10,000; the others follow."""

MESSAGE_BYTES: Final = 262_144
"""A message is closed once it holds so many bytes."""


class _PendingWait(msgspec.Struct):
    """A publisher that waits for a peer: deadline and callback."""

    peer: str
    channel: str
    next: int
    deadline: float
    done: Done
    late: bool = False


class DaemonSession:
    """The state that outlives connections.

    Attributes:
        flight: The publishes in flight.
        gatherer: Single publishes that become batches.
        open: Whether the daemon has answered on the present connection.
        node: The daemon's node name, once known.
        max_body_bytes: The daemon's bound, once known.
        links: The state of the link to each peer, as the daemon reports it.
        on_open: Called when the daemon has answered and all is restored.
        on_links: Called with `links` when they changed.

    Args:
        producer: A unique name: the daemon settles the numbers of publishes under it.
        max_bytes: The most bytes of publishes in flight.
        run: A random word of this process, if the name outlives it.
    """

    def __init__(self, producer: str, max_bytes: int = DEFAULT_BYTES, run: str = "") -> None:
        self.flight = InFlightPublishes(max_bytes)
        self.gatherer = Batcher(self.flight)
        self.open = False
        self.node = ""
        self.max_body_bytes: int | None = None
        self.links: dict[str, str] = {}
        self.on_open: Callable[[], None] = nothing
        self.on_links: Callable[[dict[str, str]], None] = nothing
        self.last_failure: LinkdError | None = None
        software = f"linkd-python {VERSION}"
        self._hello = client.checked(client.Open(client.VERSION, producer, software, run))
        self._max_bytes = max_bytes
        self._log = ""
        self._log_next = 0
        self._epochs: client.Epochs = ()
        self._ids = 0
        self._readers: dict[int, SubscriptionState] = {}
        self._questions: dict[int, _PendingWait] = {}
        self._unasked: deque[int] = deque()
        self._asked = 0  # questions that the daemon has not answered
        self._deadlines: list[tuple[float, int]] = []
        self._control: list[FromClient] = []
        self._reopening = False
        to_reader = self._to_reader
        self._calls: dict[type, Callable[[Any], None]] = {
            client.Deliver: to_reader(SubscriptionState.deliver),
            client.Published: self.flight.published,
            client.PublishedRun: self.flight.run,
            client.PublishFailed: self._publish_failed,
            client.Opened: self._opened,
            client.StatusChanged: self._status,
            client.WaitResult: self._waited,
            client.Failed: self._failed,
            client.DeliverVolatile: to_reader(SubscriptionState.deliver_volatile),
            client.ConsumerAcked: to_reader(SubscriptionState.acked),
            client.AckFailed: to_reader(SubscriptionState.ack_failed),
            client.Subscribed: to_reader(SubscriptionState.begun),
            client.SubscriptionGap: to_reader(SubscriptionState.gap),
            client.Position: to_reader(SubscriptionState.position),
            client.Ended: to_reader(self._end),
        }

    # From the application

    def check_publish(self, channel: str, size: int, when_down: str) -> None:
        """Raise at once what the daemon would refuse, and what can't wait.

        Raises:
            ChannelRefused: It is no channel.
            BodyTooLarge: The body is larger than the daemon accepts.
            NoDaemon: There is no connection, and `when_down` is `fail`.
        """
        check_channel(channel)
        self.check_body(size)
        if when_down == "fail" and not self.open:
            raise NoDaemon("there is no connection to the daemon now")

    def check_body(self, size: int) -> None:
        """Raise BodyTooLarge if a body is larger than this daemon, or any daemon, accepts."""
        most = MAX_BODY_BYTES
        if self.max_body_bytes is not None:
            most = min(most, self.max_body_bytes)
        if size > most:
            raise BodyTooLarge(f"expected a body of at most {most} bytes, got {size}")

    def subscribe(
        self,
        patterns: Sequence[str],
        start: client.Start,
        consumer: str = "",
        window: int = DEFAULT_WINDOW,
    ) -> SubscriptionState:
        """Start a subscription; the caller sets the reader's `queue` and `reading` at once.

        Raises:
            ChannelRefused: A pattern is malformed, or there is none.
            ValueError: Start, consumer or window is malformed, or there are too many patterns.
        """
        for pattern in patterns:
            if not is_pattern(pattern):
                raise ChannelRefused(f"{pattern[:80]!r} is no channel and no pattern")
        if not patterns:
            raise ChannelRefused("expected a channel or pattern, got none")
        self._ids += 1
        client.checked(client.Subscribe(self._ids, tuple(patterns), start, consumer, window))
        reader = SubscriptionState(self._ids, tuple(patterns), start, consumer, window)
        self._readers[reader.id] = reader
        if self.open:
            self._control.append(reader.restore(self._log_next))
        return reader

    def unsubscribe(self, reader: SubscriptionState) -> None:
        """End a subscription at once."""
        if self._readers.pop(reader.id, None) is not None and self.open:
            self._control += reader.to_send()
            self._control.append(client.Unsubscribe(reader.id))
        reader.finish(None)

    def wait(self, peer: str, channel: str, next: int, deadline: float, done: Done) -> None:
        """Call `done` once `peer` has all below `next` on disk, or with the error.

        Args:
            peer: The peer's name.
            channel: The channel concerned.
            next: One more than the last offset concerned; 0 for everything published so far.
            deadline: Monotonic seconds.
            done: Called once; with TimedOut if the peer did not receive it in time.
        """
        self._ids += 1
        self._questions[self._ids] = _PendingWait(peer, channel, next, deadline, done)
        self._unasked.append(self._ids)
        heappush(self._deadlines, (deadline, self._ids))

    @property
    def displaced(self) -> bool:
        """Whether another client opened under this producer's name: the two must not take turns."""
        failure = self.last_failure
        return isinstance(failure, Refused) and failure.error == "replaced"

    def close(self, closed: LinkdError) -> None:
        """Fail all pending operations with `closed`."""
        self.gatherer.seal()
        self.flight.abandon(closed)
        for reader in list(self._readers.values()):
            reader.finish(closed)
        self._readers.clear()
        for question in list(self._questions.values()):
            question.done(closed)
        self._questions.clear()

    # From the edge

    def connected(self) -> None:
        """Start on a new connection, after its upgrade."""
        self.last_failure = None
        self._control = [self._hello]
        self._reopening = False

    def lost(self) -> None:
        """Note that the connection was lost; the next one restores everything."""
        self.open = False
        self._control.clear()
        self.flight.lost()
        self._unasked = deque(self._questions)
        self._asked = 0
        if self.links:
            self.links = {}
            self.on_links(self.links)

    def received(self, message: bytes) -> None:
        """Handle one message of the daemon; raise RemoteProtocolError if it is malformed."""
        calls = self._calls
        for frame in client.decode_from_daemon(message):
            calls[type(frame)](frame)

    def take(self, now: float) -> list[bytes]:
        """Return the messages to send now, in order.

        Args:
            now: Monotonic seconds.
        """
        frames: list[bytes] = []
        if self._control:
            control, self._control = self._control, []
            frames += map(client.encode_frame, control)
        if self.open:
            for reader in self._readers.values():
                frames += map(client.encode_frame, reader.to_send())
            self.gatherer.seal()
            frames += self.flight.next_to_send()
            if self._unasked:
                frames += map(client.encode_frame, self._ask(now))
        return _messages(frames)

    def expire(self, now: float) -> float | None:
        """Expire waits at their deadline; return the next deadline, or None."""
        while self._deadlines:
            deadline, id_ = self._deadlines[0]
            if id_ in self._questions and deadline > now:
                return deadline
            heappop(self._deadlines)
            if (question := self._questions.pop(id_, None)) is not None:
                question.done(_late(question.peer))
        return None

    # Frames

    def _to_reader(self, take: Callable[[SubscriptionState, Any], None]) -> Callable[[Any], None]:
        """Return a handler that passes a frame to its subscription, if it still exists."""
        readers = self._readers

        def taken(frame: Any) -> None:
            if (reader := readers.get(frame.id)) is not None:
                take(reader, frame)

        return taken

    def _end(self, reader: SubscriptionState, frame: client.Ended) -> None:
        reader.end(frame)
        if reader.over:
            self._readers.pop(frame.id, None)

    def _publish_failed(self, frame: client.PublishFailed) -> None:
        self.flight.failed(frame)
        self._start_over(frame)

    def _status(self, frame: client.StatusChanged) -> None:
        changed: dict[str, str] = {link.peer: link.state for link in frame.links}
        self.links = {**self.links, **changed} if frame.event else changed
        self.on_links(self.links)

    def _opened(self, frame: client.Opened) -> None:
        """Restore everything once the daemon has answered: subscriptions, then publishes."""
        agreed = 0
        if self._log in ("", frame.log):
            agreed = client.agreed(self._epochs, frame.epochs, frame.next)
        self._log, self._log_next, self._epochs = frame.log, frame.next, frame.epochs
        self.node, self.max_body_bytes = frame.node, frame.max_body_bytes
        self.flight.max_bytes = min(self._max_bytes, frame.max_pending_bytes)
        if self.open:
            self._reopening = False
            return
        self.open = True
        self.flight.begin_above(frame.highest)
        self._control.append(client.WatchStatus())
        self._control += [reader.restore(agreed) for reader in self._readers.values()]
        self.on_open()

    def _start_over(self, frame: client.PublishFailed) -> None:
        """Have the daemon accept publishes again: it refuses all after one that may be repeated."""
        if frame.error in ("log-full", "log-unavailable", "too-many") and not self._reopening:
            self._reopening = True
            self._control.append(self._hello)

    def _ask(self, now: float) -> list[FromClient]:
        """Return the waits not sent to this daemon yet, or answered too early."""
        asked: list[FromClient] = []
        while self._unasked and self._asked < MAX_ASKED:
            id_ = self._unasked.popleft()
            each = self._questions.get(id_)
            if each is None:
                continue
            if each.late and each.deadline <= now:
                del self._questions[id_]
                each.done(_late(each.peer))
                continue
            left = max(0.0, each.deadline - now)
            self._asked += 1
            asked.append(client.WaitForPeer(id_, each.peer, each.channel, each.next, left))
        return asked

    def _waited(self, frame: client.WaitResult) -> None:
        id_, error = frame.id, frame.error
        self._asked = max(0, self._asked - 1)
        question = self._questions.get(id_)
        if question is None:
            return
        if error == "timeout":  # a daemon waits for an hour at most: the deadline may be later
            question.late = True
            self._unasked.append(id_)
            return
        del self._questions[id_]
        question.done(Refused(error, frame.message) if error else None)

    def _failed(self, frame: client.Failed) -> None:
        """Handle a refusal: of a subscription that has not begun, or of the connection."""
        refused = Refused(frame.error, frame.message)
        reader = self._readers.get(frame.id)
        if not frame.id:
            self.last_failure = refused
        elif reader is not None and reader.is_asked:
            del self._readers[frame.id]
            reader.finish(refused)


def _messages(frames: list[bytes]) -> list[bytes]:
    """Pack encoded frames into messages of about 256 KiB; a larger frame is sent alone."""
    if len(frames) == 1:
        return [client.join(frames, 1)]
    messages: list[bytes] = []
    held: list[bytes] = []
    size = 0
    for frame in frames:
        if held and size + len(frame) > MESSAGE_BYTES:
            messages.append(client.join(held, len(held)))
            held, size = [], 0
        held.append(frame)
        size += len(frame)
    if held:
        messages.append(client.join(held, len(held)))
    return messages


def _late(peer: str) -> TimedOut:
    return TimedOut("timeout", f"{peer} did not have it in time; it is stored and will get there")


def nothing(*_: object) -> None:
    """Do nothing: the default of a hook."""
