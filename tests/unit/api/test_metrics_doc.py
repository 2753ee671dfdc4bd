"""docs/metrics.md lists each metric with its kind, and nothing else; what the listener refused."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock

from linkd.api.metrics import Metrics
from linkd.status import CertificateStatus, Outage
from tests.support.fake_node import FakeNode, instance, link, make_config, metrics_text

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_every_metric_is_there_with_its_kind(tmp_path: Path) -> None:
    node = FakeNode(make_config(tmp_path), Clock())
    node.instances = SimpleNamespace(statuses=lambda: [instance("hub-a", here=True)])
    node.bus = SimpleNamespace(is_connected=True, dropped={})
    text = metrics_text(Metrics(node))
    made = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    documented = dict(re.findall(r"^\| `(\w+)` \| (\w+) \| \S", DOCS.read_text(), re.MULTILINE))
    assert documented == made


def test_a_bus_has_metrics_where_there_is_one(tmp_path: Path) -> None:
    node = FakeNode(make_config(tmp_path), Clock())
    assert "linkd_bus" not in metrics_text(Metrics(node))
    node.bus = SimpleNamespace(is_connected=True, dropped={"forged": 3})
    lines = metrics_text(Metrics(node)).splitlines()
    assert "linkd_bus_connected 1.0" in lines
    assert 'linkd_bus_dropped_total{reason="forged"} 3' in lines
    assert 'linkd_bus_dropped_total{reason="full"} 0' in lines


def test_instances_have_metrics_by_name_where_there_are_several(tmp_path: Path) -> None:
    node = FakeNode(make_config(tmp_path), Clock())
    assert "linkd_instance" not in metrics_text(Metrics(node))
    away = instance("hub-b", state="silent", differs=["its keys"])
    found = [instance("hub-a", here=True), away, instance("hub-c", "stopped", links=0)]
    node.instances = SimpleNamespace(statuses=lambda: found)
    lines = metrics_text(Metrics(node)).splitlines()
    assert [line for line in lines if re.match("linkd_instance.*hub-[ab]", line)] == [
        'linkd_instance_info{name="hub-a"} 1.0',
        'linkd_instance_up{name="hub-a"} 1.0',
        'linkd_instance_up{name="hub-b"} 0.0',
        'linkd_instance_links{name="hub-a"} 3.0',
        'linkd_instance_links{name="hub-b"} 3.0',
        'linkd_instance_keeper{name="hub-a"} 0.0',
        'linkd_instance_keeper{name="hub-b"} 0.0',
        'linkd_instance_differs{name="hub-a"} 0.0',
        'linkd_instance_differs{name="hub-b"} 1.0',
    ]
    assert 'linkd_instance_links{name="hub-c"} 0.0' in lines
    assert not any(line.startswith('linkd_instance_up{name="hub-c"}') for line in lines)


def test_the_library_of_prometheus_parses_the_text(tmp_path: Path) -> None:
    node = FakeNode(make_config(tmp_path), Clock())
    node.instances = SimpleNamespace(statuses=lambda: [instance("hub-a", here=True)])
    metrics = Metrics(node, lambda: 7)
    metrics.publish.observe(0.003)
    for measured in node.on_measured:
        measured("round trip", "hub", 0.25)
    families = {each.name: each for each in text_string_to_metric_families(metrics_text(metrics))}
    names = re.findall(r"^# TYPE (\w+?)(?:_total)? \w+$", metrics_text(metrics), re.MULTILINE)
    assert sorted(families) == sorted(names)
    assert families["linkd_process_delayed_calls"].samples[0].value == 7.0
    for name, labels in (
        ("linkd_publish_seconds", {}),
        ("linkd_link_round_trip_seconds", {"peer": "hub"}),
    ):
        assert families[name].type == "histogram"
        buckets = [each for each in families[name].samples if each.name == f"{name}_bucket"]
        assert buckets[-1].labels == {**labels, "le": "+Inf"}
        assert [buckets[0].value, buckets[-1].value] == [0.0, 1.0]


def test_refused_connections_are_counted_by_reason(tmp_path: Path) -> None:
    metrics = Metrics(FakeNode(make_config(tmp_path), Clock()))
    metrics.refused = counted = Counter({"busy": 4})
    counted["rejected"] += 1
    lines = metrics_text(metrics).splitlines()
    assert 'linkd_listener_refused_total{reason="busy"} 4' in lines
    assert 'linkd_listener_refused_total{reason="rejected"} 1' in lines


def test_counters_start_at_zero_before_the_first_event(tmp_path: Path) -> None:
    node = FakeNode(make_config(tmp_path), Clock())
    metrics = Metrics(node)
    lines = metrics_text(metrics).splitlines()
    assert 'linkd_records_dropped_total{peer="hub",reason="expired"} 0' in lines
    assert 'linkd_records_dropped_total{peer="",reason="expired"} 0' in lines
    assert 'linkd_records_unproven_total{peer="hub"} 0' in lines
    assert 'linkd_link_outages_total{peer="hub",reason="silence"} 0' in lines
    assert 'linkd_link_noticed_after_seconds_count{peer="hub"} 0' in lines
    assert 'linkd_listener_refused_total{reason="rejected"} 0' in lines
    assert 'linkd_link_backlog_age_seconds{peer="hub"} 0.0' in lines
    node.counts["expired", "hub"] += 3
    node.counts["gap", "gone"] += 1
    for note_fall in node.on_fell:
        note_fall("hub", "replaced", None)
    lines = metrics_text(metrics).splitlines()
    assert 'linkd_records_dropped_total{peer="hub",reason="expired"} 3' in lines
    assert 'linkd_records_dropped_total{peer="gone",reason="gap"} 1' in lines
    assert 'linkd_link_outages_total{peer="hub",reason="replaced"} 1' in lines
    assert len(lines) == len({line for line in lines if not line.startswith("#")}) + sum(
        line.startswith("#") for line in lines
    ), "no series twice"


def test_outages_of_earlier_runs_are_not_counted_again(tmp_path: Path) -> None:
    node = FakeNode(make_config(tmp_path), Clock())
    before = Outage("hub", "2027-01-15T08:00:00.000Z", "silence", 10.0, 60.0, 5, 0, None)
    node.recorded = [before] * 100
    lines = metrics_text(Metrics(node)).splitlines()
    assert 'linkd_link_outages_total{peer="hub",reason="silence"} 0' in lines
    assert 'linkd_link_down_seconds_count{peer="hub"} 100' not in lines


def test_certificates_are_exported_while_the_link_is_down(tmp_path: Path) -> None:
    node = FakeNode(make_config(tmp_path), Clock())
    node.links = {
        "hub": link("hub", state="waiting", certificate_expires_seconds=5.0),
        "lab": link("lab", state="waiting", certificate_expires_seconds=None),
    }
    node.certificates = [
        CertificateStatus("own", None, 1.0),
        CertificateStatus("authority", "hub", 2.0),
        CertificateStatus("peer", "hub", 3.0),
        CertificateStatus("peer", "lab", 4.0),
    ]
    lines = metrics_text(Metrics(node)).splitlines()
    name = "linkd_certificate_expires_seconds"
    assert [line for line in lines if line.startswith(name)] == [
        f'{name}{{role="own"}} 1.0',
        f'{name}{{role="authority",peer="hub"}} 2.0',
        f'{name}{{role="peer",peer="hub"}} 5.0',
        f'{name}{{role="peer",peer="lab"}} 4.0',
    ]
