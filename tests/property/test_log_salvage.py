"""The whole frames of a damaged file: those that the simple way finds, in bounded time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random
from struct import pack
from zlib import crc32

from hypothesis import given, settings
from hypothesis import strategies as st

from linkd.log import segment
from linkd.log.frame import BATCH, HEAD, MAGIC, SMALL, Frame, frame_at, frame_prefix
from linkd.log.segment import CrcIndex, good_frames
from tests.conftest import CAMPAIGN

SEED = 0x5EC12E7
KINDS = [HEAD, BATCH, SMALL, 77]


def simply(content: bytes, at: int) -> list[Frame]:
    """Return the whole frames, each claim's CRC summed up anew."""
    found = []
    while (at := content.find(MAGIC, at)) >= 0:
        frame = frame_at(content, at, 0, SEED)
        if frame is None or frame.kind == SMALL or (frame.kind == HEAD and at):
            at += 1
        else:
            found.append(frame)
            at = frame.end
    return found


def true_frame(rng: Random, records: bytes) -> bytes:
    """Return a whole frame, of this log or as anybody can make it."""
    kind, seed = rng.choice(KINDS), rng.choice([0, SEED, SEED, SEED])
    part = (kind, 0, rng.randbytes(rng.randrange(9)), records)
    return frame_prefix(part, rng.randrange(99), 1.0, 2.0, seed) + part[2] + part[3]


def false_head(rng: Random, most: int) -> bytes:
    """Return what claims to begin a frame: all of it, its lengths only, or no more than a word."""
    lengths = pack("<II", rng.randrange(40), rng.randrange(most))
    head = MAGIC + rng.randbytes(4) + lengths + pack("<IB", 0, rng.choice(KINDS)) + bytes(19)
    return head[: rng.choice([4, 16, 40, 40])]


def spoilt_file(rng: Random) -> bytes:
    """Return a file of frames, bodies full of heads and frames, rubbish, and flipped bits."""
    pieces = [true_frame(rng, b"opens it")] if rng.random() < 0.7 else []
    for _ in range(rng.randrange(12)):
        false = b"".join(false_head(rng, 9000) for _ in range(rng.randrange(60)))
        inner = true_frame(rng, false[: rng.randrange(2000)])
        body = rng.choice([b"", false, inner, false + inner + false, rng.randbytes(1500)])
        pieces.append(body if rng.random() < 0.3 else true_frame(rng, body))
    content = bytearray(b"".join(pieces))
    for _ in range(rng.randrange(4) if content else 0):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content[: rng.randrange(len(content) + 1)] if rng.random() < 0.3 else content)


@settings(max_examples=20_000 if CAMPAIGN else 300, deadline=None)
@given(seed=st.integers(0, 2**32), patience=st.sampled_from([0, 1, 4]))
def test_the_frames_found_are_those_of_the_simple_way(seed: int, patience: int) -> None:
    rng = Random(seed)
    content = spoilt_file(rng)
    at = rng.choice([0, 0, rng.randrange(len(content) + 1)])
    was, segment._PATIENCE = segment._PATIENCE, patience
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            assert good_frames(Path(file.name), SEED, at) == simply(content, at)
    finally:
        segment._PATIENCE = was


@settings(max_examples=5000 if CAMPAIGN else 200, deadline=None)
@given(st.binary(max_size=5000), st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_a_sum_is_the_crc_of_its_stretch(
    content: bytes, seed: int, begin: float, length: float
) -> None:
    first = int(begin * len(content))
    end = first + int(length * (len(content) - first))
    assert CrcIndex(content).crc(first, end, seed) == crc32(content[first:end], seed)
