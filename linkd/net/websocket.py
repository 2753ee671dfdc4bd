"""Autobahn as linkd uses it: protocol classes, fast parsing of whole frames, adaptive buffers.

Autobahn needs about 15 µs for a message and copies it four times; this module parses frames that
arrive complete itself. Masking uses the websockets library, which is faster (measured: 64 KiB in
3.5 µs instead of 16 to 22 µs, 1 KiB in 0.2 µs instead of 3 µs).
"""

from __future__ import annotations

import errno
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Final, Self

from autobahn.twisted import websocket
from autobahn.websocket import protocol, types
from twisted.internet.abstract import FileDescriptor
from twisted.internet.base import ReactorBase
from twisted.internet.main import CONNECTION_LOST
from twisted.logger import Logger

from linkd.net.linux import NOTSENT_BYTES, keep_unsent_small

try:
    from websockets.speedups import apply_mask as _apply_mask
except ImportError:  # installed without its native extension
    from websockets.utils import apply_mask as _apply_mask

_Server: Any = websocket.WebSocketServerProtocol
_Client: Any = websocket.WebSocketClientProtocol
ServerFactory: Any = websocket.WebSocketServerFactory
ClientFactory: Any = websocket.WebSocketClientFactory

ConnectionDeny: Any = types.ConnectionDeny
ConnectingRequest: Any = types.ConnectingRequest

FrameHeader: Any = vars(protocol)["FrameHeader"]

STATE_CLOSED: int = protocol.WebSocketProtocol.STATE_CLOSED
STATE_CLOSING: int = protocol.WebSocketProtocol.STATE_CLOSING
STATE_OPEN: int = protocol.WebSocketProtocol.STATE_OPEN


apply_mask: Callable[[bytes | memoryview, bytes], bytes] = _apply_mask
"""Masks or unmasks a payload, its first argument, by four bytes."""


def _plain(value: object, **_: object) -> object:
    return value


for _module in (protocol, websocket):
    # Autobahn colors the values of each debug line, logged or not: 60 of the 600 µs of a handshake.
    vars(_module).update(hlval=_plain, hltype=_plain)


class SilentLogger:
    """Discards Autobahn's log lines, since linkd logs each event itself; keeps errors as debug."""

    _log = Logger(namespace="linkd.net.autobahn")

    def debug(self, *_: object, **__: object) -> None:
        """Log nothing."""

    info = warn = trace = debug

    def error(self, format: str | None = None, **fields: object) -> None:
        """Log at debug level: operators see the event of the connection's end instead."""
        self._log.debug(format or "", **fields)

    critical = failure = error


class _Options:
    """Copies a protocol's options from its factory; a mixin that precedes Autobahn's class.

    Autobahn's own code also formats a list of the options for its log each time, which took 250 of
    the 350 µs of a new connection (measured), even of one that is refused.
    """

    CONFIG_ATTRS: ClassVar[tuple[str, ...]] = ()  # none are left for Autobahn to copy
    options: ClassVar[tuple[str, ...]]
    factory: Any

    @classmethod
    def with_options(cls, factory: Any) -> type[Self]:
        """Return this class with the present options of a factory, so that nothing is copied.

        Connections keep the class, and so the options, with which they began.
        """
        values: dict[str, Any] = {"__module__": cls.__module__}
        for name in cls.options:
            if not hasattr(cls, name):
                value = getattr(factory, name)
                values[name] = staticmethod(value) if callable(value) else value
        make: Any = type(cls)
        return make(cls.__name__, (cls,), values)  # type: ignore[no-any-return]

    def _connectionMade(self) -> None:
        for name in self.options:
            if not hasattr(self, name):
                setattr(self, name, getattr(self.factory, name))
        super()._connectionMade()  # type: ignore[misc]


class ServerProtocol(_Options, _Server):  # type: ignore[misc]
    """Autobahn's protocol of the end that accepts."""

    options = tuple(_Server.CONFIG_ATTRS)
    _transport_details: Any = SimpleNamespace(is_secure=False)

    def connectionMade(self) -> None:
        """Begin, without Autobahn's details of the transport, which only its log shows."""
        self.peer = ""
        self._connectionMade()


class ClientProtocol(_Options, _Client):  # type: ignore[misc]
    """Autobahn's protocol of the end that dials."""

    options = tuple(_Client.CONFIG_ATTRS)


TEXT: Final = 0x81
MESSAGE: Final = 0x82
PING: Final = 0x89
PONG: Final = 0x8A
SMALL_BYTES: Final = 1536
"""A payload below this size is appended to its header, to write one piece instead of two."""

_VIEW_BYTES: Final = 4096
"""A payload of this size or more is unmasked without being copied first (measured)."""

_WHOLE: Final = (MESSAGE, PING, PONG)

Found = tuple[int, bytes, int]
"""A frame: its first byte, its payload, and the position of the next frame."""


def take(data: bytes, position: int, masked: int, most: int) -> Found | int:
    """Return the frame at `position`.

    Args:
        data: What was received.
        position: Where the frame begins.
        masked: 0x80 where frames must be masked, else 0.
        most: The longest payload, in bytes, that is not left to Autobahn.

    Returns:
        The frame; or the minimum number of bytes that are missing; or 0 where Autobahn must parse
        or refuse the frame.
    """
    size = len(data)
    if size - position < 2:
        return position + 2 - size
    first, second = data[position], data[position + 1]
    if first not in _WHOLE or second & 0x80 != masked:
        return 0
    length, start = second & 0x7F, position + 2
    if length >= 126:
        wide = 2 if length == 126 else 8
        if first != MESSAGE:
            return 0
        if start + wide > size:
            return start + wide - size
        length = int.from_bytes(data[start : start + wide], "big")
        if length > most or length < (126 if wide == 2 else 65_536):
            return 0
        start += wide
    if masked:
        start += 4
    end = start + length
    if end > size:
        return end - size
    if not masked:
        return first, data[start:end], end
    payload = memoryview(data)[start:end] if length >= _VIEW_BYTES else data[start:end]
    return first, apply_mask(payload, data[start - 4 : start]), end


def frame_head(first: int, length: int, masked: int = 0) -> bytes:
    """Return the head of a frame without its mask; `masked` is 0x80 where a mask follows."""
    if length < 126:
        return bytes((first, masked | length))
    if length < 65_536:
        return bytes((first, masked | 126, length >> 8, length & 0xFF))
    return bytes((first, masked | 127)) + length.to_bytes(8, "big")


def put(first: int, payload: bytes, masked: int) -> tuple[bytes, bytes]:
    """Return a frame's head and its payload, masked where `masked` is 0x80, not where it is 0."""
    head = frame_head(first, len(payload), masked)
    if not masked:
        return head, payload
    mask = random.getrandbits(32).to_bytes(4, "big")
    return head + mask, apply_mask(payload, mask)


LEAST_BYTES: Final = 65_536
"""Twisted's buffer size, with which every connection begins."""

MOST_BYTES: Final = 262_144
"""A buffer four times as large saves a fifth of the time of a record of 64 KiB (measured)."""

QUICK_SECONDS: Final = 0.008
"""A line is quick if `LEAST_BYTES` take at most this: then `MOST_BYTES` delay a ping by 32 ms."""

QUICK_BYTES: Final = 4 * LEAST_BYTES
"""Bytes of consecutive quick writes to widen: the first only fill the kernel's empty buffers.

A line of 1 Mbit/s with a queue of 37 kB sometimes accepts four writes of a page's 8 KiB at once
(measured). They proved it quick: 256 KiB then waited, and a small message behind them for 2.4 s.
"""

LARGE_BYTES: Final = 1024
"""Smaller frames cost by number: a large read of them would take a long iteration."""

PAGE_BYTES: Final = 8192
"""Initial buffer for a browser, here and again in the kernel, until its line proves quick.

At 50 kB/s a small message then waits 0.5 s instead of 4 s behind parts of a large one.
"""

_MOST_PIECES: Final = 64
"""Pieces offered to the kernel in one call."""

_MOST_ROUNDS: Final = 4
"""How often a turn sends: an iteration for each filling takes 5 % more for 64 KiB (measured)."""

_JOINED_BYTES: Final = 8192
"""Pieces that are smaller on average are joined first: a piece costs as much as so many bytes."""

_FULL: Final = (errno.EWOULDBLOCK, errno.ENOBUFS)


class DirectWriter:
    """Replaces a socket's sending half by one of fewer calls that does not copy large pieces.

    Twisted makes fourteen calls for each message, and joins all that waits before each write.

    Args:
        stream: A Twisted socket. TLS, if any, is a transport above it.
    """

    __slots__ = ("_finish", "_stream")

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._finish = stream.doWrite
        stream.doWrite = self._send
        stream.write, stream.writeSequence = self._write, self._write_all

    def _write(self, data: bytes) -> None:
        self._write_all((data,))

    def _write_all(self, pieces: Sequence[bytes]) -> None:
        stream = self._stream
        if not stream.connected or stream._writeDisconnected:
            return
        stream._tempDataBuffer += pieces
        stream._tempDataLen += sum(map(len, pieces))
        waiting = stream._tempDataLen + len(stream.dataBuffer)
        if waiting > stream.bufferSize and stream.streamingProducer and stream.producer is not None:
            stream.producerPaused = True
            stream.producer.pauseProducing()
        stream.reactor.addWriter(stream)

    def _send(self) -> Any:
        """Send what the kernel takes, and what the producer then adds.

        Return an error where the connection is lost.
        """
        stream = self._stream
        for _ in range(_MOST_ROUNDS):
            queue: list[bytes] = stream._tempDataBuffer
            if len(queue) > 1 and stream._tempDataLen < _JOINED_BYTES * len(queue):
                queue[:] = [b"".join(queue)]
            pieces: list[bytes | memoryview] = [*queue[:_MOST_PIECES]]
            if stream.dataBuffer:
                pieces.insert(0, memoryview(stream.dataBuffer)[stream.offset :])
            try:
                sent = stream.socket.sendmsg(pieces)
            except OSError as error:
                return None if error.errno in _FULL else CONNECTION_LOST
            if sent != stream._tempDataLen or stream.dataBuffer:
                self._sent(sent)
                if queue or stream.dataBuffer:
                    return None
            queue.clear()
            stream._tempDataLen = 0
            if stream.disconnecting or stream._writeDisconnecting or not stream.streamingProducer:
                return self._finish()  # nothing is left to write, but there is more to do
            if stream.producerPaused and stream.producer is not None:
                stream.producerPaused = False
                stream.producer.resumeProducing()
            if not queue or stream.disconnecting:
                break
        if not stream._tempDataBuffer:
            stream.reactor.removeWriter(stream)
        return None

    def _sent(self, size: int) -> None:
        """Take from the queue what was sent."""
        stream = self._stream
        rest = len(stream.dataBuffer) - stream.offset
        if size < rest:
            stream.offset += size
            return
        size -= rest
        queue, done = stream._tempDataBuffer, 0
        while done < len(queue) and size >= len(queue[done]):
            size -= len(queue[done])
            done += 1
        stream.dataBuffer = queue[done] if size else b""
        stream.offset = size
        del queue[: done + 1 if size else done]
        stream._tempDataLen = sum(map(len, queue))


class AdaptiveBuffer:
    """Widens a transport's buffers while data passes through them quickly.

    On a slow line a larger buffer would only delay pings and acks. Twisted has one buffer size for
    both directions, so full reads do not widen it while sending is slow, nor after a full read of
    small frames.

    Args:
        transport: A protocol's transport. Only a plain socket is adapted: TLS passes data on in
            pieces of its own, and the size of its frames is known too late.
        is_page: The peer may be a browser. Buffers are then small from the start, also in the
            kernel and below TLS, and only sending widens them.
    """

    __slots__ = (
        "_is_page",
        "_paused_at",
        "_quick_bytes",
        "_resumed_at",
        "_slow",
        "_small",
        "_stream",
    )

    def __init__(self, transport: object, is_page: bool = False) -> None:
        if is_page:
            transport = getattr(transport, "transport", transport)
        self._stream = transport if isinstance(transport, FileDescriptor) else None
        self._is_page = is_page
        self._paused_at = self._resumed_at = 0.0
        self._quick_bytes = 0
        self._slow = self._small = False
        if self._stream is not None:
            DirectWriter(self._stream)
        if is_page:
            self._set(PAGE_BYTES)

    def filled(self, size: int, frames: int) -> None:
        """Note a read that filled the buffer: its bytes, and how many frames ended in it."""
        if self._is_page:
            return
        if frames * LARGE_BYTES > size:
            self._small = True
            self._set(LEAST_BYTES)
        elif not (self._slow or self._small):
            self._set(MOST_BYTES)

    def paused(self, now: float) -> None:
        """Note that the send buffer is full; `now` is monotonic seconds."""
        if self._is_page and now - self._resumed_at > QUICK_SECONDS:
            self._quick_bytes = 0  # the kernel's buffers have drained meanwhile
        self._paused_at = now

    def resumed(self, now: float) -> None:
        """Note that the kernel has accepted the whole buffer."""
        stream, self._resumed_at = self._stream, now
        if stream is None:
            return
        if now - self._paused_at > QUICK_SECONDS * stream.bufferSize / LEAST_BYTES:
            self._slow, self._quick_bytes = True, 0
            self._set(PAGE_BYTES if self._is_page else LEAST_BYTES)
            return
        self._quick_bytes += stream.bufferSize
        if self._quick_bytes >= QUICK_BYTES:
            self._slow = False
            if not self._small:
                self._set(MOST_BYTES)

    def _set(self, size: int) -> None:
        if self._stream is not None and self._stream.bufferSize != size:
            self._stream.bufferSize = size
            if self._is_page:
                keep_unsent_small(self._stream, min(size, NOTSENT_BYTES))


TURN_SECONDS: Final = 0.005
"""Maximum time that one connection gets in an iteration; the rest of its frames waits.

A read may hold 37,000 frames (measured: with eight clients that sent texts of one byte, a call of
`/v1/status` took 8 s, and 0.2 s with this bound).
"""

_LOOK_EVERY: Final = 16
"""Number of short frames between two checks of the clock."""

_OPEN: Final = STATE_OPEN
_LIVING: Final = (STATE_OPEN, STATE_CLOSING)
_SMALL_PIECE_BYTES: Final = 16_384
_LAST_DATA: Final = 7  # the opcodes of control frames are greater


class FrameReader(ABC):
    """The receiving half of a connection; a mixin for Autobahn's protocol classes.

    Attributes:
        masked: 0x80 where the peer masks its frames, else 0.
        most_whole: The longest payload, in bytes, of a frame that is collected and parsed whole.
        data: Received bytes that are not processed yet; Autobahn's, like the next four.
        state: The state of the WebSocket.
        current_frame: A partially received frame.
        inside_message: More frames of a message follow.
        message_data_total_length: Bytes of the message received so far.
        pace: The transport's buffer sizes, once connected.
        transport: The transport.
        clock: The reactor.
        busy: A message is still being processed: later ones wait.
    """

    masked: ClassVar[int]
    most_whole: int
    data: bytes
    state: int
    current_frame: Any
    inside_message: bool
    message_data_total_length: int
    message_data: Any
    frame_data: Any
    transport: Any
    clock: ReactorBase
    pace: AdaptiveBuffer | None = None
    busy = False
    _pieces: list[bytes] | None = None
    """Received pieces of an incomplete frame, after `data`."""

    _missing = 0
    _expected = 0
    """Total size of the incomplete frame."""

    _ended = 0
    """Frames, or parts that Autobahn parsed, completed in this iteration."""

    _until = 0.0
    """When this iteration's time for this connection ends, on the reactor's clock."""

    _resting = False
    """Received bytes wait for the next iteration; nothing is read until then."""

    def gather(self, data: bytes) -> None:
        """Collect received bytes, and process them once they may hold a frame.

        A long frame is joined once, when it is complete.
        """
        left = self.turn_left()
        self._ended = 0 if left > 0 else 1  # without any time left nothing is processed
        self._until = self.clock.seconds() + left
        pieces = self._pieces
        if pieces is None:
            self.data = self.data + data if self.data else data
        else:
            pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                _merge_small(pieces)
            elif self.busy or (self._ended and self._is_late()):  # joining it is work, too
                self._rest()
            else:
                self._pieces = None
                self.data = b"".join([self.data, *pieces])
        if self._pieces is None:
            self.consumeData()
        if len(data) >= LEAST_BYTES and self.pace is not None:
            self.pace.filled(len(data), self._ended)

    def turn_left(self) -> float:
        """Return for how many seconds this connection may be processed now."""
        return TURN_SECONDS

    def go_on_later(self, call: Callable[[], None]) -> None:
        """Schedule the processing of this connection for its next turn."""
        self.clock.callLater(0, call)

    def consumeData(self) -> None:
        """Process received bytes."""
        while self.state in _LIVING:
            # At least one frame is always processed.
            if self._resting or self.busy or (self._ended and self._is_late()):
                self._rest()
                return
            begun = self.current_frame is not None or self.inside_message
            if not begun and self.state == _OPEN and self._take():
                break
            if self._ended and self._is_late():
                continue
            self._ended += 1
            if not self.processData():  # type: ignore[attr-defined]
                break
        else:
            if self.data:
                super().consumeData()  # type: ignore[misc]
        if self.busy:
            self._rest()

    def _is_late(self) -> bool:
        """Return whether this turn's time is spent."""
        return self.clock.seconds() >= self._until

    def _rest(self) -> None:
        """Continue in the next turn, if any bytes are left."""
        waits = self.data or self.busy or (self._pieces is not None and self._missing <= 0)
        if waits and not self._resting:
            self._resting = True
            self.transport.pauseProducing()
            self.go_on_later(self._go_on)

    def _go_on(self) -> None:
        """Process the rest, then resume reading; the pause in reading does not count as silence."""
        self._resting = False
        self.dataReceived(b"")
        if not self._resting:
            self.transport.resumeProducing()

    @abstractmethod
    def dataReceived(self, data: bytes) -> None:
        """Pass received bytes to `gather`."""

    def _take(self) -> bool:
        """Process whole frames from the front; return whether nothing more can be done for now."""
        data, position, ended = self.data, 0, 0
        masked, most, whole = self.masked, self.most_whole, self.whole
        while self.state == _OPEN and position < len(data) and not self.busy:
            if ended and ended % _LOOK_EVERY == 0 and self.clock.seconds() >= self._until:
                break
            found = take(data, position, masked, most)
            if isinstance(found, int):
                if found and self._pieces is None:
                    self._missing, self._pieces = found, []
                    self._expected = len(data) - position + found
                break
            if not whole(found[0], found[1]):
                break
            position = found[2]
            ended += 1
        self._ended += ended
        if position:
            self.data = data[position:]
        return self._pieces is not None or not self.data

    def awaited(self) -> int:
        """Return the bytes that a partial frame or message takes once it is complete."""
        if self._pieces is not None:
            return self._expected
        frame = self.current_frame
        if frame is None and not self.inside_message:
            return 0
        come = self.message_data_total_length if self.inside_message else 0
        return come + (0 if frame is None else int(frame.length))

    def forget_data(self) -> None:
        """Free a partial frame, once the connection is lost."""
        self.data, self._pieces = b"", None
        self.message_data = self.frame_data = None

    def of_message(self) -> bool:
        """Return whether the frame that begins is part of a message, not a ping between two."""
        return self.inside_message or self.current_frame.opcode <= _LAST_DATA

    @abstractmethod
    def whole(self, first: int, payload: bytes) -> bool:
        """Process a frame by its first byte; return False to leave it to Autobahn."""


def _merge_small(pieces: list[bytes]) -> None:
    """Join the last pieces while they are small: many pieces cost more than their bytes."""
    while len(pieces) > 1 and len(pieces[-2]) <= len(pieces[-1]) < _SMALL_PIECE_BYTES:
        last = pieces.pop()
        pieces[-1] += last
