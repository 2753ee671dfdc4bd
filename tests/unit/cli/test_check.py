"""`status --check` and the page for people, from a status."""

from __future__ import annotations

from linkd.cli.check_line import check_line
from linkd.cli.status import node_text
from linkd.cli.text import Paint
from linkd.status import LogStatus, NodeStatus

STATUS = NodeStatus("hub", "1", 3.0, LogStatus("x", 1, 2, 3, 400), [], [])


def test_without_a_warning_it_is_ok() -> None:
    code, line = check_line(STATUS)
    assert (code, line.split(" | ")[0]) == (0, "LINKD OK - 0 links up")


def test_a_standing_warning_is_a_warning_and_shown() -> None:
    status = NodeStatus("hub", "1", 3.0, STATUS.log, [], [], ["few descriptors are left"])
    code, line = check_line(status)
    assert code == 1
    assert line.startswith("LINKD WARNING - few descriptors are left | ")
    assert "few descriptors are left" in node_text(status, Paint())
