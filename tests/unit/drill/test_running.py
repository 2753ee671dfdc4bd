"""A drill on a running pair whose daemons go away meanwhile: it is said in the report."""

from __future__ import annotations

from pathlib import Path

from linkd.drill import live
from linkd.drill.live import Request
from linkd.drill.monitor import Counted, Daemon, Publisher

REQUEST = Request(kind="reset", peer="hub", seconds=5.0, channel="orders")


def test_messages_that_nobody_can_be_asked_about_fail_the_drill_and_end_it_not(
    tmp_path: Path,
) -> None:
    nobody = str(tmp_path / "linkd.sock")
    publisher = Publisher(nobody, "orders", "linkd-drill-1")
    said: list[str] = []
    delivered = live._delivered(publisher, Daemon(nobody), REQUEST, 2.0, said.append)
    messages: dict[str, Counted] = {}
    (counted,) = live._counted(publisher, REQUEST, nobody, messages)
    for check in (delivered, counted):
        assert not check.ok
        assert nobody in check.got
    assert messages == {}
    assert said == ["waiting until the peer has the numbered messages"]
