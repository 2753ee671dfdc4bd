"""Reports: text and JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from linkd.drill.monitor import Span, Tally
from linkd.drill.report import Check, EndReport, Report, summary, text
from linkd.status import Outage

OUTAGE = Outage("hub", "2026-01-01T00:00:00.000Z", "silence", 10.02, 14.5, 3, 40, 0.1)
STATES = [Span("up", 0.0, 12.0), Span("waiting", 12.0, 16.5), Span("up", 16.5, 20.0)]


def report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "drill": "blackhole",
        "about": "every packet is dropped",
        "began": "2026-01-01T00:00:00.000Z",
        "where": "namespaces",
        "verdict": "pass",
        "fault_began": 2.0,
        "fault_ended": 16.0,
        "ends": [EndReport("edge", "dialer", [OUTAGE], 0.5, True, STATES)],
        "messages": {"drill.up": Tally(1200, 10, 20, 1, 2, 3, 0.25)},
        "checks": [Check("edge: the loss is noticed", True, "silence")],
    }
    return Report(**{**fields, **changes})


def test_text_has_every_figure() -> None:
    lines = "\n".join(text(report()))
    for figure in ("10.02 s", "14.50 s", "0.50 s", "40", "silence", "1,200 published", "PASS"):
        assert figure in lines
    assert "10 refused, 20 in doubt, lost 1, twice 2, out of order 3" in lines


def test_unchecked_messages_are_said_to_be_so() -> None:
    assert "  messages: not compared at both ends" in text(report(messages={}))


def test_a_skipped_drill_says_why() -> None:
    skipped = report(verdict="skipped", why="libfaketime is not installed", ends=[])
    assert text(skipped)[1:] == ["  skipped: libfaketime is not installed"]
    assert "skipped: libfaketime is not installed" in summary([skipped])[1]


def test_the_summary_has_one_line_a_drill() -> None:
    head, one, two = summary([report(), report(drill="oneway", messages={}, verdict="fail")])
    assert head.startswith("DRILL")
    assert one.split()[-4:] == ["1", "2", "3", "pass"]
    assert two.split()[-4:] == ["–", "–", "–", "fail"]


def test_json_has_the_same_fields() -> None:
    decoded = msgspec.json.decode(msgspec.json.encode(report()))
    assert decoded["ends"][0]["outages"][0]["noticed_after_seconds"] == 10.02
    assert decoded["messages"]["drill.up"]["lost"] == 1
    assert decoded["verdict"] == "pass"
