"""The thread that reads: links come before clients, and clients are not forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from linkd.log import reader as module
from linkd.log.reader import Place, Reader
from tests.support.turns import Turns


def test_reads_for_links_come_first_and_others_have_every_fourth_turn() -> None:
    turns, order = Turns(), list[str]()
    reader = Reader(0, turns.post)
    begin = threading.Event()
    reader.start()
    reader.work(begin.wait)

    def note(name: str) -> Callable[[Any], None]:
        return lambda _: order.append(name)

    place = Place(Path("/nowhere"), "edge", "log", 0, 0)
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
    assert module._FIRST_RUN == 3
