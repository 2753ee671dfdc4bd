"""Autobahn as linkd uses it: protocol classes, whole frames, adaptive buffers.

Beside it the masking of frames, which another library does in one pass (measured: 64 KiB in 3.5 µs,
by Autobahn's 16 to 22 µs; 1 KiB 0.2 and 3 µs).

Autobahn takes about 15 µs a message and copies it four times; links and streams have many.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final

from autobahn.twisted import websocket
from autobahn.websocket import protocol, types
from twisted.internet.abstract import FileDescriptor
from twisted.logger import Logger

from linkd.clock import Clock
from linkd.net.linux import NOTSENT_BYTES, keep_unsent_small

try:
    from websockets.speedups import apply_mask as _apply_mask
except ImportError:  # it was built without its native code
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


class SilentLogger:
    """Takes what Autobahn logs: linkd says itself what happened, in one line; only errors go on."""

    _log = Logger(namespace="linkd.net.autobahn")

    def debug(self, *_: object, **__: object) -> None:
        """Say nothing."""

    info = warn = trace = debug

    def error(self, format: str | None = None, **fields: object) -> None:
        """Say it at debug level: the connection's end says it for people."""
        self._log.debug(format or "", **fields)

    critical = failure = error


class _Options:
    """Takes a protocol's options from its factory, mixed in before Autobahn's.

    Autobahn does it too, and makes a pretty list of them for its log each time: of 350 µs of a new
    connection that was 250 (measured), and it is paid for each that is sent away too.
    """

    CONFIG_ATTRS: ClassVar[tuple[str, ...]] = ()  # none are left for Autobahn to take
    options: ClassVar[tuple[str, ...]]
    factory: Any

    def _connectionMade(self) -> None:
        for name in self.options:
            if not hasattr(self, name):
                setattr(self, name, getattr(self.factory, name))
        super()._connectionMade()  # type: ignore[misc]


class ServerProtocol(_Options, _Server):  # type: ignore[misc]
    """Autobahn's protocol of the end that accepts."""

    options = tuple(_Server.CONFIG_ATTRS)


class ClientProtocol(_Options, _Client):  # type: ignore[misc]
    """Autobahn's protocol of the end that dials."""

    options = tuple(_Client.CONFIG_ATTRS)


TEXT: Final = 0x81
MESSAGE: Final = 0x82
PING: Final = 0x89
PONG: Final = 0x8A
SMALL_BYTES: Final = 1536
"""A payload below so many bytes is copied behind its head: one piece to write, not two."""

_VIEW_BYTES: Final = 4096
"""From so many bytes on a payload is unmasked without being cut out first (measured)."""

_WHOLE: Final = (MESSAGE, PING, PONG)

Found = tuple[int, bytes, int]
"""A frame: its first byte, its payload, and where the next one begins."""


def take(data: bytes, position: int, masked: int, most: int) -> Found | int:
    """Return the frame at `position`.

    Args:
        data: What was received.
        position: Where the frame begins.
        masked: 0x80 where frames must be masked, else 0.
        most: The longest payload, in bytes, that is not left to Autobahn.

    Returns:
        The frame; or how many bytes more must come first, at least; 0 where the frame is
        Autobahn's to take or to refuse.
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


def put(first: int, payload: bytes, masked: int) -> tuple[bytes, bytes]:
    """Return a frame's head and its payload, masked where `masked` is 0x80, not where it is 0."""
    length = len(payload)
    if length < 126:
        head = bytes((first, masked | length))
    elif length < 65_536:
        head = bytes((first, masked | 126, length >> 8, length & 0xFF))
    else:
        head = bytes((first, masked | 127)) + length.to_bytes(8, "big")
    if not masked:
        return head, payload
    mask = random.getrandbits(32).to_bytes(4, "big")
    return head + mask, apply_mask(payload, mask)


LEAST_BYTES: Final = 65_536
"""Twisted's own measure, at which every connection begins."""

MOST_BYTES: Final = 262_144
"""Four times as much costs a fifth less processor time a record of 64 KiB (measured)."""

QUICK_SECONDS: Final = 0.008
"""`LEAST_BYTES` that pass within this time are quick: so `MOST_BYTES` hold up a ping by 32 ms."""

QUICK_TIMES: Final = 4
"""So often in a row: the first find the kernel's own buffers empty, whatever the line."""

LARGE_BYTES: Final = 1024
"""Frames that are smaller cost by their number: a wide read of them would make a long turn."""

PAGE_BYTES: Final = 8192
"""As much may wait here, and again in the kernel, for a browser until its line proves quick: at
50 kB/s a small message then waits 0.5 s behind parts of a large one, not 4."""

_SEND_BYTES: Final = 1 << 20
"""What is handed to the kernel in one call; it takes what it has room for."""


class AdaptiveBuffer:
    """Widens a transport's buffers while what goes through them passes quickly.

    On a slow line more that waits would only be more ahead of a ping or an ack. Twisted has one
    measure for both directions, so what is read whole widens nothing while sending is slow; nor
    does it once a full read was of small frames.

    Args:
        transport: Of a protocol. Nothing is done where it is no socket's own: TLS hands on what was
            read in pieces of its own, and how small its frames are shows too late.
        is_page: A browser may be at the other end. Then little waits from the start, in the kernel
            too and also below TLS, and only what is sent widens it.
    """

    __slots__ = ("_is_page", "_paused_at", "_quick", "_resumed_at", "_slow", "_small", "_stream")

    def __init__(self, transport: object, is_page: bool = False) -> None:
        if is_page:
            transport = getattr(transport, "transport", transport)
        self._stream = transport if isinstance(transport, FileDescriptor) else None
        self._is_page = is_page
        self._paused_at = self._resumed_at = 0.0
        self._quick = 0
        self._slow = self._small = False
        if self._stream is not None:
            self._stream.SEND_LIMIT = _SEND_BYTES
        if is_page:
            self._set(PAGE_BYTES)

    def filled(self, size: int, frames: int) -> None:
        """As much was read as fits, so many bytes: there is more; it ended so many frames."""
        if self._is_page:
            return
        if frames * LARGE_BYTES > size:
            self._small = True
            self._set(LEAST_BYTES)
        elif not (self._slow or self._small):
            self._set(MOST_BYTES)

    def paused(self, now: float) -> None:
        """What waits to be sent is as much as may; monotonic seconds."""
        if self._is_page and now - self._resumed_at > QUICK_SECONDS:
            self._quick = 0  # the kernel's own buffers have emptied meanwhile
        self._paused_at = now

    def resumed(self, now: float) -> None:
        """The kernel has taken all that waited."""
        stream, self._resumed_at = self._stream, now
        if stream is None:
            return
        if now - self._paused_at > QUICK_SECONDS * stream.bufferSize / LEAST_BYTES:
            self._slow, self._quick = True, 0
            self._set(PAGE_BYTES if self._is_page else LEAST_BYTES)
            return
        self._quick += 1
        if self._quick >= QUICK_TIMES:
            self._slow = False
            if not self._small:
                self._set(MOST_BYTES)

    def _set(self, size: int) -> None:
        if self._stream is not None and self._stream.bufferSize != size:
            self._stream.bufferSize = size
            if self._is_page:
                keep_unsent_small(self._stream, min(size, NOTSENT_BYTES))


TURN_SECONDS: Final = 0.005
"""For so long one connection is worked on in a turn: many small frames wait, others are heard.

A read may hold 37,000 frames (measured: beside eight clients that sent text of one byte a call of
`/v1/status` took 8 s; with this bound 0.2 s).
"""

_LOOK_EVERY: Final = 16
"""So many short frames are taken between two looks at the clock."""

_OPEN: Final = STATE_OPEN
_LIVING: Final = (STATE_OPEN, STATE_CLOSING)
_SMALL_PIECE_BYTES: Final = 16_384
_LAST_DATA: Final = 7  # the opcodes of control frames are greater


class FrameReader(ABC):
    """The receiving half of one end, mixed into Autobahn's protocol.

    Attributes:
        masked: 0x80 where the other end masks its frames, else 0.
        most_whole: The longest payload, in bytes, of a frame that is waited for and taken whole.
        data: What was received and not yet worked on; Autobahn's, as what follows.
        state: Of the WebSocket.
        current_frame: A frame that came in part.
        inside_message: More frames of a message are to come.
        message_data_total_length: Bytes of it that have come.
        pace: Of the transport, once there is one.
        transport: What it is read from.
        clock: The reactor.
        busy: A message that was taken is still being worked on: those behind it wait.
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
    clock: Clock
    pace: AdaptiveBuffer | None = None
    busy = False
    _pieces: list[bytes] | None = None
    """What has come of a frame behind `data`, while some of it is missing."""

    _missing = 0
    _expected = 0
    """How long the frame is of which some is missing."""

    _ended = 0
    """Frames, or parts of them that Autobahn took, that ended in this turn."""

    _until = 0.0
    """When this turn's work on this connection ends, on the reactor's clock."""

    _resting = False
    """The rest of what came waits for the next turn; nothing is read until then."""

    def gather(self, data: bytes) -> None:
        """Take bytes that came, and work on them once they may hold a frame.

        A long frame is put together once, when all of it is there.
        """
        left = self.turn_left()
        self._ended = 0 if left > 0 else 1  # where there is no time at all nothing is worked on
        self._until = self.clock.seconds() + left
        self._gather(data)
        if len(data) >= LEAST_BYTES and self.pace is not None:
            self.pace.filled(len(data), self._ended)

    def _gather(self, data: bytes) -> None:
        pieces = self._pieces
        if pieces is None:
            self.data = self.data + data if self.data else data
        else:
            pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                _merge_small(pieces)
                return
            self._pieces = None
            self.data = b"".join([self.data, *pieces])
        self.consumeData()

    def turn_left(self) -> float:
        """Return for how many seconds this connection may be worked on now."""
        return TURN_SECONDS

    def go_on_later(self, call: Callable[[], None]) -> None:
        """Have work on this connection go on in its next turn."""
        self.clock.callLater(0, call)

    def consumeData(self) -> None:
        """Work on what has come."""
        self._consume()
        if self.busy:
            self._rest()

    def _consume(self) -> None:
        while self.state in _LIVING:
            if self._resting or self.busy or self._is_late():
                self._rest()
                return
            begun = self.current_frame is not None or self.inside_message
            if not begun and self.state == _OPEN and self._take():
                return
            if self._is_late():
                continue
            self._ended += 1
            if not self.processData():  # type: ignore[attr-defined]
                return
        if self.data:
            super().consumeData()  # type: ignore[misc]

    def _is_late(self) -> bool:
        """Tell whether this turn's work has taken long enough; one frame is always worked on."""
        return self._ended > 0 and self.clock.seconds() >= self._until

    def _rest(self) -> None:
        """Go on in the next turn, if anything is left."""
        if (self.data or self.busy) and not self._resting:
            self._resting = True
            self.transport.pauseProducing()
            self.go_on_later(self._go_on)

    def _go_on(self) -> None:
        """Work on what is left, then read on; it counts as life again: nothing could be heard."""
        self._resting = False
        self.dataReceived(b"")
        if not self._resting:
            self.transport.resumeProducing()

    @abstractmethod
    def dataReceived(self, data: bytes) -> None:
        """Take bytes that came, by `gather`."""

    def _take(self) -> bool:
        """Take whole frames off the front; tell whether nothing more can be done for now."""
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
        """Return how many bytes are held, once all has come, of a frame or message in part."""
        if self._pieces is not None:
            return self._expected
        frame = self.current_frame
        if frame is None and not self.inside_message:
            return 0
        come = self.message_data_total_length if self.inside_message else 0
        return come + (0 if frame is None else int(frame.length))

    def forget_data(self) -> None:
        """Free what has come in part, once the connection is lost."""
        self.data, self._pieces = b"", None
        self.message_data = self.frame_data = None

    def of_message(self) -> bool:
        """Tell whether the frame that begins is of a message or within one: no ping by itself."""
        return self.inside_message or self.current_frame.opcode <= _LAST_DATA

    @abstractmethod
    def whole(self, first: int, payload: bytes) -> bool:
        """Take a frame, told by its first byte; False leaves it to Autobahn."""


def _merge_small(pieces: list[bytes]) -> None:
    """Put the last pieces together while they are small: many would cost more than their bytes."""
    while len(pieces) > 1 and len(pieces[-2]) <= len(pieces[-1]) < _SMALL_PIECE_BYTES:
        last = pieces.pop()
        pieces[-1] += last
