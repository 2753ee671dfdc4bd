"""What a resync would do, in words: every number in them is an offset that makes sense."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from linkd.node.node import resync


def told(wanted: int | None, acked: int, next: int, owed: int) -> str:
    cursor = None if wanted is None else SimpleNamespace(log="feed", next=wanted)
    log: Any = SimpleNamespace(next=next, cursor=lambda _peer: cursor)
    outbound = SimpleNamespace(acked=acked, owed_records=owed)
    session = SimpleNamespace(outbound=outbound)
    driver: Any = SimpleNamespace(peer="hub", carrier=SimpleNamespace(session=session))
    said: list[str] = []
    resync("edge", log, driver, confirmed=False).addCallback(said.append)
    return said[0]


def test_nothing_owed_reads_as_such() -> None:
    said = told(wanted=7, acked=11, next=11, owed=0)
    assert "this node has hub's log feed up to offset 6; after a resync" in said
    assert (
        "By this node's notes hub has everything below offset 11 of a log whose next offset is 11"
        " (0 records owed)" in said
    )
    assert said.endswith("run `linkd resync edge` on hub too")


def test_what_never_came_is_not_called_offset_0() -> None:
    for wanted in (None, 1):
        said = told(wanted, acked=1, next=1, owed=0)
        assert said.startswith("this node has nothing of hub's log yet. ")
