"""A short campaign with the hub's log on PostgreSQL, and what counts as told."""

from __future__ import annotations

import pytest

from tests.chaos.acts import Plan
from tests.chaos.checker import Verdict
from tests.chaos.cluster import ClusterCampaign
from tests.chaos.database import DatabaseCampaign, Tail, excuse
from tests.chaos.report import Report
from tests.chaos.traffic import Ledger
from tests.support import figures
from tests.support.postgresql import needs_postgresql


def campaign(*kinds: str, broken: str = "") -> Report:
    plan = Plan(3, 1, len(kinds), 2, 250.0, flavour="postgresql", broken=broken)
    with DatabaseCampaign(plan) as one:
        report = one.run(kinds)
    for line in report.lines():
        figures.tell(f"campaign on PostgreSQL: {line}")
    return report


@needs_postgresql
@pytest.mark.slow
def test_a_database_that_fails_over_loses_nothing_but_the_tail_that_is_told() -> None:
    report = campaign("kill database", "promote", "lost tail")
    assert report.good, "\n".join(report.lines())
    assert report.published() > 1_000
    assert len(report.tails) == 1
    assert sum(v.excused for v in report.verdicts) > 0


@needs_postgresql
@pytest.mark.slow
def test_a_build_that_acknowledges_too_early_is_caught() -> None:
    report = campaign("kill database", "kill database", broken="asynchronous-commit")
    assert not report.good
    assert sum(len(v.lost) for v in report.verdicts) > 0
    assert any("told" in line for line in report.audit)


@needs_postgresql
@pytest.mark.slow
def test_hubs_that_share_a_log_lose_nothing_but_the_tail_that_is_told() -> None:
    kinds = ("kill hub", "cut hub", "two primaries", "lost tail", "restart balancer")
    plan = Plan(3, 3, len(kinds), 1, 60.0, flavour="cluster")
    with ClusterCampaign(plan) as one:
        report = one.run(kinds)
    for line in report.lines():
        figures.tell(f"campaign on three hubs: {line}")
    assert report.good, "\n".join(report.lines())
    assert report.published() > 1_000
    assert len(report.tails) == 1


def told(missing: list[int], log: str = "hub") -> tuple[Verdict, list[str]]:
    """Excuse what is missing of ten records at offsets 100 to 109 by a tail of 103 to 105."""
    ledger = Ledger("hub/0", "hub.0", places=[(0, 5, 100, 1.0), (5, 10, 105, 2.0)])
    verdict = Verdict("hub/0", log, lost=missing)
    return verdict, excuse(verdict, ledger, [Tail(3.0, 103, 106)])


def test_only_what_was_told_is_excused() -> None:
    verdict, wrong = told([2, 3, 4, 5, 6])
    assert verdict.lost == [2, 6]
    assert verdict.excused == 3
    assert wrong == []


def test_what_was_told_to_be_lost_and_is_there_is_wrong() -> None:
    assert told([3, 4])[1] == ["1 records of hub/0 were told to be lost and are there"]
    assert told([3, 4], log="edge-1")[1] == []


def test_a_record_that_came_after_a_tail_was_told_is_not_excused_by_it() -> None:
    assert Tail(3.0, 103, 106).has(104, 2.9)
    assert not Tail(3.0, 103, 106).has(104, 3.1)
