"""What is whole in a damaged file, whatever lies between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from linkd.log.frame import HEAD, MAGIC, SMALL, Frame, frame_at


def good_frames(path: Path, seed: int, at: int = 0) -> list[Frame]:
    """Return all frames of a file from `at` on that are whole, whatever lies between them.

    What opens a segment counts at its beginning only, and what lies in other files nowhere: their
    CRCs have no secret in them, so that a published body could hold some.
    """
    return list(_good_frames(path.read_bytes(), seed, at))


def _good_frames(buffer: bytes, seed: int, at: int) -> Iterator[Frame]:
    view = memoryview(buffer)
    while (at := buffer.find(MAGIC, at)) >= 0:
        frame = frame_at(view, at, 0, seed)
        if frame is None or frame.kind == SMALL or (frame.kind == HEAD and at > 0):
            at += 1
        else:
            yield frame
            at = frame.end
