"""How much is read of a connection at once, and may wait to be sent."""

from __future__ import annotations

import pytest
from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import Clock

from linkd.net.connection import Sending
from linkd.net.websocket import (
    LARGE_BYTES,
    LEAST_BYTES,
    MOST_BYTES,
    PAGE_BYTES,
    QUICK_SECONDS,
    QUICK_TIMES,
    Pace,
)


class Wrapped:
    """As TLS lies over a transport."""

    def __init__(self, transport: FileDescriptor) -> None:
        self.transport = transport


@pytest.fixture
def stream() -> FileDescriptor:
    return FileDescriptor(reactor=Clock())  # type: ignore[arg-type]


def passed(pace: Pace, seconds: float, times: int = 1) -> None:
    """Let what waited pass in so many seconds."""
    for _ in range(times):
        pace.paused(100.0)
        pace.resumed(100.0 + seconds)


def test_begins_as_twisted_does(stream: FileDescriptor) -> None:
    Pace(stream)
    assert stream.bufferSize == LEAST_BYTES


def test_a_full_read_is_followed_by_larger_ones(stream: FileDescriptor) -> None:
    Pace(stream).filled(LEAST_BYTES, 1)
    assert stream.bufferSize == MOST_BYTES


def test_many_small_frames_are_read_in_small_pieces_from_then_on(stream: FileDescriptor) -> None:
    pace = Pace(stream)
    pace.filled(LEAST_BYTES, 0)
    pace.filled(MOST_BYTES, MOST_BYTES // LARGE_BYTES + 1)
    assert stream.bufferSize == LEAST_BYTES
    pace.filled(LEAST_BYTES, 1)
    passed(pace, 0.0, 2 * QUICK_TIMES)
    assert stream.bufferSize == LEAST_BYTES


def test_more_waits_once_it_has_passed_quickly_some_times(stream: FileDescriptor) -> None:
    pace = Pace(stream)
    passed(pace, QUICK_SECONDS, QUICK_TIMES - 1)
    assert stream.bufferSize == LEAST_BYTES  # the kernel's own buffers may have taken that
    passed(pace, QUICK_SECONDS)
    assert stream.bufferSize == MOST_BYTES


def test_a_wide_one_has_as_much_more_time(stream: FileDescriptor) -> None:
    pace = Pace(stream)
    pace.filled(LEAST_BYTES, 1)
    passed(pace, QUICK_SECONDS * MOST_BYTES / LEAST_BYTES)
    assert stream.bufferSize == MOST_BYTES


def test_one_slow_passage_is_enough_to_let_little_wait_again(stream: FileDescriptor) -> None:
    pace = Pace(stream)
    passed(pace, 0.0, QUICK_TIMES)
    passed(pace, 1.0)
    assert stream.bufferSize == LEAST_BYTES
    passed(pace, 0.0, QUICK_TIMES - 1)
    assert stream.bufferSize == LEAST_BYTES


def test_what_is_read_widens_nothing_while_sending_is_slow(stream: FileDescriptor) -> None:
    pace = Pace(stream)
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
    pace = Pace(stream)
    for free in (0, 0, 0, *range(1000)):  # the kernel takes the first at once
        size = int(stream.bufferSize)
        passed(pace, size / rate if free else 0.0)
        if free > 2:
            assert stream.bufferSize == LEAST_BYTES


def test_under_tls_all_stays_as_it_is(stream: FileDescriptor) -> None:
    wrapped = Wrapped(stream)
    pace = Pace(wrapped)
    pace.filled(LEAST_BYTES, 1)
    passed(pace, 0.0, 2 * QUICK_TIMES)
    assert (stream.bufferSize, list(vars(wrapped))) == (LEAST_BYTES, ["transport"])


def test_a_page_begins_with_little_and_what_it_sends_widens_nothing(stream: FileDescriptor) -> None:
    pace = Pace(Wrapped(stream), is_page=True)
    pace.filled(LEAST_BYTES, 1)
    assert stream.bufferSize == PAGE_BYTES
    passed(pace, 0.0, QUICK_TIMES)
    assert stream.bufferSize == MOST_BYTES
    passed(pace, 0.3)
    assert stream.bufferSize == PAGE_BYTES


def test_large_messages_far_apart_do_not_prove_a_line_quick(stream: FileDescriptor) -> None:
    pace = Pace(stream, is_page=True)
    for second in range(3 * QUICK_TIMES):
        pace.paused(second)
        pace.resumed(second)  # the kernel's buffers were empty
    assert stream.bufferSize == PAGE_BYTES


class Wide(Sending):
    """Sends nowhere."""

    dialed = True

    def __init__(self, stream: FileDescriptor) -> None:
        self.clock = Clock()
        self.pace = Pace(stream)

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
