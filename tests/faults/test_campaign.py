"""A short campaign: what `scripts/campaign` does for hours."""

from __future__ import annotations

import pytest

from tests.campaign.run import Campaign, Plan
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.needs import need

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_random_faults_under_traffic_lose_nothing() -> None:
    need("iptables in a network namespace")
    faults = 200 if CAMPAIGN else 10
    with Campaign(Plan(seed=11, edges=2, faults=faults, rate=500.0, longest=11.0)) as campaign:
        report = campaign.run()
    for line in report.lines():
        figures.tell(f"campaign: {line}")
    assert report.published() >= 5_000
    assert report.good, "\n".join(report.lines())
