"""The figures of a page are the sums of the runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.chaos.acts import Plan
from tests.chaos.checker import Verdict
from tests.chaos.faults import Happened
from tests.chaos.page import BEGIN, END, campaign_figures, replace, results, steady_figures
from tests.chaos.report import Report
from tests.chaos.steady import Result, as_json


def _report(seed: int, lost: list[int]) -> Report:
    report = Report(Plan(seed), seconds=1800.0)
    report.happened = [
        Happened("peer away at hub", "edge-1", 1.0, 2.0),
        Happened("kill -9", "hub", 1.0, 2.0),
    ]
    report.verdicts = [
        Verdict("hub/0", "hub", 1000, 1000),
        Verdict("hub/0", "edge-1", 1000, 1000 - len(lost), lost),
    ]
    report.noticed = [("hub", "ping-timeout", 7.001)]
    return report


def test_several_runs_are_added_up(tmp_path: Path) -> None:
    for report in (_report(1, []), _report(2, [4, 5])):
        text = json.dumps({**asdict(report), "good": report.good})
        (tmp_path / f"campaign-{report.plan.seed}.json").write_text(text)
    said = campaign_figures(results([tmp_path], "campaign"))
    assert "| campaigns | 2, 1 good |" in said
    assert "| seeds | 1, 2 |" in said
    assert "| time, added up | 1.00 h |" in said
    assert "| faults | 4 |" in said
    assert "| records acknowledged to their publishers | 2,000 |" in said
    assert "| **lost, twice, out of order** | **2, 0, 0** |" in said
    assert "2 times, median 7.001 s" in said
    assert "2 peer away, 2 kill -9" in said


def test_a_steady_hour_is_a_row_and_a_drop_is_told() -> None:
    good = Result("slow", 3600.0, published=5000, arrived=5000, rtt=[0.1, 0.2, 0.3])
    bad = Result("full", 3600.0, ["hub at 3.0 s: silence"], published=10)
    said = steady_figures([as_json(good), as_json(bad)])
    rows = said.splitlines()
    assert "full load" in rows[2]
    assert "| **1** | 10 |" in rows[2]
    assert "| 60.0 min | **0** | 5,000 | 0, 0, 0 | 100.0, 200.0, 300.0 ms |" in rows[3]
    assert "full: hub at 3.0 s: silence" in rows


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = f"head\n{BEGIN}\nold\n{END}\ntail\n"
    assert replace(page, "new\n") == f"head\n{BEGIN}\nnew\n{END}\ntail\n"
    with pytest.raises(ValueError, match="marks"):
        replace("no marks", "new")
