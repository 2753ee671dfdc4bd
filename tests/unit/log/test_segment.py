"""The whole frames of a damaged file are found in bounded time, whatever it is full of."""

from __future__ import annotations

import time
from pathlib import Path
from struct import pack

from linkd.log.frame import BATCH, MAGIC, frame_prefix
from linkd.log.segment import good_frames

SEED = 0x5EC12E7


def test_a_body_of_false_heads_takes_time_by_its_length_only(tmp_path: Path) -> None:
    """Each claims all that is behind it: 4 MiB took as long as 220 GB of CRCs."""
    size = 4 << 20
    heads = [
        MAGIC + pack("<IIIIB", 1, 0, max(0, size - at - 40), 0, BATCH) + bytes(19)
        for at in range(0, size, 40)
    ]
    last = frame_prefix((BATCH, 0, b"", b"the last"), 0, 1.0, 1.0, SEED) + b"the last"
    path = tmp_path / "segment"
    path.write_bytes(b"".join(heads)[:size] + last)
    began = time.thread_time()
    (frame,) = good_frames(path, SEED)
    assert time.thread_time() - began < 10.0
    assert frame.records == b"the last"


def test_a_frame_of_which_the_file_ends_in_the_prefix_is_none(tmp_path: Path) -> None:
    whole = frame_prefix((BATCH, 0, b"", b"whole"), 0, 1.0, 1.0, SEED) + b"whole"
    path = tmp_path / "segment"
    for left in range(len(whole)):
        path.write_bytes(whole + whole[:left])
        assert [frame.records for frame in good_frames(path, SEED)] == [b"whole"]
