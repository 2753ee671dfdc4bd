"""What conf/ ships for monitoring: alerts and the Grafana dashboard, judged by promtool."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from tests.support.needs import need

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "conf" / "alerts.yml"
ALERT_TESTS = Path(__file__).parent / "conf" / "alerts.test.yml"
DASHBOARD = ROOT / "conf" / "grafana-dashboard.json"

METRICS = {
    "linkd_link_up": "gauge",
    "linkd_link_rtt_seconds": "gauge",
    "linkd_link_silence_seconds": "gauge",
    "linkd_link_attempts_total": "counter",
    "linkd_link_outages_total": "counter",
    "linkd_link_noticed_after_seconds": "histogram",
    "linkd_link_down_seconds": "histogram",
    "linkd_link_backlog_records": "gauge",
    "linkd_link_backlog_bytes": "gauge",
    "linkd_link_backlog_age_seconds": "gauge",
    "linkd_link_certificate_expires_seconds": "gauge",
    "linkd_records_sent_total": "counter",
    "linkd_records_received_total": "counter",
    "linkd_records_dropped_total": "counter",
    "linkd_log_bytes": "gauge",
    "linkd_log_max_bytes": "gauge",
    "linkd_log_commit_seconds": "histogram",
}
"""Name and type of each metric that alerts and dashboard may use (docs/api.md)."""

_GRAFANA = {"$rate_interval": "5m", "$instance": ".*", "$peer": ".*"}


def promtool(*arguments: str | Path) -> str:
    """Return what promtool said; fail with it if promtool finds fault."""
    need("promtool")
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics_in(expression: str) -> set[str]:
    """Return the metrics that a PromQL expression asks for, without the suffixes of histograms."""
    names = set(re.findall(r"\blinkd_\w+", expression))
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana would read it."""
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each query of the dashboard with its panel's title."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for annotation in dashboard()["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def test_alert_rules_are_valid() -> None:
    assert "11 rules found" in promtool("check", "rules", ALERTS)


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    promtool("test", "rules", ALERT_TESTS)
    alerts = set(re.findall(r"- alert: (\w+)", ALERTS.read_text()))
    tested = set(re.findall(r"alertname: (\w+)", ALERT_TESTS.read_text()))
    assert tested == alerts


def test_alerts_and_dashboard_ask_only_for_metrics_that_we_have() -> None:
    asked = metrics_in(ALERTS.read_text()).union(*(metrics_in(each) for _, each in expressions()))
    assert asked <= METRICS.keys()


def test_the_dashboard_shows_every_metric() -> None:
    shown = set().union(*(metrics_in(each) for _, each in expressions()))
    assert shown == METRICS.keys()


def test_counters_and_histograms_are_read_as_such() -> None:
    for title, expression in expressions():
        for name in re.findall(r"\blinkd_\w+", expression):
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            ranged = re.search(rf"(rate|increase)\({name}{{[^}}]*}}\[", expression) is not None
            assert ranged == (METRICS[base] != "gauge") or "changes(" in expression, (title, name)


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    rules = []
    for number, (_, expression) in enumerate(expressions()):
        plain = re.sub(r"\$\w+", lambda name: _GRAFANA[name[0]], expression.replace("$__", "$"))
        rules.append({"record": f"panel:{number}", "expr": plain})
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_panels_have_their_own_numbers_and_places() -> None:
    panels = dashboard()["panels"]
    numbers = [panel["id"] for panel in panels]
    assert len(set(numbers)) == len(numbers)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)


def test_the_dashboard_names_no_host_and_no_fixed_data_source() -> None:
    text = DASHBOARD.read_text()
    assert "://" not in text
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {"linkd", "${datasource}"}
