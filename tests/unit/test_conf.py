"""What conf/ ships for monitoring: alerts and the Grafana dashboard, judged by promtool."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.task import Clock

from linkd.api.metrics import Metrics
from tests.support.fake_node import FakeNode, instance, make_config, metrics_text
from tests.support.needs import need

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "conf" / "alerts.yml"
ALERT_TESTS = Path(__file__).parent / "conf" / "alerts.test.yml"
DASHBOARD = ROOT / "conf" / "grafana-dashboard.json"

EVERYTHING = re.compile(r"^# TYPE (\w+) (\w+)$", re.MULTILINE)
_GRAFANA = {"$rate_interval": "5m", "$instance": ".*", "$peer": ".*"}


@pytest.fixture
def metrics(tmp_path: Path) -> dict[str, str]:
    """Name and type of each metric that a node has."""
    node = FakeNode(make_config(tmp_path), Clock())
    node.instances = SimpleNamespace(statuses=lambda: [instance("hub-a", here=True)])
    text = metrics_text(Metrics(node))
    return dict(EVERYTHING.findall(text))


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
    assert "20 rules found" in promtool("check", "rules", ALERTS)


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    promtool("test", "rules", ALERT_TESTS)
    alerts = set(re.findall(r"- alert: (\w+)", ALERTS.read_text()))
    tested = set(re.findall(r"alertname: (\w+)", ALERT_TESTS.read_text()))
    assert tested == alerts


def test_each_alert_leads_to_a_place_that_there_is() -> None:
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    runbooks = re.findall(r'runbook: "([^"#]+)#([^"]+)"', ALERTS.read_text())
    assert len(runbooks) == len(alerts)
    for page, anchor in runbooks:
        assert f'<a id="{anchor}"></a>' in (ROOT / page).read_text(), (page, anchor)
    assert [anchor for _, anchor in runbooks] == [name.lower() for name in alerts]


def test_alerts_and_dashboard_ask_only_for_metrics_that_we_have(metrics: dict[str, str]) -> None:
    asked = metrics_in(ALERTS.read_text()).union(*(metrics_in(each) for _, each in expressions()))
    assert asked <= metrics.keys()


def test_the_dashboard_shows_every_metric(metrics: dict[str, str]) -> None:
    shown = set().union(*(metrics_in(each) for _, each in expressions()))
    assert metrics.keys() - shown == set()
    histograms = {name for name, kind in metrics.items() if kind == "histogram"}
    assert len(histograms) >= 6
    buckets = {
        name
        for _, each in expressions()
        for name in re.findall(r"histogram_quantile\(.*?(linkd_\w+)_bucket", each)
    }
    assert buckets == histograms


def test_labels_that_are_asked_for_are_labels_that_there_are() -> None:
    known = {
        "instance",
        "peer",
        "reason",
        "role",
        "owner",
        "consumer",
        "le",
        "version",
        "job",
        "name",
    }
    texts = [ALERTS.read_text(), *(each for _, each in expressions())]
    for text in texts:
        for names in re.findall(r"\bby \(([^)]*)\)", text):
            assert set(re.split(r",\s*", names)) <= known, names
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= known
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            named = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
            assert named <= known, panel["title"]


def test_counters_and_histograms_are_read_as_such(metrics: dict[str, str]) -> None:
    for title, expression in expressions():
        for name in re.findall(r"\blinkd_\w+", expression):
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            ranged = re.search(rf"(rate|increase)\({name}{{[^}}]*}}\[", expression) is not None
            assert ranged == (metrics[base] != "gauge") or "changes(" in expression, (title, name)


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


def test_samples_hold_no_secret_and_say_how_to_make_one() -> None:
    for sample in sorted((ROOT / "conf").glob("*.toml")):
        text = sample.read_text()
        assert not re.search(r"[0-9A-Za-z+=_-]{32,}", text), sample
        assert not re.search(r"^\s*(secret|password|token)\s*=", text, re.MULTILINE), sample
        if "secret_file" in text:
            assert "openssl rand -hex 32" in text, sample
