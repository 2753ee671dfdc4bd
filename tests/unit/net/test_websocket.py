"""How much is read of a connection at once, and may wait to be sent. Frames that come in pieces:
put together once, whatever the pieces are.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from twisted.internet.abstract import FileDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.task import Clock

from linkd.net.connection import FrameWriter
from linkd.net.websocket import (
    LARGE_BYTES,
    LEAST_BYTES,
    MESSAGE,
    MOST_BYTES,
    PAGE_BYTES,
    PING,
    QUICK_BYTES,
    QUICK_SECONDS,
    STATE_CLOSED,
    STATE_CLOSING,
    STATE_OPEN,
    TURN_SECONDS,
    AdaptiveBuffer,
    DirectWriter,
    FrameReader,
    put,
)

QUICK_TIMES = QUICK_BYTES // LEAST_BYTES


class Wrapped:
    """As TLS lies over a transport."""

    def __init__(self, transport: FileDescriptor) -> None:
        self.transport = transport


@pytest.fixture
def stream() -> FileDescriptor:
    return FileDescriptor(reactor=Clock())  # type: ignore[arg-type]


class Pipe:
    """A socket that takes so many bytes in each call, or fails."""

    def __init__(self, *room: int | OSError) -> None:
        self.room = list(room)
        self.calls: list[list[int]] = []
        self.sent = b""

    def sendmsg(self, pieces: list[bytes]) -> int:
        self.calls.append([len(piece) for piece in pieces])
        room = self.room.pop(0)
        if isinstance(room, OSError):
            raise room
        data = b"".join(pieces)[:room]
        self.sent += data
        return len(data)

    def send(self, data: bytes) -> int:
        self.sent += bytes(data)
        return len(data)


class Writers(Clock):
    """A reactor that notes who writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writing: set[object] = set()
        self.addWriter = self.writing.add
        self.removeWriter = self.writing.discard


class Sending(FileDescriptor):
    """A descriptor that writes to a pipe."""

    reactor: Any

    def __init__(self, *room: int | OSError) -> None:
        super().__init__(Writers())  # type: ignore[arg-type]
        self.connected = True
        self.socket = Pipe(*room)
        self.told: list[str] = []
        DirectWriter(self)
        self.registerProducer(self, True)  # type: ignore[arg-type]

    def writeSomeData(self, data: bytes) -> int:
        return self.socket.send(data)

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopReading(self) -> None:
        """It does not read."""

    def connectionLost(self, reason: Any) -> None:
        self.told.append("lost")


PIECES = [bytes([number]) * 50_000 for number in range(4)]
ALL = b"".join(PIECES)


@pytest.mark.parametrize(
    "room", [[200_000], [50_000, 150_000], [1, 49_998, 1, 100_001, 49_999], [0, 130_000, 70_000]]
)
def test_large_pieces_are_sent_as_they_are_however_few_bytes_fit(room: list[int]) -> None:
    sending = Sending(*room, 4)
    sending.writeSequence(PIECES)
    assert sending.told == ["pause"]
    while sending.socket.sent != ALL:
        assert sending.reactor.writing == {sending}
        assert sending.doWrite() is None
    assert sending.told == ["pause", "resume"]
    assert not sending.reactor.writing
    assert sending.socket.calls[0] == [50_000] * 4
    sending.write(b"more")
    assert sending.doWrite() is None
    assert sending.socket.sent == ALL + b"more"
    assert sending.told == ["pause", "resume"]


def test_small_pieces_are_joined_and_more_than_one_call_takes_wait_for_the_next() -> None:
    sending = Sending(30, 0, 2**30, 2**30)
    sending.writeSequence([b"a" * 10] * 5)
    assert sending.doWrite() is None
    large = [b"b" * 9000] * 70
    sending.writeSequence(large)
    for _ in range(3):
        assert sending.doWrite() is None
    assert [len(call) for call in sending.socket.calls] == [1, 65, 65, 6]
    assert sending.socket.sent == b"a" * 50 + b"".join(large)


def test_a_full_socket_keeps_what_waits_and_a_broken_one_is_lost() -> None:
    sending = Sending(BlockingIOError(errno.EAGAIN, ""), OSError(errno.EPIPE, ""))
    sending.writeSequence(PIECES)
    assert sending.doWrite() is None
    assert sending.doWrite() is CONNECTION_LOST
    assert sending.socket.calls == [[50_000] * 4] * 2


def test_what_waits_is_sent_before_a_connection_ends_and_nothing_is_written_after_it() -> None:
    sending = Sending(200_000)
    sending.unregisterProducer()
    sending.writeSequence(PIECES)
    sending.loseConnection()
    assert sending.doWrite() is CONNECTION_DONE
    assert sending.socket.sent == ALL
    sending.connected = False
    sending.write(b"late")
    assert not sending._tempDataBuffer


class Refilling(Sending):
    """A descriptor whose producer writes again each time that all is sent."""

    refills = 0
    end: Callable[[], None] | None = None

    def resumeProducing(self) -> None:
        super().resumeProducing()
        if self.refills:
            self.refills -= 1
            self.writeSequence(PIECES)
            if self.end is not None:
                self.end()


@pytest.mark.parametrize(("refills", "first"), [(0, 1), (2, 3), (3, 4), (5, 4)])
def test_a_turn_sends_what_the_producer_adds_but_not_for_ever(refills: int, first: int) -> None:
    sending = Refilling(*[200_000] * 6)
    sending.refills = refills
    sending.writeSequence(PIECES)
    assert sending.doWrite() is None
    assert sending.socket.sent == ALL * first
    assert sending.reactor.writing == ({sending} if refills >= first else set())
    if sending.reactor.writing:
        assert sending.doWrite() is None
    assert sending.socket.sent == ALL * (refills + 1)
    assert not sending.reactor.writing
    assert sending.told == ["pause", "resume"] * (refills + 1)


def test_a_producer_that_ends_the_connection_has_nothing_sent_in_the_same_turn() -> None:
    sending = Refilling(*[200_000] * 2)
    sending.refills = 1
    sending.end = sending.loseConnection
    sending.writeSequence(PIECES)
    assert sending.doWrite() is None
    assert sending.socket.sent == ALL


def passed(pace: AdaptiveBuffer, seconds: float, times: int = 1) -> None:
    """Let what waited pass in so many seconds."""
    for _ in range(times):
        pace.paused(100.0)
        pace.resumed(100.0 + seconds)


def test_begins_as_twisted_does(stream: FileDescriptor) -> None:
    AdaptiveBuffer(stream)
    assert stream.bufferSize == LEAST_BYTES


def test_a_full_read_is_followed_by_larger_ones(stream: FileDescriptor) -> None:
    AdaptiveBuffer(stream).filled(LEAST_BYTES, 1)
    assert stream.bufferSize == MOST_BYTES


def test_many_small_frames_are_read_in_small_pieces_from_then_on(stream: FileDescriptor) -> None:
    pace = AdaptiveBuffer(stream)
    pace.filled(LEAST_BYTES, 0)
    pace.filled(MOST_BYTES, MOST_BYTES // LARGE_BYTES + 1)
    assert stream.bufferSize == LEAST_BYTES
    pace.filled(LEAST_BYTES, 1)
    passed(pace, 0.0, 2 * QUICK_TIMES)
    assert stream.bufferSize == LEAST_BYTES


def test_more_waits_once_it_has_passed_quickly_some_times(stream: FileDescriptor) -> None:
    pace = AdaptiveBuffer(stream)
    passed(pace, QUICK_SECONDS, QUICK_TIMES - 1)
    assert stream.bufferSize == LEAST_BYTES  # the kernel's own buffers may have taken that
    passed(pace, QUICK_SECONDS)
    assert stream.bufferSize == MOST_BYTES


def test_a_wide_one_has_as_much_more_time(stream: FileDescriptor) -> None:
    pace = AdaptiveBuffer(stream)
    pace.filled(LEAST_BYTES, 1)
    passed(pace, QUICK_SECONDS * MOST_BYTES / LEAST_BYTES)
    assert stream.bufferSize == MOST_BYTES


def test_one_slow_passage_is_enough_to_let_little_wait_again(stream: FileDescriptor) -> None:
    pace = AdaptiveBuffer(stream)
    passed(pace, 0.0, QUICK_TIMES)
    passed(pace, 1.0)
    assert stream.bufferSize == LEAST_BYTES
    passed(pace, 0.0, QUICK_TIMES - 1)
    assert stream.bufferSize == LEAST_BYTES


def test_what_is_read_widens_nothing_while_sending_is_slow(stream: FileDescriptor) -> None:
    pace = AdaptiveBuffer(stream)
    passed(pace, 1.0)
    pace.filled(LEAST_BYTES, 1)
    assert stream.bufferSize == LEAST_BYTES
    passed(pace, 0.0, QUICK_TIMES)
    passed(pace, 0.0)
    pace.filled(LEAST_BYTES, 1)
    assert stream.bufferSize == MOST_BYTES


@pytest.mark.parametrize("rate", [10_000, 125_000, 1_250_000, 6_000_000])
def test_little_waits_on_a_slow_line(stream: FileDescriptor, rate: int) -> None:
    """What comes behind what waits is held up by half a second at most at 1 Mbit/s."""
    pace = AdaptiveBuffer(stream)
    for free in (0, 0, 0, *range(1000)):  # the kernel takes the first at once
        size = int(stream.bufferSize)
        passed(pace, size / rate if free else 0.0)
        if free > 2:
            assert stream.bufferSize == LEAST_BYTES


def test_under_tls_all_stays_as_it_is(stream: FileDescriptor) -> None:
    wrapped = Wrapped(stream)
    pace = AdaptiveBuffer(wrapped)
    pace.filled(LEAST_BYTES, 1)
    passed(pace, 0.0, 2 * QUICK_TIMES)
    assert (stream.bufferSize, list(vars(wrapped))) == (LEAST_BYTES, ["transport"])


def test_a_page_begins_with_little_and_what_it_sends_widens_nothing(stream: FileDescriptor) -> None:
    pace = AdaptiveBuffer(Wrapped(stream), is_page=True)
    pace.filled(LEAST_BYTES, 1)
    assert stream.bufferSize == PAGE_BYTES
    passed(pace, 0.0, QUICK_BYTES // PAGE_BYTES - 1)
    assert stream.bufferSize == PAGE_BYTES  # a slow line's queue takes more than four at once
    passed(pace, 0.0)
    assert stream.bufferSize == MOST_BYTES
    passed(pace, 0.3)
    assert stream.bufferSize == PAGE_BYTES


def test_large_messages_far_apart_do_not_prove_a_line_quick(stream: FileDescriptor) -> None:
    pace = AdaptiveBuffer(stream, is_page=True)
    for second in range(3 * QUICK_BYTES // PAGE_BYTES):
        pace.paused(second)
        pace.resumed(second)  # the kernel's buffers were empty
    assert stream.bufferSize == PAGE_BYTES


class Wide(FrameWriter):
    """Sends nowhere."""

    dialed = True

    def __init__(self, stream: FileDescriptor) -> None:
        self.clock = Clock()
        self.pace = AdaptiveBuffer(stream)

    def _bug(self, what: str) -> None:
        raise AssertionError(what)


def test_what_is_written_while_much_waits_does_not_make_it_quick(stream: FileDescriptor) -> None:
    """Twisted pauses its producer again at each write."""
    end = Wide(stream)
    for _ in range(3 * QUICK_TIMES):
        end.pauseProducing()
        for _ in range(20):
            end.clock.advance(0.005)
            end.pauseProducing()
        end.resumeProducing()
        assert (stream.bufferSize, end.writable) == (LEAST_BYTES, True)


class Autobahn:
    """Notes what is left to it."""

    def __init__(self) -> None:
        self.data = b""
        self.state = STATE_OPEN
        self.current_frame = None
        self.inside_message = False
        self.left = b""

    def processData(self) -> bool:
        self.left, self.data = self.left + self.data, b""
        return False

    def consumeData(self) -> None:
        raise AssertionError("the state is none of these")


class Transport:
    """Notes whether it is read from."""

    reads = True

    def pauseProducing(self) -> None:
        self.reads = False

    def resumeProducing(self) -> None:
        self.reads = True


class Turns:
    """A reactor in which what is called for later comes in the next turn, and no sooner."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.now = 100.0

    def seconds(self) -> float:
        return self.now

    def callLater(self, delay: float, call: Callable[[], None]) -> None:
        assert delay == 0
        self.calls.append(call)

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class End(FrameReader, Autobahn):
    masked: ClassVar[int] = 0x80
    most_whole = 400_000
    cost = 0.0
    """Seconds that a frame takes."""

    def __init__(self) -> None:
        super().__init__()
        self.transport = Transport()
        self.clock: Any = Turns()
        self.told: list[tuple[int, bytes]] = []
        self.works = 0

    def consumeData(self) -> None:
        self.works += 1
        super().consumeData()

    def dataReceived(self, data: bytes) -> None:
        self.gather(data)

    def whole(self, first: int, payload: bytes) -> bool:
        assert type(payload) is bytes
        self.clock.now += self.cost
        self.told.append((first, payload))
        return True


A_TURN = 64
COST = TURN_SECONDS / A_TURN * 1.0001
"""Seconds that a frame takes where a turn has time for 64."""


def drain(end: End) -> int:
    """Let turns pass until nothing is left; return how many."""
    for turns in range(1000):
        if end.transport.reads:
            return turns
        end.clock.turn()
    raise AssertionError("it never reads again")


def frame(first: int, payload: bytes) -> bytes:
    return b"".join(put(first, payload, 0x80))


@pytest.mark.parametrize("seed", range(60))
def test_whatever_the_pieces_the_frames_are_the_same(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice([0, 5, 125, 126, 4000, 65_535, 65_536, 300_000]) for _ in range(5)]
    frames = [
        (MESSAGE if size > 125 or rng.random() < 0.5 else PING, rng.randbytes(size))
        for size in sizes
    ]
    content = b"".join([frame(*each) for each in frames])
    end, at = End(), 0
    while at < len(content):
        size = rng.choice([1, 2, 9, 1000, 17_000, 65_536])
        end.gather(content[at : at + size])
        at += size
    assert end.told == frames
    assert (end.data, end.left, end._pieces) == (b"", b"", None)


def test_a_long_frame_is_worked_on_when_all_of_it_is_there() -> None:
    end, payload = End(), bytes(300_000)
    content = frame(MESSAGE, payload) + frame(PING, b"?")
    for at in range(0, len(content), 10_000):
        end.gather(content[at : at + 10_000])
    assert end.told == [(MESSAGE, payload), (PING, b"?")]
    assert end.works <= 3


class Waiting(End):
    """Has time only in its turn."""

    left_now = 0.0

    def turn_left(self) -> float:
        return self.left_now


def test_a_long_frame_is_not_even_put_together_before_there_is_time() -> None:
    end, payload = Waiting(), bytes(300_000)
    content = frame(MESSAGE, payload)
    end.left_now = 1.0
    end.gather(content[:10_000])
    end.left_now = 0.0
    end.gather(content[10_000:])
    assert (end.told, len(end.data), end.transport.reads) == ([], 10_000, False)
    end.clock.turn()
    assert (end.told, len(end.data), end.transport.reads) == ([], 10_000, False)
    end.left_now = 1.0
    assert drain(end) == 1
    assert (end.told, end.data) == ([(MESSAGE, payload)], b"")


def test_a_frame_in_single_bytes_is_not_kept_in_as_many_pieces() -> None:
    end, payload = End(), bytes(40_000)
    content = frame(MESSAGE, payload)
    most = 0
    for at in range(len(content)):
        end.gather(content[at : at + 1])
        most = max(most, len(end._pieces or ()))
    assert end.told == [(MESSAGE, payload)]
    assert most <= 20


def test_what_is_no_frame_of_ours_goes_to_autobahn_in_the_order_in_which_it_came() -> None:
    end = End()
    long = frame(MESSAGE, bytes(500_000))
    end.gather(frame(MESSAGE, b"ours") + long[:1000])
    end.gather(long[1000:])
    assert end.told == [(MESSAGE, b"ours")]
    assert end.left == long


def test_one_that_closes_meanwhile_leaves_the_rest_to_autobahn() -> None:
    end, content = End(), frame(MESSAGE, bytes(100_000))
    end.gather(content[:50_000])
    end.state = STATE_CLOSING
    end.gather(content[50_000:])
    assert end.told == []
    assert end.left == content


def test_work_asked_for_meanwhile_loses_nothing() -> None:
    end, content = End(), frame(MESSAGE, bytes(100_000))
    for at in range(0, len(content), 30_000):
        end.gather(content[at : at + 30_000])
        end.consumeData()
    assert end.told == [(MESSAGE, bytes(100_000))]


class Paced(AdaptiveBuffer):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.told: list[tuple[int, int]] = []

    def filled(self, size: int, frames: int) -> None:
        self.told.append((size, frames))


def test_a_full_read_is_told_with_the_frames_that_ended_in_it() -> None:
    end, pace = End(), Paced()
    end.pace, end.cost = pace, COST
    small = frame(PING, b"x") * 20_000
    end.gather(small[:LEAST_BYTES])
    drain(end)
    end.gather(small[LEAST_BYTES : LEAST_BYTES + 10])  # no full read
    long = frame(MESSAGE, bytes(300_000))
    end.gather(small[LEAST_BYTES + 10 :] + long[:1000])
    drain(end)
    end.gather(long[1000:])
    first, second, third = pace.told
    assert first == (LEAST_BYTES, A_TURN)
    assert second == (len(small) - LEAST_BYTES - 10 + 1000, A_TURN)
    assert third == (len(long) - 1000, 1)
    assert len(end.told) == 20_001


def test_many_small_frames_are_worked_on_in_several_turns_and_in_order() -> None:
    end = End()
    end.cost = COST
    frames = [(PING, b"%d" % number) for number in range(5 * A_TURN + 7)]
    content = b"".join([frame(*each) for each in frames])
    end.gather(content[:-1])
    assert (len(end.told), end.transport.reads) == (A_TURN, False)
    for turn in range(2, 6):
        end.clock.turn()
        assert (len(end.told), end.transport.reads) == (turn * A_TURN, False)
    end.clock.turn()
    assert (len(end.told), end.transport.reads) == (5 * A_TURN + 6, True)
    end.gather(content[-1:])
    assert end.told == frames


def test_what_comes_meanwhile_all_the_same_waits_behind() -> None:
    """TLS hands on what it has read already."""
    end = End()
    end.cost = COST
    frames = [(PING, b"%d" % number) for number in range(3 * A_TURN)]
    content = b"".join([frame(*each) for each in frames])
    third = len(content) // 3
    long = (MESSAGE, bytes(100_000))
    large = frame(*long)
    end.gather(content[:third])
    end.gather(content[third : 2 * third])
    end.gather(content[2 * third :] + large[:50_000])
    told = len(end.told)
    assert told <= A_TURN
    end.gather(large[50_000:])
    assert len(end.told) == told
    assert drain(end) == 3
    assert end.told == [*frames, long]


def test_exactly_as_many_as_a_turn_takes_leave_nothing_to_wait_for() -> None:
    end = End()
    end.cost = COST
    end.gather(frame(PING, b"x") * A_TURN)
    assert (len(end.told), end.transport.reads, end.clock.calls) == (
        A_TURN,
        True,
        [],
    )


class Slow(Autobahn):
    """Takes one frame of two bytes at a time."""

    clock: Any

    def processData(self) -> bool:
        self.left, self.data = self.left + self.data[:2], self.data[2:]
        self.clock.now += COST
        return bool(self.data)


class SlowEnd(End, Slow):
    """Leaves all to Autobahn."""

    processData = Slow.processData


def test_frames_that_autobahn_takes_count_too() -> None:
    end, content = SlowEnd(), b"\x81\x80" * (2 * A_TURN + 1)
    end.gather(content)
    assert (len(end.left), end.transport.reads) == (2 * A_TURN, False)
    assert drain(end) == 2
    assert end.left == content


def test_one_that_ends_meanwhile_is_asked_for_nothing_more() -> None:
    end = End()
    end.cost = COST
    end.gather(frame(PING, b"x") * (2 * A_TURN))
    end.state = STATE_CLOSED
    end.data = b""
    end.clock.turn()
    assert len(end.told) == A_TURN
    assert end.clock.calls == []
