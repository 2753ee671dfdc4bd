"""Metrics for Prometheus, collected from the node's status at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from linkd.status import LinkStatus, NodeStatus

if TYPE_CHECKING:
    from linkd.api.port import NodePort

SECONDS = (0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 43_200.0)
FAST_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
MAX_REMEMBERED = 10_000

_Value = Callable[[LinkStatus], float | None]


def _number(field: str) -> _Value:
    def value(link: LinkStatus) -> float | None:
        found = getattr(link, field)
        return None if found is None else float(found)

    return value


_LINK: tuple[tuple[str, str, str, _Value], ...] = (
    ("linkd_link_up", "1 while the link is up.", "gauge", lambda link: float(link.state == "up")),
    ("linkd_link_rtt_seconds", "Last round trip.", "gauge", _number("rtt_seconds")),
    ("linkd_link_silence_seconds", "Nothing heard since.", "gauge", _number("silence_seconds")),
    ("linkd_link_backlog_records", "Records owed.", "gauge", _number("backlog_records")),
    ("linkd_link_backlog_bytes", "Bytes owed.", "gauge", _number("backlog_bytes")),
    ("linkd_link_backlog_age_seconds", "Oldest owed.", "gauge", _number("backlog_age_seconds")),
    (
        "linkd_link_certificate_expires_seconds",
        "Until the peer's certificate expires.",
        "gauge",
        _number("certificate_expires_seconds"),
    ),
    ("linkd_records_sent", "Records sent.", "counter", _number("sent_records")),
    ("linkd_records_received", "Records received.", "counter", _number("received_records")),
)


class Metrics:
    """The metrics of one node, in a registry of their own.

    Args:
        node: The node.
    """

    def __init__(self, node: NodePort) -> None:
        self._node = node
        self._registry = CollectorRegistry()
        self._registry.register(_FromStatus(node))
        self._attempts = Counter(
            "linkd_link_attempts", "Attempts to reach a peer.", ["peer"], registry=self._registry
        )
        self._outages = Counter(
            "linkd_link_outages", "Outages.", ["peer", "reason"], registry=self._registry
        )
        self._noticed = Histogram(
            "linkd_link_noticed_after_seconds",
            "From the last byte until the outage was noticed.",
            ["peer"],
            registry=self._registry,
            buckets=SECONDS,
        )
        self._down = Histogram(
            "linkd_link_down_seconds",
            "From the last byte until the next connection was up.",
            ["peer"],
            registry=self._registry,
            buckets=SECONDS,
        )
        self.commit = Histogram(
            "linkd_log_commit_seconds",
            "From a publish to its commit.",
            registry=self._registry,
            buckets=FAST_SECONDS,
        )
        self._seen: dict[tuple[str, str], None] = {}
        self._attempts_seen: dict[str, int] = {}

    def text(self) -> bytes:
        """Return all of it in the text format 0.0.4."""
        self._outages_since()
        return generate_latest(self._registry)

    def sample(self) -> None:
        """Look at what is only seen in passing; called once a second."""

    def _outages_since(self) -> None:
        """Count the outages that ended since the last look."""
        for outage in self._node.outages():
            key = (outage.peer, outage.began)
            if outage.down_seconds is None or key in self._seen:
                continue
            self._seen[key] = None
            if len(self._seen) > MAX_REMEMBERED:
                del self._seen[next(iter(self._seen))]
            self._outages.labels(outage.peer, outage.reason).inc()
            self._attempts.labels(outage.peer).inc(outage.attempts)
            self._down.labels(outage.peer).observe(outage.down_seconds)
            if outage.noticed_after_seconds is not None:
                self._noticed.labels(outage.peer).observe(outage.noticed_after_seconds)


class _FromStatus(Collector):
    """What the node's status says, as metrics."""

    def __init__(self, node: NodePort) -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics of all links and of the log."""
        status = self._node.status()
        for name, about, kind, value in _LINK:
            metric = Metric(name, about, kind)
            sample = name + "_total" if kind == "counter" else name
            for link in status.links:
                found = value(link)
                if found is not None:
                    metric.add_sample(sample, {"peer": link.peer}, found)
            yield metric
        yield from _of_log(status)

    def describe(self) -> Iterable[Metric]:
        """Yield nothing: the names are known to be free."""
        return ()


def _of_log(status: NodeStatus) -> Iterable[Metric]:
    log = status.log
    for name, about, value in (
        ("linkd_log_bytes", "What the log occupies.", log.bytes),
        ("linkd_log_max_bytes", "Its bound.", log.max_bytes),
        ("linkd_log_first_offset", "Its oldest offset.", log.first),
        ("linkd_log_next_offset", "Its next offset.", log.next),
        ("linkd_log_full", "1 while publishes are refused.", int(log.full is not None)),
        ("linkd_uptime_seconds", "Since the node started.", status.uptime_seconds),
    ):
        metric = Metric(name, about, "gauge")
        metric.add_sample(name, {}, float(value))
        yield metric
    lag = Metric("linkd_consumer_lag_records", "Offsets behind the log's end.", "gauge")
    for consumer in status.consumers:
        lag.add_sample(lag.name, {"consumer": consumer.name}, float(consumer.lag_records))
    yield lag
