"""docs/metrics.md lists each metric with its kind, and nothing else."""

from __future__ import annotations

import re
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
