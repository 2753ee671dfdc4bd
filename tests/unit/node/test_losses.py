"""What befalls the log: told once, kept for status and events."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from linkd.log import CursorStore
from linkd.log.interface import OperatorNotice
from linkd.node.history import EventBuffer, LogMonitor, RecentLosses
from tests.support.memory_log import MemoryLog


class Node:
    """Keeps what it is told; has one link, whose inbound half a test sets."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        self.inbound = SimpleNamespace(received=None, committed=0)
        replicator = SimpleNamespace(session=SimpleNamespace(inbound=self.inbound))
        driver = SimpleNamespace(peer="edge", replicator=replicator)
        self.links = SimpleNamespace(drivers={"edge": driver})

    def log_event(self, level: str, event: str, **fields: Any) -> None:
        self.told.append((level, event, fields))

    @property
    def events(self) -> list[str]:
        return [event for _, event, _ in self.told]


def watched() -> tuple[Node, MemoryLog, CursorStore, LogMonitor]:
    node, log, cursors = Node(), MemoryLog("hub"), CursorStore()
    return node, log, cursors, LogMonitor(node, log, cursors)


def test_what_was_found_and_what_is_met_is_told() -> None:
    node, log, cursors = Node(), MemoryLog("hub"), CursorStore()
    log.notices = [OperatorNotice("error", "log.damaged", "one")]
    cursors.notices = [OperatorNotice("warn", "cursors.rebuilt", "two")]
    LogMonitor(node, log, cursors)
    log._notify(OperatorNotice("warn", "log.slow", "three"))
    cursors.on_notice[0](OperatorNotice("warn", "cursors.rebuilt", "four"))
    assert [fields["detail"] for _, _, fields in node.told] == ["one", "two", "three", "four"]
    assert log.notices[-1].detail == "three"


def test_full_and_room_are_told_once_and_room_only_once_it_lasts() -> None:
    node, log, _, watch = watched()
    log.full = "the disk has nothing left"
    for _ in range(3):
        watch.look()
    log.full = None
    watch.look()
    log.full = "again"
    watch.look()
    log.full = None
    for _ in range(3):
        watch.look()
    assert node.events == ["log.full", "log.space-available"]
    assert node.told[0][2]["detail"] == "the disk has nothing left"


def test_a_peer_whose_records_wait_is_named_once() -> None:
    node, log, _, watch = watched()
    node.inbound.received, node.inbound.committed = 20, 10
    watch.look()
    watch.look()
    assert node.events == []
    log.full = "no room"
    for _ in range(4):
        watch.look()
    node.inbound.committed = 20
    watch.look()
    node.inbound.received = 30
    watch.look()
    watch.look()
    assert node.events == ["log.full", "link.acks-paused", "link.acks-paused"]
    assert "from offset 10 " in node.told[1][2]["detail"]
    assert "from offset 20 " in node.told[2][2]["detail"]


def test_losses_are_kept_and_the_rest_is_not() -> None:
    book = EventBuffer(CursorStore())
    losses = RecentLosses(book)
    losses.take("link.up", {"peer": "edge", "detail": "no"})
    losses.take("log.space-available", {"bytes": 5})
    losses.take("link.gap", {"peer": "edge", "detail": "offsets 1 to 5 are gone"})
    assert losses.sentences() == ["link.gap: offsets 1 to 5 are gone"]
    assert [(e.event, e.peer, e.detail) for e in book.after(0)] == [
        ("log.space-available", None, None),
        ("link.gap", "edge", "offsets 1 to 5 are gone"),
    ]
    for number in range(30):
        losses.take("log.damaged", {"detail": str(number)})
    assert len(losses.sentences()) == 20
    assert losses.sentences()[-1] == "log.damaged: 29"


def test_a_stalled_disk_is_told_once_and_not_at_the_first_look() -> None:
    node, log, _, watch = watched()
    found = iter([None, 60.0, None, 5.5, 6.5, 7.5, None, 5.0, 6.0])
    log.stalled = lambda: next(found)  # type: ignore[method-assign]
    said = []
    for _ in range(9):
        watch.look()
        said.append(len(node.events))
    assert said == [0, 0, 0, 0, 1, 1, 2, 2, 3]
    assert node.events == ["log.stalled", "log.stall-ended", "log.stalled"]
    assert (node.told[0][0], node.told[0][2]["seconds"]) == ("error", 6.5)
