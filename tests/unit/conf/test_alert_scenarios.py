"""Which alerts of conf/alerts.yml fire when, from what a daemon's /metrics returns."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.internet.task import Clock

from linkd.api.metrics import Metrics
from linkd.status import CertificateStatus, NodeStatus
from tests.support.fake_node import FakeNode, link, make_config, metrics_text
from tests.support.needs import need

ALERTS = Path(__file__).resolve().parents[3] / "conf" / "alerts.yml"
STEP = 15.0
DAY = 86_400.0
_SAMPLE = re.compile(r"^(linkd_\w+)(?:\{(.*)\})? (\S+)$")


class Host:
    """A daemon's metrics, on a host that Prometheus scrapes."""

    def __init__(self, directory: Path, name: str, peers: list[str]) -> None:
        self.name = name
        self.peers = peers
        self.is_there = True
        directory.mkdir()
        self._config = make_config(directory)
        self.clock = Clock()
        self.restart()

    def restart(self) -> None:
        """Start the daemon: its counters begin at 0, its uptime too."""
        self.clock = Clock()
        self.node = FakeNode(self._config, self.clock)
        self.node.links = {peer: link(peer, state="up") for peer in self.peers}
        self.metrics = Metrics(self.node)
        self.metrics.refused = Counter()
        self.began = 0.0

    def set(self, peer: str, **fields: Any) -> None:
        """Change what status says of a link."""
        self.node.links[peer] = msgspec.structs.replace(self.node.links[peer], **fields)

    def fall(self, peer: str, silence: float, reason: str = "silence") -> None:
        """Have a link leave `up`."""
        self.set(peer, state="waiting")
        for told in self.node.on_fell:
            told(peer, reason, silence)

    def rise(self, peer: str, seconds: float) -> None:
        """Have a link come up again."""
        self.set(peer, state="up")
        for told in self.node.on_rose:
            told(peer, seconds)

    def scrape(self, now: float) -> dict[str, str]:
        """Return value by series."""
        labels = f'instance="{self.name}",job="linkd"'
        found = {f"up{{{labels}}}": "1" if self.is_there else "0"}
        if not self.is_there:
            return found
        for line in metrics_text(self.metrics).splitlines():
            match = _SAMPLE.match(line)
            if match is None:
                assert not line.startswith("linkd_"), line
                continue
            name, more, value = match.groups()
            value = str(now - self.began) if name == "linkd_uptime_seconds" else value
            found[f"{name}{{{labels}{',' + more if more else ''}}}"] = value
        return found


class Prometheus:
    """Scrapes hosts every 15 s, and asks promtool which alerts fire then."""

    def __init__(self, *hosts: Host) -> None:
        need("promtool")
        self.hosts = hosts
        self.now = 0.0
        self._series: dict[str, list[str]] = {}
        self._rounds = 0
        self._asked: list[dict[str, Any]] = []

    def run(self, seconds: float) -> None:
        """Scrape for a while."""
        for _ in range(round(seconds / STEP)):
            seen: dict[str, str] = {}
            for host in self.hosts:
                seen |= host.scrape(self.now)
            for series in seen.keys() | self._series.keys():
                values = self._series.setdefault(series, ["_"] * self._rounds)
                was_there = values and values[-1] not in ("_", "stale")
                values.append(seen.get(series, "stale" if was_there else "_"))
            self._rounds += 1
            self.now += STEP

    def firing(self, *alerts: str) -> None:
        """Expect exactly these alerts to fire now: `LinkdLinkDown instance=edge peer=hub`."""
        samples = []
        for alert in alerts:
            name, *words = alert.split()
            labels = dict(word.split("=") for word in words)
            labels |= {"alertname": name, "alertstate": "firing"}
            inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
            samples.append({"labels": f"ALERTS{{{inside}}}", "value": 1})
        expression = 'sum without (severity, job) (ALERTS{alertstate="firing"}) * 0 + 1'
        self._asked.append(
            {
                "expr": expression,
                "eval_time": f"{self.now - STEP:.0f}s",
                "exp_samples": [
                    {**each, "labels": each["labels"].removeprefix("ALERTS")} for each in samples
                ],
            }
        )

    def judge(self, directory: Path) -> None:
        """Have promtool judge all that was expected."""
        file = directory / "scenario.yml"
        test = {
            "interval": f"{STEP:.0f}s",
            "input_series": [
                {"series": series, "values": " ".join(values)}
                for series, values in self._series.items()
            ],
            "promql_expr_test": self._asked,
        }
        rules = {"rule_files": [str(ALERTS)], "evaluation_interval": "15s", "tests": [test]}
        file.write_text(json.dumps(rules))
        done = subprocess.run(
            ["promtool", "test", "rules", str(file)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def edge(tmp_path: Path) -> Host:
    return Host(tmp_path / "edge", "edge", ["hub"])


@pytest.fixture
def hub(tmp_path: Path) -> Host:
    return Host(tmp_path / "hub", "hub", ["edge"])


def test_a_dead_daemon(edge: Host, tmp_path: Path) -> None:
    prometheus = Prometheus(edge)
    prometheus.run(300)
    prometheus.firing()
    edge.is_there = False
    prometheus.run(45)
    prometheus.firing()
    prometheus.run(60)
    for _ in range(3):  # for as long as it is dead
        prometheus.firing("LinkdGone instance=edge", "LinkdGone")
        prometheus.run(1200)
    edge.is_there = True
    edge.restart()
    edge.began = prometheus.now
    prometheus.run(60)
    prometheus.firing()
    prometheus.judge(tmp_path)


def test_a_dead_host_whose_peer_is_well(edge: Host, hub: Host, tmp_path: Path) -> None:
    prometheus = Prometheus(edge, hub)
    prometheus.run(300)
    hub.is_there = False
    edge.fall("hub", 10.001)
    prometheus.run(120)
    prometheus.firing("LinkdGone instance=hub", "LinkdLinkDown instance=edge peer=hub")
    edge.is_there = False  # now both: nothing must look resolved
    prometheus.run(120)
    prometheus.firing("LinkdGone instance=hub", "LinkdGone instance=edge", "LinkdGone")
    prometheus.judge(tmp_path)


def test_an_outage_of_ten_seconds_is_silent(edge: Host, hub: Host, tmp_path: Path) -> None:
    prometheus = Prometheus(edge, hub)
    prometheus.run(300)
    edge.fall("hub", 10.001)
    hub.fall("edge", 7.004)
    prometheus.run(STEP)
    edge.rise("hub", 10.4)
    hub.rise("edge", 10.4)
    for _ in range(4):
        prometheus.run(300)
        prometheus.firing()
    prometheus.judge(tmp_path)


def test_the_first_late_notice_is_seen(edge: Host, tmp_path: Path) -> None:
    prometheus = Prometheus(edge)
    prometheus.run(300)
    edge.fall("hub", 19.0)
    edge.rise("hub", 20.0)
    prometheus.run(60)
    prometheus.firing("LinkdNoticedLate instance=edge peer=hub")
    prometheus.run(4200)
    edge.fall("hub", 10.001)  # later ones in time: nothing of the first remains
    edge.rise("hub", 11.0)
    prometheus.run(300)
    prometheus.firing()
    prometheus.judge(tmp_path)


def test_the_first_loss_is_seen(edge: Host, tmp_path: Path) -> None:
    prometheus = Prometheus(edge)
    prometheus.run(300)
    edge.node.counts["expired", "hub"] += 20
    edge.node.counts["repeated", "hub"] += 1
    prometheus.run(60)
    prometheus.firing("LinkdRecordsDropped instance=edge peer=hub reason=expired")
    prometheus.run(1800)
    prometheus.firing()
    edge.node.counts["unproven", "hub"] += 1
    prometheus.run(60)
    prometheus.firing("LinkdRecordsUnproven instance=edge peer=hub")
    prometheus.judge(tmp_path)


def test_certificates_while_the_link_is_down(edge: Host, tmp_path: Path) -> None:
    prometheus = Prometheus(edge)
    edge.node.certificates = [
        CertificateStatus("own", "hub", 300 * DAY),
        CertificateStatus("authority", "hub", 3000 * DAY),
        CertificateStatus("own", None, 80 * DAY),
    ]
    edge.set("hub", certificate_expires_seconds=364 * DAY)
    prometheus.run(900)
    prometheus.firing()
    edge.fall("hub", 10.0)
    edge.set("hub", certificate_expires_seconds=None)
    edge.node.certificates = [
        CertificateStatus("own", "hub", DAY),
        CertificateStatus("authority", "hub", 700 * DAY),
        CertificateStatus("own", None, 80 * DAY),
    ]
    prometheus.run(4500)
    prometheus.firing(
        "LinkdLinkDown instance=edge peer=hub",
        "LinkdCertificateExpires instance=edge peer=hub role=own",
        "LinkdCertificateExpired instance=edge peer=hub role=own",
        "LinkdAuthorityExpires instance=edge peer=hub role=authority",
    )
    prometheus.judge(tmp_path)


def test_a_hub_of_100_peers_restarts_with_a_long_history(tmp_path: Path) -> None:
    hub = Host(tmp_path / "hub", "hub", [f"p{number}" for number in range(100)])
    prometheus = Prometheus(hub)
    for _ in range(4):  # four outages of each before, within the half hour
        for peer in hub.peers:
            hub.fall(peer, 7.002)
            hub.rise(peer, 8.0)
        prometheus.run(60)
    hub.restart()
    hub.began = prometheus.now
    for peer in hub.peers:
        hub.rise(peer, 4.0)
    prometheus.run(600)
    prometheus.firing()
    for _ in range(6):
        hub.fall("p7", 7.002)
        hub.rise("p7", 8.0)
        prometheus.run(60)
    prometheus.firing("LinkdLinkFlapping instance=hub peer=p7")
    prometheus.judge(tmp_path)


def test_planned_restarts_of_the_hub_are_no_flapping(edge: Host, tmp_path: Path) -> None:
    """Nor are reloads and drains, of either end; with one more unplanned fall it is."""
    prometheus = Prometheus(edge)
    for unplanned in (5, 1):
        for reason in ("stopped",) * 8 + ("closed",) * unplanned:
            edge.fall("hub", 0.1, reason)
            edge.rise("hub", 1.0)
            prometheus.run(60)
        prometheus.firing(*["LinkdLinkFlapping instance=edge peer=hub"] * (unplanned == 1))
    prometheus.judge(tmp_path)


def test_a_drain_that_was_forgotten(
    edge: Host, hub: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prometheus = Prometheus(edge, hub)
    prometheus.run(300)
    status = hub.node.status
    monkeypatch.setattr(
        hub.node, "status", lambda: msgspec.structs.replace(status(), draining=True)
    )
    prometheus.run(1500)
    prometheus.firing()
    prometheus.run(600)
    prometheus.firing("LinkdDraining instance=hub")
    monkeypatch.undo()
    prometheus.run(60)
    prometheus.firing()
    prometheus.judge(tmp_path)


def test_a_log_that_publishers_have_filled(
    edge: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused at 88 %, because a part of the log is kept for what peers send."""
    prometheus = Prometheus(edge)
    prometheus.run(300)
    prometheus.firing()
    status = edge.node.status

    def filled() -> NodeStatus:
        now = status()
        log = msgspec.structs.replace(now.log, bytes=883, max_bytes=1000, full="no room")
        return msgspec.structs.replace(now, log=log)

    monkeypatch.setattr(edge.node, "status", filled)
    prometheus.run(360)
    prometheus.firing(
        "LinkdLogFilling instance=edge",
        "LinkdLogFull instance=edge",
        "LinkdPublishesRefused instance=edge",
    )
    prometheus.judge(tmp_path)


def test_a_scenario_can_fail(edge: Host, tmp_path: Path) -> None:
    prometheus = Prometheus(edge)
    prometheus.run(300)
    prometheus.firing("LinkdLinkDown instance=edge peer=hub")
    with pytest.raises(AssertionError, match="LinkdLinkDown"):
        prometheus.judge(tmp_path)
    other = Prometheus(edge)
    edge.fall("hub", 10.001)
    other.run(300)
    other.firing()
    with pytest.raises(AssertionError, match="LinkdLinkDown"):
        other.judge(tmp_path)
