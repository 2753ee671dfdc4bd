"""Whole frames off the front of what a WebSocket received; all else is Autobahn's to take.

Autobahn takes about 15 µs a message and copies it four times; links and streams have many.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final

from linkd.net.frames import take
from linkd.net.pace import LEAST_BYTES, Pace
from linkd.net.timers import Clock
from linkd.net.websocket import STATE_CLOSING, STATE_OPEN

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


class WholeFrames(ABC):
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
    pace: Pace | None = None
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
