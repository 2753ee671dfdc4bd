"""Frames that come in pieces: put together once, whatever the pieces are."""

from __future__ import annotations

import random
from typing import ClassVar

import pytest

from linkd.net.frames import MESSAGE, PING, put
from linkd.net.pace import LEAST_BYTES, Pace
from linkd.net.websocket import STATE_CLOSING, STATE_OPEN
from linkd.net.whole import WholeFrames


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


class End(WholeFrames, Autobahn):
    masked: ClassVar[int] = 0x80
    most_whole = 400_000

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, bytes]] = []
        self.works = 0

    def consumeData(self) -> None:
        self.works += 1
        super().consumeData()

    def whole(self, first: int, payload: bytes) -> bool:
        assert type(payload) is bytes
        self.told.append((first, payload))
        return True


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


class Paced(Pace):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.told: list[tuple[int, int]] = []

    def filled(self, size: int, frames: int) -> None:
        self.told.append((size, frames))


def test_a_full_read_is_told_with_the_frames_that_ended_in_it() -> None:
    end, pace = End(), Paced()
    end.pace = pace
    small = frame(PING, b"x") * 20_000
    end.gather(small[:LEAST_BYTES])
    end.gather(small[LEAST_BYTES : LEAST_BYTES + 10])  # no full read
    long = frame(MESSAGE, bytes(300_000))
    end.gather(small[LEAST_BYTES + 10 :] + long[:1000])
    end.gather(long[1000:])
    each = len(frame(PING, b"x"))
    first, second, third = pace.told
    assert first == (LEAST_BYTES, LEAST_BYTES // each)
    assert first[1] + second[1] == pytest.approx(20_000, abs=2)
    assert third == (len(long) - 1000, 1)
