"""docs/metrics.md lists each metric with its kind, and nothing else; what the listener refused."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from twisted.internet.task import Clock

from linkd.api.metrics import Metrics
from tests.support.fake_node import FakeNode, make_config

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_every_metric_is_there_with_its_kind(tmp_path: Path) -> None:
    said = Metrics(FakeNode(make_config(tmp_path), Clock())).text().decode()
    made = dict(re.findall(r"^# TYPE (\w+) (\w+)$", said, re.MULTILINE))
    made = {name: kind for name, kind in made.items() if not name.endswith("_created")}
    told = dict(re.findall(r"^\| `(\w+)` \| (\w+) \| \S", DOCS.read_text(), re.MULTILINE))
    assert told == made


def test_what_the_listener_refused_is_counted_by_reason(tmp_path: Path) -> None:
    metrics = Metrics(FakeNode(make_config(tmp_path), Clock()))
    metrics.refused = counted = Counter({"busy": 4})
    counted["rejected"] += 1
    said = metrics.text().decode().splitlines()
    assert 'linkd_listener_refused_total{reason="busy"} 4' in said
    assert 'linkd_listener_refused_total{reason="rejected"} 1' in said
