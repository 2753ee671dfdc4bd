"""The thread that reads: links come before clients, and clients are not forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from linkd.log import reader as module
from linkd.log.frame import EPOCH, PREFIX_BYTES, frame_prefix
from linkd.log.reader import CorruptSegment, FilePosition, Reader, walk_changes
from tests.support.turns import Turns


def test_reads_for_links_come_first_and_others_have_every_fourth_turn() -> None:
    turns, order = Turns(), list[str]()
    reader = Reader(0, turns.post)
    begin = threading.Event()
    reader.thread.start()
    reader.work(begin.wait)

    def note(name: str) -> Callable[[Any], None]:
        return lambda _: order.append(name)

    place = FilePosition(Path("/nowhere"), "edge", "log", 0, 0)
    for number in range(4):
        reader.fetch(place, 1, 1, note(f"client {number}"))
    for number in range(8):
        reader.fetch(place, 1, 1, note(f"link {number}"), for_link=True)
    reader.work(lambda: turns.post(lambda: order.append("work")))
    begin.set()
    reader.stop()
    turns.now()
    assert order == [
        *("link 0", "link 1", "client 0"),
        *("link 2", "link 3", "link 4", "client 1"),
        *("link 5", "link 6", "link 7", "client 2"),
        *("work", "client 3"),
    ]
    assert module._MAX_FIRST_IN_A_ROW == 3


SEED = 5
ONE = frame_prefix((EPOCH, 0, b"head", b""), 0, 1.0, 0.0, SEED) + b"head"
TWO = ONE + frame_prefix((EPOCH, 0, b"more", b""), 0, 2.0, 0.0, SEED) + b"more"
CHANGES = [(EPOCH, 1.0, b"head"), (EPOCH, 2.0, b"more")]


def changes(path: Path, size: int) -> tuple[list[tuple[int, float, bytes]], int | None]:
    """Return the changes in a file, and where damage is."""
    found = list[tuple[int, float, bytes]]()
    try:
        for change in walk_changes(path, size, SEED, False):
            if change is not None:
                found.append((*change[:2], bytes(change[2])))
    except CorruptSegment as damage:
        return found, damage.at
    return found, None


@pytest.mark.parametrize(
    ("content", "size", "count", "damage"),
    [
        pytest.param(TWO, len(TWO), 2, None, id="whole"),
        pytest.param(TWO, len(TWO) + 8, 0, len(TWO), id="shorter than it should be"),
        pytest.param(ONE + bytes(len(ONE)), len(TWO), 1, len(ONE), id="no frame"),
        pytest.param(TWO, len(TWO) - 1, 1, len(ONE), id="a frame that ends too late"),
        pytest.param(ONE + ONE[:-1] + b"?", len(TWO), 1, len(ONE), id="a wrong CRC"),
        pytest.param(TWO + bytes(8), len(TWO) + 8, 2, len(TWO), id="a short rest"),
    ],
)
def test_a_walk_over_changes_ends_at_what_is_no_frame(
    tmp_path: Path, content: bytes, size: int, count: int, damage: int | None
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert changes(path, size) == (CHANGES[:count], damage)


def test_a_walk_over_changes_reads_on_where_a_frame_ends_behind_the_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", PREFIX_BYTES + 2)
    path = tmp_path / "file"
    path.write_bytes(TWO)
    assert changes(path, len(TWO)) == (CHANGES, None)
